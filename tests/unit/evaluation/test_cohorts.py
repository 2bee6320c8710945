# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Newcomers of weeks to come."""

import numpy as np
import pytest

from modeling_mcm.evaluation.cohorts import expect_newcomers


@pytest.mark.parametrize("mean", [3, 30, 300])
@pytest.mark.parametrize("spread", [0, 0.3])
def test_intervals_hold_what_they_say(mean, spread):
    generator, held, ratios = np.random.default_rng(mean), [], []
    for _ in range(40):
        levels = mean * np.exp(generator.normal(0, spread, 34) - spread**2 / 2)
        counts = generator.poisson(levels)
        expected, low, high = expect_newcomers(counts[:30], 4).to_numpy().T
        held.append((low <= counts[30:]) & (counts[30:] <= high))
        ratios.append(expected.mean() / mean)
    assert 0.7 < np.mean(held) < 0.95
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)


def test_who_is_seen_for_the_first_time_becomes_rare():
    weeks = np.arange(1, 29)
    counts = np.random.default_rng(0).poisson(2000 / weeks)
    expected = expect_newcomers(counts[:24], 4)["newcomers"]
    np.testing.assert_allclose(expected, 2000 / weeks[24:], rtol=0.1)  # the mean of the last 4 weeks is 15% more


def test_a_shop_without_newcomers_expects_none():
    found = expect_newcomers(np.zeros(20), 3).to_numpy()
    assert (found[:, 0] < 0.2).all() and (found[:, 1] == 0).all() and (found[:, 2] <= 1).all()
