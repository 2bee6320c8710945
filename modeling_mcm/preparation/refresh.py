# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Adds the events of a day to a prepared data set.

Only the customers of the new events are encoded again, from the log that the data set keeps. All rows are those that
preparing the whole log with the same vocabularies gives.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID
from modeling_mcm.data import EventSchema, PreparedData, PreparedManifest
from modeling_mcm.data.cases import CUTOFFS
from modeling_mcm.data.dataset import END, FEATURE_EXTRACTOR_FOLDER, LOG, LOG_PROFILE
from modeling_mcm.events_mcm import SECONDS_PER_DAY, to_iso
from modeling_mcm.extras import needs
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.folders import file_digest
from modeling_mcm.inputs_mcm import CUSTOMER

from .prepare import keep_log
from .rows import BAD, RowReader, ShardEncoder, write_shard
from .sources import Source, describe

with needs("data"):
    import ibis.expr.types as ir

    from .engine import caching, open_engine
    from .tables import add_shard, choose_events, count_rows, find_new_values, open_rows

logger = logging.get_logger(__name__)


def add_events(
    data: PreparedData,
    events: Source,
    folder: Path,
    scratch: Path,
    memory_limit: str = "1GB",
    described: dict[str, Any] | None = None,
) -> PreparedManifest:
    """Writes a data set with the events of another one and new ones, of which some may be older: a whole visit is
    encoded again where one of its events comes late.

    Args:
        data ([`PreparedData`]): The data set; it stays as it is.
        events (`Source`): New events, in the columns of its log.
        folder (`Path`): New folder to write.
        scratch (`Path`): Folder for what is read, on the same disk.
        memory_limit (`str`): Memory that DuckDB may use before it spills to disk.
        described (`dict`, *optional*): As [`describe`] gives it, of events that were read of files before.

    Raises:
        ValueError: If the data set kept no log, a file of the log is damaged, the events are those of a file that was
            added already, or have no row.
    """
    manifest, schema = data.manifest, EventSchema.from_dict(data.manifest.schema)
    log = [entry for entry in manifest.log if entry["file"] != LOG_PROFILE]
    if not log:
        raise ValueError(f"{data.folder} kept no log to add to: prepare it again, on DuckDB.")
    described = described or describe(events)
    check_new(manifest, described, data.folder)
    for entry in manifest.log:
        if file_digest(data.folder / LOG / entry["file"]) != entry["sha256"]:
            raise ValueError(f"{data.folder / LOG / entry['file']} is not the file of the manifest: prepare it again.")
    (folder / LOG).mkdir(parents=True)
    with open_engine("duckdb", scratch, memory_limit) as connection, caching(connection) as cache:
        new, bad = open_rows(events, connection, schema, scratch, start=sum(entry["rows"] for entry in log))
        if not count_rows(new):
            raise ValueError("The new events have no row: give a day with events, or nothing is to be refreshed.")
        known = connection.read_parquet([str(data.folder / LOG / entry["file"]) for entry in log])
        known = known.filter(known[BAD[0]].isnull()).drop(*BAD)
        warn_of_gaps(new, manifest.counts["last"], schema)
        extractor = add_values(new, schema, data.at(END).extractor)
        extractor.save_pretrained(folder / FEATURE_EXTRACTOR_FOLDER)
        customers = cache(new.select("customer_id").drop_null().distinct())
        if not count_rows(customers):
            raise ValueError(f"No new event has a customer: check the column {schema.customer!r}.")
        chosen, counts = choose_events(known.semi_join(customers, "customer_id").union(new), schema, cache)
        rows = cache(add_shard(chosen, manifest.options["rows_per_shard"]).order_by("shard"))
        profiles = None
        if schema.profile:
            profiles = connection.read_parquet(data.folder / LOG / LOG_PROFILE).drop(*BAD).drop_null("customer_id")
            rows = rows.left_join(profiles, "customer_id").drop("customer_id_right")
        encoder, number = ShardEncoder(schema, extractor), rows.shard.max().to_pyarrow().as_py() + 1
        encoded = [encoder.encode(rows.filter(rows.shard == index).to_pyarrow())[0] for index in range(number)]
        rows_read = count_rows(new) + bad
    shards, events_added = merge_shards(data, pa.concat_tables(encoded), folder)
    for entry in manifest.log:
        link_file(data.folder / LOG / entry["file"], folder / LOG / entry["file"])
    added = [entry for entry in keep_log(scratch, folder, len(log)) if entry["file"] != LOG_PROFILE]
    files = {**(manifest.input["events"] or {"name": "", "files": {}})}
    names = described["files"] if described else {}
    files["files"] = files["files"] | {f"{len(log)}/{name}": digest for name, digest in names.items()}
    before = manifest.counts
    totals = before | {  # the other counts stay those of the log as it was prepared
        "rows": before["rows"] + rows_read,
        "events": before["events"] + events_added,
        "customers": sum(shard["rows"] for shard in shards),
        "first": min(before["first"], counts["first"]),
        "last": max(before["last"], counts["last"]),
    }
    result = PreparedManifest(
        schema=manifest.schema,
        input=manifest.input | {"events": files},
        options=manifest.options,
        counts=totals,
        versions=manifest.versions,
        shards=shards,
        log=[*manifest.log, *added],
        measures=manifest.measures,
    )
    return result.save(folder)


