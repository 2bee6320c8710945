# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A table of campaigns through `fit`, `refresh`, `forecast` and the commands."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from in_process import call
from planted_shop import START, day, make_shop
from serving_client import make_client, make_service
from transformers import pipeline

from modeling_mcm import CustomerModel, LiveCustomer
from modeling_mcm.data import PreparedData, read_known
from modeling_mcm.page.histories import Histories
from modeling_mcm.refresh import refresh
from modeling_mcm.scoring import forecast_total

PAST, NEXT, CUT, DAYS = (40, 90, 140), 205, 200, 14
KNOWN = pd.DataFrame([{"from": day(each), "to": day(each + 9), "name": "campaign"} for each in PAST])
MORE = pd.DataFrame([{"from": day(NEXT), "to": day(NEXT + 9), "name": "campaign", "value": 1.0}])
KNOWN_LATER = read_known(MORE.assign(to=day(NEXT + 900)))


@pytest.fixture(scope="module")
def log():
    effects = np.ones(CUT + DAYS)
    for each in (*PAST, NEXT):
        effects[each : each + 10] = 2.5
    return make_shop(effects, customers=300)


@pytest.fixture(scope="module")
def shop(log, tmp_path_factory):
    """The folder of `fit`, which has `known`, and the model."""
    folder = tmp_path_factory.mktemp("shop") / "fit"
    past = log[log["time"] < START + pd.Timedelta(days=CUT)]
    schema = {"customer": "customer", "time": "time", "amount": "price"}
    return folder, CustomerModel.fit(past, schema, folder=folder, learn=False, known=KNOWN, disable_tqdm=True)


def test_a_campaign_to_come_is_expected_and_an_unknown_one_refused(shop, log):
    folder, model = shop
    end = pd.Timestamp(model.as_of)
    with pytest.raises(ValueError, match=r"'party'.*not learned.*\['campaign'\]"):
        model.forecast(days=[DAYS], known=MORE.assign(name="party"))
    known = pd.concat([MORE, MORE.assign(to=day(NEXT + 30), value=0.0, **{"from": day(NEXT + 10)})])
    quiet = known.assign(value=0.0)
    told, untold = (model.forecast(days=[DAYS], known=each) for each in (known, quiet))
    coming = log[(log["time"] > end) & (log["time"] <= end + pd.Timedelta(days=DAYS))]
    came = coming["customer"].isin(model.customers).sum()
    total = f"visits_{DAYS}d"
    assert untold[total].sum() < 0.7 * came < 0.9 * came < told[total].sum() < 1.1 * came
    assert (told[f"price_{DAYS}d"] > 1.2 * untold[f"price_{DAYS}d"]).all()
    pd.testing.assert_frame_equal(model.forecast(days=[DAYS]), untold)
    pd.testing.assert_frame_equal(model.table(days=[DAYS], known=known)[[*told]], told)
    again = CustomerModel.load(folder / "run", folder / "events.parquet").forecast(days=[DAYS], known=known)
    pd.testing.assert_frame_equal(again, told)
    found = forecast_total(model.model, PreparedData(folder / "data"), "visits", DAYS, known=read_known(known))
    assert found.expected == pytest.approx(told[total].sum(), rel=1e-4)


def test_questions_that_take_no_known_days_are_answered(shop, log, monkeypatch):
    folder, model = shop
    said: list[str] = []
    monkeypatch.setattr("modeling_mcm.forecaster_mcm.logger.warning_once", said.append)
    assert len(model.recommend(horizon_days=30)) == 2 * len(model.customers)
    assert (model.forecast(days=[90])["visits_90d"] > 0).all() and len(model.cohorts(days=60)) > 20
    assert len(model.watch(log[log["time"] >= START + pd.Timedelta(days=CUT)]))
    page = Histories(model.model, model.feature_extractor, str(folder / "data"), str(folder / "events.parquet"))
    assert page.wait().case(model.customers[0]).live.forecast(days=[90])["visits_90d"] > 0
    assert len({*said}) == 1 and f"'campaign' is known until {day(149)}: later days are forecast as" in said[0]


def as_rows(frame):
    return frame.to_dict("records")


