# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The fifth step: measures on validation cases what an encoder adds to counts, and decides which scores read it.

Shapes: E cases, N candidates of all cases, Q questions.
"""

from collections.abc import Sequence

import torch
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.features_mcm import PLACES, compare
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.scorer_mcm import HORIZON_DAYS, WITHIN, ScoreNetwork

from .counts import CountedLog
from .examples import ExampleTable
from .features import CandidateTable, read_batches
from .fit import ScoredCases, fit_weights

logger = logging.get_logger(__name__)
LEAST_ERRORS = 2  # number of standard errors above which what the encoder adds is no chance


def judge_encoder(
    tasks: Sequence[str],
    by_counts: Sequence[torch.Tensor],
    with_encoder: Sequence[torch.Tensor],
    questions: Sequence[int],
    judges: NDArray,
    device: torch.device,
) -> list[tuple[int, int]]:
    """Finds the tasks and questions for which the encoder adds more to the NDCG@10 of counts alone on validation than
    two standard errors of that. The log says so.

    In, by task the NDCG@10 of each case by counts, and by the network that reads the encoder, too:

        question   | case 0 | case 1 | case 2
        next visit | 1.0    | NaN    | 0.63
        within     | 0.8    | 0.0    | 0.63

    Out, the pairs that read the encoder:

        task | question
        0    | 0
        0    | 1
        2    | 0

    Args:
        tasks (`Sequence[str]`): Their names.
        by_counts, with_encoder (`Sequence[torch.FloatTensor]`): By task `(Q, E)`, NaN without a target.
        questions (`Sequence[int]`): Those that validation answers.
        judges (`NDArray[bool]` of shape `(E,)`): The cases that are read: not those that chose the epochs, among which
            the best epoch was also a lucky one.
        device (`torch.device`): Where they are compared.
    """
    chosen = []
    for task, (name, before, after) in enumerate(zip(tasks, by_counts, with_encoder, strict=True)):
        for question in questions:
            gains = (after.to(device) - before.to(device))[question][torch.from_numpy(judges).to(device)]
            gains = gains[~gains.isnan()]
            gain, error = gains.mean().item(), gains.std().item() / max(len(gains), 1) ** 0.5
            is_used = gain > LEAST_ERRORS * error
            words = f" within {HORIZON_DAYS:g} days" if question == WITHIN else ""
            logger.info(
                f"The encoder adds {gain:+.4f} (standard error {error:.4f}) to the NDCG@10 of {name}{words} on "
                f"validation, so it is {'used' if is_used else 'not used'}."
            )
            if is_used:
                chosen.append((task, question))
    return chosen


def score_by_counts(
    network: ScoreNetwork, validation: Sequence[CandidateTable], without_repeats: Sequence[int], chooses: NDArray
) -> list[ScoredCases]:
    """Scores the candidates of the validation cases that choose, a mask `(E,)`, by counts alone; in tasks without
    repeats the unseen ones."""
    result = []
    for task, table in enumerate(validation):
        table = table.select(torch.from_numpy(chooses).to(table.example.device)[table.example])
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
    device: torch.device | None = None,
) -> float:
    """Measures how well counts and an encoder predict validation together: the mean cross-entropy of a target of
    the next visit, summed over the tasks, with each task's best weights of the readout's probability and rank. An
    encoder alone goes on getting better when all that it still learns is what counts know.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): The model in training.
        examples ([`ExampleTable`]): Validation cases.
        scored (`Sequence[ScoredCases]`): Their candidates by task, of [`score_by_counts`].
        device (`torch.device`, *optional*): That of the model, the default.
    """
    places = torch.full((len(examples.row),), -1)  # (E,): of each case in the batch
    every = torch.cat([cases.case for cases in scored]).unique().numpy(force=True)
    for chosen, _, batch in read_batches(log, examples, every, device or model.device):
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
