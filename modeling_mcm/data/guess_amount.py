# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Guesses which column of a frame says what was paid, and how it is computed."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types

from .guess_columns import (
    IDS,
    MOST_KINDS,
    NEARLY,
    NO_LABELS,
    NOT_PAID,
    PAID,
    PRICE,
    QUANTITY,
    WORDS,
    Columns,
    Log,
    find_words,
    is_counted,
    make_question,
    narrow,
    share_alike,
)

WEAK = {"total", "value"}  # alone, they may be anything
# Words of what is no payment of the customer, of what is paid back, and of what speaks against both
UNPAID = set(
    "salary income credit deposit incoming in cr topup wage interest view click cart search wishlist browse failed "
    "canceled cancelled declined void".split()
)
PAID_BACK, PAYMENTS = set("refund refunded return returned chargeback reversal".split()), {"card", "payment"}
DIRECTIONS = {*WORDS["token_type"], "direction", "side", "transaction", "status"}  # words of columns that say so
BALANCE = {"balance", "account", "running", "saldo"}
SIGNS = {"without": 0, "minus": -1}
# Before and after the digits of an amount in text: $, US$, "EUR ", Rs. or kr
BEFORE = r"(?:[^\W\d]{1,4}\.?\s|[^\W\d]{1,3}\.|[^\W\d]{0,3}[^\w\s.,()-]{1,2}\s?)?"
AFTER = r"(?:\s?[^\W\d]{1,4}\.?|\s?[^\w\s.,()-]{1,2})?"
# What may say that it is negative, then digits, by decimal mark
MONEY = {
    mark: rf"^\s*([-−(]?{BEFORE}[-−]?)"
    rf"(\d{{1,3}}(?:[{group}'\s]\d{{3}})+(?:[{mark}]\d+)?|\d*[{mark}]\d+|\d+){AFTER}\)?\s*$"
    for mark, group in (".,", ",.")
}
SYMBOLS = "[$€£¥₹₩₽₺]"
OUTFLOW = "paid"  # a column that is added


class Amount(NamedTuple):
    """What is guessed of the amount."""

    words: str
    name: str | None = None  # of the feature
    added: list[dict] = []  # features besides those of the columns
    paid: dict = {}  # see `FrameReader`


def guess_amount(
    columns: Columns, features: Sequence[Mapping], log: Log, item: pd.Series | None, events: pd.DataFrame
) -> Amount:
    """Which feature says what was paid, and how it is computed. `item`: what was bought; `events`: all rows, which
    say whether money was paid back."""
    numeric = {str(each["name"]): columns[each["name"]] for each in features if each.get("kind") == "numeric"}
    name, factor = _find_amount(numeric, log, item)
    if not name:
        unsure = [name for name in numeric if find_words(name) & {*PRICE, *WEAK} and not find_words(name) & NOT_PAID]
        hint = f"; if {unsure[0]!r} does, give schema={{'amount': {unsure[0]!r}}}" if unsure else ""
        return Amount(f"none: no column says what was paid{hint}")
    words, amounts = f"{name!r} x {factor!r}" if factor else f"{name!r}", _multiply(events, name, factor)
    paid = _find_direction(events, words, amounts)
    if not paid:
        if back := int((amounts < 0).sum()):
            words += f"; what is below 0, in {back:,} rows, was paid back"
        added = [{"name": "amount", "kind": "numeric", "column": name, "factor": factor}] if factor else []
        return Amount(words, "amount" if factor else name, added)
    out = OUTFLOW if OUTFLOW not in columns else f"{OUTFLOW}_out"
    direction, signs = paid.values()
    if direction is None:
        words = f"what is negative in {words}; what is positive came in and is not counted"
    else:
        kinds = [sorted(kind for kind in signs if signs[kind] == sign) for sign in SIGNS.values()]
        shown = [f"{word} {', '.join(each)}" for word, each in zip(SIGNS, kinds, strict=True) if each]
        words += f" by {direction!r}, {' and '.join(shown)}"
    return Amount(words, out, [{"name": out, "kind": "numeric"}], {"amount": name, "factor": factor, **paid})


def find_money(columns: Columns) -> dict[str, str]:
    """The decimal marks of columns with amounts in text, such as "$2.78" or "1.234,56". Raises `ValueError` if one
    may have two."""
    found = {}
    for name, values in columns.items():
        texts = values.dropna().drop_duplicates()
        if types.infer_dtype(texts) != "string" or pd.to_numeric(texts, errors="coerce").notna().all():
            continue
        if not (is_counted(name) or texts.str.contains(SYMBOLS).all()):
            continue
        read = {mark: read_money(texts, mark) for mark in MONEY}
        marks = [mark for mark, numbers in read.items() if numbers.notna().all()]
        if len(marks) > 1 and len(differs := texts[read["."] != read[","]]):
            raise ValueError(
                f"Column {name!r} has {differs.iloc[0]!r}, whose mark may be that of decimals or of thousands, and no "
                f"row says which: write events[{name!r}] = events[{name!r}].str.replace(...).astype(float)."
            )
        if marks:
            found[name] = marks[0]
    return found


