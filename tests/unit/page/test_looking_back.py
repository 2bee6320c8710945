# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Chances that are asked for by label come true as often as they say, a month later."""

import numpy as np
import pandas as pd
import pytest

from modeling_mcm.page.looking_back import CAME, SINCE, calibrate
from modeling_mcm.predictor_mcm import CHANCES

# What is said is right on average, and wrong of a label, and of customers who never had it or not for a month
FACTORS = {"diapers": 0.4, "milk": 1.6}
STATES = {3.0: 1.2, 60.0: 0.8, np.nan: 0.5}


def draw(cases=20_000, seed=0):
    """Likely labels, with what was said and what came."""
    generator = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "label": generator.choice([*FACTORS], cases),
            CHANCES: generator.uniform(0.05, 0.4, cases),
            SINCE: generator.choice([*STATES], cases),
        }
    )
    share = table[CHANCES] * table["label"].map(FACTORS) * table[SINCE].map({3.0: 1.2, 60.0: 0.8}).fillna(0.5)
    return table.assign(**{CAME: (generator.random(cases) < share).astype(float)})


def test_chances_come_true_by_label_and_by_how_long_ago_it_was():
    past, now = draw(), draw(seed=1)
    chances = calibrate(now, past)
    for key in (now["label"], now[SINCE].fillna(-1)):
        said, came, before = (values.groupby(key).mean() for values in (chances, now[CAME], now[CHANCES]))
        assert (said - came).abs().max() < 0.02 < (before - came).abs().min()


def test_customers_who_did_not_come_and_few_cases_say_nothing():
    past = draw(2000)
    away = past.assign(**{CAME: np.nan})
    now = draw(10, seed=1)
    pd.testing.assert_series_equal(calibrate(now, pd.concat([past, away])), calibrate(now, past))
    assert calibrate(now, away).to_numpy() == pytest.approx(now[CHANCES])
    rare = pd.DataFrame({"label": ["rare"], CHANCES: [0.2], SINCE: [3.0], CAME: [1.0]})
    few = calibrate(rare, pd.concat([past, rare]))[0] / calibrate(rare, past)[0]
    assert 1 < few < 1.1
