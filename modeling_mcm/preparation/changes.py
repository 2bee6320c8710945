# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What a log that grew changes in a prepared data set: files, values, customers, and each one's first changed visit.

Everything before that visit stays as it is in the customer's row. On most days that is all but one or two visits.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from modeling_mcm.data.dataset import PreparedManifest
from modeling_mcm.data.schema import EventSchema
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import file_digest
from modeling_mcm.preparation.files import InputFiles, find_files
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import CATEGORICAL, raw_indices

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.events import add_period, add_target, find_visits
    from modeling_mcm.preparation.vocabulary import each_value, fit_values

VISIT = ["customer_id", "period", "visit_key"]
ALL_VISITS = 2**31  # no customer has more visits

Cache = Callable[..., ir.Table]


def read_note(directory: Path) -> Path:
    """Path of the note in which a deletion says what it changed in the log and not yet in a data set."""
    return directory.with_name(f".{directory.name}.deletion.json")


@dataclass(frozen=True)
class LogFiles:
    """The files of a log, by what they are to the data set."""

    same: InputFiles
    arrived: InputFiles  # new files, and the new versions of files that changed
    left: InputFiles  # files that are gone, and the earlier versions of files that changed
    names: list[str]  # of the files that are new, changed or gone
    log: dict[str, Any]  # description for the manifest: name of the log, and digests of its files


def compare_files(directory: Path, log: Path, manifest: PreparedManifest, corrected: Iterable[str | Path]) -> LogFiles:
    """Finds by name and digest which files of a log are new, changed or gone."""
    if not log.is_dir() or not manifest.input["events"]:
        raise ValueError(
            f"{log} is no folder, or {directory} was not prepared from files: an update needs a log that is a folder "
            "of Parquet files, the old ones among them."
        )
    (files,) = find_files(log, "event")
    if files.kind != "parquet":
        raise ValueError(
            f"{log} is a folder of {files.kind} files, and an update needs Parquet: prepare everything, or write the "
            "log as Parquet."
        )
    then, as_of = manifest.input["events"]["files"], files.digests()
    old = [path for part in map(Path, corrected) for path in (part.rglob("*.parquet") if part.is_dir() else [part])]
    earlier = {file_digest(path): str(path) for path in old}
    arrived = [name for name, digest in as_of.items() if then.get(name) != digest]
    left = [name for name, digest in then.items() if as_of.get(name) != digest]
    unknown = [name for name in left if then[name] not in earlier]
    if unknown and (note := read_note(directory)).is_file():
        raise ValueError(
            f"{', '.join(unknown[:5])} of {log} changed, and {note} says that a run of `mcm forget` was killed "
            f"between the log and {directory}: run it again with the same options, which finishes it."
        )
    if unknown:
        raise ValueError(
            f"{', '.join(unknown[:5])} of {log} changed or is gone since {directory} was prepared. Give the version "
            "that was read then as `corrected` (--corrected), so that customers who are in that one alone are "
            "prepared anew too, or prepare everything with `prepare`."
        )
    paths = dict(zip(as_of, files.paths, strict=True))
    return LogFiles(
        same=replace(files, paths=tuple(path for name, path in paths.items() if name not in arrived)),
        arrived=replace(files, paths=tuple(paths[name] for name in arrived)),
        left=replace(files, paths=tuple(earlier[then[name]] for name in left)),
        names=sorted({*arrived, *left}),
        log={"name": files.name, "files": as_of},
    )


def new_values(arrived: ir.Table, schema: EventSchema, extractor: MCMFeatureExtractor, least: int) -> dict[str, list]:
    """Finds the unknown values that join the vocabularies of the categorical event features, as [`fit_values`] does.
    Where the schema has `max_values`, only as many values join as there is room for. Features without are absent."""
    added: dict[str, list] = {}
    sources = raw_indices(schema.features)
    for i, spec in enumerate(schema.features):
        if sources[i] != i:  # it shares the values of a column with an earlier feature
            if shared := added.get(schema.features[sources[i]].name):
                added[spec.name] = list(shared)
        elif spec.kind == CATEGORICAL and not spec.is_constant:
            known = extractor.vocabularies[spec.name]
            room = spec.max_values and spec.max_values - len(known)
            old = ibis.memtable(pa.table({"known": pa.array(known, pa.string())}))
            values = arrived.select(value=each_value(arrived[f"f{i}"], spec))
            values = values.filter(values.value.length() > 0).anti_join(old, ibis._.value == old.known)
            if room is None or room > 0:
                if new := fit_values(values.value, replace(spec, min_count=least, max_values=room)):
                    added[spec.name] = new
    return added


def _with_values(events: ir.Table, schema: EventSchema, added: dict[str, list[str]]) -> list[ir.Table]:
    """Events that had an unknown value and now have a known one: one table per feature with new values."""
    tables = []
    sources = raw_indices(schema.features)
    for i, spec in enumerate(schema.features):
        if spec.name in added and sources[i] == i:
            values = ibis.memtable(pa.table({"value": pa.array(added[spec.name], pa.string())}))
            single = events.mutate(value_=each_value(events[f"f{i}"], spec))
            tables.append(single.semi_join(values, single.value_ == values.value).drop("value_"))
    return tables


