# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""LightGBM learns what counting can't see, from the time before a case alone, and is the same each time."""

import sys

import numpy as np
import pytest
from visits import LABELS, prepared_rows, random_customers

from modeling_mcm.evaluation.baselines import VisitFrequency
from modeling_mcm.evaluation.cases import find_cases
from modeling_mcm.evaluation.comparison import evaluate_baseline
from modeling_mcm.evaluation.gbdt import LabelStatistics, LightGBMRanker, VisitSets, find_candidates
from modeling_mcm.evaluation.histories import task_histories

pytest.importorskip("lightgbm")


def small(**changes):
    ranker = LightGBMRanker()
    vars(ranker).update({"trees": 20, "leaves": 7, "min_rows": 5} | changes)
    return ranker


@pytest.fixture
def turns():
    """Each customer takes their own three labels in turn, one a visit: what is due is what was longest ago."""
    generator = np.random.default_rng(0)
    customers = {}
    for number in range(150):
        mine = generator.choice(np.arange(2, LABELS), size=3, replace=False)
        days = range(int(generator.integers(5)), 240, 6)
        customers[f"customer {number}"] = [(day, [int(mine[place % 3])]) for place, day in enumerate(days)]
    return prepared_rows(customers)


@pytest.fixture
def customers():
    return random_customers(1, fewest=4)


def all_visits(rows, cutoff="validation"):
    return VisitSets.joined([VisitSets.of(history) for history in task_histories(rows, "brand", cutoff, batch_size=7)])


def test_lightgbm_learns_what_is_due(turns):
    cases = find_cases(turns, "test")
    first = {
        name: evaluate_baseline(baseline.fit(turns, "brand", LABELS), turns, cases, ks=(1,))[
            "next_visit_recall@1"
        ].mean()
        for name, baseline in {"counting": VisitFrequency(), "LightGBM": small()}.items()
    }
    assert first["LightGBM"] > 0.95 > 0.6 > first["counting"]


def test_later_events_change_no_feature(customers):
    day = 60
    later = {
        name: [(when, labels if when <= day else [2, 5]) for when, labels in visits]
        for name, visits in customers.items()
    }
    found = []
    for log in (customers, later):
        visits = all_visits(prepared_rows(log))
        statistics = LabelStatistics(visits, LABELS)
        end = np.array([  # of each customer the visit after the last one until the day
            np.searchsorted(visits.day[start:stop], day, side="right") + start
            for start, stop in zip(visits.first_visit[:-1], visits.first_visit[1:], strict=True)
        ])  # fmt: skip
        chosen = np.flatnonzero(end > visits.first_visit[:-1])
        assert len(chosen) > 20
        found.append(find_candidates(visits, chosen, end[chosen], statistics, popular=3))
    for name in ("case", "label", "features"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    assert np.isfinite(found[0].features).any(axis=0).all()  # every feature is measured somewhere


def test_features_equal_a_hand_count():
    rows = prepared_rows({"a": [(0, [2, 2, 3]), (10, [3]), (16, [4]), (40, [2])], "b": [(0, [5]), (50, [6])]})
    visits = all_visits(rows)
    found = find_candidates(visits, np.array([0]), np.array([3]), LabelStatistics(visits, 7), popular=2)
    table = {
        label: dict(zip(found.names, row, strict=True)) for label, row in zip(found.label, found.features, strict=True)
    }
    assert {*table} >= {2, 3, 4}
    assert [np.expm1(table[2][name]).round(5) for name in ("visits", "since_visits", "customer_moments")] == [1, 2, 3]
    np.testing.assert_allclose(table[3]["share_since_first"], 2 / 3)
    # Known of all at day 16: the visits of two weeks. Of these three, label 3 had two, one straight after the other.
    known = [table[3][f"label_{name}"] for name in ("share", "met_at_once", "visits_a_customer", "gap_days")]
    np.testing.assert_allclose(known, [2 / 3, 1 / 2, 2, 10], rtol=1e-6)


def test_other_labels_rank_below_candidates_by_popularity(customers):
    rows = prepared_rows(customers | {"a": [(40, [9]), (60, [9])], "new": []})
    ranker = small(popular=1).fit(rows, "brand", LABELS)
    scores = ranker.scores(rows, "test")
    first = int(LabelStatistics(all_visits(rows), LABELS).popular(np.array([60]), 1)[0, 0])
    others = [label for label in range(2, LABELS) if label not in (9, first)]
    assert scores[-2, [9, first]].min() > scores[-2, others].max() > 0
    by_popularity = np.argsort(-ranker.popularity[others], kind="stable")
    np.testing.assert_array_equal(np.argsort(-scores[-2, others], kind="stable"), by_popularity)
    everything = np.argsort(-ranker.popularity[2:], kind="stable")
    np.testing.assert_array_equal(np.argsort(-scores[-1, 2:], kind="stable"), everything)


def test_too_few_visits_and_a_missing_package_are_named(monkeypatch):
    rows = prepared_rows({"a": [(1, [2, 3]), (150, [3])], "b": [(4, [2])]})
    with pytest.raises(ValueError, match="No customer has two visits with a label of task 'brand'"):
        small().fit(rows, "brand", LABELS)
    monkeypatch.setitem(sys.modules, "lightgbm", None)  # not to be found
    with pytest.raises(ImportError, match=r"pip install 'modeling-mcm\[gbdt\]'"):
        small().fit(rows, "brand", LABELS)
