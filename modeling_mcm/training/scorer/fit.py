# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The third step: fits a network that scores candidates by their features.

The network of counts is fitted on examples of the training period. The network that reads the encoder, too, is fitted
on visits that were held out of the encoder's training, because it knows the others by heart.

Shapes: E examples, B examples of a step, M candidates of the longest of them, N candidates of all examples, F features
of a candidate, K numbers of the encoder, Q questions.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from modeling_mcm.features_mcm import PLACES
from modeling_mcm.scorer_mcm import NEXT_VISIT, QUESTIONS, WITHIN, ScoreNetwork
from modeling_mcm.training.descent import make_descent, minimize

from .examples import EXAMPLES
from .features import CandidateTable

START_STD, EPOCHS, LEARNING_RATE, WEIGHT_DECAY, EXAMPLES_OF_STEP = 0.02, 8, 3e-3, 1e-2, 32
RANKING = 1.5  # weight of the smooth NDCG
MOST_TARGETS, TEMPERATURE = 12, 2.0  # of the smooth NDCG
CANDIDATES_AT_ONCE = 2**14
LEAST_CUSTOMERS = 10  # whose few examples are better than the start
FEW = 1_000  # number of examples that a network's start is fitted on
# Gradients are small, because most candidates are unlikely: the default tolerances would end the search at once.
SEARCH = {"max_iter": 200, "tolerance_grad": 1e-9, "tolerance_change": 1e-12}


def fit_network(
    network: ScoreNetwork,
    examples: Sequence[CandidateTable],
    validation: Sequence[CandidateTable],
    seed: int,
    device: torch.device,
    seen_last: Collection[int] = (),
    start: ScoreNetwork | None = None,
    alike: ScoreNetwork | None = None,
) -> None:
    """Fits a network to examples of all tasks, and keeps the epoch that ranks the validation cases best. It starts at
    its mix of rates, or at a network of counts, with small random weights in its hidden layers.

    In, one row a candidate of a task; validation has all candidates, with the same columns:

        example | label | features     | is_target    | log_kept
        0       | 5     | 1.0 0.7 ...  | True  True   | 0.0
        0       | 9     | 0.0 0.0 ...  | False False  | -1.1
        1       | 6     | 1.0 1.4 ...  | False True   | 0.0

    Args:
        network ([`ScoreNetwork`]): The network, on the device.
        examples, validation (`Sequence[CandidateTable]`): By task, on the device; no task without validation cases,
            where the last epoch is kept.
        seed (`int`): Of weights, steps and dropout; all draws but those of dropout are of the CPU.
        device (`torch.device`): Where the network is fitted.
        seen_last (`Collection[int]`): Tasks in which seen labels are ranked last, because customers don't have a
            label again.
        start ([`ScoreNetwork`], *optional*): A fitted network of counts, to start a network from that reads more.
        alike ([`ScoreNetwork`], *optional*): A network whose standardisation it takes. Default: by the examples.

    Raises:
        ValueError: If no target of any example is among its candidates.
    """
    initialize(network, examples, seed)
    if start is not None:
        start_from_counts(network, start, examples)
    if alike is not None:
        network.mean.copy_(alike.mean)
        network.std.copy_(alike.std)
    torch.manual_seed(seed)
    draws = np.random.default_rng(seed)
    steps = draw_steps(examples, draws)
    if not steps:
        raise ValueError("What followed the histories is never among their candidates: the log is too small to fit.")
    # Adam's steps are as long by few examples as by many: shorter ones keep few from moving the network far
    learning_rate = LEARNING_RATE * min(len(examples[0].num_unseen) / EXAMPLES, 1) ** 0.5
    descend = make_descent(network, learning_rate, WEIGHT_DECAY, EPOCHS * len(steps), 0.15)
    best_mean = -1.0
    for epoch in range(EPOCHS + 1):  # the first one is the start
        network.train()
        for step in steps if epoch else []:
            chosen = examples[step.task].select(step.candidates.to(device))
            scores, mask = network(step.task, chosen.features), step.mask.to(device)  # (N, Q), (B, M)
            is_known = torch.ones(QUESTIONS, len(mask), device=device)  # (Q, B)
            is_known[WITHIN] = chosen.sees_horizon[step.examples.to(device)].float()
            padded = [pad(values, mask) for values in (scores, chosen.is_target, chosen.log_kept[:, None])]
            descend(ranking_loss(mask, padded[0], padded[1], padded[2], is_known))
        steps = draw_steps(examples, draws) if epoch else steps
        if 0 < epoch <= EPOCHS // 2:
            continue  # the learning rate is still high: these epochs are seldom the best
        cases = rank_cases(network.eval(), validation, seen_last)
        means = [ndcg[NEXT_VISIT].nanmean().item() for ndcg in cases]
        mean = float(np.nanmean(means)) if np.isfinite(means).any() else 0.0
        if mean > best_mean or not validation:
            best_mean = mean
            weights = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(weights)