def together(*tables: ir.Table | None) -> ir.Table:
    """Joins the rows of all tables that are not None."""
    return functools.reduce(ir.Table.union, [table for table in tables if table is not None])


def _dated(events: ir.Table, schema: EventSchema) -> ir.Table:
    """The events that have a customer and a time, with the columns `is_target` and `period`."""
    whole = events.filter(events.customer_id.notnull() & events.second.notnull())
    return add_period(add_target(whole, schema), schema)


@dataclass(frozen=True)
class Changes:
    """Which customers' rows change, and from which visit on."""

    customers: list[str]  # ids, ascending
    shards: NDArray[np.int64]  # index of each customer's shard
    prefix_visits: NDArray[np.int64]  # number of each customer's visits that stay: those before the first change
    same: ir.Table | None  # their events in unchanged files, from the last visit that stays on

    def table(self) -> ir.Table:
        """The changes as a table of the engine, one row per customer: customer_id, shard and prefix_visits."""
        columns = {"customer_id": pa.array(self.customers, pa.string()), "shard": pa.array(self.shards)}
        return ibis.memtable(pa.table(columns | {"prefix_visits": pa.array(self.prefix_visits)}))

    def select_shard(self, shard: int) -> tuple[pa.Array, NDArray[np.int64]]:
        """The ids of a shard's customers, and the number of visits that stay of each."""
        here = np.flatnonzero(self.shards == shard)
        return pa.array([self.customers[index] for index in here], pa.string()), self.prefix_visits[here]


def find_changes(
    same: ir.Table | None,
    arrived: ir.Table | None,
    left: ir.Table | None,
    added: dict[str, list[str]],
    first_customers: Sequence[str],
    schema: EventSchema,
    cache: Cache,
) -> Changes:
    """Finds the customers with new, removed or newly read events, and the first visit of each that these change.

    Visits are numbered by their period, start and key. So all visits before the one before the first changed one stay
    as they are, and the events of a new day change only a customer's last visits. Where a period may have more events
    than `max_events_per_customer`, no visit stays, because the choice of events may change. No visit stays with
    "leave_one_out" either, because a new visit moves the customer's cutoffs.

    `same`, `arrived` and `left` are normalised events as in [`LogFiles`], the last two cached. `first_customers` are
    the ids of the first customer of each shard, without the first shard.
    """
    changed = [table for table in (arrived, left) if table is not None]
    changed += _with_values(same, schema, added) if same is not None else []
    if not changed:
        nothing = np.zeros(0, np.int64)
        return Changes([], nothing, nothing, None if same is None else same.limit(0))
    everyone = together(*(table.select("customer_id") for table in changed))
    everyone = everyone.filter(everyone.customer_id.notnull()).distinct().order_by("customer_id")
    customers = everyone.customer_id.to_pyarrow().to_pylist()
    names = np.array(customers, object)
    shards = np.searchsorted(np.array(first_customers, object), names, side="right")
    changes = Changes(customers, shards, np.full(len(names), ALL_VISITS), same)
    if same is not None:
        same = cache(same.semi_join(changes.table(), "customer_id"))  # the only pass over the whole log
    states = [_dated(together(same, arrived), schema)]
    states += [_dated(together(same, left), schema)] if left is not None else []
    visits = [cache(find_visits(state).select(*VISIT, "visit")) for state in states]
    moved = together(*(_dated(table, schema).select(*VISIT) for table in changed))
    firsts = [
        numbered.semi_join(moved, VISIT).select("customer_id", prefix_visits=ibis._.visit.cast("int64"))
        for numbered in visits
    ]
    for state in states:
        sizes = state.group_by("customer_id", "period").agg(number=state.count())
        long = sizes if schema.leaves_one_out else sizes.filter(sizes.number > schema.max_events_per_customer)
        firsts.append(long.select("customer_id", prefix_visits=ibis.literal(0, "int64")))
    least = together(*firsts).group_by("customer_id").agg(prefix_visits=ibis._.prefix_visits.min()).to_pyarrow()
    owners = np.searchsorted(names, np.array(least["customer_id"].to_pylist(), object))
    # Also the visit before: it goes on over a cutoff, unless a new one comes between.
    changes.prefix_visits[owners] = np.maximum(least["prefix_visits"].to_numpy() - 1, 0)
    if same is not None and not schema.leaves_one_out:  # otherwise all visits of these customers are read again
        late = visits[0].inner_join(changes.table(), "customer_id")
        late = late.filter(late.visit >= late.prefix_visits - 1)
        same = cache(_dated(same, schema).semi_join(late, VISIT).select(*same.columns))
    return replace(changes, same=same)
