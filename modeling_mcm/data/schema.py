# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The event schema: which column of an event log is the customer, the time, a feature, a task.

A schema is a small YAML file, so that a new log needs a file and no code. Everything that can be wrong in it is found
here, before any data is read. `docs/event_schema.md` explains each key with a worked example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from modeling_mcm.data.features import (
    CATEGORICAL,
    DERIVED_KINDS,
    PART_KEYS,
    FeatureSpec,
    check_integer,
    check_keys,
    check_text,
    raw_places,
    read_features,
)
from modeling_mcm.data.text_format import TextFormat
from modeling_mcm.data.yaml_files import read_yaml
from modeling_mcm.events_mcm import to_text
from modeling_mcm.processing_mcm import HISTORY_START, ONE_TOKEN_TYPE, ROWS, TOKEN_TYPE, MCMFeatureExtractor

NO_CUTOFFS = {"validation": datetime(9999, 1, 1), "test": datetime(9999, 1, 2)}
"""Cutoffs that no event reaches, for a schema by which nothing is split by time."""
DEFAULT_BINS = 16
MOST_EVENTS = 100_000  # of a customer in a period; no person has more, and one row of a shard must fit in memory
MOST_EVENTS_PER_CUSTOMER = 100_000_000  # a customer's row has lists, whose places are 32-bit numbers
LEAVE_ONE_OUT = "leave_one_out"
REQUIRED_KEYS = ("customer", "features", "tasks", "cutoffs")


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


def _read_cutoffs(given: Any) -> dict[str, datetime] | str:
    if given == LEAVE_ONE_OUT:
        return LEAVE_ONE_OUT
    if not isinstance(given, Mapping):
        raise ValueError(
            f"`cutoffs` is {given!r}, which is not a mapping; write {{validation: 2017-10-01, test: 2017-11-01}}, or "
            f"{LEAVE_ONE_OUT}."
        )
    check_keys(given, ("validation", "test"), "`cutoffs`")
    for key in ("validation", "test"):
        if key not in given:
            raise ValueError(f"`cutoffs` has no `{key}`; add its date.")
    return {key: _read_cutoff(given[key], f"cutoffs: {key}") for key in ("validation", "test")}


def _read_token_type(value: Any) -> str:
    """The text of a token type; YAML makes booleans of words such as on and no, and null of nothing."""
    if isinstance(value, bool) or not (text := to_text(value)):
        raise ValueError(f"`target_token_types` has {value!r}; write it in quotes if it is a word of the log.")
    return text


