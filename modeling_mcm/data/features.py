# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Features of the event schema: which column each one reads, and how.

An entry of `features` is one feature, or several that read one column: the values of a list such as "Action|Comedy"
(`max_items`), or the levels of a path such as "appliances.kitchen.kettle" (`levels`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

CATEGORICAL, NUMERIC = "categorical", "numeric"
HOUR, WEEKDAY, DAYS_SINCE_VISIT = "hour", "weekday", "days_since_visit"
KINDS = (CATEGORICAL, NUMERIC, HOUR, WEEKDAY, DAYS_SINCE_VISIT)
DERIVED_KINDS = (HOUR, WEEKDAY, DAYS_SINCE_VISIT)
BINNED_KINDS = (NUMERIC, DAYS_SINCE_VISIT)
DEFAULT_BINS = 16
MOST_BINS = 1_000  # each edge is a comparison of every event
MOST_VALUES = 10_000_000  # of one feature: they go through the memory of one process, and are rows of weights
MOST_PARTS = 100  # of one column: values of an event, levels of a path; each is a feature of the model
MOST_COUNT = 10**12  # more events than a log has
PART_KEYS = ("separator", "item", "level")  # what a feature reads of its column
SEVERAL_FEATURES = ("max_items", "levels")  # keys by which an entry of the schema is several features


def check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}."
            raise ValueError(f"{where} has the unknown key {key!r}; {hint}")


