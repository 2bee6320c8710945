# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The event schema: which column of an event log is the customer, the time, a feature, a task.

A schema is a small YAML file, so that a new log needs a file and no code. Everything that can be wrong in it is found
here, before any data is read. `docs/event_schema.md` explains each key with a worked example.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import yaml

from modeling_mcm.processing_mcm import MCMFeatureExtractor

CATEGORICAL, NUMERIC = "categorical", "numeric"
HOUR, WEEKDAY, DAYS_SINCE_VISIT = "hour", "weekday", "days_since_visit"
KINDS = (CATEGORICAL, NUMERIC, HOUR, WEEKDAY, DAYS_SINCE_VISIT)
DERIVED_KINDS = (HOUR, WEEKDAY, DAYS_SINCE_VISIT)
BINNED_KINDS = (NUMERIC, DAYS_SINCE_VISIT)
HISTORY_START = "history_start"
NO_CUTOFFS = {"validation": datetime(9999, 1, 1), "test": datetime(9999, 1, 2)}
"""Cutoffs that no event reaches, for a schema by which nothing is split by time."""
DEFAULT_BINS = 16
MOST_EVENTS = 100_000  # of a customer in a period; no person has more, and one row of a shard must fit in memory
REQUIRED_KEYS = ("customer", "time", "token_type", "features", "tasks", "cutoffs")


def _check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}."
            raise ValueError(f"{where} has the unknown key {key!r}; {hint}")


