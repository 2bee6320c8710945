# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Each baseline counts what its name says, from the training period and the history alone. LightGBM learns what
counting can't see, from the time before a case alone."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from visits import LABELS, TEST, VALIDATION, prepared_rows, random_customers

from modeling_mcm.evaluation.baselines import (
    LabelStatistics,
    LightGBMRanker,
    MostPopular,
    NearestCustomers,
    Transitions,
    VisitFrequency,
    find_candidates,
)
from modeling_mcm.evaluation.cases import VisitSets, find_cases, read_history
from modeling_mcm.evaluation.metrics import TargetRanks


def make(kind, **values):
    """A baseline with other parameters."""
    baseline = kind()
    vars(baseline).update(values)
    return baseline


BASELINES = [MostPopular, VisitFrequency, Transitions, NearestCustomers]
SMALL = partial(make, LightGBMRanker, trees=20, leaves=7, min_rows=5)
ALL = [*BASELINES, pytest.param(SMALL, id="LightGBMRanker")]


CUSTOMERS = random_customers(0)
ROWS = prepared_rows(CUSTOMERS)


def score(baseline, rows=ROWS, cutoff="test", labels=LABELS):
    """Scores of a baseline that is fitted to the rows."""
    batches = baseline.fit(rows, "brand", labels).score_batches(rows, cutoff)
    return np.concatenate([scores for _, scores in batches])


def dense(visits, until):
    """Counts of each known label in the visits before a day that have one."""
    counts = [np.bincount(labels, minlength=LABELS) for day, labels in visits if day < until]
    return [np.where(np.arange(LABELS) >= 2, count, 0) for count in counts if count[2:].any()]


@pytest.mark.parametrize("cutoff, until", [("validation", VALIDATION), ("test", TEST)])
@pytest.mark.parametrize("kind", ALL)
def test_events_after_the_cutoff_change_no_score(kind, cutoff, until):
    changed = {
        name: [(day, labels if day < until else [2, 2, 3]) for day, labels in visits] + [(400, [5])]
        for name, visits in CUSTOMERS.items()
    }
    np.testing.assert_array_equal(*(score(kind(), rows, cutoff) for rows in (ROWS, prepared_rows(changed))))


@pytest.mark.parametrize("kind", ALL)
def test_scores_do_not_depend_on_the_batch_size(kind):
    scores = score(baseline := kind())
    assert (scores.shape, scores.dtype) == ((len(CUSTOMERS), LABELS), np.float32)
    assert not scores[:, :2].any()
    batches = [*baseline.score_batches(ROWS, "test", 7)]
    assert sum(len(part) for _, part in batches) == len(scores)
    for chosen, part in batches:
        np.testing.assert_array_equal(part, scores[chosen])


@pytest.mark.parametrize("kind", BASELINES[1:])
def test_popularity_breaks_ties_and_ranks_for_new_customers(kind):
    crowd = {f"c{number}": [(1, [2, 2, 3]), (9, [4, 3, 2])] for number in range(3)}
    rows = prepared_rows({**crowd, "one": [(1, [5])], "new": []})
    scores = score(kind(), rows, labels=6)
    assert np.argsort(-scores[-1, 2:]).tolist() == [0, 1, 2, 3]  # 2 is the most popular, then 3, 4 and 5
    assert scores[-1, 2:].min() > 0


def reference_vector(visits, decay):
    """The vector of a customer by its definition, visit by visit."""
    total, weight = np.zeros(LABELS), 0.0
    for age, visit in enumerate(visits[::-1]):
        total, weight = total + decay**age * (visit > 0), weight + decay**age
    return total / weight if weight else total


def test_nearest_households_equal_a_plain_count():
    pool = {name: reference_vector(dense(visits, VALIDATION), 0.7) for name, visits in CUSTOMERS.items()}
    scores = score(make(NearestCustomers, neighbours=4, alpha=0.6, decay=0.7))
    for row, (name, visits) in enumerate(CUSTOMERS.items()):
        own = reference_vector(dense(visits, TEST), 0.7)
        others = [vector for other, vector in pool.items() if other != name and vector.any()]
        similar = np.array([own @ vector / np.linalg.norm(vector) for vector in others])
        nearest = [place for place in np.argsort(-similar)[:4] if similar[place] > 0]
        expected = 0.6 * own + 0.4 * sum((others[place] for place in nearest), np.zeros(LABELS)) / 4
        np.testing.assert_allclose(scores[row], expected, atol=1e-5)


def test_visit_frequency_counts_a_label_once_a_visit():
    rows = prepared_rows({"a": [(10, [2, 2, 2]), (30, [3, 2]), (50, [4])]})
    scores = score(make(VisitFrequency, half_lives=[2]), rows, labels=5)
    np.testing.assert_allclose(scores[0, 2:], [0.5 + 2**-0.5, 2**-0.5, 1], atol=2e-3)


def test_half_life_is_chosen_on_the_last_training_visit():
    latest = {str(n): [(1, [2]), (2, [2]), (3, [3 + n % 3]), (4, [3 + n % 3]), (150, [2])] for n in range(9)}
    most = {str(n): [(1, [3 + n % 3]), (2, [3 + n % 3]), (3, [2]), (4, [3 + n % 3]), (150, [2])] for n in range(9)}
    baseline = make(VisitFrequency, half_lives=[50, 0.1, 70])
    chosen = [baseline.fit(prepared_rows(log), "brand", 6).half_life for log in (latest, most)]
    assert chosen == [0.1, 50]


