#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What scoring a sample of the labels (`sampled_labels`) does to losses and gradients: bias, and scatter of one draw.

    python benchmarks/sampling.py --report_file benchmarks/sampling.md

Two models: the checkpoint of the quickstart on its training rows, for the task of most labels, and one of the same
shape with random weights, on random histories and --labels labels. The same batch is asked whole once, and --draws
times with samples of each size; there is no dropout. Errors are relative to the whole loss and to the norm of its
gradient, that of all parameters. The bias of a gradient is the root of the product of the errors of two halves' means,
which is right on average; 0 where the product is negative. `ranked` has the ranking loss beside equation 4. Whole, it
asks every pair of labels there; `all` are the errors of that loss as it is, which asks some.
"""

from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

import torch

from measuring import random_model, show
from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation, losses_mcm
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import load_prepared
from modeling_mcm.data.collator import IGNORED, MCMCollator, PreparedRows
from modeling_mcm.losses_mcm import RankingPairs
from modeling_mcm.option import option

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "event_dropout_prob": 0.0}
HEADER = [
    "scores",
    "loss",
    "labels",
    "certain",
    "drawn",
    "bias of the loss",
    "one draw",
    "bias of the gradient",
    "one draw",
]


@dataclass
class SamplingOptions:
    """Which model is measured, and how many labels are sampled how often."""

    model: str = option(
        "runs/quickstart", "Checkpoint folder. If it is empty, only a model with random weights is measured."
    )
    data: str = option("data/complete_journey/prepared", "Folder of the prepared data set of the checkpoint.")
    config: str = option("configuration/mcm-tiny", "Folder with the config.json of the model with random weights.")
    labels: int = option(20_000, "Number of labels of the model with random weights.")
    units: int = option(64, "Number of visits of a random history, each of one event.")
    batch_size: int = option(16, "Number of customers in one batch.")
    drawn: list[int] = option([32, 128, 512, 2048], "Numbers of labels to sample.")
    draws: int = option(32, "Number of samples of each size; it must be even.")
    threads: int = option(help="Number of torch's threads.", factory=torch.get_num_threads)
    report_file: str | None = option(None, "Markdown file to write the table to.")

    def __post_init__(self) -> None:
        if self.draws < 2 or self.draws % 2:
            raise ValueError(f"--draws {self.draws} must be even, and at least 2: its halves are compared.")


def trained(options: SamplingOptions) -> tuple[MCMForMultiTaskRecommendation, dict[str, torch.Tensor]]:
    """The checkpoint, and a batch of its training rows with the labels of its task of most labels alone."""
    model = MCMForMultiTaskRecommendation.from_pretrained(options.model, **STILL)
    collator = MCMCollator(MCMFeatureExtractor.from_pretrained(options.model), model.config)
    rows = PreparedRows(load_prepared(options.data))
    indices = torch.linspace(0, len(rows) - 1, options.batch_size).long().tolist()
    batch = collator(rows.__getitems__(indices))
    others = [index for index, task in enumerate(model.config.tasks) if task != largest_task(model)]
    batch["labels"][..., others] = IGNORED
    return model, batch


def largest_task(model: MCMForMultiTaskRecommendation) -> str:
    """Finds the task with the most labels."""
    sizes = model.config.label_sizes
    return max(sizes, key=sizes.__getitem__)


def untrained(options: SamplingOptions) -> tuple[MCMForMultiTaskRecommendation, dict[str, torch.Tensor]]:
    """A model with random weights and random histories."""
    return random_model(options.config, options.labels, options.batch_size, options.units, **STILL)


def loss_and_gradient(
    model: MCMForMultiTaskRecommendation, batch: dict[str, torch.Tensor]
) -> tuple[float, torch.Tensor]:
    """Computes the loss of one training pass, and the gradient of all parameters as one vector."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def errors(
    model: MCMForMultiTaskRecommendation, batch: dict[str, torch.Tensor], numbers: list[int | None], draws: int
) -> dict[int | None, list[float]]:
    """For each number of labels drawn: bias of the loss, its standard deviation, bias of the gradient, and the root
    of the mean squared error of one gradient."""
    model.train()
    objective = replace(model.objective, sampled_labels=0)
    model.objective = objective
    every_pair = partial(RankingPairs, sampled=max(model.config.label_sizes.values()))
    with patch.object(losses_mcm, "RankingPairs", every_pair):
        whole, gradient = loss_and_gradient(model, batch)
    results = {}
    for number in numbers:
        model.objective = replace(objective, sampled_labels=number or 0)
        losses, squares = [], 0.0
        halves = [torch.zeros_like(gradient), torch.zeros_like(gradient)]  # errors of their means
        for draw in range(draws):
            loss, estimate = loss_and_gradient(model, batch)
            error = estimate - gradient
            losses.append(loss / whole - 1)
            squares += error.square().sum().item() / draws
            halves[draw % 2] += error / (draws / 2)
        off = torch.tensor(losses, dtype=torch.float64)
        square_of_bias = max(0.0, (halves[0] @ halves[1]).item())
        norm = gradient.norm().item()
        results[number] = [off.mean().item(), off.std().item(), square_of_bias**0.5 / norm, squares**0.5 / norm]
    return results


def measure(options: SamplingOptions) -> list[list[str]]:
    """Makes the rows of the table."""
    torch.manual_seed(0)
    table = [HEADER]
    for scores, make in (("random", untrained), ("trained", trained)):
        if scores == "trained" and not options.model:
            continue
        model, batch = make(options)
        task = largest_task(model)
        met, followed = batch["input_ids"][..., model.config.features.index(task)], batch["labels"]
        ids = torch.cat([met.flatten(), followed[..., model.config.tasks.index(task)].flatten()]).unique()
        certain, labels = int((ids >= FIRST_LABEL).sum()), model.config.label_sizes[task] - FIRST_LABEL
        numbers = [number for number in options.drawn if certain + number < labels]
        for loss, weight in (("equation 4", 0.0), ("ranked", 1.0)):
            model.objective = replace(model.objective, ranking_loss_weight=weight)
            results = errors(model, batch, numbers, options.draws)
            if weight:
                results = errors(model, batch, [None], draws=2) | results
            for number, values in results.items():
                shown = [f"{values[0]:+.2%}", *(f"{value:.2%}" for value in values[1:])]
                table.append([scores, loss, f"{labels:,}", f"{certain:,}", f"{number:,}" if number else "all", *shown])
                print(*table[-1], flush=True)
    return table


def main() -> None:
    """Reads the options, measures, and writes the files that the options name."""
    (options,) = parse_options(SamplingOptions, description=__doc__)
    torch.set_num_threads(options.threads)
    table = measure(options)
    caption = f"{options.batch_size} customers, {options.draws} draws of each size."
    show(table, caption, options.report_file)


if __name__ == "__main__":
    main()
