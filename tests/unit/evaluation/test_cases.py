# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Cases and targets follow from the cutoff, and from nothing on the wrong side of it."""

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from visits import UNSEEN, event_rows

from modeling_mcm import MCMConfig
from modeling_mcm.data import EventSchema, PreparedData
from modeling_mcm.data.cases import IGNORED
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.evaluation.cases import cases_at, comparison_cases, find_cases
from modeling_mcm.evaluation.histories import task_histories
from modeling_mcm.evaluation.ranking import TargetRanks
from modeling_mcm.preparation import prepare


def prepared_rows(customers):
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


@pytest.fixture(params=["table", "dataset", "shuffled dataset"])
def rows(request):
    table = prepared_rows(CUSTOMERS)
    if request.param == "table":
        return table
    dataset = datasets.Dataset(table)
    if request.param == "dataset":
        return dataset
    order = np.random.default_rng(0).permutation(len(dataset))
    return dataset.select(order).select(np.argsort(order))  # the same rows through an indices mapping


EXPECTED = {
    "validation": {"plain": [4, 5, 4], "not a target": [UNSEEN], "only a token type": [8], "straddles": [5]},
    "test": {"plain": [7], "too short": [4], "straddles": [7, 8], "returns late": [9]},
}


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
@pytest.mark.parametrize("cutoff, history_end", [("validation", [3, 3, 3, 4]), ("test", [7, 3, 6, 3])])
def test_targets_are_the_first_visit_after_the_cutoff(rows, cutoff, history_end, batch_size):
    cases = find_cases(rows, cutoff, min_history=3, batch_size=batch_size)
    targets = {name: labels.tolist() for name, labels in zip(cases.customer_ids, cases.targets["brand"], strict=True)}
    assert targets == EXPECTED[cutoff] and cases.history_end.tolist() == history_end
    assert cases.rows.tolist() == [list(CUSTOMERS).index(name) for name in cases.customer_ids]
    if cutoff == "validation":
        assert cases.targets["token_type"][0].tolist() == [2, 2, 3]


def test_min_history_counts_target_events_only():
    rows = prepared_rows({"a": [(1, 0, 2, 2), (2, 1, 0, 0), (3, 2, 0, 2), (4, 3, 3, 2), (150, 4, 2, 2)]})
    assert len(find_cases(rows, "validation", min_history=2)) == 1
    with pytest.raises(ValueError, match="No evaluation case at the validation cutoff among 1 customers"):
        find_cases(rows, "validation", min_history=3)


def test_a_token_type_is_a_target_if_it_is_the_only_task():
    rows = prepared_rows({"a": [*HISTORY, (150, 4, 0, 3)]}).drop_columns("task_brand")
    assert find_cases(rows, "validation", min_history=3).targets["token_type"][0].tolist() == [3]


def test_a_case_may_have_no_target_in_one_task():
    rows = prepared_rows({"a": [*HISTORY, (150, 4, 2, 2)], "b": [*HISTORY, (150, 4, 3, 0)]})
    cases = find_cases(rows, "validation", min_history=3)
    assert [labels.tolist() for labels in cases.targets["token_type"]] == [[2], []]
    assert [labels.tolist() for labels in cases.targets["brand"]] == [[2], [3]]


