# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Rows from the shards themselves: the same rows, each once an epoch, few shards at a time, damage found and named."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic_log
import torch
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader

from modeling_mcm.data import PreparedManifest, load_prepared
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.streaming import StreamedOrder, StreamedRows
from modeling_mcm.files_mcm import file_digest

CUSTOMERS, ROWS_PER_SHARD = 30, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of eight shards, the last of two customers."""
    folder = tmp_path_factory.mktemp("streamed")
    synthetic_log.run(folder, synthetic_log.make_log(customers=CUSTOMERS), rows_per_shard=ROWS_PER_SHARD)
    return folder / "out"


@pytest.fixture
def damaged(data, tmp_path):
    """A function that copies the data, changes the fourth shard with a function of its path, and gives the copy."""

    def damage(change, listed=False):
        for path in data.rglob("*"):
            if path.is_file():
                (tmp_path / path.relative_to(data)).parent.mkdir(exist_ok=True)
                (tmp_path / path.relative_to(data)).write_bytes(path.read_bytes())
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        shard = manifest["shards"][3]
        change(tmp_path / shard["file"])
        if listed:
            path = tmp_path / shard["file"]
            shard |= {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        return tmp_path

    return damage


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert np.array_equal(value, theirs[name]), name
        assert np.asarray(value).dtype == np.asarray(theirs[name]).dtype, name


def test_a_streamed_row_is_the_prepared_row(data, tmp_path):
    kept = np.delete(np.arange(CUSTOMERS), [0, 5, 6, 7, 29])
    prepared = PreparedRows(load_prepared(data, cache_dir=tmp_path), kept)
    streamed = StreamedRows(data)
    streamed.keep(kept)
    streamed.held_shards = 2
    assert len(streamed) == len(kept) and len(streamed.shards) == 8
    order = np.random.default_rng(0).permutation(len(kept)).tolist()
    for batch in (order[:9], order[9:], [3], [4, 4]):
        for ours, theirs in zip(streamed.__getitems__(batch), prepared.__getitems__(batch), strict=True):
            same(ours, theirs)
        assert len(streamed._held) <= 2
    same(streamed[7], prepared[7])
    assert streamed.column("validation_end").tolist() == prepared.rows.with_format(None)["validation_end"][:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_skips_without_reading(data, workers, monkeypatch):
    rows = StreamedRows(data)
    rows.keep(np.arange(CUSTOMERS), np.ones(CUSTOMERS))
    rows.held_shards = 4
    order = StreamedOrder(rows, 2, 1, max(1, workers), 2, 0, torch.tensor(0))
    loader = DataLoader(rows, batch_size=2, sampler=order, num_workers=workers, collate_fn=lambda batch: batch)
    whole = [[row["row"] for row in batch] for batch in loader]
    assert sorted(sum(whole, [])) == list(range(CUSTOMERS))
    late = StreamedRows(data)
    late.keep(rows.indices, rows.lengths)
    needed = {row // ROWS_PER_SHARD for batch in whole[12:] for row in batch}
    read = late._read
    monkeypatch.setattr(late, "_read", lambda shard: read(shard) if shard in needed else pytest.fail(f"read {shard}"))
    resumed = DataLoader(late, batch_size=2, sampler=order, num_workers=workers, collate_fn=lambda batch: batch)
    found = [[row["row"] for row in batch] for batch in skip_first_batches(resumed, 12)]
    assert found == whole[12:] and len(needed) < 8


def test_memory_does_not_grow_with_the_data_nor_over_an_epoch(tmp_path):
    """Arrow's, which holds the shards, counted after every batch; the second data set has four times the shards."""
    most = []
    for shards in (10, 40):
        values = pa.array(np.arange(shards * 8 * 5000, dtype=np.int32))
        offsets = pa.array(np.arange(0, len(values) + 1, 5000, dtype=np.int32))
        table = pa.table({"times": pa.ListArray.from_arrays(offsets, values)})
        folder = tmp_path / str(shards)
        folder.mkdir()
        entries = []
        for number in range(shards):
            path = folder / f"{number}.parquet"
            pq.write_table(table.slice(8 * number, 8), path)
            entries.append({"file": path.name, "rows": 8, "bytes": path.stat().st_size, "sha256": file_digest(path)})
        PreparedManifest({}, {}, {}, {}, {}, {}, entries).save(folder)
        rows = StreamedRows(folder)
        rows.held_shards = 4
        rows.keep(rows.indices, np.ones(len(rows)))
        del table, values, offsets
        before, seen = pa.total_allocated_bytes(), []
        for batch in BatchSampler(StreamedOrder(rows, 4, 1, 1, 2, 0, torch.tensor(0)), 4, False):
            rows.__getitems__(batch)
            seen.append(pa.total_allocated_bytes() - before)
        assert 4 * 8 * 5000 * 4 * 0.9 < max(seen) < 5 * 8 * 5000 * 4 * 1.1  # the shards that are held, and one
        most.append(max(seen))
        half = len(seen) // 2
        assert max(seen[half:]) < 1.2 * max(seen[:half])
    assert most[1] < 1.2 * most[0]


