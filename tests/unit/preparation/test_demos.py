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

TABLES = """
CREATE TABLE campaign_descriptions AS FROM (VALUES
    ('1', DATE '2017-03-03'), ('13', '2017-08-08'), ('18', '2017-10-30'), ('23', '2017-12-28')
) AS _(campaign_id, start_date);
CREATE TABLE campaigns AS FROM (VALUES ('1', 7), ('13', 7), ('18', 7), ('18', 8), ('23', 8))
AS _(campaign_id, household_id);
CREATE TABLE coupons AS FROM (VALUES
    ('1', 100, 1), ('1', 100, 2), ('1', 200, 3), ('13', 100, 1), ('18', 300, 2), ('18', 300, 4), ('23', 400, 4)
) AS _(campaign_id, coupon_upc, product_id);
CREATE TABLE coupon_redemptions AS FROM (VALUES
    (7, 200, '1', DATE '2017-04-04'), (7, 200, '1', '2017-04-04'), (8, 300, '18', '2017-04-04')
) AS _(household_id, coupon_upc, campaign_id, redemption_date);
CREATE TABLE products AS FROM (VALUES
    (1, 'GROCERY', 'SOUP', 'CAN', 'National', 5), (2, 'GROCERY', 'SOUP', 'CAN', 'National', 5),
    (3, 'MEAT', 'BEEF', 'ROAST', 'Private', 6), (4, 'MEAT', 'BEEF', NULL, 'Private', 6)
) AS _(product_id, department, product_category, product_type, brand, manufacturer_id);
CREATE TABLE transactions AS FROM (VALUES
    (7, TIMESTAMP '2017-03-03', 1, 1, 0.0, 0.0, 3, 6.0), (7, '2017-03-03', 1, 1, 0.0, 0.0, 0, -1.5)
) AS _(
    household_id, transaction_timestamp, basket_id, product_id, coupon_disc, coupon_match_disc, quantity, sales_value
);
"""


@pytest.fixture(scope="module")
def tables():
    """Offers, actions and events as the demo writes them."""
    with duckdb.connect() as connection:
        connection.execute(TABLES)
        return [connection.sql(query).df() for query in (demos.OFFERS, demos.ACTIONS, demos.EVENTS_QUERY)]


def test_every_coupon_of_a_campaign_is_an_offer_to_every_household_that_got_it(tables):
    offers = tables[0].set_index(["group_id", "action_id"]).sort_index()
    assert list(offers.index) == [("1-7", "100"), ("1-7", "200"), ("13-7", "100"), ("18-7", "300"), ("18-8", "300")]
    assert offers["conversion"].tolist() == [0, 1, 0, 0, 1] and offers["click"].isna().all()
    assert offers["split"].tolist() == ["train", "train", "validation", "test", "test"]
    assert offers["time"].tolist()[2] == datetime(2017, 8, 8)


def test_an_action_has_a_row_for_each_kind_of_its_products(tables):
    made = make_offers(*tables[:2])
    actions = made.actions
    parts = [slice(*pair) for pair in itertools.pairwise(actions.offsets)]
    of_coupon = {  # of several versions the latest
        name: actions.columns["product_type"][part] for name, part in zip(actions.action_ids, parts, strict=True)
    }
    assert of_coupon["200"] == ["ROAST"] and of_coupon["100"] == ["CAN"]  # of the latest campaign: one product
    assert len(of_coupon["300"]) == 2 and {*pd.Series(of_coupon["300"]).dropna()} == {"CAN"}
    assert set(actions.columns["token_type"]) == {"purchase_with_coupon"}


def test_the_complete_journey_has_what_was_paid_for_all_units_of_a_line(tables):
    assert sorted(tables[2]["amount"].dropna()) == [-1.5, 6.0]
