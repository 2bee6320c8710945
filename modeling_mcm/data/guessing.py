# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Reads a data frame as an event log: guesses what its columns mean from their names and contents.

    reader = FrameReader.guess(frame)
    print(reader)                  # five lines: customer, time, amount, labels, and what else is read
    log = reader.read(frame)       # with times as times, and the columns that the schema adds

The schema is an [`EventSchema`] like any other: `yaml.safe_dump(reader.schema.to_dict())` is the file to edit.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from numbers import Real
from typing import Any

import pandas as pd
from pandas.api import types

from modeling_mcm.events_mcm import TIME_PATTERN, check_columns, read_zone, to_text
from modeling_mcm.schema_mcm import TOKEN_TYPE, VISIT_DAY

from .schema import EventSchema

# Words of column names by their meaning; the first word that a name has decides, and the first column. A name that
# has nothing else but words for ids goes before: `user_id` before `user_age`.
WORDS = {
    "customer": (
        "customer cust household user client member visitor shopper account player subscriber guest patron borrower "
        "reader buyer donor card person who"
    ).split(),
    "time": "timestamp datetime time date when day dt ts at on".split(),
    "visit": "session visit basket order transaction invoice".split(),
    "token_type": "event action activity behaviour behavior kind token type".split(),
}
IDS = set("id ids code number no key sku zip asin type".split())  # numbers so named are no quantities
NOT_EVENT_TIMES = set("due return returned birth birthday expiry expires until valid end".split())
LABELS = set(
    "item product article category brand track movie film book store page department manufacturer seller".split()
)
PAID = "debit withdrawal amount paid spend spent revenue sales total value".split()  # of an event
PRICE, QUANTITY = ["price"], ["quantity", "qty", "units"]
NOT_PAID = set("discount cost in credit deposit balance".split())
NUMBERS = {*PAID, *PRICE, *QUANTITY, "rating", "count"} | NOT_PAID - {"in"}
# Words of what is no payment of the customer, of what is paid back, and of what speaks against both
UNPAID = set(
    "salary income credit deposit incoming in cr topup wage interest view click cart search wishlist browse".split()
)
PAID_BACK, PAYMENTS = set("refund refunded return returned chargeback reversal".split()), {"card", "payment"}
DIRECTIONS = {*WORDS["token_type"], "direction", "side", "transaction"}  # words of columns that say so
SIGNS = {"without": 0, "minus": -1}
NEEDED = {"customer": "", "time": ", or schema={'order': 'rows'} if a customer's rows are in order"}
MOST_COLUMNS, MOST_KINDS, MOST_TASKS, ROWS_READ = 40, 30, 5, 200_000
FEW, MANY = 20, 1_000  # distinct numbers up to which they are names, and labels from which rare ones are left out
HELD_OUT = {"validation": 0.15, "test": 0.07}  # share of the log's time after each cutoff
TIME_UNITS = {"s": 1e8, "ms": 1e11, "us": 1e14, "ns": 1e17}  # of times in numbers, with their least size
COMPACT = "%Y%m%d"  # of days without separators
DAYS = [f"%{a}{mark}%{b}{mark}%{year}" for mark in "/-" for a, b in ("dm", "md") for year in "Yy"]
DAYS += ["%d.%m.%Y", "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y", COMPACT]
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
CLOCK = r"\d{1,2}:\d{2}(:\d{2})?"
Columns = Mapping[str, pd.Series]
OUTFLOW = "paid"  # a column that is added
SAME_DAY = 1.1  # events of a customer and day, on average, from which a day is a visit
VARIES = 0.02  # share of the visits with several events in which a label has several values, at least


