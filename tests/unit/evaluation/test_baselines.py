# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Each baseline counts what its name says, from the training period and the history alone."""

from functools import partial

import numpy as np
import pytest
from visits import LABELS, TEST, VALIDATION, prepared_rows, random_customers

from modeling_mcm.evaluation import customer_metrics, distinct_targets, tie_ranks
from modeling_mcm.evaluation.baselines import MostPopular, NearestCustomers, Transitions, VisitFrequency
from modeling_mcm.evaluation.cases import find_cases
from modeling_mcm.evaluation.comparison import evaluate_baseline
from modeling_mcm.evaluation.gbdt import LightGBMRanker


def make(kind, **values):
    """A baseline with other parameters."""
    baseline = kind()
    vars(baseline).update(values)
    return baseline


BASELINES = [MostPopular, VisitFrequency, Transitions, NearestCustomers]
ALL = [*BASELINES, pytest.param(partial(make, LightGBMRanker, trees=20, leaves=7, min_rows=5), id="LightGBMRanker")]


@pytest.fixture
def customers():
    return random_customers(0)


def dense(visits, until):
    """Counts of each known label in the visits before a day that have one."""
    counts = [np.bincount(labels, minlength=LABELS) for day, labels in visits if day < until]
    return [np.where(np.arange(LABELS) >= 2, count, 0) for count in counts if count[2:].any()]


@pytest.mark.parametrize("cutoff", ["validation", "test"])
@pytest.mark.parametrize("kind", ALL)
def test_events_after_the_cutoff_change_no_score(kind, cutoff, customers):
    until = {"validation": VALIDATION, "test": TEST}[cutoff]
    changed = {
        name: [(day, labels if day < until else [2, 2, 3]) for day, labels in visits] + [(400, [5])]
        for name, visits in customers.items()
    }
    baseline, other = (kind().fit(prepared_rows(rows), "brand", LABELS) for rows in (customers, changed))
    expected = baseline.scores(prepared_rows(customers), cutoff)
    np.testing.assert_array_equal(other.scores(prepared_rows(changed), cutoff), expected)


@pytest.mark.parametrize("kind", ALL)
def test_events_after_training_change_no_fit(kind, customers):
    before = {name: [visit for visit in visits if visit[0] < VALIDATION] for name, visits in customers.items()}
    rows = prepared_rows(customers)
    baseline, other = (kind().fit(prepared_rows(fitted), "brand", LABELS) for fitted in (customers, before))
    np.testing.assert_array_equal(other.scores(rows, "test"), baseline.scores(rows, "test"))


@pytest.mark.parametrize("kind", ALL)
def test_scores_do_not_depend_on_the_batch_size(kind, customers):
    rows = prepared_rows(customers)
    baseline = kind().fit(rows, "brand", LABELS)
    scores = baseline.scores(rows, "test")
    assert (scores.shape, scores.dtype) == ((len(customers), LABELS), np.float32)
    assert not scores[:, :2].any()
    np.testing.assert_array_equal(np.concatenate(list(baseline.score_batches(rows, "test", batch_size=7))), scores)


@pytest.mark.parametrize("kind", BASELINES[1:])
def test_popularity_breaks_ties_and_ranks_for_new_customers(kind):
    crowd = {f"c{number}": [(1, [2, 2, 3]), (9, [4, 3, 2])] for number in range(3)}
    rows = prepared_rows({**crowd, "one": [(1, [5])], "new": []})
    scores = kind().fit(rows, "brand", 6).scores(rows, "test")
    assert np.argsort(-scores[-1, 2:]).tolist() == [0, 1, 2, 3]  # 2 is the most popular, then 3, 4 and 5
    assert scores[-1, 2:].min() > 0


def reference_vector(visits, decay):
    """The vector of a customer by its definition, visit by visit."""
    total, weight = np.zeros(LABELS), 0.0
    for age, visit in enumerate(visits[::-1]):
        total, weight = total + decay**age * (visit > 0), weight + decay**age
    return total / weight if weight else total


def test_nearest_households_equal_a_plain_count(customers):
    rows = prepared_rows(customers)
    pool = {name: reference_vector(dense(visits, VALIDATION), 0.7) for name, visits in customers.items()}
    baseline = make(NearestCustomers, neighbours=4, alpha=0.6, decay=0.7)
    scores = baseline.fit(rows, "brand", LABELS).scores(rows, "test")
    for row, (name, visits) in enumerate(customers.items()):
        own = reference_vector(dense(visits, TEST), 0.7)
        length = np.linalg.norm(own) or 1.0
        others = [vector for other, vector in pool.items() if other != name and vector.any()]
        similar = np.array([own @ vector / length / np.linalg.norm(vector) for vector in others])
        nearest = [place for place in np.argsort(-similar)[:4] if similar[place] > 0]
        expected = 0.6 * own + 0.4 * sum((others[place] for place in nearest), np.zeros(LABELS)) / 4
        np.testing.assert_allclose(scores[row], expected, atol=1e-5)


