#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The best ranking of the synthetic shop's test cases, by the law that its customers follow: what is possible there.

    python benchmarks/shop_truth.py --customers 6000 --data build/recipe/synthetic_shop/prepared \
        --values_file truth.parquet

Sessions are drawn by that law, each going on from what a customer did before the test cutoff, and labels are ranked by
what they add to the expected NDCG@10 (benchmarks/synthetic_truth.py). It knows each customer's taste, which the
log does not tell: no model reaches it. The values file is as that of training/run_evaluate.py, of the method `truth`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.cases import cases_at
from modeling_mcm.evaluation.ranking import TargetRanks
from modeling_mcm.evaluation.tables import write_values
from modeling_mcm.option import option
from synthetic import make_click_log
from synthetic_truth import session_gains

UNKNOWN = FIRST_LABEL - 1


@dataclass
class Options:
    """Which shop's best ranking is computed."""

    customers: int = option(help="Number of customers of the shop, made with the settings of make_click_log.")
    data: str = option(help="Folder of the prepared data set of the shop.")
    values_file: str = option(help="Parquet file to write the metrics of every single customer to.")


def main() -> None:
    """Draws sessions, ranks the test cases, and writes the metrics."""
    (options,) = parse_options(Options, description=__doc__)
    log = make_click_log(customers=options.customers)
    data = PreparedData(options.data)
    cases, vocabularies = cases_at(data, "test"), data.extractor.vocabularies
    names = {"item": log.settings.items, "category": log.settings.categories}
    labels = {}
    for task, number in names.items():
        ids = {value: index for index, value in enumerate(vocabularies[task], FIRST_LABEL)}
        labels[task] = np.array([ids.get(f"{task}-{label}", UNKNOWN) for label in range(number)])
    moment = data.schema.cutoff_seconds("test")
    customers = np.array(cases.customer_ids).astype(int)
    gains_by_task = session_gains(log, customers, moment, labels["item"])
    metrics = {}
    for (task, task_labels), gains in zip(labels.items(), gains_by_task, strict=True):
        scores = np.full((len(cases), len(vocabularies[task]) + FIRST_LABEL), -np.inf)
        known = task_labels != UNKNOWN
        scores[:, task_labels[known]] = gains[:, known]
        ranks = TargetRanks(cases, task)
        ranks.add(np.arange(len(cases)), torch.from_numpy(scores))
        metrics[task] = ranks.metrics((10,))
    write_values(Path(options.values_file), cases.customer_ids, {"truth": metrics})


if __name__ == "__main__":
    main()
