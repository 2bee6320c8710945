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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID
from modeling_mcm.data.cases import arrow_batches, flat_values, locate_events
from modeling_mcm.events_mcm import check_columns
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.training.scorer_counts import LabelEvents

CUSTOMERS_AT_ONCE = 1024
PAIR = 2**32  # a pair of ids as one number: the first times this, plus the second
LABELS_AT_ONCE = 64  # number of labels whose pairs are counted at a time, in a matrix of one row a customer
TABLES = re.compile(r"((?:.+\.)?scorer\.tables\.(\d+)\.)(neighbours|weights|counts)")


def customers_per_value(rows: Any, extractor: MCMFeatureExtractor) -> dict[str, NDArray[np.int64]]:
    """Counts how many customers have each value in the training period. Features that share the values of a column
    are counted together, because each of them tells that the customer has the value.

    `rows` are those of the data set that the checkpoint was trained on, from `load_prepared`. Returns for each
    categorical feature the counts, in the order of its vocabulary. Raises `ValueError` if the data set has no column
    of a feature, or an id that is not in its vocabulary.
    """
    sizes = {name: FIRST_VALUE_ID + len(values) for name, values in extractor.vocabularies.items()}
    profile = {feature["name"] for feature in extractor.features if feature.get("profile")}
    columns = {name: f"profile_{name}" if name in profile else f"feature_{name}" for name in sizes}
    shared = extractor.schema.shared_vocabularies
    counts = {name: np.zeros(size, np.int64) for name, size in sizes.items()}
    fix = "Give the one that the checkpoint was trained on."
    check_columns(rows.column_names, columns.values(), "The data set has", fix)
    for batch in arrow_batches(rows, ["visits", "validation_end", *columns.values()], CUSTOMERS_AT_ONCE):
        ends, (owner, index) = flat_values(batch, "validation_end"), locate_events(batch)
        pairs: dict[str, list[NDArray[np.int64]]] = {}
        for name, column in columns.items():
            ids, customers, trained = flat_values(batch, column).astype(np.int64), owner, index < ends[owner]
            if name in profile:
                customers, trained = np.arange(len(ends)), ends > 0
            if np.max(ids[trained], initial=0) >= sizes[name]:
                raise ValueError(
                    f"Feature {name!r} has id {ids.max()} in the data set and {sizes[name]} ids in the checkpoint: "
                    "give the data set that the checkpoint was trained on."
                )
            pairs.setdefault(shared[name], []).append(customers[trained] * sizes[name] + ids[trained])
        for name, arrays in pairs.items():
            counts[name] += np.bincount(np.unique(np.concatenate(arrays)) % sizes[name], minlength=sizes[name])
    return {name: counts[shared[name]][FIRST_VALUE_ID:] for name in counts}


def rare_values(
    counts: Mapping[str, NDArray[np.int64]], extractor: MCMFeatureExtractor, min_customers: int
) -> dict[str, list[str]]:
    """Selects the values that fewer than `min_customers` customers have, by the counts of [`customers_per_value`].
    Token types that MCM adds itself are left out."""
    own = set(extractor.schema.reserved_token_types)
    rare = {}
    for name, values in extractor.vocabularies.items():
        own_types = own if name == extractor.token_type_feature else set()
        pairs = zip(values, counts[name].tolist(), strict=True)
        rare[name] = [value for value, count in pairs if count < min_customers and value not in own_types]
    return rare


def hide_values(
    vocabularies: Mapping[str, Sequence[str]], hidden: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Replaces hidden values of the vocabularies by placeholders, so that ids and weights stay as they are. A hidden
    value of a customer's event is then read as unknown, and a score of it has the name of the placeholder. Raises
    `ValueError` if a value is not in its vocabulary, or a placeholder is already there."""
    result = {name: list(values) for name, values in vocabularies.items()}
    for name, values in hidden.items():
        indices = {value: index for index, value in enumerate(result.get(name, []))}
        for value in values:
            if value not in indices:
                raise ValueError(f"A value to hide is not in the vocabulary of {name!r}: count with its own data set.")
            placeholder = f"[hidden {FIRST_VALUE_ID + indices[value]}]"
            if placeholder in indices:
                raise ValueError(f"{name!r} has a value {placeholder!r} already: rename it in the log.")
            result[name][indices[value]] = placeholder
    return result


def shared_pairs(rows: Any, extractor: MCMFeatureExtractor, min_customers: int) -> dict[str, torch.Tensor]:
    """Selects for each task the pairs of labels of which at least `min_customers` customers have both in the training
    period; a label and itself are a pair, too. `rows` are as in [`customers_per_value`]. A pair is one number, label
    times `PAIR` plus label, and both directions are there."""
    sizes, result = dict(zip(extractor.feature_names, extractor.vocabulary_sizes, strict=True)), {}
    for task in extractor.tasks:
        events, size = LabelEvents.read(rows, task, sizes[task]), sizes[task]
        seen = np.unique(events.customer * size + events.label)  # a label counts once a customer
        customer, label = (torch.from_numpy(each) for each in np.divmod(seen, size))
        cells, shape = torch.stack([label, customer]), (size, len(rows))
        has = torch.sparse_coo_tensor(cells, torch.ones(len(seen)), shape, check_invariants=True)
        pairs = []
        for start in range(0, size, LABELS_AT_ONCE):
            block = (label >= start) & (label < start + LABELS_AT_ONCE)
            dense = torch.zeros(len(rows), LABELS_AT_ONCE)
            dense[customer[block], label[block] - start] = 1
            first, second = (torch.sparse.mm(has, dense).T >= min_customers).nonzero(as_tuple=True)
            pairs.append((first + start) * PAIR + second)
        result[task] = torch.cat(pairs)
    return result


def hide_pairs(
    tables: Mapping[str, torch.Tensor], tasks: Sequence[str], shared: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], int]:
    """Removes pairs that are not in `shared`, which [`shared_pairs`] gives, from the scorer's tables without any
    trace, and the counts of labels that too few customers have. Returns the tables that changed, and the number of
    hidden weights."""
    changed: dict[str, torch.Tensor] = {}
    number = 0
    for name, table in tables.items():
        match = TABLES.fullmatch(name)
        if match and match[3] == "neighbours":
            counts, weights = f"{match[1]}counts", f"{match[1]}weights"
            pairs, labels = shared[tasks[int(match[2])]], torch.arange(table.shape[1])
            gone = ~torch.isin(labels[:, None] * PAIR + table, pairs)
            order = gone.int().argsort(dim=2, stable=True)  # a gap would tell of a pair
            changed |= {each: tables[each].masked_fill(gone, 0).gather(2, order) for each in (name, weights)}
            changed[counts] = tables[counts].masked_fill(~torch.isin(labels * PAIR + labels, pairs), 0)
            number += int((gone & (tables[weights] != 0)).sum())
    return changed, number
