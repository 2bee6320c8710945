# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Customers who ask to be forgotten are in no file any more, and the command says so only where it is true."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SCHEMA

from modeling_mcm.data import EventSchema, PreparedManifest, load_prepared, prepare
from modeling_mcm.data.update import update

ROOT = Path(__file__).resolve().parents[2]
THEY = ["c05", "c21"]


@pytest.fixture
def place(tmp_path, event_log, monkeypatch):
    """A folder with a log of two files, its data set, a loaded copy in the cache, and a list of two customers."""
    (tmp_path / "log" / "late").mkdir(parents=True)
    for name, part in (("a", event_log["when"] < "2017-06-01"), ("late/b", event_log["when"] >= "2017-06-01")):
        event_log[part].to_parquet(tmp_path / "log" / f"{name}.parquet")
    who = sorted(event_log["who"].unique())
    ages = pd.DataFrame({"who": who, "age": [("young", "old")[int(name[1:]) % 2] for name in who]})
    ages.to_parquet(tmp_path / "profile.parquet")
    schema, people = EventSchema.from_dict(SCHEMA), tmp_path / "profile.parquet"
    prepare(tmp_path / "log", schema, tmp_path / "data", profile=people, rows_per_shard=20)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load_prepared(tmp_path / "data", cache_dir=tmp_path / "cache")
    (tmp_path / "ids.txt").write_text("\n".join([*THEY, "nobody", ""]))
    return tmp_path


@pytest.fixture
def forget(place, monkeypatch, capsys):
    """A function that runs the script on folders of the place; `fails` is what it must say before it ends with 1."""
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    script = importlib.import_module("forget_customers")

    def call(*options, fails=None):
        words = [f"--{word[2:]}" if word.startswith("--") else str(place / word) for word in options]
        words = [word.removeprefix(f"{place}/=") for word in words]
        monkeypatch.setattr(sys, "argv", ["forget_customers.py", "--customers", str(place / "ids.txt"), *words])
        if fails is None:
            script.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as caught:
            script.main()
        assert caught.value.code not in (0, None)
        said = f"{caught.value.code} {capsys.readouterr().err}"
        assert fails in said
        return said

    return call


def customers(folder):
    return pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*customers*.parquet"))])["customer_id"]


def rows(folder):
    return [row for path in sorted(folder.glob("customers*")) for row in pq.read_table(path).to_pylist()]


def score(place, model, monkeypatch):
    script = importlib.import_module("run_predict")
    options = {"model": model, "data": str(place / "data"), "output_dir": str(place / "scores"), "rows_per_file": 5}
    script.run(script.PredictionOptions(**options), script.EngineOptions())


def test_they_are_gone_from_data_predictions_log_and_cache(place, forget, save, monkeypatch):
    score(place, save(extended=True), monkeypatch)
    before = rows(place / "data")
    everyone = customers(place / "data").tolist()
    for folder in ("--data data", "--predictions scores"):
        said = forget(*folder.split(), "--check_only", "=true", fails="not proven that they are gone")
        assert "1 rows of theirs" in said
    cached = list((place / "cache").rglob("*.arrow"))
    broken = place / "cache" / "parquet" / "killed" / "x.arrow"
    broken.parent.mkdir()
    broken.write_bytes(b"cut")
    said = forget("--data", "data", "--predictions", "scores", "--events", "log", "profile.parquet")
    assert said.endswith("none of them is there\n") and said.count("2 of 3 customers deleted") == 2
    left = [name for name in everyone if name not in THEY]
    assert customers(place / "data").tolist() == left == customers(place / "scores").tolist()
    for raw in ("log", "profile.parquet"):
        assert set(pd.read_parquet(place / raw)["who"]) == set(left)
    assert cached and not any(path.exists() for path in [*cached, broken])
    manifest = PreparedManifest.load(place / "data")
    assert (manifest.counts["customers"], manifest.counts["forgotten"]) == (len(left), 2)
    assert json.loads((place / "scores" / "_predictions.json").read_text())["customers"] == len(left)
    assert load_prepared(place / "data", cache_dir=place / "cache", verify=True)["customer_id"][:] == left
    assert rows(place / "data") == [row for row in before if row["customer_id"] not in THEY]
    again = forget("--data", "data", "--predictions", "scores", "--events", "log", "profile.parquet")
    assert "log: 0 rows deleted" in again and again.count(": 0 of 3 customers deleted") == 2


def test_an_update_does_not_bring_them_back(place, forget, event_log):
    forget("--data", "data", "--events", "log", "profile.parquet")
    new = event_log[event_log["who"].isin(["c01", "c30"])].tail(20).assign(when=pd.Timestamp("2018-01-01"))
    new.to_parquet(place / "log" / "c.parquet")
    assert update(place / "data", place / "log", place / "profile.parquet").customers == new["who"].nunique()
    forget("--data", "data", "--events", "log", "--check_only", "=true")
    assert len(customers(place / "data")) == event_log["who"].nunique() - 2


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (
            lambda place: shutil.copy(place / "old.parquet", place / "data" / "extra.parquet"),
            "extra.parquet: 1 rows of",
        ),
        (lambda place: (place / "data" / "x.parquet").write_bytes(b"PAR1 cut"), "x.parquet: can't be read"),
        (lambda place: (place / ".data.77.partial").mkdir(), ".data.77.partial: left by a run that was killed"),
        (
            lambda place: (place / "data" / ".customers-0.parquet.7.partial").touch(),
            "7.partial: left by a run that was",
        ),
        (lambda place: (place / "data" / "backup.zip").write_bytes(b"x"), "backup.zip: neither Parquet"),
    ],
    ids=["a copy", "a damaged file", "a killed run", "a killed worker", "another file"],
)
def test_what_is_left_is_named(place, forget, spoil, found):
    shutil.copy(next((place / "data").glob("customers-00000*")), place / "old.parquet")
    forget("--data", "data")
    spoil(place)
    forget("--data", "data", "--check_only", "=true", fails=found)


def test_a_wrong_number_of_customers_is_found(place, forget):
    path = place / "data" / "manifest.json"
    path.write_text(path.read_text().replace('"customers": 34', '"customers": 33'))
    (place / "ids.txt").write_text("nobody")
    forget("--data", "data", "--check_only", "=true", fails="says 33 customers, and there are 34")


def test_bad_options_are_refused(place, forget):
    forget("--events", "log", fails="where customers are to be forgotten")
    forget("--predictions", "log", fails="has no column 'customer_id'")
    (place / "ids.txt").write_text("\n".join(sorted(customers(place / "data"))))
    forget("--data", "data", fails="Nobody would be left")
    assert len(customers(place / "data")) == 34
    (place / "ids.txt").write_text("\n")
    forget("--data", "data", fails="holds no id")


def test_numbers_are_found_as_their_text(tmp_path):
    module = importlib.import_module("modeling_mcm.data.forget")
    for values in ([1, 2, None], [1.0, 2.0, None]):
        pq.write_table(pa.table({"user": values, "x": [0, 1, 2]}), tmp_path / "log.parquet")
        assert module.forget_in_log(tmp_path / "log.parquet", {"1"}, "user")[0] == 1
        assert pq.read_table(tmp_path / "log.parquet")["x"].to_pylist() == [1, 2]