@pytest.mark.parametrize("cutoff", ["validation", "test"])
def test_batched_evaluation_equals_that_of_all_scores(cutoff):
    days = [(150, 250), (5, 50, 150, 250), (5, 50, 150, 250)]  # every third is no case
    visits = {str(n): [(day, [2 + (n + day) % 9, 2 + n % 7, 3]) for day in days[n % 3]] for n in range(600)}
    rows = prepared_rows(visits)  # more than one batch
    cases = find_cases(rows, cutoff)
    assert 256 < len(cases) < 600
    baseline = VisitFrequency().fit(rows, "brand", LABELS)
    labels, counts = distinct_targets(cases.targets["brand"].offsets, cases.targets["brand"].labels)
    expected = customer_metrics(*tie_ranks(baseline.scores(rows, cutoff)[cases.rows], labels), counts, ks=(3,))
    for name, values in evaluate_baseline(baseline, rows, cases, ks=(3,)).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_visit_frequency_counts_a_label_once_a_visit():
    rows = prepared_rows({"a": [(10, [2, 2, 2]), (30, [3, 2]), (50, [4])]})
    scores = make(VisitFrequency, half_lives=[2]).fit(rows, "brand", 5).scores(rows, "test")
    np.testing.assert_allclose(scores[0, 2:], [0.5 + 2**-0.5, 2**-0.5, 1], atol=2e-3)


def test_half_life_is_chosen_on_the_last_training_visit():
    latest = {str(n): [(1, [2]), (2, [2]), (3, [3 + n % 3]), (4, [3 + n % 3]), (150, [2])] for n in range(9)}
    most = {str(n): [(1, [3 + n % 3]), (2, [3 + n % 3]), (3, [2]), (4, [3 + n % 3]), (150, [2])] for n in range(9)}
    baseline = make(VisitFrequency, half_lives=[50, 0.1, 70])
    chosen = [baseline.fit(prepared_rows(log), "brand", 6).half_life for log in (latest, most)]
    assert chosen == [0.1, 50]


def slow_transitions(customers, until):
    """The scores by their definition, one pair after the other."""
    weights, moments = [1, 0.5, 0.33, 0.25, 0.2, 0.17], {}
    together, count = np.zeros((LABELS, LABELS)), np.zeros(LABELS)
    for name, visits in customers.items():
        sets = [(day, sorted({label for label in labels if label >= 2})) for day, labels in visits]
        moments[name] = [(day, labels) for day, labels in sets if labels]
        training = [labels for day, labels in moments[name] if day < VALIDATION]
        for place, labels in enumerate(training):
            for label in labels:
                count[label] += 1
                for lag, weight in enumerate(weights, start=1):
                    for later in training[place + lag] if place + lag < len(training) else []:
                        together[label, later] += weight
    scores = np.zeros((len(customers), LABELS))
    for row, name in enumerate(customers):
        history = [labels for day, labels in moments[name] if day < until][::-1]
        for ago, labels in enumerate(history[:8]):
            for label in labels:
                scores[row] += 0.6**ago * together[label] / (count[label] + 1) ** 0.3
    return scores


@pytest.mark.parametrize("at_once", [2**24, 20])
def test_transitions_equal_a_plain_count(at_once, customers, monkeypatch):
    monkeypatch.setattr("modeling_mcm.evaluation.baselines.PAIRS_AT_ONCE", at_once)
    rows = prepared_rows(customers)
    scores = Transitions().fit(rows, "brand", LABELS).scores(rows, "test")
    np.testing.assert_allclose(scores, slow_transitions(customers, TEST), atol=1e-5)


def test_a_moment_is_one_time_of_a_visit():
    rows = prepared_rows({"a": [(1, [2, 3]), (2, [4])], "b": [(1, [5]), (1, [6])]})
    one_visit = rows.set_column(rows.column_names.index("visits"), "visits", [[[0, 0, 0], [0, 1]]])
    scores = Transitions().fit(one_visit, "brand", 7)._together.toarray()
    assert scores[2, 4] == scores[3, 4] == scores[5, 6] == 1 and scores.sum() == 3


def test_bad_input_is_refused():
    rows = prepared_rows({"a": [(1, [2, 7]), (150, [3])]})
    with pytest.raises(ValueError, match="label id 7; expected ids below number_of_labels = 6"):
        MostPopular().fit(rows, "brand", 6)
    with pytest.raises(ValueError, match="no labelled event before the validation cutoff"):
        MostPopular().fit(prepared_rows({"a": [(150, [3])]}), "brand", 6)


def test_most_popular_counts_training_events(customers):
    expected = sum(sum(dense(visits, VALIDATION), np.zeros(LABELS)) for visits in customers.values())
    np.testing.assert_array_equal(MostPopular().fit(prepared_rows(customers), "brand", LABELS).popularity, expected)
