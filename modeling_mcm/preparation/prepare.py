# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From an event log to a prepared data set: check, split by time, fit on the training period, write customers.

The encoding of the feature extractor gives raw values their meaning when they are read, and ids when shards are
written. Between the two are Ibis expressions. DuckDB runs them by default and spills to disk what does not fit in
memory; Spark runs them on many machines. The data set is written into a folder beside its place, which is renamed at
the end. So a full disk leaves nothing, and a run that is killed leaves only a hidden folder that ends in `.partial`.
"""

import importlib.metadata
import math
import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from modeling_mcm.data.cases import CUTOFFS
from modeling_mcm.data.dataset import (
    FEATURE_EXTRACTOR_FOLDER,
    MANIFEST_FILE,
    POPULARITY_FILE,
    PreparedManifest,
    write_table,
)
from modeling_mcm.data.features import check_memory_limit
from modeling_mcm.data.schema import NO_CUTOFFS, EventSchema
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import atomic_folder
from modeling_mcm.preparation.files import describe
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import DAYS_SINCE_VISIT, LogSchema, check_integer

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.engine import caching, choose_engine, open_engine
    from modeling_mcm.preparation.events import (
        LEAST_TARGET_VISITS,
        add_period,
        check_profiles,
        keep_latest,
        open_rows,
    )
    from modeling_mcm.preparation.reading import RowReader
    from modeling_mcm.preparation.rows import ShardEncoder, count_days, popularity, write_shards
    from modeling_mcm.preparation.spark import SPARK
    from modeling_mcm.preparation.vocabulary import Vocabularies, build_vocabularies, fit

logger = logging.get_logger(__name__)

ROWS_PER_SHARD, MOST_ROWS_PER_SHARD = 1024, 1_000_000  # the rows of a shard are in memory at the same time
LIBRARIES = ("modeling-mcm", "ibis-framework", "duckdb", "pyarrow", "numpy", "transformers", "datasets")


def _versions(connection: ibis.BaseBackend) -> dict[str, str]:
    """The versions of Python and of the libraries that make a data set, by name, or "not installed"."""
    versions = {"python": platform.python_version()}
    for name in (*LIBRARIES, *([SPARK] if connection.name == SPARK else [])):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # imported from a checkout
            versions[name] = "not installed"
    return versions


def _one_row(table: ir.Table) -> dict[str, Any]:
    """The values of an aggregate, where a sum over no row is 0."""
    return {name: 0 if value is None else value for name, value in table.to_pyarrow().to_pylist()[0].items()}


def _reusable(output_dir: Path, facts: dict[str, Any], overwrite: bool, reuse: bool) -> PreparedManifest | None:
    """The manifest of the data set in a folder if it can be reused, None if the folder is to be written."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return None
    if not (output_dir / MANIFEST_FILE).is_file():
        raise FileExistsError(f"{output_dir} exists and is no prepared data set; remove it or choose another folder.")
    differs = "it was not asked to be reused"
    if reuse:
        try:
            manifest = PreparedManifest.load(output_dir)
        except ValueError as error:  # the manifest has another format, or is damaged
            differs = f"it can't be reused ({str(error).removesuffix('.')})"
        else:
            # The schema is read and written again, because an older one lacks keys that were added since.
            earlier = {"schema": manifest.event_schema.to_dict(), "input": manifest.input, "options": manifest.options}
            changed = [key for key, value in facts.items() if earlier[key] != value]
            if facts["input"]["events"] is None:
                changed.append("input")
            if not changed:
                return manifest
            differs = f"another {' and '.join(sorted(set(changed)))} made it"
    if not overwrite:
        raise FileExistsError(
            f"{output_dir} is a prepared data set already and {differs}; set overwrite=True (--overwrite) to "
            "replace it."
        )
    return None


