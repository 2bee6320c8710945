# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""One call on a data frame: the schema that is guessed, and the model that is fitted on the corner shop's log."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from corner_shop import make_log
from transformers.utils import logging

from modeling_mcm import CustomerModel, MCMForMultiTaskRecommendation
from modeling_mcm.data import EventSchema
from modeling_mcm.data.guessing import guess_schema

ROWS = 600


def make_events(**columns):
    """Events of 40 customers in 200 days, with other columns."""
    generator = np.random.default_rng(0)
    seconds = np.sort(generator.integers(0, 200 * 86400, ROWS))
    times = pd.Timestamp("2024-01-01") + pd.to_timedelta(seconds, unit="s")
    return pd.DataFrame({"customer_id": generator.integers(0, 40, ROWS), "time": times} | columns)


def draw(values, seed=1):
    return np.random.default_rng(seed).choice(values, ROWS)


GROCERIES = make_events(
    basket_id=np.arange(ROWS) // 3,
    product=draw(200),
    category=draw(list("abcdefgh"), 2),
    quantity=draw(5) + 1,
    price=draw(1000) / 100,
)


def roles(schema):
    return {key: getattr(schema, key) for key in ("customer", "time", "visit", "token_type")}


def kinds(schema):
    return {feature.name: feature.kind for feature in schema.features if feature.column}


def test_groceries_with_baskets_are_guessed():
    schema = guess_schema(GROCERIES)
    assert roles(schema) == {"customer": "customer_id", "time": "time", "visit": "basket_id", "token_type": None}
    amounts = {"quantity": "numeric", "price": "numeric"}
    assert kinds(schema) == {"product": "categorical", "category": "categorical"} | amounts | {"amount": "numeric"}
    assert schema.tasks == ("product", "category")  # most labels first
    cutoffs = [str(schema.cutoff(key).date()) for key in ("validation", "test")]
    assert cutoffs == ["2024-06-18", "2024-07-04"]  # 30 and 14 of 200 days
    assert EventSchema.from_dict(yaml.safe_load(yaml.safe_dump(schema.to_dict()))) == schema


PAID = {
    "a price times a quantity": ({}, {}, "amount", ["price", "quantity"]),
    "what was paid": ({"SalesValue": 1.5}, {}, "SalesValue", ["SalesValue"]),
    "no discount": ({"quantity": None, "total_discount": 2.5}, {}, None, []),
    "a price alone": ({"quantity": None}, {}, None, []),
    "none": ({}, {"amount": None}, None, []),
}


@pytest.mark.parametrize(("columns", "given", "amount", "read"), PAID.values(), ids=PAID)
def test_what_was_paid_is_no_unit_price(columns, given, amount, read, caplog):
    more = {name: draw(1000) / 10 if value else None for name, value in columns.items()}
    schema = guess_schema(GROCERIES.assign(**more).dropna(axis="columns"), given)
    assert schema.amount == amount
    assert [column for each in schema.features if each.name == amount for column in each.columns] == read
    assert ("is read as price x quantity" in caplog.text) == (len(read) == 2)


def test_clicks_with_numbers_as_ids_are_guessed():
    events = make_events(event=draw(["view", "cart", "buy"]), itemid=draw(100), transactionid=np.nan)
    schema = guess_schema(events.rename(columns={"customer_id": "visitorid", "time": "timestamp"}))
    expected = {"customer": "visitorid", "time": "timestamp", "visit": None, "token_type": "event"}
    assert roles(schema) == expected and schema.tasks == ("itemid",)


def test_reviews_without_a_kind_of_event_are_guessed():
    events = make_events(parent_asin=draw([f"B{k}" for k in range(99)]), rating=draw(5) + 1.0)
    events["title"] = [f"Review {k}" for k in range(ROWS)]
    schema = guess_schema(events.rename(columns={"customer_id": "UserID"}).assign(weekday=draw(["Mo", "Tu"])))
    assert roles(schema)["customer"] == "UserID" and schema.token_type is None
    expected = {"parent_asin": "categorical", "rating": "numeric", "weekday": "categorical"}
    assert kinds(schema) == expected  # each title is another one


@pytest.mark.parametrize("zone", ["Europe/Berlin", "+02:00"])
def test_times_with_a_zone(zone):
    schema = guess_schema(GROCERIES.assign(time=GROCERIES["time"].dt.tz_localize(zone, ambiguous="NaT")))
    assert schema.time_zone == ("UTC" if zone[0] == "+" else zone)
    assert abs((schema.cutoff("validation") - pd.Timestamp("2024-06-18")).days) <= 1


