#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What each part of a trained model's scores brings, by leaving it out of their sum.

    python benchmarks/parts.py --model runs/mine --data data/prepared --values_file parts.parquet

The parts are what `score_parts` of the model says: readout (the encoder), bias, repeats (the repeat memory),
followers, habits and new labels (the counted memory). Without one of them, or with a few of them alone, the scales of
the others are fitted again on validation cases, as at the end of a training; then the test cases are ranked. Nothing
is trained anew: a part that the others had learned to rely on leaves more of a hole than in a model trained without
it.

Without habits a task has none of their gain; without new labels, labels never met are ranked by what the other parts
say of them, by a gain of their own. The values file is as that of training/run_evaluate.py, a method for each choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.data import PreparedData, check_vocabularies
from modeling_mcm.data.collator import MCMCollator, PreparedRows, batches_by_length, unit_counts
from modeling_mcm.evaluation.cases import EvaluationCases, cases_at, unmet_only
from modeling_mcm.evaluation.ranking import TargetRanks
from modeling_mcm.evaluation.tables import write_values
from modeling_mcm.modeling_mcm import PARTS
from modeling_mcm.option import option
from modeling_mcm.training.checkpoints import check_files, read_checkpoint
from modeling_mcm.training.gains import CASES, fit_scales_of, validation_parts

RELATED = ("habits", "new")
Parts = Mapping[str, torch.Tensor]


@dataclass
class Options:
    """Which model is evaluated on which targets; the options are those of `mcm evaluate`."""

    model: str = option(help="Checkpoint folder.")
    data: str = option(help="Folder of a prepared data set.")
    values_file: str = option(help="Parquet file to write the metrics of every single customer to.")
    tasks: list[str] = option([], "Tasks to evaluate. By default all tasks of the model.")
    filter_seen: bool = option(
        False, "Leave labels that the customer had before the cutoff out of ranking and targets."
    )
    only_new: bool = option(
        False, "Rank, and take as targets, only labels that the customer never had; for --horizon_days."
    )
    horizon_days: float | None = option(
        None, "Number of days whose labels are the targets, instead of those of the next visit."
    )
    batch_size: int = option(64, "Number of customers in one batch of the model.")


def left(parts: Parts, out: set[str]) -> dict[str, torch.Tensor]:
    """Removes some of the parts of a task's scores."""
    rest = {name: part for name, part in parts.items() if name not in out}
    if "met" in parts and set(RELATED) <= out:
        del rest["met"]
    elif "met" in parts and "habits" in out:
        rest["habits"] = torch.zeros_like(parts["habits"])
    elif "met" in parts and "new" in out:
        rest["new"] = torch.stack([part for name, part in rest.items() if name in PARTS]).sum(0)
    return rest


def choices(parts: Parts) -> dict[str, set[str]]:
    """Lists the parts to leave out of a task's scores, by the name of the choice."""
    there = [name for name in (*PARTS, *RELATED) if name in parts]
    counted = set(there) - {"readout", "bias"}
    result = {f"without {name}": {name} for name in there if len(there) > 1}
    if set(RELATED) <= set(there):
        result["without habits and new"] = set(RELATED)
    if counted:
        result["readout and bias alone"] = counted
    return result


def cases_of(options: Options, data: PreparedData) -> EvaluationCases:
    """Finds the test cases of the targets that the options name."""
    cases = cases_at(data, "test", horizon_days=options.horizon_days)
    return unmet_only(data.rows, cases, options.tasks) if options.filter_seen or options.only_new else cases


class Scales:
    """Stores the numbers of a model that are fitted on validation cases, to restore them."""

    def __init__(self, model: MCMForMultiTaskRecommendation):
        memory = model.counted_memory
        gains = [] if memory is None else [memory.habit_gain, memory.new_gain, memory.new_offset]
        self.numbers = [model.score_scales, *gains]
        self.values = [number.clone() for number in self.numbers]

    def put_back(self) -> None:
        """Restores the stored numbers of the model."""
        for number, value in zip(self.numbers, self.values, strict=True):
            number.copy_(value)


def main() -> None:
    """Fits the scales without each choice of parts, ranks the test cases, and writes the metrics."""
    (options,) = parse_options(Options, description=__doc__)
    check_files(options.model)
    model = read_checkpoint(MCMForMultiTaskRecommendation, options.model).eval()
    extractor = MCMFeatureExtractor.from_pretrained(options.model)
    data = PreparedData(options.data)
    check_vocabularies(data.folder, extractor)
    options.tasks = options.tasks or model.config.tasks

    rows, known = data.rows, cases_at(data, "validation")
    units = unit_counts(rows, rows["validation_end"], model.config, extractor.max_events)[known.rows]
    indices = known.rows[np.argsort(units, kind="stable")]  # the same cases as in training/run_pretrain.py
    indices = indices[np.sort(np.random.default_rng(0).permutation(len(indices))[:CASES])]
    collator = MCMCollator(extractor, model.config, "evaluate", cutoff="validation", now=known.moment)
    validation = PreparedRows(rows, indices)
    order = np.arange(len(indices)).tolist()
    starts = tqdm(range(0, len(order), options.batch_size), desc="validation", unit="batch")
    batches = (order[start : start + options.batch_size] for start in starts)
    parts_by_task = validation_parts(model, (collator(validation.__getitems__(batch)) for batch in batches))
    whole, fitted = Scales(model), {}
    for task in options.tasks:
        parts, followed = parts_by_task.pop(task)
        for name, out in choices(parts).items():
            whole.put_back()
            numbers = fit_scales_of(model, {task: (left(parts, out), followed)})[task]
            print(f"{task} {name}: {', '.join(f'{key} {value:.3g}' for key, value in numbers.items())}", flush=True)
            fitted[task, name] = (Scales(model), out)
        whole.put_back()
        fitted[task, "MCM"] = (Scales(model), set())

    cases = cases_of(options, data)
    ranks = {key: TargetRanks(cases, key[0]) for key in fitted if key[0] in cases.targets}
    collator = MCMCollator(extractor, model.config, "evaluate", cutoff="test", now=cases.moment)
    units = unit_counts(rows, rows["test_end"], model.config, extractor.max_events)[cases.rows]
    test = PreparedRows(rows, cases.rows)
    for batch in tqdm(batches_by_length(units, options.batch_size), desc="test", unit="batch"):
        inputs = collator(test.__getitems__(batch.tolist()))
        inputs.pop("labels")
        with torch.inference_mode():
            scored = model.score_parts(**inputs)
            for (task, name), ranking in ranks.items():
                scales, out = fitted[task, name]
                scales.put_back()
                logits = model.joined_scores(model.config.tasks.index(task), left(scored[task], out))
                ranking.add(batch, logits)
    results: dict[str, dict[str, Any]] = {}
    for (task, name), ranking in ranks.items():
        results.setdefault(name, {})[task] = ranking.metrics((10,))
    write_values(Path(options.values_file), cases.customer_ids, results)


if __name__ == "__main__":
    main()
