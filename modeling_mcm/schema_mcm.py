# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the columns of an event log mean: which one is the customer, the time, a feature or a task.

`LogSchema` travels with a checkpoint: the feature extractor reads events by it. The event schema of a data set
(`modeling_mcm.data.EventSchema`) adds what only preparation needs, such as the cutoffs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import cached_property
from zoneinfo import ZoneInfo

import numpy as np

HISTORY_START, TOKEN_TYPE = "history_start", "token_type"
ONE_TOKEN_TYPE = "event"  # token type of all events in a log without token types
VISIT_DAY = "visit_day"  # value of `visit` where a customer's day is a visit
ROWS = "rows"  # value of `order` where the rows of a log without times are in order

CATEGORICAL, NUMERIC = RAW_KINDS = ("categorical", "numeric")
HOUR, WEEKDAY, DAYS_SINCE_VISIT = DERIVED_KINDS = ("hour", "weekday", "days_since_visit")
FEATURE_KINDS = (*RAW_KINDS, *DERIVED_KINDS)
BINNED_KINDS = (NUMERIC, DAYS_SINCE_VISIT)
PART_KEYS = ("separator", "item", "level")  # keys that say which part of its column a feature reads
SAVED_KEYS = (*PART_KEYS, "factor")  # keys that a checkpoint stores where a feature has them
KINDS_WITH = {  # by key the kinds of features that have it
    "column": RAW_KINDS,
    "bins": BINNED_KINDS,
    "factor": (NUMERIC,),
    **dict.fromkeys(("min_count", "max_values", *PART_KEYS), (CATEGORICAL,)),
}
MOST_PERIOD_EVENTS = 100_000  # events of a customer in a period; people have fewer, and a row must fit in memory


def check_integer(value: object, key: str, least: int, most: int) -> None:
    """Checks that a value is a whole number between two limits. Raises `ValueError` if the value is no whole number
    from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"`{key}` is {value!r:.40}; give a whole number of at least {least} and at most {most:,}.")


def check_text(value: object, key: str) -> None:
    """Checks that a value is a text that is not empty. Raises `ValueError` if the value is no text, or is empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"`{key}` is {value!r}; give a name in quotes.")


def check_choice(value: object, key: str, choices: Sequence[str]) -> None:
    """Raises `ValueError` if a value is none of the choices."""
    if value not in choices:
        raise ValueError(f"`{key}` is {value!r}; choose {' or '.join(choices)}.")


def read_zone(name: str) -> tzinfo:
    """Finds a time zone, or a fixed offset. Raises `ValueError` if there is no such time zone."""
    if name == "UTC":  # the one zone that needs no time zone database
        return UTC
    if re.fullmatch("[+-](0[0-9]|1[0-4]):[0-5][0-9]", name):
        return datetime.fromisoformat(f"1970-01-01T00:00{name}").tzinfo  # type: ignore[return-value]
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"`time_zone` is {name!r}; give an IANA name such as Europe/Berlin, or an offset such as +05:30."
        ) from None


