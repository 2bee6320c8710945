# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From checked events to what lies on disk: one row per customer in Parquet shards, and what is counted in them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID
from modeling_mcm.data.cases import ENDS, compute_offsets, count_cases, deciding_tasks
from modeling_mcm.data.dataset import write_table
from modeling_mcm.data.schema import NO_CUTOFFS, EventSchema
from modeling_mcm.encoding_mcm import Encoding
from modeling_mcm.events_mcm import arrange, run_starts
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import file_digest
from modeling_mcm.preparation.reading import RowReader, from_arrow, to_events
from modeling_mcm.schema_mcm import CATEGORICAL

with needs("data"):
    import ibis.expr.types as ir

    from modeling_mcm.preparation.engine import each_group
    from modeling_mcm.preparation.vocabulary import Vocabularies

ROWS_PER_ROW_GROUP = 256


def number_customers(rows: pa.Table) -> tuple[list[str], NDArray[np.int64]]:
    """The ids of the customers in order, and the number of each event's customer, of shape `(events,)`."""
    coded = rows["customer_id"].combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    customers = sorted(names)
    numbers = {name: number for number, name in enumerate(customers)}
    return customers, np.array([numbers[name] for name in names])[coded.indices.to_numpy()]


class ShardEncoder:
    """Makes the rows of a shard from the events of its customers."""

    def __init__(self, schema: EventSchema, fitted: Vocabularies):
        self.schema, self.encoding = schema, Encoding(schema, schema.feature_names, fitted.values, fitted.bins)
        self.events, self.profiles = RowReader(schema), RowReader(schema, profile=True)

    def encode(self, rows: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        """Encodes events with their periods and, if there are profiles, the stored columns of their customers'
        profiles. Returns one row per customer, ordered by id, and what is counted; see [`count`]."""
        names, customers = number_customers(rows)
        periods = rows["period"].to_numpy().astype(np.int64)
        events = to_events(rows, self.events)
        row, timeline = self.encoding.encode(events, customers, periods)
        customers_of_row, periods_of_row = customers[timeline.indices], periods[timeline.indices]
        offsets = pa.array(compute_offsets(np.bincount(customers_of_row)), pa.int32())
        columns: dict[str, Any] = {"customer_id": pa.array(names, pa.string())}
        columns |= {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in row.items()}
        if self.profiles.stored and {*self.profiles.stored} <= {*rows.column_names}:
            first = rows.take(np.unique(customers, return_index=True)[1])
            values = {spec.name: from_arrow(first[name]) for name, spec in self.profiles.stored.items()}
            ids = self.encoding.encode_features(self.encoding.profile_features, values)
            columns |= {f"profile_{feature}": pa.array(of_feature) for feature, of_feature in ids.items()}
        for period, name in enumerate(ENDS, 1):
            ends = np.bincount(customers_of_row, weights=periods_of_row < period)
            columns[name] = pa.array(ends.astype(np.int32))
        table = pa.table(columns)
        is_target = events.is_target[timeline.indices] & ~timeline.closes
        counts = self.count(row, timeline.closes, is_target, periods_of_row == 0, customers_of_row)
        return table, counts | {"cases": count_cases(table, self.schema)}

    def count(
        self,
        row: dict[str, NDArray[Any]],
        closes: NDArray[np.bool_],
        is_target: NDArray[np.bool_],
        is_training: NDArray[np.bool_],
        customers: NDArray[np.int64],
    ) -> dict[str, Any]:
        """Counts in the columns of rows.

        Returns:
            `missing` and `unknown`, by feature the number of the log's events; `events`: `ends_of_visit`, the number
            of added events, and `empty`, that of events without any value; `values`, by categorical feature the ids
            that occur in the training period, their numbers of events, and those of target events; and `measures`, see
            [`measure`].
        """
        ids = {feature: row[f"feature_{feature}"] for feature in self.encoding.event_features}
        is_empty = ~np.any([*ids.values()], axis=0) & ~closes
        values = {}
        for spec in self.schema.features:
            if spec.kind == CATEGORICAL:
                known, places = np.unique(ids[spec.name][is_training], return_inverse=True)
                of_target = np.bincount(places, weights=is_target[is_training], minlength=len(known))
                counted = np.stack([known, np.bincount(places, minlength=len(known)), of_target.astype(int)])
                values[spec.name] = counted[:, known >= FIRST_VALUE_ID].tolist()
        return {
            "missing": {name: int(((column == MISSING_ID) & ~closes).sum()) for name, column in ids.items()},
            "unknown": {name: int(((column == UNKNOWN_ID) & ~closes).sum()) for name, column in ids.items()},
            "events": {"ends_of_visit": int(closes.sum()), "empty": int(is_empty.sum())},
            "values": values,
            "measures": self.measure(row, is_target & is_training, customers),
        }

    def measure(
        self, row: dict[str, NDArray[Any]], is_target: NDArray[np.bool_], customers: NDArray[np.int64]
    ) -> dict[str, int]:
        """Measures what kind of log it is by the target events of the training period; the recipe of pre-training
        reads the measures.

        Only targets with a known label count, and the token type is a label only if it is the only task. In a log
        without times a visit has one moment, as for the model: a shard does not hold the order inside a visit. Returns
        `customers`, `one_visit` (number of customers with a single visit), `visits`, `moments` and `targets` (number
        of events); empty where nothing is split by time, because no model is trained on such a data set.
        """
        if self.schema.cutoffs == NO_CUTOFFS:
            return {}
        tasks = deciding_tasks(self.schema.tasks, self.encoding.token_feature)
        is_labelled = np.any([row[f"feature_{task}"] >= FIRST_VALUE_ID for task in tasks], axis=0)
        targets = np.flatnonzero(is_target & is_labelled)
        customers, visits, times = customers[targets], row["visits"][targets], row["times"][targets]
        opens_visit = run_starts(customers, visits)
        visits_of_customers = np.bincount(customers[opens_visit])
        return {
            "customers": int((visits_of_customers > 0).sum()),
            "one_visit": int((visits_of_customers == 1).sum()),
            "visits": int(opens_visit.sum()),
            "moments": int(run_starts(customers, visits, times).sum()),
            "targets": len(targets),
        }


def write_shard(table: pa.Table, path: Path) -> dict[str, Any]:
    """Writes a shard whole or not at all, and returns its entry in the manifest: `file`, `rows`, `bytes`, `sha256`."""
    write_table(path, table.combine_chunks(), compression="zstd", row_group_size=ROWS_PER_ROW_GROUP)
    return {"file": path.name, "rows": table.num_rows, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def write_shards(
    events: ir.Table, profiles: ir.Table | None, encoder: ShardEncoder, directory: Path, number: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Writes all shards into a folder. Yields the entry of each shard in the manifest, in the order of the shards, and
    what was counted in it."""

    def rows(events: ir.Table) -> ir.Table:
        return events if profiles is None else events.left_join(profiles, "customer_id").drop("customer_id_right")

    def write(index: int, rows_of_shard: pa.Table) -> dict[str, Any]:
        table, counts = encoder.encode(rows_of_shard)
        entry = write_shard(table, directory / f"customers-{index:05d}-of-{number:05d}.parquet")
        return {"entry": entry, "counts": counts}

    for written in each_group(rows, events, "shard", number, write):
        if not (directory / written["entry"]["file"]).is_file():
            raise OSError(
                f"{written['entry']['file']} was written by a worker and is not in {directory.parent.parent}: give an "
                "output folder on storage that all machines of the cluster share."
            )
        yield written["entry"], written["counts"]
    for partial in directory.glob(".*.partial"):  # left by a lost worker, whose shard another worker wrote
        partial.unlink()


def count_days(events: ir.Table, reader: RowReader, number: int) -> Counter[float]:
    """Counts the days between the starts of visits in the training period."""

    def count(_: int, rows: pa.Table) -> dict[str, Any]:
        customers, read = number_customers(rows)[1], to_events(rows, reader)
        ranks, nothing = read.rank_visits(), np.zeros(len(customers), np.int64)
        timeline = arrange(read.positions, ranks, (), read.is_target, False, customers, nothing)
        opens = run_starts(customers[timeline.indices], timeline.visits)
        days, counts = np.unique(timeline.days[opens], return_counts=True)
        return {"days": days[~np.isnan(days)].tolist(), "counts": counts[~np.isnan(days)].tolist()}

    columns = ["customer_id", "shard", "second", "visit_key", "is_target"]
    training = events.filter(events.period == 0).select(*columns)
    total: Counter[float] = Counter()
    for counted in each_group(lambda table: table, training, "shard", number, count):
        total.update(dict(zip(counted["days"], counted["counts"], strict=True)))
    return total


def popularity(values: Sequence[dict[str, Any]], fitted: Vocabularies) -> pa.Table:
    """Adds up the `values` of shards, see [`ShardEncoder.count`]. Returns the columns feature, id, value, count
    (number of events) and target_count (number of target events), in the order of features and ids."""
    parts = []
    for feature in values[0]:
        counts = np.zeros((2, FIRST_VALUE_ID + len(fitted.values[feature])), np.int64)
        for of_shard in values:
            ids, *numbers = of_shard[feature]
            counts[:, ids] += np.array(numbers, np.int64).reshape(2, -1)
        ids = np.flatnonzero(counts[0])
        texts = [fitted.values[feature][label - FIRST_VALUE_ID] for label in ids]
        columns = {"feature": pa.array([feature] * len(ids), pa.string()), "id": pa.array(ids, pa.int32())}
        columns |= {"value": pa.array(texts, pa.string())}
        parts.append(pa.table(columns | {"count": counts[0, ids], "target_count": counts[1, ids]}))
    return pa.concat_tables(parts)