def read_money(texts: pd.Series, mark: str) -> pd.Series:
    """The numbers of amounts in text with a decimal mark; NaN where a text is none."""
    parts = texts.str.extract(MONEY[mark])
    numbers = pd.to_numeric(parts[1].str.replace(rf"[^\d{mark}]", "", regex=True).str.replace(mark, "."))
    return numbers.mask(parts[0].str.contains("[-−(]", na=False), -numbers)


def _find_amount(numeric: Columns, log: Log, item: pd.Series | None) -> tuple[str | None, str | None]:
    """The numeric column that says what was paid, if one does, and the one that multiplies it, if it is the price of
    one unit. Raises `ValueError` if several may be it."""
    words, numbers = (
        {name: find_words(name) for name in numeric},
        {name: pd.to_numeric(numeric[name]) for name in numeric},
    )

    def is_total(name: str) -> bool:  # of a visit, which its rows must not add
        return share_alike(numbers[name].dropna(), log.customers, log.moments) >= NEARLY

    money = [name for name in numeric if words[name] & {*PAID, *PRICE} and not words[name] & NOT_PAID]
    counts = [name for name in money if not words[name] & {*PRICE, *NO_LABELS, *IDS} and _is_count(numbers[name])]
    counts = counts if len(counts) < len(money) else []  # Ta-Feng's AMOUNT is that of units, beside a price
    units = [name for word in QUANTITY for name in numeric if word in words[name]] + counts
    paid = [name for name in money if words[name] & {*PAID} and name not in units]
    paid = [name for name in paid if not words[name] <= WEAK and not is_total(name)]
    ranks = {name: min(map(PAID.index, words[name] & {*PAID})) for name in paid}
    paid = narrow(
        paid,
        lambda name, left: numbers[name].notna().mean() >= 0.5,
        lambda name, left: words[name] <= {*PAID},
        lambda name, left: ranks[name] == min(ranks[other] for other in left),
    )
    if len(paid) > 1 and any(not numbers[paid[0]].equals(numbers[name]) for name in paid):
        raise make_question("amount", paid)
    prices = [name for name in paid or money if words[name] & {*PRICE}]
    if prices and units and not _is_of_line(numbers[prices[0]], numbers[units[0]], item):
        return prices[0], units[0]
    return next(iter(paid or prices * bool(units)), None), None


def _is_count(numbers: pd.Series) -> bool:
    """Whether numbers are those of units: whole and small."""
    return bool((numbers.dropna() % 1 == 0).all()) and numbers.median() <= 5


def _is_of_line(price: pd.Series, units: pd.Series, item: pd.Series | None) -> bool:
    """Whether the price of an item grows with its units, so that it is that of all of them."""
    rows = np.log(pd.DataFrame({"price": price, "units": units}).where(lambda each: each > 0))
    rows = rows[rows.notna().all(axis=1)]
    rows -= rows.mean() if item is None else rows.groupby(item[rows.index], observed=True).transform("mean")
    return bool((rows["price"] * rows["units"]).sum() > 0.5 * (rows["units"] ** 2).sum())


def _find_direction(columns: Columns, name: str, amounts: pd.Series) -> dict:
    """Which of the amounts the customer paid, if not all: the negative ones where these are most, or those whose kind
    does not say that money came in. Raises `ValueError` if there is a balance, and nothing says which came in."""
    is_negative = (amounts < 0).sum() / max((amounts != 0).sum(), 1)
    if is_negative >= 0.5:
        return {"direction": None, "signs": {}}
    if is_negative:
        return {}
    for column, values in columns.items():
        if types.is_numeric_dtype(values) or not find_words(column) & DIRECTIONS or values.nunique() > MOST_KINDS:
            continue
        words = {str(kind): find_words(str(kind)) for kind in values.dropna().unique()}
        paid_back = 0 if "status" in find_words(column) else -1  # what is refunded in the end was not paid
        signs = {kind: paid_back for kind, own in words.items() if own & PAID_BACK}
        signs |= {kind: 0 for kind, own in words.items() if own & UNPAID and not own & PAYMENTS}
        if 0 < len(signs) < len(words):
            return {"direction": column, "signs": signs}
    if any(find_words(column) <= BALANCE for column in columns):
        raise ValueError(
            f"amount: beside a balance some of {name} may have come in, and nothing says which. Give "
            f"schema={{'amount': {name}}} if all was paid, or schema={{'amount': None}}."
        )
    return {}


def _multiply(columns: Columns | pd.DataFrame, amount: str, factor: str | None) -> pd.Series:
    """The numbers of a column, times those of another."""
    amounts = pd.to_numeric(columns[amount])
    return amounts * pd.to_numeric(columns[factor]) if factor else amounts


def compute_outflow(
    frame: pd.DataFrame, amount: str, direction: str | None, signs: Mapping[str, int], factor: str | None = None
) -> pd.Series:
    """What was paid; the arguments are those of `FrameReader.paid`."""
    amounts = _multiply(frame, amount, factor)
    if direction is None:
        return (-amounts).clip(lower=0)
    return amounts * frame[direction].astype(str).map(signs).fillna(1)
