# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What a log that went on changes in a prepared data set: files, values, customers, and each one's first visit.

Everything before that visit stays as it is in the customer's row. On most days that is all but a visit or two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from modeling_mcm.data.dataset import PreparedManifest, sha256_of
from modeling_mcm.data.schema import EventSchema
from modeling_mcm.extras import needs
from modeling_mcm.preparation.files import InputFiles, find_files
from modeling_mcm.preparation.locks import note_of
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.schema_mcm import CATEGORICAL, raw_places

with needs("data"):
    import ibis
    import ibis.expr.types as ir

    from modeling_mcm.preparation.events import find_visits
    from modeling_mcm.preparation.periods import add_period, add_target
    from modeling_mcm.preparation.vocabulary import each_value

VISIT = ["customer_id", "period", "visit_key"]
ALL_VISITS = 2**31  # more than a customer has

Cache = Callable[..., ir.Table]


@dataclass(frozen=True)
class LogFiles:
    """The log's files by what they are to the data set, the names of those that changed, and the log's description."""

    same: InputFiles
    arrived: InputFiles
    left: InputFiles  # in their earlier version
    names: list[str]
    log: dict[str, Any]


def compare_files(directory: Path, log: Path, manifest: PreparedManifest, corrected: Iterable[str | Path]) -> LogFiles:
    """Finds what is new by name and digest; raises where a file changed whose earlier version is not given."""
    if not log.is_dir() or not manifest.input["events"]:
        raise ValueError(
            f"{log} is no folder, or {directory} was not prepared from files: an update needs a log that is a folder "
            "of Parquet files, the old ones among them."
        )
    (found,) = find_files(log, "event")
    if found.kind != "parquet":
        raise ValueError(
            f"{log} is a folder of {found.kind} files, and an update needs Parquet: prepare everything, or write the "
            "log as Parquet."
        )
    then, now = manifest.input["events"]["files"], found.digests()
    given = [path for each in map(Path, corrected) for path in (each.rglob("*.parquet") if each.is_dir() else [each])]
    earlier = {sha256_of(path): str(path) for path in given}
    arrived = [name for name, digest in now.items() if then.get(name) != digest]
    left = [name for name, digest in then.items() if now.get(name) != digest]
    unknown = [name for name in left if then[name] not in earlier]
    if unknown and (note := note_of(directory)).is_file():
        raise ValueError(
            f"{', '.join(unknown[:5])} of {log} changed, and {note} says that a run of forget_customers.py was killed "
            f"between the log and {directory}: run it again with the same options, which finishes it."
        )
    if unknown:
        raise ValueError(
            f"{', '.join(unknown[:5])} of {log} changed or is gone since {directory} was prepared. Give the version "
            "that was read then as `corrected` (--corrected), so that customers who are in that one alone are "
            "prepared anew too, or prepare everything with `prepare`."
        )
    paths = dict(zip(now, found.paths, strict=True))
    return LogFiles(
        same=replace(found, paths=tuple(path for name, path in paths.items() if name not in arrived)),
        arrived=replace(found, paths=tuple(paths[name] for name in arrived)),
        left=replace(found, paths=tuple(earlier[then[name]] for name in left)),
        names=sorted({*arrived, *left}),
        log={"name": found.name, "files": now},
    )


def new_values(arrived: ir.Table, schema: EventSchema, extractor: MCMFeatureExtractor, least: int) -> dict[str, list]:
    """Per categorical event feature the unknown values with `least` new events, most frequent first, then by text.

    Where the schema has `max_values`, as many as there is still room for.
    """
    added: dict[str, list] = {}
    places = raw_places(schema.features)
    for i, spec in enumerate(schema.features):
        if places[i] != i:  # it shares the values of a column
            if shared := added.get(schema.features[places[i]].name):
                added[spec.name] = list(shared)
        elif spec.kind == CATEGORICAL and not spec.is_constant:
            known = ibis.memtable(pa.table({"known": pa.array(extractor.vocabularies[spec.name], pa.string())}))
            values = arrived.select(value=each_value(arrived[f"f{i}"], spec))
            seen = values.filter(values.value.length() > 0).group_by("value")
            counts = seen.agg(number=lambda t: t.count()).anti_join(known, ibis._.value == known.known)
            kept = counts.filter(counts.number >= least).order_by(ibis.desc("number"), ibis.asc("value"))
            if spec.max_values:
                kept = kept.limit(max(spec.max_values - len(extractor.vocabularies[spec.name]), 0))
            if found := kept.value.to_pyarrow().to_pylist():
                added[spec.name] = found
    return added


