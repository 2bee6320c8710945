# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Logs of the world, with the names of their own columns: none is read wrongly without a word."""

import ast
import re

import pandas as pd
import pytest
import yaml
from world_frames import FRAMES

from modeling_mcm import CustomerModel
from modeling_mcm.data.guessing import FrameReader

# What is guessed: customer, time, visit, token type, tasks, and what the line of the amount says
READ = yaml.safe_load("""
Online Retail: [CustomerID, InvoiceDate, InvoiceNo, null, [StockCode, Description], "'UnitPrice' x 'Quantity'"]
Online Retail II: [Customer ID, InvoiceDate, Invoice, null, [StockCode, Description], "'Price' x 'Quantity'"]
Amazon reviews 2014: [reviewerID, unixReviewTime, null, null, [asin], "none: no column says what was paid"]
Amazon reviews 2023: [user_id, timestamp, null, null, [asin, parent_asin], "none: no column says what was paid"]
Google Analytics 4: [user_pseudo_id, event_timestamp, ga_session_id, event_name, [item_id, item_name, item_category],
  "'price' x 'quantity' by 'event_name', without add_to_cart, view_item"]
Ta-Feng: [CUSTOMER_ID, TRANSACTION_DT, null, null, [PRODUCT_ID, PRODUCT_SUBCLASS], "'SALES_PRICE'"]
"H&M": [customer_id, t_dat, null, null, [article_id], "none: .*if 'price' does, give schema={'amount': 'price'}"]
Olist: [customer_unique_id, order_purchase_timestamp, order_id, null, [product_id, seller_id, product_category_name],
  "none: .*if 'price' does, give schema={'amount': 'price'}"]
Retail Rocket: [visitorid, timestamp, null, event, [itemid], "none: no column says what was paid"]
Shopify orders: [Email, Created at, null, null, [Lineitem name, Lineitem sku, Vendor],
  "'Lineitem price' x 'Lineitem quantity'"]
Stripe payments: [Customer ID, Created date (UTC), Invoice ID, null, [Product],
  "'Amount' by 'Status', without Failed, Refunded"]
X5 RetailHero: [client_id, transaction_datetime, transaction_id, null, [product_id], "'trn_sum_from_iss'"]
MIMIC: [subject_id, charttime, hadm_id, null, [itemid], "none: .*if 'value' does, give schema={'amount': 'value'}"]
Yelp reviews: [user_id, date, null, null, [business_id], "none: no column says what was paid"]
MovieLens: [userId, timestamp, null, null, [movieId], "none: no column says what was paid"]
Last.fm 1K: [user, timestamp, null, null, [track-id, track-name, artist-id, artist-name], "none: no column says"]
Steam reviews: [username, date, null, null, [page, product_id], "none: no column says what was paid"]
CDNOW: [customer_id, date, null, null, [event], "'dollar_value'"]
Dunnhumby, sort of real: [CUST_CODE, SHOP_DATE, BASKET_ID, null, [PROD_CODE, PROD_CODE_10], "'SPEND'"]
Superstore: [Customer ID, Order Date, Order ID, null, [Product ID, Product Name, Category], "'Sales'"]
""")
# What is asked first, and what is read when the advice was followed
ASKED = yaml.safe_load("""
bank statement: ["amount: beside a balance some of 'amount' may have come in, .*Give schema=",
  [account_id, date, null, type, [k_symbol], "None"]]
Instacart: ["as 'order_number' counts each customer's visits, schema=",
  [user_id, null, order_id, null, [product_id, aisle, department], "none: no column says what was paid"]]
Steam plays: ["if a customer's rows are in order, schema=",
  [user-id, null, null, behavior-name, [game-title], "none: .*if 'value' does"]]
Diginetica: ["customer: 'userId' or 'itemId'.*'userId' is null in 7.% of the rows. Give schema=",
  [userId, eventdate, sessionId, null, [itemId], "none: no column says what was paid"]]
YooChoose: ["customer: 'Session ID' or 'Item ID'.*Give schema=",
  [Session ID, Timestamp, null, null, [Item ID, Category], "none: no column says what was paid"]]
Complete Journey: ["Column 'DAY' has numbers such as 1, .*as in events",
  [household_key, DAY, BASKET_ID, null, [PRODUCT_ID], "'SALES_VALUE'"]]
""")