def _drop_and_count(
    events: ir.Table, schema: EventSchema, cache: Callable[..., ir.Table]
) -> tuple[ir.Table, dict[str, int]]:
    """Counts duplicates and rows without a customer or a time, and leaves out those that the schema says."""
    is_whole = events.customer_id.notnull() & events.second.notnull()
    counts = _one_row(
        events.aggregate(
            rows=events.count(),
            null_customer=events.customer_id.isnull().sum(),
            null_time=events.second.isnull().sum(),
            whole=is_whole.sum(),
        )
    )
    total = counts.pop("whole")
    for key, column in (("null_customer", schema.customer), ("null_time", schema.order_column)):
        if counts[key] and schema.on_null == "error":
            raise ValueError(
                f"Column {column!r} is null in {counts[key]} of {counts['rows']} events; correct them, or set "
                "`on_null: drop` in the schema to leave them out."
            )
    whole = events.filter(is_whole)
    distinct = whole.distinct()
    if schema.on_duplicate == "drop":
        whole = distinct = cache(distinct)  # computed once, because it is expensive
    duplicates = total - distinct.count().to_pyarrow().as_py()
    dropped = duplicates if schema.on_duplicate == "drop" else 0
    counts |= {"dropped_null": counts["rows"] - total, "duplicates": duplicates, "dropped_duplicates": dropped}
    return whole, counts


def _count_periods(events: ir.Table, schema: EventSchema) -> dict[str, Any]:
    """Counts customers and the events of each period, and finds the times of the first and the last event."""
    counts = _one_row(
        events.aggregate(
            customers=events.customer_id.nunique(),
            events=events.count(),
            training_events=(events.period == 0).sum(),
            training_targets=(events.to_predict & (events.period == 0)).sum(),
            validation_events=(events.period == 1).sum(),
            test_events=(events.period == 2).sum(),
            target_events=events.is_target.sum(),
            first=events.second.min(),
            last=events.second.max(),
        )
    )
    tomorrow = int(datetime.now(UTC).timestamp()) + SECONDS_PER_DAY
    if schema.order is None:
        latest = counts["last"]
        for key in ("first", "last"):
            counts[key] = str(np.datetime64(counts[key], "s")).replace("T", " ")
        if latest > tomorrow:
            logger.warning(
                f"The log has events of {counts['last']}, which is not yet: the clock of a source may be wrong. They "
                "count as their customers' latest; correct them, or leave them out."
            )
    return counts


def _check_profile(profile: Any, schema: EventSchema) -> None:
    """Raises `ValueError` if the schema has features of a profile table and none is given."""
    if schema.profile and profile is None:
        raise ValueError(
            "The schema has `profile` features, but no profile table is given; pass `profile` (--profile)."
        )


def _check_events(
    events: ir.Table, schema: EventSchema, cache: Callable[..., ir.Table]
) -> tuple[ir.Table, dict[str, Any]]:
    """Leaves out the events that the schema says, finds the periods, and counts. Returns the events that stay, with
    `period`; and the counts by name, with the texts `first` and `last`."""
    whole, counts = _drop_and_count(events, schema, cache)
    dated = add_period(whole, schema)
    if schema.leaves_one_out:
        dated = cache(dated)  # the periods need a join
    latest, excess = keep_latest(dated, schema.max_events_per_customer)
    if excess["dropped_excess"]:
        latest = cache(latest)  # every step reads it
    return latest, counts | excess | _count_periods(latest, schema)


def _check_periods(counts: dict[str, Any], schema: EventSchema) -> None:
    """Raises `ValueError` where a cutoff leaves a period without events."""
    if not counts["events"]:
        raise ValueError("Every event was dropped for a missing customer or time; check `customer` and `time`.")
    if schema.cutoffs == NO_CUTOFFS:
        return
    if not counts["target_events"]:
        raise ValueError(
            f"No event has a token type of `target_token_types` ({', '.join(schema.target_token_types)}); "
            f"check them against column {schema.token_type!r}."
        )
    if schema.leaves_one_out and not counts["test_events"]:
        raise ValueError(
            f"No customer has {LEAST_TARGET_VISITS} visits with a label to predict, and `cutoffs: {schema.cutoffs}` "
            "holds out the last two; check `tasks` and `visit`, or set dates as `cutoffs`."
        )
    for key, where in (
        ("training_targets", "No target event is before `cutoffs: validation`"),
        ("validation_events", "No event is between `cutoffs: validation` and `cutoffs: test`"),
        ("test_events", "No event is on or after `cutoffs: test`"),
    ):
        if not counts[key]:
            cutoffs = ", ".join(f"{name} {schema.cutoff(name)}" for name in ("validation", "test"))
            raise ValueError(
                f"{where} ({cutoffs}), and the log runs from {counts['first']} to {counts['last']}; move the cutoffs."
            )