# -------------------------------------------------------------------------------------------------------- the order


def make_order(shards=40, rows_per_shard=50, group=12, parts=2, turns=2, window=3, seed=0, epoch=0, every=1):
    """An order over rows of which every `every`th is kept; lengths follow no order."""
    total = shards * rows_per_shard
    rows = SimpleNamespace(
        indices=np.arange(0, total, every),
        starts=np.arange(0, total + 1, rows_per_shard),
        lengths=np.random.default_rng(9).geometric(0.01, len(range(0, total, every))),
    )
    return StreamedOrder(rows, group, parts, turns, window, seed, torch.tensor(epoch))


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"parts": 1, "turns": 1},
        {"parts": 4, "turns": 3, "window": 1},
        {"every": 7},
        {"every": 60},  # shards without a row
        {"shards": 1, "rows_per_shard": 17},
        {"shards": 3, "rows_per_shard": 1},  # fewer rows than a batch
        {"window": 1000},
    ],
)
def test_every_row_comes_once_an_epoch_in_an_order_of_seed_and_epoch(choices):
    order = list(make_order(**choices))
    assert sorted(order) == list(range(len(make_order(**choices))))
    assert list(make_order(**choices)) == order
    if len(order) > 3:
        assert list(make_order(**choices, epoch=1)) != order and list(make_order(**choices, seed=1)) != order


