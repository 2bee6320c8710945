# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The event schema: which column of an event log is the customer, the time, a feature or a task.

A schema is a small YAML file, so a new log needs a file and no code. Everything that can be wrong in the file is
reported here, before any data are read. `docs/event_schema.md` explains each key with a worked example.

An entry of `features` is one feature, or several features that read one column: the values of a list such as
"Action|Comedy" (`max_items`), or the levels of a path such as "appliances.kitchen.kettle" (`levels`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import Path

from modeling_mcm.events_mcm import EPOCH, check_keys, naming, to_seconds, to_text
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import (
    CATEGORICAL,
    DERIVED_KINDS,
    FEATURE_KINDS,
    KINDS_WITH,
    MOST_PERIOD_EVENTS,
    NUMERIC,
    FeatureSpec,
    LogSchema,
    check_choice,
    check_integer,
    check_text,
    read_zone,
)

from .tables import read_yaml
from .text_files import TextFormat

NO_CUTOFFS = {"validation": datetime(9999, 1, 1), "test": datetime(9999, 1, 2)}
"""Cutoffs that no event reaches, for a schema by which nothing is split by time."""
MOST_EVENTS_PER_CUSTOMER = 100_000_000  # the lists of a customer's row have 32-bit indices
LEAVE_ONE_OUT = "leave_one_out"
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
REQUIRED_KEYS = ("customer", "features", "tasks", "cutoffs")


def read_features(entries: Sequence, key: str) -> tuple[FeatureSpec, ...]:
    """Reads all entries of `features` or `profile`. Raises `ValueError` if a key or a value is wrong. The message
    names the entry, the key and the fix."""
    known, features = [*(f.name for f in fields(FeatureSpec)), *SEVERAL_FEATURES], list[FeatureSpec]()
    for index, entry in enumerate(entries):
        where = f"Entry {index} of `{key}`"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} is {entry!r}; write it as a mapping such as {{name: brand}}.")
        check_keys(entry, known, where)
        given = {name: value for name, value in entry.items() if value is not None}
        if "name" not in given:
            raise ValueError(f"{where} has no `name`; add one.")
        where += f" ({given['name']})"
        features += [read_feature(each, where) for each in _expand(given, where)]
    return tuple(features)


def _expand(given: dict, where: str) -> list[dict]:
    """One dict per feature: an entry with `max_items` or `levels` stands for several features."""
    items, levels = (given.pop(key, None) for key in SEVERAL_FEATURES)
    if items is None and levels is None:
        return [given]
    if None not in (items, levels) or "item" in given or "level" in given:
        raise ValueError(f"{where}: a column has several values or is a path; give `max_items` or `levels` alone.")
    given = {"column": given["name"]} | given
    if items is not None:
        check_integer(items, f"{where}: max_items", 1, MOST_PARTS)
        names = [given["name"], *(f"{given['name']}_{item}" for item in range(2, items + 1))]
    elif isinstance(levels, list | tuple) and levels:
        check_integer(len(levels), f"{where}: the number of levels", 1, MOST_PARTS)
        names = [*levels]
    else:
        raise ValueError(
            f"{where}: `levels` is {levels!r}; write the names of the features as a list, the top level first, such "
            "as [department, category]."
        )
    part = "level" if items is None else "item"
    return [given | {"name": name, part: number} for number, name in enumerate(names, 1)]


def read_feature(given: Mapping, where: str) -> FeatureSpec:
    """Reads one feature of known keys."""
    check_text(given["name"], f"{where}: name")
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
    return FeatureSpec(**{"column": None if kind in DERIVED_KINDS else given["name"], **given})


def _read_cutoffs(cutoffs: object, time_zone: str) -> dict[str, datetime] | str:
    if cutoffs == LEAVE_ONE_OUT:
        return LEAVE_ONE_OUT
    if not isinstance(cutoffs, Mapping):
        raise ValueError(
            f"`cutoffs` is {cutoffs!r}, which is not a mapping; write {{validation: 2017-10-01, test: 2017-11-01}}, "
            f"or {LEAVE_ONE_OUT}."
        )
    check_keys(cutoffs, [*NO_CUTOFFS], "`cutoffs`")
    times, zone = {}, read_zone(time_zone)
    for key in NO_CUTOFFS:
        if key not in cutoffs:
            raise ValueError(f"`cutoffs` has no `{key}`; add its date.")
        with naming(f"`cutoffs: {key}`"):
            times[key] = EPOCH + timedelta(seconds=to_seconds(cutoffs[key], zone))
    return times