def test_histories_end_at_the_cutoff(rows):
    (history,) = task_histories(rows, "brand", "validation")
    find_customer = history.customer == list(CUSTOMERS).index("straddles")
    assert history.label[find_customer].tolist() == [2, 3, 2, 4]
    assert history.visits_ago[find_customer].tolist() == [2, 2, 1, 0]
    assert (history.time[find_customer] // 86400).tolist() == [1, 1, 2, 99]


def test_missing_columns_and_unknown_cutoffs_are_named():
    rows = prepared_rows(CUSTOMERS)
    with pytest.raises(ValueError, match="`cutoff` is 'training'; choose validation or test"):
        find_cases(rows, "training")
    with pytest.raises(ValueError, match="no column 'task_type'; they have customer_id"):
        next(task_histories(rows, "type", "test"))
    with pytest.raises(ValueError, match="no task column"):
        find_cases(rows.select(["customer_id", "visits"]), "test")


def test_what_nobody_has_twice_is_not_ranked_where_methods_are_compared(tmp_path):
    generator = np.random.default_rng(0)
    films = [[user, film, film % 3] for user in range(60) for film in generator.permutation(12)[:5]]
    schema = {"customer": "user", "order": "rows", "features": [{"name": "film"}, {"name": "genre"}]}
    schema |= {"tasks": ["film", "genre"], "cutoffs": "leave_one_out", "min_history": 1}
    prepare(pd.DataFrame(films, columns=["user", "film", "genre"]), EventSchema.from_dict(schema), tmp_path / "films")
    cases = comparison_cases(PreparedData(tmp_path / "films"), "validation")
    assert list(cases.seen) == ["film"] and set(cases.targets) == {"film", "genre"}
    assert np.diff(cases.seen["film"].offsets).tolist() == [3] * 60


@pytest.mark.parametrize("cutoff", ["validation", "test"])
def test_the_collator_has_the_targets_of_the_cases(event_log, prepare_log, tiny_config, cutoff):
    days = pd.to_timedelta(event_log.groupby("basket").cumcount().mul(9).fillna(0), "D")
    data = PreparedData(prepare_log(event_log.assign(when=event_log["when"] + days)))
    cases = find_cases(data.rows, cutoff, 1, "type")
    rows = PreparedRows(data.rows, cases.rows).__getitems__(range(len(cases.rows)))
    assert len(rows) > 10
    config = tiny_config()
    batch = MCMCollator(data.extractor, config, "evaluate", cutoff)(rows)
    place = config.tasks.index("items")
    for case, labels in enumerate(batch["labels"][..., place]):
        expected = cases.targets["items"]
        start, end = expected.offsets[case : case + 2]
        assert sorted(labels[(labels != 0) & (labels != IGNORED)].tolist()) == sorted(
            expected.labels[start:end].tolist()
        )


@pytest.mark.parametrize("days", [None, 30])
def test_each_value_that_training_has_never_seen_is_a_target(tmp_path, days):
    new = {"a": ["x", "y", "y", "milk", "z"], "b": ["x", "bread", "bread"], "c": ["y"]}
    visits = [
        (user, day, [item]) for user in new for day in ("2024-01-01", "2024-02-02") for item in ("milk", "bread")
    ]
    visits += [(user, "2024-03-01", [item]) for user, items in new.items() for item in items]
    schema = {"customer": "user", "time": "day", "features": [{"name": "item", "max_items": 2}], "tasks": ["item"]}
    schema |= {"cutoffs": {"validation": "2024-02-01", "test": "2024-03-01"}, "min_history": 1}
    log = pd.DataFrame(visits, columns=["user", "day", "item"])
    prepare(log, EventSchema.from_dict(schema), tmp_path / "log")
    data = PreparedData(tmp_path / "log")
    cases = cases_at(data, "test", horizon_days=days)
    scores = torch.zeros(3, 4)
    ranks = TargetRanks(cases, "item")
    ranks.add(np.arange(3), scores)
    recall = ranks.metrics((10,))[f"{'horizon' if days else 'next_visit'}_recall@10"]
    expected = [len({*items} & {"milk", "bread"}) / len({*items}) for items in new.values()]
    assert recall.tolist() == expected == [1 / 4, 1 / 2, 0]

    extractor = data.extractor
    config = MCMConfig(features=extractor.feature_names, vocabulary_sizes=extractor.vocabulary_sizes, tasks=["item"])
    rows = PreparedRows(data.rows, cases.rows).__getitems__([0, 1, 2])
    labels = MCMCollator(extractor, config, "evaluate", "test")(rows)["labels"][..., 0]
    assert [len({*row} - {IGNORED}) for row in labels.tolist()] == [len({*items}) for items in new.values()]
