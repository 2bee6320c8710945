# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Hand-made features of offers, and LightGBM on them: checked against counting by hand; a planted rule is found."""

import numpy as np
import pandas as pd
import pytest

from modeling_mcm.data import load_prepared
from modeling_mcm.data.offer_collator import OfferCollator, OfferGroups
from modeling_mcm.data.offers import make_offers
from modeling_mcm.evaluation.offers import OfferTruth, offer_metrics
from offers_gbdt import LightGBMOffers, offer_features

DAY = "2017-10-20"
ITEMS = ["item 00", "item 03", "item 07", "item 13", "item 20"]


@pytest.fixture(scope="module")
def offers(event_log):
    """All items offered to everybody; a customer takes those that they bought twice or more."""
    counts = event_log[event_log["when"] < DAY].groupby(["who", "item"]).size()
    whos = sorted(set(event_log["who"]))
    rows = [(who, DAY, item, int(counts.get((who, item), 0) > 1)) for who in whos for item in ITEMS]
    offers = pd.DataFrame(rows, columns=["customer_id", "time", "action_id", "conversion"])
    actions = pd.DataFrame({"action_id": ITEMS, "action": "buy", "item": ITEMS})
    return make_offers(offers, actions)


@pytest.fixture
def table_of(prepared, extractor, tiny_config):
    def make(offers, groups=None, folder=prepared):
        collator = OfferCollator(extractor, tiny_config(action_outcomes=["conversion"]), offers, groups, 10**6)
        return offer_features(extractor, collator, OfferGroups(load_prepared(folder), offers, groups), batch_size=7)

    return make


def test_features_are_what_counting_by_hand_gives(table_of, offers, event_log):
    table = table_of(offers)
    names, of_group = table.offer_names, table.group_names
    before = event_log[event_log["when"] < DAY]
    for group in (0, 9, 33):
        who = offers.customer_ids[group]
        events = before[before["who"] == who]
        own = dict(zip(of_group, table.groups[group], strict=True))
        assert own["buy_all"] == (events["action"] == "buy").sum()
        assert own["click_all"] == (events["action"] == "click").sum()
        assert own["days_since_event"] == pytest.approx(
            (pd.Timestamp(DAY) - events["when"].max()).total_seconds() / 86400, rel=1e-4
        )
        assert own["offers"] == len(ITEMS)
        for place in range(offers.offsets[group], offers.offsets[group + 1]):
            item = offers.action_ids[offers.actions[place]]
            found = dict(zip(names, table.offers[place], strict=True))
            met = events[events["item"] == item]
            assert found["did_all"] == found["share_items_all"] == len(met)
            ages = (pd.Timestamp(DAY) - met["when"]).dt.total_seconds() / 86400
            assert found["did_30"] == pytest.approx((0.5 ** (ages / 30)).sum(), abs=1e-3)
            assert np.isnan(found["days_since_did"]) == met.empty
            assert found["did_as_asked_all"] == (met["action"] == "buy").sum()
            visits = met["basket"].dropna().nunique() + met["basket"].isna().sum()
            assert found["visits_did"] == visits and found["sum_a.b_did"] >= 0
        assert own["sum_did_all"] == sum(events["item"].isin(ITEMS))


def test_features_know_nothing_of_what_came_later(table_of, offers, event_log, prepare_log):
    changed = prepare_log(event_log.assign(item=event_log["item"].where(event_log["when"] < DAY, "item 03")))
    ours, theirs = table_of(offers), table_of(offers, folder=changed)
    np.testing.assert_array_equal(ours.groups, theirs.groups)
    np.testing.assert_array_equal(ours.offers, theirs.offers)


def test_a_planted_rule_is_found(table_of, offers):
    groups = {"train": np.arange(20), "valid": np.arange(20, 27), "test": np.arange(27, 34)}
    tables = {name: table_of(offers, chosen) for name, chosen in groups.items()}
    truths = {name: OfferTruth.of(offers, chosen, "conversion") for name, chosen in groups.items()}
    model = LightGBMOffers(trials=3)
    model.search(tables["train"], truths["train"], tables["valid"], truths["valid"])
    assert set(model.settings) == {"responds", "offer"} and model.settings["offer"]["validation"] > 0.8
    model.fit(tables["train"], truths["train"])
    scores, groups = model.scores(tables["test"])
    found = offer_metrics(truths["test"], scores, groups, np.ones((1, 7), int))
    assert found["ndcg@10"][0] > 0.8
