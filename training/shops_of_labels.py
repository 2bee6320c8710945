# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Shops whose labels the scorer learns from: open logs, each cut into many shops, and their examples.

A log is in memory as flat columns, so that a cut is a selection, and thousands of customers are prepared in
milliseconds: labels get new ids by their frequency in the shop's training period, as `mcm prepare` gives them. A cut
ends at a time of its own, and what came next is asked of all its customers, as validation asks it.

Shapes: E events of a log, C customers, V labels of a task.
"""

from dataclasses import dataclass, replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_LABEL, UNKNOWN_ID, MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import count_cases, load_columns
from modeling_mcm.data.schema import LEAVE_ONE_OUT, EventSchema
from modeling_mcm.events_mcm import EPOCH, SECONDS_PER_DAY, run_starts
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import HISTORY_START
from modeling_mcm.training.pretraining import COUNTS_ALONE

KIND = "kind"
LEAST_HORIZON, MOST_HORIZON = 5.0, 45.0  # days after the end of a cut in which it asks what came


@dataclass(frozen=True)
class LabelLog:
    """The events of a log, customer after customer and oldest first, in columns of shape `(E,)`.

    Args:
        customer, visit (`NDArray[int64]`): Indices of the customer, and of the visit among all of the log, ascending.
        time (`NDArray[int64]`): Seconds since 1970.
        kind (`NDArray[int64]`): Kind of the event, from 0 by frequency.
        is_target (`NDArray[bool]`): Whether the labels are something to predict.
        labels (`dict[str, NDArray[int64]]`): Labels by feature; 0: none.
        tasks (`tuple[str]`): Features that are predicted; others may be attributes.
        has_times (`bool`): Whether cutoffs can be dates.
        cutoffs (`tuple[int, int]`, *optional*): Times, in seconds, before which the log is known, and until which is
            asked what came. `None`: the last visit of each customer is asked.
        min_history (`int`): Least number of target events before the cutoff of who is asked.
    """

    customer: NDArray
    visit: NDArray
    time: NDArray
    kind: NDArray
    is_target: NDArray
    labels: dict[str, NDArray]
    tasks: tuple[str, ...]
    has_times: bool = True
    cutoffs: tuple[int, int] | None = None
    min_history: int = 1

    def __len__(self) -> int:
        return len(self.customer)

    def select(self, events: NDArray) -> Self:
        """The log with some of the events alone, by a mask or by indices."""
        names = ("customer", "visit", "time", "kind", "is_target")
        columns = {name: getattr(self, name)[events] for name in names}
        return replace(self, **columns, labels={name: values[events] for name, values in self.labels.items()})

    def count_later_visits(self) -> NDArray:
        """Number of the customer's later visits, of each event."""
        opens = run_starts(self.visit)
        number = np.cumsum(opens)
        last = np.flatnonzero(np.append(run_starts(self.customer)[1:], True))  # event of each customer
        return number[last][np.cumsum(run_starts(self.customer)) - 1] - number


def read_log(data: PreparedData) -> LabelLog:
    """Reads prepared data as a log with its own cutoffs and its own ids of labels."""
    schema, token = data.schema, data.schema.token_feature.name
    names = [spec.name for spec in schema.features if spec.kind == "categorical"]
    tasks = [name for name in schema.tasks if name != token] or [token]
    columns = [f"feature_{name}" for name in {*names, token}] + [f"task_{name}" for name in tasks]
    batch = load_columns(data.rows, ["times", "visits", *columns])
    any_label = np.any([batch.column(f"feature_{name}") > 0 for name in tasks], axis=0)
    events = batch.select(any_label)  # not those that close a visit
    labels = {
        name: events.column(f"feature_{name}").astype(np.int64) for name in names if name != token or name in tasks
    }
    customer = events.row
    visit = np.cumsum(run_starts(customer, events.column("visits"))) - 1
    kinds = events.column(f"feature_{token}").astype(np.int64)
    kind = np.unique(kinds, return_inverse=True)[1]
    by_frequency = np.argsort(np.argsort(-np.bincount(kind), kind="stable"))
    is_target = np.any([events.column(f"task_{name}") > 0 for name in tasks], axis=0)
    has_times = schema.time is not None
    cutoffs = None
    if not schema.leaves_one_out:
        cutoffs = schema.cutoff_seconds("validation"), schema.cutoff_seconds("test")
    times = events.column("times").astype(np.int64)
    return LabelLog(
        customer,
        visit,
        times,
        by_frequency[kind],
        is_target,
        labels,
        tuple(tasks),
        has_times,
        cutoffs,
        schema.min_history,
    )


