# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Fits the scorer of labels ([`~scorer_mcm.LabelScorer`]) on prefixes of the log's own customers.

Everything comes from the training period, but for the calibration and whether a task reads the encoder: those come
from validation cases. The network that reads the encoder is fitted on visits that were held out of its training,
because it knows the others by heart.

Shapes: B examples of a step, M candidates of the longest of them, N candidates of all examples.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.cases import tasks_without_repeats
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.features_mcm import PLACES, compare
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.scorer_mcm import (
    HORIZON_DAYS,
    NEXT_VISIT,
    QUESTIONS,
    WITHIN,
    LabelColumns,
    LabelScorer,
    ScoreNetwork,
)
from modeling_mcm.training.fitting import make_descent, minimize
from modeling_mcm.training.scorer.examples import (
    EXAMPLES,
    ExampleReader,
    LabelExamples,
    draw_examples,
    draw_validation,
    hold_out,
)

logger = logging.get_logger(__name__)
START_STD, EPOCHS, LEARNING_RATE, WEIGHT_DECAY, EXAMPLES_OF_STEP = 0.02, 8, 3e-3, 1e-2, 32
RANKING = 1.5  # weight of the smooth NDCG
MOST_TARGETS, TEMPERATURE = 12, 2.0  # of the smooth NDCG
FEW = 1_000  # number of examples that a network's start is fitted on
LEAST_ERRORS = 2  # number of standard errors above which what the encoder adds is no chance
CASES_AT_ONCE = 64  # whose shares of all labels are in memory
# Gradients are small, because most candidates are unlikely: the default tolerances would end the search at once.
SEARCH = {"max_iter": 200, "tolerance_grad": 1e-9, "tolerance_change": 1e-12}


def start_from_counts(network: ScoreNetwork, counts: ScoreNetwork, examples: Sequence[LabelExamples]) -> None:
    """Starts a network that reads the encoder, too, at a network of counts, with the weights of the encoder's numbers
    that [`fit_weights`] finds in the first examples."""
    numbers, state = len(counts.mean), network.state_dict()
    for name, value in counts.state_dict().items():
        if value.shape != state[name].shape:
            state[name][..., numbers:] *= name in ("mean", "std")
        state[name][..., : value.shape[-1]] = value
    parts = []
    for task, of_task in enumerate(examples):
        few = of_task.select(of_task.example < FEW)
        x = (few.features[:, numbers:] - network.mean[numbers:]) / network.std[numbers:]
        parts.append(ScoredCases.by_counts(counts, task, few, x))
    network.linear.weight.data[:, numbers:], _ = fit_weights(parts)


class ScoredCases(NamedTuple):
    """Candidates `(N,)` of a task in some cases, ascending, and their labels: their scores by counts alone, whether
    they are targets of the next visit, and numbers of the encoder `(N, K)`."""

    case: torch.Tensor
    label: torch.Tensor
    scores: torch.Tensor
    is_target: torch.Tensor
    numbers: torch.Tensor

    @classmethod
    @torch.no_grad()
    def by_counts(cls, counts: ScoreNetwork, task: int, cases: LabelExamples, numbers: torch.Tensor) -> "ScoredCases":
        """Scores the candidates of examples by a network of counts."""
        scores = counts(task, cases.features)[:, NEXT_VISIT] - cases.log_kept
        return cls(cases.example, cases.label, scores, cases.is_target[:, NEXT_VISIT], numbers)


def fit_weights(parts: Sequence[ScoredCases]) -> tuple[torch.Tensor, float]:
    """Fits the weights `(K,)`, the same in all tasks, with which the encoder's numbers are added to the scores by
    counts. Both are scaled, because scores that rank well may be too sure. Returns the weights, and the mean
    cross-entropy of a target, summed over the tasks."""

    def loss(parameters: torch.Tensor) -> torch.Tensor:
        total = parameters.square().sum() * 1e-3
        for case, _, scores, is_target, numbers in parts:
            logits = parameters[0].exp() * (scores + numbers @ parameters[1:])
            sums = logits.new_zeros(int(case[-1]) + 1 if len(case) else 0).index_add(0, case, logits.exp())
            total = total + (is_target * (sums[case].log() - logits)).sum() / is_target.sum().clamp(min=1)
        return total

    (parameters,) = minimize(loss, [torch.zeros(1 + parts[0].numbers.shape[1])], **SEARCH)
    return parameters[1:], loss(parameters).item()


