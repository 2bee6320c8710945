# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure what they say."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import call

import compare
import recipe
from modeling_mcm.data import EventSchema, PreparedData
from modeling_mcm.evaluation.cases import EvaluationCases, TargetEvents
from modeling_mcm.preparation import prepare
from synthetic import ShopSettings, make_click_log


def table(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["table"]


@pytest.mark.slow
def test_preparation_of_large_logs_is_measured_and_projected(tmp_path):
    call("scale", "--events", 20_000, "--results", tmp_path)
    _, small, projected = table(tmp_path, "preparation")
    assert 10_000 < int(small[0].replace(",", "")) < 40_000 and projected[0] == "10,000,000,000, projected"


@pytest.mark.slow
def test_a_plain_bert_is_beside_mcm(prepared, tmp_path):
    short = ["--methods", "BERT of transformers", "MCM", "--hidden", 16, "--rounds", 1, "--seconds", 1, "--length", 20]
    call("compare", "--data", prepared, "--task", "items", "--results", tmp_path, *short)
    _, bert, mcm = table(tmp_path, "speed")
    assert (bert[0], mcm[0]) == ("BERT of transformers", "MCM") and bert[3] == "-" and bert[2] == "1.00x"
    for row in (bert, mcm):
        assert float(row[1].replace(",", "")) > 0 and float(row[4].replace(",", "")) > 0
        assert 0 <= float(row[6].split()[0]) <= 1
    assert float(mcm[3].replace(",", "")) > 0


def test_recommended_lists_get_the_ndcg_of_their_places(tmp_path):
    targets = TargetEvents(np.array([0, 2, 3, 5]), np.array([5, 7, 3, 4, 6]))  # labels, of three cases
    cases = EvaluationCases("validation", np.arange(3), ["a", "b", "c"], np.ones(3, int), {"item": targets})
    lists = {"b": [9, 1, 8], "a": [5, 3, 0]}  # items are labels less 2; nothing was recommended to c
    path = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"customer": list(lists), "items": list(lists.values())}), path)
    found = compare.accuracy(path, cases, "item", 12)
    assert float(found.split()[0]) == pytest.approx((1 + 1 / np.log2(3)) / 3, abs=0.0006)


def test_the_tables_of_several_logs_are_means_of_seeds_in_pairs():
    counted = np.array([0.1, 0.3, 0.5, np.nan])
    answers = recipe.Answers(
        log="a_shop",
        question="next visit",
        tasks=("item",),
        seeds=[{"MCM": {"item": counted + more}, "popular": {"item": counted}} for more in (0.1, 0.3)],
        rivals={"BERT4Rec": {"item": counted + 0.4}},
        truth={"item": np.array([1.0, 1.0, 1.0, np.nan])},
    )
    _, popular, rival, ours = recipe.method_table([answers])
    assert popular[3:6] == ["popular", "0.3000 ±0.2000", "+0.2000 [+0.2000, +0.2000]"]
    assert rival[5].startswith("-0.2000") and ours[3:6] == ["MCM", "0.5000 ±0.2000", "seeds: 0.4000, 0.6000"]
    _, best, ours, popular = recipe.truth_table([answers])
    assert [best[3], ours[3], popular[3]] == ["the best ranking", "MCM", "popular"] and ours[5].startswith("50.0%")


def test_the_best_ranking_of_a_shop_is_better_than_the_most_popular(tmp_path):
    log = make_click_log(300, ShopSettings(items=60, subcategories=12, categories=4))
    schema = EventSchema.from_yaml(recipe.ROOT / "configuration/schemas/clickstream.yaml")
    prepare(log.events, schema, tmp_path / "prepared")
    data = PreparedData(tmp_path / "prepared")
    found = recipe.true_values(log, data, recipe.NEXT)
    assert set(found) == {"item", "category"} and all(0.2 < np.nanmean(values) < 1 for values in found.values())
