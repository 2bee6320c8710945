# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The second step: chooses the candidate labels of examples, and computes their features, those of
`features_mcm.py`. They say what was known at the cutoff: how popular labels were, counted of customers in other folds.

Shapes: E examples, B examples of a batch, T tasks, V labels of a task, N candidates of all examples, F features of a
candidate, P ends of parts of the training period, Q questions.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling_mcm.data.cases import IGNORED
from modeling_mcm.data.collator import batches_by_length
from modeling_mcm.features_mcm import compare
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.scorer_mcm import HORIZON_DAYS, Candidates, LabelScorer, candidate_features, read_histories

from .counts import CountedLog
from .examples import ExampleTable, find_later, mark_targets

BATCH = 64
NEGATIVES = 60  # about as many candidates of an example that are no targets are kept, drawn uniformly
STALE = 4  # largest number of parts of the period by which counts are old, because a model is used after its training


class CandidateTable(NamedTuple):
    """One row a candidate label of an example in a task.

    Attributes:
        example, label (`torch.LongTensor` of shape `(N,)`): The candidates; examples are ascending.
        features (`torch.FloatTensor` of shape `(N, F)`): Their features.
        is_target (`torch.BoolTensor` of shape `(N, Q)`): Whether a candidate is a target of each question: it comes in
            the next visit, or within `HORIZON_DAYS`; in training, in either of them.
        log_kept (`torch.FloatTensor` of shape `(N,)`): Log of the share of such candidates that were kept.
        num_targets (`torch.LongTensor` of shape `(E, Q)`): Number of each example's targets, also of those that
            are no candidates.
        num_unseen (`torch.LongTensor` of shape `(E,)`): Number of values in the next visit that training has
            never seen. They are further targets, which no score reaches.
        sees_horizon (`torch.BoolTensor` of shape `(E,)`): Whether all that came within `HORIZON_DAYS` is known.
    """

    example: Tensor
    label: Tensor
    features: Tensor
    is_target: Tensor
    log_kept: Tensor
    num_targets: Tensor
    num_unseen: Tensor
    sees_horizon: Tensor

    def select(self, candidates: Tensor) -> "CandidateTable":
        """The same examples with some of the candidates, by a mask or by indices."""
        return CandidateTable(*[*(column[candidates] for column in self[:5]), *self[5:]])

    def compute_ndcg(self, scores: Tensor) -> Tensor:
        """NDCG@10 `(Q, E)` of the candidates' scores `(N, Q)` for each question, NaN without a target."""
        place = compare(self.example, scores.T)[0] + 1  # (Q, N), from 2
        gains = self.is_target.T * (place < 12) / place.log2()  # (Q, N)
        ideal = (1 / torch.arange(2.0, 12, device=place.device).log2()).cumsum(0)
        ideal = torch.cat([ideal.new_zeros(1), ideal])  # (11,): by number of targets
        number = (self.num_targets.T + self.num_unseen).clamp(max=10)  # (Q, E)
        return ideal.new_zeros(number.shape).index_add(1, self.example, gains.float()) / ideal[number]


def read_batches(
    log: CountedLog, examples: ExampleTable, chosen: NDArray, device: torch.device
) -> Iterator[tuple[NDArray, Customers, dict[str, Tensor]]]:
    """Indices of chosen examples of similar length, their rows, and model inputs with `labels` and `as_of`."""
    for batch in batches_by_length(examples.end[chosen], BATCH):
        row, end, stop, elapsed, *_ = examples.take(chosen[batch])
        rows = log.rows.__getitems__(row.tolist())
        rows = Customers(rows.columns | {"validation_end": end, "test_end": stop}, rows.lengths)
        inputs = log.collator(rows)
        inputs["as_of"] = inputs["event_times"].amax(1) + torch.from_numpy(elapsed).float()
        yield chosen[batch], rows, {name: value.to(device) for name, value in inputs.items()}


