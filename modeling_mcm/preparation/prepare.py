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
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers.utils import logging

from modeling_mcm import __version__
from modeling_mcm.data import NO_CUTOFFS, EventSchema, PreparedManifest
from modeling_mcm.data.dataset import FEATURE_EXTRACTOR_FOLDER, LOG, LOG_PROFILE, MANIFEST_FILE, describe_file
from modeling_mcm.events_mcm import to_iso
from modeling_mcm.extras import needs
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.files_mcm import remove_abandoned
from modeling_mcm.folders import atomic_folder
from modeling_mcm.schema_mcm import check_integer

from .rows import ShardEncoder, add_counts, check_empty, write_shard
from .sources import Source, describe

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from .engine import SPARK, caching, each_shard, open_engine
    from .tables import (
        LEAST_TARGET_VISITS,
        add_shard,
        check_same_features,
        choose_events,
        count_rows,
        fit,
        open_profiles,
        open_rows,
    )

ROWS_PER_SHARD, MOST_ROWS_PER_SHARD = 1024, 1_000_000  # the rows of a shard are in memory at the same time
LIBRARIES = ("ibis-framework", "duckdb", "pyarrow", "numpy", "transformers", "datasets")


def _reusable(output_dir: Path, facts: dict, overwrite: bool, reuse: bool) -> PreparedManifest | None:
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
            changed = [key for key, value in facts.items() if getattr(manifest, key) != value]
            inputs = facts["input"]
            if inputs["events"] is None or (facts["schema"].get("profile") and inputs["profile"] is None):
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


def _check_periods(counts: dict, schema: EventSchema) -> None:
    """Raises `ValueError` if there is no event, or a cutoff leaves a period without events."""
    if not counts["rows"]:
        bad = counts["dropped_bad"]
        left = f" besides the {bad:,} that `on_bad_row: drop` left out" if bad else ""
        raise ValueError(f"The event table is empty; it needs at least one row{left}.")
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
        ("training_targets", "No target event is before {validation}"),
        ("validation_events", "No event is between {validation} and {test}"),
        ("test_events", "No event is on or after {test}"),
    ):
        if not counts[key]:
            missing = where.format(**{name: f"{name} ({schema.cutoff(name)})" for name in ("validation", "test")})
            raise ValueError(
                f"{missing}, and the log runs from {to_iso(counts['first'])} to {to_iso(counts['last'])}: give other "
                "`cutoffs`, or a longer log."
            )


def write_shards(
    events: ir.Table, profiles: ir.Table | None, encoder: ShardEncoder, directory: Path, number: int
) -> Iterator[tuple[dict, dict]]:
    """Writes all shards into a folder. Yields the entry of each shard in the manifest, in the order of the shards, and
    what was counted in it."""
    if profiles is not None:
        events = events.left_join(profiles, "customer_id").drop("customer_id_right")

    def write(index: int, rows: pa.Table) -> dict:
        table, counts = encoder.encode(rows)
        entry = write_shard(table, directory / f"customers-{index:05d}-of-{number:05d}.parquet")
        return {"entry": entry, "counts": counts}

    for written in each_shard(events, number, write):
        if not (directory / written["entry"]["file"]).is_file():
            raise OSError(
                f"{written['entry']['file']} was written by a worker and is not in {directory.parent.parent}: give an "
                "output folder on storage that all machines of the cluster share."
            )
        yield written["entry"], written["counts"]
    remove_abandoned(directory)  # by a lost worker, whose shard another worker wrote


def keep_log(scratch: Path, target: Path, number: int = 0) -> list[dict]:
    """Moves what [`~.tables.open_rows`] read from the scratch folder into the folder `LOG` of a data set, as the
    file with a number. Returns the entries of the manifest: events, and perhaps profiles."""
    folder, entries = target / LOG, []
    folder.mkdir(exist_ok=True)
    for what, name in (("event", f"events-{number:05d}.parquet"), ("profile", LOG_PROFILE)):
        if (read := scratch / f"{what}.parquet").is_file():
            path = folder / name
            shutil.move(read, path)
            entries.append(describe_file(path, pq.read_metadata(path).num_rows))
    return entries


