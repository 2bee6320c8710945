# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Labels of customers at moments: a table of customer, time and label, and the histories before those times.

    customer_id    as in the event log
    time           the moment of the label: what came at or after it is not read
    churned        the label, under any name: two classes, several classes, or a number

What is wrong in the table is found here, before anything is trained. `docs/labels.md` has a worked example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.offer_collator import events_before
from modeling_mcm.events_mcm import SECONDS_PER_DAY, as_column, naming, read_times, read_zone, to_text
from modeling_mcm.processing_mcm import MCMFeatureExtractor

AUTO, BINARY, CLASSES, NUMBER = KINDS = ("auto", "binary", "classes", "number")
ERROR, DROP = ON_UNKNOWN = ("error", "drop")
MOST_NAMED = 3


@dataclass(frozen=True)
class CustomerLabels:
    """Labels in the order of the table.

    Attributes:
        name: of the label's column.
        kind: "binary", "classes" or "number".
        customer_ids: text, of shape `(N,)`.
        times: seconds since 1970-01-01, of shape `(N,)`.
        values: ids of classes (int64) or numbers (float32), of shape `(N,)`.
        classes: what the ids stand for; empty for numbers.
    """

    name: str
    kind: str
    customer_ids: NDArray
    times: NDArray[np.int64]
    values: NDArray[Any]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def of(self, places: ArrayLike) -> CustomerLabels:
        """Some of the labels."""
        places = np.asarray(places, np.int64)
        return replace(
            self, customer_ids=self.customer_ids[places], times=self.times[places], values=self.values[places]
        )

    def model_options(self) -> dict[str, Any]:
        """What a model's config has to say of this label: options of `from_pretrained`."""
        named = dict(enumerate(self.classes or (self.name,)))
        return {
            "problem_type": "regression" if self.kind == NUMBER else "single_label_classification",
            "id2label": named,
            "label2id": {name: number for number, name in named.items()},
        }

    def check_trainable(self, what: str = "training") -> None:
        """Raises `ValueError` where there is nothing to learn from, or to tell apart: all labels are the same.

        Args:
            what: labels these are, for the message.
        """
        distinct = np.unique(self.values)
        if len(distinct) < 2:
            value = "nowhere known" if not len(distinct) else repr(self._shown(distinct[0]))
            raise ValueError(
                f"Label {self.name!r} is {value} in all {len(self)} {what} labels: nothing can be learned or measured "
                "from one value. Check the column, or give more labels."
            )

    def _shown(self, value: Any) -> Any:
        return value.item() if self.kind == NUMBER else self.classes[int(value)]

    def split(self, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of the labels to train on and of those to validate on. All labels of a customer are on one side, and
        each class gives the same share.

        Args:
            share: of the customers that are validated on, from 0 to below 1.
            seed: of the draw.
        """
        customers, first, owner = np.unique(self.customer_ids.astype(str), return_index=True, return_inverse=True)
        order = np.random.default_rng(seed).permutation(len(customers))
        if self.kind != NUMBER:
            order = order[np.argsort(self.values[first][order], kind="stable")]
        is_held_out = np.zeros(len(customers), bool)
        # Every so many in that order, so that each class gives its share.
        is_held_out[order] = np.diff(np.floor(np.arange(len(order) + 1) * share + 0.5)) > 0
        return np.flatnonzero(~is_held_out[owner]), np.flatnonzero(is_held_out[owner])


def load_labels(
    path: str | Path,
    label: str = "label",
    customer: str = "customer_id",
    time: str = "time",
    kind: str = AUTO,
    time_zone: str = "UTC",
) -> CustomerLabels:
    """Reads labels from a Parquet or CSV file; see [`make_labels`].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `make_labels`, or if the file is of another format or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give a Parquet or CSV file with {customer}, {time} and {label}.")
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
        elif path.suffix.lower() == ".csv":
            # Ids and times as they are written: 007 is not 7.
            table = pd.read_csv(path, dtype={customer: str, time: str}, low_memory=False)
        else:
            raise ValueError(f"the name ends in {path.suffix!r}, expected .parquet or .csv")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    with naming(str(path)):
        return make_labels(table, label, customer, time, kind, time_zone)


def make_labels(
    table: pd.DataFrame,
    label: str = "label",
    customer: str = "customer_id",
    time: str = "time",
    kind: str = AUTO,
    time_zone: str = "UTC",
) -> CustomerLabels:
    """Checks a table of labels.

    Args:
        table: one row a customer and moment.
        label: name of the label's column.
        customer: name of the customer's column.
        time: name of the moment's column.
        kind: of the label: "binary", "classes", "number", or "auto": text and booleans are classes, numbers are
            numbers, but for 0 and 1, which are two classes.
        time_zone: as in the event schema.

    Raises:
        ValueError: naming the column, the customer, and what to do.
    """
    if kind not in KINDS:
        raise ValueError(f"The kind of label is {kind!r}; expected one of {', '.join(KINDS)}.")
    for name in (customer, time, label):
        if name not in table.columns:
            raise ValueError(
                f"The labels have no column {name!r}; they have {', '.join(map(str, table.columns))}. Name yours with "
                "--label, --customer_column and --time_column."
            )
    if not len(table):
        raise ValueError("The labels have no rows; give at least two, with two values.")
    for name in (customer, time, label):
        if (missing := table[name].isna()).any():
            at = "" if name == customer else f", such as of customer {table[customer][missing].iloc[0]!r}"
            raise ValueError(
                f"Column {name!r} is missing in {int(missing.sum())} of {len(table)} labels{at}; fill it, or leave "
                "these rows out."
            )
    with naming(f"column {customer!r}"):
        texts = {value: to_text(value) for value in table[customer].unique()}
    ids = table[customer].map(texts).to_numpy(object)
    with naming(f"column {time!r}"):
        times = read_times(as_column(table[time]), read_zone(time_zone))
    twice = pd.DataFrame({"customer": ids, "time": times}).duplicated().to_numpy()
    if twice.any():
        place = int(twice.argmax())
        raise ValueError(
            f"Customer {ids[place]!r} has two labels at {_moment(times[place])}, and {int(twice.sum())} rows repeat "
            "a customer and time; keep one row of each."
        )
    kind, values, classes = _read_values(table[label], label, kind)
    made = CustomerLabels(label, kind, ids, times, values, classes)
    made.check_trainable("given")
    return made


def _read_values(column: pd.Series, name: str, kind: str) -> tuple[str, NDArray[Any], tuple[str, ...]]:
    given = column.tolist()
    found: dict[str, Any] = {}
    for value in given:
        found.setdefault(_type_of(value, name), value)
    if len(found) > 1:
        shown = " and ".join(f"{word} ({value!r})" for word, value in found.items())
        raise ValueError(f"Label {name!r} holds values of mixed types, {shown}; make them all of one.")
    (word,) = found
    if kind == AUTO:
        kind = NUMBER if word == "numbers" and not set(given) <= {0, 1} else CLASSES
    if kind == NUMBER:
        if word == "text":
            raise ValueError(
                f"Label {name!r} holds text such as {given[0]!r}, and a number was asked for; make it numbers, or "
                "predict classes."
            )
        numbers = np.array(given, np.float64)
        if not (np.abs(numbers) <= np.finfo(np.float32).max).all():
            raise ValueError(f"Label {name!r} holds numbers that are not finite; leave these rows out.")
        return NUMBER, numbers.astype(np.float32), ()
    texts = [str(to_text(value)) for value in given]
    classes = sorted(set(texts), key=float) if word == "numbers" else sorted(set(texts))
    if kind == BINARY and len(classes) > 2:
        raise ValueError(
            f"Label {name!r} has {len(classes)} values, such as {', '.join(classes[:MOST_NAMED])}, and two classes "
            "were asked for."
        )
    if len(classes) > max(2, len(texts) / 2):
        raise ValueError(
            f"Label {name!r} has {len(classes)} classes in {len(texts)} labels, such as {classes[0]!r}: too few of "
            "each to learn. Is it a number with some text in it?"
        )
    places = {text: number for number, text in enumerate(classes)}
    kind = BINARY if len(classes) <= 2 else CLASSES
    return kind, np.array([places[text] for text in texts], np.int64), tuple(classes)


def _type_of(value: Any, name: str) -> str:
    if isinstance(value, bool | np.bool_):
        return "booleans"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float | np.number) or type(value).__name__ == "Decimal":
        return "numbers"
    raise ValueError(f"Label {name!r} holds {value!r} ({type(value).__name__}); expected text, booleans or numbers.")