def fit_several(
    network: ScoreNetwork,
    draws: Sequence[Sequence[CandidateTable]],
    customers: int,
    seed: int,
    device: torch.device,
) -> None:
    """Fits a network to each draw of the examples of some customers, by task, and joins them to one whose scores are
    their mean. Where examples are few, so are validation cases: they don't tell the best epoch, and the last one is
    kept; or the start, where so few customers teach their own habits."""
    tasks, numbers, members = len(network.task_vectors.weight), len(network.mean), list[ScoreNetwork]()
    for place, examples in enumerate(draws):
        member = ScoreNetwork(tasks, numbers).to(device)
        fit_network(member, examples, [], seed + place, device, alike=members[0] if members else None)
        members.append(member)
    join_networks(network.eval(), members)
    if customers < LEAST_CUSTOMERS:
        for value in (*network.linear.parameters(), *network.last.parameters()):
            value.data.zero_()


@torch.no_grad()
def join_networks(network: ScoreNetwork, members: Sequence[ScoreNetwork]) -> None:
    """Sets a network to members, all standardised alike, side by side: its scores are the mean of theirs."""
    states, state = [member.state_dict() for member in members], network.state_dict()
    for name, value in state.items():
        parts = [each[name] for each in states]
        if name == "second.weight":
            value.copy_(torch.block_diag(*parts))
        elif name == "last.weight":
            value.copy_(torch.cat(parts, 1) / len(parts))
        elif name.startswith(("first", "second", "task_vectors")):
            value.copy_(torch.cat(parts, int(name.startswith("task_vectors"))))
        else:
            value.copy_(torch.stack(parts).mean(0))


@torch.no_grad()
def initialize(network: ScoreNetwork, examples: Sequence[CandidateTable], seed: int) -> None:
    """Sets a network to its mix of rates with small random weights in its hidden layers, and its standardisation to
    the features of examples, of which it reads the first ones."""
    generator = torch.Generator().manual_seed(seed)
    stds = {network.linear: 0.0, network.first: START_STD, network.second: START_STD, network.last: 0.0}
    for layer, std in stds.items():
        layer.weight.copy_(torch.empty(layer.weight.shape).normal_(std=std, generator=generator))  # of the CPU
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(network.requires_grad_(True).task_vectors.weight)
    for place in range(len(network.mean)):  # one by one: together they are a copy of all examples
        values = torch.cat([table.features[:, place] for table in examples])  # (N,)
        network.mean[place], network.std[place] = values.mean(), values.std().clamp(min=1e-3)


def start_from_counts(network: ScoreNetwork, counts: ScoreNetwork, examples: Sequence[CandidateTable]) -> None:
    """Starts a network that reads the encoder, too, at a network of counts, with the weights of the encoder's numbers
    that [`fit_weights`] finds in the first examples."""
    numbers, state = len(counts.mean), network.state_dict()
    for name, value in counts.state_dict().items():
        if value.shape != state[name].shape:
            state[name][..., numbers:] *= name in ("mean", "std")
        state[name][..., : value.shape[-1]] = value
    parts = []
    for task, table in enumerate(examples):
        few = table.select(table.example < FEW)
        x = (few.features[:, numbers:] - network.mean[numbers:]) / network.std[numbers:]  # (N, K)
        parts.append(ScoredCases.by_counts(counts, task, few, x))
    network.linear.weight.data[:, numbers:], _ = fit_weights(parts)


class ScoredCases(NamedTuple):
    """Candidates `(N,)` of a task in some cases, ascending, and their labels: their scores by counts alone, whether
    they are targets of the next visit, and numbers of the encoder `(N, K)`."""

    case: Tensor
    label: Tensor
    scores: Tensor
    is_target: Tensor
    numbers: Tensor

    @classmethod
    @torch.no_grad()
    def by_counts(cls, counts: ScoreNetwork, task: int, table: CandidateTable, numbers: Tensor) -> "ScoredCases":
        """Scores the candidates of examples by a network of counts."""
        scores = score_candidates(counts, task, table)[:, NEXT_VISIT] - table.log_kept
        return cls(table.example, table.label, scores, table.is_target[:, NEXT_VISIT], numbers)


@torch.no_grad()
def score_candidates(network: ScoreNetwork, task: int, table: CandidateTable) -> Tensor:
    """Scores the candidates of a task, `(N, Q)`, some at a time: all hidden layers would fill the memory."""
    return torch.cat([network(task, part) for part in table.features.split(CANDIDATES_AT_ONCE)])


def fit_weights(parts: Sequence[ScoredCases]) -> tuple[Tensor, float]:
    """Fits the weights `(K,)`, the same in all tasks, with which the encoder's numbers are added to the scores by
    counts. Both are scaled, because scores that rank well may be too sure. Returns the weights, and the mean
    cross-entropy of a target, summed over the tasks."""

    def loss(parameters: Tensor) -> Tensor:
        total = parameters.square().sum() * 1e-3
        for case, _, scores, is_target, numbers in parts:
            logits = parameters[0].exp() * (scores + numbers @ parameters[1:])  # (N,)
            sums = sum_by_group(logits, case, int(case[-1]) + 1 if len(case) else 0)  # (cases,)
            total = total + (is_target * (sums[case] - logits)).sum() / is_target.sum().clamp(min=1)
        return total

    (parameters,) = minimize(loss, [parts[0].numbers.new_zeros(1 + parts[0].numbers.shape[1])], **SEARCH)
    return parameters[1:], loss(parameters).item()