def link_file(source: Path, target: Path) -> None:
    """Gives a file, which nobody changes in its place, a second name; or copies it to another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def check_new(manifest: PreparedManifest, described: dict[str, Any] | None, folder: Path) -> None:
    """Raises `ValueError` if a file of new events was read before."""
    known = {digest: name for name, digest in (manifest.input["events"] or {"files": {}})["files"].items()}
    for name, digest in (described or {"files": {}})["files"].items():
        if digest in known:
            raise ValueError(
                f"{name} is a part of {folder} already, as {known[digest]}, and would count twice: give another day, "
                "or the model before it."
            )


def warn_of_gaps(events: ir.Table, last: int, schema: EventSchema) -> None:
    """Warns of new events that are older than the log's latest, and of days without events between."""
    if schema.order is not None:
        return
    first = events.second.min().to_pyarrow().as_py()
    if first <= last:
        logger.warning(
            f"The log ends at {to_iso(last)}, and new events begin at {to_iso(first)}: older ones are put where they "
            "belong."
        )
    elif first > last + 2 * SECONDS_PER_DAY:
        logger.warning(
            f"The log ends at {to_iso(last)}, and new events begin at {to_iso(first)}: if a day between is missing, "
            "add it, too, in any order."
        )


def add_values(events: ir.Table, schema: EventSchema, extractor: MCMFeatureExtractor) -> MCMFeatureExtractor:
    """Adds the values of new events that a feature extractor does not know to its vocabularies, at their ends, if they
    are frequent enough in these events. Kinds of events stay: they decide what a target is."""
    vocabularies = dict(extractor.vocabularies)
    sizes = {cutoff: dict(extractor.known.get(cutoff, {})) for cutoff in CUTOFFS}
    for name, spec in RowReader(schema).stored.items():
        if spec.name not in vocabularies or spec == schema.token_feature:
            continue
        values = find_new_values(events, name, spec, vocabularies[spec.name])
        if not values:
            continue
        for feature in (feature for feature, source in schema.sources.items() if source == spec.name):
            number = len(vocabularies[feature])
            for by_feature in sizes.values():
                by_feature.setdefault(feature, FIRST_VALUE_ID + number)
            vocabularies[feature] = [*vocabularies[feature], *values]
        logger.info(f"{len(values):,} new values of {spec.name}, such as {values[0]!r}.")
    return extractor.with_values(vocabularies, sizes)


def merge_shards(data: PreparedData, rows: pa.Table, folder: Path) -> tuple[list[dict], int]:
    """Writes the shards of a data set with other rows of some customers, in the order of their ids; a shard whose
    customers have no new events is linked. Returns their entries, and the number of events that were added."""
    entries, ids, added = [], rows[CUSTOMER].to_pylist(), 0
    firsts = [
        pq.ParquetFile(data.folder / entry["file"]).read_row_group(0, [CUSTOMER])[CUSTOMER][0].as_py()
        for entry in data.manifest.shards
    ]
    ends = [*np.searchsorted(np.array(ids, object), firsts[1:]), len(ids)]  # of the new rows of each shard
    parts: list[tuple[str, pa.Table | None]] = []
    for start, end, entry in zip([0, *ends], ends, data.manifest.shards, strict=False):
        if start == end:
            parts.append((entry["file"], None))
            continue
        old, new = pq.read_table(data.folder / entry["file"]), rows[start:end]
        is_new = pc.is_in(old[CUSTOMER], new[CUSTOMER].combine_chunks())
        added += pc.sum(pc.list_value_length(new["times"])).as_py()
        added -= pc.sum(pc.list_value_length(old.filter(is_new)["times"])).as_py() or 0
        merged = pa.concat_tables([old.filter(pc.invert(is_new)), new.select(old.column_names).cast(old.schema)])
        merged, most = merged.sort_by(CUSTOMER), 2 * data.manifest.options["rows_per_shard"]
        parts += [(entry["file"], merged[first : first + most]) for first in range(0, len(merged), most)]
    by_file = {entry["file"]: entry for entry in data.manifest.shards}
    for index, (file, table) in enumerate(parts):
        path = folder / f"customers-{index:05d}-of-{len(parts):05d}.parquet"
        if table is None:
            link_file(data.folder / file, path)
            entries.append(by_file[file] | {"file": path.name})
        else:
            entries.append(write_shard(table, path))
    return entries, added
