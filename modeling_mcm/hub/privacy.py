# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts values, and pairs of values, that few customers have, and hides them in what is published if that is wanted.

A checkpoint holds no customer, but it lists every value that it knows, such as a brand that one household buys or a
town that one customer lives in. `min_count` of the event schema does not protect them: it counts events, and one
customer can have many. A customer is protected by the number of others with the same value (k-anonymity), which can
only be counted in the prepared data set. The scorer's tables list which labels go together, so that even a pair of
frequent values can reveal one customer: a pair is published if enough customers have both of its labels.

Not promised: that so many customers had the two labels close to each other or in an order, or that the other weights,
trained with the rare values too, tell nothing of a customer. That needs differential privacy.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from scipy.sparse import csr_array

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID
from modeling_mcm.evaluation.histories import read_history
from modeling_mcm.events_mcm import IntArray
from modeling_mcm.files_mcm import Tensors
from modeling_mcm.processing_mcm import MCMFeatureExtractor

PAIR = 2**32  # a pair of ids as one number: the first times this, plus the second
LABELS_AT_ONCE = 1024  # whose pairs are counted at a time
TABLES = re.compile(r"((?:.+\.)?scorer\.tables\.(\d+)\.)(neighbours|weights|counts)")


@dataclass(frozen=True)
class Exposure:
    """How many customers have the values of the vocabularies, as counted on the training data.

    Args:
        min_customers (`int`): Number k of customers; a value of fewer is rare.
        rare (`Mapping[str, int]`): Number of rare values of each categorical feature.
        hidden (`bool`): Whether rare values are published as placeholders.
        pairs (`int`): Number of weights of rare pairs of labels that were left out.
    """

    min_customers: int
    rare: Mapping[str, int]
    hidden: bool
    pairs: int = 0


def rare_values(rows: Dataset, extractor: MCMFeatureExtractor, min_customers: int) -> dict[str, list[str]]:
    """Selects the values of each categorical feature that fewer than `min_customers` customers have in the training
    period, without the token types that MCM adds itself. Features that share the values of a column are counted
    together, because each of them tells that the customer has the value.

    `rows` are those of the data set that the checkpoint was trained on (`check_vocabularies`), from `load_prepared`.
    """
    shared, rare = extractor.schema.shared_vocabularies, dict[str, list[str]]()
    profile = {spec.name for spec in extractor.schema.profile}
    pairs: dict[str, list[IntArray]] = {}
    for name, values in extractor.vocabularies.items():
        if name in profile:
            customers = np.flatnonzero(np.asarray(rows["validation_end"]))
            ids = np.asarray(rows[f"profile_{name}"], np.int64)[customers]
        else:
            events = read_history(rows, name, kind="feature")
            customers, ids = events.customer, events.label
        pairs.setdefault(shared[name], []).append(customers * (FIRST_VALUE_ID + len(values)) + ids)
    for name, values in extractor.vocabularies.items():
        size = FIRST_VALUE_ID + len(values)
        counts = np.bincount(np.unique(np.concatenate(pairs[shared[name]])) % size, minlength=size)
        few = np.setdiff1d(np.flatnonzero(counts < min_customers), extractor.own_ids(name))
        rare[name] = [values[index - FIRST_VALUE_ID] for index in few]
    return rare


def hide_values(
    vocabularies: Mapping[str, Sequence[str]], hidden: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Replaces hidden values of the vocabularies by placeholders, so that ids and weights stay as they are. A hidden
    value of a customer's event is then read as unknown, and a score of it has the name of the placeholder. Raises
    `ValueError` if a placeholder is already there."""
    result = {}
    for name, values in vocabularies.items():
        gone = {*hidden[name]}
        result[name] = [
            f"[hidden {index}]" if value in gone else value for index, value in enumerate(values, FIRST_VALUE_ID)
        ]
        if len({*result[name]}) < len(values):
            raise ValueError(f"{name!r} has a value such as '[hidden {FIRST_VALUE_ID}]': rename it in the log.")
    return result


def shared_pairs(rows: Dataset, extractor: MCMFeatureExtractor, min_customers: int) -> Tensors:
    """Selects for each task the pairs of labels of which at least `min_customers` customers have both in the training
    period; a label and itself are a pair, too. `rows` are as in [`rare_values`]. A pair is one number, label
    times `PAIR` plus label, and both directions are there."""
    shared = {}
    for task in extractor.tasks:
        size = FIRST_VALUE_ID + len(extractor.vocabularies[task])
        events, pairs = read_history(rows, task, kind="feature"), []
        label, customer = np.unique([events.label, events.customer], axis=1)  # a label counts once a customer
        has = csr_array((np.ones(len(label), np.int64), (label, customer)), (size, len(rows)))
        for start in range(0, size, LABELS_AT_ONCE):
            first, second = (has[start : start + LABELS_AT_ONCE] @ has.T >= min_customers).nonzero()
            pairs.append((first.astype(np.int64) + start) * PAIR + second)
        shared[task] = torch.from_numpy(np.concatenate(pairs))
    return shared


def hide_pairs(tables: Tensors, tasks: Sequence[str], shared: Tensors) -> tuple[Tensors, int]:
    """Removes pairs that are not in `shared`, which [`shared_pairs`] gives, from the scorer's tables without any
    trace, and the counts of labels that too few customers have. Returns the tables that changed, and the number of
    hidden weights."""
    changed: Tensors = {}
    number = 0
    for name, table in tables.items():
        match = TABLES.fullmatch(name)
        if match and match[3] == "neighbours":
            counts, weights = f"{match[1]}counts", f"{match[1]}weights"
            pairs, labels = shared[tasks[int(match[2])]], torch.arange(table.shape[1])
            gone = ~torch.isin(labels[:, None] * PAIR + table, pairs)
            order = gone.int().argsort(stable=True)  # a gap would tell of a pair
            changed |= {each: tables[each].masked_fill(gone, 0).gather(2, order) for each in (name, weights)}
            changed[counts] = tables[counts].masked_fill(~torch.isin(labels * PAIR + labels, pairs), 0)
            number += int((gone & (tables[weights] != 0)).sum())
    return changed, number