def _draw_steps(
    examples: Sequence[LabelExamples], generator: np.random.Generator
) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Draws the steps of an epoch: task, mask `(B, M)` of candidates, and their indices `(mask.sum(),)`."""
    steps = []
    for task, of_task in enumerate(examples):
        with_target = of_task.example[of_task.is_target[:, NEXT_VISIT]].unique()
        for chosen in torch.from_numpy(generator.permutation(with_target.numpy())).split(EXAMPLES_OF_STEP):
            begin, end = (torch.searchsorted(of_task.example, chosen, right=right) for right in (False, True))
            offset = torch.arange(int((end - begin).max()))
            mask = offset < (end - begin)[:, None]
            steps.append((task, mask, (begin[:, None] + offset)[mask]))
    return [steps[index] for index in generator.permutation(len(steps))]


def _pad(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Columns `(N, Q)` of the places of a mask `(B, M)`, as `(Q, B, M)`."""
    padded = values.new_zeros(values.shape[1], *mask.shape)
    padded[:, mask] = values.T
    return padded


def ranking_loss(
    mask: torch.Tensor, scores: torch.Tensor, is_target: torch.Tensor, log_kept: torch.Tensor
) -> torch.Tensor:
    """Mean over examples of the sum over questions of the cross-entropy of the targets among the candidates, less a
    smooth NDCG of the targets with the highest scores.

    Args:
        mask (`torch.BoolTensor` of shape `(B, M)`): Whether there is a candidate.
        scores (`torch.FloatTensor` of shape `(Q, B, M)`): Scores of the candidates.
        is_target (`torch.BoolTensor` of shape `(Q, B, M)`): Whether it is a target of each question.
        log_kept (`torch.FloatTensor` of shape `(1, B, M)`): Log of the share of such candidates that were kept.
    """
    number = is_target.sum(2)  # (Q, B)
    weighted = (scores - log_kept).masked_fill(~mask, -1e4)  # a kept negative stands for those left out
    entropy = -(weighted.log_softmax(2) * is_target).sum(2) / number
    most = min(MOST_TARGETS, int(number.max()))
    best = scores.detach().masked_fill(~is_target, -torch.inf).topk(most, 2).indices  # (Q, B, most)
    differences = scores[:, :, None] - scores.gather(2, best)[..., None]  # (Q, B, most, M)
    rank = 0.5 + (torch.sigmoid(TEMPERATURE * differences) * mask[:, None]).sum(3)
    ideal = (1 / torch.arange(2.0, MOST_TARGETS + 2).log2()).cumsum(0)[number.clamp(max=most) - 1]
    ndcg = (is_target.gather(2, best) / (1 + rank).log2()).sum(2) / ideal
    return (entropy - RANKING * ndcg).sum(0).mean()


