# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Faults of schemas, options and files of a log: each is refused with the words of tests/faults.yaml."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_log import make_log, run, schema_with

from modeling_mcm.data import EventSchema
from modeling_mcm.data.features import check_memory_limit
from modeling_mcm.preparation import prepare

YAML = """customer: user
time: at
{more}
features:
  - {{name: item{of_item}}}
  - {{name: price, kind: numeric{of_price}}}
tasks: {tasks}
cutoffs: {{validation: {validation}, test: 2024-04-01}}
"""


def schema_text(more="name: log", of_item="", of_price="", tasks="[item]", validation="2024-03-01"):
    return YAML.format(more=more, of_item=of_item, of_price=of_price, tasks=tasks, validation=validation)


SCHEMAS = {
    "a key twice": (schema_text("customer: other"), "line 3, column 1 is not valid YAML: the key 'customer'"),
    "a key twice in a feature": (
        schema_text(of_item=",\n     min_count: 2,\n     min_count: 3"),
        "the key 'min_count' stands in line",
    ),
    "Latin-1": (schema_text("name: caf\xe9").encode("latin-1"), r"schema\.yaml is no text in UTF-8"),
    "an open bracket": (schema_text(tasks="[item"), r"schema\.yaml, line"),
    "a tag of Python": (
        schema_text("name: !!python/object/apply:os.system [true]"),
        "is not valid YAML: could not determine a constructor for",
    ),
    "an alias of itself": (schema_text(tasks="&all [*all]"), r"schema\.yaml: `tasks` names"),
    "no such day": (schema_text(validation="2024-02-30"), r"is not valid YAML: day is out of range for month\."),
    "a million bins": (
        schema_text(of_price=", bins: 1000000"),
        "bins` is 1000000; give a whole number of at least 2 and at",
    ),
    "half a bin": (schema_text(of_price=", bins: 2.5"), r"bins` is 2\.5; give a whole number of at least 2\."),
    "min_history of 1e30": (
        schema_text("min_history: 1e30"),
        r"`min_history` is '1e30'; give a whole number of at least 1\.",
    ),
    "min_history of 1.0e+30": (
        schema_text("min_history: 1.0e+30"),
        r"`min_history` is 1e\+30; give a whole number of at least 1\.",
    ),
    "min_history of thirty zeros": (
        schema_text(f"min_history: 1{'0' * 30}"),
        r"`min_history` is 1\.000e\+30; give a whole number of at least",
    ),
    "min_history of infinity": (schema_text("min_history: .inf"), "`min_history` is inf; give a whole number"),
    "min_history of true": (schema_text("min_history: true"), "`min_history` is True; give a whole number"),
    "a window of a billion": (
        schema_text("max_events: 1000000000"),
        "`max_events` is 1000000000; give a whole number of at least",
    ),
    "a customer's events without end": (
        schema_text("max_events_per_customer: 10000000000"),
        "`max_events_per_customer` is 10000000000;",
    ),
    "max_values of a trillion": (schema_text(of_item=", max_values: 1000000000000"), "max_values` is 1000000000000;"),
    "min_count without end": (schema_text(of_item=f", min_count: 1{'0' * 30}"), r"at most 1,000,000,000,000\."),
    "max_items of a million": (
        schema_text(of_item=", separator: '|', max_items: 1000000"),
        "max_items` is 1000000; give a whole number of at least 1",
    ),
    "a token type that YAML reads as true": (
        schema_text("token_type: kind\ntarget_token_types: [on]"),
        "`target_token_types` has True; write it in quotes if it is",
    ),
    "a token type of nothing": (
        schema_text("token_type: kind\ntarget_token_types: [null]"),
        "`target_token_types` has None; write it in quotes",
    ),
}