def slow_transitions(until):
    """The scores by their definition, one pair after the other."""
    together, number = np.zeros((LABELS, LABELS)), np.ones(LABELS)
    for visits in CUSTOMERS.values():
        training = dense(visits, VALIDATION)
        for place, counts in enumerate(training):
            number += counts > 0
            for weight, later in zip([1, 0.5, 0.33, 0.25, 0.2, 0.17], training[place + 1 :], strict=False):
                together += weight * np.outer(counts > 0, later > 0)
    scores = np.zeros((len(CUSTOMERS), LABELS))
    for row, visits in zip(scores, CUSTOMERS.values(), strict=True):
        for ago, counts in enumerate(dense(visits, until)[:-9:-1]):
            row += 0.6**ago * ((counts > 0) / number**0.3) @ together
    return scores


def test_transitions_equal_a_plain_count():
    np.testing.assert_allclose(score(Transitions()), slow_transitions(TEST), atol=1e-5)


def test_a_moment_is_one_time_of_a_visit():
    rows = prepared_rows({"a": [(1, [2, 3]), (2, [4])], "b": [(1, [5]), (1, [6])]})
    one_visit = rows.remove_columns("visits").add_column("visits", [[0, 0, 0], [0, 1]])
    scores = Transitions().fit(one_visit, "brand", 7)._together.toarray()
    assert scores[2, 4] == scores[3, 4] == scores[5, 6] == 1 and scores.sum() == 3


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no labelled event before the validation cutoff"):
        MostPopular().fit(prepared_rows({"a": [(150, [3])]}), "brand", 6)


def test_most_popular_counts_training_events():
    expected = sum(sum(dense(visits, VALIDATION), np.zeros(LABELS)) for visits in CUSTOMERS.values())
    np.testing.assert_array_equal(MostPopular().fit(ROWS, "brand", LABELS).popularity, expected)


# ------------------------------------------------------------------------------------------------------------ LightGBM


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


def all_visits(rows):
    return VisitSets.of(read_history(rows, "brand"))


def test_lightgbm_learns_what_is_due(turns):
    cases, recall = find_cases(turns, "test"), {}
    for name, baseline in {"counting": VisitFrequency(), "LightGBM": SMALL()}.items():
        ranks = TargetRanks(cases, "brand")
        ranks.add(slice(None), torch.from_numpy(score(baseline, turns)[cases.rows]))
        recall[name] = ranks.metrics((1,))["next_visit_recall@1"].mean()
    assert recall["LightGBM"] > 0.95 > 0.6 > recall["counting"]


def test_later_events_change_no_feature():
    day, found, customers = 60, [], random_customers(1, fewest=4)
    later = {
        name: [(when, labels if when <= day else [2, 5]) for when, labels in visits]
        for name, visits in customers.items()
    }
    for log in (customers, later):
        visits = all_visits(prepared_rows(log))
        known = np.bincount(visits.customer[visits.day <= day], minlength=len(log))  # visits of each customer
        chosen = np.flatnonzero(known)
        end = visits.first_visit[chosen] + known[chosen]
        found.append(find_candidates(visits, chosen, end, LabelStatistics(visits, LABELS), popular=3))
    assert len(chosen) > 20
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)
    assert np.isfinite(found[0][2]).any(axis=0).all()  # every feature is measured somewhere


def test_features_equal_a_hand_count():
    rows = prepared_rows({"a": [(0, [2, 2, 3]), (10, [3]), (16, [4]), (40, [2])], "b": [(0, [5]), (50, [6])]})
    visits = all_visits(rows)
    _, labels, features = find_candidates(visits, np.array([0]), np.array([3]), LabelStatistics(visits, 7), popular=2)
    table = dict(zip(labels, features.to_dict("records"), strict=True))
    assert {*table} >= {2, 3, 4}
    assert [np.expm1(table[2][name]).round(5) for name in ("visits", "since_visits", "customer_moments")] == [1, 2, 3]
    np.testing.assert_allclose(table[3]["share_since_first"], 2 / 3)
    # Known of all at day 16: the visits of two weeks. Of these three, label 3 had two, one straight after the other.
    known = [table[3][f"label_{name}"] for name in ("share", "met_at_once", "visits_a_customer", "gap_days")]
    np.testing.assert_allclose(known, [2 / 3, 1 / 2, 2, 10], rtol=1e-6)


def test_other_labels_rank_below_candidates_by_popularity():
    rows = prepared_rows(random_customers(1, fewest=4) | {"a": [(40, [9]), (60, [9])], "new": []})
    *_, scores, of_new = score(ranker := make(SMALL, popular=1), rows)
    first = int(LabelStatistics(all_visits(rows), LABELS).popular(np.array([60]), 1)[0, 0])
    others = [label for label in range(2, LABELS) if label not in (9, first)]
    assert scores[[9, first]].min() > scores[others].max() > 0
    for values, labels in ((scores, others), (of_new, range(2, LABELS))):
        by_popularity = np.argsort(-ranker.popularity[labels], kind="stable")
        np.testing.assert_array_equal(np.argsort(-values[labels], kind="stable"), by_popularity)


def test_a_missing_package_is_named(monkeypatch):
    rows = prepared_rows({"a": [(1, [2, 3]), (150, [3])], "b": [(4, [2])]})
    monkeypatch.setitem(sys.modules, "lightgbm", None)  # not to be found
    with pytest.raises(ImportError, match=r"pip install 'modeling-mcm\[gbdt\]'"):
        SMALL().fit(rows, "brand", LABELS)
