# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Guesses which columns of a frame say who, when and what, from names and contents; what is not sure is asked."""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import pandas as pd
from pandas.api import types

from modeling_mcm.events_mcm import check_columns
from modeling_mcm.schema_mcm import TOKEN_TYPE

from .guess_times import find_number_format, is_clock, is_time, read_some_times

# Words of column names by their meaning, the best first. What the values are goes before names where it says more.
WORDS = {
    "customer": (
        "customer cust household user client member visitor shopper account player subscriber guest patron borrower "
        "reader reviewer buyer donor patient subject card person email who"
    ).split(),
    "time": "timestamp datetime time date when day dt ts at on".split(),
    "visit": "session visit basket order transaction invoice hadm encounter receipt".split(),
    "token_type": "event action activity behaviour behavior kind token type operation".split(),
}
IDS = set("id ids code number no key sku zip asin type".split())  # numbers so named are no quantities
OWN = {*IDS, *WORDS["customer"]} - {"type", "zip"} | set("name unique pseudo anonymous hash uuid guid loyalty".split())
KINDS = {*WORDS["token_type"], *IDS, "name", "transaction", "trans", "user", "customer"}
NOT_EVENT_TIMES = set("due return returned birth birthday expiry expires until valid end updated modified".split())
LABELS = set(
    "item product article category brand track movie film book store page department manufacturer seller".split()
)
NO_LABELS = {*WORDS["customer"]} | set(  # who, and how it came about
    "status currency uom device platform browser channel payment mode method order ship shipping city state "
    "country".split()
)
PAID = "debit withdrawal amount paid spend spent revenue sales sum total value".split()  # of an event
PRICE, QUANTITY = ["price"], ["quantity", "qty", "units"]
NOT_PAID = set(
    "discount disc cost in credit deposit balance refunded points fee freight shipping tax taxes converted compare "
    "profit score".split()
)
NUMBERS = {*PAID, *PRICE, *QUANTITY, "rating", "count"} | NOT_PAID - {"in"}
MOST_KINDS, MOST_ASKED = 30, 3
FEW, MANY = 20, 1_000  # distinct numbers up to which they are names, and labels from which rare ones are left out
CLOCK = r"\d{1,2}:\d{2}(:\d{2})?"
SUFFIXES = "(?<=[a-z]{3})(id|code|key|name|time|date|uom)$"  # words that are written together with those before
Columns = Mapping[str, pd.Series]
VARIES = 0.02  # share of the visits with several events in which a label has several values, at least
NEARLY = 0.95  # share of the rows in which what is true of the log is true


class Log(NamedTuple):
    """What is known of each event: the customer; the visit, if a column says it; else the time; and the day."""

    customers: pd.Series
    visits: pd.Series | None
    moments: pd.Series
    days: pd.Series | None


def find_roles(columns: Columns, times: Columns, given: Mapping) -> dict:
    """The columns that have a role; `times` are those that look like times. Raises `ValueError` if there is none of
    the customer or the time, or several may be; the message asks."""
    roles = {role: given[role] for role in WORDS if given.get(role) is not None}
    check_columns(list(columns), roles.values(), "The table has")
    owners = [name for name, values in columns.items() if name not in times and _may_own(values)]
    if "time" not in given and given.get("order") is None:
        roles["time"] = _find_time(columns, times, owners)
    if "customer" not in given:
        when = columns.get(roles.get("time", str(given.get("order"))), pd.Series(dtype=object))
        roles["customer"] = _find_customer({name: columns[name] for name in owners}, when)
    for role in ("visit", "token_type"):
        rest = {name: values for name, values in columns.items() if name not in (*roles.values(), *times)}
        if role not in given and (name := _find_column(role, rest, columns[roles["customer"]])):
            roles[role] = name
    return roles


def make_question(role: str, names: Sequence[str], words: str = "") -> ValueError:
    """The error that asks which column has a role."""
    names = [*dict.fromkeys(names)] or ["COLUMN"]
    asked = " or ".join(map(repr, names[:MOST_ASKED]))
    return ValueError(f"{role}: {asked}? {words}Give schema={{{role!r}: {names[0]!r}}}.")


def narrow(names: Sequence[str], *tests: Callable[[str, Sequence[str]], Any]) -> list[str]:
    """The names that pass each test, of a name and those that are left, which some of them pass."""
    left = list(names)
    for test in tests:
        left = [name for name in left if test(name, left)] or left
    return left


def looks_like_time(values: pd.Series) -> bool:
    """Whether values are times by how they are written, and numbers by the column's name, too."""
    if is_time(values):
        return True
    if not find_words(str(values.name)) & {*WORDS["time"]}:
        return False
    numbers = pd.to_numeric(values.dropna(), errors="coerce")
    return len(numbers) > 0 and find_number_format(numbers) is not None