def test_cutoffs_are_those_of_the_whole_log(monkeypatch):
    monkeypatch.setattr("modeling_mcm.data.guessing.ROWS_READ", 100)
    assert guess_schema(GROCERIES).cutoffs == guess_schema(GROCERIES.sample(frac=1, random_state=0)).cutoffs


def test_known_keys_are_kept():
    events = GROCERIES.rename(columns={"customer_id": "x", "time": "y"})
    schema = guess_schema(events, {"customer": "x", "time": "y", "tasks": ["category"], "visit": None})
    assert roles(schema) == {"customer": "x", "time": "y", "visit": None, "token_type": None}
    ordered = guess_schema(GROCERIES.drop(columns="time"), {"order": "rows"})
    assert schema.tasks == ("category",) and ordered.leaves_one_out and ordered.time is None


SECONDS = GROCERIES["time"].astype("datetime64[s]").astype("int64")
MIXED = [value if index % 2 else str(value) for index, value in enumerate(GROCERIES["product"])]
WIDE = GROCERIES.join(pd.DataFrame(0, GROCERIES.index, range(200)).add_prefix("x"))
WRONG = {
    "no time": (GROCERIES.drop(columns="time"), "is named like a time: give schema={'time': 'COLUMN'}"),
    "no customer": (GROCERIES.drop(columns="customer_id"), "No column of .* is named like a customer"),
    "one customer": (GROCERIES.assign(customer_id=1), "Column 'customer_id' has 1 customer"),
    "seconds": (GROCERIES.assign(time=SECONDS), r"Column 'time' has numbers such as 17.*unit='s'\)"),
    "day first": (GROCERIES.assign(time="31/01/2024"), "Column 'time' has '31/01/2024'.*format=..."),
    "mixed types": (GROCERIES.assign(product=MIXED), r"Column 'product' has .*\(int, str\).*astype\(str\)"),
    "lists": (GROCERIES.assign(tags=[["a"]] * ROWS), r"Column 'tags' has .*\(list\).*leave the column out"),
    "200 columns": (WIDE, "The table has 207 columns.*choose some"),
    "two of a name": (GROCERIES.rename(columns={"category": "product"}), "Two columns are named 'product'"),
    "a number as name": (GROCERIES.rename(columns={"price": 5}), "Column 5 has no text as its name"),
    "no labels": (GROCERIES[["customer_id", "time", "price"]], "has labels to predict, such as items"),
    "no rows": (GROCERIES.head(0), "The table of events has no row"),
    "no table": ([{"customer_id": 1}], "Found list, expected a pandas data frame or an Arrow table"),
}


@pytest.mark.parametrize("events, words", WRONG.values(), ids=WRONG)
def test_a_wrong_table_is_refused_with_its_column_and_a_fix(events, words):
    with pytest.raises(ValueError, match=words):
        CustomerModel.fit(events)


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no column 'produkt'; .* is 'product' meant"):
        guess_schema(GROCERIES, {"token_type": "produkt"})


def test_null_customers_are_refused_or_left_out():
    events = GROCERIES.assign(customer_id=GROCERIES["customer_id"].where(GROCERIES.index > 9))
    with pytest.raises(ValueError, match="Column 'customer_id' is null in 10 of 600 events.*on_null: drop"):
        CustomerModel.fit(events)
    model = CustomerModel.fit(events, {"on_null": "drop"}, disable_tqdm=True)
    assert len(model.customers) == 40


@pytest.fixture(scope="module")
def log():
    return make_log()


