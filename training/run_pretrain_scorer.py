#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Trains the network of counts that ships with the package, on many shops: cuts of open logs, and synthetic ones.

    python training/run_pretrain_scorer.py --logs data/complete_journey data/ta_feng data/ta_feng_leave_one_out
    python training/run_pretrain_scorer.py --output mine.safetensors --synthetic 100 --steps 500

`mcm prepare` writes the logs' folders: the weights that ship read the two logs of `benchmarks/logs.py` whose packages
hand them out (Complete Journey, and Ta-Feng in two forms). The same seed gives the same shops with any number of
processes. Each shop is counted until its cutoff, and its customers are asked what came next, as validation asks.

Shapes: N examples, R candidates of all examples, B examples of a step, M candidates of the longest of them, T tasks of
all shops, S numbers of a shop, Q questions.
"""

import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product, repeat
from typing import NamedTuple, cast

import datasets
import numpy as np
import torch
from safetensors.torch import save_file
from shops_of_labels import LabelLog, ShopData, cut_log, make_config, read_log
from synthetic_labels import draw_log
from torch import Tensor, nn
from torch.func import functional_call
from transformers.utils import logging

from modeling_mcm.commands.arguments import command
from modeling_mcm.data import PreparedData
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.features_mcm import COUNTED
from modeling_mcm.files_mcm import atomic_write
from modeling_mcm.option import option
from modeling_mcm.scorer_mcm import HORIZON_DAYS, NEXT_VISIT, QUESTIONS, WITHIN, LabelScorer, ScoreNetwork
from modeling_mcm.training.descent import make_descent
from modeling_mcm.training.scorer.calibrate import calibrate
from modeling_mcm.training.scorer.counts import ShopNumbers, count_log
from modeling_mcm.training.scorer.examples import ExampleTable, draw_validation
from modeling_mcm.training.scorer.features import CandidateTable, compute_features, draw_negatives
from modeling_mcm.training.scorer.fit import pad, ranking_loss
from modeling_mcm.training.scorer.shipped import SHIPPED_SCORER, ShopVectors, load_network

EXAMPLES = 200  # customers of a shop who are asked, at most
LEAST_EVENTS, LEAST_CASES, LEAST_TARGETS = 30, 3, 3  # of a shop; one with fewer is left out
LEARNING_RATE, WEIGHT_DECAY, WARM_UP, STEP_EXAMPLES = 3e-3, 1e-2, 0.1, 64
START_STD, LEAST_STD = 0.05, 0.05
TRUSTED = 0.7  # of what the network adds to the mix: an unseen shop is less like those that were seen
CALIBRATED = 0.1  # further shops that say how sure the network is to be, as a share of those that it learns from
CPU = torch.device("cpu")


class ShopExamples(NamedTuple):
    """The examples of a task of a shop, and what is known of the shop."""

    table: CandidateTable
    shop: ShopNumbers


class CountedShop(NamedTuple):
    """A shop that was counted until its cutoff, and all candidates of some of its customers, by task."""

    scorer: LabelScorer
    shops: list[ShopNumbers]
    tables: list[CandidateTable]
    questions: tuple[int, ...]


def count_shop(log: LabelLog, seed: int) -> CountedShop | None:
    """Counts a shop until its cutoff, and asks its customers what came next. None where it is too small."""
    if len(log.customer) < LEAST_EVENTS:
        return None
    data, generator = cast(PreparedData, ShopData(log)), torch.Generator().manual_seed(seed)
    if data.manifest.counts["validation_cases"] < LEAST_CASES:
        return None
    cases = cast(ExampleTable, draw_validation(data, seed))
    chosen = np.random.default_rng(seed).permutation(len(cases.row))[:EXAMPLES]
    config = make_config(data.extractor)
    counted = count_log(data, config, seed, by_fold=False)
    scorer = LabelScorer([*config.label_sizes.values()], config.no_targets, False)
    for table, counts in zip(scorer.tables, counted.counts, strict=True):
        table.load_state_dict(counts.make_tables().state_dict())
    tables = compute_features(counted, cases.take(np.sort(chosen)), generator, CPU, scorer)
    sees = log.cutoffs is None or log.cutoffs[1] - log.cutoffs[0] >= HORIZON_DAYS * SECONDS_PER_DAY
    questions = (NEXT_VISIT, WITHIN) if sees else (NEXT_VISIT,)
    return CountedShop(scorer, [counts.shop for counts in counted.counts], tables, questions)


def make_examples(log: LabelLog, seed: int) -> list[ShopExamples]:
    """Makes the examples of each task of a shop that has enough targets."""
    generator, result = torch.Generator().manual_seed(seed), list[ShopExamples]()
    if (counted := count_shop(log, seed)) is None:
        return result
    for table, shop in zip(counted.tables, counted.shops, strict=True):
        # As in training, what comes in the next visit is a target of both questions: each example teaches both
        targets = torch.stack([table.is_target[:, NEXT_VISIT], table.is_target.any(1)], 1)
        sees = torch.full_like(table.sees_horizon, WITHIN in counted.questions)
        table = table._replace(is_target=targets, sees_horizon=sees)
        if int(targets[:, NEXT_VISIT].sum()) >= LEAST_TARGETS:
            result.append(ShopExamples(draw_negatives(table, generator), shop))
    return result


def measure_chances(log: LabelLog, seed: int, weights: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """How sure the network is to be in a shop, by task: its t `(Q,)`, and the chances' numbers `(Q, 3)`, NaN where a
    question is not answered."""
    if (counted := count_shop(log, seed)) is None:
        return []
    scorer = counted.scorer
    load_network(scorer, counted.shops, weights)
    pairs = product(range(len(counted.tables)), range(QUESTIONS))
    calibrate(scorer, counted.tables, pairs, counted.questions, CPU)
    for question in {*range(QUESTIONS)}.difference(counted.questions):
        scorer.calibration[:, question] = scorer.chance[:, question] = torch.nan
    return list(zip(scorer.calibration, scorer.chance, strict=True))


LOG: list[LabelLog | None] = [None]  # of this process


def _open(folder: str | None) -> None:
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    LOG[0] = read_log(PreparedData(folder)) if folder else None


def _draw(weights: dict[str, Tensor] | None, seed: int, index: int) -> list:
    rng, log = np.random.default_rng([seed, index]), LOG[0]
    try:
        cut = cut_log(log, rng) if log else draw_log(rng)
        return make_examples(cut, index) if weights is None else measure_chances(cut, index, weights)
    except ValueError:  # nothing is left of the log
        return []


def draw_shops(folder: str | None, shops: range, options: "ScorerOptions", weights: dict | None = None) -> list:
    """Makes the examples of shops that are cut from a log, or of synthetic ones; or, with the weights of a network,
    measures how sure it is to be. Neither depends on the number of processes."""
    with ProcessPoolExecutor(options.processes, initializer=_open, initargs=(folder,)) as pool:
        parts = pool.map(_draw, repeat(weights), repeat(options.seed), shops)
        watched = logging.tqdm(parts, total=len(shops), desc=folder or "Synthetic shops", unit="shop")
        return [part for shop in watched for part in shop]


class Examples(NamedTuple):
    """The examples of all shops in flat columns: their first candidates, numbers of candidates, tasks, weights and
    whether they see the horizon, each `(N,)`; numbers `(R, F)`, targets `(R, Q)` and log of the share that was kept
    `(R,)` of the candidates; and the shops of the tasks `(T, S)`."""

    start: Tensor
    number: Tensor
    task: Tensor
    weight: Tensor
    sees_horizon: Tensor
    features: Tensor
    is_target: Tensor
    log_kept: Tensor
    shops: Tensor

    @classmethod
    def of(cls, parts: list[ShopExamples], weights: list[float]) -> "Examples":
        """Joins examples of tasks, each of whose examples have a weight."""
        columns: list[list[Tensor]] = [[] for _ in range(8)]
        begin = 0
        for task, ((table, _), weight) in enumerate(zip(parts, weights, strict=True)):
            size = len(table.num_targets)
            number = torch.bincount(table.example, minlength=size)
            is_known = torch.bincount(table.example[table.is_target[:, 0]], minlength=size) > 0
            first, task_of = begin + number.cumsum(0) - number, torch.full((size,), task)
            of_candidates = table.features[:, :COUNTED].half(), table.is_target, table.log_kept
            own = (first, number, task_of, weight * is_known, table.sees_horizon, *of_candidates)
            for column, values in zip(columns, own, strict=True):
                column.append(values)
            begin += len(table.label)
        columns.append([torch.tensor([part.shop for part in parts], dtype=torch.float32)])
        return cls(*[torch.cat(column) for column in columns])


def train_network(examples: Examples, steps: int, seed: int) -> tuple[ScoreNetwork, ShopVectors]:
    """Trains the network, and what gives tasks their vectors."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network, vectors = ScoreNetwork(1, COUNTED), ShopVectors()
    drawn = torch.multinomial(examples.weight, steps * STEP_EXAMPLES, True, generator=generator).view(steps, -1)
    _start(network, vectors, examples, drawn.flatten()[:4000])
    both = nn.ModuleList([network, vectors]).train()
    descend = make_descent(both, LEARNING_RATE, WEIGHT_DECAY, steps, WARM_UP)
    for chosen in logging.tqdm(drawn, desc="Network", unit="step"):
        offset = torch.arange(int(examples.number[chosen].max()))  # (M,)
        mask = offset < examples.number[chosen][:, None]  # (B, M)
        rows = (examples.start[chosen][:, None] + offset)[mask]  # (candidates,)
        task = examples.task[chosen][:, None].expand(mask.shape)[mask]  # (candidates,)
        own = {"task_vectors.weight": vectors(examples.shops)}
        scores = functional_call(network, own, (task, examples.features[rows].float()))
        is_known = torch.ones(QUESTIONS, len(chosen))
        is_known[WITHIN] = examples.sees_horizon[chosen].float()
        columns = scores, examples.is_target[rows], examples.log_kept[rows, None]
        padded = [pad(values, mask) for values in columns]
        descend(ranking_loss(mask, padded[0], padded[1], padded[2], is_known))
    with torch.no_grad():
        for value in (*network.linear.parameters(), *network.last.parameters()):
            value.mul_(TRUSTED)
    both.eval()
    return network, vectors