def _find_time(columns: Columns, times: Columns, owners: Sequence[str]) -> str:
    """The column of the event's time. Raises `ValueError` if there is none, or several may be it."""
    names = [name for name in times if not find_words(name) & NOT_EVENT_TIMES]
    if not names:  # what can't be read is told by name
        named = {name: values for name, values in columns.items() if not find_words(name) & NOT_EVENT_TIMES}
        dated = {name: values for name, values in named.items() if not is_clock(values)}
        name = _find_column("time", dated) or _find_column("time", named)
        if (order := _find_order(columns, owners)) or not name:
            hint = f"as {order!r} counts each customer's visits" if order else "if a customer's rows are in order"
            raise ValueError(
                f"No column of {list(columns)} is a time: give schema={{'time': 'COLUMN'}}, or, {hint}, "
                f"schema={{'order': {order or 'rows'!r}}}."
            )
        return name
    if len(names) == 1:
        return names[0]
    read = {name: read_some_times(times[name]) for name in names}
    nulls, sizes = ({name: getattr(read[name], key)() for name in names} for key in ("isna", "nunique"))
    people = [columns[name] for name in owners if find_words(name) & {*WORDS["customer"]}]
    left = narrow(
        names,
        lambda name, left: nulls[name].mean() <= min(nulls[other].mean() for other in left) + 1 - NEARLY,
        lambda name, left: not any(_determines(who, read[name]) for who in people),  # as a day of birth
        lambda name, left: find_words(name) <= {*WORDS["time"]},
        lambda name, left: sizes[name] >= 0.9 * max(sizes[other] for other in left),  # no day beside a time
        lambda name, left: all((read[name] <= read[other])[~nulls[other]].mean() >= NEARLY for other in left),
    )
    if any(not read[left[0]].equals(read[name]) for name in left[1:]):
        raise make_question("time", left)
    return left[0]


def share_alike(values: pd.Series, *keys: pd.Series) -> float:
    """Share of the groups of several rows that have at most one value. Not a number if there are no such groups."""
    counts = values.groupby([*keys], observed=True).agg(["size", "nunique"])
    return float((counts.loc[counts["size"] > 1, "nunique"] <= 1).mean())


def _determines(one: pd.Series, other: pd.Series) -> bool:
    """Whether nearly each value of a column that has several rows has one value of another."""
    return share_alike(other, one) >= 1 - VARIES


def _find_order(columns: Columns, owners: Sequence[str]) -> str | None:
    """A column that counts 1, 2, 3, ... for each customer, if one is named so."""
    for who in (name for name in owners if find_words(name) & {*WORDS["customer"]}):
        for name, values in columns.items():
            if types.is_integer_dtype(values) and name != who and values.nunique() > 2:
                if (values.groupby(columns[who], observed=True).rank("dense") == values).mean() >= NEARLY:
                    return name
    return None


def _may_own(values: pd.Series) -> bool:
    """Whether the values can be ids of customers: they come again, and are no quantities."""
    known = values.dropna()
    is_whole = not types.is_float_dtype(values) or bool((known % 1 == 0).all())
    return (
        is_whole
        and not find_words(str(values.name)) & NUMBERS
        and 1 <= known.nunique()
        and not types.is_bool_dtype(values)
    )


def _find_customer(columns: Columns, when: pd.Series) -> str:
    """The column of the customer. Raises `ValueError` if nothing says so, or several may be it."""
    words = {name: find_words(name) for name in columns}
    named = [name for name in columns if words[name] & {*WORDS["customer"]} and words[name] <= OWN]
    nulls = {name: values.isna().mean() for name, values in columns.items()}
    left = narrow(
        named,
        lambda name, left: nulls[name] <= 0.5,
        lambda name, left: _comes_back(columns[name], when),
        lambda name, left: words[name] <= {*IDS, *WORDS["customer"]},
        lambda name, left: nulls[name] <= min(nulls[other] for other in left) + 1 - NEARLY,
        lambda name, left: words[name] & IDS,
    )
    left.sort(key=lambda name: min(map(WORDS["customer"].index, words[name] & {*WORDS["customer"]})))
    best = next(iter(left), None)
    rivals = [name for name in left[1:] if not _is_nested(columns[left[0]], columns[name])]
    if rivals:
        raise make_question("customer", [left[0], *rivals])
    again = [name for name in columns if nulls[name] < 1 and _comes_back(columns[name], when)]
    if best and nulls[best] <= 0.5 and (best in again or not again):
        return best
    if not best and len(again) == 1 and words[again[0]] <= IDS:  # a bare `id` that comes again is no id of the row
        return again[0]
    again.sort(key=lambda name: (not words[name] & OWN, bool(words[name] & LABELS), -columns[name].nunique()))
    if not best:
        raise make_question("customer", again)
    found = f"is null in {nulls[best]:.0%} of the rows" if nulls[best] > 0.5 else "has another value at each time"
    raise make_question("customer", [best, *again], f"{best!r} {found}. ")


def _is_nested(one: pd.Series, other: pd.Series) -> bool:
    """Whether the customers of one column are groups of those of the other."""
    return _determines(one, other) or _determines(other, one)


