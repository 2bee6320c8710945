# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Adds the events of a day to a prepared data set.

Only the customers of the new events are encoded again, from the log that the data set keeps. All rows are those that
preparing the whole log with the same vocabularies gives.
"""

import copy
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers.utils import logging

from modeling_mcm.data import EventSchema, PreparedData, PreparedManifest
from modeling_mcm.data.dataset import END, FEATURE_EXTRACTOR_FOLDER, FORGOTTEN, LOG, LOG_PROFILE, check_digests
from modeling_mcm.events_mcm import SECONDS_PER_DAY, to_iso
from modeling_mcm.extras import needs
from modeling_mcm.inputs_mcm import CUSTOMER
from modeling_mcm.schema_mcm import ROWS

from .prepare import keep_log, write_shards
from .rows import BAD, ShardEncoder, add_counts, check_empty, write_shard
from .sources import Source, describe

with needs("data"):
    import ibis.expr.types as ir

    from .engine import caching, open_engine
    from .tables import (
        add_shard,
        add_values,
        choose_events,
        count_known,
        count_rows,
        open_rows,
    )

logger = logging.get_logger(__name__)


def add_events(
    data: PreparedData,
    events: Source,
    folder: Path,
    scratch: Path,
    memory_limit: str = "1GB",
    described: dict[str, Any] | None = None,
    counted: Mapping[str, Any] | None = None,
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
        counted (`dict`, *optional*): `MCMConfig.counted` of the model that counts the data set.

    Raises:
        ValueError: If the data set kept no log, a file of the log is damaged, the model counts more than it, or the
            events are in it already, or have no row.
    """
    manifest, schema = data.manifest, EventSchema.from_dict(data.manifest.schema)
    log = [entry for entry in manifest.log if entry["file"] != LOG_PROFILE]
    if not log:
        raise ValueError(f"{data.folder} kept no log to add to: prepare it again, on DuckDB.")
    if counted:
        check_reach(data, counted)
    names = (described or describe(events) or {"files": {}})["files"]
    if twice := [name for name, digest in names.items() if [*names.values()].count(digest) > 1]:
        raise ValueError(f"The new files {', '.join(twice)} have the same bytes, and would count twice: give one.")
    check_digests(data.folder / LOG, {entry["file"]: entry["sha256"] for entry in manifest.log})
    (folder / LOG).mkdir(parents=True)
    encoded = list[pa.Table]()
    with open_engine("duckdb", scratch, memory_limit) as connection, caching(connection) as cache:
        new, bad = open_rows(events, connection, schema, scratch, start=sum(entry["rows"] for entry in log))
        if not count_rows(new.drop_null("customer_id")):
            raise ValueError(
                f"The new events have no row with a customer (column {schema.customer!r}): give a day with events, or "
                "nothing is to be refreshed."
            )
        known = connection.read_parquet([str(data.folder / LOG / entry["file"]) for entry in log])
        known = known.filter(known[BAD[0]].isnull()).drop(*BAD)
        check_new(new, known, manifest.counts["last"], schema)
        warn_of_gaps(new, manifest.counts["last"], schema)
        whole = known.union(new).drop_null(["customer_id", "second"])
        if schema.on_duplicate == "drop":
            whole = cache(whole.distinct())
        extractor, changed = add_values(whole, new, schema, data.at(END).extractor, scratch)
        extractor.save_pretrained(folder / FEATURE_EXTRACTOR_FOLDER)
        before = known.semi_join(cache(changed), "customer_id")
        chosen, counts = choose_events(before.union(new), schema, cache)
        totals, profiles = copy.deepcopy(manifest.counts | {"measures": manifest.measures}), None
        add_counts(totals, choose_events(before, schema, cache, quiet=True)[1], -1)
        add_counts(totals, counts | {"dropped_bad": bad})
        if schema.profile:
            profiles = connection.read_parquet(data.folder / LOG / LOG_PROFILE).drop(*BAD).drop_null("customer_id")
        encoder, size = ShardEncoder(schema, extractor), manifest.options["rows_per_shard"]
        rows, number = cache(add_shard(chosen, size).order_by("shard")), math.ceil(counts["customers"] / size)
        for entry, counted_rows in write_shards(rows, profiles, encoder, scratch, number):
            add_counts(totals, counted_rows)
            encoded.append(pq.read_table(scratch / entry["file"]))
    shards = merge_shards(data, pa.concat_tables(encoded), folder, encoder, totals)
    check_empty(totals)
    totals |= {end: choose(manifest.counts[end], counts[end]) for end, choose in (("first", min), ("last", max))}
    for entry in manifest.log:
        link_file(data.folder / LOG / entry["file"], folder / LOG / entry["file"])
    source = manifest.input["events"] or {"name": "", "files": {}}
    files = source["files"] | {f"+{len(log)}/{name}": digest for name, digest in names.items()}
    result = replace(
        manifest,
        input=manifest.input | {"events": source | {"files": files}},
        measures=totals.pop("measures"),
        counts=totals,
        shards=shards,
        log=[*manifest.log, *keep_log(scratch, folder, len(log))],
    )
    return result.save(folder)


