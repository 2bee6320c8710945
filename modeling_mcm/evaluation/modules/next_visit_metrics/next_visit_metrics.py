# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics of `modeling_mcm.evaluation` as a module of the `evaluate` library, loaded by the path of its folder."""

import datasets
import evaluate
import numpy as np

from modeling_mcm.evaluation.metrics import customer_metrics

_DESCRIPTION = """
NDCG@k and recall@k of the next visit (the set of its labels) and of the next event (one
uniformly chosen event of it), ties at their expectation, per customer first and the mean last.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: for each customer a list with one [greater, ties] pair for each distinct target label, as
        `modeling_mcm.evaluation.tie_ranks` counts them: labels with a higher score, and with the same score, itself
        included.
    references: for each customer the number of events with each of these labels, in the same order.
    k: length of the list.
Returns:
    A dict from metric name, such as `next_visit_ndcg@10`, to its mean over the customers with a target.
Examples:
    >>> metric = evaluate.load("modeling_mcm/evaluation/modules/next_visit_metrics")
    >>> metric.compute(predictions=[[[0, 1], [2, 1]]], references=[[1, 1]], k=10)["next_visit_recall@10"]
    1.0
"""


class NextVisitMetrics(evaluate.Metric):
    """Thin wrapper; see the description that `evaluate` shows."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Sequence(datasets.Value("int64"))),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions: list, references: list, k: int = 10) -> dict[str, float]:
        values = []
        for pairs, counts in zip(predictions, references, strict=True):
            greater, ties = np.reshape(pairs, (-1, 1, 2)).T.astype(np.int64)
            values.append(customer_metrics(greater, ties, np.reshape(counts, greater.shape), ks=(k,)))
        return {name: float(np.nanmean([each[name] for each in values])) for name in values[0]}