@dataclass(frozen=True)
class EventSchema:
    """Maps a table of events, and optionally one of profiles, to MCM.

    Args:
        customer (`str`): Column of the log that says who.
        time (`str`, *optional*): Column that says when; a log without times has `order` instead.
        token_type (`str`, *optional*): Column that says what was done. Without it all events have the token type
            "event", and the feature `token_type` is added before the others.
        features (`tuple[FeatureSpec]`): Event features in the model's order, the token type among them.
        tasks (`tuple[str]`): Categorical event features to predict.
        cutoffs (`dict[str, datetime]` or `str`): `validation` and `test`; everything fitted comes from before
            `validation`. Or `leave_one_out`: each customer's last visit is the test, the one before the validation.
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
        order (`str`, *optional*): In the place of `time` a column of whole numbers that puts a customer's events in
            order, or `rows`: they are in the order of the log's rows.
        on_bad_row (`str`): `error` or `drop`: lines of a text file, and times and numbers, that can't be read.
        delimiter (`str`, *optional*), quote (`str`), escape (`str`, *optional*): How text files are written, see
            `TextFormat`.
    """

    customer: str
    time: str | None
    token_type: str | None
    features: tuple[FeatureSpec, ...]
    tasks: tuple[str, ...]
    cutoffs: dict[str, datetime] | str
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
    order: str | None = None
    on_bad_row: str = "error"
    delimiter: str | None = None
    quote: str = '"'
    escape: str | None = None

    @classmethod
    def from_yaml(cls, path: str | Path) -> EventSchema:
        """Reads a schema file; raises `ValueError` naming the file, the key and the fix."""
        given = read_yaml(path)
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
        check_keys(given, known, "The event schema")
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
        values["target_token_types"] = tuple(map(_read_token_type, values.get("target_token_types", ())))
        values["cutoffs"] = _read_cutoffs(values["cutoffs"])
        return cls(**values)

    def __post_init__(self) -> None:
        for key in ("name", "customer", "time_zone"):
            check_text(getattr(self, key), key)
        for key in ("time", "order", "token_type", "visit", "end_of_visit"):
            if getattr(self, key) is not None:
                check_text(getattr(self, key), key)
        check_integer(self.max_events, "max_events", 2, MOST_EVENTS)
        check_integer(self.min_history, "min_history", 1, MOST_EVENTS)
        check_integer(
            self.max_events_per_customer, "max_events_per_customer", self.max_events, MOST_EVENTS_PER_CUSTOMER
        )
        for key, choices in (("on_null", ("error", "drop")), ("on_duplicate", ("keep", "drop"))):
            if getattr(self, key) not in choices:
                raise ValueError(f"`{key}` is {getattr(self, key)!r}; choose {' or '.join(choices)}.")
        TextFormat(self.delimiter, self.quote, self.escape, self.on_bad_row)  # raises for what is none
        try:
            ZoneInfo(self.time_zone)
        except Exception:  # zoneinfo raises KeyError, ValueError or OSError, depending on what is wrong with the name
            raise ValueError(f"`time_zone` is {self.time_zone!r}; give an IANA name such as Europe/Berlin.") from None
        if not self.leaves_one_out and self.cutoff("validation") >= self.cutoff("test"):
            raise ValueError(
                f"`cutoffs`: validation ({self.cutoff('validation')}) is not before test ({self.cutoff('test')}); "
                "move one of them."
            )
        self._check_order()
        if self.token_type is None:
            self._add_token_type()
        self._check_features()

    def _check_order(self) -> None:
        """Whether there is one of `time` and `order`, and nothing that needs times where there are none."""
        if self.time is None and self.order is None:
            raise ValueError(
                "The event schema has no `time`; add it, or for a log without times `order`: a column of whole "
                f"numbers, or `{ROWS}` for the order of its rows."
            )
        if self.time is not None and self.order is not None:
            raise ValueError("The event schema has `time` and `order`; `order` is for logs without times: keep one.")
        if self.order is None:
            return
        if not self.leaves_one_out and self.cutoffs != NO_CUTOFFS:
            raise ValueError(
                f"`order` is for logs without times, so `cutoffs` can't be dates; write `cutoffs: {LEAVE_ONE_OUT}`."
            )
        for spec in self.features:
            if spec.is_derived:
                raise ValueError(
                    f"Feature {spec.name!r} has kind {spec.kind!r}, which is computed from the time, and the log has "
                    "`order` instead; remove the feature."
                )
        if self.order == ROWS and self.on_duplicate == "drop":
            raise ValueError(
                f"`on_duplicate: drop` with `order: {ROWS}`: rows at two places are two events; remove one of them."
            )

    @property
    def text_format(self) -> TextFormat:
        """How text files of the log are written."""
        return TextFormat(self.delimiter, self.quote, self.escape, self.on_bad_row)

    @property
    def leaves_one_out(self) -> bool:
        """Whether each customer's last visits are held out, and not what comes after a date."""
        return self.cutoffs == LEAVE_ONE_OUT

    def cutoff(self, key: str) -> datetime:
        """The date of a cutoff, `validation` or `test`.

        Raises:
            ValueError: There is none, as each customer's last visits are held out.
        """
        if isinstance(self.cutoffs, str):
            raise ValueError(
                f"The log was split by `cutoffs: {self.cutoffs}`, and this needs the date of the {key} cutoff; "
                "prepare the log with dates."
            )
        return self.cutoffs[key]

    @property
    def order_column(self) -> str | None:
        """The column by which a customer's events are in order; None where it is the order of the rows."""
        return self.time if self.order is None else None if self.order == ROWS else self.order

    def _add_token_type(self) -> None:
        """The feature of a log without a token type, unless it is there."""
        if self.target_token_types:
            raise ValueError(
                "`target_token_types` chooses among the values of `token_type`, and the schema has none; add "
                "`token_type: COLUMN`, or remove `target_token_types`."
            )
        if TOKEN_TYPE in self.tasks:
            raise ValueError(
                f"`tasks` names {TOKEN_TYPE!r}, which is the same for every event of a log without `token_type`; add "
                "`token_type: COLUMN`, or remove the task."
            )
        if any(spec.name == TOKEN_TYPE and not spec.is_constant for spec in (*self.features, *self.profile)):
            raise ValueError(
                f"A feature is named {TOKEN_TYPE!r}, and the schema has no `token_type`, so MCM adds a feature of "
                "this name; add `token_type: COLUMN`, or rename the feature."
            )
        if not any(spec.is_constant for spec in self.features):
            object.__setattr__(self, "features", (FeatureSpec(TOKEN_TYPE), *self.features))

    def _check_features(self) -> None:
        names = self.feature_names
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"Two features are named {name!r}; names of `features` and `profile` must be unique, those among "
                    "them that `levels` gives and that `max_items` gives (NAME, NAME_2, NAME_3 ...)."
                )
        for spec in self.profile:
            if spec.is_derived:
                raise ValueError(f"`profile` feature {spec.name!r} is {spec.kind}; only categorical and numeric work.")
        tokens = [spec for spec in self.features if not spec.is_derived and spec.column == self.token_type]
        if len(tokens) != 1 or tokens[0] != FeatureSpec(tokens[0].name, CATEGORICAL, self.token_type):
            raise ValueError(
                "`features` needs exactly one categorical feature without other keys for the token type column; add "
                f"{{name: token_type, column: {self.token_type}}}."
            )
        for specs in (self.features, self.profile):
            raw_places(specs)
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
        own = [] if self.token_type else [ONE_TOKEN_TYPE]
        if self.end_of_visit in (HISTORY_START, *own, *self.target_token_types):
            raise ValueError(f"`end_of_visit` is {self.end_of_visit!r}, which has another meaning; choose another.")

    @property
    def feature_names(self) -> list[str]:
        """Names of the event features, then of the profile features: the order of J."""
        return [spec.name for spec in (*self.features, *self.profile)]

    @property
    def token_feature(self) -> FeatureSpec:
        """The feature that holds the token type."""
        return next(spec for spec in self.features if not spec.is_derived and spec.column == self.token_type)

    @property
    def event_columns(self) -> list[str]:
        """Columns of the event table that are read."""
        columns = [self.customer, self.order_column, self.visit, *(spec.column for spec in self.features)]
        return [column for column in dict.fromkeys(columns) if column]

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
        out["features"] = [spec.to_dict() for spec in self.features if not spec.is_constant]
        out["profile"] = [spec.to_dict() for spec in self.profile]
        if not isinstance(self.cutoffs, str):
            out["cutoffs"] = {key: value.isoformat() for key, value in self.cutoffs.items()}
        return {"name": out.pop("name"), **out}


def schema_of(feature_extractor: MCMFeatureExtractor) -> EventSchema:
    """The event schema by which a checkpoint reads a log, with cutoffs that no event reaches.

    Args:
        feature_extractor: that of the checkpoint.
    """
    specs: dict[bool, list[FeatureSpec]] = {False: [], True: []}
    for feature in feature_extractor.features:
        name, kind, profile = feature["name"], feature.get("kind", CATEGORICAL), bool(feature.get("profile"))
        added = feature_extractor.token_type is None and not profile and name == TOKEN_TYPE
        column = None if kind in DERIVED_KINDS or added else feature.get("column") or name
        spec = FeatureSpec(name, kind, column)
        specs[profile].append(replace(spec, **{key: feature[key] for key in PART_KEYS if key in feature}))
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
        order=feature_extractor.order,
        max_events=feature_extractor.max_events,
        min_history=feature_extractor.min_history,
        cutoffs=NO_CUTOFFS,
    )