def link_file(source: Path, target: Path) -> None:
    """Gives a file, which nobody changes in its place, a second name; or copies it to another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def check_reach(data: PreparedData, counted: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a model counts more than a data set: what came between would be lost."""
    counts, until = data.manifest.counts, str(counted["until"])
    if FORGOTTEN in counts:  # the model still counts their events
        return
    end = to_iso(counts["last"] + 1) if until[0].isdigit() else until  # "the end of the log"
    events = counts["events"] + counts["ends_of_visit"]
    if (end, events) < (until, counted["events"]):
        raise ValueError(
            f"{data.folder} has {events:,} events until {end}, and the model counts {counted['events']:,} until "
            f"{until}: those between would be lost. Give the data set that the model counts."
        )


def check_new(events: ir.Table, log: ir.Table, last: int, schema: EventSchema) -> None:
    """Raises `ValueError` if new events are in the log already. Where some are, equal events may be real: it is raised
    from half of those on that are not later than the log, unless `on_duplicate: drop` counts them once."""
    rows, there = count_rows(events), count_known(events, log, schema)
    if not there:
        return
    words, drops = f"{there:,} of {rows:,} new events are a part of the log already", schema.on_duplicate == "drop"
    old = rows if schema.order == ROWS else count_rows(events.filter(events.second <= last))
    if there == rows or (not drops and 2 * there >= old):
        raise ValueError(
            f"{words}, and would count twice: leave them out, or give the model before them. A log that is prepared "
            "with `on_duplicate: drop` counts equal events once."
        )
    logger.warning(f"{words}: `on_duplicate: {schema.on_duplicate}` decides whether equal events count twice.")


def warn_of_gaps(events: ir.Table, last: int, schema: EventSchema) -> None:
    """Warns of new events that are older than the log's latest, and of days without events between."""
    if schema.order is not None:
        return
    first = events.second.min().to_pyarrow().as_py()
    words = f"The log ends at {to_iso(last)}, and new events begin at {to_iso(first)}"
    if first <= last:
        logger.warning(f"{words}: older ones are put where they belong.")
    elif first > last + 2 * SECONDS_PER_DAY:
        logger.warning(f"{words}: if a day between is missing, add it, too, in any order.")


def merge_shards(
    data: PreparedData, rows: pa.Table, folder: Path, encoder: ShardEncoder, totals: dict[str, Any]
) -> list[dict]:
    """Writes the shards of a data set with other rows of some customers, in the order of their ids; a shard with none
    of these customers is linked. Takes what `encoder` counts in their old rows out of the totals. Returns the entries
    of the shards."""
    entries, ids = [], rows[CUSTOMER].to_pylist()
    firsts = [
        pq.ParquetFile(data.folder / entry["file"]).read_row_group(0, [CUSTOMER])[CUSTOMER][0].as_py()
        for entry in data.manifest.shards
    ]
    ends = [*np.searchsorted(np.array(ids, object), firsts[1:]), len(ids)]  # of the new rows of each shard
    parts: list[dict | pa.Table] = []  # the entry of a shard that stays, or rows
    for start, end, entry in zip([0, *ends], ends, data.manifest.shards, strict=False):
        if start == end:
            parts.append(entry)
            continue
        old, new = pq.read_table(data.folder / entry["file"]), rows[start:end]
        is_new = pc.is_in(old[CUSTOMER], new[CUSTOMER].combine_chunks())
        add_counts(totals, encoder.count(old.filter(is_new)), -1)
        merged = pa.concat_tables([old.filter(pc.invert(is_new)), new.select(old.column_names).cast(old.schema)])
        merged, most = merged.sort_by(CUSTOMER), 2 * data.manifest.options["rows_per_shard"]
        parts += [merged[first : first + most] for first in range(0, len(merged), most)]
    for index, part in enumerate(parts):
        path = folder / f"customers-{index:05d}-of-{len(parts):05d}.parquet"
        if isinstance(part, dict):
            link_file(data.folder / part["file"], path)
            entries.append(part | {"file": path.name})
        else:
            entries.append(write_shard(part, path))
    return entries
