# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Features as a schema file names them: which column each feature reads, and how.

An entry of `features` is one feature, or several features that read one column: the values of a list such as
"Action|Comedy" (`max_items`), or the levels of a path such as "appliances.kitchen.kettle" (`levels`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from modeling_mcm.events_mcm import check_keys
from modeling_mcm.schema_mcm import (
    CATEGORICAL,
    DERIVED_KINDS,
    FEATURE_KINDS,
    KINDS_WITH,
    FeatureSpec,
    check_choice,
    check_integer,
    check_text,
)

MOST_VALUES = 10_000_000  # values of one feature: one process holds them in memory, and each is a row of weights
MOST_PARTS = 100  # values of one event, or levels of one path; each is a feature of the model
LIMITS = {  # of whole numbers; every event is compared with each edge of a bin, and no log has more events
    "min_count": (1, 10**12),
    "max_values": (1, MOST_VALUES),
    "bins": (2, 1_000),
    "item": (1, MOST_PARTS),
    "level": (1, MOST_PARTS),
}
SEVERAL_FEATURES = ("max_items", "levels")  # an entry of the schema with one of these keys is several features


def read_feature(given: Mapping[str, Any], where: str) -> FeatureSpec:
    """Reads one feature of `features` or `profile`. Raises `ValueError` if a key or a value is wrong. The message
    names the entry, the key and the fix."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {given!r}; write it as a mapping such as {{name: brand}}.")
    check_keys(given, [f.name for f in fields(FeatureSpec)], where)
    given = {key: value for key, value in given.items() if value is not None}
    if "name" not in given:
        raise ValueError(f"{where} has no `name`; add one.")
    check_text(given["name"], f"{where}: name")
    where = f"{where} ({given['name']})"
    kind = given.get("kind", CATEGORICAL)
    check_choice(kind, f"{where}: kind", FEATURE_KINDS)
    for key, kinds in KINDS_WITH.items():
        if key not in given:
            continue
        if kind not in kinds:
            raise ValueError(f"{where}: `{key}` is for {' and '.join(kinds)} features; remove it here.")
        if key in LIMITS:
            check_integer(given[key], f"{where}: {key}", *LIMITS[key])
        else:
            check_text(given[key], f"{where}: {key}")
    if "item" in given and "level" in given:
        raise ValueError(f"{where}: a column has several values or is a path; remove `item` or `level`.")
    if "separator" in given and not {"item", "level"} & {*given}:
        raise ValueError(
            f"{where}: `separator` alone says nothing; add `max_items` where the column has several values, such as "
            "'Action|Comedy', or `levels` where it is a path, such as 'appliances.kitchen.kettle'."
        )
    if "level" in given and "separator" not in given:
        raise ValueError(f"{where}: there is no `separator` between the levels; add one, such as {{separator: '.'}}.")
    return FeatureSpec(**({} if kind in DERIVED_KINDS else {"column": given["name"]}) | given)


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