@dataclass(frozen=True)
class EventSchema(LogSchema, TextFormat):
    """A `LogSchema` with what only preparation needs.

    Args:
        cutoffs (`dict[str, datetime]` or `str`): Times of the keys `validation` and `test`; vocabularies and bins
            are fitted on what comes before `validation`. Or "leave_one_out": each customer's last visit is for the
            test, and the visit before it for validation.
        on_null (`str`): What to do with rows without a customer or a time: "error" or "drop".
        max_events_per_customer (`int`): Largest number of a customer's events in each period; the latest events stay.
            It guards against bots.
        delimiter, quote, escape, on_bad_row: as in `TextFormat`.

    Raises:
        ValueError: If values do not fit together. The message names the key and the fix.
    """

    cutoffs: dict[str, datetime] | str = field(kw_only=True)
    on_null: str = "error"
    max_events_per_customer: int = MOST_PERIOD_EVENTS

    @classmethod
    def from_yaml(cls, path: str | Path) -> "EventSchema":
        """Reads a schema file. Raises `ValueError` if the file or a key is wrong. The message names the file, the key
        and the fix. Raises `OSError` if the file can't be opened."""
        content = read_yaml(path)
        with naming(str(path)):
            return cls.from_dict(content)

    @classmethod
    def from_dict(cls, given: Mapping) -> "EventSchema":
        """Builds a schema from plain values. Raises `ValueError` if a key is unknown, missing or has a wrong value.
        The message names the key and the fix."""
        if not isinstance(given, Mapping):
            raise ValueError("The event schema is not a mapping; it needs keys such as `customer: household_id`.")
        check_keys(given, [f.name for f in fields(cls)], "The event schema")
        for key in REQUIRED_KEYS:
            if given.get(key) is None:
                raise ValueError(f"The event schema has no `{key}`; add it.")
        values = {key: value for key, value in given.items() if value is not None}
        for key in ("features", "profile", "tasks", "target_token_types"):
            if not isinstance(values.get(key, []), list | tuple):
                raise ValueError(f"`{key}` is {values[key]!r}; write it as a list.")
        values |= {key: read_features(values.get(key, ()), key) for key in ("features", "profile")}
        values = {"time": None, "token_type": None} | values
        values["tasks"] = tuple(values["tasks"])
        values["target_token_types"] = tuple(map(to_text, values.get("target_token_types", ())))
        for token_type in values["target_token_types"]:
            check_text(token_type, "target_token_types")
        return cls(**values)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "cutoffs", _read_cutoffs(self.cutoffs, self.time_zone))
        check_integer(self.min_history, "min_history", 1, MOST_PERIOD_EVENTS)
        check_integer(
            self.max_events_per_customer, "max_events_per_customer", self.max_events, MOST_EVENTS_PER_CUSTOMER
        )
        check_choice(self.on_null, "on_null", ("error", "drop"))
        TextFormat.__post_init__(self)
        if not self.tasks:
            raise ValueError(
                "`tasks` is empty; name at least one categorical event feature to predict, or token_type alone in a "
                "log without labels."
            )
        if not self.leaves_one_out and self.cutoff("validation") > self.cutoff("test"):
            raise ValueError(
                f"`cutoffs`: validation ({self.cutoff('validation')}) is after test ({self.cutoff('test')}); "
                "move one of them."
            )
        if self.order is not None and not self.leaves_one_out and self.cutoffs != NO_CUTOFFS:
            raise ValueError(
                f"`order` is for logs without times, so `cutoffs` can't be dates; write `cutoffs: {LEAVE_ONE_OUT}`."
            )

    @property
    def leaves_one_out(self) -> bool:
        """`bool`: whether each customer's last visits are held out, instead of what comes after a date."""
        return self.cutoffs == LEAVE_ONE_OUT

    def cutoff(self, key: str) -> datetime:
        """Gives the date of a cutoff. Raises `ValueError` if there is none, because each customer's last visits are
        held out."""
        if isinstance(self.cutoffs, str):
            raise ValueError(
                f"The log was split by `cutoffs: {self.cutoffs}`, and this needs the date of the {key} cutoff; "
                "prepare the log with dates."
            )
        return self.cutoffs[key]

    def cutoff_seconds(self, key: str) -> int:
        """Gives a cutoff in seconds since 1970-01-01, as are the `times` of prepared rows; see [`cutoff`]."""
        return (self.cutoff(key) - EPOCH) // timedelta(seconds=1)

    def scoring_time(self, key: str) -> int | None:
        """Time at which all customers are scored at a cutoff, in seconds since 1970. `None` where last visits are
        held out or the log has no times: a customer is then scored at the last event."""
        return None if self.leaves_one_out or self.order is not None else self.cutoff_seconds(key)

    def to_dict(self) -> dict:
        """Gives the schema as plain values for JSON or YAML."""
        out = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            out[entry.name] = list(value) if isinstance(value, tuple) else value
        out["features"] = [spec.to_dict() for spec in self.features if not spec.is_constant]
        out["profile"] = [spec.to_dict() for spec in self.profile]
        if not isinstance(self.cutoffs, str):
            out["cutoffs"] = {key: value.isoformat() for key, value in self.cutoffs.items()}
        return {"name": out.pop("name"), **out}


def read_schema(feature_extractor: MCMFeatureExtractor) -> EventSchema:
    """Gives the event schema by which a checkpoint reads a log, with cutoffs that no event reaches."""
    schema = feature_extractor.schema
    values = {entry.name: getattr(schema, entry.name) for entry in fields(schema)}
    return EventSchema(**values | {"tasks": schema.tasks or (schema.token_feature.name,), "cutoffs": NO_CUTOFFS})


def example_values(extractor: MCMFeatureExtractor, profile: bool = False, known: bool = True) -> dict:
    """A value that the model knows for each column of an event, or of a customer's profile, or one that tells nothing
    of the log but the schema; without customer, time and visit."""
    schema = extractor.schema
    example: dict = {}
    for spec in schema.profile if profile else schema.features:
        values: Sequence[str] = extractor.vocabularies.get(spec.name, ()) if known else ()
        if spec is schema.token_feature:
            values = schema.target_token_types or [text for text in values if text not in schema.reserved_token_types]
        value: object = next((value for value in values if not value.startswith("[hidden ")), None)
        if value is None:
            value = 1 if spec.kind == NUMERIC else "1"
        example |= dict.fromkeys(spec.columns, [value] if spec.item and spec.separator is None else value)
    return example
