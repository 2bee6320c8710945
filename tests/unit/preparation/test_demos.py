# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The demo log, from small tables as its package has them."""

import itertools
from datetime import datetime

import duckdb
import pandas as pd
import pytest

from modeling_mcm.data.offers import make_offers
from modeling_mcm.preparation import demos

STARTS = [datetime(2017, 3, 3), datetime(2017, 8, 8), datetime(2017, 10, 30), datetime(2017, 12, 28)]
DESCRIPTIONS = pd.DataFrame({"campaign_id": ["1", "13", "18", "23"], "start_date": STARTS})
CAMPAIGNS = pd.DataFrame({"campaign_id": ["1", "13", "18", "18", "23"], "household_id": [7, 7, 7, 8, 8]})
COUPONS = pd.DataFrame(
    [("1", 100, 1), ("1", 100, 2), ("1", 200, 3), ("13", 100, 1), ("18", 300, 2), ("18", 300, 4), ("23", 400, 4)],
    columns=["campaign_id", "coupon_upc", "product_id"],
)
REDEMPTIONS = pd.DataFrame(
    [(7, 200, "1"), (7, 200, "1"), (8, 300, "18")], columns=["household_id", "coupon_upc", "campaign_id"]
)
PRODUCTS = pd.DataFrame(
    [(1, "GROCERY", "SOUP", "CAN", "National", 5), (2, "GROCERY", "SOUP", "CAN", "National", 5)]
    + [(3, "MEAT", "BEEF", "ROAST", "Private", 6), (4, "MEAT", "BEEF", None, "Private", 6)],
    columns=["product_id", "department", "product_category", "product_type", "brand", "manufacturer_id"],
)


@pytest.fixture(scope="module")
def tables():
    """Offers and actions as the demo writes them."""
    frames = {"campaigns": CAMPAIGNS, "campaign_descriptions": DESCRIPTIONS, "coupons": COUPONS}
    with duckdb.connect() as connection:
        for name, frame in (frames | {"coupon_redemptions": REDEMPTIONS, "products": PRODUCTS}).items():
            connection.register(name, frame)
        return connection.sql(demos.OFFERS).df(), connection.sql(demos.ACTIONS).df()


def test_every_coupon_of_a_campaign_is_an_offer_to_every_household_that_got_it(tables):
    offers = tables[0].set_index(["group_id", "action_id"]).sort_index()
    assert list(offers.index) == [("1-7", "100"), ("1-7", "200"), ("13-7", "100"), ("18-7", "300"), ("18-8", "300")]
    assert offers["conversion"].tolist() == [0, 1, 0, 0, 1] and offers["click"].isna().all()
    assert offers["split"].tolist() == ["train", "train", "validation", "test", "test"]
    assert offers["time"].tolist()[2] == datetime(2017, 8, 8)


def test_an_action_has_a_row_for_each_kind_of_its_products(tables):
    made = make_offers(*tables)
    actions = made.actions
    parts = [slice(*pair) for pair in itertools.pairwise(actions.offsets)]
    of_coupon = {  # of several versions the latest
        name: actions.columns["product_type"][part] for name, part in zip(actions.action_ids, parts, strict=True)
    }
    assert of_coupon["200"] == ["ROAST"] and of_coupon["100"] == ["CAN"]  # of the latest campaign: one product
    assert len(of_coupon["300"]) == 2 and {*pd.Series(of_coupon["300"]).dropna()} == {"CAN"}
    assert set(actions.columns["token_type"]) == {"purchase_with_coupon"}


def test_the_complete_journey_has_what_was_paid_for_all_units_of_a_line():
    line = {"household_id": 7, "transaction_timestamp": datetime(2017, 3, 3), "basket_id": 1, "product_id": 1}
    line |= {"coupon_disc": 0.0, "coupon_match_disc": 0.0}
    lines = pd.DataFrame([line | {"quantity": 3, "sales_value": 6.0}, line | {"quantity": 0, "sales_value": -1.5}])
    frames = {"transactions": lines, "products": PRODUCTS, "campaigns": CAMPAIGNS, "coupon_redemptions": REDEMPTIONS}
    frames["coupon_redemptions"] = REDEMPTIONS.assign(redemption_date=datetime(2017, 4, 4))
    with duckdb.connect() as connection:
        for name, frame in (frames | {"campaign_descriptions": DESCRIPTIONS}).items():
            connection.register(name, frame)
        log = connection.sql(demos.EVENTS_QUERY).df()
    assert sorted(log["amount"].dropna()) == [-1.5, 6.0]
