# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables hold what was measured, in the groups of history that it was measured in."""

import numpy as np

from modeling_mcm.evaluation.cases import EvaluationCases
from modeling_mcm.evaluation.tables import (
    find_target,
    history_groups,
    metric_table,
)

VISITS = np.array([1, 2, 2, 3, 5, 6, 20, 21, 400, 4])


def cases(visits):
    names = [str(number) for number in range(len(visits))]
    return EvaluationCases("test", np.arange(len(visits)), names, visits, {}, visits)


def test_each_case_is_in_the_group_of_its_visits():
    groups = {name: np.flatnonzero(chosen).tolist() for name, chosen in history_groups(cases(VISITS)).items()}
    assert groups == {"1-2": [0, 1, 2], "3-5": [3, 4, 9], "6-20": [5, 6], "more": [7, 8]}
    assert list(history_groups(cases(np.array([1, 30])))) == ["1-2", "more"]


def test_a_table_shows_what_was_measured():
    visit = {"next_visit_ndcg@3": np.array([0.5, 1.0]), "next_event_ndcg@3": np.array([0.25, 0.25])}
    table = metric_table({"one": {"a": visit, "b": visit}, "other": {"b": visit}}, ["a", "b"], "ndcg@3")
    assert [row[0] for row in table] == ["method", "one", "other"] and table[2][1] == "-"
    assert table[1][1].endswith("(0.250)") and table[1][1].startswith("0.750 ±")
    days = {"one": {"a": {"horizon_ndcg@3": np.array([0.5, np.nan])}}}
    assert find_target(days) == "horizon" and metric_table(days, ["a"], "ndcg@3")[1][1] == "0.500 ±0.000"