@pytest.mark.parametrize("processes, workers, accumulated", [(1, 1, 1), (2, 1, 1), (2, 3, 1), (1, 2, 3), (2, 2, 2)])
def test_every_worker_reads_shards_of_its_own(processes, workers, accumulated):
    """What is read, with the shards that are held; every shard once would be the least."""
    batch, shards, per_shard, window = 4, 120, 50, 3
    parts = processes * accumulated
    order = make_order(shards, per_shard, batch * parts, parts, workers, window)
    lanes = order.lanes_of_a_worker(batch, processes, workers)
    assert lanes == accumulated
    reads, needed = 0, []
    for process in range(processes):
        batches = list(BatchSamplerShard(BatchSampler(order, batch, False), processes, process))
        for worker in range(workers):
            held, own = {}, set()
            for rows in batches[worker::workers]:
                for shard in dict.fromkeys(np.asarray(rows) // per_shard):
                    reads += shard not in held
                    held[shard] = held.pop(shard, None)
                    own.add(shard)
                while len(held) > (window + 2) * lanes:
                    del held[next(iter(held))]
            needed.append(own)
    # a shard that two windows share may be read for each, and so may one that two lanes share; all read the end
    assert reads <= 1.1 * shards + 2 * parts * workers + processes * workers
    assert all(len(own) < 1.6 * shards / len(needed) for own in needed) or len(needed) == 1


@pytest.mark.parametrize("processes, batch", [(1, 12), (2, 6), (4, 3), (2, 3)])
def test_the_customers_of_a_step_are_the_same_on_any_number_of_processes(processes, batch):
    order = make_order(group=12)
    whole = [set(rows) for rows in BatchSampler(order, 12, False)]
    shared = [list(BatchSamplerShard(BatchSampler(order, batch, False), processes, k)) for k in range(processes)]
    together = [sum(batches, []) for batches in zip(*shared, strict=True)]
    together = [
        sum(together[k : k + 12 // (processes * batch)], [])
        for k in range(0, len(together), 12 // (processes * batch))
    ]
    assert [set(rows) for rows in together][:-1] == whole[:-1] and len(together) == len(whole)


def test_batches_and_the_parts_of_a_step_are_of_like_length():
    order = make_order(shards=100, group=16, parts=2, turns=2)
    lengths = order.lengths[np.fromiter(order, int)][: len(order) // 16 * 16].reshape(-1, 2, 8)
    shuffled = np.random.default_rng(0).permutation(order.lengths)[: lengths.size].reshape(-1, 2, 8)

    def padding(parts):
        return 1 - parts.mean() / parts.max(-1).mean()

    assert padding(lengths) < 0.3 * padding(shuffled)
    waits, random_waits = (np.abs(np.subtract(*each.max(-1).T)).mean() for each in (lengths, shuffled))
    assert waits < 0.5 * random_waits
    assert np.corrcoef(lengths.mean((1, 2))[:-1], lengths.mean((1, 2))[1:])[0, 1] < 0.5  # no run from short to long


def test_an_order_that_can_not_be_is_refused():
    with pytest.raises(ValueError, match="5 parts and 2 turns.*divide the 12 customers of a global batch"):
        make_order(parts=5)
    with pytest.raises(ValueError, match="a window of 0; expected positive numbers"):
        make_order(window=0)
    rows = SimpleNamespace(lengths=None)
    with pytest.raises(ValueError, match="no lengths; give them to StreamedRows.keep"):
        StreamedOrder(rows, 4, 1, 1, 1, 0, torch.tensor(0))


# ---------------------------------------------------------------------------------------------------------- damage


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_shard_is_named_when_it_is_read_and_others_are_read_before(damaged):
    rows = StreamedRows(damaged(flip_a_byte))
    assert rows[3 * ROWS_PER_SHARD - 1]["row"] == 3 * ROWS_PER_SHARD - 1
    with pytest.raises(ValueError, match=r"customers-00003-of-00008.parquet does not have the digest.*goes on"):
        rows[3 * ROWS_PER_SHARD]


def test_a_shard_that_is_short_or_gone_is_named_at_once(damaged):
    with pytest.raises(ValueError, match="customers-00003-of-00008.parquet has .* bytes and .* were written"):
        StreamedRows(damaged(lambda path: path.write_bytes(path.read_bytes()[:-1])))
    with pytest.raises(ValueError, match="customers-00003-of-00008.parquet is missing"):
        StreamedRows(damaged(lambda path: path.unlink()))


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda table: table.set_column(2, "visits", table["visits"].cast(pa.list_(pa.int64()))), "'visits': list"),
        (lambda table: table.drop_columns("test_end"), "'test_end': absent and int32"),
        (lambda table: table.append_column("task_new", table["visits"]), "'task_new': list<.*> and absent"),
        (lambda table: table.select(table.column_names[::-1]), "'their order'"),
    ],
)
def test_a_shard_of_another_schema_is_refused_by_both_readers(damaged, tmp_path, change, found):
    folder = damaged(lambda path: pq.write_table(change(pq.read_table(path)), path), listed=True)
    message = f"customers-00003-of-00008.parquet and customers-00000-of-00008.parquet differ in column {found}"
    with pytest.raises(ValueError, match=message):
        StreamedRows(folder)
    with pytest.raises(ValueError, match=message):
        load_prepared(folder, cache_dir=tmp_path / "cache")


def test_some_shards_can_be_loaded_alone(data, tmp_path):
    manifest = PreparedManifest.load(data)
    some = load_prepared(data, cache_dir=tmp_path, shards=[0, 7])
    assert len(some) == manifest.shards[0]["rows"] + manifest.shards[7]["rows"]
    everyone = load_prepared(data, cache_dir=tmp_path)["customer_id"][:]
    assert some["customer_id"][:] == [*everyone[:4], *everyone[-2:]]
