# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Tomorrow's events in a prepared data set, without preparing all customers again.

The log is a folder of Parquet files, one or more a day, and stays what is true: an update finds the files that it has
not seen, reads the whole history of the customers in them, and replaces their rows. All other rows, and shards without
such a customer, stay as they are. So a late event, or a visit that goes on after midnight, is like any other: the
result has the rows of a full preparation with the same vocabularies and cutoffs, in the same order.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_mcm.data.dataset import (
    FEATURE_EXTRACTOR_FOLDER,
    POPULARITY_FILE,
    PreparedManifest,
    check_shard,
    sha256_of,
)
from modeling_mcm.data.engine import caching, link, open_engine, open_table, read_files, replacing
from modeling_mcm.data.events import find_visits, normalise_events, normalise_profile
from modeling_mcm.data.files import InputFiles, check_files, describe, find_files
from modeling_mcm.data.prepare import check_events, digest_of, versions
from modeling_mcm.data.rows import count_ids, customer_rows, popularity, shard_table, write_shard
from modeling_mcm.data.schema import CATEGORICAL, EventSchema
from modeling_mcm.data.vocabulary import Vocabularies, encode_events, encode_profiles, vocabularies_of
from modeling_mcm.processing_mcm import MISSING_ID, MCMFeatureExtractor

Cache = Callable[..., ir.Table]


@dataclass(frozen=True)
class Update:
    """What an update did.

    Attributes:
        manifest: As written.
        files: Names of the log's files that were new, changed or gone.
        customers: How many were prepared anew.
        shards: How many were written anew; the others are the same files.
        added: Per feature the values that joined its vocabulary.
    """

    manifest: PreparedManifest
    files: list[str]
    customers: int
    shards: int
    added: dict[str, list[str]]


@dataclass(frozen=True)
class _Files:
    """The log's files by what they are to the data set, the names of those that changed, and the log's description."""

    same: InputFiles
    arrived: InputFiles
    left: InputFiles  # in their earlier version
    names: list[str]
    log: dict[str, Any]


def _compare(directory: Path, log: Path, manifest: PreparedManifest, corrected: Iterable[str | Path]) -> _Files:
    """Finds what is new by name and digest; raises where a file changed whose earlier version is not given."""
    if not log.is_dir() or not manifest.input["events"]:
        raise ValueError(
            f"{log} is no folder, or {directory} was not prepared from files: an update needs a log that is a folder "
            "of Parquet files, the old ones among them."
        )
    (found,) = find_files(log, "event")
    then, now = manifest.input["events"]["files"], found.digests()
    given = [path for each in map(Path, corrected) for path in (each.rglob("*.parquet") if each.is_dir() else [each])]
    earlier = {sha256_of(path): str(path) for path in given}
    arrived = [name for name, digest in now.items() if then.get(name) != digest]
    left = [name for name, digest in then.items() if now.get(name) != digest]
    if unknown := [name for name in left if then[name] not in earlier]:
        raise ValueError(
            f"{', '.join(unknown[:5])} of {log} changed or is gone since {directory} was prepared. Give the version "
            "that was read then as `corrected` (--corrected), so that customers who are in that one alone are "
            "prepared anew too, or prepare everything with `prepare`."
        )
    paths = dict(zip(now, found.paths, strict=True))
    return _Files(
        same=replace(found, paths=tuple(path for name, path in paths.items() if name not in arrived)),
        arrived=replace(found, paths=tuple(paths[name] for name in arrived)),
        left=replace(found, paths=tuple(earlier[then[name]] for name in left)),
        names=sorted({*arrived, *left}),
        log={"name": found.name, "files": now},
    )


def _new_values(arrived: ir.Table, schema: EventSchema, extractor: MCMFeatureExtractor, least: int) -> dict[str, list]:
    """Per categorical event feature the unknown values with `least` new events, most frequent first, then by text.

    Where the schema has `max_values`, as many as there is still room for.
    """
    added = {}
    for i, spec in enumerate(schema.features):
        if spec.kind == CATEGORICAL:
            known = ibis.memtable(pa.table({"known": pa.array(extractor.vocabularies[spec.name], pa.string())}))
            seen = arrived.filter(arrived[f"f{i}"].length() > 0).group_by(value=arrived[f"f{i}"])
            counts = seen.agg(number=lambda t: t.count()).anti_join(known, ibis._.value == known.known)
            kept = counts.filter(counts.number >= least).order_by(ibis.desc("number"), ibis.asc("value"))
            if spec.max_values:
                kept = kept.limit(max(spec.max_values - len(extractor.vocabularies[spec.name]), 0))
            if values := kept.value.to_pyarrow().to_pylist():
                added[spec.name] = values
    return added