class ShopData:
    """A cut of a log in the place of [`PreparedData`]: rows, extractor, schema and manifest, all in memory.

    Args:
        log ([`LabelLog`]): The cut. Labels get ids by their frequency before the cutoff; later ones are unknown.
    """

    def __init__(self, log: LabelLog):
        customer = np.cumsum(run_starts(log.customer)) - 1
        starts = np.flatnonzero(run_starts(customer))
        lengths = np.diff(np.append(starts, len(customer)))
        offsets = pa.array(np.append(starts, len(customer)).astype(np.int32))
        if log.cutoffs is None:
            later = log.count_later_visits()
            ends = [np.bincount(customer, later > last, len(starts)) for last in (1, 0)]
        else:
            ends = [np.bincount(customer, log.time < cutoff, len(starts)) for cutoff in log.cutoffs]
        is_past = np.arange(len(customer)) - starts[customer] < ends[0][customer]
        columns: dict[str, Any] = {"times": log.time, "visits": number_visits(log.visit, starts, customer)}
        vocabularies = {KIND: [*(f"{kind}" for kind in range(log.kind.max(initial=0) + 1)), HISTORY_START]}
        columns[f"feature_{KIND}"] = log.kind + FIRST_LABEL
        for name, values in log.labels.items():
            ids, known = encode_labels(values, is_past)
            vocabularies[name] = [str(label) for label in range(known)]
            columns[f"feature_{name}"] = ids
            if name in log.tasks:
                columns[f"task_{name}"] = np.where(log.is_target, ids, 0)
                columns[f"unseen_{name}"] = np.where(ids == UNKNOWN_ID, values, 0)
        lists = {
            name: pa.ListArray.from_arrays(offsets, pa.array(values, pa.int64() if name == "times" else pa.int32()))
            for name, values in columns.items()
        }
        flat = {
            f"{key}_end": pa.array(end.astype(np.int32)) for key, end in zip(("validation", "test"), ends, strict=True)
        }
        names = pa.array([str(number) for number in range(len(starts))])
        self.rows = Dataset(pa.table({"customer_id": names} | lists | flat))
        self.schema = make_schema(log)
        self.extractor = MCMFeatureExtractor.from_schema(self.schema, vocabularies, {})
        self.folder = "The shop"
        batch = load_columns(
            self.rows, ["visits", "validation_end", "test_end", *(n for n in columns if n[:5] == "task_")]
        )
        self.manifest = SimpleNamespace(counts=count_cases(batch, self.schema))
        self.lengths = lengths


def make_config(extractor: MCMFeatureExtractor) -> MCMConfig:
    """Config of a model of counts that reads a shop."""
    values: dict[str, Any] = COUNTS_ALONE | {"state_size": 0, "kind_feature": KIND, "target_types": {KIND: []}}
    values |= {"features": extractor.feature_names, "vocabulary_sizes": extractor.vocabulary_sizes}
    return MCMConfig(**values, tasks=extractor.tasks)


def number_visits(visit: NDArray, starts: NDArray, customer: NDArray) -> NDArray:
    """Number of each event's visit among those of the customer."""
    number = np.cumsum(run_starts(visit)) - 1
    return number - number[starts][customer]


def encode_labels(values: NDArray, is_past: NDArray) -> tuple[NDArray, int]:
    """Ids of labels by their frequency in the past, 0 for none and 1 for unknown ones; and the number of labels."""
    counts = np.bincount(values[is_past], minlength=int(values.max(initial=0)) + 1)
    counts[0] = 0
    known = int((counts > 0).sum())
    ids = np.full(len(counts), UNKNOWN_ID)
    ids[np.argsort(-counts, kind="stable")[:known]] = FIRST_LABEL + np.arange(known)
    ids[0] = 0
    return ids[values], known


