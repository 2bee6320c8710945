# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The steps of preparation on tables of an engine: open, check, count, split into periods, fit, divide into shards.

A period is 0 training, 1 validation, 2 test, either by dates or by each customer's last visits. Everything that is
fitted comes from period 0. The events of one period stand together in a customer's row.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID
from modeling_mcm.data.cases import CUTOFFS
from modeling_mcm.data.schema import MOST_VALUES, NO_CUTOFFS, EventSchema
from modeling_mcm.events_mcm import SECONDS_PER_DAY, check_columns, to_iso
from modeling_mcm.extras import needs
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import DAYS_SINCE_VISIT, NUMERIC, ONE_TOKEN_TYPE, ROWS, FeatureSpec

from .rows import BAD, RowReader
from .sources import Source, SourceTable

with needs("data"):
    import ibis
    from ibis import _
    from ibis.expr.types import FloatingValue, Table, Value

    from .engine import SPARK, read_on_spark

logger = logging.get_logger(__name__)

LARGEST_AMOUNT = 1e15
NAMED = 3  # customers whom a warning names
LEAST_TARGET_VISITS = 3  # one for training, one for validation and one for the test


def open_rows(
    source: Source,
    connection: ibis.BaseBackend,
    schema: EventSchema,
    folder: Path,
    profile: bool = False,
    start: int = 0,
) -> tuple[Table, int]:
    """Reads a log, or a table of profiles, as a table with the columns of [`RowReader`] but `BAD`. Returns it and the
    number of rows that were left out because they can't be read; `start` is the number of rows before it.

    On Spark the workers read Parquet files and tables of Spark. This process reads everything else, and writes what it
    read into `folder`.
    """
    what, reader, dropped = "profile" if profile else "event", RowReader(schema, profile, start), 0
    table: Any = read_on_spark(source, connection, what, reader) if connection.name == SPARK else None
    text = replace(schema, on_bad_row="error") if profile else schema
    opened = SourceTable(source, what, reader.columns, text) if table is None else None
    if schema.order == ROWS and not profile and not (opened and opened.is_ordered):
        raise ValueError(
            "`order: rows` needs files, a data frame or an Arrow table: the rows of a table of a database or of Spark "
            "have no order of their own. Number the events of a customer in a column, and name it as `order`."
        )
    if opened:
        check_columns(opened.names, reader.columns, f"The {what} table has", "The schema names it.")
        path = folder / f"{what}.parquet"
        with pq.ParquetWriter(path, reader.arrow, compression="zstd", compression_level=1) as writer:
            for block in reader.read(opened.blocks(reader.columns)):
                writer.write_batch(block)
        pa.default_memory_pool().release_unused()  # which the engine needs
        table, dropped = connection.read_parquet(path), opened.dropped
    column, reason = (table[name] for name in BAD)
    bad = table.filter(column.notnull()).group_by(column).agg(rows=_.count(), reason=reason.max())
    for row in bad.to_pyarrow().sort_by(BAD[0]).to_pylist():
        message = f"Column {row[BAD[0]]!r} has {row['rows']} values that cannot be read, such as: {row['reason']}"
        if schema.on_bad_row == "error" or profile:
            raise ValueError(f"{message}. Or set `on_bad_row: drop` in the schema to leave such rows of events out.")
        logger.warning(f"{message}; these rows are left out.")
        dropped += row["rows"]
    return table.filter(column.isnull()).drop(*BAD), dropped


def open_profiles(
    source: Source, connection: ibis.BaseBackend, schema: EventSchema, folder: Path, events: Table
) -> Table:
    """Reads a table of profiles, and leaves out those of no customer. Raises `ValueError` if a customer has several.
    Warns if no profile is of a customer with events: the ids may be written in two ways."""
    profiles = open_rows(source, connection, schema, folder, profile=True)[0].drop_null("customer_id")
    twice = profiles.group_by("customer_id").agg(rows=_.count()).filter(_.rows > 1)
    example = twice.customer_id.min().to_pyarrow().as_py()
    if example is not None:
        raise ValueError(
            f"The profile table has several rows for the customer {example!r} (column {schema.customer!r}); keep one "
            "row a customer."
        )
    if not count_rows(profiles.semi_join(events, "customer_id")):
        ids = [table.customer_id.min().to_pyarrow().as_py() for table in (profiles, events)]
        logger.warning(
            f"No profile is of a customer of the log, so every profile feature is missing: the profiles have ids such "
            f"as {ids[0]!r}, the events such as {ids[1]!r}. Write them alike."
        )
    return profiles


