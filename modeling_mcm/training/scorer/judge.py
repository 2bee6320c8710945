# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The fifth step: measures on validation cases what an encoder adds to counts, and decides which scores read it.

Shapes: E cases, N candidates of all cases, Q questions.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple, cast

import numpy as np
import torch
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.features_mcm import PLACES, compare
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.scorer_mcm import HORIZON_DAYS, WITHIN, LabelScorer, ScoreNetwork

from .counts import CountedLog
from .examples import Examples, ExampleTable
from .features import CandidateTable, compute_features, read_batches
from .fit import ScoredCases, fit_weights, rank_cases

logger = logging.get_logger(__name__)
JUDGES = 1_500  # number of cases whose candidates are in memory at a time
LEAST_ERRORS = 2  # number of standard errors above which what the encoder adds is no chance


def judge_encoder(model: MCMForMultiTaskRecommendation, log: CountedLog, examples: Examples) -> list[tuple[int, int]]:
    """Finds the tasks and questions for which the encoder adds more to the NDCG@10 of counts alone than two standard
    errors of that, on validation cases that did not choose the epoch. Where the first cases don't decide, all are
    asked. The log says what was found.

    Returns the pairs that read the encoder:

        task | question
        0    | 0
        0    | 1
        2    | 0

    Args:
        model ([`MCMForMultiTaskRecommendation`]): The model, with both networks fitted.
        log ([`CountedLog`]), examples ([`Examples`]): The log, and its cases.
    """
    cases = cast(ExampleTable, examples.judging)
    pairs = [*product(range(len(model.config.tasks)), examples.questions)]
    gains = torch.zeros(len(pairs), 0)  # (pairs, E)
    chosen: list[tuple[int, int]] = []
    for first in range(0, len(cases.row), JUDGES):
        part = cases.take(np.arange(first, min(first + JUDGES, len(cases.row))))
        differences = torch.stack(compare_networks(model, log, part))  # (T, Q, E)
        gains = torch.cat([gains, torch.stack([differences[pair] for pair in pairs]).cpu()], 1)
        if first == 0 and all(estimate_gain(values).is_clear for values in gains):
            break
    for (task, question), values in zip(pairs, gains, strict=True):
        gain = estimate_gain(values)
        is_used = gain.mean > LEAST_ERRORS * gain.error
        words = f" within {HORIZON_DAYS:g} days" if question == WITHIN else ""
        logger.info(
            f"The encoder adds {gain.mean:+.4f} (standard error {gain.error:.4f}) to the NDCG@10 of "
            f"{model.config.tasks[task]}{words} on {gain.cases:,} validation cases, so it is "
            f"{'used' if is_used else 'not used'}."
        )
        chosen += [(task, question)] * is_used
    return chosen


class Gain(NamedTuple):
    """Mean difference of cases, its standard error, and their number."""

    mean: float
    error: float
    cases: int

    @property
    def is_clear(self) -> bool:
        """Whether the difference is above or below 0 by more than chance, or there is none in any case."""
        return abs(self.mean) >= LEAST_ERRORS * self.error


def estimate_gain(differences: torch.Tensor) -> Gain:
    """Estimates the mean of differences `(E,)`, NaN in cases without a target."""
    values = differences[~differences.isnan()]
    return Gain(values.mean().item(), values.std().item() / max(len(values), 1) ** 0.5, len(values))


def compare_networks(model: MCMForMultiTaskRecommendation, log: CountedLog, cases: ExampleTable) -> list[torch.Tensor]:
    """By task what the network that reads the encoder adds to the NDCG@10 of counts alone, `(Q, E)`, NaN without a
    target."""
    scorer = cast(LabelScorer, model.scorer)
    tables = compute_features(log, cases, torch.Generator(), model.device, scorer, model)
    networks = cast(ScoreNetwork, scorer.of_readout), scorer.of_counts
    after, before = (rank_cases(network, tables, log.without_repeats) for network in networks)
    return [one - other for one, other in zip(after, before, strict=True)]


def score_by_counts(
    network: ScoreNetwork, validation: Sequence[CandidateTable], without_repeats: Sequence[int]
) -> list[ScoredCases]:
    """Scores the candidates of validation cases by counts alone; in tasks without repeats the unseen ones."""
    result = []
    for task, table in enumerate(validation):
        if task in without_repeats:
            table = table.select(table.features[:, PLACES["seen"]] == 0)
        numbers = table.features.new_zeros(len(table.example), 2)  # the encoder's probability and rank
        result.append(ScoredCases.by_counts(network, task, table, numbers))
    return result


@torch.no_grad()
def measure_encoder(
    model: MCMForMultiTaskRecommendation,
    log: CountedLog,
    examples: ExampleTable,
    scored: Sequence[ScoredCases],
) -> float:
    """Measures how well counts and an encoder predict validation together: the mean cross-entropy of a target of
    the next visit, summed over the tasks, with each task's best weights of the readout's probability and rank. An
    encoder alone goes on getting better when all that it still learns is what counts know.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): The model in training.
        examples ([`ExampleTable`]): Validation cases.
        scored (`Sequence[ScoredCases]`): Their candidates by task, of [`score_by_counts`].
    """
    places = torch.full((len(examples.row),), -1)  # (E,): of each case in the batch
    every = torch.cat([cases.case for cases in scored]).unique().numpy(force=True)
    for chosen, _, batch in read_batches(log, examples, every, model.device):
        places.fill_(-1)[torch.from_numpy(chosen)] = torch.arange(len(chosen))
        logits = model(**batch, parts=()).logits.values()  # of the readout, as there are labels
        for cases, scores in zip(scored, logits, strict=True):
            place = places.to(cases.case.device)[cases.case]  # (N,)
            read, shares = place >= 0, scores[:, FIRST_LABEL:].float().log_softmax(1).to(place.device)  # (B, V)
            cases.numbers[read, 0] = shares[place[read], cases.label[read] - FIRST_LABEL]
    total = 0.0
    for cases in scored:
        cases.numbers[:, 1] = compare(cases.case, cases.numbers[None, :, 0].exp())[0][0].log2()
        spread = cases.numbers.std(0, correction=0).clamp(min=1e-3)  # a number also of one candidate
        total += fit_weights([cases._replace(numbers=(cases.numbers - cases.numbers.mean(0)) / spread)])[1]
    return total