def check_integer(value: Any, key: str, least: int, most: int) -> None:
    """Raises `ValueError` for what is no whole number from `least` to `most`; a very long one is shown in part."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        shown = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else f"{value:.3e}"
        limit = f" and at most {most:,}" if isinstance(value, int) and value > most else ""
        raise ValueError(f"`{key}` is {shown}; give a whole number of at least {least}{limit}.")


def check_size(value: Any, key: str) -> None:
    """Raises `ValueError` for what is no size of memory that DuckDB knows, such as 4GB, 512MiB or 80%."""
    pattern = r"\s*([0-9]+(\.[0-9]+)?)\s*(([kmgt]i?)?b|%)\s*"
    found = re.fullmatch(pattern, value, re.IGNORECASE | re.ASCII) if isinstance(value, str) else None
    if found is None or float(found[1]) == 0 or (found[3] == "%" and float(found[1]) > 100):
        raise ValueError(f"`{key}` is {value!r}; give a size such as 4GB, 512MiB or 80%.")


def check_text(value: Any, key: str) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"`{key}` is {value!r}; give a name in quotes.")


@dataclass(frozen=True)
class FeatureSpec:
    """One feature of an event or of a customer's profile.

    Args:
        name (`str`): Name of the feature, unique in the schema.
        kind (`str`): `categorical`; `numeric` (quantile bins); or derived from the time: `hour`, `weekday`,
            `days_since_visit` (start of this visit minus start of the visit before, in days; binned).
        column (`str`, *optional*): Column of the log; the name if not given. Derived kinds have none.
        min_count (`int`): Values seen less often in the training period become the unknown id (categorical).
        max_values (`int`, *optional*): Most values that are kept, the most frequent; values as frequent as each
            other stay or go together (categorical).
        bins (`int`): Number of quantile bins (numeric, days_since_visit).
        separator (`str`, *optional*): What stands between the values or the levels in the column's text.
        item (`int`, *optional*): Of a column with several values in an event, the place of the one that is read, from
            1, the most frequent in the training period first. Without `separator` the column holds lists. Features of
            one column share its vocabulary.
        level (`int`, *optional*): Of a column with paths, how many levels are read, from 1. The value is the path up
            to there, so that equal words under different parents differ.
    """

    name: str
    kind: str = CATEGORICAL
    column: str | None = None
    min_count: int = 1
    bins: int = DEFAULT_BINS
    max_values: int | None = None
    separator: str | None = None
    item: int | None = None
    level: int | None = None

    @property
    def is_derived(self) -> bool:
        """Whether the feature is computed from the time and so has no column of its own."""
        return self.kind in DERIVED_KINDS

    @property
    def is_constant(self) -> bool:
        """Whether the feature is the token type of a log without one, the same for every event."""
        return self.kind == CATEGORICAL and self.column is None

    @property
    def part(self) -> dict[str, Any]:
        """`separator`, `item` and `level`, where the feature reads a part of its column."""
        return {key: getattr(self, key) for key in PART_KEYS if getattr(self, key) is not None}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], where: str) -> FeatureSpec:
        """Reads one entry of `features` or `profile`; raises `ValueError` naming the entry and the key."""
        if not isinstance(given, Mapping):
            raise ValueError(f"{where} is {given!r}; write it as a mapping such as {{name: brand}}.")
        check_keys(given, [f.name for f in fields(cls)], where)
        if "name" not in given:
            raise ValueError(f"{where} has no `name`; add one.")
        check_text(given["name"], f"{where}: name")
        where = f"{where} ({given['name']})"
        kind = given.get("kind", CATEGORICAL)
        if kind not in KINDS:
            raise ValueError(f"{where}: `kind` is {kind!r}; choose one of {', '.join(KINDS)}.")
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
        return cls(**{**given, "kind": kind, "column": column})

    def to_dict(self) -> dict[str, Any]:
        """The keys that mean something for this kind; `from_dict` reads them back to an equal feature."""
        out: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if not self.is_derived:
            out["column"] = self.column
        if self.kind == CATEGORICAL:
            out |= {"min_count": self.min_count, "max_values": self.max_values} | self.part
        if self.kind in BINNED_KINDS:
            out["bins"] = self.bins
        return out


def _check_part(given: Mapping[str, Any], kind: str, where: str) -> None:
    """Whether `separator`, `item` and `level` fit together."""
    part = [key for key in PART_KEYS if given.get(key) is not None]
    if part and kind != CATEGORICAL:
        raise ValueError(f"{where}: `{part[0]}` is for categorical features; remove it from this {kind} feature.")
    if "separator" in part:
        check_text(given["separator"], f"{where}: separator")
    for key in part:
        if key != "separator":
            check_integer(given[key], f"{where}: {key}", 1, MOST_PARTS)
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
    """The features of all entries of `features` or `profile`; raises `ValueError` naming the entry and the key."""
    found: list[FeatureSpec] = []
    for place, entry in enumerate(entries):
        where = f"Entry {place} of `{key}`"
        found += [FeatureSpec.from_dict(each, where) for each in _expanded(entry, where)]
    return tuple(found)


def _expanded(entry: Any, where: str) -> list[Any]:
    """One mapping a feature: an entry with `max_items` or `levels` is several."""
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
        places = range(1, entry["max_items"] + 1)
        return [rest | {"name": name if item == 1 else f"{name}_{item}", "item": item} for item in places]
    levels = entry["levels"]
    if not isinstance(levels, list | tuple) or not levels:
        raise ValueError(
            f"{where} ({name}): `levels` is {levels!r}; write the names of the features as a list, the top level "
            "first, such as [department, category]."
        )
    check_integer(len(levels), f"{where} ({name}): the number of levels", 1, MOST_PARTS)
    return [rest | {"name": level, "level": place} for place, level in enumerate(levels, start=1)]


def value_places(specs: Sequence[FeatureSpec]) -> list[int]:
    """Places of the event features whose value is kept beside its bin."""
    return [place for place, spec in enumerate(specs) if spec.kind == NUMERIC]


def raw_places(specs: Sequence[FeatureSpec]) -> list[int]:
    """Of each feature the place of the one whose raw column is stored for it: itself, or the first `item` of a column.

    Raises:
        ValueError: Features of one column with several values do not agree in what they share.
    """
    first: dict[str | None, int] = {}
    places: list[int] = []
    for place, spec in enumerate(specs):
        source = place if spec.item is None else first.setdefault(spec.column, place)
        other = specs[source]
        for key in ("separator", "min_count", "max_values"):
            if getattr(spec, key) != getattr(other, key):
                raise ValueError(
                    f"Features {other.name!r} and {spec.name!r} share the values of column {spec.column!r}, and "
                    f"`{key}` is {getattr(other, key)!r} and {getattr(spec, key)!r}; write the same."
                )
        if source != place and spec.item in [specs[k].item for k in range(place) if places[k] == source]:
            raise ValueError(f"Two features read `item` {spec.item} of column {spec.column!r}; remove {spec.name!r}.")
        places.append(source)
    return places