@pytest.mark.parametrize(("text", "message"), SCHEMAS.values(), ids=SCHEMAS)
def test_a_fault_of_a_schema_is_told(tmp_path, text, message):
    path = tmp_path / "schema.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as raised:
        EventSchema.from_yaml(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_schema_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_text("\ufeff" + schema_text(), encoding="utf-8")
    assert EventSchema.from_yaml(path).customer == "user"


SIZES = {
    "a word": ("lots", "`memory_limit` is 'lots'; give a size such as 4GB, 512MiB"),
    "no unit": ("4", "`memory_limit` is '4'; give a size"),
    "nothing": ("", "`memory_limit` is ''; give a size"),
    "below zero": ("-1GB", "`memory_limit` is '-1GB'; give a size"),
    "zero": ("0GB", "`memory_limit` is '0GB'; give a size"),
    "a comma": ("1,5GB", "`memory_limit` is '1,5GB'; give a size"),
    "an exponent": ("1e3GB", "`memory_limit` is '1e3GB'; give a size"),
    "more than all": ("180%", "`memory_limit` is '180%'; give a size"),
    "another unit": ("4 parsecs", "`memory_limit` is '4 parsecs'; give a size"),
    "not enough": ("1KB", "DuckDB found no more memory or disk"),
}


@pytest.mark.parametrize(("size", "message"), SIZES.values(), ids=SIZES)
def test_a_fault_of_a_size_is_told_before_anything_is_made(tmp_path, size, message):
    with pytest.raises((ValueError, OSError), match=message) as raised:
        run(tmp_path, memory_limit=size)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["1GB", "512 MiB", "2.5gb", "80%", "900000000B"])
def test_sizes_of_memory_are_those_of_duckdb(size):
    check_memory_limit(size)
    import duckdb

    duckdb.connect(config={"memory_limit": size})


@pytest.mark.parametrize("rows", [0, -1, 2.5, True, 10**30, "many"])
def test_rows_of_a_shard_are_a_whole_number_within_limits(tmp_path, rows):
    with pytest.raises(ValueError, match="`rows_per_shard` is .*; give a whole number of at least 1"):
        prepare(make_log(), schema_with(profile=[]), tmp_path / "out", rows_per_shard=rows)


def twice(log, path, name):
    table = pa.Table.from_pandas(log, preserve_index=False)
    pq.write_table(table.append_column(name, table["item"]), path)
    return path


def in_the_path(log, folder):
    (folder / "group=a").mkdir(parents=True)
    log.to_parquet(folder / "group=a" / "log.parquet")
    return folder


COLUMNS = {
    "a column twice": (
        lambda log, folder: twice(log, folder / "log.parquet", "item"),
        "has 2 columns 'item' and 'item', which engines can't tell",
    ),
    "another case": (
        lambda log, folder: twice(log, folder / "log.parquet", "Item"),
        "has 2 columns 'item' and 'Item', which engines can't tell",
    ),
    "a column of the path too": (
        lambda log, folder: in_the_path(log, folder / "log"),
        "has 2 columns 'group' and 'group', which engines can't tell",
    ),
    "a column twice in a frame": (
        lambda log, folder: pd.concat([log, log[["item"]]], axis=1),
        "The event table has 2 columns 'item' and 'item'",
    ),
}


@pytest.mark.parametrize(("make", "message"), COLUMNS.values(), ids=COLUMNS)
def test_columns_that_can_t_be_told_apart_are_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, make(make_log(), tmp_path))
    assert not (tmp_path / "out").exists()


def test_other_columns_may_stand_there_twice(tmp_path):
    table = pa.Table.from_pandas(make_log(), preserve_index=False)
    for name in ("note", "note", "Note"):
        table = table.append_column(name, table["item"])
    pq.write_table(table, tmp_path / "log.parquet")
    assert run(tmp_path, tmp_path / "log.parquet").counts["events"] == len(table)


def test_a_thousand_bins_are_fitted(tmp_path):
    log = make_log(visits=30)
    features = [
        {**spec, "bins": 1000} if spec["name"] == "price" else spec for spec in schema_with().to_dict()["features"]
    ]
    assert run(tmp_path, log, schema_with(features=features)).counts["events"] == len(log)
