# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A synthetic shop is what its settings say, and its truth can be recovered from its log."""

from dataclasses import replace

import numpy as np
import pytest

from synthetic import ClickLog, ShopSettings, make_click_log

SMALL = ShopSettings(items=300, subcategories=30, categories=6)


@pytest.fixture(scope="module")
def log() -> ClickLog:
    return make_click_log(2000, SMALL, seed=3)


def expected(hits, probabilities):
    """Whether as many hits happened as the probabilities say, within four standard deviations."""
    deviation = np.sqrt((probabilities * (1 - probabilities)).sum())
    return abs(hits.sum() - probabilities.sum()) < 4 * deviation


def test_the_seed_gives_the_log(log: ClickLog) -> None:
    assert make_click_log(2000, SMALL, seed=3).events.equals(log.events)
    assert not make_click_log(2000, SMALL, seed=4).events.equals(log.events)


def test_sizes_and_times_are_those_of_the_settings(log: ClickLog) -> None:
    events = log.events.to_pandas()
    lengths = events.groupby("user_id").size()
    assert len(lengths) == 2000 and lengths.min() == 5 and lengths.max() == 50 and lengths.median() < 25
    assert events["timestamp"].between(SMALL.start, SMALL.end).all()
    gaps = events.groupby("user_id")["timestamp"].diff().dt.total_seconds()
    same = events["session_id"] == events["session_id"].shift()
    assert gaps[same].max() < 70 < gaps[~same].min() and gaps.min() > 0
    assert events.groupby("session_id").size().mean() == pytest.approx(SMALL.events_a_session, rel=0.2)
    months = events["timestamp"].dt.month.value_counts()
    assert len(months) == 7 and months.min() > 0.7 * months.max()


def test_events_are_as_likely_as_they_say(log: ClickLog) -> None:
    """Calibration: where the truth gives an item about p, it comes about as often; so does each session's first."""
    moment = "2024-02-01"
    bounds = zip(log.first_event[:-1], log.first_event[1:], strict=True)
    before = np.array(
        [(log.seconds[start:stop] < np.datetime64(moment, "s").astype(int)).sum() for start, stop in bounds]
    )
    session = log.events["session_id"].to_numpy()
    after = np.minimum(log.first_event[:-1] + before, len(log.items) - 1)
    asked = np.flatnonzero((before > 0) & (before < np.diff(log.first_event)) & (session[after] != session[after - 1]))
    probabilities = log.first_item_probabilities(asked, moment)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    happened = probabilities[np.arange(len(asked)), log.items[after[asked]]]
    np.testing.assert_allclose(happened, log.events["true_probability"].to_numpy()[after[asked]])
    best = probabilities.argmax(axis=1)
    assert len(asked) > 1000 and expected(best == log.items[after[asked]], probabilities.max(axis=1))
    returned = log.items[after[asked]] == log.items[after[asked] - 1]
    assert expected(returned, probabilities[np.arange(len(asked)), log.items[after[asked] - 1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subcategories": 301}, "300 items, 301 subcategories"),
        ({"max_events": 90}, "min_events 5 and max_events 90; expected 1 <= min <= max <= 51"),
        ({"stay_rate": 0.9}, "add up to 1 at most"),
        ({"return_rate": 1.5}, "return_rate of 1 at most"),
        ({"end": "2023-10-02"}, "too short"),
    ],
)
def test_a_shop_that_cannot_be_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_misuse_is_named(log: ClickLog) -> None:
    with pytest.raises(ValueError, match="0 customers"):
        make_click_log(0, SMALL)
    with pytest.raises(ValueError, match="Customer 0 has no event before 2023-10-01"):
        log.first_item_probabilities([0], "2023-10-01")
