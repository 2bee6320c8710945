# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The fourth step: fits on validation cases how sure scores are, and how often their labels come.

Shapes: E cases, N candidates of all cases, V labels of a task, Q questions.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_mcm.scorer_mcm import LabelColumns, LabelScorer
from modeling_mcm.training.descent import minimize

from .features import CandidateTable
from .fit import SEARCH, score_candidates, sum_by_group

CASES_AT_ONCE = 64  # whose shares of all labels are in memory


def calibrate(
    scorer: LabelScorer,
    validation: Sequence[CandidateTable],
    pairs: Iterable[tuple[int, int]],
    questions: Sequence[int],
    device: torch.device,
) -> None:
    """Fits t, and the chances, of tasks and questions (see [`LabelScorer`]), whose networks are fitted.

    In, one row a candidate of a validation case, of which all are there, by task:

        example | label | features     | is_target
        0       | 5     | 1.0 0.7 ...  | True  True
        0       | 9     | 0.0 0.0 ...  | False False
        1       | 6     | 1.0 1.4 ...  | False True

    Out, `scorer.calibration` and `scorer.chance` of the pairs:

        task  | question   | t    | a, b, c
        items | next visit | -0.1 | 2.1, 1.1, -0.4
        items | within     | 0.2  | 3.4, 1.2, -1.0
        aisle | next visit | 0.0  | 2.9, 1.0, -2.2

    Args:
        scorer ([`LabelScorer`]): The scorer, on the device; it is changed.
        validation (`Sequence[CandidateTable]`): By task, on the device; without any nothing changes.
        pairs (iterable of `tuple[int, int]`): Indices of a task, and the question.
        questions (`Sequence[int]`): Those that validation answers; of others there are no chances.
        device (`torch.device`): Where they are fitted.
    """
    if not validation:
        return
    comes = torch.stack([table.num_targets for table in validation]).sum(0) > 0  # (E, Q): a target in some task
    for task, question in pairs:
        table = validation[task]
        values = score_candidates(scorer.get_network(task, question), task, table)[:, question]  # (N,)
        outside = measure_others(scorer, task, table, device)
        log_p = fit_temperature(scorer, task, question, table, values, outside)  # (N,)
        if question in questions:
            is_known = comes[table.example, question]  # (N,): the customer comes
            fit_chances(scorer, task, question, log_p[is_known], table.is_target[is_known, question])


@torch.no_grad()
def measure_others(scorer: LabelScorer, task: int, table: CandidateTable, device: torch.device) -> Tensor:
    """Log of the sum of the shares of the labels that are no candidates, by case `(E,)`."""
    columns, parts = LabelColumns.read([scorer.get_tables(task)]), []
    for cases in torch.arange(len(table.num_unseen), device=device).split(CASES_AT_ONCE):
        chosen = torch.isin(table.example, cases)
        cell = columns.find_cells(table.example[chosen] - cases[0], table.label[chosen])
        parts.append(columns.other_shares(cell, len(cases)).logsumexp(1))  # of (cases, V)
    return torch.cat(parts)


def fit_temperature(
    scorer: LabelScorer,
    task: int,
    question: int,
    table: CandidateTable,
    values: Tensor,
    outside: Tensor,
) -> Tensor:
    """Fits t of a task and question by the cross-entropy of the targets, each case weighing the same, and gives the
    log-probabilities of the candidates `(N,)`, from their scores `(N,)` and what [`measure_others`] gives."""
    example, numbers = table.example, table.num_targets[:, question].float()  # (N,), (E,)
    comes, zeros = table.is_target[:, question].float(), torch.zeros_like(numbers)
    has_target = numbers > 0
    weights = has_target / numbers.clamp(min=1) / has_target.sum().clamp(min=1)  # (E,): of each target of a case
    missed = weights * (numbers - zeros.index_add(0, example, comes))  # (E,): of targets that are no candidates
    target_weights = weights[example] * comes  # (N,)

    def log_probabilities(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the candidates `(N,)`; and for each case `(E,)` that of the most popular other label, and the
        logarithm of the sum over all labels."""
        logits = t.exp() * values
        average = scorer.average_unseen(example, logits, table.features, len(numbers))
        inside = sum_by_group(logits, example, len(numbers))
        return logits, average, torch.logaddexp(inside, average + outside)

    def loss(t: Tensor) -> Tensor:
        logits, average, total = log_probabilities(t)
        entropy = (weights * numbers * total - missed * average).sum() - (target_weights * logits).sum()
        return entropy + 1e-3 * t.square().sum()

    (t,) = minimize(loss, [values.new_zeros(1)], **SEARCH)
    scorer.calibration[task, question] = t[0]
    logits, _, total = log_probabilities(t)
    return logits - total[example]


def fit_chances(scorer: LabelScorer, task: int, question: int, log_p: Tensor, came: Tensor) -> None:
    """Fits the chances of labels by the cross-entropy of the candidates, from their log-probabilities, and whether
    they came, both `(N,)`, of customers who come."""
    if not len(came):
        return
    log_p, came = log_p.double(), came.double()

    def loss(a: Tensor, log_b: Tensor, c: Tensor) -> Tensor:
        chances = scorer.chances([a, log_b.exp(), c], log_p).clamp(1e-7, 1 - 1e-7)
        # Few cases say little of how chances rise with scores, which they do in any case
        return F.binary_cross_entropy(chances, came) + (log_b.square() + (c / 10).square()) / (2 * len(came))

    a, log_b, c = minimize(loss, [*log_p.new_zeros(3)], **SEARCH)
    scorer.chance[task, question] = torch.stack([a, log_b.exp(), c]).to(scorer.chance.dtype)