@dataclass
class FrameReader:
    """How a data frame is read as a log.

    Attributes:
        schema (`EventSchema`): What the columns mean, also those that are added: `VISIT_DAY`, the day of the event,
            and `OUTFLOW`, what was paid, where an amount has a direction.
        time_format (`str`, *optional*): How the text of the times is written, as for `strptime`, or the unit of their
            numbers. Default: as the log's times are written.
        paid (`dict`): How `OUTFLOW` is computed, if it is: from the column `amount`, and by value of the column
            `direction` with a factor of `signs`. Without `direction` what is negative was paid, and the rest came in.
        lines (`list[str]`): What was guessed.
    """

    schema: EventSchema
    time_format: str | None = None
    paid: dict = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def read(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with times that are times, and the columns that the schema adds."""
        schema, frame = self.schema, even_out(frame)
        added, time = {}, str(schema.time)
        if self.time_format and time in frame:
            added[time] = _read_times(frame[time], self.time_format)
        if schema.visit == VISIT_DAY and VISIT_DAY not in frame:
            added[VISIT_DAY] = _read_times(added.get(time, frame[time])).dt.strftime("%Y-%m-%d")
        if self.paid.get("amount") in frame and schema.amount not in frame:
            added[str(schema.amount)] = _compute_outflow(frame, **self.paid)
        return frame.assign(**added)

    def read_time(self, number: Any) -> Any:
        """A whole number as the log's times are read, if these are numbers too."""
        return _read_times(pd.Series([number]), self.time_format)[0] if self.time_format else number

    def to_dict(self) -> dict:
        """The reader as plain values for JSON."""
        return vars(self) | {"schema": self.schema.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping) -> "FrameReader":
        """The reader of what `to_dict` gave."""
        return cls(**{**values, "schema": EventSchema.from_dict(values["schema"])})

    @classmethod
    def guess(cls, events: pd.DataFrame, given: Mapping | None = None) -> "FrameReader":
        """Guesses what the columns of an event log mean.

        Args:
            events (`pd.DataFrame`): The log, one row an event.
            given (`Mapping`, *optional*): Keys of the schema that are known, such as `{"time": "day"}`.

        Returns:
            [`FrameReader`]: The reader. Numbers are numeric features, other columns are categorical ones, and the
            features of most labels are the tasks. What all events of a visit share, such as the device, is no label
            where something else differs in a visit. Without labels the token type is the only task. The amount is a
            column that says what was paid, or a price times a quantity beside it; a price alone may be that of one
            unit, so it is none.

        Raises:
            ValueError: If no column says who the customer is or when an event was, a time can be read in two ways, a
                column has values of several types, or there are too many columns. The message names the column and
                the fix.
        """
        given = dict(given or {})
        _check_table(events)
        events = even_out(events)
        columns = dict(events.head(ROWS_READ).items())
        roles = _find_roles(columns, given)
        customers = events[roles["customer"]].nunique()
        if customers < 2:
            raise ValueError(f"Column {roles['customer']!r} has {customers} customer: give a log of several.")
        schema = {"min_history": 1, "cutoffs": "leave_one_out"}
        time_format, when = None, "in the order of the rows"
        if name := roles.get("time"):
            time_format = find_time_format(events[name])
            times = _read_times(events[name], time_format)
            schema |= _cutoffs(times)
            first = events[name].dropna().iloc[0], times.dropna().iloc[0]
            how = "" if time_format is None else " ({} is {:%d %B %Y})".format(*first)
            when = f"{name!r}{how}, {times.min():%Y-%m-%d} to {times.max():%Y-%m-%d}"
            if "visit" not in {**given, **roles} and _has_busy_days(events[roles["customer"]], times):
                roles["visit"] = VISIT_DAY
        visits = columns.get(roles.get("visit", ""))
        if visits is None and roles.get("visit") == VISIT_DAY:
            visits = times.dt.floor("D").head(ROWS_READ)
        features, labels = _features(columns, roles, visits)
        reader = {}
        paid = {} if "amount" in given else _find_amount(features)
        words = f"{paid.get('name')!r}" if paid else "none: no column says what was paid"
        if "factor" in paid:
            words = f"{paid['column']!r} x {paid['factor']!r}"
            features.append(paid)
        elif paid and (reader := _find_direction(columns, paid["name"])):
            paid = {"name": OUTFLOW if OUTFLOW not in columns else f"{OUTFLOW}_out", "kind": "numeric"}
            features.append(paid)
            amount, direction, signs = reader.values()
            words = f"what is negative in {amount!r}; what is positive came in and is not counted"
            if direction is not None:
                by_sign = [[word, *(kind for kind in signs if signs[kind] == sign)] for word, sign in SIGNS.items()]
                kinds_shown = [f"{word} {', '.join(kinds)}" for word, *kinds in by_sign if kinds]
                words = f"{amount!r} by {direction!r}, {' and '.join(kinds_shown)}"
            outflow, kinds = _compute_outflow(events, **reader), roles.get("token_type")
            if kinds and "target_token_types" not in given:  # a salary is no visit
                schema["target_token_types"] = sorted(events[kinds][outflow > 0].dropna().map(to_text).unique())
        tasks = sorted(labels, key=lambda name: -labels[name])[:MOST_TASKS] or [roles.get("token_type") or TOKEN_TYPE]
        schema |= {"name": "events", "amount": paid.get("name"), "features": features, "tasks": tasks}
        schema |= roles
        if "features" in given:
            del schema["amount"]  # the features that it is one of
        schema |= {key: value for key, value in given.items() if key != "tasks" or value != []}
        built = EventSchema.from_dict(schema)
        visit = {None: "events of one time are a visit", VISIT_DAY: "a customer's day is a visit"}
        ignored = ", ".join(name for name in columns if name not in (*built.event_columns, reader.get("amount")))
        labelled = (*built.tasks, built.amount)
        others = [spec.name for spec in built.features if spec.column and spec.name not in labelled]
        labels_shown = ", ".join(built.tasks) if built.has_labels else "none, so there is nothing to recommend"
        if targets := ", ".join(built.target_token_types):
            labels_shown += f"; visits are events of {targets}"
        lines = [
            f"Customer: {built.customer!r}, {customers:,} of them",
            f"Time:     {when}; {visit.get(built.visit, f'a visit is one {built.visit!r}')}",
            f"Amount:   {words if 'amount' not in given else built.amount}",
            f"Labels:   {labels_shown}",
            f"Also:     {', '.join(others) or 'nothing'}" + (f"; not read: {ignored}" if ignored else ""),
        ]
        return cls(built, time_format, reader, lines)


def even_out(events: pd.DataFrame) -> pd.DataFrame:
    """The frame with columns of numbers and texts as texts: 7 and "7" are one id. Raises `ValueError` if "007" stands
    beside 7, which may be the same id."""
    changed = {}
    for name in filter(lambda name: _is_mixed(events[name]), events):
        values = events[name].dropna().unique()
        known = {to_text(value) for value in values if not isinstance(value, str)}
        for text in values:
            if isinstance(text, str) and text.startswith("0") and text.lstrip("0") in known:
                raise ValueError(
                    f"Column {name!r} has the text {text!r} and the number {text.lstrip('0')}: if they are one, write "
                    f"events[{name!r}] = events[{name!r}].astype(str).str.lstrip('0')."
                )
        changed[name] = events[name].map(to_text)
    return events.assign(**changed) if changed else events


def _is_mixed(values: pd.Series) -> bool:
    """Whether a column has numbers and texts."""
    if types.infer_dtype(values) not in ("mixed-integer", "mixed"):
        return False
    return all(issubclass(kind, str | Real) for kind in {type(value) for value in values.dropna()})


def _find_roles(columns: Columns, given: Mapping) -> dict:
    """The columns that have a role. Raises `ValueError` if there is none of the customer or the time."""
    roles = {role: given[role] for role in WORDS if given.get(role) is not None}
    check_columns(list(columns), roles.values(), "The table has")
    for role in WORDS:
        if role == "time" and given.get("order") is not None:
            continue
        if role not in given:
            rest = {name: values for name, values in columns.items() if name not in roles.values()}
            if name := _find_column(role, rest, columns.get(roles.get("customer", ""))):
                roles[role] = name
        if role in NEEDED and role not in roles:
            raise ValueError(
                f"No column of {list(columns)} is named like a {role}: give schema={{{role!r}: 'COLUMN'}}"
                f"{NEEDED[role]}."
            )
    return roles


def _find_amount(features: Sequence[Mapping]) -> dict:
    """The numeric feature that says what was paid: one of the features, a new one with a `factor`, or none."""
    numeric = {str(each["name"]): _words(each["name"]) for each in features if each.get("kind") == "numeric"}
    paid, prices, quantities = (
        [name for word in words for name, own in numeric.items() if word in own and not own & NOT_PAID]
        for words in (PAID, PRICE, QUANTITY)
    )
    paid = [name for name in paid if name not in quantities]
    if paid:
        return {"name": paid[0]}
    if prices and quantities:
        return {"name": "amount", "kind": "numeric", "column": prices[0], "factor": quantities[0]}
    return {}


def _find_direction(columns: Columns, amount: str) -> dict:
    """Which of the amounts the customer paid, if not all: the negative ones where these are most, or those whose kind
    does not say that money came in."""
    amounts = pd.to_numeric(columns[amount])
    is_negative = (amounts < 0).sum() / max((amounts != 0).sum(), 1)
    if is_negative >= 0.5:
        return {"amount": amount, "direction": None, "signs": {}}
    for name, values in columns.items():
        if is_negative or types.is_numeric_dtype(values) or not _words(name) & DIRECTIONS:
            continue
        kinds = [*values.dropna().unique()]
        words = {str(kind): _words(str(kind)) for kind in kinds}
        signs = {kind: -1 for kind, own in words.items() if own & PAID_BACK}
        signs |= {kind: 0 for kind, own in words.items() if own & UNPAID and not own & PAYMENTS}
        if len(kinds) <= MOST_KINDS and 0 < len(signs) < len(kinds):
            return {"amount": amount, "direction": name, "signs": signs}
    return {}


def _compute_outflow(frame: pd.DataFrame, amount: str, direction: str | None, signs: Mapping[str, int]) -> pd.Series:
    """What was paid; the arguments are those of `FrameReader.paid`."""
    amounts = pd.to_numeric(frame[amount])
    if direction is None:
        return (-amounts).clip(lower=0)
    return amounts * frame[direction].astype(str).map(signs).fillna(1)


def _check_table(events: pd.DataFrame) -> None:
    """Raises `ValueError` if names or values of columns can't be those of a log."""
    names = list(events.columns)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"Column {wrong[0]!r} has no text as its name: rename it, as in events.rename(columns=...).")
    if len(names) > MOST_COLUMNS:
        raise ValueError(
            f"The table has {len(names)} columns, from {names[0]!r} to {names[-1]!r}, and at most {MOST_COLUMNS} are "
            "guessed: choose some, as in events[['customer', 'time', ...]], or give a whole EventSchema."
        )
    for name in names:
        kind = types.infer_dtype(events[name])
        if kind in ("mixed", "mixed-integer", "bytes") and not _is_mixed(events[name]):
            kinds = sorted({type(value).__name__ for value in events[name].dropna().head(ROWS_READ)})
            raise ValueError(
                f"Column {name!r} has values that are neither text nor numbers ({', '.join(kinds)}): make "
                f"them so, as in events[{name!r}] = events[{name!r}].astype(str), or leave the column out."
            )


