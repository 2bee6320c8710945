# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Targets besides the next visit: the labels of some days, and only labels that were not seen before."""

import numpy as np
import pyarrow as pa
import pytest
from visits import CUTOFFS, LABELS, TEST, UNSEEN, horizon, prepared_rows, random_customers

from modeling_mcm.evaluation import tie_ranks
from modeling_mcm.evaluation.baselines import Transitions
from modeling_mcm.evaluation.cases import find_cases, unseen_only
from modeling_mcm.evaluation.comparison import evaluate_baseline


@pytest.fixture
def customers():
    return random_customers(5, 40, most=12)


def seen_before(visits, cutoff):
    return {label for day, labels in visits for label in labels if day < CUTOFFS[cutoff] and label >= 2}


def within(visits, cutoff, days):
    """The targets of a horizon, event by event."""
    start = CUTOFFS[cutoff]
    stop = min(start + days, TEST) if cutoff == "validation" else start + days
    targets = {label for day, labels in visits for label in labels if start <= day < stop and label >= 1}
    return {UNSEEN if label == 1 else label for label in targets}


def plain_ndcg(greater):
    """NDCG@3 of targets whose scores are no ties."""
    gains = sum(1 / np.log2(rank + 2) for rank in greater.tolist() if rank < 3)
    return gains / sum(1 / np.log2(rank + 2) for rank in range(min(len(greater), 3)))


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("days", [5, 30, 150])
@pytest.mark.parametrize("cutoff", ["validation", "test"])
def test_horizon_targets_equal_a_plain_count(cutoff, days, batch_size, customers):
    rows = prepared_rows(customers)
    cases = find_cases(rows, cutoff, min_history=1, batch_size=batch_size, horizon=horizon(days, cutoff))
    expected = {
        name: sorted(within(visits, cutoff, days))
        for name, visits in customers.items()
        if within(visits, cutoff, days) and any(day < CUTOFFS[cutoff] and max(labels) >= 1 for day, labels in visits)
    }
    found = {name: cases.targets["brand"][place].tolist() for place, name in enumerate(cases.customer_ids)}
    assert found == expected and expected
    assert cases.horizon_days == days


def test_a_horizon_that_is_not_positive_is_refused():
    for days in (0, -3, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected a positive number of days"):
            horizon(days, "test")


def test_a_horizon_longer_than_the_data_gives_a_warning(caplog):
    rows = prepared_rows({"a": [(1, [2]), (150, [3]), (290, [4])], "b": [(1, [2]), (205, [3])]})
    assert len(find_cases(rows, "test", min_history=1, horizon=horizon(91, "test"))) == 2
    assert not caplog.records  # the last event is on the last day of the horizon
    cases = find_cases(rows, "test", min_history=1, horizon=horizon(120, "test"))
    assert [labels.tolist() for labels in cases.targets["brand"]] == [[4], [3]]
    assert "120 days from the test cutoff is longer than the data" in caplog.text and "90.0 days after" in caplog.text
    caplog.clear()
    find_cases(rows, "validation", min_history=1, horizon=horizon(120, "validation"))
    assert "50.0 days after the cutoff, because validation reads nothing after the test cutoff" in caplog.text
    with pytest.raises(ValueError, match=r"(?s)No evaluation case.*one within 2 days from it.*take a longer horizon"):
        find_cases(rows, "test", min_history=1, horizon=horizon(2, "test"))


@pytest.mark.parametrize("days", [None, 60])
@pytest.mark.parametrize("cutoff", ["validation", "test"])
def test_labels_met_before_are_neither_targets_nor_ranked(cutoff, days, customers):
    rows = prepared_rows(customers)
    asked = horizon(days, cutoff) if days else None
    every = find_cases(rows, cutoff, min_history=1, horizon=asked)
    cases = unseen_only(rows, every)
    dropped = 0
    for place, name in enumerate(cases.customer_ids):
        seen = seen_before(customers[name], cutoff)
        assert set(cases.seen["brand"][place].tolist()) == seen
        left = [label for label in every.targets["brand"][place].tolist() if label not in seen]
        assert cases.targets["brand"][place].tolist() == left
        dropped += len(every.targets["brand"][place]) - len(left)
    assert dropped > 10


def test_filtered_metrics_equal_those_of_a_smaller_vocabulary(customers):
    rows = prepared_rows(customers)
    cases = unseen_only(rows, find_cases(rows, "test", min_history=1))
    baseline = Transitions().fit(rows, "brand", LABELS)
    scores = baseline.scores(rows, "test")[cases.rows]
    values = evaluate_baseline(baseline, rows, cases, ks=(3,))
    measured = 0
    for place, name in enumerate(cases.customer_ids):
        left = [label for label in range(2, LABELS) if label not in seen_before(customers[name], "test")]
        targets = np.unique(cases.targets["brand"][place])
        assert np.isnan(values["next_visit_ndcg@3"][place]) == (not len(targets))
        if len(targets) and (targets > 1).all():
            small = np.concatenate([[0, 0], scores[place, left]])
            greater, ties = tie_ranks(small[None], [[2 + left.index(label) for label in targets]])
            if (ties == 1).all():
                measured += 1
                assert values["next_visit_ndcg@3"][place] == pytest.approx(plain_ndcg(greater[0]))
    assert measured > 5


def test_a_task_without_targets_is_left_out(caplog):
    rows = prepared_rows({"a": [(1, [2, 3]), (210, [2])], "b": [(1, [2]), (220, [2])]})
    cases = find_cases(rows, "test", min_history=1)
    with pytest.raises(ValueError, match="None of 2 cases has a target that its customer had not seen"):
        unseen_only(rows, cases)
    other = rows.append_column("task_colour", pa.array([[2, 2, 3], [2, 2]], pa.list_(pa.int32())))
    other = other.append_column("unseen_colour", rows["unseen_brand"])
    both = unseen_only(other, find_cases(other, "test", min_history=1))
    assert list(both.targets) == ["colour"] and "Task 'brand' is left out" in caplog.text
    assert len(both) == 2 and both.targets["colour"][1].tolist() == []


def test_visits_of_the_history_are_counted(customers):
    cases = find_cases(prepared_rows(customers), "test", min_history=1)
    expected = [sum(day < TEST and max(labels) >= 1 for day, labels in customers[name]) for name in cases.customer_ids]
    assert cases.history_visits.tolist() == expected and min(expected) <= 2
