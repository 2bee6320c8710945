# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Chooses the best labels among candidates: what is in stock, without what a customer had, a few of each category.

    candidates = CandidateSet(model, feature_extractor, candidates=stock, exclude="seen", per_group=("category", 2))
    candidates.choose("item", scores, k=10, seen=...)

A table of candidates is resolved to label ids once. [`choose_labels`] is the one function that every list of labels
comes from. New labels, which training never saw, are scored by the features that they share with other labels.

Shapes: B customers, V labels of a task with the ids 0 and 1, N new labels, C = V + N columns of scores.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging

from .configuration_mcm import FIRST_LABEL
from .events_mcm import (
    IntArray,
    as_column,
    check_columns,
    check_keys,
    map_distinct,
    naming,
    read_table,
    to_ids,
    to_text,
)
from .feature_extraction_mcm import MCMFeatureExtractor
from .features_mcm import break_ties
from .files_mcm import some
from .inputs_mcm import CUSTOMER

logger = logging.get_logger(__name__)
SEEN = "seen"
# Known labels that score a new one, the exponent on how alike they are, and the share of the customer's history.
MOST_ALIKE, SHARPNESS, OWN = 500, 16, 0.1
AT_ONCE = 2**24  # largest number of pairs of labels that are compared at once
Table = Mapping[str, Sequence]  # of columns by name


class ChosenLabels(NamedTuple):
    """The best labels of some customers, best first.

    Attributes:
        labels (`torch.LongTensor` of shape `(B, k)`): Label ids; 0 behind the last candidate.
        scores (`torch.FloatTensor` of shape `(B, k)`): Probabilities among the candidates; 0 where there is no label.
        log_p (`torch.FloatTensor` of shape `(B, k)`, *optional*): Logarithms of their probabilities among all labels.
    """

    labels: Tensor
    scores: Tensor
    log_p: Tensor | None = None


def check_number(k: object) -> None:
    """Raises `ValueError` if k is no number of labels."""
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise ValueError(f"The number of labels is {k!r} ({type(k).__name__}): give a whole number, at least 1.")


def choose_labels(
    scores: Tensor,
    k: int,
    is_candidate: Tensor,
    groups: Tensor | None = None,
    per_group: int = 1,
) -> ChosenLabels:
    """Chooses the k candidates with the highest scores. Of equal scores the smallest id comes first, on any device.

    Args:
        scores (`torch.FloatTensor` of shape `(B, C)`): Log probabilities of the labels up to a constant.
        k (`int`): Number of labels.
        is_candidate (`torch.BoolTensor` of shape `(C,)` or `(B, C)`): Which labels may be chosen.
        groups (`torch.LongTensor` of shape `(C,)`, *optional*): Group of each label. Default: no groups.
        per_group (`int`): Largest number of chosen labels of a group.

    Raises:
        ValueError: If k is no number of labels.
    """
    check_number(k)
    scores = scores.float().masked_fill(~is_candidate, -torch.inf)
    scores[:, :FIRST_LABEL] = -torch.inf
    total = scores.logsumexp(1, keepdim=True)
    total = torch.where(total == torch.inf, torch.nan, total)  # which is to be seen in what is chosen
    ranked = break_ties(total - scores.double(), largest=False)  # minus log probabilities
    columns = scores.shape[1]
    count = min(k, columns)
    while True:
        labels = ranked.topk(count, 1, largest=False).indices
        values = scores.gather(1, labels)
        is_chosen = values != -torch.inf
        if groups is None:
            break
        is_exhausted = ~is_chosen[:, -1]
        is_chosen &= _ranks_in_group(groups[labels]) < per_group
        if count == columns or bool((is_exhausted | (is_chosen.sum(1) >= k)).all()):
            order = (~is_chosen).to(torch.uint8).sort(stable=True).indices[:, :k]  # chosen labels first
            values, labels, is_chosen = (each.gather(1, order) for each in (values, labels, is_chosen))
            break
        count = min(4 * count, columns)
    return ChosenLabels(torch.where(is_chosen, labels, 0), torch.where(is_chosen, (values - total).exp(), 0.0))


def _ranks_in_group(groups: Tensor) -> Tensor:
    """Number of earlier columns `(B, m)` of the same group."""
    ordered, order = groups.sort(stable=True)
    place = torch.arange(groups.shape[1], device=groups.device).expand_as(groups)
    rank = place - torch.searchsorted(ordered, ordered)
    return torch.empty_like(groups).scatter_(1, order, rank)