def count_rows(table: Table) -> int:
    """Number of rows of a table."""
    return table.count().to_pyarrow().as_py()


def _one_row(table: Table) -> dict:
    """The values of an aggregate, where a sum over no row is 0."""
    return {name: 0 if value is None else value for name, value in table.to_pyarrow().to_pylist()[0].items()}


def choose_events(
    events: Table, schema: EventSchema, cache: Callable[..., Table], quiet: bool = False
) -> tuple[Table, dict]:
    """Leaves out the events that the schema says, finds the periods, and counts. Warns of customers with too many
    events, and of events to come, unless it is `quiet`. Returns the events that stay, with `period`; and the counts by
    name, with `first` and `last`, times."""
    whole, counts = _drop_and_count(events, schema, cache)
    dated = add_period(whole, schema)
    if schema.leaves_one_out:
        dated = cache(dated)  # the periods need a join
    latest, excess = keep_latest(dated, schema.max_events_per_customer, quiet)
    if excess["dropped_excess"]:
        latest = cache(latest)  # every step reads it
    counts |= excess | _one_row(
        latest.aggregate(
            customers=_.customer_id.nunique(),
            events=_.count(),
            training_targets=(_.to_predict & (_.period == 0)).sum(),
            target_events=_.is_target.sum(),
            first=_.second.min(),
            last=_.second.max(),
            training_events=(_.period == 0).sum(),
            validation_events=(_.period == 1).sum(),
            test_events=(_.period == 2).sum(),
        )
    )
    if not quiet and schema.order is None and counts["last"] > datetime.now(UTC).timestamp() + SECONDS_PER_DAY:
        customer = latest.filter(_.second == counts["last"]).customer_id.min().to_pyarrow().as_py()
        logger.warning(
            f"Customer {customer!r} has an event of {to_iso(counts['last'])}, which is not yet: the clock of a source "
            "may be wrong. Such events count as their customers' latest; correct them, or leave them out."
        )
    return latest, counts


def _drop_and_count(events: Table, schema: EventSchema, cache: Callable[..., Table]) -> tuple[Table, dict]:
    """Counts duplicates and rows without a customer or a time, and leaves out those that the schema says."""
    counts = _one_row(
        events.aggregate(rows=_.count(), null_customer=_.customer_id.isnull().sum(), null_time=_.second.isnull().sum())
    )
    for key, column in (("null_customer", schema.customer), ("null_time", schema.order_column)):
        if counts[key] and schema.on_null == "error":
            raise ValueError(
                f"Column {column!r} is null in {counts[key]} of {counts['rows']} events; correct them, or set "
                "`on_null: drop` in the schema to leave them out."
            )
    whole = events.drop_null(["customer_id", "second"])
    distinct, total, drops = whole.distinct(), count_rows(whole), schema.on_duplicate == "drop"
    if drops:
        whole = distinct = cache(distinct)  # computed once, because it is expensive
    duplicates = total - count_rows(distinct)
    counts |= {"dropped_null": counts["rows"] - total, "duplicates": duplicates}
    return whole, counts | {"dropped_duplicates": duplicates if drops else 0}


def add_period(events: Table, schema: EventSchema) -> Table:
    """Adds `period`: 0, 1 or 2. With dates a visit may lie in two periods. With "leave_one_out" it lies in one: of a
    customer's visits that have something to predict, the last one begins period 2, and the one before it begins period
    1. Customers with fewer than three such visits are in period 0 alone."""
    if schema.cutoffs == NO_CUTOFFS:
        return events.mutate(period=ibis.literal(0, "int8"))
    if not schema.leaves_one_out:
        is_after = [events.second >= schema.cutoff_seconds(key) for key in ("validation", "test")]
        return events.mutate(period=sum(each.cast("int8") for each in is_after))
    keyed, keys = _with_visit_key(events), ["customer_id", "visit_key"]
    visits = keyed.group_by(keys).agg(start=_.second.min(), target=_.to_predict.cast("int8").max())
    visits = visits.mutate(
        passed=_.target.cumsum(group_by="customer_id", order_by=["start", "visit_key"]),
        targets=_.target.sum().over(group_by="customer_id"),
    )
    held_out = (_.targets >= LEAST_TARGET_VISITS).ifelse(ibis.greatest(_.passed - _.targets + 2, 0), 0)
    return keyed.inner_join(visits.select(*keys, period=held_out.cast("int8")), keys).drop("visit_key")


def _with_visit_key(events: Table) -> Table:
    """Adds `visit_key`, which is the same for the events of a visit of a customer."""
    time = ibis.literal("t") + events.second.cast("string")
    return events.mutate(visit_key=ibis.coalesce(ibis.literal("v") + events.visit, time))


