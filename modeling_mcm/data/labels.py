# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Labels of customers at times: a table of customer, time and label, and the histories before those times.

    customer_id    as in the event log
    time           the time of the label: events at or after it are not read
    churned        the label, under any name: two classes, several classes, or a number
    age            further columns are features: numbers, text or booleans

What is wrong in the table is reported here, before anything is trained. `docs/fine_tuning.md` has a worked example.
"""

from dataclasses import dataclass, replace

import datasets
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

from modeling_mcm.events_mcm import (
    IntArray,
    check_columns,
    naming,
    read_times,
    to_ids,
    to_iso,
    to_text,
)
from modeling_mcm.feature_extraction_mcm import MISSING_LABEL
from modeling_mcm.inputs_mcm import Customers, InputLayout
from modeling_mcm.schema_mcm import check_choice

from .cases import check_reached, load_columns
from .collator import PreparedRows

AUTO, CLASSES, NUMBER = LABEL_KINDS = ("auto", "classes", "number")
NUMBER_TYPES = ("integer", "floating", "mixed-integer-float", "decimal")  # as pandas infers them
ERROR, DROP = ON_UNKNOWN = ("error", "drop")
FEWEST = 5  # labels with a value that is a feature


@dataclass(frozen=True)
class CustomerLabels:
    """Labels of customers, in the order of the table."""

    name: str  # name of the label's column
    kind: str  # "classes" or "number"
    customer_ids: NDArray  # (N,): id of each label's customer
    times: IntArray  # (N,): time of each label, in seconds since 1970-01-01
    values: NDArray  # (N,): ids of classes (int64), from 0, or numbers (float32)
    classes: tuple[str, ...]  # name of each class, in the order of the ids. Empty for numbers
    columns: pd.DataFrame  # further columns, of N rows

    def __len__(self) -> int:
        return len(self.values)

    def of(self, indices: NDArray) -> "CustomerLabels":
        """Selects some of the labels."""
        chosen = {name: getattr(self, name)[indices] for name in ("customer_ids", "times", "values")}
        return replace(self, columns=self.columns.iloc[indices], **chosen)

    def model_options(self) -> dict:
        """Gives what the config of a model has to say of this label and of further columns. Raises `ValueError` if a
        column is no feature."""
        named = dict(enumerate(self.classes or (self.name,)))
        return {
            "problem_type": "regression" if self.kind == NUMBER else "single_label_classification",
            "id2label": named,
            "label2id": {name: number for number, name in named.items()},
            "label_columns": {name: _fit_column(self.columns[name], name) for name in sorted(self.columns)},
        }

    def check_trainable(self, what: str = "training") -> None:
        """Checks that the labels have at least two different values, so that there is something to learn. Raises
        `ValueError` if all labels are the same, or there is no label."""
        distinct = np.unique(self.values)
        if len(distinct) < 2:
            shown = [value.item() if self.kind == NUMBER else self.classes[int(value)] for value in distinct]
            raise ValueError(
                f"Label {self.name!r} is {', '.join(map(repr, shown)) or 'nowhere known'} in all {len(self)} {what} "
                "labels: nothing can be learned or measured from one value. Check the column, or give more labels."
            )

    def split(self, share: float, seed: int) -> tuple[IntArray, IntArray]:
        """Splits the labels at random into training and validation. All labels of a customer are on one side, and each
        class gives about the same share of its customers."""
        customers, first, owner = np.unique(self.customer_ids.astype(str), return_index=True, return_inverse=True)
        order = np.random.default_rng(seed).permutation(len(customers))
        if self.kind != NUMBER:
            order = order[np.argsort(self.values[first][order], kind="stable")]
        is_held_out = np.zeros(len(customers), bool)
        # Customers at equal distances in this order are held out, so that each class gives its share.
        is_held_out[order] = np.diff(np.floor(np.arange(len(order) + 1) * share + 0.5)) > 0
        return np.flatnonzero(~is_held_out[owner]), np.flatnonzero(is_held_out[owner])


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
        table (`pandas.DataFrame`): The table, with one row per customer and time.
        kind (`str`): Kind of the label: "classes" or "number". With "auto" text and booleans are classes,
            and numbers are numbers, except a column of 0 and 1 alone, which holds two classes.
        time_zone (`str`): Time zone to which times with a zone are converted, as in the event schema.

    Raises:
        ValueError: If a column is missing or holds values that can't be read, a customer has two labels at one time,
            or all labels are the same. The message names the column, the customer and what to do.
    """
    check_choice(kind, "kind", LABEL_KINDS)
    fix = "Name yours with --label, --customer_column and --time_column."
    check_columns(table.columns, (customer, time, label), "The labels have", fix)
    if twice := table.columns[table.columns.duplicated()].tolist():
        raise ValueError(f"The labels have several columns {twice[0]!r}; rename the others.")
    for name in (customer, time, label):
        if (missing := table[name].isna()).any():
            at = "" if name == customer else f", such as of customer {table[customer][missing].iloc[0]!r}"
            raise ValueError(
                f"Column {name!r} is missing in {int(missing.sum())} of {len(table)} labels{at}; fill it, or leave "
                "these rows out. (In a CSV file an empty field is missing.)"
            )
    with naming(f"column {customer!r}"):
        ids = np.array(to_ids(table[customer]), object)
    with naming(f"column {time!r}"):
        times = read_times(table[time], time_zone)
    repeats = pd.DataFrame({"customer": ids, "time": times}).duplicated().to_numpy()
    if repeats.any():
        index = int(repeats.argmax())
        raise ValueError(
            f"Customer {ids[index]!r} has two labels at {to_iso(times[index])}, and {int(repeats.sum())} rows repeat "
            "a customer and time; keep one row of each."
        )
    kind, values, classes = _read_values(table[label], f"Label {label!r}", kind)
    columns = table.drop(columns=[customer, time, label]).rename(columns=str)
    labels = CustomerLabels(label, kind, ids, times, values, classes, columns)
    labels.check_trainable("given")
    return labels


