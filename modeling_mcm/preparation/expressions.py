# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Ibis expressions that mean the same on every engine, though each has its own ways with texts, numbers and types."""

import functools
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from modeling_mcm.extras import needs

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.spark import SPARK, shortest_text


def split_text(text: ir.StringValue, separator: str) -> ir.ArrayValue:
    """Splits a text at a separator. Spark reads a separator as a regular expression, so it is escaped there."""
    return text.split(re.escape(separator) if text.get_backend().name == SPARK else separator)


def text_of_float(number: ir.FloatingValue) -> ir.StringValue:
    """Writes a number as the shortest text that reads back to it, as DuckDB does. Java 17 writes it differently."""
    return shortest_text(number) if number.get_backend().name == SPARK else number.cast("string")


def known_types(table: ir.Table) -> ir.Table:
    """Replaces the types that Ibis does not know: DuckDB's nanoseconds with a zone, and columns without values.
    Returns the table, with UTC timestamps and text in the place of these types."""
    changed = {}
    for name, kind in table.schema().items():
        raw = str(getattr(kind, "raw_type", "")).upper()
        if kind.is_null() or "NULL" in raw:
            changed[name] = ibis.null("string")
        elif "TIMESTAMPTZ_NS" in raw or "TIMESTAMP_NS WITH TIME ZONE" in raw:
            changed[name] = table[name].cast("timestamp('UTC')")
    return table.mutate(**changed) if changed else table


def total(terms: Sequence[ir.Value], start: int) -> ir.Value:
    """Adds up expressions and a number."""
    return tree(operator.add, [*terms, ibis.literal(start)])


def tree(join: Callable[[Any, Any], Any], terms: Sequence[ir.Value]) -> ir.Value:
    """Joins many expressions into one, two by two. Engines recurse, and a chain of a thousand is too deep for them."""
    while len(terms) > 1:
        terms = [functools.reduce(join, terms[index : index + 2]) for index in range(0, len(terms), 2)]
    return terms[0]