class NewLabels(NamedTuple):
    """Labels that training never saw, scored by known labels that share their features.

    The probability of a new label is the average over the known labels that are most alike. Two labels are as alike as
    the features say that they share: a rare value, such as a brand, says more than a frequent one. A tenth of what is
    averaged is the customer's own history, because where nothing is taken twice the model expects none of it again.

    Attributes:
        values (`list[str]`): The N new labels.
        alike (`torch.LongTensor` of shape `(N, M)`): Ids of the known labels that are most alike.
        weights (`torch.FloatTensor` of shape `(N, M)`): Their weights, which add up to 1.
    """

    values: list[str]
    alike: Tensor
    weights: Tensor

    @classmethod
    def from_features(cls, values: Sequence[str], features: Tensor, known: Tensor) -> "NewLabels | None":
        """Compares new labels with known ones, and keeps those that share a feature with one; None if none does.

        Args:
            values (`Sequence[str]`): The new labels.
            features (`torch.LongTensor` of shape `(N, F)`): Ids of their features; below 2 where nothing is known.
            known (`torch.LongTensor` of shape `(V, F)`): Ids of the features of the known labels.
        """
        number = (known >= FIRST_LABEL).any(1).sum().clamp(min=1)
        weights, alike = [], []
        for part in features.split(max(1, AT_ONCE // max(1, len(known)))):
            shared = torch.zeros(len(part), len(known))
            for new, old in zip(part.T, known.T, strict=True):
                count = torch.bincount(old, minlength=int(new.max()) + 1)[new]
                # A value that all known labels have says little, but they are alike
                said = (number / count.clamp(min=1)).log().clamp(min=1e-3) * (new >= FIRST_LABEL)
                shared += (new[:, None] == old) * said[:, None]
            best = shared.topk(min(MOST_ALIKE, len(known)), 1)
            weights.append(best.values)
            alike.append(best.indices)
        is_alike = torch.cat(weights).any(1)
        if not is_alike.any():
            return None
        shares = torch.cat(weights)[is_alike]
        shares = (shares / shares.amax(1, keepdim=True)) ** SHARPNESS
        kept = [value for value, is_kept in zip(values, is_alike.tolist(), strict=True) if is_kept]
        return cls(kept, torch.cat(alike)[is_alike], shares / shares.sum(1, keepdim=True))

    def extend(self, scores: Tensor, seen: Sequence[IntArray] | None = None) -> Tensor:
        """Log probabilities `(B, V + N)` of the known labels and the new ones, from the scores `(B, V)`.

        Args:
            scores (`torch.FloatTensor` of shape `(B, V)`): Scores of the known labels.
            seen (`Sequence[NDArray]` of length B, *optional*): Label ids of each history.
        """
        alike, weights = self.alike.to(scores.device), self.weights.to(scores.device)
        scores = scores.float().log_softmax(1)
        result = scores.new_empty(len(scores), scores.shape[1] + len(self.values))
        result[:, : scores.shape[1]] = scores
        for row, known in enumerate(scores):  # one customer at a time, to save memory
            chances = known.exp()
            if seen is not None and len(own := seen[row][seen[row] >= FIRST_LABEL]):
                share = torch.as_tensor(own.astype(np.int64), device=scores.device).bincount(minlength=len(known))
                chances = chances.lerp(share / len(own), OWN)
            result[row, scores.shape[1] :] = (chances[alike] * weights).sum(1).log()
        return result


class _TaskCandidates(NamedTuple):
    """Candidates of a task: see [`choose_labels`]. `values` has the labels in the order of their ids, from 2 on, the
    new ones last; `ids` the id of each candidate of a table; and `excluded` by customer the ids that are not shown."""

    values: list[str]
    is_candidate: Tensor
    groups: Tensor | None
    new: NewLabels | None
    ids: dict[str, int]
    excluded: dict[str, list[int]]


class CandidateSet:
    """Which labels may be chosen, resolved to ids once: for all customers, until the candidates change.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): The model that scores.
        feature_extractor ([`MCMFeatureExtractor`]): Feature extractor of the same checkpoint.
        tasks (`Sequence[str]`, *optional*): Tasks that are ranked. Default: all tasks.
        candidates (*optional*): A list of labels, for a single task; or a table (data frame, Arrow table, dict of
            columns or list of dicts) with a row for each label, and a column for each task that is restricted. Its
            other columns are features of the checkpoint, such as the category. They say the groups of `per_group`,
            and score labels that training never saw ([`NewLabels`]). Default: all labels.
        exclude (*optional*): "seen", the labels of all events of the customer, targets or not, but none that training
            never saw; a list of labels, in which "seen" means the same beside the others (a label of this name is
            excluded by a table); or a table with a column for each task, and for labels of some customers that of the
            customer, named as in the log or `customer_id`.
        per_group (`tuple[str, int]`, *optional*): A feature and the largest number of chosen labels of each of its
            values, such as `("category", 2)`, or as text `"category=2"`.

    Candidates that the model does not know, and that share no feature with a label that it knows, are never chosen; a
    warning names them.

    Attributes:
        needs_seen (`bool`): Whether `choose` needs the label ids of each history.

    Raises:
        ValueError: If a column is missing, unknown or holds nulls, no candidate is left, or nothing says the group of
            a label. The message names the column and what to do.
    """

    def __init__(
        self,
        model: Any,
        feature_extractor: MCMFeatureExtractor,
        tasks: Sequence[str] | None = None,
        candidates: object = None,
        exclude: object = None,
        per_group: tuple[str, int] | str | None = None,
    ):
        self.model, self.extractor = model, feature_extractor
        self.tasks = list(model.config.tasks if tasks is None else tasks)
        self.excludes_seen, exclude = _read_seen(exclude)
        reader = _CandidateReader(model, feature_extractor, self.tasks)
        table = {} if candidates is None else reader.read(candidates, "candidates")
        group, self._most = _read_per_group(per_group)
        if [group] == self.tasks:
            raise ValueError(
                f"`per_group` names {group!r}, which is the only task: give another feature, or leave it."
            )
        self._by_task = {task: reader.read_candidates(task, table, group) for task in self.tasks}
        self.needs_seen = self.excludes_seen or any(each.new for each in self._by_task.values())
        if exclude is not None:
            reader.read_excluded(exclude, self._by_task)
        for task, each in self._by_task.items():
            if not each.is_candidate[FIRST_LABEL:].any():
                raise ValueError(
                    f"No candidate of {task!r} is left: column {reader.column(task, table)!r} of the candidates "
                    "has no label that the checkpoint knows and that is not excluded. Check it, or exclude less."
                )

    def choose(
        self,
        task: str,
        scores: Tensor,
        k: int = 10,
        seen: Sequence[IntArray] | None = None,
        customers: Sequence[str | None] | None = None,
        taken: Sequence[IntArray] | None = None,
    ) -> ChosenLabels:
        """Chooses the best candidates of some customers, as [`choose_labels`] does. Ids from V on are new labels.

        Args:
            task (`str`): Name of a task.
            scores (`torch.FloatTensor` of shape `(B, V)`): Scores of the model.
            seen (`Sequence[NDArray]` of length B, *optional*): Label ids of each history, for `needs_seen`.
            customers (`Sequence[str]` of length B, *optional*): Their ids, if `exclude` names customers.
            taken (`Sequence[NDArray]` of length B, *optional*): As `seen`, of targets alone, for new labels.
        """
        own = self._by_task[task]
        if own.new is not None:
            scores = own.new.extend(scores, taken)  # (B, C)
        is_candidate = own.is_candidate.to(scores.device)  # (C,)
        excluded = self._find_excluded(own, seen, customers)
        if any(len(each) for each in excluded):
            is_candidate = is_candidate.repeat(len(scores), 1)  # (B, C)
            for row, labels in enumerate(excluded):
                is_candidate[row, torch.as_tensor(np.asarray(labels, np.int64), device=scores.device)] = False
        groups = None if own.groups is None else own.groups.to(scores.device)  # (C,)
        chosen = choose_labels(scores, k, is_candidate, groups, self._most)
        log_p = scores.float().gather(1, chosen.labels)  # (B, k)
        if own.new is None:
            log_p = log_p - scores.float().logsumexp(1, keepdim=True)
        return chosen._replace(log_p=log_p)

    def _find_excluded(
        self, own: _TaskCandidates, seen: Sequence[IntArray] | None, customers: Sequence[str | None] | None
    ) -> Sequence[Sequence[int] | NDArray]:
        """The ids of labels that each of B customers may not get; empty if there are none."""
        if self.excludes_seen:
            return seen or []
        if not own.excluded:
            return []
        if customers is None or None in customers:
            raise ValueError("`exclude` is a table of customers: give each customer a `customer_id`.")
        return [own.excluded.get(customer, ()) for customer in to_ids(customers)]

    def values(self, task: str) -> list[str]:
        """Labels of a task in the order of their ids, from 2 on: those of the checkpoint, and new ones."""
        return self._by_task[task].values

    def decode(self, task: str, labels: Sequence[int]) -> list[str]:
        """Values of label ids, new labels included."""
        return [self.values(task)[label - FIRST_LABEL] for label in labels]


class _CandidateReader:
    """Reads the arguments of a [`CandidateSet`]: columns of labels, which it resolves to ids task by task."""

    def __init__(self, model: Any, feature_extractor: MCMFeatureExtractor, tasks: Sequence[str]):
        self.model, self.extractor, self.tasks = model, feature_extractor, tasks

    def read(self, given: object, name: str, others: Sequence[str] = ()) -> Table:
        """Columns of an argument; a list of labels is the column of the single task. Raises `ValueError` if a column
        is no feature and none of `others`: a customer column of another name would be passed over."""
        with naming(f"`{name}`"):
            table = read_table(given)
            if table is None:
                if len(self.tasks) > 1:
                    raise ValueError(
                        f"found a list of labels for the tasks {self.tasks}: ask for one task, or give a table with a "
                        "column for each task"
                    )
                return {self.tasks[0]: as_column(given)}
            if not any(self.column(task, table) in table for task in self.tasks):
                check_columns(list(table), [self.column(task, table) for task in self.tasks], "The table has")
            names = self.extractor._encoding.event_features
            known = dict.fromkeys([*names, *(self.column(each, {}) for each in names), *others])
            check_keys(table, [*known], "columns of the table" if others else "columns of the table for all customers")
            return table

    def column(self, task: str, table: Table) -> str:
        """The column of a feature in a table: its name, or the column of the log."""
        spec = self.extractor._encoding.specs.get(task)
        return task if spec is None or task in table or spec.level or spec.item else spec.column or task

    def _texts(self, task: str, table: Table, what: str) -> list[str] | None:
        """The labels of a task's column, None without one. Raises `ValueError` if there are nulls."""
        column = self.column(task, table)
        with naming(f"{what}: column {column!r}"):
            return to_ids(table[column], to_text) if column in table else None

    def _find_ids(self, task: str, texts: Sequence[str]) -> dict[str, int]:
        """The ids of labels, each once."""
        distinct = list(dict.fromkeys(texts))
        return dict(zip(distinct, self.extractor.label_ids(task, distinct).tolist(), strict=True))

    def read_candidates(self, task: str, table: Table, group: str | None) -> "_TaskCandidates":
        """Candidates of a task, each once. Warns of unknown ones."""
        values, ids, new = list(self.extractor.vocabularies[task]), dict[str, int](), None
        texts, column = self._texts(task, table, "`candidates`"), self.column(task, table)
        if texts is not None:
            ids = self._find_ids(task, texts)
            names = [name for name in self.extractor._encoding.event_features if name != task]
            names = [name for name in names if self.column(name, table) in table]
            new = self._new_labels(task, table, texts, ids, names)
            for value in new.values if new else ():
                ids[value] = FIRST_LABEL + len(values)
                values.append(value)
            unknown = [value for value, label in ids.items() if label < FIRST_LABEL]
            if unknown:
                fix = "add columns of features that they share with known labels, such as their category"
                if names:
                    fix = f"no known label has their value of {' or '.join(names)}: correct it, add some that have"
                logger.warning(
                    f"`candidates`: {len(unknown):,} of {len(ids):,} labels of column {column!r} are unknown to the "
                    f"checkpoint and left out, such as {some([*map(repr, unknown)])}: {fix}, or train again with them."
                )
            ids = {value: label for value, label in ids.items() if label >= FIRST_LABEL}
        is_candidate = torch.full((FIRST_LABEL + len(values),), texts is None)
        is_candidate[self.extractor.own_ids(task) if texts is None else list(ids.values())] = texts is not None
        groups = None
        if group is not None and group != task:
            groups = self._groups(task, {} if texts is None else table, texts or [], ids, len(is_candidate), group)
        return _TaskCandidates(values, is_candidate, groups, new, ids, {})

    def _new_labels(
        self,
        task: str,
        table: Table,
        texts: Sequence[str],
        ids: Mapping[str, int],
        names: Sequence[str],
    ) -> NewLabels | None:
        """The unknown labels of a table that share one of some features with known labels, of the table or of the
        checkpoint."""
        first = {text: row for row, text in reversed(list(enumerate(texts)))}
        encoding = self.extractor._encoding
        new = [value for value, label in ids.items() if label < FIRST_LABEL]
        known = torch.zeros(self.model.config.label_sizes[task], len(names), dtype=torch.long)
        features = torch.zeros(len(new), len(names), dtype=torch.long)
        rows = {label: first[value] for value, label in ids.items() if label >= FIRST_LABEL}
        for index, name in enumerate(names):
            column = self.column(name, table)
            with naming(f"`candidates`: column {column!r}"):
                values = torch.from_numpy(encoding.feature_ids(name, table[column]).astype(np.int64))
            if name in self.model.config.label_features:
                known[:, index] = self._usual(task, name)
            known[[*rows], index] = values[[*rows.values()]]
            features[:, index] = values[[first[value] for value in new]]
        return NewLabels.from_features(new, features, known) if new else None

    def _usual(self, task: str, feature: str) -> Tensor:
        """Most frequent value `(V,)` of a feature that the labels of a task determine."""
        config = self.model.config
        return self.model.label_values(config.tasks.index(task))[:, config.label_features.index(feature)].long().cpu()

    def _groups(
        self,
        task: str,
        table: Table,
        texts: Sequence[str],
        ids: Mapping[str, int],
        columns: int,
        group: str,
    ) -> Tensor:
        """Group of each label `(C,)`. A label of which nothing is said is a group of its own."""
        groups = torch.arange(columns)
        name = self.column(group, table)
        if name in table:
            with naming(f"`candidates`: column {name!r}"):
                values = map_distinct(table[name], to_text, object).tolist()
                group_names: dict[str, str] = {}
                for text, value in zip(texts, values, strict=True):
                    if value is None or group_names.setdefault(text, value) != value:
                        found = "null" if value is None else f"{group_names[text]!r} and {value!r}"
                        raise ValueError(f"{task} {text!r} has {found}; `per_group` needs one value for each label")
            numbers = {value: columns + number for number, value in enumerate(dict.fromkeys(values))}
            for text, label in ids.items():
                groups[label] = numbers[group_names[text]]
        elif group in self.model.config.label_features:
            usual = self._usual(task, group)
            groups[: len(usual)] = torch.where(usual >= FIRST_LABEL, columns + usual, groups[: len(usual)])
        else:
            raise ValueError(
                f"`per_group` names {group!r}, and nothing says which {group} a label of {task!r} has: give "
                f"`candidates` as a table with the columns {task!r} and {group!r}."
            )
        return groups

    def read_excluded(self, exclude: object, by_task: Mapping[str, _TaskCandidates]) -> None:
        """Takes excluded labels away from candidates: for all customers, or for those that the table names."""
        names = (self.extractor.customer, CUSTOMER)
        table, customers, unknown = self.read(exclude, "exclude", names), None, list[str]()
        if name := next((name for name in names if name in table), None):
            with naming(f"`exclude`: column {name!r}"):
                customers = to_ids(table[name])
        for task, own in by_task.items():
            texts = self._texts(task, table, "`exclude`") or []
            ids = self._find_ids(task, texts) | own.ids
            unknown += [text for text in dict.fromkeys(texts) if ids[text] < FIRST_LABEL]
            for row, text in enumerate(texts):
                if customers is None:
                    own.is_candidate[ids[text]] = False  # the ids of unknown labels are no candidates
                else:
                    own.excluded.setdefault(customers[row], []).append(ids[text])
        if unknown:
            logger.warning(
                f"`exclude` names {len(unknown):,} labels that the checkpoint does not know, such as "
                f"{some([*map(repr, unknown)])}."
            )


def _read_seen(exclude: object) -> tuple[bool, object]:
    """Whether what a customer has seen is excluded, and what else is: None, a list of labels or a table."""
    if exclude is None or (isinstance(exclude, str) and exclude == SEEN):
        return exclude is not None, None
    with naming("`exclude`"):
        if read_table(exclude) is not None:
            return False, exclude
        labels = [label for label in as_column(exclude) if not (isinstance(label, str) and label == SEEN)]
        excludes_seen = len(labels) < len(as_column(exclude))
    return excludes_seen, None if excludes_seen and not labels else labels


def _read_per_group(per_group: tuple[str, int] | str | None) -> tuple[str | None, int]:
    if per_group is None:
        return None, 1
    with suppress(TypeError, ValueError, OverflowError):
        name, most = per_group.rsplit("=", 1) if isinstance(per_group, str) else per_group
        if isinstance(name, str) and int(most) == float(most) >= 1:
            return name, int(most)
    raise ValueError(
        f"`per_group` is {per_group!r}; give a feature and a number of at least 1, such as ('category', 2)."
    )