def sum_by_group(logits: Tensor, group: Tensor, groups: int) -> Tensor:
    """Logarithm of the sum of exponentials `(groups,)` of the logits of each group, both `(N,)`; minus infinity
    without any."""
    zeros = logits.new_zeros(groups)
    largest = zeros.scatter_reduce(0, group, logits.detach(), "amax", include_self=False)
    return zeros.index_add(0, group, (logits - largest[group]).exp()).log() + largest


class Step(NamedTuple):
    """Examples `(B,)` of a task whose loss is a step: a mask `(B, M)` of places with a candidate, and their indices
    `(mask.sum(),)` among all candidates of the task, all on the CPU."""

    task: int
    examples: Tensor
    mask: Tensor
    candidates: Tensor


def draw_steps(examples: Sequence[CandidateTable], generator: np.random.Generator) -> list[Step]:
    """Draws the steps of an epoch, of examples with a target among their candidates."""
    steps = []
    for task, table in enumerate(examples):
        example = table.example.cpu()
        with_target = example[table.is_target[:, NEXT_VISIT].cpu()].unique()
        for chosen in torch.from_numpy(generator.permutation(with_target.numpy())).split(EXAMPLES_OF_STEP):
            begin, end = (torch.searchsorted(example, chosen, right=right) for right in (False, True))  # (B,)
            offset = torch.arange(int((end - begin).max()))  # (M,)
            mask = offset < (end - begin)[:, None]
            steps.append(Step(task, chosen, mask, (begin[:, None] + offset)[mask]))
    return [steps[index] for index in generator.permutation(len(steps))]


def pad(values: Tensor, mask: Tensor) -> Tensor:
    """Columns `(N, Q)` of the places of a mask `(B, M)`, as `(Q, B, M)`."""
    padded = values.new_zeros(values.shape[1], *mask.shape)
    padded[:, mask] = values.T
    return padded


def ranking_loss(
    mask: Tensor,
    scores: Tensor,
    is_target: Tensor,
    log_kept: Tensor,
    is_known: Tensor,
) -> Tensor:
    """Sum over questions of the mean, over the examples that know the answer, of the cross-entropy of the targets
    among the candidates, less a smooth NDCG of the targets with the highest scores.

    Args:
        mask (`torch.BoolTensor` of shape `(B, M)`): Whether there is a candidate.
        scores (`torch.FloatTensor` of shape `(Q, B, M)`): Scores of the candidates.
        is_target (`torch.BoolTensor` of shape `(Q, B, M)`): Whether it is a target of each question.
        log_kept (`torch.FloatTensor` of shape `(1, B, M)`): Log of the share of such candidates that were kept.
        is_known (`torch.FloatTensor` of shape `(Q, B)`): 1 where an example knows what came, else 0.
    """
    number = is_target.sum(2)  # (Q, B)
    weighted = (scores - log_kept).masked_fill(~mask, -1e4)  # a kept negative stands for those left out
    entropy = -(weighted.log_softmax(2) * is_target).sum(2) / number  # (Q, B)
    most = min(MOST_TARGETS, int(number.max()))
    best = scores.detach().masked_fill(~is_target, -torch.inf).topk(most, 2).indices  # (Q, B, most)
    differences = scores[:, :, None] - scores.gather(2, best)[..., None]  # (Q, B, most, M)
    rank = 0.5 + (torch.sigmoid(TEMPERATURE * differences) * mask[:, None]).sum(3)  # (Q, B, most)
    ideal = (1 / torch.arange(2.0, MOST_TARGETS + 2, device=mask.device).log2()).cumsum(0)
    ideal = ideal[number.clamp(max=most) - 1]  # (Q, B)
    ndcg = (is_target.gather(2, best) / (1 + rank).log2()).sum(2) / ideal  # (Q, B)
    return ((entropy - RANKING * ndcg) * is_known / is_known.sum(1, keepdim=True).clamp(min=1)).sum()


@torch.no_grad()
def rank_cases(
    network: ScoreNetwork, validation: Sequence[CandidateTable], seen_last: Collection[int] = ()
) -> list[Tensor]:
    """NDCG@10 `(Q, E)` of validation cases by task; in the tasks `seen_last` labels of the history come last."""
    values = []
    for task, table in enumerate(validation):
        scores = score_candidates(network, task, table)  # (N, Q)
        if task in seen_last:
            scores -= 1e4 * table.features[:, PLACES["seen"], None]
        values.append(table.compute_ndcg(scores))
    return values