def _warn_without_cases(counts: dict[str, Any], schema: EventSchema) -> None:
    """Warns of each cutoff at which no customer can be evaluated, unless nothing is split by time."""
    for cutoff in CUTOFFS if schema.cutoffs != NO_CUTOFFS else ():
        if not counts[f"{cutoff}_cases"]:
            logger.warning(
                f"No customer has {schema.min_history} target events before the {cutoff} cutoff and one after it: "
                "nothing can be evaluated there. Move the cutoffs or lower `min_history`."
            )


def _warn_without_customers(profiles: ir.Table, events: ir.Table) -> None:
    """Warns if no profile is of a customer with events: the ids may be written in two ways."""
    if not profiles.semi_join(events, "customer_id").count().to_pyarrow().as_py():
        ids = [table.customer_id.min().to_pyarrow().as_py() for table in (profiles, events)]
        logger.warning(
            f"No profile is of a customer of the log, so every profile feature is missing: the profiles have ids such "
            f"as {ids[0]!r}, the events such as {ids[1]!r}. Write them alike."
        )


def _add_shard(events: ir.Table, rows_per_shard: int) -> ir.Table:
    """Adds the number of the customer's shard: in the order of the ids, `rows_per_shard` customers to a shard."""
    customers = events.select("customer_id").distinct()
    index = ibis.row_number().over(ibis.window(order_by=customers.customer_id))
    return events.inner_join(customers.mutate(shard=(index // rows_per_shard).cast("int64")), "customer_id")


def _save_feature_extractor(fitted: Vocabularies, schema: EventSchema, directory: Path) -> None:
    values = {entry.name: getattr(schema, entry.name) for entry in fields(LogSchema) if entry.name != "profile"}
    values |= {key: list(values[key]) for key in ("tasks", "target_token_types")}
    features = [spec.to_saved(spec in schema.profile) for spec in (*schema.features, *schema.profile)]
    values |= {"features": features, "vocabularies": fitted.values, "bins": fitted.bins}
    MCMFeatureExtractor(**values).save_pretrained(directory)


def prepare(
    events: Any,
    schema: EventSchema,
    output_dir: str | Path,
    profile: Any = None,
    feature_extractor: MCMFeatureExtractor | None = None,
    engine: str | ibis.BaseBackend = "duckdb",
    rows_per_shard: int = ROWS_PER_SHARD,
    overwrite: bool = False,
    reuse: bool = False,
    memory_limit: str = "1GB",
    spark_config: Mapping[str, str] | None = None,
) -> PreparedManifest:
    """Prepares an event log: `manifest.json`, `feature_extractor/`, `popularity.parquet` and shards of customers.

    Args:
        events (`Any`): The log, one row per event: a Parquet or CSV file, a folder of them, an address that fsspec
            knows, a list of these, a data frame, an Arrow table or an Ibis table.
        schema (`EventSchema`): What the columns mean. With the cutoffs `NO_CUTOFFS`, as `read_schema` sets them,
            nothing is split by time and no period needs an event: such a data set is for scoring only.
        output_dir (`str` or `Path`): Folder to make.
        profile (`Any`, *optional*): The profile table in any of the same forms; needed if the schema has `profile`.
        feature_extractor ([`MCMFeatureExtractor`], *optional*): Feature extractor of a checkpoint that is to read the
            result. Its vocabularies and bins are used. Default: vocabularies and bins are fitted on the training
            period.
        engine (`str` or `ibis.BaseBackend`): "duckdb", "spark" (docs/production.md), or an Ibis connection to Spark.
            An Ibis table of Spark is always prepared by Spark.
        rows_per_shard (`int`): Largest number of customers in one shard.
        overwrite (`bool`): Whether to replace a prepared data set that is in the folder.
        reuse (`bool`): Whether to return at once if the data set in the folder was made from the same files, schema
            and options.
        memory_limit (`str`): Memory that DuckDB may use before it spills to disk, such as "1GB".
        spark_config (`dict[str, str]`, *optional*): Options of the Spark session, such as
            `{"spark.master": "local[2]"}`.

    Raises:
        ValueError: If the data do not fit the schema. The message names the column and the fix.
        FileExistsError: If `output_dir` exists and neither `overwrite` nor `reuse` applies.
        FileNotFoundError: If there is no such input file.
        OSError: If the disk is full or not writable. Nothing is left behind.
    """
    check_integer(rows_per_shard, "rows_per_shard", 1, MOST_ROWS_PER_SHARD)
    if engine == "duckdb":
        check_memory_limit(memory_limit)
    _check_profile(profile, schema)
    output_dir = Path(output_dir)
    facts = {
        "schema": schema.to_dict(),
        "input": {"events": describe(events), "profile": describe(profile) if schema.profile else None},
        "options": {"rows_per_shard": rows_per_shard},
    }
    if feature_extractor is not None:
        facts["options"]["vocabularies"] = feature_extractor.values_digest
    existing = _reusable(output_dir, facts, overwrite, reuse)
    if existing is not None:
        return existing
    engine = choose_engine(events, engine)
    with (
        atomic_folder(output_dir) as (target, scratch),
        open_engine(engine, scratch, memory_limit, spark_config) as connection,
        # Off (None) where the output is no terminal.
        logging.tqdm(total=len(schema.feature_names) + 2, desc="Preparing", unit="step", disable=None) as bar,
    ):
        with caching(connection) as cache:
            reading = (schema, feature_extractor)
            manifest = _run(events, profile, *reading, connection, cache, target, scratch, rows_per_shard, bar, facts)
        manifest = manifest.save(target)
    return manifest


def _run(
    events: Any,
    profile: Any,
    schema: EventSchema,
    known: MCMFeatureExtractor | None,
    connection: ibis.BaseBackend,
    cache: Callable[..., ir.Table],
    target: Path,
    scratch: Path,
    rows_per_shard: int,
    bar: Any,
    facts: dict[str, Any],
) -> PreparedManifest:
    """Runs the steps in their order. Every table is an Ibis expression, cached where several steps read it."""

    def done(step: str) -> None:
        bar.set_postfix_str(step)
        bar.update()

    read, bad = open_rows(events, connection, schema, scratch)
    if connection.name == SPARK:  # where each step would read the log again
        read = cache(read)
    checked, counts = _check_events(read, schema, cache)
    counts["dropped_bad"] = bad
    if not counts["rows"]:
        left = f" besides the {bad:,} that `on_bad_row: drop` left out" if bad else ""
        raise ValueError(f"The event table is empty; it needs at least one row{left}.")
    _check_periods(counts, schema)
    del counts["first"], counts["last"]
    profiles = None
    if schema.profile:
        profiles = check_profiles(open_rows(profile, connection, schema, scratch, profile=True)[0], schema.customer)
        counts["profiles"] = profiles.count().to_pyarrow().as_py()
        _warn_without_customers(profiles, checked)
    done("checked")
    number = math.ceil(counts["customers"] / rows_per_shard)
    # The rows of a shard lie together, so that reading one shard skips the rest of the table.
    sharded = cache(_add_shard(checked, rows_per_shard), near="shard")
    if known is None:
        has_days = any(spec.kind == DAYS_SINCE_VISIT for spec in schema.features)
        days = count_days(sharded, RowReader(schema), number) if has_days else {}
        fitted = fit(sharded, profiles, schema, days, done)
        _save_feature_extractor(fitted, schema, target / FEATURE_EXTRACTOR_FOLDER)
    else:
        fitted = build_vocabularies(known, schema)
        known.save_pretrained(target / FEATURE_EXTRACTOR_FOLDER)
        bar.update(len(schema.feature_names))
    bar.total = len(schema.feature_names) + 2 + number  # set, because a bar that is off has no total to increase
    shards, values, totals = [], [], defaultdict[str, Counter[str]](Counter)
    for entry, counted in write_shards(sharded, profiles, ShardEncoder(schema, fitted), target, number):
        shards.append(entry)
        values.append(counted.pop("values"))
        for kind, numbers in counted.items():
            totals[kind].update(numbers)
        done(f"shard {len(shards)} of {number}")
    if empty := totals["events"].pop("empty"):
        raise ValueError(
            f"{empty} events have no value in any feature; leave them out of the log, or add a feature that is always "
            "there, such as {name: hour, kind: hour}."
        )
    write_table(target / POPULARITY_FILE, popularity(values, fitted))
    counts |= {kind: dict(totals[kind]) for kind in ("missing", "unknown")}
    counts |= dict(totals["events"]) | dict(totals["cases"])
    _warn_without_cases(counts, schema)
    done("counted")
    measures, versions = dict(totals["measures"]), _versions(connection)
    return PreparedManifest(counts=counts, versions=versions, shards=shards, measures=measures, **facts)