def _check_integer(value: Any, key: str, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{key}` is {value!r}; give a whole number of at least {least}.")


def _check_text(value: Any, key: str) -> None:
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
    """

    name: str
    kind: str = CATEGORICAL
    column: str | None = None
    min_count: int = 1
    bins: int = DEFAULT_BINS
    max_values: int | None = None

    @property
    def is_derived(self) -> bool:
        """Whether the feature is computed from the time and so has no column of its own."""
        return self.kind in DERIVED_KINDS

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], where: str) -> FeatureSpec:
        """Reads one entry of `features` or `profile`; raises `ValueError` naming the entry and the key."""
        if not isinstance(given, Mapping):
            raise ValueError(f"{where} is {given!r}; write it as a mapping such as {{name: brand}}.")
        _check_keys(given, [f.name for f in fields(cls)], where)
        if "name" not in given:
            raise ValueError(f"{where} has no `name`; add one.")
        _check_text(given["name"], f"{where}: name")
        where = f"{where} ({given['name']})"
        kind = given.get("kind", CATEGORICAL)
        if kind not in KINDS:
            raise ValueError(f"{where}: `kind` is {kind!r}; choose one of {', '.join(KINDS)}.")
        if kind in DERIVED_KINDS and "column" in given:
            raise ValueError(f"{where}: kind {kind!r} is computed from the time; remove `column`.")
        for key in ("min_count", "max_values"):
            if key in given and kind != CATEGORICAL:
                raise ValueError(f"{where}: `{key}` is for categorical features; remove it from this {kind} feature.")
        if "bins" in given and kind not in BINNED_KINDS:
            raise ValueError(f"{where}: `bins` is for {' and '.join(BINNED_KINDS)} features; remove it here.")
        _check_integer(given.get("min_count", 1), f"{where}: min_count", 1)
        _check_integer(given.get("bins", DEFAULT_BINS), f"{where}: bins", 2)
        if given.get("max_values") is not None:
            _check_integer(given["max_values"], f"{where}: max_values", 1)
        column = None if kind in DERIVED_KINDS else given.get("column", given["name"])
        if column is not None:
            _check_text(column, f"{where}: column")
        return cls(**{**given, "kind": kind, "column": column})

    def to_dict(self) -> dict[str, Any]:
        """The keys that mean something for this kind; `from_dict` reads them back to an equal feature."""
        out: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if not self.is_derived:
            out["column"] = self.column
        if self.kind == CATEGORICAL:
            out |= {"min_count": self.min_count, "max_values": self.max_values}
        if self.kind in BINNED_KINDS:
            out["bins"] = self.bins
        return out


def _read_cutoff(value: Any, key: str) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"`{key}` is {value!r}; write a date or time such as 2017-10-01.") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError(f"`{key}` is {value!r}; write a date or time such as 2017-10-01.")
    if value.tzinfo is not None:
        raise ValueError(f"`{key}` has a time zone; write it without one: it is read in the schema's `time_zone`.")
    return value


@dataclass(frozen=True)
class EventSchema:
    """Maps a table of events, and optionally one of profiles, to MCM.

    Args:
        customer (`str`): Column of the log that says who.
        time (`str`): Column that says when.
        token_type (`str`): Column that says what was done.
        features (`tuple[FeatureSpec]`): Event features in the model's order, the token type among them.
        tasks (`tuple[str]`): Categorical event features to predict.
        cutoffs (`dict[str, datetime]`): `validation` and `test`; everything fitted comes from before `validation`.
        visit (`str`, *optional*): Column whose equal values make one visit; events of one time are one otherwise.
        profile (`tuple[FeatureSpec]`): Features of the profile table; its customer column is `customer` too.
        target_token_types (`tuple[str]`): Token types to predict; empty means all.
        end_of_visit (`str`, *optional*): Token type of the interaction that closes a visit with a target event.
        max_events (`int`): Window of the model, the start row included.
        min_history (`int`): Target events before a cutoff that an evaluation case needs.
        on_null (`str`): `error` or `drop`: rows without a customer or time.
        on_duplicate (`str`): `keep` or `drop`: rows that are equal in every column of the schema.
        max_events_per_customer (`int`): Latest events of a customer in each period that are kept; guards against bots.
        time_zone (`str`): Zone that times with a zone are converted to; times without one are left as they are.
    """

    customer: str
    time: str
    token_type: str
    features: tuple[FeatureSpec, ...]
    tasks: tuple[str, ...]
    cutoffs: dict[str, datetime]
    name: str = "event_log"
    visit: str | None = None
    profile: tuple[FeatureSpec, ...] = ()
    target_token_types: tuple[str, ...] = ()
    end_of_visit: str | None = None
    max_events: int = 300
    min_history: int = 5
    on_null: str = "error"
    on_duplicate: str = "keep"
    max_events_per_customer: int = MOST_EVENTS
    time_zone: str = "UTC"

    @classmethod
    def from_yaml(cls, path: str | Path) -> EventSchema:
        """Reads a schema file; raises `ValueError` naming the file, the key and the fix."""
        try:
            given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from error
        try:
            return cls.from_dict(given)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> EventSchema:
        """Builds a schema from plain values; raises `ValueError` naming the key and the fix."""
        if not isinstance(given, Mapping):
            raise ValueError("The event schema is not a mapping; it needs keys such as `customer: household_id`.")
        known = [f.name for f in fields(cls)]
        _check_keys(given, known, "The event schema")
        for key in REQUIRED_KEYS:
            if given.get(key) is None:
                raise ValueError(f"The event schema has no `{key}`; add it.")
        values = {key: value for key, value in given.items() if value is not None}
        for key in ("features", "profile", "tasks", "target_token_types"):
            if not isinstance(values.get(key, []), list | tuple):
                raise ValueError(f"`{key}` is {values[key]!r}; write it as a list.")
        for key in ("features", "profile"):
            values[key] = tuple(
                FeatureSpec.from_dict(entry, f"Entry {i} of `{key}`") for i, entry in enumerate(values.get(key, ()))
            )
        values["tasks"] = tuple(values["tasks"])
        values["target_token_types"] = tuple(str(value) for value in values.get("target_token_types", ()))
        if not isinstance(values["cutoffs"], Mapping):
            raise ValueError("`cutoffs` is not a mapping; write {validation: 2017-10-01, test: 2017-11-01}.")
        _check_keys(values["cutoffs"], ("validation", "test"), "`cutoffs`")
        for key in ("validation", "test"):
            if key not in values["cutoffs"]:
                raise ValueError(f"`cutoffs` has no `{key}`; add its date.")
        values["cutoffs"] = {
            key: _read_cutoff(values["cutoffs"][key], f"cutoffs: {key}") for key in ("validation", "test")
        }
        return cls(**values)

    def __post_init__(self) -> None:
        for key in ("name", "customer", "time", "token_type", "time_zone"):
            _check_text(getattr(self, key), key)
        for key in ("visit", "end_of_visit"):
            if getattr(self, key) is not None:
                _check_text(getattr(self, key), key)
        _check_integer(self.max_events, "max_events", 2)
        _check_integer(self.min_history, "min_history", 1)
        _check_integer(self.max_events_per_customer, "max_events_per_customer", self.max_events)
        for key, choices in (("on_null", ("error", "drop")), ("on_duplicate", ("keep", "drop"))):
            if getattr(self, key) not in choices:
                raise ValueError(f"`{key}` is {getattr(self, key)!r}; choose {' or '.join(choices)}.")
        try:
            ZoneInfo(self.time_zone)
        except Exception:  # zoneinfo raises KeyError, ValueError or OSError, depending on what is wrong with the name
            raise ValueError(f"`time_zone` is {self.time_zone!r}; give an IANA name such as Europe/Berlin.") from None
        if self.cutoffs["validation"] >= self.cutoffs["test"]:
            raise ValueError(
                f"`cutoffs`: validation ({self.cutoffs['validation']}) is not before test ({self.cutoffs['test']}); "
                "move one of them."
            )
        self._check_features()

    def _check_features(self) -> None:
        names = self.feature_names
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"Two features are named {name!r}; names of `features` and `profile` must be unique.")
        for spec in self.profile:
            if spec.is_derived:
                raise ValueError(f"`profile` feature {spec.name!r} is {spec.kind}; only categorical and numeric work.")
        tokens = [spec for spec in self.features if spec.column == self.token_type]
        whole = [spec for spec in tokens if (spec.kind, spec.min_count, spec.max_values) == (CATEGORICAL, 1, None)]
        if len(tokens) != 1 or not whole:
            raise ValueError(
                "`features` needs exactly one categorical feature without `min_count` and `max_values` for the token "
                f"type column; add {{name: token_type, column: {self.token_type}}}."
            )
        categorical = [spec.name for spec in self.features if spec.kind == CATEGORICAL]
        if not self.tasks:
            raise ValueError("`tasks` is empty; name at least one categorical event feature to predict.")
        for task in self.tasks:
            if task not in categorical:
                raise ValueError(
                    f"`tasks` names {task!r}; choose categorical event features: {', '.join(categorical)}."
                )
            if self.tasks.count(task) > 1:
                raise ValueError(f"`tasks` names {task!r} twice; remove one.")
        if self.end_of_visit in (HISTORY_START, *self.target_token_types):
            raise ValueError(f"`end_of_visit` is {self.end_of_visit!r}, which has another meaning; choose another.")

    @property
    def feature_names(self) -> list[str]:
        """Names of the event features, then of the profile features: the order of J."""
        return [spec.name for spec in (*self.features, *self.profile)]

    @property
    def token_feature(self) -> FeatureSpec:
        """The feature that holds the token type."""
        return next(spec for spec in self.features if spec.column == self.token_type)

    @property
    def event_columns(self) -> list[str]:
        """Columns of the event table that are read."""
        columns = [self.customer, self.time, self.visit, *(spec.column for spec in self.features)]
        return [column for column in columns if column]

    @property
    def reserved_token_types(self) -> list[str]:
        """Token types that preparation adds; they take the last ids of the token type's vocabulary."""
        return [HISTORY_START] + ([self.end_of_visit] if self.end_of_visit else [])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML; `from_dict` reads them back to an equal schema."""
        out: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            out[entry.name] = list(value) if isinstance(value, tuple) else value
        out["features"] = [spec.to_dict() for spec in self.features]
        out["profile"] = [spec.to_dict() for spec in self.profile]
        out["cutoffs"] = {key: value.isoformat() for key, value in self.cutoffs.items()}
        return {"name": out.pop("name"), **out}


def schema_of(feature_extractor: MCMFeatureExtractor) -> EventSchema:
    """The event schema by which a checkpoint reads a log, with cutoffs that no event reaches.

    Args:
        feature_extractor: that of the checkpoint.
    """
    specs: dict[bool, list[FeatureSpec]] = {False: [], True: []}
    for feature in feature_extractor.features:
        kind = feature.get("kind", CATEGORICAL)
        column = None if kind in DERIVED_KINDS else feature.get("column") or feature["name"]
        specs[bool(feature.get("profile"))].append(FeatureSpec(feature["name"], kind, column))
    return EventSchema(
        customer=feature_extractor.customer,
        time=feature_extractor.time,
        token_type=feature_extractor.token_type,
        features=tuple(specs[False]),
        profile=tuple(specs[True]),
        tasks=tuple(feature_extractor.tasks) or (feature_extractor.token_type_feature,),
        target_token_types=tuple(feature_extractor.target_token_types),
        end_of_visit=feature_extractor.end_of_visit,
        visit=feature_extractor.visit,
        time_zone=feature_extractor.time_zone,
        name=feature_extractor.name,
        max_events=feature_extractor.max_events,
        min_history=feature_extractor.min_history,
        cutoffs=NO_CUTOFFS,
    )
