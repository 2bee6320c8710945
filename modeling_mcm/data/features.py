# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Features as a schema file names them: which column each feature reads, and how.

An entry of `features` is one feature, or several features that read one column: the values of a list such as
"Action|Comedy" (`max_items`), or the levels of a path such as "appliances.kitchen.kettle" (`levels`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from modeling_mcm.events_mcm import check_keys
from modeling_mcm.schema_mcm import (
    BINNED_KINDS,
    CATEGORICAL,
    DEFAULT_BINS,
    DERIVED_KINDS,
    FEATURE_KINDS,
    NUMERIC,
    PART_KEYS,
    FeatureSpec,
    check_integer,
    check_text,
)

MOST_BINS = 1_000  # every event is compared with each edge
MOST_VALUES = 10_000_000  # values of one feature: one process holds them in memory, and each is a row of weights
MOST_PARTS = 100  # values of one event, or levels of one path; each is a feature of the model
MOST_COUNT = 10**12  # no log has more events
SEVERAL_FEATURES = ("max_items", "levels")  # an entry of the schema with one of these keys is several features


def check_memory_limit(value: Any) -> None:
    """Checks that `memory_limit` is a size of memory that DuckDB can read, such as 4GB, 512MiB or 80%. Raises
    `ValueError` if the value is no such size."""
    pattern = r"\s*([0-9]+(\.[0-9]+)?)\s*(([kmgt]i?)?b|%)\s*"
    match = re.fullmatch(pattern, value, re.IGNORECASE | re.ASCII) if isinstance(value, str) else None
    if match is None or float(match[1]) == 0 or (match[3] == "%" and float(match[1]) > 100):
        raise ValueError(f"`memory_limit` is {value!r}; give a size such as 4GB, 512MiB or 80%.")


def read_feature(given: Mapping[str, Any], where: str) -> FeatureSpec:
    """Reads one feature of `features` or `profile`. Raises `ValueError` if a key or a value is wrong. The message
    names the entry, the key and the fix."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {given!r}; write it as a mapping such as {{name: brand}}.")
    check_keys(given, [f.name for f in fields(FeatureSpec)], where)
    if "name" not in given:
        raise ValueError(f"{where} has no `name`; add one.")
    check_text(given["name"], f"{where}: name")
    where = f"{where} ({given['name']})"
    kind = given.get("kind", CATEGORICAL)
    if kind not in FEATURE_KINDS:
        raise ValueError(f"{where}: `kind` is {kind!r}; choose one of {', '.join(FEATURE_KINDS)}.")
    if kind in DERIVED_KINDS and given.get("column") is not None:
        raise ValueError(f"{where}: kind {kind!r} is computed from the time; remove `column`.")
    for key in ("min_count", "max_values"):
        if key in given and kind != CATEGORICAL:
            raise ValueError(f"{where}: `{key}` is for categorical features; remove it from this {kind} feature.")
    if "bins" in given and kind not in BINNED_KINDS:
        raise ValueError(f"{where}: `bins` is for {' and '.join(BINNED_KINDS)} features; remove it here.")
    check_integer(given.get("min_count", 1), f"{where}: min_count", 1, MOST_COUNT)
    check_integer(given.get("bins", DEFAULT_BINS), f"{where}: bins", 2, MOST_BINS)
    if given.get("max_values") is not None:
        check_integer(given["max_values"], f"{where}: max_values", 1, MOST_VALUES)
    _check_part(given, kind, where)
    column = None if kind in DERIVED_KINDS else given.get("column") or given["name"]
    if column is not None:
        check_text(column, f"{where}: column")
    if given.get("factor") is not None:
        check_text(given["factor"], f"{where}: factor")
        if kind != NUMERIC:
            raise ValueError(f"{where}: `factor` is for numeric features; remove it from this {kind} feature.")
    return FeatureSpec(**{**given, "kind": kind, "column": column})


def _check_part(entry: Mapping[str, Any], kind: str, where: str) -> None:
    """Raises `ValueError` where `separator`, `item` and `level` do not fit together."""
    part = [key for key in PART_KEYS if entry.get(key) is not None]
    if part and kind != CATEGORICAL:
        raise ValueError(f"{where}: `{part[0]}` is for categorical features; remove it from this {kind} feature.")
    if "separator" in part:
        check_text(entry["separator"], f"{where}: separator")
    for key in part:
        if key != "separator":
            check_integer(entry[key], f"{where}: {key}", 1, MOST_PARTS)
    if "item" in part and "level" in part:
        raise ValueError(f"{where}: a column has several values or is a path; remove `item` or `level`.")
    if part == ["separator"]:
        raise ValueError(
            f"{where}: `separator` alone says nothing; add `max_items` where the column has several values, such as "
            "'Action|Comedy', or `levels` where it is a path, such as 'appliances.kitchen.kettle'."
        )
    if part == ["level"]:
        raise ValueError(f"{where}: there is no `separator` between the levels; add one, such as {{separator: '.'}}.")


def read_features(entries: Sequence[Any], key: str) -> tuple[FeatureSpec, ...]:
    """Reads all entries of `features` or `profile`; see [`read_feature`]."""
    features: list[FeatureSpec] = []
    for index, entry in enumerate(entries):
        where = f"Entry {index} of `{key}`"
        features += [read_feature(each, where) for each in _expanded(entry, where)]
    return tuple(features)


def _expanded(entry: Any, where: str) -> list[Any]:
    """One mapping per feature: an entry with `max_items` or `levels` stands for several features."""
    if not isinstance(entry, Mapping):
        return [entry]
    entry = {key: value for key, value in entry.items() if value is not None or key not in SEVERAL_FEATURES}
    several = [key for key in SEVERAL_FEATURES if key in entry]
    if not several:
        check_keys(entry, [*(f.name for f in fields(FeatureSpec)), *SEVERAL_FEATURES], where)
        return [entry]
    if len(several) == 2 or "item" in entry or "level" in entry:
        raise ValueError(f"{where}: a column has several values or is a path; give `max_items` or `levels` alone.")
    rest = {name: value for name, value in entry.items() if name not in SEVERAL_FEATURES}
    name = rest.get("name")
    if name is None:
        raise ValueError(f"{where} has no `name`; add one.")
    rest.setdefault("column", name)
    if several == ["max_items"]:
        check_integer(entry["max_items"], f"{where} ({name}): max_items", 1, MOST_PARTS)
        items = range(1, entry["max_items"] + 1)
        return [rest | {"name": name if item == 1 else f"{name}_{item}", "item": item} for item in items]
    levels = entry["levels"]
    if not isinstance(levels, list | tuple) or not levels:
        raise ValueError(
            f"{where} ({name}): `levels` is {levels!r}; write the names of the features as a list, the top level "
            "first, such as [department, category]."
        )
    check_integer(len(levels), f"{where} ({name}): the number of levels", 1, MOST_PARTS)
    return [rest | {"name": level, "level": number} for number, level in enumerate(levels, start=1)]