@torch.no_grad()
def _start(network: ScoreNetwork, vectors: ShopVectors, examples: Examples, chosen: Tensor) -> None:
    """Standardises by some examples, and starts at the mix of rates."""
    rows = torch.cat([examples.start[chosen] + place for place in range(20) if place])
    rows = rows.clamp(max=len(examples.features) - 1)
    for part, values in ((network, examples.features[rows].float()), (vectors, examples.shops[examples.task[chosen]])):
        part.mean.copy_(values.mean(0))
        part.std.copy_(values.std(0).clamp(min=1e-3) + (LEAST_STD if part is vectors else 0))
    for layer in (network.linear, network.first, network.second, network.last, vectors.last):
        std = START_STD if layer in (network.first, network.second) else 0.0
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


@dataclass
class ScorerOptions:
    """Which logs and how many shops are read, and where the weights are written to."""

    logs: list[str] = option("Folders of prepared logs, of which shops are cut.", [])
    output: str = option("File of the weights.", str(SHIPPED_SCORER))
    cuts: int = option("Number of shops that are cut from each log.", 40)
    synthetic: int = option("Number of synthetic shops.", 300)
    steps: int = option(f"Number of training steps, of {STEP_EXAMPLES} examples.", 4000)
    seed: int = option("Seed of the shops and of the training.", 0)
    processes: int = option("Number of processes that make shops, by default one for each core.", os.cpu_count() or 1)


