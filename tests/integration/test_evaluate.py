# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""run_evaluate.py evaluates a model and all baselines on the same cases; here it trains nothing."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from folders import read_json

from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.cases import cases_at, find_cases, unseen_only
from modeling_mcm.evaluation.comparison import rank_targets

COUNTED = ["most_popular", "visit_frequency", "nearest_customers", "transitions"]


@pytest.fixture
def evaluate(save, prepared, tmp_path, command):
    """A function that calls the script's main with options; gives what was printed and the numbers written."""
    model = save(extended=True)

    def run(*options, data=prepared):
        numbers = tmp_path / "numbers.json"
        words = ["--model", model, "--data", data, "--tasks", "items", "aisle", "--output_file", numbers, *options]
        said = command("run_evaluate", *words)
        return said, read_json(numbers)

    return run


def test_a_model_that_learned_nothing_is_reported(evaluate, tmp_path):
    page = tmp_path / "page.md"
    said, numbers = evaluate("--baselines", *COUNTED, "--report_file", page)
    cells = next(line for line in page.read_text().splitlines() if "MCM |" in line).split(" | ")[1:]
    for task, cell in zip(("items", "aisle"), cells, strict=True):
        means = (numbers["results"]["MCM"][task][f"next_{unit}_ndcg@10"]["mean"] for unit in ("visit", "event"))
        assert cell.strip("*").startswith(f"{next(means):.3f} ±") and f" ({next(means):.3f})" in cell
    assert list(numbers["results"]) == [*COUNTED, "MCM"]
    assert numbers["protocol"] in said and "also those that the customer has seen" in numbers["protocol"]
    assert numbers["protocol"] in page.read_text() and numbers["protocol"].startswith("Split at 20")
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
    lists = numbers["lists"]
    assert list(lists) == [*COUNTED, "MCM"] and list(lists["MCM"]) == ["items", "aisle"]
    assert lists["most_popular"]["items"]["novelty"] < lists["MCM"]["items"]["novelty"]
    assert lists["visit_frequency"]["items"]["repeats"] > lists["most_popular"]["items"]["repeats"]
    assert "labels in any list" in said


def test_only_new_leaves_out_labels_met_before(evaluate, prepared, tmp_path):
    written = tmp_path / "values.parquet"
    said, numbers = evaluate("--only_new", "true", "--values_file", written, "--baselines", "transitions")
    stored = PreparedData(prepared)
    cases = unseen_only(stored.rows, cases_at(stored, "test"), ["items"])
    values = pq.read_table(written, filters=[("task", "=", "items"), ("metric", "=", "next_visit_ndcg@10")])
    assert values["customer_id"].to_pylist() == 2 * cases.customer_ids  # of transitions and of MCM
    has_target = [len(cases.targets["items"].of(case)) > 0 for case in range(len(cases))]
    assert (~np.isnan(values["value"].to_numpy())).tolist() == 2 * has_target and not all(has_target)
    assert "no label that the customer has seen, which is no target either" in said
    assert numbers["only_new"] and numbers["lists"]["MCM"]["items"]["repeats"] == 0


def test_cases_of_different_lengths_keep_their_values(tiny_model, extractor, prepared):
    model, data = tiny_model(extended=True), PreparedData(prepared)
    cases = cases_at(data, "test")
    assert (np.diff(cases.history_end) < 0).any()  # else the order by length would not change it
    together = rank_targets(model, extractor, data.rows, cases, ["items"], batch_size=7)["items"]
    for case, row in enumerate(cases.rows):
        one = data.rows.select([row])
        of_one = replace(find_cases(one, "test", data.schema.min_history, "type"), as_of=cases.as_of)
        alone = rank_targets(model, extractor, one, of_one, ["items"], batch_size=1)["items"]
        values = (ranks.metrics((10,))["next_visit_ndcg@10"] for ranks in (together, alone))
        assert next(values)[case] == pytest.approx(next(values)[0], nan_ok=True)


def test_new_labels_of_a_month_are_targets_of_all_methods(evaluate):
    said, numbers = evaluate("--horizon_days", 30, "--only_new", "true", "--baselines", *COUNTED)
    expected = {f"horizon_{metric}@{k}" for metric in ("ndcg", "recall") for k in (1, 3, 10)}
    assert all(set(by_task["items"]) == expected for by_task in numbers["results"].values())
    assert len({values["items"]["horizon_recall@1"]["customers"] for values in numbers["results"].values()}) == 1
    assert (numbers["horizon_days"], numbers["only_new"]) == (30, True)
    assert "the targets are those of 30 days" in said
