# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The loss of one task, from its scores after each prefix (B, P, V) and its labels (B, N)."""

import torch

from modeling_mcm.losses_mcm import Targets, task_losses


def find_targets(scores, labels, label_prefixes=None, label_weights=None):
    batch, width, size = scores.shape
    first = torch.arange(batch, device=labels.device)[:, None] * width
    rows = (first if label_prefixes is None else first + label_prefixes).expand_as(labels)
    return Targets.find(labels[..., None], rows, label_weights, [size])


def prefix_cross_entropy(scores, labels, label_prefixes=None, label_weights=None, log_counts=None):
    """Equation 4: -log P(label | prefix), averaged over each customer's targets, then over customers."""
    targets = find_targets(scores, labels, label_prefixes, label_weights)
    return task_losses(scores.flatten(0, 1), targets, log_counts=log_counts)[0]
