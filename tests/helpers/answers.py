# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Answers of pipelines, live customers and the service as numbers with names, which can be compared."""

import numpy as np


def flatten(answer, *names):
    """The numbers of an answer by the names that lead to them; an entry of a list is named by the label or the action
    that it is of, otherwise by its place."""
    if isinstance(answer, list | np.ndarray):
        keys = [
            each.get("label", each.get("action_id", i)) if isinstance(each, dict) else i
            for i, each in enumerate(answer)
        ]
        answer = dict(zip(keys, answer, strict=True))
    if not isinstance(answer, dict):
        return {"/".join(map(str, names)): answer}
    return {name: value for key, part in answer.items() for name, value in flatten(part, *names, key).items()}