def check_reading(reader, expected):
    schema, (*roles, tasks, amount) = reader.schema, expected
    assert [schema.customer, schema.time, schema.visit, schema.token_type] == roles
    assert [*schema.tasks] == (tasks if tasks != ["event"] else ["token_type"])
    assert re.match(f"Amount:   {amount}", reader.lines[2]), reader.lines[2]


@pytest.mark.parametrize("name", READ)
def test_a_log_of_the_world_is_read_as_it_is_meant(name):
    check_reading(FrameReader.guess(FRAMES[name]), READ[name])


@pytest.mark.parametrize("name", ASKED)
def test_what_is_not_sure_is_asked_and_the_advice_works(name):
    (words, expected), events, given = ASKED[name], FRAMES[name].copy(), {}
    with pytest.raises(ValueError, match=words) as raised:
        FrameReader.guess(events)
    said = str(raised.value)
    if advice := re.findall(r"schema=({.*?})", said):
        given = ast.literal_eval(advice[-1])
    else:
        exec(said[said.index("events[") :].rstrip("."))
    check_reading(FrameReader.guess(events, given), expected)


def test_every_layout_is_tested():
    assert {*FRAMES} == {*READ} | {*ASKED} and len(FRAMES) >= 20


AMAZON, JOURNEY, ORDERS = (FRAMES[name] for name in ("Amazon reviews 2014", "Ta-Feng", "Olist"))
UNSURE = {
    "no name says who": (
        AMAZON.drop(columns="reviewerName").rename(columns={"reviewerID": "dealer"}),
        r"customer: 'asin' or .*Give schema={",
    ),
    "two customers": (JOURNEY.assign(MEMBER_ID=JOURNEY["PRODUCT_ID"]), "customer: 'CUSTOMER_ID' or 'MEMBER_ID'. Give"),
    "orders, not customers": (
        ORDERS.drop(columns="customer_unique_id"),
        "customer: 'customer_id' or .*'customer_id' has another value at each time. Give schema={'customer': ",
    ),
    "two times": (
        AMAZON.drop(columns="reviewTime").assign(
            eventTime=AMAZON["unixReviewTime"].sample(frac=1, random_state=0).array
        ),
        "time: 'unixReviewTime' or 'eventTime'. Give schema={'time': 'unixReviewTime'}",
    ),
    "two amounts": (
        JOURNEY.assign(SALES_NET=JOURNEY["SALES_PRICE"] - 1.5, SALES_GROSS=JOURNEY["SALES_PRICE"]),
        "amount: 'SALES_PRICE' or 'SALES_NET'. Give schema={'amount': 'SALES_PRICE'}",
    ),
}


@pytest.mark.parametrize(("events", "words"), UNSURE.values(), ids=UNSURE)
def test_what_two_columns_may_be_is_asked(events, words):
    with pytest.raises(ValueError, match=words):
        FrameReader.guess(events)


def test_a_price_is_that_of_one_unit_or_of_all():
    events = FRAMES["Superstore"].drop(columns="Sales")
    units, each = events["Quantity"], FRAMES["Online Retail"]["UnitPrice"]
    for price, words in ((each, "'price' x 'Quantity'"), (each * units, "'price'")):
        assert FrameReader.guess(events.assign(price=price)).lines[2] == f"Amount:   {words}"


def test_what_was_only_seen_was_not_paid():
    events = FRAMES["Google Analytics 4"]
    reader = FrameReader.guess(events)
    paid = (events["price"] * events["quantity"]).where(events["event_name"] == "purchase", 0)
    assert reader.read(events)["paid"].tolist() == pytest.approx(paid.tolist())
    assert reader.schema.target_token_types == ("purchase",)


def test_a_model_of_a_log_with_rows_of_nobody_counts_the_others(caplog):
    events = FRAMES["Online Retail"]
    model = CustomerModel.fit(pd.concat([events, events.tail(5)]), learn=False, disable_tqdm=True)
    known = events["CustomerID"].dropna()
    assert len(model.customers) == known.nunique() and model.customers[0].isdigit()
    assert f"{len(events) - len(known):,} of {len(events) + 5:,} rows have none and are left out" in str(model.reader)
    assert f"{len(events) - len(known):,} rows are left out" in caplog.text
