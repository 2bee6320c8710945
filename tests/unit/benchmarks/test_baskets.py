# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Next baskets are asked of customers whom the fit has not seen, and measured as papers do."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from folders import read_json
from in_process import call

import baskets
import page


def test_lists_are_measured_as_in_papers():
    lists = {"a": ["1", "2", "3"], "b": ["9"]}
    found = baskets.measure(lists, {"a": ["3", "7"], "b": ["1"], "nobody": ["1"]})
    assert found["recall"].tolist() == [0.5, 0, 0] and found["hit"].tolist() == [1, 0, 0]
    assert found["ndcg"].tolist() == pytest.approx([0.5 / (1 + 1 / math.log2(3)), 0, 0])


def test_unseen_customers_are_asked_and_stand_beside_published_figures(tmp_path):
    random = np.random.default_rng(0)
    rows = [
        (f"{part}{user}", basket, str(user % 20 if random.random() < 0.8 else random.integers(20)))
        for part, users in {"fit": 200, "test": 40}.items()
        for user in range(users)
        for basket in range(5)
        for _ in range(2)
    ]
    events = pd.DataFrame(rows, columns=["user", "basket", "item"]).drop_duplicates()
    is_test = events["user"].str.startswith("test")
    events[~is_test].to_parquet(tmp_path / "DC_fit.parquet")
    events[is_test].to_parquet(tmp_path / "DC_test.parquet")
    truth = {user: [str(int(user[4:]) % 20)] for user in events["user"][is_test].unique()}
    (tmp_path / "DC_truth.json").write_text(json.dumps(truth))
    results = tmp_path / "results"
    results.mkdir()
    call("baskets", "--data", tmp_path, "--names", "DC", "--results", results)
    own = read_json(results / "baskets.json")["rows"][-1]
    assert own["hit"]["mean"] > 0.9 and own["hit"]["customers"] == 40
    page.draw(results)
    lines = (tmp_path / "results.md").read_text().splitlines()
    (published,) = (line for line in lines if line.startswith("| DNNTSP "))
    assert published.startswith("| DNNTSP (KDD 2020) | 0.169 | 0.144 | 0.471 | 0.461")
    assert any(line.startswith(f"| {own['method']} |  |  |  | {own['recall']['mean']:.3f} ±") for line in lines)
