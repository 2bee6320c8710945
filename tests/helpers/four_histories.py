# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of model inputs, and the scores that a model gives them."""

import torch

from modeling_mcm.configuration_mcm import FIRST_LABEL


def rows(inputs, *indices):
    """Some customers of a batch."""
    return {name: value[list(indices)] for name, value in inputs.items()}


def visit_ends(inputs, place):
    """Places of the last event of each visit of one row, the start row included."""
    visits = inputs["visit_ids"][place, : int(inputs["attention_mask"][place].sum())]
    return [i for i in range(len(visits)) if i + 1 == len(visits) or visits[i] != visits[i + 1]]


@torch.no_grad()
def score(model, inputs, **others):
    """All scores that a model gives, of shape (B, ...)."""
    logits = model(**inputs, **others).logits
    return torch.cat([of_task[..., FIRST_LABEL:] for of_task in logits.values()], dim=-1)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