@pytest.fixture(scope="module")
def fitted(log, tmp_path_factory):
    """A model of the log, fitted once, and its folder; it showed the guess as a schema file."""
    said = []
    logger = logging.get_logger("modeling_mcm.customer_model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "warning", said.append)
        folder = tmp_path_factory.mktemp("fitted") / "shop"
        model = CustomerModel.fit(pa.Table.from_pandas(log), {"amount": "price"}, folder=folder, disable_tqdm=True)
    shown = EventSchema.from_dict(yaml.safe_load(said[0].partition("\n")[2]))
    assert shown == guess_schema(log, {"amount": "price"}) and shown.tasks == ("item", "aisle")
    return model, folder


def test_lists_are_of_the_customers_that_are_asked_for(fitted):
    model = fitted[0]
    table = model.recommend(["c07", "c03"], k=3)
    assert list(table["customer"].unique()) == ["c07", "c03"] and len(table) == 2 * 2 * 3
    assert len(model.recommend(k=1, tasks=["aisle"])) == 34


def test_lists_from_what_is_in_stock(fitted, log):
    model = fitted[0]
    stock = pd.DataFrame({"item": [f"item {k:02}" for k in range(12)], "aisle": ["aisle 0"] * 6 + ["aisle 1"] * 6})
    options = {"tasks": ["item"], "candidates": stock, "per_group": ("aisle", 2)}
    table = model.recommend(["c07"], k=10, exclude=["item 03"], **options)
    assert set(table["label"]) <= set(stock["item"]) - {"item 03"} and len(table) == 4
    by_customer = pd.DataFrame({"who": ["c07", "c03"], "item": ["item 03", "item 04"]})
    pd.testing.assert_frame_equal(model.recommend(["c07"], k=10, exclude=by_customer, **options), table)
    fresh = model.recommend(["c07"], k=10, tasks=["item"], exclude="seen")
    assert not set(fresh["label"]) & set(log.loc[log["who"] == "c07", "item"])


def test_embeddings_and_forecasts_have_a_row_for_each_customer(fitted):
    model = fitted[0]
    assert model.embed().shape == (34, model.model.config.embedding_size)
    table = model.forecast(["c07", "c03"], days=[30, 365])
    assert list(table.index) == ["c07", "c03"] and not any("_7d" in name for name in table)
    assert (table["price_365d"] >= table["price_30d"]).all() and "visits_7d" in model.forecast(["c07"])


def test_7_and_its_text_are_one_customer(fitted, log):
    model, own = fitted[0], log[log["who"] == "c07"]
    ids = [(7, "7", 7.0)[index % 3] for index in range(len(own))]
    mixed = CustomerModel(model.model, model.feature_extractor, own.assign(who=pd.Series(ids, own.index, object)))
    assert mixed.customers == ["7"]
    assert mixed.as_of == own["when"].max().tz_localize("UTC") < model.as_of
    np.testing.assert_allclose(mixed.embed([7.0], as_of=model.as_of), model.embed(["c07"]), rtol=1e-5)
    lists = [mixed.recommend([7], tasks=["item"], exclude={"item": ["item 03"]} | who) for who in ({}, {"who": [7.0]})]
    pd.testing.assert_frame_equal(*lists)


def test_a_score_is_explained(fitted):
    explanation = fitted[0].explain("c07", "aisle 1")
    assert explanation.task == "aisle" and explanation.label == "aisle 1"


def test_a_saved_model_gives_the_same(fitted, log, tmp_path):
    model, folder = fitted
    model.save(tmp_path / "shop")
    for place in (tmp_path / "shop", folder / "run"):
        again = CustomerModel.load(place, log)
        pd.testing.assert_frame_equal(again.recommend(), model.recommend())
        pd.testing.assert_frame_equal(again.embed(), model.embed())
    assert isinstance(MCMForMultiTaskRecommendation.from_pretrained(tmp_path / "shop"), MCMForMultiTaskRecommendation)


ASKED = {
    "unknown customer": (lambda model: model.embed(["nobody"]), "No customer 'nobody' among the events"),
    "a text": (lambda model: model.recommend("c07"), r"`customers` is 'c07', expected a list of ids: write \['c07'\]"),
    "a number": (lambda model: model.recommend(7), "`customers` is 7, expected a list"),
    "nobody": (lambda model: model.embed([]), "`customers` is empty"),
    "unknown label": (lambda model: model.explain("c07", "item 99"), "No task of .* has the label 'item 99'"),
    "unknown option": (lambda model: model.recommend(["c07"], most=3), r"Unknown options \['most'\]"),
}


@pytest.mark.parametrize("ask, words", ASKED.values(), ids=ASKED)
def test_a_wrong_question_is_refused(fitted, ask, words):
    with pytest.raises(ValueError, match=words):
        ask(fitted[0])


def test_a_wrong_fit_is_refused(fitted, log):
    with pytest.raises(ValueError, match=r"Unknown options \['epochs'\]"):
        CustomerModel.fit(log, epochs=3)
    with pytest.raises(FileExistsError, match="holds files already: give another folder, or read its model"):
        CustomerModel.fit(log, folder=fitted[1])


def test_events_of_another_log_are_refused(fitted, log):
    with pytest.raises(ValueError, match="The events have no column 'price'"):
        CustomerModel.load(fitted[1] / "run", log.drop(columns="price"))
    with pytest.raises(ValueError, match="column 'who' of the events: null in 1 of"):
        CustomerModel.load(fitted[1] / "run", log.assign(who=log["who"].where(log.index > 0)))