def _comes_back(values: pd.Series, when: pd.Series) -> bool:
    """Whether some of the values come at several times."""
    when = when if len(when) else values.index.to_series()
    return bool(when.groupby(values, observed=True).nunique().max() > 1)


def find_words(name: str) -> set[str]:
    """The words of a column's name: "user" and "id" of user_id, UserID and userid."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)
    return {word for part in parts for word in re.sub(SUFFIXES, r" \1", part.lower()).split()}


def is_counted(name: str) -> bool:
    """Whether a column is named as one of quantities."""
    words = find_words(name)
    return bool(words & NUMBERS and not words & {"id", "code"}) or name.lower().startswith("number")  # `number_of_cds`


def _find_column(role: str, columns: Columns, customers: pd.Series | None = None) -> str | None:
    """The column that is named like a role, if its values can have it."""
    words = {name: find_words(name) for name, values in columns.items() if _fits(role, values, customers)}
    for is_bare in (True, False):
        for word in WORDS[role]:
            for name, own in words.items() if is_bare or word not in IDS else ():
                if word in own and (not is_bare or own <= {word, *IDS, *WORDS[role]}):
                    return name
    return None


def _fits(role: str, values: pd.Series, customers: pd.Series | None) -> bool:
    """Whether the values of a column can have a role."""
    if role == "visit":  # of most events, not the same few for everybody, and not another one in each row
        known = values.dropna()
        is_usual = customers is not None and customers.nunique() <= known.nunique() < len(known)
        return is_usual and len(known) > len(values) / 2
    if role == "time":
        return True
    return find_words(str(values.name)) <= KINDS and values.nunique() <= MOST_KINDS


def find_features(columns: Columns, read: Set[str], roles: Mapping, log: Log) -> tuple[list[dict], dict[str, int]]:
    """Features of the columns but those that are read otherwise, and the number of labels of those that can be
    tasks."""
    features = []
    labels, varying = {}, {}
    if "token_type" in roles:
        features.append({"name": roles["token_type"]})

    def varies(values: pd.Series) -> bool:  # in the events of a visit
        return log.visits is not None and share_alike(values, log.customers, log.visits) <= 1 - VARIES

    for name, values in columns.items():
        number, words = values.nunique(), find_words(name)
        if name in read or number < 2:
            continue
        is_number, counts = types.is_numeric_dtype(values) and not types.is_bool_dtype(values), is_counted(name)
        kind, known = types.infer_dtype(values), values.dropna()
        is_number |= kind == "decimal"
        if kind == "string":  # 1.50 is no id
            is_number |= counts and bool(pd.to_numeric(known, errors="coerce").notna().all())
            is_number |= bool(known.str.fullmatch(r"-?\d+\.\d+").all())
        is_id = not is_number or bool(words & {*IDS, *LABELS, *WORDS["customer"]})
        if not is_number and known.astype(str).str.fullmatch(CLOCK).all():
            continue  # the time of the day, beside the date
        feature = {"name": name} if name != TOKEN_TYPE else {"name": f"{name}_column", "column": name}
        if is_number and (counts or not (is_id or number <= FEW)):
            features.append(feature | {"kind": "numeric"})
        elif not _is_own(values, log):
            features.append(feature | ({"min_count": 5} if number > MANY else {}))
            if is_id and not _is_no_label(values, log):
                labels[feature["name"]] = number
                if varies(values):
                    varying[feature["name"]] = number
    kinds = columns.get(roles.get("token_type", ""))
    if varying or (kinds is not None and varies(kinds)):
        labels = varying
    if rich := {name: number for name, number in labels.items() if number > 2 and not find_words(name) & NO_LABELS}:
        labels = rich
    if "time" in roles:
        features += [{"name": name, "kind": name} for name in ("weekday", "days_since_visit") if name not in columns]
    return features, labels


def _is_own(values: pd.Series, log: Log) -> bool:
    """Whether the values, of which there are many, nearly all come at one moment, as a remark or the number of an
    order, or with one customer, as an address or a subscription."""
    number = values.nunique()
    if number > len(values) / 2 or number <= FEW:
        return number > FEW
    rows = pd.DataFrame({"value": values, "customer": log.customers, "moment": log.moments}).dropna().drop_duplicates()
    return not rows["value"].duplicated(keep=False).mean() > 1 - NEARLY or _determines(values, log.customers)


def _is_no_label(values: pd.Series, log: Log) -> bool:
    """Whether a column says yes or no, is of the customer or of the day, or counts the lines of a visit."""
    if types.is_bool_dtype(values) or _determines(log.customers, values):
        return True
    if log.days is not None:
        shared = log.days[log.customers.groupby(log.days).transform("nunique") > 1]  # days of several customers
        if shared.nunique() >= FEW and _determines(shared, values):
            return True
    if log.visits is None or not types.is_integer_dtype(values):
        return False
    return bool((values.groupby([log.customers, log.visits]).rank() == values).mean() >= NEARLY)