def compute_features(
    log: CountedLog,
    examples: ExampleTable | None,
    generator: torch.Generator,
    device: torch.device,
    scorer: LabelScorer | None = None,
    encoder: MCMForMultiTaskRecommendation | None = None,
) -> list[CandidateTable]:
    """Computes the candidates of each task.

    In, one row a customer and a cutoff:

        row | end | stop | elapsed | day | left
        0   | 2   | 3    | 3.5     | 4.5 | 3.5
        1   | 1   | 4    | 1.2     | 3.2 | 4.8
        0   | 3   | 4    | 1.0     | NaN | infinite

    Out, by task one row a candidate; and of each example the number of targets, by question:

        example | label | features     | is_target    | log_kept
        0       | 5     | 1.0 0.7 ...  | True  True   | 0.0
        0       | 9     | 0.0 0.0 ...  | False False  | -1.1
        1       | 6     | 1.0 1.4 ...  | False True   | 0.0

    Args:
        log ([`CountedLog`]): The log.
        examples ([`ExampleTable`], *optional*): The examples. Those of training come fold by fold. Without any the
            result is empty.
        generator (`torch.Generator`): Of the draw of candidates, on the CPU.
        device (`torch.device`): Where features are computed and stay: that of `scorer` and `encoder`.
        scorer ([`LabelScorer`], *optional*): Scorer whose tables are read, for examples of validation, all of whose
            candidates are kept. Default: the examples are of training. Their counts are those of the other folds,
            as they were on an example's day. Of the candidates that are no targets some `NEGATIVES` are kept.
        encoder ([`MCMForMultiTaskRecommendation`], *optional*): Model whose readout gives features, too.
    """
    if examples is None:
        return []
    config, is_training = log.collator.config, scorer is None
    folds = log.folds[examples.row] if is_training else np.full(len(examples.row), -1)  # (E,)
    parts: list[list[CandidateTable]] = [[] for _ in log.counts]
    order: list[Tensor] = []
    for fold in np.unique(folds):
        known = [
            counts.make_tables(fold).to(device) if scorer is None else scorer.get_tables(task)
            for task, counts in enumerate(log.counts)
        ]
        states = list(zip(*(counts.read_parts(fold) for counts in log.counts), strict=True))  # (P, 5, V), (P,)
        for chosen, rows, batch in read_batches(log, examples, np.flatnonzero(folds == fold), device):
            asked, number = examples.take(chosen), torch.from_numpy(chosen).to(device)  # (B,)
            readout = None if encoder is None else encoder.readouts(batch)
            age = torch.randint(STALE + 1, (len(chosen),), generator=generator).numpy()
            ended = [counts.find_part(asked.day, age) for counts in log.counts]  # by task (B,)
            # By task the counts (B, 5, V) at that time, and the numbers of visits (B,)
            counts, visits = (
                [values[at].to(device) for values, at in zip(state, ended, strict=True)] for state in states
            )
            found = candidate_features(read_histories(config, batch), known, readout, counts, visits)
            later, sees_horizon = find_later(rows, asked), torch.from_numpy(asked.left >= HORIZON_DAYS).to(device)
            for task, (name, table) in enumerate(zip(config.tasks, known, strict=True)):
                has_times, labels = bool(table.totals[2]), batch["labels"][..., task]
                within = (rows.row[later], rows.column(f"task_{name}")[later]) if has_times else None
                # An example of training has a target of each question: without any it would teach nothing
                targets = mark_targets(labels, within, table.counts.shape[1], is_training or not has_times)
                candidates = label_candidates(found, task, len(known), number, targets, labels, sees_horizon)
                parts[task].append(draw_negatives(candidates, generator) if is_training else candidates)
            order.append(number)
    parts.reverse()
    return [join_parts(parts.pop(), torch.cat(order).argsort()) for _ in log.counts]  # which frees them one by one


def label_candidates(
    found: Candidates,
    task: int,
    tasks: int,
    number: Tensor,
    targets: Tensor,
    labels: Tensor,
    sees_horizon: Tensor,
) -> CandidateTable:
    """Says which candidates of a task in a batch are targets.

    Args:
        found ([`Candidates`]): Candidates of all tasks.
        number (`torch.LongTensor` of shape `(B,)`): Indices of the batch's examples.
        targets (`torch.BoolTensor` of shape `(Q, B, V)`): The labels that are targets.
        labels (`torch.LongTensor` of shape `(B, L)`): Labels of the next visit; below `IGNORED`: never seen ones.
        sees_horizon (`torch.BoolTensor` of shape `(B,)`): Whether all that came within `HORIZON_DAYS` is known.
    """
    chosen = found.row % tasks == task  # (candidates of all tasks,)
    customer, label = found.row[chosen] // tasks, found.label[chosen]  # (N,)
    unseen = [len({label for label in row if label < IGNORED}) for row in labels.tolist()]  # (B,)
    return CandidateTable(
        example=number[customer],
        label=label,
        features=found.features[chosen],
        is_target=targets[:, customer, label].T,
        log_kept=torch.zeros(len(label), device=label.device),
        num_targets=targets.sum(2).T,
        num_unseen=torch.tensor(unseen, device=label.device),
        sees_horizon=sees_horizon,
    )


def draw_negatives(table: CandidateTable, generator: torch.Generator) -> CandidateTable:
    """Keeps the targets of a batch, and of each example's other candidates some `NEGATIVES`."""
    number = torch.bincount(table.example)[table.example]  # (N,): candidates of the example
    share = (NEGATIVES / number.float()).clamp(max=1).masked_fill(table.is_target.any(1), 1.0)  # (N,)
    kept = torch.rand(len(share), generator=generator).to(share.device) < share
    return table._replace(log_kept=share.log()).select(kept)


def join_parts(parts: list[CandidateTable], order: Tensor) -> CandidateTable:
    """Joins the batches of a task, of whose examples `order` `(E,)` says where each one is."""
    table = CandidateTable(*(torch.cat(column) for column in zip(*parts, strict=True)))
    table = CandidateTable(*table[:5], *(column[order] for column in table[5:]))
    return table.select(table.example.argsort(stable=True))
