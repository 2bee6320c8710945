# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Made rows in the layouts of logs that people have: exports of shops, public data sets, a bank, a clinic. The names
of the columns, how they are written, and what is null are theirs."""

import numpy as np
import pandas as pd

random = np.random.default_rng(0)
CUSTOMERS, VISITS, ITEMS = 60, 600, 40


def draw(values, rows):
    return random.choice(values, rows)


def where(values, keep):
    """The values as objects, null where they are not kept."""
    return pd.Series(np.asarray(values, object)).where(pd.Series(np.asarray(keep)))


# A shop: visits of customers in a year, each with one to four lines of different items, in the order of time
_lines = random.integers(1, 5, VISITS)
VISIT = np.arange(VISITS).repeat(_lines)
ROWS = len(VISIT)
CUSTOMER = random.integers(0, CUSTOMERS, VISITS)[VISIT]
TIME = (pd.Timestamp("2020-01-03") + pd.to_timedelta(np.sort(random.integers(0, 360 * 86400, VISITS)), unit="s"))[
    VISIT
]
ITEM = np.concatenate([random.choice(ITEMS, lines, replace=False) for lines in _lines])
GROUP = ITEM % 7
UNITS = np.where(random.random(ROWS) < 0.7, 1, random.integers(2, 6, ROWS))
PRICE = (np.round(random.lognormal(1, 0.8, ITEMS), 2) + 0.49)[ITEM]  # of one unit
PAID = (UNITS * PRICE).round(2)
SECONDS = TIME.astype("datetime64[s]").astype("int64").to_numpy()
DAY = (TIME - TIME[0].floor("D")).days + 1
FIRST = np.r_[True, VISIT[1:] != VISIT[:-1]]  # lines of a visit
TOTAL = pd.Series(PAID).groupby(VISIT).transform("sum").round(2).to_numpy()


def text(prefix, numbers, width=5):
    return [f"{prefix}{number:0{width}}" for number in numbers]


def make_times(pattern):
    return TIME.strftime(pattern)


def make_frames():
    """Each layout's frame by name."""
    frames = {}
    known = (CUSTOMER % 4 > 0) | (VISIT % 5 == 0)  # a fifth of the rows has no customer
    for name, invoice, customer, price in (
        ("Online Retail", "InvoiceNo", "CustomerID", "UnitPrice"),
        ("Online Retail II", "Invoice", "Customer ID", "Price"),
    ):
        frames[name] = {
            invoice: 536365 + VISIT, "StockCode": text("8", ITEM), "Description": text("HEART LIGHT ", ITEM),
            "Quantity": np.where(VISIT % 40 == 0, -UNITS, UNITS), "InvoiceDate": make_times("%-m/%-d/%Y %-H:%M"),
            price: PRICE, customer: np.where(known, 12345.0 + CUSTOMER, np.nan),
            "Country": np.where(CUSTOMER % 9 > 0, "United Kingdom", "France"),
        }  # fmt: skip
    frames["Amazon reviews 2014"] = {
        "reviewerID": text("A2SUAM", CUSTOMER), "asin": text("B000", ITEM), "reviewerName": text("J. ", CUSTOMER),
        "overall": draw(5, ROWS) + 1.0, "summary": text("Good ", range(ROWS)),
        "unixReviewTime": SECONDS // 86400 * 86400, "reviewTime": make_times("%m %-d, %Y"),
    }  # fmt: skip
    frames["Amazon reviews 2023"] = {
        "rating": draw(5, ROWS) + 1.0, "title": text("Good ", range(ROWS)), "asin": text("B01", ITEM),
        "parent_asin": text("B00", ITEM // 2), "user_id": text("AE", CUSTOMER), "timestamp": SECONDS * 1000,
        "helpful_vote": random.poisson(0.5, ROWS), "verified_purchase": random.random(ROWS) < 0.9,
    }  # fmt: skip
    microseconds = SECONDS * 1_000_000 + np.arange(ROWS)
    frames["Google Analytics 4"] = {
        "event_date": make_times("%Y%m%d"), "event_timestamp": microseconds,
        "event_name": draw(["view_item", "add_to_cart", "purchase"], ROWS), "user_id": [None] * ROWS,
        "user_pseudo_id": [f"{3000000 + who}.{who * 7919 % 9999:010}" for who in CUSTOMER],
        "user_first_touch_timestamp": 1_500_000_000_000_000 + CUSTOMER * 1_000_000, "platform": ["WEB"] * ROWS,
        "ga_session_id": 1_600_000_000 + VISIT, "item_id": text("GGOE", ITEM), "item_name": text("Tee ", ITEM),
        "item_category": text("Apparel ", GROUP), "price": PRICE, "quantity": UNITS,
    }  # fmt: skip
    order_number = pd.Series(VISIT).groupby(CUSTOMER).rank("dense").astype(int).to_numpy()
    frames["Instacart"] = {
        "order_id": draw(10**6, VISITS)[VISIT], "user_id": CUSTOMER + 1, "order_number": order_number,
        "order_dow": TIME.dayofweek, "order_hour_of_day": TIME.hour,
        "days_since_prior_order": np.where(order_number == 1, np.nan, draw(31, VISITS)[VISIT]),
        "product_id": ITEM + 30000, "add_to_cart_order": pd.Series(VISIT).groupby(VISIT).cumcount() + 1,
        "reordered": draw(2, ROWS), "aisle": text("aisle ", GROUP), "department": text("department ", GROUP % 3),
    }  # fmt: skip
    frames["Ta-Feng"] = {
        "TRANSACTION_DT": make_times("%-m/%-d/%Y"), "CUSTOMER_ID": CUSTOMER + 1104905,
        "AGE_GROUP": np.array(["25-29", "30-34", "45-49"])[CUSTOMER % 3], "PIN_CODE": (115 - CUSTOMER % 5).astype(str),
        "PRODUCT_SUBCLASS": 110401 + GROUP, "PRODUCT_ID": 4710199010372 + ITEM, "AMOUNT": UNITS,
        "ASSET": (PAID * 0.8).round(), "SALES_PRICE": PAID.round(),
    }  # fmt: skip
    frames["H&M"] = {
        "t_dat": make_times("%Y-%m-%d"), "customer_id": [f"{who * 7919:064x}" for who in CUSTOMER],
        "article_id": 663713000 + ITEM, "price": (PRICE / 590).round(6), "sales_channel_id": draw([1, 2], ROWS),
    }  # fmt: skip
    later = {
        "approved_at": 0.1,
        "delivered_carrier_date": 2,
        "delivered_customer_date": 9,
        "estimated_delivery_date": 20,
    }
    number = pd.Series(VISIT).groupby(VISIT).cumcount() + 1
    frames["Olist"] = {
        "order_id": [f"{visit:032x}" for visit in VISIT], "order_item_id": number,
        "product_id": text("4244733e06", ITEM), "seller_id": text("48436dad", ITEM % 9),
        "shipping_limit_date": (TIME + pd.Timedelta(days=5)).strftime("%Y-%m-%d %X"), "price": PRICE,
        "freight_value": np.round(3 + PRICE / 5, 2), "customer_id": [f"{visit * 7919:032x}" for visit in VISIT],
        "order_status": ["delivered"] * ROWS,
        "order_purchase_timestamp": make_times("%Y-%m-%d %X"),
        **{f"order_{name}": (TIME + pd.Timedelta(days=days)).strftime("%Y-%m-%d %X") for name, days in later.items()},
        "payment_type": draw(["credit_card", "boleto"], VISITS)[VISIT], "payment_value": TOTAL,
        "customer_unique_id": [f"{who * 104729:032x}" for who in CUSTOMER],
        "customer_zip_code_prefix": 14409 + CUSTOMER % 20, "customer_city": text("franca ", CUSTOMER % 20),
        "customer_state": np.array(["SP", "RJ"])[CUSTOMER % 2], "product_category_name": text("moveis ", GROUP),
    }  # fmt: skip
    is_bought = random.random(ROWS) < 0.05
    frames["Retail Rocket"] = {
        "timestamp": SECONDS * 1000 + 116, "visitorid": CUSTOMER + 257000,
        "event": np.where(is_bought, "transaction", draw(["view", "view", "addtocart"], ROWS)),
        "itemid": ITEM + 355900,
        "transactionid": np.where(is_bought, VISIT + 4000.0, np.nan),
    }  # fmt: skip
    order = {
        "Name": [f"#{1001 + visit}" for visit in VISIT], "Email": [f"c{who}@example.com" for who in CUSTOMER],
        "Financial Status": where(["paid"] * ROWS, FIRST), "Paid at": where(make_times("%Y-%m-%d %X +0100"), FIRST),
        "Fulfillment Status": where(["fulfilled"] * ROWS, FIRST), "Currency": where(["EUR"] * ROWS, FIRST),
        "Subtotal": np.where(FIRST, TOTAL, np.nan), "Shipping": np.where(FIRST, 4.9, np.nan),
        "Taxes": np.where(FIRST, (TOTAL * 0.19).round(2), np.nan), "Total": np.where(FIRST, TOTAL + 4.9, np.nan),
        "Discount Amount": np.where(FIRST, 0.0, np.nan), "Created at": make_times("%Y-%m-%d %X +0100"),
        "Lineitem quantity": UNITS, "Lineitem name": text("Mug ", ITEM), "Lineitem price": PRICE,
        "Lineitem compare at price": PRICE + 1, "Lineitem sku": text("SKU", ITEM),
        "Lineitem requires shipping": [True] * ROWS, "Lineitem discount": [0.0] * ROWS,
        "Billing Name": where(text("Ann ", CUSTOMER), FIRST),
        "Billing City": where(text("Bonn ", CUSTOMER % 9), FIRST),
        "Refunded Amount": np.where(FIRST, draw([0.0, 5.5], ROWS), np.nan), "Vendor": text("vendor ", GROUP),
        "Outstanding Balance": np.where(FIRST, 0.0, np.nan), "Id": where(5_000_000_000_000 + VISIT, FIRST),
    }  # fmt: skip
    empty = {
        f"{kind} {name}": [None] * ROWS for kind in ("Billing", "Shipping") for name in ("Company", "Zip", "Phone")
    }
    frames["Shopify orders"] = order | empty | {f"Tax {n} Name": [None] * ROWS for n in range(1, 20)}
    status = draw(["Paid", "Paid", "Paid", "Failed", "Refunded"], ROWS)
    frames["Stripe payments"] = {
        "id": text("ch_3M", range(ROWS)), "Created date (UTC)": make_times("%Y-%m-%d %X"), "Amount": PAID,
        "Amount Refunded": np.where(status == "Refunded", PAID, 0.0), "Currency": ["eur"] * ROWS,
        "Captured": status != "Failed", "Converted Amount": (PAID * 1.1).round(2), "Fee": (PAID * 0.03).round(2),
        "Description": ["Subscription update"] * ROWS, "Status": status, "Customer ID": text("cus_N", CUSTOMER),
        "Customer Email": text("mail", CUSTOMER), "Card ID": text("card_1", CUSTOMER * 2 + draw(2, ROWS)),
        "Invoice ID": text("in_1", VISIT), "Product": text("plan ", GROUP),
    }  # fmt: skip
    frames["X5 RetailHero"] = {
        "client_id": [f"{who:010x}" for who in CUSTOMER],
        "transaction_id": [f"{visit * 7919:010x}" for visit in VISIT],
        "transaction_datetime": make_times("%Y-%m-%d %X"), "regular_points_received": (TOTAL / 10).round(1),
        "express_points_received": [0.0] * ROWS, "regular_points_spent": np.where(VISIT % 3, 0.0, -5.0),
        "express_points_spent": [0.0] * ROWS, "purchase_sum": TOTAL, "store_id": text("54a4a11a", CUSTOMER % 8),
        "product_id": text("9a80204f", ITEM), "product_quantity": UNITS.astype(float), "trn_sum_from_iss": PAID,
        "trn_sum_from_red": np.where(VISIT % 9, np.nan, PAID),
    }  # fmt: skip
    came_in = random.random(ROWS) < 0.2
    signed = np.where(came_in, PAID * 4, -PAID)
    frames["bank statement"] = {
        "trans_id": np.arange(ROWS) + 695247, "account_id": CUSTOMER + 2378,
        "date": TIME.strftime("%y%m%d").astype(int),
        "type": np.where(came_in, "PRIJEM", "VYDAJ"), "operation": np.where(came_in, "VKLAD", "VYBER"),
        "amount": np.abs(signed), "balance": (1000 + pd.Series(signed).groupby(CUSTOMER).cumsum()).round(2),
        "k_symbol": where(draw(["SIPO", "SLUZBY", "UVER"], ROWS), random.random(ROWS) < 0.6),
        "bank": where(draw(["AB", "CD"], ROWS), random.random(ROWS) < 0.3),
        "account": np.where(random.random(ROWS) < 0.3, 10_000_000 + draw(900, ROWS), np.nan),
    }  # fmt: skip
    admitted = pd.Series(TIME).groupby(VISIT).transform("min") - pd.Timedelta(hours=3)
    charted = TIME + pd.to_timedelta(np.arange(ROWS) % 5 * 7, unit="min")
    frames["MIMIC"] = {
        "row_id": np.arange(ROWS), "subject_id": CUSTOMER + 10000, "hadm_id": VISIT + 200000, "admittime": admitted,
        "itemid": ITEM + 220000, "charttime": charted, "storetime": charted + pd.Timedelta(minutes=30),
        "value": random.normal(80, 9, ROWS).round(1), "valueuom": np.array(["mmHg", "bpm", "%"])[ITEM % 3],
    }  # fmt: skip
    frames["Yelp reviews"] = {
        "review_id": text("KU_O", range(ROWS)), "user_id": text("mh_-", CUSTOMER), "business_id": text("XQfw", ITEM),
        "stars": draw(5, ROWS) + 1.0, "useful": random.poisson(1, ROWS), "funny": random.poisson(0.3, ROWS),
        "cool": random.poisson(0.4, ROWS), "text": text("Tasty ", range(ROWS)), "date": make_times("%Y-%m-%d %X"),
    }  # fmt: skip
    frames["MovieLens"] = {
        "userId": CUSTOMER + 1, "movieId": ITEM + 1, "rating": draw(10, ROWS) / 2 + 0.5, "timestamp": SECONDS,
    }  # fmt: skip
    frames["Last.fm 1K"] = {
        "user": text("user_", CUSTOMER, 6), "timestamp": make_times("%Y-%m-%dT%XZ"), "artist-id": text("f1b1", GROUP),
        "artist-name": text("Artist ", GROUP), "track-id": text("a5", ITEM), "track-name": text("Track ", ITEM),
    }  # fmt: skip
    frames["Steam plays"] = {
        "user-id": CUSTOMER + 151603712, "game-title": text("Game ", ITEM),
        "behavior-name": draw(["purchase", "play"], ROWS), "value": PAID, "0": [0] * ROWS,
    }  # fmt: skip
    frames["Steam reviews"] = {
        "username": text("Chaos ", CUSTOMER), "hours": PAID, "products": draw(900, CUSTOMERS)[CUSTOMER],
        "product_id": text("7", ITEM), "page_order": draw(10, ROWS), "date": make_times("%Y-%m-%d"),
        "text": text("Fun ", range(ROWS)), "early_access": random.random(ROWS) < 0.1, "page": draw(90, ROWS),
    }  # fmt: skip
    frames["Diginetica"] = {
        "sessionId": VISIT + 1, "userId": where(CUSTOMER + 500, CUSTOMER % 4 == 0), "itemId": ITEM + 81000,
        "timeframe": random.integers(0, 10**6, ROWS), "eventdate": make_times("%Y-%m-%d"),
    }  # fmt: skip
    frames["YooChoose"] = {
        "Session ID": CUSTOMER + 1, "Timestamp": make_times("%Y-%m-%dT%X.277Z"), "Item ID": ITEM + 214536500,
        "Category": (GROUP + 1).astype(str),
    }  # fmt: skip
    frames["CDNOW"] = {
        "customer_id": CUSTOMER + 1, "date": TIME.strftime("%Y%m%d").astype(int), "number_of_cds": UNITS,
        "dollar_value": PAID,
    }  # fmt: skip
    frames["Complete Journey"] = {
        "household_key": CUSTOMER + 1, "BASKET_ID": 26984851472 + VISIT, "DAY": DAY, "PRODUCT_ID": ITEM + 1004906,
        "QUANTITY": UNITS, "SALES_VALUE": PAID, "STORE_ID": 364 + CUSTOMER % 8, "RETAIL_DISC": -(PAID / 9).round(2),
        "TRANS_TIME": TIME.hour * 100 + TIME.minute, "WEEK_NO": DAY // 7 + 1, "COUPON_DISC": [0.0] * ROWS,
        "COUPON_MATCH_DISC": [0.0] * ROWS,
    }  # fmt: skip
    frames["Dunnhumby, sort of real"] = {
        "SHOP_WEEK": TIME.strftime("%Y%V").astype(int), "SHOP_DATE": TIME.strftime("%Y%m%d").astype(int),
        "SHOP_WEEKDAY": TIME.dayofweek + 1, "SHOP_HOUR": TIME.hour, "QUANTITY": UNITS, "SPEND": PAID,
        "PROD_CODE": text("PRD09", ITEM), "PROD_CODE_10": text("CL00", GROUP), "CUST_CODE": text("CUST0", CUSTOMER),
        "CUST_PRICE_SENSITIVITY": np.array(["LA", "MM", "UM"])[CUSTOMER % 3], "BASKET_ID": 994100100000000 + VISIT,
        "BASKET_SIZE": np.array(["S", "M", "L"])[_lines.clip(max=3) - 1][VISIT],
        "STORE_CODE": text("STORE0", CUSTOMER % 8),
    }  # fmt: skip
    frames["Superstore"] = {
        "Row ID": np.arange(ROWS), "Order ID": text("CA-2016-", VISIT), "Order Date": make_times("%-m/%-d/%Y"),
        "Ship Date": (TIME + pd.Timedelta(days=3)).strftime("%-m/%-d/%Y"), 
        "Ship Mode": draw(["First", "Second"], VISITS)[VISIT], "Customer ID": text("CG-", CUSTOMER),
        "Customer Name": text("Claire ", CUSTOMER),
        "Segment": ["Consumer"] * ROWS,
        "Product ID": text("FUR-BO-", ITEM), "Category": text("Furniture ", GROUP),
        "Product Name": text("Desk ", ITEM),
        "Sales": PAID, "Quantity": UNITS, "Discount": draw([0, 0.2], ROWS), "Profit": (PAID * 0.2).round(4),
    }  # fmt: skip
    return {name: pd.DataFrame(columns) for name, columns in frames.items()}


FRAMES = make_frames()
