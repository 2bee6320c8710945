# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Baselines by name: what was computed once is read again, and nothing else is taken for it."""

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from visits import LABELS, Visit, horizon, prepared_rows

from modeling_mcm.evaluation import counting
from modeling_mcm.evaluation.baseline_cache import BaselineCache
from modeling_mcm.evaluation.baselines import VisitFrequency
from modeling_mcm.evaluation.cases import EvaluationCases, find_cases, unmet_only
from modeling_mcm.evaluation.counting import (
    BASELINES,
    FIRST_BASELINES,
    STRONG_BASELINES,
    Results,
    counting_baselines,
    default_baselines,
)

COUNTED = [name for name in BASELINES if name != "lightgbm"]
SIZES = {"brand": LABELS}


@pytest.fixture
def rows() -> pa.Table:
    generator = np.random.default_rng(3)
    customers: dict[str, list[Visit]] = {
        f"customer {number}": [
            (int(day), generator.integers(1, LABELS, size=generator.integers(1, 4)).tolist())
            for day in np.unique(generator.integers(0, 300, size=generator.integers(1, 12)))
        ]
        for number in range(40)
    }
    return prepared_rows(customers)


@pytest.fixture
def cases(rows: pa.Table) -> EvaluationCases:
    return find_cases(rows, "test", min_history=1)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the baselines whose cases were scored, as they are."""
    names: list[str] = []
    evaluate = counting.evaluate_baseline

    def noted(baseline: Any, *arguments: Any) -> Any:
        names.append(type(baseline).__name__)
        return evaluate(baseline, *arguments)

    monkeypatch.setattr(counting, "evaluate_baseline", noted)
    return names


def assert_same(found: Results, expected: Results) -> None:
    assert found.keys() == expected.keys()
    for name, by_task in expected.items():
        assert found[name].keys() == by_task.keys()
        for task, values in by_task.items():
            assert found[name][task].keys() == values.keys()
            for metric, of_cases in values.items():
                np.testing.assert_array_equal(found[name][task][metric], of_cases)


@pytest.mark.parametrize("asked", ["next visit", "unmet", "horizon", "horizon, unmet"])
def test_what_was_kept_is_what_is_computed(asked: str, rows: pa.Table, tmp_path: Path, fitted: list[str]) -> None:
    cases = find_cases(rows, "test", 1, horizon=horizon(60, "test") if "horizon" in asked else None)
    cases = unmet_only(rows, cases) if "unmet" in asked else cases
    expected = counting_baselines(rows, cases, SIZES, COUNTED, (1, 3))
    cache = BaselineCache(tmp_path / "baselines", "digest")
    assert_same(counting_baselines(rows, cases, SIZES, COUNTED, (1, 3), cache), expected)
    assert len(fitted) == 2 * len(COUNTED)
    again = BaselineCache(tmp_path / "baselines", "digest")
    assert_same(counting_baselines(rows, cases, SIZES, COUNTED, (1, 3), again), expected)
    assert len(fitted) == 2 * len(COUNTED)
    for path in (tmp_path / "baselines").iterdir():
        assert path.suffix == ".parquet" and not set(cases.customer_ids) & set(str(pq.read_table(path)).split('"'))


def test_values_of_anything_else_are_not_taken(
    rows: pa.Table, cases: EvaluationCases, tmp_path: Path, fitted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = BaselineCache(tmp_path, "digest")

    def run(data: pa.Table = rows, of: EvaluationCases = cases, ks: tuple[int, ...] = (3,), **sizes: int) -> None:
        counting_baselines(data, of, sizes or SIZES, ["visit_frequency"], ks, cache)

    run()
    assert len(fitted) == 1
    run(ks=(1,))
    run(of=unmet_only(rows, cases))
    run(of=find_cases(rows, "test", min_history=4))
    run(of=find_cases(rows, "validation", min_history=1))
    run(of=find_cases(rows, "test", 1, horizon=horizon(60, "test")))
    run(of=find_cases(rows, "test", 1, horizon=horizon(70, "test")))
    run(brand=LABELS + 1)
    part = rows.slice(0, 39)
    run(part, find_cases(part, "test", min_history=1))
    assert len(fitted) == 9
    monkeypatch.setattr(VisitFrequency, "VERSION", 2)
    run()
    monkeypatch.setitem(BASELINES, "visit_frequency", lambda: VisitFrequency(half_lives=[3]))
    run()
    assert len(fitted) == 11
    for _ in range(2):
        run()
        run(ks=(1, 3))
    assert len(fitted) == 12


def test_a_damaged_file_is_computed_again(
    rows: pa.Table, cases: EvaluationCases, tmp_path: Path, fitted: list[str]
) -> None:
    cache = BaselineCache(tmp_path, "digest")
    expected = counting_baselines(rows, cases, SIZES, ["most_popular"], (3,), cache)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    turned = bytearray(whole)
    turned[40] ^= 255  # within the values
    for damage in (whole[: len(whole) // 2], b"", b"PAR1", bytes(turned)):
        path.write_bytes(damage)
        before = len(fitted)
        assert_same(counting_baselines(rows, cases, SIZES, ["most_popular"], (3,), cache), expected)
        assert len(fitted) == before + 1
        assert path.read_bytes() == whole


def test_files_of_the_data_before_they_changed_go(rows: pa.Table, cases: EvaluationCases, tmp_path: Path) -> None:
    for data in ("a" * 64, "b" * 64):
        counting_baselines(rows, cases, SIZES, ["most_popular", "markov"], (3,), BaselineCache(tmp_path, data))
    assert [path.name[:17] for path in tmp_path.iterdir()] == ["b" * 16 + "-"] * 2


def test_without_a_place_to_write_values_are_computed(
    rows: pa.Table, cases: EvaluationCases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    expected = counting_baselines(rows, cases, SIZES, ["most_popular"], (3,))
    for folder in (tmp_path / "file", tmp_path / "absent" / "baselines"):
        cache = BaselineCache(folder, "digest")
        assert_same(counting_baselines(rows, cases, SIZES, ["most_popular"], (3,), cache), expected)
    assert not caplog.records  # below the level of a debug record nothing is said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_customers_of_one_or_two_events_work_everywhere() -> None:
    rows = prepared_rows({"a": [(1, [2]), (210, [3])], "b": [(2, [3]), (150, [2]), (220, [2])], "c": [(250, [3])]})
    for asked in (None, horizon(90, "test")):
        cases = find_cases(rows, "test", min_history=1, horizon=asked)
        for each in (cases, unmet_only(rows, cases)):
            results = counting_baselines(rows, each, {"brand": 4}, COUNTED, (1,))
            assert list(results) == COUNTED
            assert all(len(values) == 2 for by_task in results.values() for values in by_task["brand"].values())


def test_a_baseline_without_anything_to_learn_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("lightgbm")
    rows = prepared_rows({"a": [(1, [2]), (210, [3])], "b": [(2, [3]), (220, [2])]})
    cases = find_cases(rows, "test", min_history=1)
    results = counting_baselines(rows, cases, {"brand": 4}, ["most_popular", "lightgbm"], (1,))
    assert list(results) == ["most_popular"]
    assert "lightgbm is left out of task 'brand': No customer has two visits" in caplog.text


def test_a_name_that_is_no_baseline_is_refused(rows: pa.Table, cases: EvaluationCases) -> None:
    with pytest.raises(ValueError, match=r"No baselines \['popular'\]; choose from most_popular, recent_popular"):
        counting_baselines(rows, cases, SIZES, ["popular"])


def test_the_default_is_what_is_worth_its_time(cases: EvaluationCases, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = [*FIRST_BASELINES, *STRONG_BASELINES]
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: object())
        assert default_baselines(cases, {"brand": 100}) == ([*counted, "lightgbm"], [])
        names, said = default_baselines(replace(cases, met={}), {"brand": 100})
        assert names == [name for name in [*counted, "lightgbm"] if name != "visit_frequency"]
        assert "counts what the customer met" in said[0] and len(said) == 1
        names, said = default_baselines(cases, {"brand": 100, "item": 10**9})
        assert names == counted and "with 1,000,000,000 labels" in said[0] and "--baselines most_popular" in said[0]
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        names, said = default_baselines(cases, {"brand": 100})
        assert names == counted and "it is not installed: `pip install modeling-mcm[gbdt]`" in said[0]


def test_the_modules_are_imported_without_the_extras() -> None:
    """SciPy and LightGBM are looked for where something is computed, and named where they are missing."""
    code = """
import sys
sys.modules |= dict.fromkeys(["scipy", "scipy.sparse", "lightgbm"])  # None: not to be found
from modeling_mcm.evaluation import comparison, counting, ranking, tables
from modeling_mcm.evaluation.baselines import scipy_sparse
try:
    scipy_sparse()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'modeling-mcm[evaluation]'" in done.stdout, done.stderr[-2000:]


def test_identity_says_what_scores_depend_on() -> None:
    identities: Mapping[str, dict[str, Any]] = {name: BASELINES[name]().identity() for name in COUNTED}
    assert len({str(identity) for identity in identities.values()}) == len(COUNTED)
    assert identities["visit_frequency"]["half_lives"] and identities["transitions"]["decay"] == 0.6