def keep_latest(events: Table, most: int, quiet: bool = False) -> tuple[Table, dict[str, int]]:
    """Leaves out all but the latest events of each customer in each period; each period by itself, so that the events
    before a cutoff never depend on what comes after it. Warns of the customers, unless it is `quiet`. Returns the
    events that stay; and `dropped_excess` (number of events left out) and `customers_with_excess` (number of customers
    that had too many)."""
    keys = ["customer_id", "period"]
    long = events.group_by(keys).agg(number=_.count()).filter(_.number > most)
    counts = _one_row(
        long.aggregate(dropped_excess=(_.number - most).sum(), customers_with_excess=_.customer_id.nunique())
    )
    if not counts["dropped_excess"]:
        return events, counts
    if not quiet:
        worst = long.group_by("customer_id").agg(number=_.number.max()).order_by(ibis.desc("number"), "customer_id")
        named = [f"{row['customer_id']!r} ({row['number']:,})" for row in worst.limit(NAMED).to_pyarrow().to_pylist()]
        logger.warning(
            f"{counts['customers_with_excess']:,} customers have more than {most:,} events in a period and lost the "
            f"earliest of them, {counts['dropped_excess']:,} in all: {', '.join(named)}. Leave them out of the log if "
            "they are bots, or raise `max_events_per_customer` in the schema."
        )
    cut = events.semi_join(long, keys)
    # All columns decide, so that the same events are left out whatever the order of the input.
    times = ("second", "nanosecond")
    latest = [*map(ibis.desc, times), *(ibis.asc(name) for name in cut.columns if name not in (*keys, *times))]
    cut = cut.mutate(rank=ibis.row_number().over(group_by=keys, order_by=latest)).filter(_.rank < most).drop("rank")
    return events.anti_join(long, keys).union(cut), counts