def _words(name: str) -> set[str]:
    """The words of a column's name: "user" and "id" of user_id, UserID and userid."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)
    return {word for part in parts for word in re.sub("(?<=[a-z]{3})(id|code)$", r" \1", part.lower()).split()}


def _find_column(role: str, columns: Columns, customers: pd.Series | None) -> str | None:
    """The column that a role is guessed to have."""
    fitting = {name: values for name, values in columns.items() if _fits(role, values, customers)}
    dated = [name for name in fitting if role == "time" and is_time(fitting[name])]
    names = dated or [*fitting]
    if role == "customer":  # `card_number` before `card_type`
        names.sort(key=lambda name: -fitting[name].nunique())
    for is_bare in (True, False):
        for word in WORDS[role]:
            for name in names if is_bare or word not in IDS else ():
                words = _words(name)
                if word in words and (not is_bare or words <= {word, *IDS, *WORDS[role]}):
                    return name
    if role == "customer":  # a bare `id` that comes again is no id of the row
        dated = [name for name in names if _words(name) <= IDS and fitting[name].duplicated().any()]
    return next(iter(dated), None)


def _fits(role: str, values: pd.Series, customers: pd.Series | None) -> bool:
    """Whether the values of a column can have a role."""
    words = _words(str(values.name))
    if role == "time":  # what can't be read is told by name
        return not words & NOT_EVENT_TIMES
    if is_time(values) or (role == "customer" and words & NUMBERS):
        return False
    if role == "visit":  # of most events, not the same few for everybody, and not another one in each row
        known = values.dropna()
        is_usual = customers is not None and customers.nunique() <= known.nunique() < len(known)
        return is_usual and len(known) > len(values) / 2
    return role != "token_type" or values.nunique() <= MOST_KINDS


def _read_times(values: pd.Series, time_format: str | None = None) -> pd.Series:
    """The times of a column: NaT where one is not written as the format says, and without a format as preparation
    reads them."""
    if types.is_datetime64_any_dtype(values):
        return values
    if time_format in TIME_UNITS:
        return pd.to_datetime(values, unit=time_format)
    if time_format is not None:
        texts = values.astype("Int64").astype("string") if types.is_numeric_dtype(values) else values
        return pd.to_datetime(texts, format=time_format, errors="coerce")
    try:
        return pd.to_datetime(values, format="mixed")
    except (ValueError, TypeError) as error:
        fix = f"write events[{values.name!r}] = pd.to_datetime(events[{values.name!r}], utc=True)."
        raise ValueError(f"Column {values.name!r} has no times of one kind ({error}): {fix}") from error


def _read_texts(texts: pd.Series) -> dict[str, pd.Series]:
    """The times of texts by each format that reads all of them."""
    readings = {day + clock: texts for day in DAYS for clock in CLOCKS}
    for rows in (20, len(texts)):
        read = {each: _read_times(texts.head(rows), each) for each in readings}
        readings = {each: times for each, times in read.items() if times.notna().all()}
    return readings


def is_time(values: pd.Series) -> bool:
    """Whether a column has times, as such or as text."""
    known = values.dropna()
    kind = types.infer_dtype(known)
    if kind in ("date", "datetime", "datetime64"):
        return True
    if kind != "string" or not len(known):
        return False
    texts = known.drop_duplicates()
    return bool(texts.str.match(TIME_PATTERN).all() or {*_read_texts(texts)} - {COMPACT})


def find_time_format(times: pd.Series) -> str | None:
    """How the times of a column are written; None if as those of a log are. Raises `ValueError` if they can't be read,
    or in two ways; the message says how to make some."""
    known, name = times.dropna().drop_duplicates(), times.name
    if not len(known):
        raise ValueError(f"Column {name!r} has no time: fill it, or give schema={{'time': 'COLUMN'}}.")
    if types.infer_dtype(known).startswith("timedelta"):
        raise ValueError(
            f"Column {name!r} has durations such as {known.iloc[0]}, expected times: add them to the time at which "
            f"they begin, as in pd.Timestamp('2024-01-01') + events[{name!r}]."
        )
    fix = f"events[{name!r}] = pd.to_datetime(events[{name!r}]"
    if types.is_numeric_dtype(times):
        if known.between(1e7, 1e8).all() and _read_times(known, COMPACT).notna().all():
            return COMPACT
        for unit, least in TIME_UNITS.items():
            if known.between(least, 1000 * least, inclusive="left").all():
                return unit
        raise ValueError(
            f"Column {name!r} has numbers such as {known.iloc[0]}, expected times: write {fix}.astype(str))."
        )
    if types.infer_dtype(known) != "string" or known.str.match(TIME_PATTERN).all():
        return None
    formats: dict[tuple, str] = {}  # by what is read
    for time_format, read in _read_texts(known).items():
        formats.setdefault(tuple(read), time_format)
    if not formats:
        wrong = next(value for value in known if not re.match(TIME_PATTERN, value))
        raise ValueError(
            f"Column {name!r} has {wrong!r}, expected times such as 2024-03-01 12:30: write {fix}, format=...)."
        )
    if len(formats) > 1:
        ways = " or ".join(f"{read[0]:%d %B %Y} (format={each!r})" for read, each in formats.items())
        raise ValueError(
            f"Column {name!r} has {known.iloc[0]!r}, which is {ways}, and no row says which: write {fix}, format=...)."
        )
    return next(iter(formats.values()))


def _has_busy_days(customers: pd.Series, times: pd.Series) -> bool:
    """Whether customers have several events at different times of one day, as in a bank, so that a day is a visit."""
    keys = pd.DataFrame({"customer": customers.to_numpy(), "time": times.to_numpy()}).dropna().drop_duplicates()
    return len(keys) >= SAME_DAY * len(keys.assign(time=keys["time"].dt.floor("D")).drop_duplicates())


def _varies(values: pd.Series, customers: pd.Series, visits: pd.Series) -> bool:
    """Whether visits with several events often have several values."""
    counts = values.groupby([customers, visits], observed=True).agg(["size", "nunique"])
    return bool((counts.loc[counts["size"] > 1, "nunique"] > 1).mean() >= VARIES)


def _features(columns: Columns, roles: Mapping, visits: pd.Series | None) -> tuple[list[dict], dict[str, int]]:
    """Features of the columns without another role, and the number of labels of those that can be tasks. `visits`:
    the visit of each event, if it is known."""
    features = []
    labels, varying = {}, {}
    if "token_type" in roles:
        features.append({"name": roles["token_type"]})
    customers = columns[roles["customer"]]
    for name, values in columns.items():
        number, words = values.nunique(), _words(name)
        if name in roles.values() or number < 2 or is_time(values):
            continue
        is_number = types.is_numeric_dtype(values) and not types.is_bool_dtype(values)
        is_counted = bool(words & NUMBERS) or name.lower().startswith("number")  # `number_of_cds` is no id
        kind, known = types.infer_dtype(values), values.dropna()
        is_number |= kind == "decimal"
        is_number |= is_counted and kind == "string" and bool(pd.to_numeric(known, errors="coerce").notna().all())
        is_id = not is_number or bool(words & (IDS | LABELS))
        if not is_number and known.astype(str).str.fullmatch(CLOCK).all():
            continue  # the time of the day, beside the date
        feature = {"name": name} if name != TOKEN_TYPE else {"name": f"{name}_column", "column": name}
        if is_number and (is_counted or not (is_id or number <= FEW)):
            features.append(feature | {"kind": "numeric"})
        elif number <= max(FEW, len(values) / 2):  # else it is different in each event, such as a remark
            features.append(feature | ({"min_count": 5} if number > MANY else {}))
            if is_id and (values.groupby(customers, observed=True).nunique() > 1).any():  # else it is the customer's
                labels[feature["name"]] = number
                if visits is not None and _varies(values, customers, visits):
                    varying[feature["name"]] = number
    kinds = columns.get(roles.get("token_type", ""))
    if varying or (visits is not None and kinds is not None and _varies(kinds, customers, visits)):
        labels = varying
    if "time" in roles:
        features += [{"name": name, "kind": name} for name in ("weekday", "days_since_visit") if name not in columns]
    return features, labels


def _cutoffs(times: pd.Series) -> dict:
    """Times that leave the last parts of a log's time for validation and test, and the time zone of the log."""
    zone = times.dt.tz
    if zone is not None:
        try:
            read_zone(str(zone))
        except ValueError:  # an offset
            zone, times = UTC, times.dt.tz_convert(UTC)
        times = times.dt.tz_localize(None)
    last, span = times.max(), times.max() - times.min()
    if not span:
        raise ValueError(f"Column {times.name!r} has one time only, {last}: give a log of several days.")
    unit = "D" if span > pd.Timedelta(days=30) else "s"
    cutoffs = {name: (last - share * span).floor(unit).to_pydatetime() for name, share in HELD_OUT.items()}
    return {"cutoffs": cutoffs} | ({} if zone is None else {"time_zone": str(zone)})