@dataclass(frozen=True)
class FeatureSpec:
    """One feature of an event or of a customer's profile.

    Args:
        name (`str`): Name of the feature, unique in the schema.
        kind (`str`): "categorical"; "numeric" (ids are quantile bins); or derived from the time: "hour", "weekday" or
            "days_since_visit" (days from the start of the visit before to the start of this visit, in bins).
        column (`str`, *optional*): Column of the log. Features derived from the time have none. Default in a schema
            file: the name of the feature.
        min_count (`int`): Values that occur less often in the training period get the unknown id (categorical
            features).
        bins (`int`): Number of quantile bins (numeric features and "days_since_visit").
        max_values (`int`, *optional*): Largest number of values in the vocabulary; the most frequent values stay, and
            equally frequent values stay or go together (categorical features). Default: no limit.
        separator (`str`, *optional*): Text between the values or the levels in the column's text.
        item (`int`, *optional*): For a column with several values in an event, which of them is read, from 1; values
            that are more frequent in the training period come first. Without `separator` the column holds lists. The
            features of one column share its vocabulary.
        factor (`str`, *optional*): Second column of a numeric feature: the number is the product of both, such as a
            price times a quantity, and missing where one of them is.
        level (`int`, *optional*): For a column with paths, how many levels are read, from 1. The value is the path up
            to this level, so equal words below different parents differ.
    """

    name: str
    kind: str = CATEGORICAL
    column: str | None = None
    min_count: int = 1
    bins: int = 16
    max_values: int | None = None
    separator: str | None = None
    item: int | None = None
    level: int | None = None
    factor: str | None = None

    @property
    def columns(self) -> list[str]:
        """`list[str]`: the columns of the log that are read."""
        return [column for column in (self.column, self.factor) if column]

    @property
    def is_constant(self) -> bool:
        """`bool`: whether the feature is the token type of a log without token types, the same for every event."""
        return self.kind == CATEGORICAL and self.column is None

    @classmethod
    def from_saved(cls, feature: Mapping) -> "FeatureSpec":
        """Reads a feature as a checkpoint stores it, or without the `column` that has its name."""
        name, kind = feature["name"], feature.get("kind", CATEGORICAL)
        column = feature.get("column", name if kind in RAW_KINDS else None)
        return cls(name, kind, column, **{key: feature[key] for key in SAVED_KEYS if key in feature})

    def to_saved(self, profile: bool) -> dict:
        """Gives the feature as a checkpoint stores it."""
        saved = {"name": self.name, "kind": self.kind, "column": self.column, "profile": profile}
        return saved | {key: value for key in SAVED_KEYS if (value := getattr(self, key)) is not None}

    def to_dict(self) -> dict:
        """The feature as an entry of a schema file, with the keys that apply to its kind; see `read_feature`."""
        keys = [key for key, kinds in KINDS_WITH.items() if self.kind in kinds and getattr(self, key) is not None]
        return {key: getattr(self, key) for key in ("name", "kind", *keys)}