def prepare(
    events: Source,
    schema: EventSchema,
    output_dir: str | Path,
    profile: Source | None = None,
    feature_extractor: MCMFeatureExtractor | None = None,
    engine: str | ibis.BaseBackend = "duckdb",
    rows_per_shard: int = ROWS_PER_SHARD,
    overwrite: bool = False,
    reuse: bool = False,
    memory_limit: str = "1GB",
    spark_config: Mapping[str, str] | None = None,
    keep: bool = True,
) -> PreparedManifest:
    """Prepares an event log: `manifest.json`, `feature_extractor/` and shards of customers.

    Args:
        events (`Source`): The log, one row per event: a Parquet or CSV file, a folder of them, an address that fsspec
            knows, a list of these, a data frame, an Arrow table or an Ibis table.
        schema (`EventSchema`): What the columns mean. With the cutoffs `NO_CUTOFFS`, as `read_schema` sets them,
            nothing is split by time and no period needs an event: such a data set is for scoring only.
        output_dir (`str` or `Path`): Folder to make.
        profile (`Source`, *optional*): The profile table in any of the same forms; needed if the schema has `profile`.
        feature_extractor ([`MCMFeatureExtractor`], *optional*): Feature extractor of a checkpoint that is to read the
            result. Its vocabularies and bins are used. Default: they are fitted on the training period, and values
            that are new in a later period follow.
        engine (`str` or `ibis.BaseBackend`): "duckdb", "spark" (docs/production.md), or an Ibis connection to Spark.
            An Ibis table of Spark is always prepared by Spark.
        rows_per_shard (`int`): Largest number of customers in one shard.
        overwrite (`bool`): Whether to replace a prepared data set that is in the folder.
        reuse (`bool`): Whether to return at once if the data set in the folder was made from the same files, schema
            and options.
        memory_limit (`str`): Memory that DuckDB may use before it spills to disk, such as "1GB".
        spark_config (`dict[str, str]`, *optional*): Options of the Spark session, such as
            `{"spark.master": "local[2]"}`.
        keep (`bool`): Whether to keep the log as it was read in the folder, so that `mcm refresh` can add to it.

    Raises:
        ValueError: If the data do not fit the schema. The message names the column and the fix.
        FileExistsError: If `output_dir` exists and neither `overwrite` nor `reuse` applies.
        FileNotFoundError: If there is no such input file.
        OSError: If the disk is full or not writable. Nothing is left behind.
    """
    check_integer(rows_per_shard, "rows_per_shard", 1, MOST_ROWS_PER_SHARD)
    if bool(schema.profile) != (profile is not None):
        raise ValueError(
            "`profile` features of the schema and a profile table (--profile) go together: give both, or none of them."
        )
    if feature_extractor is not None:
        check_same_features(feature_extractor, schema)
    if isinstance(events, ir.Table) and (backend := events.get_backend()).name == SPARK:
        engine = backend
    output_dir = Path(output_dir)
    facts: dict = {
        "schema": schema.to_dict(),
        "input": {"events": describe(events), "profile": describe(profile) if schema.profile else None},
        "options": {"rows_per_shard": rows_per_shard},
    }
    if feature_extractor is not None:
        facts["options"]["vocabularies"] = feature_extractor.values_digest
    if existing := _reusable(output_dir, facts, overwrite, reuse):
        return existing
    with (
        atomic_folder(output_dir) as (target, scratch),
        open_engine(engine, scratch, memory_limit, spark_config) as connection,
        caching(connection) as cache,
        # Off (None) where the output is no terminal.
        logging.tqdm(desc="Preparing", unit="step", disable=None) as bar,
    ):

        def done(step: str) -> None:
            bar.set_postfix_str(step)
            bar.update()

        # Every table is an Ibis expression, cached where several steps read it.
        read, bad = open_rows(events, connection, schema, scratch)
        is_spark = connection.name == SPARK
        if is_spark:  # where each step would read the log again
            read = cache(read)
        chosen, counts = choose_events(read, schema, cache)
        counts["dropped_bad"] = bad
        _check_periods(counts, schema)
        profiles = None
        if schema.profile:
            profiles = open_profiles(profile, connection, schema, scratch, chosen)
            counts["profiles"] = count_rows(profiles)
        done("checked")
        number = math.ceil(counts["customers"] / rows_per_shard)
        sharded = add_shard(chosen, rows_per_shard)
        # The rows of a shard lie together, so that reading one shard skips the rest; Spark groups them when it reads
        sharded = cache(sharded if is_spark else sharded.order_by("shard"))
        extractor = feature_extractor or fit(sharded, profiles, schema, done)
        extractor.save_pretrained(target / FEATURE_EXTRACTOR_FOLDER)
        shard_encoder = ShardEncoder(schema, extractor)
        shards = []
        for entry, counted in write_shards(sharded, profiles, shard_encoder, target, number):
            shards.append(entry)
            add_counts(counts, counted)
            done(f"shard {len(shards)} of {number}")
        check_empty(counts)
        measures = counts.pop("measures")
        libraries = [*LIBRARIES, SPARK] if is_spark else LIBRARIES
        versions = {"python": platform.python_version(), "modeling-mcm": __version__}
        versions |= {name: importlib.metadata.version(name) for name in libraries}
        log = keep_log(scratch, target) if keep and not is_spark else []
        manifest = PreparedManifest(
            counts=counts,
            versions=versions,
            log=log,
            shards=shards,
            measures=measures,
            **facts,
        )
        return manifest.save(target)
