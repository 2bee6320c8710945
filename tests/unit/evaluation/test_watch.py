# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in a log is an alarm within three days, and a quiet log has hardly one."""

import json

import numpy as np
import pandas as pd
import pytest
from steady_shop import DAYS, DRIFTS, FIRST_DAY, make_shop

from modeling_mcm import CustomerModel
from modeling_mcm.evaluation.watch import DAYS as BEFORE
from modeling_mcm.evaluation.watch import Check, _judge


def split(log, days):
    """A model of all but the last days, and these."""
    end = FIRST_DAY + pd.Timedelta(days=days)
    model = CustomerModel.fit(log[log["time"] < end], learn=False, disable_tqdm=True)
    return model, log[log["time"] >= end]


@pytest.fixture(scope="module")
def shop():
    """A model of 97 days, and the three days after them."""
    return split(make_shop(), DAYS - 3)


@pytest.mark.parametrize(("change", "of"), DRIFTS.values(), ids=DRIFTS)
def test_a_drift_is_found_within_three_days(shop, change, of):
    model, new = shop
    found = model.watch(change(new))
    alarms = found[found["alarm"]]
    assert alarms["of"].str.startswith(of).any(), found.head(20)


def test_it_knows_nothing_of_later_days(shop):
    model, new = shop
    first = new[new["time"] < new["time"].min().normalize() + pd.Timedelta(days=1)]
    alone, among = model.watch(first), model.watch(new)
    among = among[among["day"] == alone["day"][0]].reset_index(drop=True)
    assert not alone["alarm"].any() and {1, 3} == {*alone["days"]}
    pd.testing.assert_frame_equal(alone, among)


QUIET = [pytest.param(1, id="1"), *(pytest.param(seed, marks=pytest.mark.slow, id=str(seed)) for seed in range(2, 6))]


@pytest.mark.parametrize("seed", QUIET)
def test_60_quiet_days_have_at_most_one_alarm(seed):
    model, new = split(make_shop(seed, days=160), 100)
    found = model.watch(new)
    assert found["day"].nunique() == 60
    assert found[found["alarm"]]["day"].nunique() <= 1, found[found["alarm"]]


def test_what_varies_for_its_own_reasons_is_no_alarm():
    """However many there are: a share that moves by a tenth is an alarm where it was steady alone."""
    generator, days = np.random.default_rng(0), 2 * BEFORE + 1
    trials = np.full((days, 1), 1_000_000)
    for spread, is_alarm in ((0.0, True), (0.1, False)):
        share = 0.2 * np.exp(generator.normal(0, spread, (days, 1)))
        share[-1] = 0.22
        judged = _judge(Check("value", ["x"], generator.binomial(trials, share), trials), days - 1)
        assert (judged["p"].item() < 1e-6) == is_alarm


def test_a_day_that_the_model_knows_is_no_new_one(shop):
    model, new = shop
    with pytest.raises(ValueError, match="Found 0 days after those of the model, and 56 before"):
        model.watch(new[:5].assign(time=model.as_of))


def test_the_command_ends_with_1_on_an_alarm_and_2_on_an_error(command, tmp_path):
    log = make_shop(customers=300)
    log = log[["customer", "time", "basket", "item"]]
    end = FIRST_DAY + pd.Timedelta(days=DAYS - 1)
    CustomerModel.fit(log[log["time"] < end], learn=False, folder=tmp_path / "shop", disable_tqdm=True)
    day = log[log["time"] >= end]
    day.to_parquet(tmp_path / "day.parquet")
    day.assign(item="n/a").to_parquet(tmp_path / "broken.parquet")
    script, *words = "modeling_mcm.commands.watch", "--model", tmp_path / "shop" / "run", "--events"
    assert "ALARM" not in command(script, *words, tmp_path / "day.parquet")
    with pytest.raises(SystemExit) as caught:
        command(script, *words, tmp_path / "broken.parquet")
    assert caught.value.code == 1
    rows = json.loads(command(script, *words, tmp_path / "day.parquet", "--json", "true").splitlines()[-1])
    assert {"day", "check", "of", "observed", "expected", "p", "alarm"} <= {*rows[0]}
    with pytest.raises(SystemExit) as caught:
        command(script, *words, tmp_path / "none.parquet")
    assert caught.value.code == 2
    assert sorted(path.name for path in (tmp_path / "shop").iterdir()) == ["data", "events.parquet", "run"]