def make_schema(log: LabelLog) -> EventSchema:
    """The event schema of a cut."""
    cutoffs: Any = LEAVE_ONE_OUT
    if log.cutoffs is not None:
        dates = (EPOCH + timedelta(seconds=int(cutoff)) for cutoff in log.cutoffs)
        cutoffs = {key: date.isoformat() for key, date in zip(("validation", "test"), dates, strict=True)}
    return EventSchema.from_dict(
        {
            "name": "shop", "customer": "customer", "token_type": KIND, "visit": "visit",
            **({"time": "time"} if log.has_times else {"order": "rows"}),
            "features": [{"name": KIND}, *({"name": name} for name in log.labels)],
            "tasks": [*log.tasks], "min_history": log.min_history, "cutoffs": cutoffs,
        }
    )  # fmt: skip


def cut_log(log: LabelLog, rng: np.random.Generator) -> LabelLog:
    """Cuts a shop from a log: some customers, a period, fewer visits, coarser labels, other rules. What the log would
    be asked in its own form is in none of them but by chance."""
    if log.has_times and log.cutoffs is not None:
        log = cut_period(log, rng)
    log = draw_customers(log, rng)
    if rng.random() < 0.2:  # visits of which the shop knows nothing
        kept = rng.random(log.visit.max() + 1) > rng.uniform(0, 0.6)
        log = log.select(kept[log.visit])
    if rng.random() < 0.3 and (log.kind > 0).any():
        log = replace(log, kind=np.zeros_like(log.kind))
    if rng.random() < 0.25:
        log = merge_labels(log, rng)
    if rng.random() < 0.1:
        log = drop_repeats(log, str(rng.choice(log.tasks)))
    if rng.random() < 0.3:  # without attributes
        log = replace(log, labels={name: log.labels[name] for name in log.tasks})
    if log.cutoffs is not None and rng.random() < 0.25:
        log = replace(log, cutoffs=None)
        if rng.random() < 0.4:  # the order of visits alone is known
            log = replace(log, time=(log.visit - log.visit.min()) * int(SECONDS_PER_DAY), has_times=False)
    return replace(log, min_history=int(rng.choice([1, 1, 3, 5])))


def cut_period(log: LabelLog, rng: np.random.Generator) -> LabelLog:
    """Cuts the end of a log, and sometimes its start; what is asked comes within some weeks after the cut."""
    first, last = int(log.time.min()), int(log.time.max())
    span, day = last - first, int(SECONDS_PER_DAY)
    horizon = min(rng.uniform(LEAST_HORIZON, MOST_HORIZON) * day, 0.3 * span)
    horizon = max(horizon, 31 * day) if rng.random() < 0.6 and span > 90 * day else horizon
    end = last - horizon
    if rng.random() < 0.8:
        end -= rng.uniform(0, 0.7) * (end - first)
    start = first if rng.random() < 0.7 else first + rng.uniform(0, 0.6) * (end - first)
    log = log.select((log.time >= start) & (log.time < end + horizon))
    return replace(log, cutoffs=(int(end), int(end + horizon)))


def draw_customers(log: LabelLog, rng: np.random.Generator) -> LabelLog:
    """Draws customers, from a few to 20,000; few of them bring at times their latest visits alone."""
    customers = np.unique(log.customer)
    most = min(len(customers), 20_000)
    number = int(np.exp(rng.uniform(np.log(min(8, most)), np.log(most))))
    log = log.select(np.isin(log.customer, rng.choice(customers, number, replace=False)))
    if rng.random() < 0.3:
        is_later = log.time >= log.cutoffs[0] if log.cutoffs else np.zeros(len(log), bool)
        past = log.select(~is_later)
        is_late = np.zeros(len(log), bool)
        is_late[~is_later] = past.count_later_visits() < rng.integers(3, 30)
        log = log.select(is_later | is_late)
    return log


def merge_labels(log: LabelLog, rng: np.random.Generator) -> LabelLog:
    """Merges the labels of tasks into fewer ones at random."""
    labels = dict(log.labels)
    for name in log.tasks:
        size = int(labels[name].max()) + 1
        merged = 1 + rng.integers(0, max(int(size * np.exp(rng.uniform(np.log(0.05), 0))), 5), size)
        merged[0] = 0
        labels[name] = merged[labels[name]]
    return replace(log, labels=labels)


def drop_repeats(log: LabelLog, task: str) -> LabelLog:
    """Drops the events in which a customer has a label again, as if nothing could be had twice."""
    values = log.labels[task]
    pair = log.customer * (int(values.max(initial=0)) + 1) + values
    is_first = np.zeros(len(log), bool)
    is_first[np.unique(pair, return_index=True)[1]] = True
    return log.select(is_first | (values == 0))
