# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Adds new events to a prepared data set, without preparing all customers again.

The log is a folder of Parquet files, one or more per day, and it is always the truth. An update finds the files that
it has not read yet, and for each customer in them the first visit that they change. What comes before that visit stays
in the customer's row, and the visits from there on are read from the log again. All other rows stay as they are, and
so do shards without a changed customer. A late event, or a visit that continues after midnight, needs no special care:
the result has the same rows in the same order as a full preparation with the same vocabularies and cutoffs.
"""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import MISSING_ID
from modeling_mcm.data.cases import count_cases
from modeling_mcm.data.dataset import (
    CUSTOMER,
    FEATURE_EXTRACTOR_FOLDER,
    POPULARITY_FILE,
    PreparedData,
    PreparedManifest,
    check_shard,
    check_shards,
    write_table,
)
from modeling_mcm.data.schema import EventSchema
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import atomic_folder, locked
from modeling_mcm.preparation.files import check_files, describe
from modeling_mcm.preparation.text_files import TextFiles
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import ROWS

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.changes import (
        Cache,
        Changes,
        LogFiles,
        compare_files,
        find_changes,
        new_values,
        together,
    )
    from modeling_mcm.preparation.engine import caching, link, open_engine
    from modeling_mcm.preparation.events import (
        count_bad,
        find_visits,
        normalise_events,
        normalise_profile,
        open_profile,
    )
    from modeling_mcm.preparation.prepare import check_events, check_profile, versions
    from modeling_mcm.preparation.rows import (
        combined,
        continued,
        count_ids,
        customer_rows,
        measure,
        popularity,
        shard_events,
        shard_table,
        write_shard,
    )
    from modeling_mcm.preparation.tables import read_files
    from modeling_mcm.preparation.vocabulary import Vocabularies, build_vocabularies, encode_events, encode_profiles


@dataclass(frozen=True)
class Update:
    """What an update did."""

    manifest: PreparedManifest
    files: list[str]  # names of the log's files that were new, changed or gone
    customers: int  # number of customers whose rows changed
    events: int  # number of their events that were read again, with those of the last visit that stays
    shards: int  # number of shards that were written again; the others are the same files as before
    added: dict[str, list[str]]  # by feature the values that joined its vocabulary


@dataclass(frozen=True)
class _Part:
    """The last events of some customers, encoded, with what a manifest counts of them."""

    encoded: ir.Table
    counts: dict[str, Any]
    popularity: pa.Table
    cases: Counter[str]  # evaluation cases among the whole histories of these customers


def _encode(events: ir.Table, changes: Changes, fitted: Vocabularies, schema: EventSchema, cache: Cache) -> _Part:
    """Runs the steps of preparation for the changed visits of the customers in `changes`: those after their prefix."""
    checked, counts = check_events(events, schema, cache)
    visits = find_visits(checked).inner_join(changes.table(), "customer_id")
    visits = visits.mutate(visit=(visits.visit + ibis.greatest(visits.prefix_visits - 1, 0)).cast("int32"))
    visits = cache(visits.filter(visits.visit >= visits.prefix_visits))
    sharded = checked.inner_join(changes.table(), "customer_id")
    encoded = cache(encode_events(sharded, visits, fitted, schema), near="shard")
    counts |= count_ids(encoded, schema)
    return _Part(encoded, counts, popularity(encoded, fitted, schema), Counter())


def _combined_popularity(old: pa.Table, before: pa.Table, after: pa.Table, schema: EventSchema) -> pa.Table:
    minus = before
    for name in ("count", "target_count"):
        minus = minus.set_column(minus.column_names.index(name), name, pc.negate(minus[name]))
    totals = pa.concat_tables([old, minus, after]).group_by(["feature", "id", "value"])
    summed = totals.aggregate([("count", "sum"), ("target_count", "sum")]).rename_columns(old.column_names)
    summed = summed.filter(pc.greater(summed["count"], 0))
    index = pc.index_in(summed["feature"], pa.array([spec.name for spec in schema.features]))
    return summed.append_column("index", index).sort_by([("index", "ascending"), ("id", "ascending")]).drop("index")


def _refresh_profiles(table: pa.Table, profiles: ir.Table, schema: EventSchema) -> pa.Table:
    """Rows of a shard with the current profiles of their customers."""
    customers = ibis.memtable(table.select(["customer_id"]))
    own_profiles = profiles.semi_join(customers, "customer_id").to_pyarrow()
    indices = pc.index_in(table["customer_id"].combine_chunks(), own_profiles["customer_id"].combine_chunks())
    for i, spec in enumerate(schema.profile):
        ids = pc.fill_null(own_profiles[f"p{i}"].cast(pa.int32()).take(indices), MISSING_ID)
        table = table.set_column(table.column_names.index(f"profile_{spec.name}"), f"profile_{spec.name}", ids)
    return table


def _read_log(
    files: LogFiles, schema: EventSchema, connection: Any, cache: Cache
) -> tuple[ir.Table | None, ir.Table | None, ir.Table | None, int]:
    """Reads the events of a log's files: those that are the same, those that arrived, and those that left."""
    read = [group if group.paths else None for group in (files.same, files.arrived, files.left)]
    tables = [None if group is None else read_files(group, connection) for group in read]
    same, arrived, left = (None if table is None else normalise_events(table, schema) for table in tables)
    bad = [
        0 if table is None or events is None else count_bad(table, events, schema)
        for table, events in zip(tables[1:], (arrived, left), strict=True)
    ]
    # Rows of the log's new and corrected files, and rows of their earlier versions.
    arrived, left = (cache(table) if table is not None else None for table in (arrived, left))
    return same, arrived, left, bad[0] - bad[1]


