# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""One call on a data frame: how it is read, and the model that is fitted on the corner shop's log and on frames as
people have them."""

import copy
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from corner_shop import make_log
from folders import update_json
from planted_shop import START, make_shop
from safetensors.torch import load_file
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from strange_frames import make_bank, make_library, make_purchases
from transformers.utils import logging

from modeling_mcm import CustomerModel, MCMForMultiTaskRecommendation
from modeling_mcm.customer_features import CustomerFeatures, MCMClassifier, MCMRegressor
from modeling_mcm.data import NO_CUTOFFS, EventSchema
from modeling_mcm.data.guessing import FrameReader
from modeling_mcm.frames import select_rows
from modeling_mcm.page.histories import Histories
from modeling_mcm.scorer_mcm import NEXT_VISIT, WITHIN
from modeling_mcm.training.scorer.shipped import SHIPPED, SHIPPED_SCORER

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


def guess_schema(events, given=None):
    return FrameReader.guess(events, given).schema


def roles(schema):
    return {key: getattr(schema, key) for key in ("customer", "time", "visit", "token_type")}


def kinds(schema):
    return {feature.name: feature.kind for feature in schema.features if feature.column}


def test_groceries_with_baskets_are_guessed():
    schema = guess_schema(GROCERIES)
    assert roles(schema) == {"customer": "customer_id", "time": "time", "visit": "basket_id", "token_type": None}
    assert [*kinds(schema).values()] == 2 * ["categorical"] + 3 * ["numeric"]  # the last one is the amount
    assert schema.tasks == ("product", "category")  # most labels first
    visit = GROCERIES["basket_id"]
    clicks = make_events(session=visit, event=draw(["view", "cart"]), device=visit % 2 > 0)
    assert guess_schema(clicks).tasks == ("event",)  # a visit has one device
    cutoffs = [str(schema.cutoff(key).date()) for key in ("validation", "test")]
    assert cutoffs == ["2024-06-18", "2024-07-04"]  # 30 and 14 of 200 days
    assert EventSchema.from_dict(yaml.safe_load(yaml.safe_dump(schema.to_dict()))) == schema


# Other columns, what is given, then the amount and the columns that it is read from
PAID = yaml.safe_load("""
a price times a quantity: [{}, {}, amount, [price, quantity]]
what was paid: [{SalesValue: 1.5}, {}, SalesValue, [SalesValue]]
what was paid, as text: [{SalesValue: '1.5'}, {}, SalesValue, [SalesValue]]
no discount: [{quantity: null, total_discount: 2.5}, {}, null, []]
a price alone: [{quantity: null}, {}, null, []]
none: [{}, {amount: null}, null, []]
""")


@pytest.mark.parametrize(("columns", "given", "amount", "read"), PAID.values(), ids=PAID)
def test_what_was_paid_is_no_unit_price(columns, given, amount, read):
    more = {name: (draw(1000) / 10).astype(type(value)) if value else None for name, value in columns.items()}
    reader = FrameReader.guess(GROCERIES.assign(**more).dropna(axis="columns"), given)
    assert reader.schema.amount == amount
    assert [column for each in reader.schema.features if each.name == amount for column in each.columns] == read
    assert ("'price' x 'quantity'" in str(reader)) == (len(read) == 2)


# Other columns, amounts, and what was paid where that is another column
DIRECTIONS = yaml.safe_load("""
payments are negative: [{}, [-5.0, -3.0, 900.0, -1.0], [5, 3, 0, 1]]
few are negative, paid back: [{}, [5.0, -3.0, 9.0, 1.0], null]
a kind says what came in: [{kind: [pos, fee, salary, pos]}, [5.0, 3.0, 900.0, 1.0], [5, 3, 0, 1]]
a kind says what was paid back: [{kind: [buy, refund, buy, refund]}, [5.0, 3.0, 9.0, 1.0], [5, -3, 9, -1]]
an item is no kind: [{item_name: [in-ear phones, desk, in-ear phones, desk]}, [5.0, 3.0, 9.0, 1.0], null]
a card of credit pays: [{kind: [credit card, cash, credit card, cash]}, [5.0, 3.0, 9.0, 1.0], null]
""")


@pytest.mark.parametrize(("columns", "amounts", "paid"), DIRECTIONS.values(), ids=DIRECTIONS)
def test_an_amount_has_a_direction(columns, amounts, paid):
    repeats = {name: values * (ROWS // 4) for name, values in {**columns, "amount": amounts}.items()}
    events = make_events(item=draw(9), **repeats)
    reader = FrameReader.guess(events)
    assert reader.schema.amount == ("paid" if paid else "amount")
    again = FrameReader.from_dict(yaml.safe_load(yaml.safe_dump(reader.to_dict())))
    assert again.read(events)[reader.schema.amount].head(4).tolist() == (paid or amounts)


def test_reviews_without_a_kind_of_event_are_guessed():
    events = make_events(parent_asin=draw([f"B{k}" for k in range(99)]), rating=draw(5) + 1.0)
    events["title"] = [f"Review {k}" for k in range(ROWS)]
    schema = guess_schema(events.rename(columns={"customer_id": "UserID"}).assign(weekday=draw(["Mo", "Tu"])))
    assert schema.customer == "UserID" and schema.token_type is None
    expected = {"parent_asin": "categorical", "rating": "numeric", "weekday": "categorical"}
    assert kinds(schema) == expected  # each title is another one


def test_cutoffs_are_those_of_the_whole_log(monkeypatch):
    monkeypatch.setattr("modeling_mcm.data.guessing.ROWS_READ", 100)
    assert guess_schema(GROCERIES).cutoffs == guess_schema(GROCERIES.sample(frac=1, random_state=0)).cutoffs


def test_known_keys_are_kept():
    events = GROCERIES.rename(columns={"customer_id": "x", "time": "y"})
    schema = guess_schema(events, {"customer": "x", "time": "y", "tasks": ["category"], "visit": None})
    assert roles(schema) == {"customer": "x", "time": "y", "visit": None, "token_type": None}
    ordered = guess_schema(GROCERIES.drop(columns="time"), {"order": "rows"})
    assert schema.tasks == ("category",) and ordered.leaves_one_out and ordered.time is None


TIMES = GROCERIES["time"]
SECONDS = TIMES.astype("datetime64[s]").astype("int64")
READINGS = {
    "month first": (TIMES.dt.strftime("%m/%d/%Y"), "%m/%d/%Y"),
    "day first, no zeros": (TIMES.dt.strftime("%-d.%-m.%Y"), "%d.%m.%Y"),
    "clock": (TIMES.dt.strftime("%d/%m/%Y %I:%M %p"), "%d/%m/%Y %I:%M %p"),
    "number": (TIMES.dt.strftime("%Y%m%d").astype(int), "%Y%m%d"),
    "seconds": (SECONDS, "s"),
    "milliseconds": (SECONDS * 1000, "ms"),
    "ISO": (TIMES.astype(str), None),
    "days": (TIMES.dt.date, None),
}


@pytest.mark.parametrize(("times", "time_format"), READINGS.values(), ids=READINGS)
def test_times_are_read_in_the_one_way_that_fits(times, time_format):
    reader = FrameReader.guess(GROCERIES.assign(time=times))
    assert reader.time_format == time_format
    assert (f"({times[0]} is {TIMES[0]:%d %B %Y})" in str(reader)) == (time_format is not None)
    assert reader.schema.cutoffs == guess_schema(GROCERIES).cutoffs
    read = pd.to_datetime(reader.read(GROCERIES.assign(time=times))["time"], format="mixed")
    assert (read.dt.floor("D") == TIMES.dt.floor("D")).all()
    assert times.dtype != int or reader.read_time(times[0]) == read[0]


def test_a_days_events_are_a_visit_where_a_day_has_several():
    events = make_events(item=draw(9)).assign(customer_id=draw(4))
    reader = FrameReader.guess(events)
    assert reader.schema.visit == "visit_day" and "a customer's day is a visit" in str(reader)
    assert "visit_day" not in reader.read(events)
    assert guess_schema(events.assign(time=events["time"].dt.floor("D"))).visit is None


def test_one_label_is_nothing_to_predict():
    reader = FrameReader.guess(make_events(item="milk", amount=draw(99) / 7))
    assert not reader.schema.has_labels and reader.schema.tasks == ("token_type",)
    with pytest.raises(ValueError, match="no labels, such as items, that an encoder could learn"):
        CustomerModel.fit(make_events(item="milk"), encoder=True)


def test_what_is_known_later_is_no_feature():
    events = make_events(item=draw(9), due=draw(["1/31/2024", "2/20/2024"]), clock=draw(["10:30", "9:12"]))
    reader = FrameReader.guess(events.assign(age=TIMES - TIMES.min()))  # durations
    assert list(kinds(reader.schema)) == ["item"] and str(reader).endswith("not read: due, clock, age")


def test_the_schemas_own_words_are_names_of_columns(log):
    renamed = log.rename(columns={"action": "token_type"})
    assert guess_schema(renamed).token_type == "token_type"
    wide = renamed.assign(token_type=renamed["item"] + "!")
    wide = pd.concat([wide.assign(token_type=wide["token_type"] + str(n)) for n in range(3)])
    assert "token_type_column" in guess_schema(wide).tasks


WIDE = GROCERIES.join(pd.DataFrame({f"x{k}": draw(9) for k in range(200)}))
BOTH = draw(["11/1/2000", "2/3/2001"])
NAMED = ["007" if number == 7 else number for number in range(40)] * (ROWS // 40)
WRONG = {
    "no time": (GROCERIES.drop(columns="time"), "is a time: give schema={'time': 'COLUMN'}"),
    "no customer": (
        GROCERIES.drop(columns="customer_id"),
        "customer: 'basket_id' or 'product' or 'category'. Give schema={'customer': 'basket_id'}",
    ),
    "one customer": (GROCERIES.assign(customer_id=1), "Column 'customer_id' has 1 customer"),
    "small numbers": (GROCERIES.assign(time=draw(99)), r"Column 'time' has numbers such as .*to_timedelta"),
    "durations": (GROCERIES.assign(time=TIMES - TIMES.min()), "Column 'time' has durations such as .*Timestamp"),
    "no one way": (GROCERIES.assign(time=BOTH), "11 January 2000 .*%d/%m/%Y.* or 01 November 2000 .*%m/%d/%Y"),
    "no way": (GROCERIES.assign(time="31/31/2024"), "Column 'time' has '31/31/2024'.*format=..."),
    "7 beside 007": (GROCERIES.assign(customer_id=NAMED[1:] + [7]), "the text '007' and the number 7"),
    "lists": (GROCERIES.assign(tags=[["a"]] * ROWS), r"Column 'tags' has .*\(list\).*leave the column out"),
    "200 columns": (WIDE, "The table has 207 columns that vary.*choose some"),
    "two of a name": (GROCERIES.rename(columns={"category": "product"}), "Two columns are named 'product'"),
    "a number as name": (GROCERIES.rename(columns={"price": 5}), "Column 5 has no text as its name"),
    "no rows": (GROCERIES.head(0), "The table of events has no row"),
    "no table": ([{"customer_id": 1}], "Found list, expected a pandas data frame, an Arrow table"),
    "no file": ("no-such.csv", "no-such.csv does not exist"),
}


@pytest.mark.parametrize("events, words", WRONG.values(), ids=WRONG)
def test_a_wrong_table_is_refused_with_its_column_and_a_fix(events, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        CustomerModel.fit(events)


FEW = pd.DataFrame({"user": ["a", "b", "a"], "time": pd.to_datetime(["2024-01-01", "2024-01-01", "2024-01-05"])})
SHORT = {
    "two times": FEW,
    "one time": FEW.assign(time=FEW["time"][0]),
    "no times": FEW.drop(columns="time"),
    "three times": FEW.assign(time=pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-05"])),
    "a wrong one": make_events(item=draw(9)).replace({"time": {TIMES[5]: pd.Timestamp("2034-01-01")}}),
}


@pytest.mark.parametrize("events", SHORT.values(), ids=SHORT)
def test_what_is_counted_needs_no_period(events):
    given = {} if "time" in events else {"order": "rows"}
    model = CustomerModel.fit(events, given, learn=False, disable_tqdm=True)
    assert len(model.customers) == events.iloc[:, 0].nunique()
    if model.reader.schema.cutoffs == NO_CUTOFFS:
        with pytest.raises(ValueError, match="The log is too short to learn from.* or learn=False"):
            CustomerModel.fit(events, given)


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no column 'produkt'; .* is 'product' meant"):
        guess_schema(GROCERIES, {"token_type": "produkt"})


def test_rows_without_a_customer_are_left_out_and_counted():
    events = GROCERIES.assign(customer_id=GROCERIES["customer_id"].where(GROCERIES.index > 9))
    with pytest.raises(ValueError, match="Column 'customer_id' is null in 10 of 600 events.*on_null: drop"):
        CustomerModel.fit(events, {"on_null": "error"})
    model = CustomerModel.fit(events, disable_tqdm=True)
    assert len(model.customers) == 40 and "; 10 of 600 rows have none and are left out" in str(model.reader)


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
    assert model.reader.schema == guess_schema(log, {"amount": "price"}) and said[0].startswith(str(model.reader))
    assert model.reader.schema.tasks == ("item", "aisle") and len(model.reader.lines) == 5
    return model, folder


def test_answers_are_of_the_customers_that_are_asked_for_in_their_order(fitted):
    model, asked = fitted[0], ["c07", "c03"]
    assert asked == [*model.recommend(asked, k=3)["customer"].unique()] == [*model.forecast(asked).index]
    pd.testing.assert_frame_equal(model.embed(asked), model.embed().loc[asked], rtol=1e-4, atol=1e-5)
    assert "visits_7d" in model.forecast(asked)  # by default the horizons of the config


def test_who_has_no_event_yet_is_no_customer_yet(fitted, log):
    model, first = fitted[0], log.groupby("who")["when"].min()
    then = first.sort_values().iloc[9]
    assert {*model.forecast(as_of=then).index} == {*first.index[first <= then]}
    assert len(model.forecast(first.index, as_of=then)) == 34  # as asked for
    with pytest.raises(ValueError, match="No customer has an event until 2000-01-01"):
        model.embed(as_of="2000-01-01")


def test_what_comes_later_is_worth_less(fitted):
    model, days, rate = fitted[0], [30, 45, 90], 0.5
    plain, told = model.forecast(days=days), model.forecast(days=days, discount_rate=rate)
    pd.testing.assert_frame_equal(told[[*plain]], plain, rtol=1e-4)
    for name in ("visits", "price"):
        steps = model.forecast(days=[30, 45, 60, 90])
        values, before = 0, 0
        for middle, day in zip((15, 37.5, 52.5, 75), (30, 45, 60, 90), strict=True):
            expected = steps[f"{name}_{day}d"]
            values, before = values + (expected - before) / (1 + rate) ** (middle / 365.25), expected
            if day in days:
                np.testing.assert_allclose(told[f"{name}_{day}d_discounted"], values, rtol=1e-5)
    free = model.forecast(days=days, discount_rate=0)
    np.testing.assert_allclose(free["price_90d_discounted"], plain["price_90d"], rtol=1e-4)


def test_cohorts_have_come_so_far_and_will(fitted, log):
    model = fitted[0]
    table, end = model.cohorts(days=20, weeks=2), pd.Timestamp(model.as_of)
    bought = log.dropna(subset=["item"])
    first = bought.groupby("who")["when"].min()
    week = (end - first) // pd.Timedelta(weeks=1)
    places = np.arange(len(table) - 3, -1, -1)
    assert (table["newcomers"].iloc[:-2] == [(week == place).sum() for place in places]).all()
    assert table.index[-3] == end - pd.Timedelta(weeks=1) and table["newcomers"].iloc[:-2].sum() > 5
    for place in week.unique():
        if place > places[0]:  # no whole week
            continue
        row, newcomers = table.iloc[-3 - place], week.index[week == place]
        rest, days = 0.0, 20 - 7 * (place + 0.5)
        if days > 0:
            rest = model.forecast(newcomers, days=[days])[f"price_{days:g}d"].sum()
        ages = bought["when"] - bought["who"].map(first)
        own = bought[bought["who"].isin(newcomers) & (ages <= pd.Timedelta(days=20))]
        assert row["price_20d"] == pytest.approx(own["price"].sum() + rest, rel=1e-3)
        assert row["price_20d"] - row["price"] == pytest.approx(rest, rel=1e-3, abs=1e-6)


def test_newcomers_are_worth_what_the_last_were_and_no_future_is_known(fitted, log):
    model, then = fitted[0], log.groupby("who")["when"].min().max()
    table = model.cohorts(days=50, as_of=then)
    pd.testing.assert_frame_equal(model.at(then).cohorts(days=50), table)
    last, to_come = table.iloc[-8:-4].sum(), table.iloc[-4:]
    for name in ("visits_50d", "price_50d"):
        np.testing.assert_allclose(to_come[name] / to_come["newcomers"], last[name] / last["newcomers"])
    less = model.cohorts(days=50, as_of=then, discount_rate=0.5)
    assert (less["price_50d"] < table["price_50d"]).iloc[-4:].all()
    early = log["when"].min() + pd.Timedelta(days=20)
    with pytest.raises(ValueError, match="The log has 2 whole weeks until then, expected 4 or more"):
        model.cohorts(as_of=early)


def test_7_and_its_text_are_one_customer(fitted, log):
    model, own = fitted[0], log[log["who"] == "c07"]
    ids = [(7, "7", 7.0)[index % 3] for index in range(len(own))]
    mixed = CustomerModel(model.model, model.feature_extractor, own.assign(who=pd.Series(ids, own.index, object)))
    assert mixed.customers == ["7"]
    assert mixed.as_of == own["when"].max() < model.as_of
    np.testing.assert_allclose(mixed.embed([7.0], as_of=model.as_of), model.embed(["c07"]), rtol=1e-5)
    lists = [mixed.recommend([7], tasks=["item"], exclude={"item": ["item 03"]} | who) for who in ({}, {"who": [7.0]})]
    pd.testing.assert_frame_equal(*lists)


def test_events_that_the_model_has_are_refused_and_new_ones_count_once(fitted, log):
    model = fitted[0]
    days = [log.tail(12).assign(when=log["when"].max() + pd.Timedelta(days=day), basket=None) for day in (1, 2)]
    again = "new events are a part of the log already"
    first = model.refresh(days[0])
    both = first.refresh(days[1])
    assert both.model.config.counted["events"] == model.model.config.counted["events"] + len(pd.concat(days))
    for known, events, number in (
        (model, log, len(log)),
        (first, days[0], 12),
        (both, days[0].sample(frac=1, random_state=0), 12),
        (both, pa.Table.from_pandas(pd.concat([log, *days])), len(log) + 24),
        (first, pd.concat(days), 12),
    ):
        with pytest.raises(ValueError, match=f"^{number:,} of {len(events):,} {again}, and would count twice: leave"):
            known.refresh(events)


def test_a_saved_model_gives_the_same(fitted, log, tmp_path):
    model, folder = fitted
    model.save(tmp_path / "shop")
    for place in (tmp_path / "shop", folder / "run"):
        again = CustomerModel.load(place, log)
        pd.testing.assert_frame_equal(again.recommend(), model.recommend())
        pd.testing.assert_frame_equal(again.embed(), model.embed())
    assert isinstance(MCMForMultiTaskRecommendation.from_pretrained(tmp_path / "shop"), MCMForMultiTaskRecommendation)


def test_answers_of_a_log_in_a_time_zone_count_from_its_last_event(fitted, log, tmp_path):
    model = fitted[0]
    stored = model.feature_extractor.to_dict()
    stored |= {name: getattr(model.feature_extractor, name) for name in ("vocabularies", "bins")}
    extractor = type(model.feature_extractor)(**stored | {"time_zone": "Asia/Tokyo"})
    for events in (log, log.assign(when=log["when"].dt.tz_localize("Asia/Tokyo"))):
        again = CustomerModel(model.model, extractor, events)
        assert again.as_of == log["when"].max()
        pd.testing.assert_frame_equal(again.forecast(), model.forecast())


@pytest.mark.parametrize("weekday", [0, 3])
def test_the_same_instants_of_any_zone_are_the_same_log_and_days_are_local(weekday):
    """Mondays, or Thursdays, are busy in Tokyo, whose mornings are the evenings before in UTC."""
    effects = np.where((np.arange(120) + pd.Timestamp(START).weekday()) % 7 == weekday, 3.0, 1.0)
    local = make_shop(effects, customers=150).assign(time=lambda rows: rows["time"] - pd.Timedelta(hours=8))
    aware = local.assign(time=local["time"].dt.tz_localize("Asia/Tokyo"))
    frames = [local, aware, aware.assign(time=aware["time"].dt.tz_convert("UTC"))]
    frames.append(aware.assign(time=aware["time"].map(lambda time: time.tz_convert("America/Lima").isoformat())))
    found = []
    for frame in frames:
        schema = {"customer": "customer", "time": "time", "amount": "price", "time_zone": "Asia/Tokyo"}
        model = CustomerModel.fit(frame, schema, learn=False, disable_tqdm=True)
        effects = model.model.base_model.forecaster.calendar.find_effects(119, {})
        assert int(effects.weights[:7].argmax()) == weekday and effects.weights[weekday] > 0.6
        found.append((model.as_of, model.forecast(days=[1, 30]), model.recommend(k=2), model.embed()))
    for as_of, *tables in found[1:]:
        assert as_of == found[0][0]
        for told, wanted in zip(tables, found[0][1:], strict=True):
            pd.testing.assert_frame_equal(told, wanted)


@pytest.mark.parametrize("question", [NEXT_VISIT, WITHIN])
def test_each_question_is_answered_by_its_own_outputs_of_the_network(fitted, question):
    """Whoever changes those of one question changes its answers, and no other."""
    model = CustomerModel(copy.deepcopy(fitted[0].model), fitted[0].feature_extractor, fitted[0]._events)
    ask = {NEXT_VISIT: partial(model.recommend, k=30), WITHIN: partial(model.recommend, k=30, horizon_days=30)}
    before = {each: asked() for each, asked in ask.items()}
    assert not before[WITHIN]["label"].equals(before[NEXT_VISIT]["label"])
    with torch.no_grad():
        for network in (model.model.scorer.of_counts, model.model.scorer.of_readout):
            if network is not None:
                network.last.weight[question] *= -1
                network.linear.weight[question] *= -1
    after = {each: asked() for each, asked in ask.items()}
    other = {NEXT_VISIT: WITHIN, WITHIN: NEXT_VISIT}[question]
    pd.testing.assert_frame_equal(after[other], before[other])
    assert not after[question]["label"].equals(before[question]["label"])


def test_days_to_the_next_visit_are_those_of_any_horizon(fitted):
    model = fitted[0]
    found = [model.forecast(days=days)["days_to_next_visit"] for days in (None, [7], [30, 400], [200])]
    for each in found[1:]:
        pd.testing.assert_series_equal(each, found[0], rtol=1e-4)


def test_an_id_that_stands_twice_has_one_row_and_a_warning(fitted, monkeypatch):
    model, said = fitted[0], []
    monkeypatch.setattr(logging.get_logger("modeling_mcm.customer_model"), "warning", said.append)
    once = model.forecast(["c07", "c03"])
    assert not said
    pd.testing.assert_frame_equal(model.forecast(["c07", "c03", "c07", "c03"]), once)
    assert said == ["`customers` names 2 ids again: each customer has one row."]
    assert len(model.table(customers=["c07", "c07"], since_days=7)) == 1


def test_a_discount_rate_as_text_is_a_number(fitted):
    model = fitted[0]
    for ask in (model.forecast, model.cohorts):
        pd.testing.assert_frame_equal(ask(discount_rate=".1"), ask(discount_rate=0.1))


def test_a_wrong_amount_is_named_and_an_infinite_one_refused(log, monkeypatch):
    said = []
    monkeypatch.setattr(logging.get_logger("modeling_mcm.training.forecaster.describe"), "warning_once", said.append)
    wrong, place = log.copy(), log["price"].first_valid_index()
    wrong.loc[place, "price"] = 1e9
    models = [CustomerModel.fit(each, {"amount": "price"}, learn=False, disable_tqdm=True) for each in (log, wrong)]
    who, day = log.loc[place, "who"], log.loc[place, "when"].date()
    words = f"Customer '{who}' has 'price' 1e.09 on {day}, .* times what several others reach, and only once"
    assert said and all(re.match(words, each) for each in said)
    sums = [model.forecast(days=[30])["price_30d"] for model in models]
    np.testing.assert_allclose(sums[1], sums[0], rtol=0.05)
    for value in (np.inf, -np.inf):
        wrong.loc[place, "price"] = value
        with pytest.raises(ValueError, match="'price'.*inf.*expected a number"):
            CustomerModel.fit(wrong, {"amount": "price"}, learn=False, disable_tqdm=True)
        with pytest.raises(ValueError, match="'price'.*inf.*expected a number"):
            CustomerModel(models[0].model, models[0].feature_extractor, wrong)


def test_who_has_no_candidate_has_no_row(fitted):
    model = fitted[0]
    gone = pd.DataFrame({"who": "c07", "item": model.feature_extractor.vocabularies["item"]})
    assert set(model.recommend(["c07", "c03"], k=2, tasks=["item"], exclude=gone)["customer"]) == {"c03"}


def test_labels_are_explained_and_those_found_that_are_alike_or_go_together(fitted):
    model = fitted[0]
    explanation = model.explain("c07", "aisle 1")
    assert explanation.task == "aisle" and explanation.label == "aisle 1"
    table = model.similar("item 03", k=4)
    assert list(table) == ["label", "score"] and len(table) == 4 and "item 03" not in {*table["label"]}
    both = model.together(["item 03", "item 04"], "item", k=4)
    assert len(both) == 4 and not {"item 03", "item 04"} & {*both["label"]}


def test_two_conditions_and_what_changed(fitted, log):
    model = fitted[0]
    table = model.table(days=[30])
    chance, worth = table["visit_probability_30d"].quantile(0.7), table["price_30d"].quantile(0.3)
    both = model.table(f"visit_probability_30d < {chance} and price_30d > {worth}", days=[30])
    expected = table[(table["visit_probability_30d"] < chance) & (table["price_30d"] > worth)]
    pd.testing.assert_frame_equal(both, expected, rtol=1e-5)
    assert 0 < len(both) < len(table)
    changed, before = model.table(since_days=200, days=[30]), model.as_of - pd.Timedelta(days=200)
    old = model.at(before).forecast(days=[30])["visits_30d"].dropna()  # of a log that ended then
    told = (changed["visits_30d"] - changed["visits_30d_change"]).dropna()
    pd.testing.assert_series_equal(told, old.reindex(told.index), check_names=False, rtol=1e-4)
    assert len(told) == len(old)
    assert model.table(since_days=10**6, days=[30])["visits_30d_change"].isna().all()  # nobody was there


@pytest.fixture
def numbers():
    """A table of numbers by customer."""
    values = np.random.default_rng(0).normal(size=(40, 3))
    return pd.DataFrame(
        values, pd.Index([f"c{number}" for number in range(40)], name="customer"), ["a_30d", "b 1", "c"]
    )


CONDITIONS = ["a_30d > 0", "  a_30d < c and not `b 1` < .3", "0 < a_30d * 2 - c < 1 or c < -1", "a_30d == c"]
CONDITIONS += [
    "customer in ['c1', 'c2']",
    "customer == 'c1.to_csv(1)'",
    "-c > `b 1` & a_30d > 0",
    "`b 1` not in [1, 2]",
]


@pytest.mark.parametrize("where", CONDITIONS)
def test_conditions_are_those_of_pandas(numbers, where):
    pd.testing.assert_frame_equal(select_rows(numbers, where), numbers.query(where.strip()))


WRITING = ["a_30d.to_csv('FILE') == 1", "`b 1`.to_csv('FILE') == 1", "a_30d > 0 and c.to_csv('FILE')", "c.abs > 0"]
WRITING += ["c == '`' or a_30d.to_csv('FILE') or c == '`'", "@numbers.to_csv('FILE')", "[c.to_csv('FILE')] == 1", "@c"]
WRITING += ["a_30d\nc.to_csv('FILE')", "(lambda: c.to_csv('FILE'))()", "c = 1", "f'{c.to_csv(1)}' == 1", "c[0] > 1"]


@pytest.mark.parametrize("where", WRITING)
def test_conditions_that_could_do_anything_else_are_refused(numbers, where, tmp_path):
    before = numbers.copy()
    with pytest.raises(ValueError, match="which can't be read"):
        select_rows(numbers, where.replace("FILE", str(tmp_path / "file")))
    assert not [*tmp_path.iterdir()]
    pd.testing.assert_frame_equal(numbers, before)


def test_past_counts_and_wrong_conditions_are_told(bank, fitted):
    reasons = {*bank[2].reasons(bank[0].labels["customer"][0], k=10**6)["reason"]}
    assert "past_events_30d" in reasons and "events_30d" not in reasons
    with pytest.raises(ValueError, match="`where` is 'amout_30d > 1', which can't be read .*Columns: .*'price_30d'"):
        fitted[0].table("amout_30d > 1", days=[30])


def test_what_changed_is_told_without_a_warning_of_later_events(bank, caplog):
    table = bank[2].table(since_days=7, days=[30])
    assert table["visits_30d_change"].abs().sum() > 0 and "later than `as_of`" not in caplog.text


def test_labels_of_a_log_without_times_are_learned(log):
    model = CustomerModel.fit(log.drop(columns="when"), {"order": "rows"}, learn=False, disable_tqdm=True)
    labels = pd.DataFrame({"customer": model.customers, "even": [int(name[1:]) % 2 for name in model.customers]})
    tuned = model.finetune(labels)
    assert tuned.predict().shape == (len(labels), 2) and list(tuned.evaluate(labels).index) == ["MCM", "counts"]
    assert len(tuned.reasons(model.customers[0], k=3)) == 3


ASKED = {
    "unknown customer": (lambda model: model.embed(["nobody"]), "No customer 'nobody' among the events"),
    "a text": (lambda model: model.recommend("c07"), r"`customers` is 'c07', expected a list of ids: write \['c07'\]"),
    "a number": (lambda model: model.recommend(7), "`customers` is 7, expected a list"),
    "nobody": (lambda model: model.embed([]), "`customers` is empty"),
    "unknown label": (lambda model: model.explain("c07", "item 99"), "No task of .* has the label 'item 99'"),
    "no discount": (lambda model: model.forecast(discount_rate=-1), "`discount_rate` is -1; give a share"),
    "no number": (lambda model: model.forecast(discount_rate="much"), "`discount_rate`: found 'much' .*a number"),
    "NaN": (lambda model: model.cohorts(discount_rate=float("nan")), "`discount_rate` is nan; give a share"),
    "weeks of the past": (lambda model: model.cohorts(weeks=-1), "`weeks` is -1: give the number of weeks"),
    "the future": (lambda model: model.table(since_days=-5), "`since_days` is -5: give a number of days"),
    "no days": (lambda model: model.table(since_days=float("nan")), "`since_days` is nan: give a number of days"),
    "days as text": (lambda model: model.table(since_days="7"), "`since_days` is '7': give a number of days"),
    "days without list": (lambda model: model.forecast(days=30), r"`days` is 30; give a list .* days=\[30\]"),
    "uneven candidates": (
        lambda model: model.recommend(candidates={"item": ["item 03"], "aisle": ["aisle 0", "aisle 1"]}),
        "`candidates`: found columns of different lengths",
    ),
}


@pytest.mark.parametrize("ask, words", ASKED.values(), ids=ASKED)
def test_a_wrong_question_is_refused(fitted, ask, words):
    with pytest.raises(ValueError, match=words):
        ask(fitted[0])


def test_without_learning_the_log_is_counted_and_the_shipped_network_scores(fitted, log):
    model, counted = fitted[0].model, CustomerModel.fit(log, {"amount": "price"}, learn=False, disable_tqdm=True)
    assert counted.model.config.learned == SHIPPED != model.config.learned
    assert "of many other shops" in counted.model.describe()
    assert counted.model.config.counted == model.config.counted
    for one, other in zip(model.scorer.tables, counted.model.scorer.tables, strict=True):
        assert torch.equal(one.counts, other.counts)
    scores = counted.recommend(["c07"], k=3, tasks=["item"])
    assert scores["chance"].between(0, 1, inclusive="neither").all() and scores["chance"].is_monotonic_decreasing
    weights, shipped = counted.model.scorer.of_counts.state_dict(), load_file(SHIPPED_SCORER)
    assert torch.equal(weights["first.weight"], shipped["network.first.weight"])


def test_a_wrong_fit_is_refused(fitted, log):
    with pytest.raises(ValueError, match="--network shipped reads counts alone"):
        CustomerModel.fit(log, learn=False, encoder=True)
    with pytest.raises(ValueError, match=r"Unknown options \['epochs'\]"):
        CustomerModel.fit(log, epochs=3)
    with pytest.raises(FileExistsError, match="holds files already: give another folder, or read its model"):
        CustomerModel.fit(log, folder=fitted[1])


def test_a_file_is_no_folder_to_save_in(fitted, tmp_path):
    (tmp_path / "shop").touch()
    with pytest.raises(FileExistsError, match="shop is a file: give the name of a folder"):
        fitted[0].save(tmp_path / "shop")


def test_a_config_that_lost_its_kinds_is_refused(fitted, log, tmp_path):
    fitted[0].save(tmp_path / "shop")
    update_json(tmp_path / "shop" / "config.json", kind_feature=None)
    with pytest.raises(ValueError, match="has another `kind_feature`"):
        CustomerModel.load(tmp_path / "shop", log)


def test_events_of_another_log_are_refused(fitted, log):
    with pytest.raises(ValueError, match="The events have no column 'price'"):
        CustomerModel.load(fitted[1] / "run", log.drop(columns="price"))
    with pytest.raises(ValueError, match="The events: column 'who': null in 1 of"):
        CustomerModel.load(fitted[1] / "run", log.assign(who=log["who"].where(log.index > 0)))


STRANGE = {  # a frame, its reading, and what its forecasts sum
    "a bank's payments": (make_bank(30).payments, "a customer's day is a visit", "paid"),
    "a library's loans": (make_library(), "none: no column says what was paid", None),
    "a shop's purchases": (make_purchases(), "none, so there is nothing to recommend", "dollar_value"),
    "ids and dates": (make_purchases()[["customer", "date"]].set_axis(["id", "date"], axis=1), "nothing to rec", None),
}


@pytest.fixture(scope="module", params=STRANGE.values(), ids=STRANGE)
def strange(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("strange") / "run"
    frame, words, amount = request.param
    model = CustomerModel.fit(frame, folder=folder, disable_tqdm=True)
    return SimpleNamespace(model=model, frame=frame, words=words, amount=amount, folder=folder)


def test_a_strange_frame_is_read_in_one_call(strange):
    model, few = strange.model, strange.model.customers[:2]
    assert strange.words in str(model.reader) and len(model.reader.lines) == 5
    table = model.table(customers=few)
    quantities = ["visits", strange.amount] if strange.amount else ["visits"]
    assert {f"{name}_30d_{end}" for name in quantities for end in ("low80", "high80", "low95", "high95")} <= {*table}
    assert table["alive_probability"].between(0, 1).all() and model.embed(few).shape[0] == 2
    again = CustomerModel.load(strange.folder / "run", strange.frame)  # the frame as it was given
    pd.testing.assert_frame_equal(again.table(customers=few), table)
    if model.feature_extractor.schema.has_labels:
        assert len(model.recommend(few, k=1)) == 2 * len(model.reader.schema.tasks)
        table = model.evaluate()
        assert {"MCM", "most_popular"} <= {*table.index} and "all labels are ranked" in table.attrs["protocol"]
    else:
        for ask in (model.recommend, model.evaluate, lambda: model.similar("1"), lambda: model.explain(few[0])):
            with pytest.raises(ValueError, match="The log has no labels, such as items"):
                ask()


def test_the_page_shows_a_strange_frame(strange):
    model, folder = strange.model, strange.folder
    shown = Histories(model.model, model.feature_extractor, str(folder / "data"), str(folder / "events.parquet"))
    assert sorted(shown.ids) == sorted(model.customers) and shown.case(shown.ids[0]).visits


def test_files_are_one_log(tmp_path):
    frame, logs = make_library(), tmp_path / "log"
    first, second = frame[::2].assign(reader_no=frame["reader_no"].astype(str)), frame[1::2]
    logs.mkdir()
    first.to_csv(logs / "1.csv", index=False)
    second.to_csv(logs / "2.csv", index=False)
    model = CustomerModel.fit(logs, folder=tmp_path / "fitted", disable_tqdm=True)
    expected = model.forecast(sorted(model.customers), days=[30])
    mixed = pd.concat([first.astype({"reader_no": object}), second])  # ids that are text in one, numbers in the other
    arrow = SimpleNamespace(__arrow_c_stream__=pa.Table.from_pandas(frame).__arrow_c_stream__)  # as polars has it
    for events in (frame, [first, second], [logs / "1.csv", second], mixed, arrow):
        assert FrameReader.guess(frame).schema == model.reader.schema
        again = CustomerModel.load(tmp_path / "fitted" / "run", events)
        pd.testing.assert_frame_equal(again.forecast(sorted(again.customers), days=[30]), expected, rtol=1e-4)
    assert pa.table(expected).num_rows == 50


def test_a_customer_with_many_lines_a_visit_is_read_whole():
    """One who comes every third day for 20 lines: the latest 300 events are but a third of the visits. How many events
    the encoder reads changes nothing of what is counted, of forecasts, and of a head."""
    draw, rows = np.random.default_rng(0), []
    for customer in range(60):
        every, lines = (3, 20) if customer == 0 else (int(draw.integers(10, 40)), 3)
        for day in range(int(draw.integers(every)), 300, every):
            time = pd.Timestamp("2024-01-01") + pd.Timedelta(days=day, hours=int(draw.integers(8, 20)))
            items = draw.choice(60, lines, replace=False)
            rows += [{"who": f"c{customer:02}", "time": time, "item": f"item {item}", "paid": 1.0} for item in items]
    log = pd.DataFrame(rows)
    labels = pd.DataFrame({"who": log["who"].unique(), "time": log["time"].max(), "likes": np.arange(60) % 2})
    by_default, few = (CustomerModel.fit(log, given, learn=False) for given in ({}, {"max_events": 20}))
    found = by_default.forecast(["c00"], days=[90])
    assert found["visits_90d"].item() == pytest.approx(30, rel=0.1)
    assert (by_default.model.config.max_events, few.model.config.max_events) == (300, 20)
    torch.testing.assert_close(few.model.state_dict(), by_default.model.state_dict(), rtol=0, atol=0)
    for ask in (
        CustomerModel.recommend,
        CustomerModel.forecast,
        CustomerModel.embed,
        lambda model: model.similar("item 1"),
        lambda model: model.finetune(labels).predict(),
    ):
        pd.testing.assert_frame_equal(ask(few), ask(by_default))


@pytest.fixture(scope="module")
def bank():
    """A bank, its model, and the model that was fine-tuned to who leaves."""
    log = make_bank(250, seed=1)
    model = CustomerModel.fit(log.payments, disable_tqdm=True)
    return log, model, model.finetune(log.labels)


def test_who_leaves_is_learned_from_a_table(bank, tmp_path):
    log, model, tuned = bank
    found = tuned.evaluate(log.labels)
    area = found["auc"]["MCM"]
    assert area > found["auc"]["counts"] > 0.65
    wrong = log.labels.assign(leaves=1 - log.labels["leaves"])
    assert tuned.evaluate(wrong)["auc"].tolist() == pytest.approx((1 - found["auc"]).tolist())
    thirds = log.labels.assign(leaves=log.labels.index % 3)  # numbers, which are classes if that is asked for
    assert {*model.finetune(thirds, label_kind="classes").evaluate(thirds)} == {"auc", "accuracy"}
    chances = tuned.predict()
    assert list(chances) == ["predicted_0", "predicted_1"] and np.allclose(chances.sum(axis=1), 1)
    worth = tuned.table("predicted_1 > .2 and paid_90d > 50", since_days=7)
    assert 0 < len(worth) < len(chances) and "predicted_1_change" in worth
    day = log.payments.tail(20).assign(booked=f"{tuned.as_of + pd.Timedelta(days=1):%d.%m.%Y %H:%M:%S}")
    assert list(tuned.refresh(day).evaluate(log.labels).index) == ["MCM", "counts"]
    tuned.save(tmp_path / "churn")
    loaded = CustomerModel.load(tmp_path / "churn", log.payments)
    pd.testing.assert_frame_equal(loaded.predict(), chances)
    pd.testing.assert_frame_equal(loaded.evaluate(log.labels), found[:1])  # `save` leaves out the record
    label = model.recommend(k=1)["label"][0]
    for ask in (
        lambda model: model.recommend(k=3, horizon_days=30),
        lambda model: model.similar(label),
        lambda model: pd.DataFrame([vars(model.explain(model.customers[0], label))]),
    ):
        pd.testing.assert_frame_equal(ask(tuned), ask(model))
        with pytest.raises(ValueError, match="needs an MCMForMultiTaskRecommendation"):
            ask(loaded)


def test_reasons_are_the_terms_of_the_score(bank):
    tuned = bank[2]
    customer = tuned.customers[0]
    terms = tuned.reasons(customer, k=10**6)
    bias = tuned.model.prediction_head.state.bias.detach().numpy()
    chance = tuned.predict([customer])["predicted_1"].item()
    as_of = tuned.as_of + pd.Timedelta(seconds=1)
    total = tuned.reasons(customer, k=10**6, as_of=as_of)["effect"].sum() + bias[1] - bias[0]
    assert total == pytest.approx(np.log(chance / (1 - chance)), abs=1e-3)
    assert (terms["effect"].abs().diff().dropna() <= 1e-9).all() and "days_since_last" in {*terms["reason"]}
    assert any(reason.startswith("merchant: ") for reason in terms["reason"])


def test_further_columns_are_features(bank, tmp_path, caplog):
    log, model, tuned = bank
    random, size = np.random.default_rng(0), len(log.labels)
    leaves = log.labels["leaves"]
    age = pd.Series(40 + 10 * leaves + random.normal(0, 12, size)).where(random.random(size) < 0.9)
    kind = np.where(random.random(size) < 0.9, np.where(leaves == 1, "student", "worker"), "")
    table = log.labels.assign(kind=kind, age=age, vip=random.random(size) < 0.5)
    own = model.finetune(table, "leaves", tmp_path, validation_share=0)
    known = own.model.config.label_columns
    assert [*known["kind"]] == ["[missing]", "student", "worker"]
    assert known["age"][""] == pytest.approx(age.mean())
    assert own.evaluate(table, "leaves")["auc"]["MCM"] > tuned.evaluate(log.labels)["auc"]["MCM"] + 0.03
    chances = own.predict(table)
    again = CustomerModel.load(tmp_path, log.payments).predict(table.drop(columns=["leaves", "vip"]))
    assert again.index.names == ["as_of", "customer"] and not again.equals(chances)
    pd.testing.assert_frame_equal(CustomerModel.load(tmp_path, log.payments).predict(table), chances)
    with pytest.raises(ValueError, match="Column 'as_of' is null in 1 rows"):
        own.predict(table.assign(as_of=table["as_of"].where(table.index > table.index[0])))

    others = table.head(9).assign(age=99.0)  # of the same customers and times
    found = own.predict(pd.concat([table, others]))
    assert len(found) == len(table) + 9 and found.index.names == ["as_of", "customer"]
    for place, values in own.predict(others).iterrows():
        assert found.loc[[place]].to_numpy().tolist() == [chances.loc[place].tolist(), values.tolist()]

    name, held = own.customers[0], {"kind": "worker", "age": 20, "vip": False}
    ask = lambda **columns: own.predict([name], columns={name: columns})["predicted_1"].item()  # noqa: E731
    assert ask(**held) < ask() < ask(kind="student", age="61")
    assert (
        ask() == own.predict([name])["predicted_1"].item() != ask(age=known["age"][""])
    )  # a mean of missing ages, too
    with caplog.at_level("WARNING"):
        ask(kind="zinc")
    assert "column 'kind' has 'zinc', which is rare or unseen" in caplog.text
    assert ask(kind="zinc") == pytest.approx(ask(kind="pilot")) != pytest.approx(ask(kind=None))
    reasons = own.reasons(name, k=10**6, columns=held).set_index("reason")["effect"]
    assert reasons["kind: worker"] < 0 and reasons["age"] < 0 == reasons["vip: [missing]"]
    with pytest.raises(ValueError, match="`label_columns`: unknown 'knd'; did you mean 'kind'"):
        ask(knd="worker")
    with pytest.raises(ValueError, match="`label_columns`: unknown 'kind', 'age', 'vip'"):
        tuned.predict([name], columns={name: held})
    with pytest.raises(ValueError, match="column 'age': found 'old' .*, expected a number"):
        ask(age="old")
    with pytest.raises(ValueError, match="No customer '7' among the events"):
        own.predict([name], columns={7: held})


def test_features_of_a_pipeline_read_no_later_event(bank):
    log, model, _ = bank
    rows = log.labels[["customer", "as_of"]].iloc[:40]
    features = CustomerFeatures(model, days=[30])
    values = features.transform(rows)
    assert values.shape == (40, len(features.get_feature_names_out()))
    customer, as_of = rows.iloc[7]
    times = pd.to_datetime(log.payments["booked"], format="%d.%m.%Y %H:%M:%S")
    past = CustomerModel(model.model, model.feature_extractor, log.payments[times < as_of], model.reader)
    alone = CustomerFeatures(past, days=[30]).transform(pd.DataFrame({"customer": [customer], "as_of": [as_of]}))
    np.testing.assert_allclose(values[7], alone[0], rtol=1e-4, atol=1e-4)
    pipeline = make_pipeline(features, StandardScaler(), LogisticRegression(C=0.01)).set_output(transform="pandas")
    pipeline.fit(rows, log.labels["leaves"].iloc[:40])
    assert pipeline[:-1].get_feature_names_out().tolist() == features.get_feature_names_out().tolist()
    assert pipeline.predict_proba(rows).shape == (40, 2)
    assert len(features.transform(model.customers[:3])) == 3
    whole = rows.assign(as_of=rows["as_of"].astype("datetime64[s]").astype("int64"))  # seconds, as all else reads them
    np.testing.assert_array_equal(features.transform(whole), values)
    for as_of, words in (("04/03/2024", "'04/03/2024', which is no time"), (None, "'as_of' is null in 1 rows")):
        with pytest.raises(ValueError, match=words):
            features.transform(pd.DataFrame({"customer": [customer], "as_of": [as_of]}))


def test_scikit_learn_fits_what_finetune_fits(bank):
    log, model, _ = bank
    X, y = log.labels[["customer", "as_of"]].assign(age=range(len(log.labels))), log.labels["leaves"]
    options = {"validation_share": 0, "seed": 7}
    tuned = model.finetune(X.assign(leaves=y), "leaves", **options)
    expected = tuned.predict(X)["predicted_1"].loc[[*zip(X["as_of"], X["customer"], strict=True)]]
    words = y.map({0: "back", 1: "gone"})
    named = MCMClassifier(model, seed=7).fit(X, words)
    assert named.classes_.tolist() == ["back", "gone"]
    order = np.random.default_rng(0).integers(0, len(X), 2 * len(X))  # rows may come in any order, and twice
    np.testing.assert_allclose(named.predict_proba(X.iloc[order])[:, 1], expected.iloc[order], atol=1e-6)
    assert named.score(X, words) == ((expected > 0.5) == y.to_numpy()).mean() > y.eq(0).mean()
    known = MCMRegressor(model).fit(X, 2.5 * y)
    by_number = model.finetune(X.assign(label=2.5 * y), "label", validation_share=0)
    assert known.predict(model.customers[:3]) == pytest.approx(by_number.predict(model.customers[:3]).to_numpy()[:, 0])
    with pytest.raises(NotFittedError):
        MCMClassifier(model).predict(X)
    with pytest.raises(ValueError, match="already exists"):
        MCMClassifier(model).fit(X.rename(columns={"age": "label"}), y)


def test_scikit_learn_splits_and_searches(bank):
    log, model, _ = bank
    X, y = log.labels[["customer", "as_of"]], log.labels["leaves"]
    pipeline = make_pipeline("passthrough", MCMClassifier(model))
    search = GridSearchCV(pipeline, {"mcmclassifier__model": [model]}, scoring="roc_auc", cv=GroupKFold(2))
    assert search.fit(X, y, groups=X["customer"]).best_score_ > 0.7
    assert search.best_estimator_[-1].model is model  # and no copy of its events


# Those of scikit-learn's own that fit no table of numbers
CHECKS = [
    estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_mixin_order,
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_set_params,
    estimator_checks.check_valid_tag_types,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", [CustomerFeatures, MCMClassifier, MCMRegressor])
def test_estimators_pass_checks_of_scikit_learn(bank, kind, check):
    check(kind.__name__, kind(bank[1]))


LABELS = {
    "two labels": (lambda labels: labels.assign(age=30), r"columns \['leaves', 'age'\] .* name one as `label`"),
    "no customer": (lambda labels: labels.drop(columns="customer"), "no column 'customer'"),
    "equal in float32": (lambda labels: labels.assign(leaves=1e9 + labels["leaves"] / 100), "equal in float32"),
}


@pytest.mark.parametrize("change, words", LABELS.values(), ids=LABELS)
def test_a_wrong_table_of_labels_is_refused(bank, change, words):
    with pytest.raises(ValueError, match=words):
        bank[1].finetune(change(bank[0].labels))