def _with_values(events: ir.Table, schema: EventSchema, added: dict[str, list[str]]) -> list[ir.Table]:
    """Customers with an event that had an unknown value and now has a known one."""
    found = []
    for i, spec in enumerate(schema.features):
        if spec.name in added:
            values = ibis.memtable(pa.table({"value": pa.array(added[spec.name], pa.string())}))
            found.append(events.semi_join(values, events[f"f{i}"] == values.value).select("customer_id"))
    return found


@dataclass(frozen=True)
class _Part:
    """Some customers' events, encoded, with what a manifest counts of them."""

    encoded: ir.Table
    counts: dict[str, Any]
    popularity: pa.Table


def _encode(events: ir.Table, numbers: ir.Table, fitted: Vocabularies, schema: EventSchema, cache: Cache) -> _Part:
    """The steps of preparation for the customers in `numbers`."""
    checked, counts = check_events(events, schema, cache)
    visits = cache(find_visits(checked))
    sharded, visits = (table.inner_join(numbers, "customer_id") for table in (checked, visits))
    encoded = cache(encode_events(sharded, visits, fitted, schema), near="shard")
    counts |= count_ids(encoded, schema)
    return _Part(encoded, counts, popularity(encoded, fitted, schema))


def _combined(old: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Counts are sums over customers: those of all, without what some of them were, with what these are."""
    return {
        name: _combined(value, before[name], after[name])
        if isinstance(value, dict)
        else value - before.get(name, 0) + after.get(name, 0)
        for name, value in old.items()
    }


def _combined_popularity(old: pa.Table, before: pa.Table, after: pa.Table, schema: EventSchema) -> pa.Table:
    minus = before
    for name in ("count", "target_count"):
        minus = minus.set_column(minus.column_names.index(name), name, pc.negate(minus[name]))
    totals = pa.concat_tables([old, minus, after]).group_by(["feature", "id", "value"])
    summed = totals.aggregate([("count", "sum"), ("target_count", "sum")]).rename_columns(old.column_names)
    summed = summed.filter(pc.greater(summed["count"], 0))
    place = pc.index_in(summed["feature"], pa.array([spec.name for spec in schema.features]))
    return summed.append_column("place", place).sort_by([("place", "ascending"), ("id", "ascending")]).drop("place")


def _refresh_profiles(table: pa.Table, profiles: ir.Table, schema: EventSchema) -> pa.Table:
    """Rows of a shard with the profiles as they are now."""
    wanted = ibis.memtable(table.select(["customer_id"]))
    found = profiles.semi_join(wanted, "customer_id").to_pyarrow()
    place = pc.index_in(table["customer_id"].combine_chunks(), found["customer_id"].combine_chunks())
    for i, spec in enumerate(schema.profile):
        ids = pc.fill_null(found[f"p{i}"].cast(pa.int32()).take(place), MISSING_ID)
        table = table.set_column(table.column_names.index(f"profile_{spec.name}"), f"profile_{spec.name}", ids)
    return table


def _first_customers(directory: Path, shards: Sequence[dict[str, Any]]) -> list[str]:
    files = (pq.ParquetFile(directory / shard["file"]) for shard in shards)
    return [file.read_row_group(0, columns=["customer_id"])["customer_id"][0].as_py() for file in files]


def update(
    directory: str | Path,
    events: str | Path,
    profile: Any = None,
    corrected: Iterable[str | Path] = (),
    grow_vocabularies: int = 0,
    memory_limit: str = "1GB",
) -> Update:
    """Brings a prepared data set up to its log; the data set that was there is replaced when all went well.

    Args:
        directory (`str` or `Path`): Output folder of `prepare`, made from files.
        events (`str` or `Path`): Folder of the log: the old Parquet files and the new ones.
        profile (*optional*): The profile table as it is now; needed if the schema has `profile`.
        corrected (`Iterable`): Of files of the log that changed or are gone, the versions that were read before, or
            folders with them. They are found by their digest; their names do not matter.
        grow_vocabularies (`int`): Values with at least so many events in the new files join the vocabularies of the
            event features, after those that are there, up to `max_values`; 0 leaves the vocabularies as they are.
            Bins stay.
        memory_limit (`str`): Memory that DuckDB may use before it spills to disk.

    Returns:
        `Update`: The new manifest, and what was done.

    Raises:
        ValueError: A file of the log changed or is gone and its earlier version is not given; the new events do not
            fit the schema; a shard that is to be changed is damaged.
        FileNotFoundError: No such data set or log.
        OSError: The disk is full or not writable; the data set is as it was.
    """
    directory, log = Path(directory), Path(events)
    manifest = PreparedManifest.load(directory)
    schema = manifest.event_schema
    if schema.profile and profile is None:
        raise ValueError(
            "The schema has `profile` features, but no profile table is given; pass `profile` (--profile)."
        )
    files = _compare(directory, log, manifest, corrected)
    people = describe(profile) if schema.profile else None
    new_people = bool(schema.profile) and (people is None or people != manifest.input["profile"])
    if not files.names and not new_people:
        return Update(manifest, [], 0, 0, {})
    read = [each for each in (files.same, files.arrived, files.left) if each.paths]
    check_files(read, "event", schema.event_columns)
    extractor = MCMFeatureExtractor.from_pretrained(str(directory / FEATURE_EXTRACTOR_FOLDER))
    for shard in manifest.shards:
        check_shard(directory / shard["file"], shard, verify=False)
    with (
        replacing(directory) as (target, scratch),
        open_engine("duckdb", scratch, memory_limit) as connection,
        caching(connection) as cache,
    ):
        same, arrived, left = (
            normalise_events(read_files(each, connection), schema) if each.paths else None
            for each in (files.same, files.arrived, files.left)
        )
        # Rows of the log's new and corrected files, and of what stood there: their customers are prepared anew.
        arrived, left = (cache(table) if table is not None else None for table in (arrived, left))
        old = vocabularies_of(extractor, schema)
        old = Vocabularies({name: list(values) for name, values in old.values.items()}, old.bins)
        growing = grow_vocabularies and arrived is not None
        added = _new_values(arrived, schema, extractor, grow_vocabularies) if growing else {}
        for name, values in added.items():
            extractor.add_values(name, values)
        fitted = vocabularies_of(extractor, schema)
        touched = [table.select("customer_id") for table in (arrived, left) if table is not None]
        touched += _with_values(same, schema, added) if same is not None else []
        ids: list[str] = []
        if touched:
            everyone = functools.reduce(ir.Table.union, touched)
            everyone = everyone.filter(everyone.customer_id.notnull()).distinct()
            ids = everyone.order_by("customer_id").customer_id.to_pyarrow().to_pylist()
        bounds = _first_customers(directory, manifest.shards)
        place = np.searchsorted(np.array(bounds[1:], object), np.array(ids, object), side="right")
        numbers = ibis.memtable(
            pa.table({"customer_id": pa.array(ids, pa.string()), "shard": pa.array(place, pa.int64())})
        )
        same = cache(same.semi_join(numbers, "customer_id")) if same is not None else None  # the one pass over the log
        after, before = (
            _encode(functools.reduce(ir.Table.union, tables), numbers, vocabularies, schema, cache)
            for vocabularies, tables in (
                (fitted, [table for table in (same, arrived) if table is not None]),
                (old, [table for table in (same, left) if table is not None]),
            )
        )
        profiles = None
        counts = _combined(manifest.counts, before.counts, after.counts)
        if schema.profile:
            raw = cache(normalise_profile(open_table(profile, connection, "profile"), schema))
            profiles = cache(encode_profiles(raw, fitted, schema))
            counts["profiles"] = raw.count().to_pyarrow().as_py()

        pieces: list[dict[str, Any]] = []
        written = Counter(place.tolist())
        for k, shard in enumerate(manifest.shards):
            path = directory / shard["file"]
            if k not in written and not new_people:
                link(path, target / f"{len(pieces)}.parquet")
                pieces.append(dict(shard))
                continue
            check_shard(path, shard, verify=True)
            table = pq.read_table(path)
            here = pa.array([ids[i] for i in np.flatnonzero(place == k)], pa.string())
            table = table.filter(pc.invert(pc.is_in(table["customer_id"], here)))
            if new_people and profiles is not None:
                table = _refresh_profiles(table, profiles, schema)
            rows = customer_rows(after.encoded.filter(after.encoded.shard == k), profiles, schema)
            table = pa.concat_tables([table, shard_table(rows.to_pyarrow(), schema)]).sort_by("customer_id")
            parts = max(len(table) // manifest.options["rows_per_shard"], min(len(table), 1))
            for start, end in (
                (len(table) * part // parts, len(table) * (part + 1) // parts) for part in range(parts)
            ):
                pieces.append(write_shard(table.slice(start, end - start), target / f"{len(pieces)}.parquet"))
        for k, piece in enumerate(pieces):
            piece["file"] = f"customers-{k:05d}-of-{len(pieces):05d}.parquet"
            (target / f"{k}.parquet").rename(target / piece["file"])
        extractor.save_pretrained(target / FEATURE_EXTRACTOR_FOLDER)
        popular = (pq.read_table(directory / POPULARITY_FILE), before.popularity, after.popularity)
        pq.write_table(_combined_popularity(*popular, schema), target / POPULARITY_FILE)
        options = manifest.options | {"updates": manifest.options.get("updates", 0) + 1}
        options |= {"vocabularies": digest_of(extractor)} if "vocabularies" in options or added else {}
        source = {"events": files.log, "profile": people}
        result = PreparedManifest(
            schema=manifest.schema,
            input=source,
            options=options,
            counts=counts,
            seeds={},
            versions=versions(connection),
            shards=pieces,
        )
        result.save(target)
    return Update(result, files.names, len(ids), len(manifest.shards) if new_people else len(written), added)