def _read_values(column: pd.Series, what: str, kind: str) -> tuple[str, NDArray, tuple[str, ...]]:
    values = column.tolist()
    value_type = types.infer_dtype(values)
    is_number = value_type in NUMBER_TYPES
    if not is_number and value_type not in ("boolean", "string"):
        examples = {type(value).__name__: f"{value!r} ({type(value).__name__})" for value in values}
        raise ValueError(
            f"{what} holds {' and '.join(examples.values()) or 'nothing'}; make them all text, booleans or numbers, "
            "of a date the days from it."
        )
    if kind == AUTO:
        kind = NUMBER if is_number and not set(values) <= {0, 1} else CLASSES
    if kind == NUMBER:
        if value_type == "string":
            raise ValueError(
                f"{what} holds text such as {values[0]!r}, and a number was asked for; make it numbers, or "
                "predict classes."
            )
        numbers = np.array(values, np.float64)
        if not (np.abs(numbers) <= np.finfo(np.float32).max).all():
            raise ValueError(f"{what} holds numbers that are not finite; leave these rows out.")
        if len(np.unique(numbers)) > 1 == len(np.unique(numbers.astype(np.float32))):
            raise ValueError(
                f"{what} has numbers from {numbers.min()!r} to {numbers.max()!r}, which are equal in float32: "
                "subtract their mean."
            )
        return NUMBER, numbers.astype(np.float32), ()
    texts = [str(to_text(value)) for value in values]
    classes = sorted(set(texts), key=float if is_number else None)
    if len(classes) > max(2, len(texts) / 2):
        raise ValueError(
            f"{what} has {len(classes)} classes in {len(texts)} labels, such as {classes[0]!r}: too few of "
            "each to learn. Is it a number with some text in it?"
        )
    return CLASSES, pd.Categorical(texts, classes).codes.astype(np.int64), tuple(classes)


def _fit_column(column: pd.Series, name: str) -> dict[str, float]:
    """What `MCMConfig.label_columns` says of a column: the shares of frequent values and of missing ones, or the
    mean of numbers."""
    column = column.mask(column == "")  # as in CSV files
    kind, values, classes = _read_values(column.dropna(), f"Column {name!r}", AUTO)
    means = {MISSING_LABEL: float(column.isna().mean())}
    if kind == NUMBER:
        means[""] = float(values.mean(dtype=np.float64))
    else:
        counts = zip(classes, np.bincount(values).tolist(), strict=True)
        means |= {name: count / len(column) for name, count in counts if count >= FEWEST}
    return dict(sorted(means.items()))  # as JSON files have them


class LabelledCustomers:
    """Labels, each with its customer's history **before** the label's time.

    Args:
        on_unknown (`str`): What to do with labels of customers who have no event before the label's time in the data
            set: "error" raises an error, "drop" leaves these labels out.
        whole (`bool`): Whether labels are of whole histories, because the log has no times.

    Raises:
        ValueError: with `on_unknown="error"`, if a customer is not in the prepared data set or has no event before the
            label's time. In any case, if a label's time is more than a day after the last event of the log, or no
            label is left.
    """

    def __init__(self, rows: datasets.Dataset, labels: CustomerLabels, on_unknown: str = ERROR, whole: bool = False):
        check_choice(on_unknown, "on_unknown", ON_UNKNOWN)
        batch = load_columns(rows, ["customer_id", "times"])
        times = batch.column("times")
        first = times[batch.starts]
        labels = replace(labels, times=np.full(len(labels), times.max() + 1)) if whole else labels
        check_reached(times, labels.times, "labels")
        row_indices = pd.Index(batch.column("customer_id")).get_indexer(labels.customer_ids)
        is_known = row_indices >= 0
        has_history = is_known & (first[row_indices] < labels.times)
        if on_unknown == ERROR and not has_history.all():
            first_bad = has_history.argmin()
            raise ValueError(
                f"{int((~has_history).sum())} labels are of times before any event of their customer, such as "
                f"{to_iso(labels.times[first_bad])} of {labels.customer_ids[first_bad]!r}, so that nothing is known "
                f"of them; {len(set(labels.customer_ids[~is_known]))} customers of the labels are not in the prepared "
                "data set: prepare the log with their events, or leave them out (--on_unknown drop)."
            )
        with_history = np.flatnonzero(has_history)
        if not len(with_history):
            raise ValueError(
                f"No label is left: none of the {len(labels)} has a customer of the prepared data set with an event "
                "before its time. Check the customer and time columns."
            )
        self.dropped = len(labels) - len(with_history)
        self.labels = labels.of(with_history)
        self.rows = PreparedRows(rows, row_indices[with_history])

    def histories(self, indices: IntArray, layout: InputLayout) -> Customers:
        """Reads prepared rows without the events from the label's time on."""
        labels = self.labels.of(indices)
        rows = self.rows.__getitems__([*indices]).before(labels.times, layout)
        rows.columns["label_columns"] = labels.columns.to_dict("records")
        return rows
