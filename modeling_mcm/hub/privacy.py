# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What a published vocabulary reveals: values that few customers have, counted, and hidden where one wants that.

A checkpoint holds no customer, but it lists every value that it knows: a brand that one household buys, a town that
one customer lives in. `min_count` of the event schema counts events, and one customer can make many; what protects a
customer is how many others share the value (k-anonymity), which only the prepared data set can tell.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_mcm.processing_mcm import FIRST_VALUE_ID, MCMFeatureExtractor

BATCH = 1024


def customers_per_value(rows: Any, extractor: MCMFeatureExtractor) -> dict[str, NDArray[np.int64]]:
    """How many customers have each value of each categorical feature in the training period.

    Features that share the values of a column count together: the customer has the value, whatever its place.

    Args:
        rows: what `load_prepared` gives of the data set that the checkpoint was trained on.
        extractor: the checkpoint's feature extractor.

    Returns:
        For each categorical feature an array in the order of its vocabulary.

    Raises:
        ValueError: if the data set has no column of a feature, or an id that its vocabulary does not have.
    """
    counts = {
        name: np.zeros(FIRST_VALUE_ID + len(values), np.int64) for name, values in extractor.vocabularies.items()
    }
    profile = {feature["name"] for feature in extractor.features if feature.get("profile")}
    columns = {name: f"profile_{name}" if name in profile else f"feature_{name}" for name in counts}
    shared = extractor.shared_vocabularies
    if missing := [column for column in columns.values() if column not in rows.column_names]:
        raise ValueError(f"The data set has no columns {missing}: give the one that the checkpoint was trained on.")
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
                place = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                trained = place < ends[owner]
                owner, ids = owner[trained], ids[trained]
            if len(ids) and ids.max() >= len(counts[name]):
                raise ValueError(
                    f"Feature {name!r} has id {ids.max()} in the data set and {len(counts[name])} ids in the "
                    "checkpoint: give the data set that the checkpoint was trained on."
                )
            pairs.setdefault(shared[name], []).append(owner.astype(np.int64) * len(counts[name]) + ids)
        for name, found in pairs.items():
            counts[name] += np.bincount(
                np.unique(np.concatenate(found)) % len(counts[name]), minlength=len(counts[name])
            )
    return {name: counts[shared[name]][FIRST_VALUE_ID:] for name in counts}


def rare_values(
    counts: Mapping[str, NDArray[np.int64]], extractor: MCMFeatureExtractor, min_customers: int
) -> dict[str, list[str]]:
    """The values that fewer than `min_customers` customers have; token types that MCM adds itself are not counted.

    Args:
        counts: what `customers_per_value` gives.
        extractor: the checkpoint's feature extractor.
        min_customers: k of k-anonymity.
    """
    own = set(extractor._reserved_token_types)
    rare = {}
    for name, values in extractor.vocabularies.items():
        kept = own if name == extractor.token_type_feature else set()
        pairs = zip(values, counts[name].tolist(), strict=True)
        rare[name] = [value for value, count in pairs if count < min_customers and value not in kept]
    return rare


def hide_values(
    vocabularies: Mapping[str, Sequence[str]], hidden: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """The vocabularies with a placeholder for each hidden value, in its place: no id and no weight moves.

    A customer's event with a hidden value is then read as unknown, and a score of it names the placeholder.

    Raises:
        ValueError: if a value is not in its vocabulary, or a placeholder is there already.
    """
    result = {name: list(values) for name, values in vocabularies.items()}
    for name, values in hidden.items():
        places = {value: place for place, value in enumerate(result.get(name, []))}
        for value in values:
            if value not in places:
                raise ValueError(f"A value to hide is not in the vocabulary of {name!r}: count with its own data set.")
            placeholder = f"[hidden {FIRST_VALUE_ID + places[value]}]"
            if placeholder in places:
                raise ValueError(f"{name!r} has a value {placeholder!r} already: rename it in the log.")
            result[name][places[value]] = placeholder
    return result


__all__ = ["customers_per_value", "hide_values", "rare_values"]