def _moment(seconds: int) -> str:
    return str(np.datetime64(int(seconds), "s")).replace("T", " ").removesuffix(" 00:00:00")


class LabelledCustomers(Dataset):
    """Labels, each with its customer's history **before** the label's time.

    Args:
        rows: what `load_prepared` returns.
        labels: the labels.
        on_unknown: "error", or "drop": leave out the labels of customers of whom no event is known before the label's
            time. `dropped` counts them.

    Raises:
        ValueError: if a customer is not in the prepared data set or has no event before the label's time, with
            `on_unknown="error"`; or a label is of a time that the log does not reach.
    """

    def __init__(self, rows: datasets.Dataset, labels: CustomerLabels, on_unknown: str = ERROR):
        if on_unknown not in ON_UNKNOWN:
            raise ValueError(f"on_unknown is {on_unknown!r}; expected one of {', '.join(ON_UNKNOWN)}.")
        places = {customer: place for place, customer in enumerate(rows["customer_id"])}
        first, end = _first_and_last(rows)
        if len(late := np.flatnonzero(labels.times > end + SECONDS_PER_DAY)):
            raise ValueError(
                f"{len(late)} labels are of times that the log does not reach: it ends on {_moment(end)}, customer "
                f"{labels.customer_ids[late[0]]!r} has a label of {_moment(labels.times[late[0]])}. What came between "
                "would be missing from the history; prepare the log up to the labels, or leave these rows out."
            )
        found = np.array([places.get(customer, -1) for customer in labels.customer_ids])
        is_known = found >= 0
        has_history = is_known & (first[np.maximum(found, 0)] < labels.times)
        if on_unknown == ERROR and not has_history.all():
            _refuse(labels, is_known, has_history)
        kept = np.flatnonzero(has_history)
        self.dropped = len(labels) - len(kept)
        self.labels = labels.of(kept)
        self.rows = PreparedRows(rows, found[kept])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        """Dicts with `history`, a prepared row cut at the label's time, `time` in seconds, and `label`."""
        return [
            {"history": events_before(row, self.labels.times[place]), "time": int(self.labels.times[place])}
            | {"label": self.labels.values[place]}
            for row, place in zip(self.rows.__getitems__(places), places, strict=True)
        ]