def _with_values(events: ir.Table, schema: EventSchema, added: dict[str, list[str]]) -> list[ir.Table]:
    """Events that had an unknown value and now have a known one."""
    found = []
    places = raw_places(schema.features)
    for i, spec in enumerate(schema.features):
        if spec.name in added and places[i] == i:
            values = ibis.memtable(pa.table({"value": pa.array(added[spec.name], pa.string())}))
            each = events.mutate(value_=each_value(events[f"f{i}"], spec))
            found.append(each.semi_join(values, each.value_ == values.value).drop("value_"))
    return found


def together(*tables: ir.Table | None) -> ir.Table:
    """The rows of the tables that there are."""
    return functools.reduce(ir.Table.union, [table for table in tables if table is not None])


def _dated(events: ir.Table, schema: EventSchema) -> ir.Table:
    """Events with a customer and a time, with `is_target` and `period`."""
    whole = events.filter(events.customer_id.notnull() & events.second.notnull())
    return add_period(add_target(whole, schema), schema)


@dataclass(frozen=True)
class Changes:
    """Whose rows change, from which visit on.

    Attributes:
        customers: Ids in their order.
        shards: The shard of each.
        kept: How many of a customer's visits stay as they are: those that come before all that changed.
        same: Events that were there and are there, of these customers, from the last visit on that is kept.
    """

    customers: list[str]
    shards: NDArray[np.int64]
    kept: NDArray[np.int64]
    same: ir.Table | None

    def table(self) -> ir.Table:
        """customer_id, shard, kept."""
        columns = {"customer_id": pa.array(self.customers, pa.string())}
        return ibis.memtable(pa.table(columns | {"shard": pa.array(self.shards), "kept": pa.array(self.kept)}))

    def of_shard(self, shard: int) -> tuple[pa.Array, NDArray[np.int64]]:
        """The customers of one shard, and `kept` of each."""
        here = np.flatnonzero(self.shards == shard)
        return pa.array([self.customers[place] for place in here], pa.string()), self.kept[here]


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

    Visits are numbered by their period, start and key. So all that come before the first changed one are numbered as
    they were, and a day's events change a customer's last visits. Where a period may have more events than
    `max_events_per_customer`, no visit is kept: which events stay may change. Nor with `leave_one_out`: a new visit
    moves the customer's cutoffs.

    Args:
        same: Normalised events of the files that are as they were.
        arrived: of the new files and the new versions, cached.
        left: of the old versions and the files that are gone, cached.
        added: Per feature the values that joined its vocabulary.
        first_customers: Of each shard but the first, its first customer.
        schema: The event schema.
        cache: of `caching`.
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
    found = Changes(customers, shards, np.full(len(names), ALL_VISITS), same)
    if same is not None:
        same = cache(same.semi_join(found.table(), "customer_id"))  # the one pass over the log
    states = [_dated(together(same, arrived), schema)]
    states += [_dated(together(same, left), schema)] if left is not None else []
    visits = [cache(find_visits(state).select(*VISIT, "visit")) for state in states]
    moved = together(*(_dated(table, schema).select(*VISIT) for table in changed))
    firsts = [each.semi_join(moved, VISIT).select("customer_id", kept=ibis._.visit.cast("int64")) for each in visits]
    for state in states:
        sizes = state.group_by("customer_id", "period").agg(number=state.count())
        long = sizes if schema.leaves_one_out else sizes.filter(sizes.number > schema.max_events_per_customer)
        firsts.append(long.select("customer_id", kept=ibis.literal(0, "int64")))
    least = together(*firsts).group_by("customer_id").agg(kept=ibis._.kept.min()).to_pyarrow()
    found.kept[np.searchsorted(names, np.array(least["customer_id"].to_pylist(), object))] = least["kept"].to_numpy()
    if same is not None and not schema.leaves_one_out:  # else all visits of these customers are read again
        late = visits[0].inner_join(found.table(), "customer_id")
        late = late.filter(late.visit >= late.kept - 1)
        same = cache(_dated(same, schema).semi_join(late, VISIT).select(*same.columns))
    return replace(found, same=same)