@pytest.mark.parametrize("form", [pd.DataFrame, as_rows, read_known, pa.Table.from_pandas, dict])
def test_pipelines_and_live_customers_read_tables_of_days(shop, log, form):
    _, model = shop
    name, known = model.customers[0], MORE.assign(to=day(NEXT + 30))
    wanted = model.forecast([name], days=[DAYS], known=known)
    events = log[(log["customer"].astype(str) == name) & (log["time"] <= model.as_of)].drop(columns="customer")
    ask = pipeline("customer-forecast", model=model.model, feature_extractor=model.feature_extractor)
    time = {"as_of": str(model.as_of), "days": [DAYS], "known": form(known)}
    told = ask({"events": events}, **time)
    live = LiveCustomer(model.model, model.feature_extractor)
    live.add(events)
    for found in (told, live.forecast(**time)):
        assert found == pytest.approx(wanted.loc[name].to_dict(), rel=1e-4, abs=1e-5)
    for wrong, words in (
        (known.drop(columns="to"), "no column 'to'"),
        (known.assign(to="soon"), "`known`, row 1: found 'soon', expected a day such as"),
        (known.assign(value=np.inf), "row 1: found .*a number"),
        (known.assign(name=None), "row 1: found .*'None'.*a name and a number"),
        (known.assign(name="closed", value=2), "from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            ask({"events": events}, **time | {"known": wrong})


def test_the_service_knows_what_a_refresh_was_told(shop, log, tmp_path):
    _, model = shop
    refreshed = model.refresh(log[log["time"] >= START + pd.Timedelta(days=CUT)], MORE.assign(to=day(NEXT + 40)))
    name = refreshed.customers[0]
    events = log[log["customer"].astype(str) == name].assign(time=lambda rows: rows["time"].astype(str))
    events = json.loads(events.drop(columns="customer").to_json(orient="records"))
    body = [
        {"event_id": str(number), "customer_id": name, "event": event, "profile": {}}
        for number, event in enumerate(events)
    ]
    clock = {"clock": lambda: pd.Timestamp(refreshed.as_of, tz="UTC").to_pydatetime()}
    service = make_service(refreshed.model, refreshed.feature_extractor, tmp_path / "state.db", **clock)
    client = make_client(service)
    assert client.post("/events", json={"events": body}).status_code == 200
    asked = f"/customers/{name}/forecast?as_of={refreshed.as_of.isoformat()}"
    wanted = refreshed.forecast([name], days=[DAYS])[f"visits_{DAYS}d"].item()
    assert client.get(f"{asked}&days={DAYS}").json()["forecast"][f"visits_{DAYS}d"] == pytest.approx(wanted, rel=1e-4)
    wanted = refreshed.forecast([name], days=[60])["visits_60d"].item()
    assert client.get(f"{asked}&days=60").json()["forecast"]["visits_60d"] == pytest.approx(wanted, rel=1e-4)
    service.close()


def test_a_bare_forward_pass_says_that_it_knows_no_calendar(shop, log, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("modeling_mcm.modeling_mcm.logger.warning_once", said.append)
    _, model = shop
    rows = log[log["customer"].astype(str) == model.customers[0]]
    inputs = model.feature_extractor([{"events": rows[rows["time"] <= model.as_of]}])
    model.model(**inputs, as_of_days=torch.tensor([pd.Timestamp(model.as_of).timestamp() / 86400]), known=KNOWN_LATER)
    assert said == []
    model.model(**inputs)
    assert "without `as_of_days`" in said[0]


def test_commands_give_the_same(shop, tmp_path, capsys):
    folder, model = shop
    known = MORE.assign(to=day(NEXT + 30))
    known.to_csv(tmp_path / "known.csv", index=False)
    options = ["--model", folder / "run", "--data", folder / "data", "--forecast_days", DAYS]
    call("run_predict", *options, "--output_dir", tmp_path / "none")
    found = pd.read_parquet(tmp_path / "none").set_index("customer_id")[f"visits_{DAYS}d"]
    np.testing.assert_allclose(found, model.forecast(days=[DAYS])[f"visits_{DAYS}d"][found.index], rtol=1e-4)
    call(
        "run_predict",
        *options,
        "--known",
        tmp_path / "known.csv",
        "--output_dir",
        tmp_path / "out",
        "--total",
        "visits",
    )
    found = pd.read_parquet(tmp_path / "out").set_index("customer_id")[f"visits_{DAYS}d"]
    wanted = model.forecast(days=[DAYS], known=known)[f"visits_{DAYS}d"]
    np.testing.assert_allclose(found, wanted[found.index], rtol=1e-4)
    assert f"{wanted.sum():,.0f}; errors" in capsys.readouterr().out


def test_a_refreshed_model_knows_the_new_rows(shop, log, tmp_path):
    folder, model = shop
    new = log[log["time"] >= START + pd.Timedelta(days=CUT)]
    new.to_parquet(tmp_path / "new.parquet")
    known = MORE.assign(to=day(NEXT + 60))
    known.to_csv(tmp_path / "known.csv", index=False)
    refreshed = model.refresh(new, known)
    refresh(folder / "run", str(tmp_path / "new.parquet"), tmp_path / "fresh", known=tmp_path / "known.csv")
    rows = json.loads((tmp_path / "fresh" / "config.json").read_text())["known"]["campaign"]
    assert (
        rows
        == refreshed.model.config.known["campaign"]
        == read_known(pd.concat([KNOWN.assign(value=1), known]))["campaign"]
    )
    assert sum(refreshed.model.config.calendar) == sum(model.model.config.calendar) + DAYS
    assert (refreshed.forecast(days=[7])["visits_7d"] > 0).all()