def add_shard(events: Table, rows_per_shard: int) -> Table:
    """Adds the number of the customer's shard: in the order of the ids, `rows_per_shard` customers to a shard."""
    customers = events.select("customer_id").distinct()
    index = ibis.row_number().over(order_by="customer_id")
    return events.inner_join(customers.mutate(shard=(index // rows_per_shard).cast("int64")), "customer_id")


# ------------------------------------------------------------------------------------------------ vocabularies, bins


def fit(
    events: Table, profiles: Table | None, schema: EventSchema, on_feature: Callable[[str], None]
) -> MCMFeatureExtractor:
    """Fits the vocabulary or the bins of every feature on the training period (period 0). Ids of every feature: 0 is
    missing, 1 is unknown (never seen, or too rarely), and the values or bins have the ids from 2 on. Values of events
    that are new in a later period follow those of the periods before it."""
    vocabularies = {}
    bins = {}
    known: dict[str, dict[str, int]] = {cutoff: {} for cutoff in CUTOFFS}
    training = events.filter(events.period == 0)
    tables = [(RowReader(schema), training)]
    if profiles is not None:
        members = profiles.semi_join(training.select("customer_id").distinct(), "customer_id")
        tables.append((RowReader(schema, profile=True), members))
    for reader, table in tables:
        names = {spec.name: name for name, spec in reader.stored.items()}
        columns = {feature: table[name] for feature, name in names.items()}
        for spec in reader.specs:
            if spec.is_constant:
                vocabularies[spec.name] = [ONE_TOKEN_TYPE]
            elif spec.kind == NUMERIC:
                bins[spec.name] = fit_bins(columns[spec.name], spec.bins)
                if spec.name == schema.amount:
                    _check_amounts(columns[spec.name], spec)
            elif spec.kind == DAYS_SINCE_VISIT:
                bins[spec.name] = fit_bins(days_between_visits(training), spec.bins)
            elif spec.name in columns:
                values = fit_values(_each_value(columns[spec.name]), spec)
                later: list[list[str]] = [[], []]
                if spec in schema.features and spec != schema.token_feature:  # kinds decide what a target is
                    later = find_later_values(events, names[spec.name], spec, len(values), schema)
                vocabularies[spec.name] = [*values, *later[0], *later[1]]
                for cutoff, number in zip(CUTOFFS, (len(values), len(values) + len(later[0])), strict=True):
                    if number < len(vocabularies[spec.name]):
                        known[cutoff][spec.name] = FIRST_VALUE_ID + number
            elif spec.column is not None:  # it shares the values of a column with an earlier feature
                source = schema.sources[spec.name]
                vocabularies[spec.name] = list(vocabularies[source])
                for sizes in known.values():
                    sizes |= {spec.name: sizes[source]} if source in sizes else {}
            on_feature(spec.name)
    vocabularies[schema.token_feature.name] += schema.reserved_token_types
    return MCMFeatureExtractor.from_schema(schema, vocabularies, bins, known)


def _check_amounts(amounts: FloatingValue, spec: FeatureSpec) -> None:
    """Raises `ValueError` if an amount is so large that sums of squares are no numbers of float32."""
    largest = amounts.abs().max().to_pyarrow().as_py() or 0
    if LARGEST_AMOUNT < largest < float("inf"):
        raise ValueError(
            f"Column {spec.column!r} has an amount of {largest:g}, and the largest that can be summed is "
            f"{LARGEST_AMOUNT:g}: correct it, leave the event out, or remove `amount` from the schema."
        )


def check_same_features(extractor: MCMFeatureExtractor, schema: EventSchema) -> None:
    """Checks that a log that is read by a schema has the features of a checkpoint. Raises `ValueError` if not."""
    known, fix = extractor.schema, "take the schema that the checkpoint was trained with."
    keys = "order", "end_of_visit", "target_token_types", "time_zone", "token_type", "on_duplicate"
    for name in (*keys, "amount", "currency"):
        given, expected = getattr(schema, name), getattr(known, name)
        has_any = name in ("order", "token_type")  # the name of the column may differ
        if (given is None) != (expected is None) if has_any else given != expected:
            raise ValueError(f"`{name}` is {given!r} in the schema and {expected!r} in the checkpoint: {fix}")
    any_columns = {"column": None, "factor": None}  # whose names may differ
    features = [
        [each.to_saved(each in read.profile) | any_columns for each in read.specs.values()] for read in (schema, known)
    ]
    for given, expected in itertools.zip_longest(*features):
        if given != expected:
            raise ValueError(
                f"The schema's features are not the checkpoint's, or in another order: {given} in the schema and "
                f"{expected} in the checkpoint: {fix}"
            )


def _each_value(column: Value) -> Value:
    """The column, with each of several values of an event."""
    return column.unnest() if column.type().is_array() else column


def _count_values(column: Value, spec: FeatureSpec) -> Table:
    """The values of a column with at least `min_count` events, and the `number` of these."""
    table = column.name("value").as_table()
    counts = table.filter(table.value.notnull()).group_by("value").agg(number=_.count())
    return counts.filter(counts.number >= spec.min_count)


def fit_values(column: Value, spec: FeatureSpec) -> list[str]:
    """Finds the values of a feature that are frequent enough. The engine leaves out values by their counts alone, and
    the order is made in this process, so no engine has to sort all values. Returns values with at least `min_count`
    events, `max_values` at most, the most frequent first and equally frequent ones by their text."""
    frequent, most = _count_values(column, spec), spec.max_values or MOST_VALUES
    if spec.max_values:
        frequent = frequent.order_by(ibis.desc("number"))
    values = frequent.limit(most + 1).to_pyarrow().sort_by([("number", "descending"), ("value", "ascending")])
    if len(values) > most:
        if not spec.max_values:
            raise ValueError(
                f"Feature {spec.name!r} has more than {MOST_VALUES:,} values (min_count: {spec.min_count}); set "
                "`max_values` to keep the most frequent, or a higher `min_count`."
            )
        number = values["number"][most]
        values = values.filter(pc.field("number") > number)  # equally frequent ones go together
        if not len(values):
            raise ValueError(
                f"More than `max_values: {most}` values of feature {spec.name!r} have {number} events each, and those "
                "that are as frequent go together, so none would be left: set a higher `max_values`, or `min_count`."
            )
    return values["value"].to_pylist()


def add_values(
    log: Table, events: Table, schema: EventSchema, extractor: MCMFeatureExtractor, folder: Path
) -> tuple[MCMFeatureExtractor, Table]:
    """Adds the values of new events that are frequent enough in the whole log, which holds these events, to the ends
    of a feature extractor's vocabularies, in the order in which they became so. Kinds of events stay: they decide what
    a target is. Returns it, and the customers whose rows change: those of the events, and those who have a value that
    is now known. `folder` is for files of values."""
    vocabularies, customers = dict(extractor.vocabularies), events.select("customer_id")
    for name, spec in RowReader(schema).stored.items():
        if spec.name not in vocabularies or spec == schema.token_feature:
            continue
        known, new = vocabularies[spec.name], _each_value(events[name]).name("value").as_table()
        counts = _count_values(_each_value(log[name]), spec).semi_join(new, "value").to_pyarrow()
        counts = counts.filter(pc.invert(pc.is_in(counts["value"], pa.array(known, pa.string()))))
        room = (spec.max_values or MOST_VALUES) - len(known)
        if room < 1 or not len(counts):
            continue
        pq.write_table(counts, path := folder / f"{name}.parquet")
        having = log.select("customer_id", value=_each_value(log[name]), moment=log.second)
        having = having.semi_join(log.get_backend().read_parquet(path), "value")
        customers = customers.union(having.select("customer_id"))
        found = _find_decisive(having, spec)["value"].to_pylist()[:room]
        values = [*known, *found]
        vocabularies |= {feature: values for feature, source in schema.sources.items() if source == spec.name}
        logger.info(f"{len(found):,} new values of {spec.name}, such as {found[0]!r}.")
    grown = [feature for feature, values in vocabularies.items() if values != extractor.vocabularies[feature]]
    before = {feature: extractor.layout.sizes[feature] for feature in grown}
    sizes = {cutoff: before | extractor.known.get(cutoff, {}) for cutoff in CUTOFFS}
    return extractor.with_values(vocabularies, sizes), customers.drop_null().distinct()


def count_known(events: Table, log: Table, schema: EventSchema) -> int:
    """Counts the rows of new events that a log has already: rows that are equal, as often as it has them. In a log
    whose order is that of its rows it counts a part of the log, which may have begun at any row."""
    if schema.order != ROWS:
        return count_rows(events.intersect(log.filter(log.second >= events.second.min()), distinct=False))
    same = [events[name].identical_to(log[name]) for name in events.columns if name != "second"]
    shifts = events.join(log, same).select(shift=log.second - events.second)
    return shifts.group_by("shift").agg(rows=_.count()).rows.max().to_pyarrow().as_py() or 0


def find_later_values(
    events: Table, name: str, spec: FeatureSpec, number: int, schema: EventSchema
) -> list[list[str]]:
    """Finds the values of a column of events that training has not, or too rarely, beside its `number` of values:
    those that are frequent enough by the end of period 1, and by the end of the log, in the order in which they became
    so. So what comes after a time has no effect on the ids before it. `max_values` holds for all together."""
    moment = events.period.cast("int64") if schema.leaves_one_out else events.second
    table = events.select(value=_each_value(events[name]), period=events.period, moment=moment)
    table = table.filter(table.value.notnull())
    counts = table.group_by("value").agg(number=_.count(), trained=(_.period == 0).sum())
    new = counts.filter((counts.number >= spec.min_count) & (counts.trained < spec.min_count))
    found = _find_decisive(table.semi_join(new, "value"), spec)
    found = found.slice(0, max((spec.max_values or MOST_VALUES) - number, 0))
    return [found.filter(pc.equal(found["period"], period))["value"].to_pylist() for period in (1, 2)]


def _find_decisive(events: Table, spec: FeatureSpec) -> pa.Table:
    """Finds the event that makes each value frequent enough: in the order of their moments, those of one moment by
    the text of the value."""
    place = ibis.row_number().over(group_by="value", order_by="moment")
    decisive = events.mutate(place=place).filter(_.place == spec.min_count - 1).to_pyarrow()
    return decisive.sort_by([("moment", "ascending"), ("value", "ascending")])


def days_between_visits(events: Table) -> FloatingValue:
    """Days from the start of a customer's visit before to that of each visit."""
    visits = _with_visit_key(events).group_by("customer_id", "visit_key").agg(start=_.second.min())
    before = visits.start.lag().over(group_by="customer_id", order_by=visits.start)
    return ((visits.start - before) / SECONDS_PER_DAY).name("days")


def fit_bins(column: FloatingValue, bins: int) -> list[float]:
    """Finds the inner edges of quantile bins of a column's finite numbers, strictly increasing; fewer than `bins - 1`
    where numbers repeat. A quantile lies between the two neighbours of its rank, as numpy defines it."""
    table = column.name("value").as_table()
    finite = table.filter(table.value.abs() < float("inf"))  # `isinf` is always false in Ibis' PySpark backend
    counts = finite.group_by("value").agg(number=_.count()).to_pyarrow().sort_by("value")
    if not len(counts):
        return []
    values, until = counts["value"].to_numpy(), np.cumsum(counts["number"])
    ranks = (until[-1] - 1) * (np.arange(1, bins) / bins)
    whole = np.floor(ranks)
    low, high = (values[np.searchsorted(until, rank, "right")] for rank in (whole, np.ceil(ranks)))
    return np.unique(low + (high - low) * (ranks - whole)).tolist()  # exact where both are equal