@command(__doc__, ScorerOptions)
def main(options: ScorerOptions) -> None:
    """Makes the examples, trains the network and writes its weights."""
    begun, parts, kinds = time.monotonic(), list[ShopExamples](), list[bool]()
    numbers: dict[str | None, int] = {**dict.fromkeys(options.logs, options.cuts), None: options.synthetic}
    for folder, number in numbers.items():
        own = draw_shops(folder, range(number), options)
        parts += own
        kinds += [folder is None] * len(own)
    # All examples of open logs weigh as much as all of synthetic shops
    sizes = np.array([len(part.table.num_targets) for part in parts])
    weights = 1 / np.bincount(kinds, sizes)[np.array(kinds, int)]
    torch.set_num_threads(1)  # so that the weights do not depend on the number of cores
    network, vectors = train_network(Examples.of(parts, weights.tolist()), options.steps, options.seed)
    saved = {f"network.{name}": value for name, value in network.state_dict().items() if "task_vectors" not in name}
    saved |= {f"shop.{name}": value for name, value in vectors.state_dict().items()}
    sure = [
        part
        for folder, number in numbers.items()
        for part in draw_shops(folder, range(number, number + math.ceil(CALIBRATED * number)), options, saved)
    ]
    for name, values in zip(("calibration", "chance"), zip(*sure, strict=True), strict=True):
        saved[f"sure.{name}"] = torch.stack(values).nanmedian(0).values
    with atomic_write(options.output) as partial:
        save_file({name: value.contiguous() for name, value in saved.items()}, partial)
    print(f"{options.output}: {len(parts)} tasks of shops, {time.monotonic() - begun:.0f} s.")


if __name__ == "__main__":
    main()
