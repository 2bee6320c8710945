# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""run_evaluate.py asks a model and all baselines the same, and computes a baseline once; here it trains nothing."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from corner_shop import SCHEMA

from modeling_mcm.data import EventSchema, PreparedData
from modeling_mcm.evaluation import counting
from modeling_mcm.evaluation.cases import cases_at, unmet_only
from modeling_mcm.preparation import prepare

COUNTED = ["most_popular", "visit_frequency", "nearest_households", "transitions"]


@pytest.fixture
def data(prepared, tmp_path):
    """A copy of the prepared data, for values of baselines are written into its folder."""
    return Path(shutil.copytree(prepared, tmp_path / "data", ignore=shutil.ignore_patterns("baselines")))


@pytest.fixture
def evaluate(save, data, tmp_path, command):
    """A function that calls the script's main with options; gives what was printed and the numbers written."""
    model = save(extended=True)

    def run(*options):
        numbers = tmp_path / "numbers.json"
        words = ["--model", model, "--data", data, "--tasks", "items", "aisle", "--output_file", numbers, *options]
        said = command("run_evaluate", *words)
        return said, json.loads(numbers.read_text())

    return run


def test_a_second_evaluation_reads_what_the_first_one_computed(evaluate, data, monkeypatch):
    said, numbers = evaluate("--baselines", *COUNTED)
    assert len(list((data / "baselines").glob("*.parquet"))) == 2 * len(COUNTED)
    monkeypatch.setattr(counting, "evaluate_baseline", None)  # calling it would fail
    again, same = evaluate("--baselines", *COUNTED)
    assert (again, same) == (said, numbers)
    assert list(numbers["results"]) == [*COUNTED, "MCM"] and numbers["asked"].startswith("everything is ranked")


def test_a_model_that_learned_nothing_is_told_of(evaluate, save):
    save(extended=True, repeat_memory=False)  # with it, even an untrained model knows what was bought before
    said, numbers = evaluate("--baselines", *COUNTED, "--shown", 0)
    warnings = [line for line in said.splitlines() if line.startswith("MCM is ")]
    assert any(line.startswith("MCM is under visit_frequency, beyond noise, on items by") for line in warnings)
    table = said[said.index("By visits before the cutoff: next-visit NDCG@10.") :].splitlines()
    assert table[2].split()[:4] == ["task", "visits", "before", "customers"]
    groups = numbers["by_history"]
    assert sum(group["cases"] for group in groups.values()) == numbers["cases"]
    for name, group in groups.items():
        mean = group["results"]["MCM"]["items"]["next_visit_ndcg@10"]["mean"]
        (line,) = [line for line in table if line.startswith("items ") and f" {name} " in line]
        assert f"{mean:.3f} ±" in line


def test_what_was_met_is_not_recommended(evaluate, data, tmp_path):
    predictions = tmp_path / "predictions.parquet"
    said, numbers = evaluate("--filter_seen", "true", "--predictions_file", predictions, "--baselines", "transitions")
    stored = PreparedData(data)
    cases, extractor = unmet_only(stored.rows, cases_at(stored, "test"), ["items"]), stored.extractor
    table = pq.read_table(predictions, filters=[("task", "=", "items")]).to_pylist()
    by_customer = {row["customer_id"]: row["labels"] for row in table}
    assert by_customer.keys() == set(cases.customer_ids)
    for case, name in enumerate(cases.customer_ids):
        met = {*extractor.decode_labels("items", cases.met["items"][case])}
        assert met and not met & set(by_customer[name])
        assert len(met) + len(by_customer[name]) == len(extractor.vocabularies["items"])
    assert "What the customer met before the cutoff is neither ranked nor a target." in said
    assert numbers["filter_seen"] and "next_visit_ndcg@10" in numbers["results"]["transitions"]["items"]


def test_new_labels_of_a_month_are_asked_of_all_alike(evaluate):
    said, numbers = evaluate("--horizon_days", 30, "--only_new", "true", "--baselines", *COUNTED)
    lists = [f"{metric}@{k}" for metric in ("ndcg", "recall", "precision", "hr") for k in (1, 3, 10)]
    for by_task in numbers["results"].values():
        assert set(by_task["items"]) == {f"horizon_{name}" for name in ["mrr", *lists]}
    customers = {values["items"]["horizon_mrr"]["customers"] for values in numbers["results"].values()}
    assert len(customers) == 1
    assert (numbers["horizon_days"], numbers["only_new"]) == (30, True)
    assert "the targets are those of 30 days" in said and "✓ = within the horizon." in said


def test_customers_of_one_or_two_events_are_cases_where_asked(evaluate, data, event_log, extractor):
    bought = event_log[event_log["action"] == "buy"].sort_values("when")
    few = [f"c{number:02}" for number in range(10)]
    first = bought[bought["who"].isin(few)].groupby("who").head(1)
    second = bought[bought["who"].isin(few[:5])].groupby("who").nth(1)
    later = event_log[event_log["who"].isin(few) & (event_log["when"] >= "2017-11-01")]
    log = pd.concat([event_log[~event_log["who"].isin(few)], first, second, later])
    ages = pd.DataFrame({"who": sorted(log["who"].unique()), "age": "young"})
    schema = EventSchema.from_dict(SCHEMA)
    prepare(log, schema, data, profile=ages, feature_extractor=extractor, rows_per_shard=20, overwrite=True)
    for options in ([], ["--filter_seen", "true"], ["--horizon_days", 30, "--only_new", "true"]):
        at_least_three = evaluate("--baselines", "none", *options)[1]
        said, numbers = evaluate("--baselines", *COUNTED, "--min_history", 1, *options)
        assert numbers["cases"] > at_least_three["cases"]
        assert numbers["by_history"]["1-2"]["cases"] >= 3
        (line,) = [line.split() for line in said.splitlines() if line.startswith("items  1-2 ")]
        assert int(line[2]) >= 3


@pytest.mark.parametrize(
    "options, message",
    [
        (["--horizon_days", "0"], "--horizon_days is 0; give a positive number of days"),
        (["--horizon_days", "-2"], "--horizon_days is -2; give a positive number"),
        (["--min_history", "0"], "--min_history is 0; a case needs at least 1 event"),
        (["--k", "0"], "--k and --batch_size at least 1"),
        (["--offers", "somewhere", "--filter_seen", "true"], "are not for --offers"),
    ],
)
def test_options_that_ask_for_nothing_are_refused(evaluate, options, message, capsys):
    with pytest.raises(SystemExit):
        evaluate(*options)
    assert message in capsys.readouterr().err


def test_cases_that_are_not_there_are_refused(evaluate):
    with pytest.raises(SystemExit, match="No evaluation case at the test cutoff .* at least 100000 target events"):
        evaluate("--min_history", 100000)
    with pytest.raises(SystemExit, match="one within 1e-05 days from it.*take a longer horizon"):
        evaluate("--horizon_days", "0.00001")
    with pytest.raises(SystemExit, match=r"No metrics \['ndcg@7'\] for the table"):
        evaluate("--horizon_days", 30, "--baselines", "none", "--table", "ndcg@7")
    with pytest.raises(SystemExit, match=r"No baselines \['popular'\]"):
        evaluate("--baselines", "popular")