def _refuse(labels: CustomerLabels, is_known: NDArray[np.bool_], has_history: NDArray[np.bool_]) -> None:
    way = "prepare the log with their events, or leave them out (--on_unknown drop)."
    if unknown := sorted(set(labels.customer_ids[~is_known])):
        raise ValueError(
            f"{len(unknown)} customers of the labels are not in the prepared data set, such as "
            f"{', '.join(map(repr, unknown[:MOST_NAMED]))}: {way}"
        )
    place = np.flatnonzero(~has_history)[0]
    raise ValueError(
        f"{int((~has_history).sum())} labels are of times before any event of their customer, such as "
        f"{_moment(labels.times[place])} of {labels.customer_ids[place]!r}, so that nothing is known of them: {way}"
    )


def _first_and_last(rows: datasets.Dataset) -> tuple[NDArray[np.int64], int]:
    """Of each customer the first event, and the last event of all, in seconds."""
    first = np.full(len(rows), np.iinfo(np.int64).max)
    last, place = np.iinfo(np.int64).min, 0
    for table in rows.select_columns(["times"]).with_format("arrow").iter(1024):
        for times in table["times"]:
            values = times.values.to_numpy()
            first[place] = values.min(initial=first[place])
            last = max(last, int(values.max(initial=last)))
            place += 1
    return first, last


class LabelCollator:
    """Turns labelled customers into inputs of `MCMForCustomerPrediction`.

    Args:
        extractor: of the checkpoint.
        config: of the model; `input_features` is read.
        max_events: rows of the longest history, start row included; the extractor's by default.
    """

    def __init__(self, extractor: MCMFeatureExtractor, config: MCMConfig, max_events: int | None = None):
        self.extractor, self.config, self.max_events = extractor, config, max_events

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch: the histories as `MCMFeatureExtractor.pad` gives them, with `now`, the label's time; `labels`
        `(B,)`."""
        histories = [self.extractor.readable(item["history"], self.config.input_features) for item in items]
        batch = dict(self.extractor.pad(histories, self.max_events, now=[item["time"] for item in items]))
        return batch | {"labels": torch.from_numpy(np.array([item["label"] for item in items]))}