@dataclass(frozen=True)
class LogSchema:
    """Says what the columns of a table of events, and optionally of a table of profiles, mean to MCM.

    Args:
        customer (`str`): Column of the log with the customer's id.
        time (`str`, *optional*): Column with the time of the event. A log without times has `order` instead.
        token_type (`str`, *optional*): Column that says what the customer did. Without it all events have the token
            type "event", and the feature "token_type" is added before the others.
        features (`tuple[FeatureSpec]`): Event features in the model's order, the token type among them.
        tasks (`tuple[str]`): Names of the categorical event features whose next value is predicted.
        name (`str`): Name of the event log.
        visit (`str`, *optional*): Column whose equal values make one visit; or, in a log with times, "visit_day": a
            customer's day is a visit, and no column is read. Default: the events of one customer and time are a visit.
        profile (`tuple[FeatureSpec]`): Features of the profile table, whose customer column is `customer` too.
        target_token_types (`tuple[str]`): Token types of the events that are predicted. Empty: all token types.
        end_of_visit (`str`, *optional*): Token type of the event that preparation adds to close each visit with a
            target event. Default: no such event.
        max_events (`int`): Largest number of events that the encoder reads, the start row included.
        min_history (`int`): Number of target events that an evaluation case needs before a cutoff.
        time_zone (`str`): Time zone, or an offset such as "+05:30", to which times with a zone are converted. Times
            without a zone stay as they are.
        order (`str`, *optional*): Instead of `time` a column of whole numbers that puts a customer's events in order,
            or "rows": the events are in the order of the log's rows. Each visit then comes a day after the visit
            before.
        on_duplicate (`str`): What to do with events that are equal in every column of the schema: "keep" or "drop".
        amount (`str`, *optional*): Name of the numeric event feature that says what was paid for the event: for all
            units of its product, and less than 0 where money was given back. The state and the forecasts sum it; a
            missing value adds nothing.
        currency (`str`, *optional*): What amounts are in, such as "EUR", which is said beside them.

    Raises:
        ValueError: If columns, features and tasks do not fit together. The message names the key and the fix.
    """

    customer: str
    time: str | None
    token_type: str | None
    features: tuple[FeatureSpec, ...]
    tasks: tuple[str, ...]
    name: str = "event_log"
    visit: str | None = None
    profile: tuple[FeatureSpec, ...] = ()
    target_token_types: tuple[str, ...] = ()
    end_of_visit: str | None = None
    max_events: int = 300
    min_history: int = 5
    time_zone: str = "UTC"
    order: str | None = None
    on_duplicate: str = "keep"
    amount: str | None = None
    currency: str | None = None

    def __post_init__(self) -> None:
        for key in ("name", "customer", "time_zone"):
            check_text(getattr(self, key), key)
        for key in ("time", "order", "token_type", "visit", "end_of_visit", "currency"):
            if getattr(self, key) is not None:
                check_text(getattr(self, key), key)
        check_integer(self.max_events, "max_events", 2, MOST_PERIOD_EVENTS)  # the start row and an event
        read_zone(self.time_zone)
        check_choice(self.on_duplicate, "on_duplicate", ("keep", "drop"))
        if self.token_type is None:
            self._add_token_type()
        self._check_order()
        self._check_features()
        self._check_tasks()

    def _check_order(self) -> None:
        """Raises `ValueError` unless there is one of `time` and `order`, and no feature needs absent times."""
        if self.time is None and self.order is None:
            raise ValueError(
                "The event schema has no `time`; add it, or for a log without times `order`: a column of whole "
                f"numbers, or `{ROWS}` for the order of its rows."
            )
        if self.time is not None and self.order is not None:
            raise ValueError("The event schema has `time` and `order`; `order` is for logs without times: keep one.")
        if self.order == ROWS and self.on_duplicate == "drop":
            raise ValueError(
                f"`on_duplicate: drop` with `order: {ROWS}`: rows at two places are two events; remove one of them."
            )
        for spec in self.features:
            if spec.kind in DERIVED_KINDS and self.order is not None:
                raise ValueError(
                    f"Feature {spec.name!r} has kind {spec.kind!r}, which is computed from the time, and the log has "
                    "`order` instead; remove the feature."
                )

    def _add_token_type(self) -> None:
        """Adds the token type feature of a log without token types, unless it is there."""
        if self.target_token_types:
            raise ValueError(
                "`target_token_types` chooses among the values of `token_type`, and the schema has none; add "
                "`token_type: COLUMN`, or remove `target_token_types`."
            )
        if TOKEN_TYPE in self.tasks and len(self.tasks) > 1:  # alone it says that there are no labels
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
        names = [spec.name for spec in (*self.features, *self.profile)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"Two features are named {name!r}; names of `features` and `profile` must be unique, those among "
                    "them that `levels` gives and that `max_items` gives (NAME, NAME_2, NAME_3 ...)."
                )
        for specs, kinds, where in ((self.features, FEATURE_KINDS, ""), (self.profile, RAW_KINDS, " of the profile")):
            for spec in specs:
                if spec.kind not in kinds:
                    raise ValueError(
                        f"Feature {spec.name!r}{where} has kind {spec.kind!r}; choose one of {', '.join(kinds)}."
                    )
        items = set()
        for name, source in self.sources.items():
            spec, other = self.specs[name], self.specs[source]
            for key in ("separator", "min_count", "max_values"):
                if getattr(spec, key) != getattr(other, key):
                    raise ValueError(
                        f"Features {source!r} and {name!r} share the values of column {spec.column!r}, and `{key}` is "
                        f"{getattr(other, key)!r} and {getattr(spec, key)!r}; write the same."
                    )
            if (source, spec.item) in items:
                raise ValueError(f"Two features read `item` {spec.item} of column {spec.column!r}; remove {name!r}.")
            items.add((source, spec.item))
        tokens = [spec for spec in self.features if spec.kind in RAW_KINDS and spec.column == self.token_type]
        if len(tokens) != 1 or tokens[0] != FeatureSpec(tokens[0].name, CATEGORICAL, self.token_type):
            raise ValueError(
                "`features` needs exactly one categorical feature without other keys for the token type column "
                f"{self.token_type!r}; add {{name: token_type, column: {self.token_type}}}."
            )
        own = [] if self.token_type else [ONE_TOKEN_TYPE]
        if self.end_of_visit in (HISTORY_START, *own, *self.target_token_types):
            raise ValueError(f"`end_of_visit` is {self.end_of_visit!r}, which has another meaning; choose another.")

    def _check_tasks(self) -> None:
        numeric = [spec.name for spec in self.features if spec.kind == NUMERIC]
        if self.amount is not None and self.amount not in numeric:
            raise ValueError(
                f"`amount` is {self.amount!r}, which is no numeric event feature; name one "
                f"({', '.join(numeric) or 'there is none'}), or add it to `features`, with `kind: numeric`."
            )
        categorical = [spec.name for spec in self.features if spec.kind == CATEGORICAL]
        for task in self.tasks:
            if task not in categorical:
                raise ValueError(
                    f"`tasks` names {task!r}, which is no categorical event feature; choose from "
                    f"{', '.join(categorical)}."
                )
            if self.tasks.count(task) > 1:
                raise ValueError(f"`tasks` names {task!r} twice; remove one.")

    @property
    def has_labels(self) -> bool:
        """`bool`: whether there is anything to rank; in a log without labels the one token type is the only task."""
        return any(not spec.is_constant for spec in self.features if spec.name in self.tasks)

    @property
    def order_column(self) -> str | None:
        """`str` or None: the column that puts a customer's events in order; None where the order of the rows does."""
        return self.time if self.order is None else None if self.order == ROWS else self.order

    @property
    def visit_column(self) -> str | None:
        """`str` or None: the column that says which visit it is; None where the time does."""
        return None if self.visit == VISIT_DAY and self.time is not None else self.visit

    @cached_property
    def specs(self) -> dict[str, FeatureSpec]:
        """`dict[str, FeatureSpec]`: the event features, then the profile features by name, in the order of J."""
        return {spec.name: spec for spec in (*self.features, *self.profile)}

    @cached_property
    def token_feature(self) -> FeatureSpec:
        """`FeatureSpec`: the feature that holds the token type."""
        return next(spec for spec in self.features if spec.kind in RAW_KINDS and spec.column == self.token_type)

    @cached_property
    def event_columns(self) -> list[str]:
        """`list[str]`: names of the columns of the event table that are read."""
        columns = [
            self.customer,
            self.order_column,
            self.visit_column,
            *(c for spec in self.features for c in spec.columns),
        ]
        return [column for column in dict.fromkeys(columns) if column]

    @cached_property
    def needed_columns(self) -> list[str]:
        """`list[str]`: columns without which visits or amounts are others."""
        paid = self.specs[self.amount].columns if self.amount else []
        return [column for column in (self.visit_column, *paid) if column]

    @cached_property
    def profile_columns(self) -> list[str]:
        """`list[str]`: names of the columns of the profile table that are read."""
        return list(dict.fromkeys([self.customer, *(column for spec in self.profile for column in spec.columns)]))

    @property
    def reserved_token_types(self) -> list[str]:
        """`list[str]`: token types that preparation adds. They have the last ids of the token type's vocabulary."""
        return [HISTORY_START] + ([self.end_of_visit] if self.end_of_visit else [])

    @cached_property
    def sources(self) -> dict[str, str]:
        """`dict[str, str]`: by feature with a column the feature under whose name its values are read: itself, or the
        first `item` of its column."""
        sources = {}
        for specs in (self.features, self.profile):
            first: dict[str, str] = {}
            for spec in specs:
                if spec.column:
                    sources[spec.name] = spec.name if spec.item is None else first.setdefault(spec.column, spec.name)
        return sources

    @property
    def shared_vocabularies(self) -> dict[str, str]:
        """`dict[str, str]`: by categorical feature the feature whose vocabulary it uses."""
        sources = self.sources
        return {name: sources.get(name, name) for name, spec in self.specs.items() if spec.kind == CATEGORICAL}

    def check_values(self, vocabularies: Mapping, bins: Mapping, fix: str) -> None:
        """Checks that each feature has well-formed vocabulary or bins, with the token types of MCM itself. Raises
        `ValueError` if not; the message names the feature."""
        for what, values, kinds in (("vocabularies", vocabularies, (CATEGORICAL,)), ("bins", bins, BINNED_KINDS)):
            needed = sorted(name for name, spec in self.specs.items() if spec.kind in kinds)
            if sorted(values) != needed:
                raise ValueError(f"Found {what} of {sorted(values)}, the features need {needed}; {fix}.")
        for feature, texts in vocabularies.items():
            if not all(isinstance(text, str) for text in texts) or len(set(texts)) < len(texts):
                raise ValueError(f"The vocabulary of {feature!r} is not a list of distinct texts; {fix}.")
        self.check_shared(vocabularies)
        for feature, edges in bins.items():
            if not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
                raise ValueError(f"The bin edges of {feature!r} are not finite and strictly increasing; {fix}.")
        token = self.token_feature.name
        for text in (*self.reserved_token_types, *([] if self.token_type else [ONE_TOKEN_TYPE])):
            if text not in vocabularies[token]:
                raise ValueError(f"The vocabulary of {token!r} has no {text!r}; {fix}.")

    def check_shared(self, vocabularies: Mapping) -> None:
        """Raises `ValueError` if features that read the values of one column differ in their vocabularies."""
        for feature, other in self.shared_vocabularies.items():
            if vocabularies[feature] != vocabularies[other]:
                raise ValueError(
                    f"Features {other!r} and {feature!r} share the values of column "
                    f"{self.specs[feature].column!r}, but their vocabularies differ; add new values to each of them."
                )
