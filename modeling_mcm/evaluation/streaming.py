# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics while the model runs: ranks are computed on the device of the logits, which are neither moved nor stored.

This is [`tie_ranks`] in torch, and `StreamingMetrics` for a Trainer with `batch_eval_metrics=True`.

Shapes: B customers, N target labels of a customer (right-padded), V labels, ids 0 and 1 included.
"""

from typing import Any

import numpy as np
import torch

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.evaluation.metrics import UNREACHABLE, customer_metrics


@torch.no_grad()
def ranks_from_logits(
    logits: torch.Tensor, labels: torch.Tensor, max_elements: int = 2**24
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts for each target label how many labels have a larger score and how many have the same, as [`tie_ranks`]
    does.

    A chunk of rows is sorted and searched at a time, so that no array of shape `(B, N, V)` is needed.

    Args:
        logits (`torch.Tensor`, shape `(B, V)`): Scores of the labels, of any floating-point type.
        labels (`torch.Tensor`, shape `(B, N)` or `(B,)`): Label ids; ids up to 1, for unknown and for padding such as
            0 or -100, get the result `UNREACHABLE`.
        max_elements (`int`): Number of logits that are sorted at a time.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `greater` and `ties`, int64, with the shape and device of `labels`.

    Raises:
        ValueError: If the shapes don't fit or a logit is NaN.
    """
    if logits.ndim != 2 or labels.ndim not in (1, 2) or len(labels) != len(logits):
        raise ValueError(
            f"Found logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}; expected (B, V) "
            "and (B, N) or (B,)."
        )
    greater, ties = torch.full_like(labels, UNREACHABLE, dtype=torch.long), torch.ones_like(labels, dtype=torch.long)
    rows = max(1, max_elements // max(1, logits.shape[1]))
    for start in range(0, len(logits), rows):
        chunk = logits[start : start + rows].float()  # exact from bfloat16, and what searchsorted takes everywhere
        if chunk.isnan().any():
            raise ValueError("Logits hold NaN, which has no rank; expected numbers. Check the model or the loss.")
        targets = labels[start : start + rows].reshape(len(chunk), -1).to(chunk.device, torch.long)
        reachable = targets >= FIRST_LABEL
        values = chunk.gather(1, targets.clamp(min=0))
        ordered = chunk[:, FIRST_LABEL:].sort(dim=1).values.contiguous()
        below = torch.searchsorted(ordered, values)
        not_above = torch.searchsorted(ordered, values, right=True)
        shape = labels[start : start + rows].shape
        greater[start : start + rows] = (ordered.shape[1] - not_above).where(reachable, UNREACHABLE).view(shape)
        ties[start : start + rows] = (not_above - below).where(reachable, 1).view(shape)
    return greater, ties


class StreamingMetrics:
    """Computes metrics from ranks, for a Trainer with `batch_eval_metrics=True`.

    Between batches only metrics are stored, a few numbers for each customer.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[np.ndarray]] = {}

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """Adds a batch, and after the last one computes the metrics.

        Args:
            prediction (`EvalPrediction`): `predictions` holds for each task the ranks of [`ranks_from_logits`], and
                `label_ids` the label ids of shape `(B, N)`, one for each event of the next visit; 0 or -100 is
                padding.
            compute_result (`bool`): Whether this is the last batch.

        Returns:
            `dict[str, float]`: Means over customers, named `<task>_<metric>`; empty before the last batch.
        """
        for task, (greater, ties) in prediction.predictions.items():
            labels = _as_numpy(prediction.label_ids[task])
            ranks = _distinct_ranks(_as_numpy(greater), _as_numpy(ties), labels)
            for name, values in customer_metrics(*ranks).items():
                self._values.setdefault(f"{task}_{name}", []).append(values)
        if not compute_result:
            return {}
        joined = {name: np.concatenate(values) for name, values in self._values.items()}
        self._values = {}
        return {name: float(np.nanmean(v)) for name, v in joined.items() if not np.isnan(v).all()}


def _as_numpy(array: Any) -> np.ndarray:
    return array.cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def _distinct_ranks(
    greater: np.ndarray, ties: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merges equal labels of a customer: the first one gets the number of all, and the others 0. Ranks stay as they
    are.
    """
    greater, ties, labels = (array.reshape(len(array), -1) for array in (greater, ties, labels))  # (B,) is (B, 1)
    order = np.argsort(labels, axis=1, kind="stable")
    greater, ties, labels = (np.take_along_axis(array, order, axis=1) for array in (greater, ties, labels))
    starts = np.ones_like(labels, dtype=bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    flat = np.flatnonzero(starts)
    counts = np.zeros(labels.size, dtype=np.int64)
    counts[flat] = np.diff(np.append(flat, labels.size))
    return greater, ties, np.where(labels > 0, counts.reshape(labels.shape), 0)