class ScorerFit:
    """Fits a model's scorer: counts and network when it is made, and the encoder's part when the encoder is trained.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): Model with a scorer, which is changed.
        data (`PreparedData`): The data set.
        seed (`int`): Seed of folds, examples and network.

    Attributes:
        ndcg (`list[torch.FloatTensor]`): NDCG@10 of each question in each validation case by counts alone, by task.
        held_out (`Examples`), ends (`NDArray[int64]`): See [`hold_out`]; nothing without an encoder.

    Raises:
        ValueError: If the training period has no example, or no target of any example is a candidate.
    """

    def __init__(self, model: MCMForMultiTaskRecommendation, data: PreparedData, seed: int = 0):
        self.scorer, self.seed = cast(LabelScorer, model.scorer), seed
        self.generator = torch.Generator().manual_seed(seed)
        config, schema = model.config, data.schema
        self.reader = ExampleReader(data, config, seed)
        examples = self.reader.read(draw_examples(data, seed), self.generator)
        for table, counts in zip(self.scorer.tables, self.reader.counts, strict=True):
            table.load_state_dict(counts.make_tables().state_dict())
        held_out: Any = hold_out(data, seed) if config.num_hidden_layers else (None, None)
        self.held_out, self.ends = held_out
        self.validation: Any = draw_validation(data, seed)
        # Tasks in which customers don't have a label again
        self.without_repeats = [*map(config.tasks.index, tasks_without_repeats(data.rows, config.tasks))]
        # Whether validation says what comes within `HORIZON_DAYS`
        start, end = (schema.scoring_time(cutoff) for cutoff in ("validation", "test"))
        sees_horizon = start is not None and end is not None and end - start >= HORIZON_DAYS * SECONDS_PER_DAY
        self.questions = (NEXT_VISIT, WITHIN) if sees_horizon else (NEXT_VISIT,)
        if not sees_horizon:
            logger.info(f"There are no chances within {HORIZON_DAYS:g} days: validation is shorter.")
        validation = self._read_validation()
        self.ndcg = self._fit(self.scorer.of_counts, examples, validation)
        # Validation cases `(cases, Q)` that have a target of a question in some task
        self.comes: Any = sum(cases.num_targets for cases in validation) > 0 if validation else None
        self.cases: list[ScoredCases] = []  # on validation, with the encoder's probability and rank
        for task, cases in enumerate(validation):
            for question in range(QUESTIONS):
                self._calibrate(task, question, cases)
            if task in self.without_repeats:
                cases = cases.select(cases.features[:, PLACES["seen"]] == 0)
            numbers = torch.zeros(len(cases.example), 2)
            self.cases.append(ScoredCases.by_counts(self.scorer.of_counts, task, cases, numbers))
        self.scorer.fitted.fill_(True)

    def _read_validation(self, encoder: MCMForMultiTaskRecommendation | None = None) -> list[LabelExamples]:
        """The validation cases of each task, none without any, with the features of an encoder."""
        if self.validation is None:
            return []
        tables: Any = [*self.scorer.tables]
        return self.reader.read(self.validation, self.generator, tables, encoder)

    def _fit(
        self, network: ScoreNetwork, examples: Sequence[LabelExamples], validation: Sequence[LabelExamples]
    ) -> list[torch.Tensor]:
        """Fits a network to examples of all tasks, and keeps the epoch that ranks the validation cases best. Seen
        labels come last in that, in the tasks without repeats. It starts at its mix of rates, or at the network of
        counts, with small random weights in its hidden layers.

        Returns:
            `list[torch.FloatTensor]`: NDCG@10 of each validation case by task, `(Q, cases)`, NaN without a target;
            empty without cases, where the last epoch is kept.

        Raises `ValueError` if no target of any example is among its candidates.
        """
        generator = torch.Generator().manual_seed(self.seed)
        stds = {network.linear: 0.0, network.first: START_STD, network.second: START_STD, network.last: 0.0}
        for layer, std in stds.items():
            nn.init.normal_(layer.weight, std=std, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(network.requires_grad_(True).task_vectors.weight)
        features = torch.cat([of_task.features[:, : len(network.mean)] for of_task in examples])
        network.mean.copy_(features.mean(0))
        network.std.copy_(features.std(0).clamp(min=1e-3))
        if network is self.scorer.of_readout:
            start_from_counts(network, self.scorer.of_counts, examples)
        torch.manual_seed(self.seed)
        draws = np.random.default_rng(self.seed)
        steps = _draw_steps(examples, draws)
        if not steps:
            raise ValueError(
                "What followed the histories is never among their candidates: the log is too small to fit."
            )
        # Adam's steps are as long by few examples as by many: shorter ones keep few from moving the network far
        learning_rate = LEARNING_RATE * min(len(examples[0].num_unseen) / EXAMPLES, 1) ** 0.5
        descend = make_descent(network, learning_rate, WEIGHT_DECAY, EPOCHS * len(steps), 0.15)
        best_mean = -1.0
        for epoch in range(EPOCHS + 1):  # the first one is the start
            network.train()
            for task, mask, index in steps if epoch else []:
                chosen = examples[task].select(index)
                columns = network(task, chosen.features), chosen.is_target, chosen.log_kept[:, None]
                descend(ranking_loss(mask, *(_pad(value, mask) for value in columns)))
            steps = _draw_steps(examples, draws) if epoch else steps
            if 0 < epoch <= EPOCHS // 2:
                continue  # the learning rate is still high: these epochs are seldom the best
            network.eval()
            with torch.no_grad():
                values = []
                for task, cases in enumerate(validation):
                    scores = network(task, cases.features)
                    if task in self.without_repeats:
                        scores -= 1e4 * cases.features[:, PLACES["seen"], None]
                    values.append(cases.compute_ndcg(scores))
            means = [of_task[NEXT_VISIT].nanmean().item() for of_task in values]
            mean = float(np.nanmean(means)) if np.isfinite(means).any() else 0.0
            if mean > best_mean or not validation:
                best_mean, best_values = mean, values
                weights = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(weights)
        return best_values

    def _calibrate(self, task: int, question: int, cases: LabelExamples) -> None:
        """Fits t of a task and question (see [`LabelScorer`]) by the cross-entropy of the targets of validation cases,
        and then the chances of labels by that of the candidates, all of which `cases` have, of customers who come.
        Networks are trained."""
        scorer, (example, label, features, is_target) = self.scorer, cases[:4]
        numbers, comes = cases.num_targets[:, question].float(), is_target[:, question]
        zeros, parts = torch.zeros(len(numbers)), []  # log of the sum of the other labels' shares by case
        columns = LabelColumns.read([scorer.get_tables(task)])
        with torch.no_grad():
            values = scorer.get_network(task, question)(task, features)[:, question]
            for of_part in torch.arange(len(numbers)).split(CASES_AT_ONCE):
                own = torch.isin(example, of_part)
                cell = columns.find_cells(example[own] - of_part[0], label[own])
                parts.append(columns.other_shares(cell, len(of_part)).logsumexp(1))
        outside = torch.cat(parts)
        weights = torch.where(numbers > 0, 1 / numbers.clamp(min=1), 0.0) / (numbers > 0).sum().clamp(min=1)
        missed = weights * (numbers - zeros.index_add(0, example, comes.float()))  # of targets that are no candidates
        target_weights = weights[example] * comes.float()

        def log_probabilities(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """Logits of the candidates; and for each case that of the most popular other label, and the logarithm of
            the sum over all labels."""
            logits = t.exp() * values
            average = scorer.average_unseen(example, logits, features, len(numbers))
            largest = zeros.scatter_reduce(0, example, logits.detach(), "amax", include_self=False)
            inside = zeros.index_add(0, example, (logits - largest[example]).exp()).log() + largest
            return logits, average, torch.logaddexp(inside, average + outside)

        def loss_of_scores(t: torch.Tensor) -> torch.Tensor:
            logits, average, total = log_probabilities(t)
            loss = (weights * numbers * total - missed * average).sum() - (target_weights * logits).sum()
            return loss + 1e-3 * t.square().sum()

        (t,) = minimize(loss_of_scores, [torch.zeros(1)], **SEARCH)
        logits, _, total = log_probabilities(t)
        scorer.calibration[task, question] = t[0]
        is_known = self.comes[example, question]
        log_p, came = (logits - total[example]).double()[is_known], comes.double()[is_known]

        def loss_of_chances(a: torch.Tensor, log_b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            chances = scorer.chances([a, log_b.exp(), c], log_p).clamp(1e-7, 1 - 1e-7)
            # Few cases say little of how chances rise with scores, which they do in any case
            return F.binary_cross_entropy(chances, came) + (log_b.square() + (c / 10).square()) / (2 * len(came))

        if question in self.questions and len(came):
            a, log_b, c = minimize(loss_of_chances, [*torch.zeros(3, dtype=torch.float64)], **SEARCH)
            scorer.chance[task, question] = torch.stack([a, log_b.exp(), c])

    @torch.no_grad()
    def measure_encoder(self, model: MCMForMultiTaskRecommendation) -> float:
        """Measures how well counts and an encoder predict validation together: the mean cross-entropy of a target of
        the next visit, summed over the tasks, with each task's best weights of the readout's probability and rank. An
        encoder alone goes on getting better when all that it still learns is what counts know."""
        every = np.arange(len(self.validation.row))
        places = torch.full(every.shape, -1)
        for chosen, _, batch in self.reader.batches(self.validation, every):
            places.fill_(-1)[torch.from_numpy(chosen)] = torch.arange(len(chosen))
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            logits = model(**inputs, parts=()).logits.values()  # of the readout, as there are labels
            for cases, scores in zip(self.cases, logits, strict=True):
                read = (place := places[cases.case]) >= 0
                shares = scores[:, FIRST_LABEL:].float().log_softmax(1).cpu()
                cases.numbers[read, 0] = shares[place[read], cases.label[read] - FIRST_LABEL]
        total = 0.0
        for cases in self.cases:
            cases.numbers[:, 1] = compare(cases.case, cases.numbers[None, :, 0].exp())[0][0].log2()
            spread = cases.numbers.std(0, correction=0).clamp(min=1e-3)  # a number also of one candidate
            total += fit_weights([cases._replace(numbers=(cases.numbers - cases.numbers.mean(0)) / spread)])[1]
        return total

    def finish(self, model: MCMForMultiTaskRecommendation) -> None:
        """Fits the network that reads the encoder of the trained model. A task uses it for a question where it adds
        more to the NDCG@10 of counts alone on validation than two standard errors of that, and the log says so."""
        self.scorer = cast(LabelScorer, model.eval().scorer)
        if self.validation is None:
            logger.warning("Without validation cases nobody knows what the encoder is worth, so it is not used.")
            return
        examples = self.reader.read(self.held_out, self.generator, encoder=model)
        validation = self._read_validation(model)
        ndcg = self._fit(cast(ScoreNetwork, self.scorer.of_readout), examples, validation)
        for (task, name), question in product(enumerate(model.config.tasks), self.questions):
            gains = (ndcg[task] - self.ndcg[task])[question]
            gains = gains[~gains.isnan()]
            gain, error = gains.mean().item(), gains.std().item() / max(len(gains), 1) ** 0.5
            is_used = gain > LEAST_ERRORS * error
            words = f" within {HORIZON_DAYS:g} days" if question == WITHIN else ""
            logger.info(
                f"The encoder adds {gain:+.4f} (standard error {error:.4f}) to the NDCG@10 of {name}{words} on "
                f"validation, so it is {'used' if is_used else 'not used'}."
            )
            if is_used:
                self.scorer.reads[task, question] = True
                self._calibrate(task, question, validation[task])
