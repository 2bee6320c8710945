# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts values, and pairs of values, that few customers have, and hides them in what is published if that is wanted.

A checkpoint holds no customer, but it lists every value that it knows, such as a brand that one household buys or a
town that one customer lives in. `min_count` of the event schema does not protect them: it counts events, and one
customer can have many. A customer is protected by the number of others with the same value (k-anonymity), which can
only be counted in the prepared data set. The counted memory lists which labels came together, so that even a pair of
frequent values can reveal one customer.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID
from modeling_mcm.events_mcm import check_columns
from modeling_mcm.processing_mcm import MCMFeatureExtractor

BATCH = 1024
PAIR = 2**32  # a pair of ids as one number: the first times this, plus the second
FOLLOWERS = re.compile(r"((?:.+\.)?counted_memory\.follower_tables\.(\d+)\.)followers")
RELATED = re.compile(r"((?:.+\.)?counted_memory\.(?:habit|new)_tables\.(\d+)\.)related")
COUNTED = re.compile(r"(?:.+\.)?counted_memory\.(?:follower|habit|new)_tables\..+")


def customers_per_value(rows: Any, extractor: MCMFeatureExtractor) -> dict[str, NDArray[np.int64]]:
    """Counts how many customers have each value of each categorical feature in the training period.

    Features that share the values of a column are counted together, because each of them tells that the customer has
    the value.

    `rows` are those of the data set that the checkpoint was trained on, from `load_prepared`. Returns for each
    categorical feature the counts, in the order of its vocabulary. Raises `ValueError` if the data set has no column
    of a feature, or an id that is not in its vocabulary.
    """
    counts = {
        name: np.zeros(FIRST_VALUE_ID + len(values), np.int64) for name, values in extractor.vocabularies.items()
    }
    profile = {feature["name"] for feature in extractor.features if feature.get("profile")}
    columns = {name: f"profile_{name}" if name in profile else f"feature_{name}" for name in counts}
    shared = extractor.shared_vocabularies
    fix = "Give the one that the checkpoint was trained on."
    check_columns(rows.column_names, columns.values(), "The data set has", fix)
    for batch in rows.with_format("arrow").iter(batch_size=BATCH):
        ends = batch["validation_end"].to_numpy()
        pairs: dict[str, list[NDArray[np.int64]]] = {}
        for name, column in columns.items():
            values = batch[column].combine_chunks()
            if name in profile:
                owner, ids = np.flatnonzero(ends > 0), values.to_numpy(zero_copy_only=False)[ends > 0]
            else:
                lengths = values.value_lengths().to_numpy()
                owner, ids = np.repeat(np.arange(len(ends)), lengths), values.flatten().to_numpy()
                index = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                trained = index < ends[owner]
                owner, ids = owner[trained], ids[trained]
            if len(ids) and ids.max() >= len(counts[name]):
                raise ValueError(
                    f"Feature {name!r} has id {ids.max()} in the data set and {len(counts[name])} ids in the "
                    "checkpoint: give the data set that the checkpoint was trained on."
                )
            pairs.setdefault(shared[name], []).append(owner.astype(np.int64) * len(counts[name]) + ids)
        for name, arrays in pairs.items():
            counts[name] += np.bincount(
                np.unique(np.concatenate(arrays)) % len(counts[name]), minlength=len(counts[name])
            )
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


def shared_pairs(followers: pa.Table, min_customers: int) -> dict[str, torch.Tensor]:
    """Selects for each task the pairs of labels that at least `min_customers` customers have. `followers` is
    `followers.parquet` of the training data. A pair is one number, label times `PAIR` plus follower."""
    frequent = followers.filter(pc.greater_equal(followers["customers"], min_customers))
    pairs = torch.as_tensor(frequent["label"].to_numpy().astype(np.int64) * PAIR + frequent["follower"].to_numpy())
    tasks = np.asarray(frequent["task"].to_pylist(), object)
    return {task: pairs[torch.as_tensor(tasks == task)] for task in sorted(set(tasks))}


class HiddenPairs(NamedTuple):
    """How many entries of the counted memory are not published."""

    followers: int  # pairs of a label and a follower; each direction counts
    related: int  # weights of related labels from or to a hidden value


def hide_pairs(
    tables: Mapping[str, torch.Tensor],
    tasks: Sequence[str],
    shared: Mapping[str, torch.Tensor],
    hidden: Mapping[str, Sequence[int]],
) -> tuple[dict[str, torch.Tensor], HiddenPairs]:
    """Removes pairs that too few customers have from the tables of the counted memory, without any trace; the rows of
    the tables stay in ascending order. Returns the tables that changed, and the number of hidden entries."""
    changed: dict[str, torch.Tensor] = {}
    pairs = related = 0

    def is_hidden(task: str, size: int) -> torch.Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        mask[torch.as_tensor(list(hidden.get(task, ())), dtype=torch.long)] = True
        return mask

    for name, table in tables.items():
        if match := FOLLOWERS.fullmatch(name):
            task, counts_name = tasks[int(match[2])], f"{match[1]}counts"
            ids, label = table.long(), torch.arange(len(table))[:, None]
            mask = is_hidden(task, len(table))
            is_shared = torch.isin(label * PAIR + ids, shared.get(task, torch.zeros(0, dtype=torch.long)))
            is_shared &= (ids >= FIRST_VALUE_ID) & ~mask[ids] & ~mask[label]
            number = int(((ids >= FIRST_VALUE_ID) & ~is_shared).sum())
            if number:
                order = torch.where(is_shared, ids, 0).argsort(dim=1, stable=True)
                changed[name] = torch.where(is_shared, table, 0).gather(1, order)
                changed[counts_name] = torch.where(is_shared, tables[counts_name], 0).gather(1, order)
            pairs += number
        elif match := RELATED.fullmatch(name):
            weights_name = f"{match[1]}weights"
            mask = is_hidden(tasks[int(match[2])], len(table))
            gone = (mask[:, None] | mask[table.long()]) & (tables[weights_name] != 0)
            if gone.any():
                changed[name], changed[weights_name] = (
                    tables[key].masked_fill(gone, 0) for key in (name, weights_name)
                )
            related += int(gone.sum())
    return changed, HiddenPairs(pairs, related)
