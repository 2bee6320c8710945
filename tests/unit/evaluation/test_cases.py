# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Cases and targets follow from the cutoff, and from nothing on the wrong side of it: the next visit, the labels of
some days, and only labels that were not seen before."""

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_log import prepare_items
from visits import CUTOFFS, LABELS, TEST, UNSEEN, event_rows, horizon, prepared_rows, random_customers

from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import IGNORED
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.evaluation import customer_metrics, tie_ranks
from modeling_mcm.evaluation.baselines import Transitions
from modeling_mcm.evaluation.cases import cases_at, comparison_cases, find_cases, read_history, unseen_only
from modeling_mcm.evaluation.comparison import counting_baselines
from modeling_mcm.evaluation.metrics import TargetRanks


def two_tasks(customers):
    return event_rows(customers, "brand", "token_type")


HISTORY = [(1, 0, 2, 2), (1, 0, 3, 2), (2, 1, 2, 2)]
CUSTOMERS = {
    "plain": [*HISTORY, (120, 2, 4, 2), (120, 2, 5, 2), (120, 2, 4, 3), (121, 3, 6, 2), (210, 4, 7, 2)],
    "too short": [*HISTORY[:2], (120, 1, 4, 2), (210, 2, 4, 2)],
    "never again": HISTORY,
    "nobody": [],
    "not a target": [*HISTORY, (110, 2, 0, 0), (130, 3, 0, 0), (130, 3, 1, 2), (250, 4, 0, 0)],
    "only a token type": [*HISTORY, (110, 2, 0, 2), (130, 3, 8, 2)],
    "straddles": [*HISTORY, (99, 2, 4, 2), (100, 2, 5, 2), (199, 3, 6, 2), (200, 3, 7, 2), (201, 3, 8, 2)],
    "returns late": [*HISTORY, (300, 2, 9, 2)],
}


ROWS = two_tasks(CUSTOMERS)
ORDER = np.random.default_rng(0).permutation(len(ROWS))
SHUFFLED = ROWS.select(ORDER).select(np.argsort(ORDER))  # the same rows through an indices mapping


EXPECTED = {
    "validation": {"plain": [4, 5, 4], "not a target": [UNSEEN], "only a token type": [8], "straddles": [5]},
    "test": {"plain": [7], "too short": [4], "straddles": [7, 8], "returns late": [9]},
}


@pytest.mark.parametrize("rows", [ROWS, SHUFFLED], ids=["rows", "shuffled rows"])
@pytest.mark.parametrize("cutoff, history_end", [("validation", [3, 3, 3, 4]), ("test", [7, 3, 6, 3])])
def test_targets_are_the_first_visit_after_the_cutoff(rows, cutoff, history_end):
    cases = find_cases(rows, cutoff, min_history=3)
    targets = {name: cases.targets["brand"].of(case).tolist() for case, name in enumerate(cases.customer_ids)}
    assert targets == EXPECTED[cutoff] and cases.history_end.tolist() == history_end
    assert cases.rows.tolist() == [list(CUSTOMERS).index(name) for name in cases.customer_ids]
    if cutoff == "validation":
        assert cases.targets["token_type"].of(0).tolist() == [2, 2, 3]


def test_min_history_counts_target_events_only():
    rows = two_tasks({"a": [(1, 0, 2, 2), (2, 1, 0, 0), (3, 2, 0, 2), (4, 3, 3, 2), (150, 4, 2, 2)]})
    assert len(find_cases(rows, "validation", min_history=2)) == 1
    with pytest.raises(ValueError, match="No evaluation case at the validation cutoff among 1 customers"):
        find_cases(rows, "validation", min_history=3)


def test_a_token_type_is_a_target_if_it_is_the_only_task():
    rows = two_tasks({"a": [*HISTORY, (150, 4, 0, 3)]}).remove_columns("task_brand")
    assert find_cases(rows, "validation", min_history=3).targets["token_type"].of(0).tolist() == [3]


def test_a_case_may_have_no_target_in_one_task():
    rows = two_tasks({"a": [*HISTORY, (150, 4, 2, 2)], "b": [*HISTORY, (150, 4, 3, 0)]})
    cases = find_cases(rows, "validation", min_history=3)
    assert [cases.targets["token_type"].of(case).tolist() for case in range(2)] == [[2], []]
    assert [cases.targets["brand"].of(case).tolist() for case in range(2)] == [[2], [3]]


def test_missing_columns_and_unknown_cutoffs_are_named():
    with pytest.raises(ValueError, match="`cutoff` is 'training'; choose validation or test"):
        find_cases(ROWS, "training")
    with pytest.raises(ValueError, match="no column 'task_type'; they have customer_id"):
        read_history(ROWS, "type", "test")


def test_what_nobody_has_twice_is_not_ranked_where_methods_are_compared(tmp_path):
    generator = np.random.default_rng(0)
    films = [[user, film, film % 3] for user in range(60) for film in generator.permutation(12)[:5]]
    schema = {"order": "rows", "features": [{"name": "item"}, {"name": "genre"}], "tasks": ["item", "genre"]}
    data = prepare_items(tmp_path, films, ["user", "item", "genre"], cutoffs="leave_one_out", **schema)
    cases = comparison_cases(data, "validation")
    assert list(cases.seen) == ["item"] and set(cases.targets) == {"item", "genre"}
    assert np.diff(cases.seen["item"].indptr).tolist() == [3] * 60


@pytest.mark.parametrize("cutoff", ["validation", "test"])
def test_the_collator_has_the_targets_of_the_cases(event_log, prepare_log, tiny_config, cutoff):
    days = pd.to_timedelta(event_log.groupby("basket").cumcount().mul(9).fillna(0), "D")
    data = PreparedData(prepare_log(event_log.assign(when=event_log["when"] + days)))
    cases = find_cases(data.rows, cutoff, 1, "type")
    rows = PreparedRows(data.rows, cases.rows).__getitems__(range(len(cases.rows)))
    assert len(rows) > 10
    config = tiny_config()
    batch = MCMCollator(data.extractor, config, "evaluate", cutoff)(rows)
    for case, labels in enumerate(batch["labels"][..., config.tasks.index("items")]):
        expected = cases.targets["items"].of(case)
        assert sorted(labels[(labels != 0) & (labels != IGNORED)].tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("days", [None, 30])
def test_each_value_that_training_has_never_seen_is_a_target(tmp_path, days):
    new = {"a": ["x", "y", "y", "milk", "z"], "b": ["x", "bread", "bread"], "c": ["y"]}
    visits = [
        (user, day, [item]) for user in new for day in ("2024-01-01", "2024-02-02") for item in ("milk", "bread")
    ]
    visits += [(user, "2024-03-01", [item]) for user, items in new.items() for item in items]
    schema = {"time": "day", "features": [{"name": "item", "max_items": 2}]}
    schema |= {"cutoffs": {"validation": "2024-02-01", "test": "2024-03-01"}}
    data = prepare_items(tmp_path, visits, ["user", "day", "item"], **schema)
    cases = cases_at(data, "test", horizon_days=days)
    ranks = TargetRanks(cases, "item")
    ranks.add(np.arange(3), torch.zeros(3, 4))
    recall = ranks.metrics((10,))[f"{'horizon' if days else 'next_visit'}_recall@10"]
    expected = [len({*items} & {"milk", "bread"}) / len({*items}) for items in new.values()]
    assert recall.tolist() == expected == [1 / 4, 1 / 2, 0]


RANDOM = random_customers(5, 40, most=12)
RANDOM_ROWS = prepared_rows(RANDOM)


def labels_between(name, start, end, least=2):
    """The distinct labels of a customer in some days."""
    return {label for day, labels in RANDOM[name] for label in labels if start <= day < end and label >= least}


@pytest.mark.parametrize("days", [5, 30, 150])
@pytest.mark.parametrize("cutoff", ["validation", "test"])
def test_horizon_targets_equal_a_plain_count(cutoff, days):
    cases = find_cases(RANDOM_ROWS, cutoff, min_history=1, horizon=horizon(days, cutoff))
    start, expected = CUTOFFS[cutoff], {}
    stop = min(start + days, TEST) if cutoff == "validation" else start + days
    for name in RANDOM:
        targets = labels_between(name, start, stop, least=1)
        if targets and labels_between(name, 0, start, least=1):
            expected[name] = sorted({UNSEEN if label == 1 else label for label in targets})
    found = {name: cases.targets["brand"].of(place).tolist() for place, name in enumerate(cases.customer_ids)}
    assert found == expected and expected
    visits = [sum(day < start and max(labels) >= 1 for day, labels in RANDOM[name]) for name in expected]
    assert cases.history_visits.tolist() == visits and cases.horizon_days == days


def test_a_horizon_longer_than_the_data_gives_a_warning(caplog):
    rows = prepared_rows({"a": [(1, [2]), (150, [3]), (290, [4])], "b": [(1, [2]), (205, [3])]})
    assert len(find_cases(rows, "test", min_history=1, horizon=horizon(91, "test"))) == 2
    assert not caplog.records  # the last event is on the last day of the horizon
    cases = find_cases(rows, "test", min_history=1, horizon=horizon(120, "test"))
    assert [cases.targets["brand"].of(case).tolist() for case in range(2)] == [[4], [3]]
    assert "120 days from the test cutoff is longer than the data" in caplog.text and "90.0 days after" in caplog.text
    find_cases(rows, "validation", min_history=1, horizon=horizon(120, "validation"))
    assert "50.0 days after the cutoff, because validation reads nothing after the test cutoff" in caplog.text
    for days in (2, 0, -3, float("nan")):
        with pytest.raises(ValueError, match=r"(?s)No evaluation case.*one within .* days.*take a longer horizon"):
            find_cases(rows, "test", min_history=1, horizon=horizon(days, "test"))


@pytest.mark.parametrize("days", [None, 60])
@pytest.mark.parametrize("cutoff", ["validation", "test"])
def test_labels_met_before_are_neither_targets_nor_ranked(cutoff, days):
    every = find_cases(RANDOM_ROWS, cutoff, min_history=1, horizon=horizon(days, cutoff) if days else None)
    cases = unseen_only(RANDOM_ROWS, every)
    for place, name in enumerate(cases.customer_ids):
        seen = labels_between(name, 0, CUTOFFS[cutoff])
        assert {*cases.seen["brand"][[place]].indices} == seen
        left = [label for label in every.targets["brand"].of(place).tolist() if label not in seen]
        assert cases.targets["brand"].of(place).tolist() == left
    assert len(every.targets["brand"].labels) > len(cases.targets["brand"].labels) + 10


def test_filtered_metrics_equal_those_of_a_smaller_vocabulary():
    cases = unseen_only(RANDOM_ROWS, find_cases(RANDOM_ROWS, "test", min_history=1))
    ((_, scores),) = Transitions().fit(RANDOM_ROWS, "brand", LABELS).score_batches(RANDOM_ROWS, "test")
    ranks = counting_baselines(RANDOM_ROWS, cases, {"brand": LABELS}, ["transitions"])["transitions"]["brand"]
    values = ranks.metrics((3,))["next_visit_ndcg@3"]
    for place, name in enumerate(cases.customer_ids):
        seen = labels_between(name, 0, TEST)
        left = [0, 1, *(label for label in range(2, LABELS) if label not in seen)]
        targets = [left.index(max(label, 1)) for label in np.unique(cases.targets["brand"].of(place))]
        if targets:
            small = customer_metrics(
                *tie_ranks(scores[cases.rows[[place]]][:, left], [targets]), [[1] * len(targets)], (3,)
            )
            assert values[place] == pytest.approx(small["next_visit_ndcg@3"][0])
        assert np.isnan(values[place]) == (not targets)
    assert np.isfinite(values).sum() > 5


def test_a_task_without_targets_is_left_out(caplog):
    rows = prepared_rows({"a": [(1, [2, 3]), (210, [2])], "b": [(1, [2]), (220, [2])]})
    cases = find_cases(rows, "test", min_history=1)
    with pytest.raises(ValueError, match="None of 2 cases has a target that its customer had not seen"):
        unseen_only(rows, cases)
    other = rows.add_column("task_colour", [[2, 2, 3], [2, 2]]).add_column("unseen_colour", rows["unseen_brand"][:])
    both = unseen_only(other, find_cases(other, "test", min_history=1))
    assert list(both.targets) == ["colour"] and "Task 'brand' is left out" in caplog.text
    assert len(both) == 2 and both.targets["colour"].of(1).tolist() == []