def _grow_vocabularies(
    extractor: MCMFeatureExtractor, arrived: ir.Table | None, schema: EventSchema, least: int
) -> tuple[Vocabularies, Vocabularies, dict[str, list[str]]]:
    """Adds the values that new files have at least `least` times to the extractor's vocabularies; none if it is 0."""
    old = copy.deepcopy(build_vocabularies(extractor, schema))
    added = new_values(arrived, schema, extractor, least) if least and arrived is not None else {}
    for name, values in added.items():
        extractor.add_values(name, values)
    return old, build_vocabularies(extractor, schema), added


def _exchange_rows(
    table: pa.Table, customers: pa.Array, prefix_visits: NDArray[np.int64], new_rows: pa.Table
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Exchanges the rows of changed customers in a shard."""
    is_changed = pc.is_in(table["customer_id"], customers)
    before = table.filter(is_changed)
    prefix_visits = prefix_visits[pc.index_in(before["customer_id"], customers).to_numpy()]
    after = continued(before, prefix_visits, new_rows)
    return pa.concat_tables([table.filter(pc.invert(is_changed)), after]).sort_by("customer_id"), before, after


def _write_shards(
    data: PreparedData, target: Path, changed: Collection[int], renew: Callable[[int, pa.Table], pa.Table]
) -> list[dict[str, Any]]:
    """Writes the shards of the new data set."""
    shards: list[dict[str, Any]] = []  # until the number of shards is known, their files are named by their indices
    for k, shard in enumerate(data.manifest.shards):
        path = data.folder / shard["file"]
        if k not in changed:
            link(path, target / f"{len(shards)}.parquet")
            shards.append(dict(shard))
            continue
        check_shard(path, shard, verify=True)
        table = renew(k, pq.read_table(path))
        parts = max(len(table) // data.manifest.options["rows_per_shard"], min(len(table), 1))
        for start, end in ((len(table) * part // parts, len(table) * (part + 1) // parts) for part in range(parts)):
            shards.append(write_shard(table.slice(start, end - start), target / f"{len(shards)}.parquet"))
    for k, shard in enumerate(shards):
        shard["file"] = f"customers-{k:05d}-of-{len(shards):05d}.parquet"
        (target / f"{k}.parquet").rename(target / shard["file"])
    return shards


def update(
    directory: str | Path,
    events: str | Path,
    profile: Any = None,
    corrected: Iterable[str | Path] = (),
    grow_vocabularies: int = 0,
    memory_limit: str = "1GB",
) -> Update:
    """Updates a prepared data set to its log. The new data set replaces the old one if no error occurs.

    Args:
        directory (`str` or `Path`): Folder that `prepare` wrote, made from files.
        events (`str` or `Path`): Folder of the log, with the old Parquet files and the new ones.
        profile (`Any`, *optional*): The current profile table; needed if the schema has `profile`.
        corrected (`Iterable[str | Path]`): For files of the log that changed or are gone, the versions that were read
            before, or folders with these. They are recognised by their digest, and their names do not matter.
        grow_vocabularies (`int`): Number of events in the new files with which an unknown value joins the vocabulary
            of its event feature, after the values that are there and up to `max_values`. With 0 the vocabularies stay
            as they are. Bins always stay.
        memory_limit (`str`): Memory that DuckDB may use before it spills to disk, such as "1GB".

    Raises:
        ValueError: If a file of the log changed or is gone and its earlier version is not in `corrected`, the new
            events do not fit the schema, or a shard to be changed is damaged.
        FileNotFoundError: If there is no such data set or log.
        OSError: If the disk is full or not writable. The data set then is as it was.
    """
    with locked(directory := Path(directory).resolve()):  # where it is a symbolic link, the folder that it names
        return _update(directory, Path(events), profile, corrected, grow_vocabularies, memory_limit)


def _update(
    directory: Path,
    log: Path,
    profile: Any,
    corrected: Iterable[str | Path],
    grow_vocabularies: int,
    memory_limit: str,
) -> Update:
    data = PreparedData(directory)
    manifest, schema = data.manifest, data.schema
    if schema.order == ROWS:
        raise ValueError(
            f"{directory} was prepared with `order: {ROWS}`, and rows of other files have no place among those "
            "before; prepare everything, or number the events of a customer in a column and name it as `order`."
        )
    check_profile(profile, schema)
    files = compare_files(directory, log, manifest, corrected)
    people = describe(profile) if schema.profile else None
    new_people = bool(schema.profile) and (people is None or people != manifest.input["profile"])
    if not files.names and not new_people:
        return Update(manifest, [], 0, 0, 0, {})
    read = [group for group in (files.same, files.arrived, files.left) if group.paths]
    check_files(read, "event", schema.event_columns)
    extractor = data.extractor
    check_shards(directory, manifest.shards)
    with (
        atomic_folder(directory) as (target, scratch),
        open_engine("duckdb", scratch, memory_limit) as connection,
        caching(connection) as cache,
    ):
        same, arrived, left, more_bad = _read_log(files, schema, connection, cache)
        old, fitted, added = _grow_vocabularies(extractor, arrived, schema, grow_vocabularies)
        shards = [pq.ParquetFile(directory / shard["file"]) for shard in manifest.shards[1:]]
        bounds = [shard.read_row_group(0, [CUSTOMER])[CUSTOMER][0].as_py() for shard in shards]
        changes = find_changes(same, arrived, left, added, bounds, schema, cache)
        after = _encode(together(changes.same, arrived), changes, fitted, schema, cache)
        before = _encode(together(changes.same, left), changes, old, schema, cache)
        profiles = None
        if schema.profile:
            text = TextFiles(schema.text_format, scratch)
            raw = cache(normalise_profile(open_profile(profile, connection, schema, text), schema))
            profiles = cache(encode_profiles(raw, fitted, schema))
        rows = cache(customer_rows(after.encoded, profiles, schema), near="shard")

        def renew(k: int, table: pa.Table) -> pa.Table:
            """The rows of shard k with new rows and profiles; the cases of its changed customers are counted."""
            if new_people and profiles is not None:
                table = _refresh_profiles(table, profiles, schema)
            new_rows = shard_table(rows.filter(rows.shard == k).to_pyarrow(), schema)
            table, old_rows, changed_rows = _exchange_rows(table, *changes.select_shard(k), new_rows)
            before.cases.update(count_cases(old_rows, schema))
            after.cases.update(count_cases(changed_rows, schema))
            return table

        written = {*range(len(manifest.shards))} if new_people else {*changes.shards.tolist()}
        pieces = _write_shards(data, target, written, renew)
        extractor.save_pretrained(target / FEATURE_EXTRACTOR_FOLDER)
        popular = (pq.read_table(directory / POPULARITY_FILE), before.popularity, after.popularity)
        write_table(target / POPULARITY_FILE, _combined_popularity(*popular, schema))
        measures = measure(shard_events(connection, [target / piece["file"] for piece in pieces], schema), schema)
        counts = combined(manifest.counts, before.counts | before.cases, after.counts | after.cases)
        counts["dropped_bad"] = manifest.counts.get("dropped_bad", 0) + more_bad
        if profiles is not None:
            counts["profiles"] = profiles.count().to_pyarrow().as_py()
        options = manifest.options | {"updates": manifest.options.get("updates", 0) + 1}
        options |= {"vocabularies": extractor.values_digest} if "vocabularies" in options or added else {}
        facts: dict[str, Any] = {"options": options, "counts": counts, "shards": pieces, "measures": measures}
        source = {"events": files.log, "profile": people}
        result = replace(manifest, input=source, versions=versions(connection), **facts)
        result = result.save(target)
    return Update(result, files.names, len(changes.customers), after.counts["events"], len(written), added)
