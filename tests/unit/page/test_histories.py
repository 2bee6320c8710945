# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The customers of the page: the model knows nothing from the cutoff on, and what really came is what the log says."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
from corner_shop import TEST, find_customer, make_profile
from serving_client import assert_same

from modeling_mcm import LiveCustomer, MCMFeatureExtractor
from modeling_mcm.data import NO_CUTOFFS
from modeling_mcm.data.dataset import FEATURE_EXTRACTOR_FOLDER
from modeling_mcm.page.histories import NEXT_DAYS, Histories

WHO = ["c05", "c07", "c21"]


@pytest.fixture
def page(tiny_model, extractor, tmp_path):
    """A function that gives the customers of a log and of the data set that was prepared from it."""

    def make(log, data, name="page", extractor=extractor):
        shutil.copytree(data, tmp_path / name)
        log.to_parquet(tmp_path / name / "log.parquet")
        make_profile(log).to_parquet(tmp_path / name / "profile.parquet")
        files = [str(tmp_path / name / f"{file}.parquet") for file in ("log", "profile")]
        return Histories(tiny_model(extended=True), extractor, str(tmp_path / name), *files).wait()

    return make


def test_the_model_knows_what_came_before_the_cutoff(page, event_log, prepared, extractor):
    histories, before = page(event_log, prepared), event_log[event_log["when"] < TEST]
    for who in WHO:
        live, customer = histories.case(who).live, find_customer(before, who)
        past = LiveCustomer(histories.model, extractor, customer["profile"])
        past.add(customer["events"])
        assert len(live.events) == (before["who"] == who).sum() < (event_log["who"] == who).sum()
        assert_same(live.scores(), past.scores())


@pytest.mark.parametrize("who", WHO)
def test_what_really_came_is_what_the_log_says(page, event_log, prepared, extractor, who):
    own = event_log[(event_log["who"] == who) & (event_log["when"] >= TEST) & (event_log["action"] == "buy")]
    following = own[own["basket"] == own.sort_values("when")["basket"].iloc[0]]
    within = own[own["when"] < pd.Timestamp(TEST) + pd.Timedelta(days=NEXT_DAYS)]
    bought = page(event_log, prepared).case(who).bought["items"]
    known = set(extractor.vocabularies["items"])
    assert {label for label, when in bought.items() if when == "next visit"} == set(following["item"]) & known
    assert set(bought) == {*following["item"], *within["item"]} & known


def test_a_supposed_event_is_of_the_visit_that_the_schema_says(page, event_log, prepare_log):
    """Of the day of the cutoff, where a day is a visit; the visits before it stay as they were."""
    hours = pd.to_timedelta(event_log.index % 3, unit="h")
    raw = event_log.drop(columns="basket").assign(when=event_log["when"] + hours)
    with_days = raw.assign(visit_day=raw["when"].dt.strftime("%Y-%m-%d"))
    data = prepare_log(with_days, visit="visit_day")
    extractor = MCMFeatureExtractor.from_pretrained(data / FEATURE_EXTRACTOR_FOLDER)
    for name, log in (("raw", raw), ("days", with_days)):
        histories = page(log, data, name, extractor)
        for who in WHO:
            before, after = histories.case(who).live.row, histories.suppose_event(who, "items", "item 05").row
            visits = before["visits"].tolist()  # each ends with an event of its own
            assert after["visits"].tolist() == [*visits, visits[-1] + 1, visits[-1] + 1]
            assert after["times"][-1] == histories.as_of


def test_a_log_that_lacks_customers_of_the_data_is_refused(page, event_log, prepared):
    with pytest.raises(ValueError, match="lacks 1 of the .* the first 'c05': give the log that was prepared"):
        page(event_log[event_log["who"] != "c05"], prepared)


def test_only_visits_with_a_target_count(page, event_log, prepared):
    """A letter from the shop is no visit: not in the timeline, nor in the days since the last one."""
    histories = page(event_log, prepared)
    for who in WHO:
        own = event_log[(event_log["who"] == who) & (event_log["action"] == "buy")]
        days = own.groupby("basket")["when"].min().sort_values()
        past = days[days < TEST]
        row = histories.scored.set_index("customer_id").loc[who]
        assert len(histories.case(who).visits) == len(days)
        assert row["days_since_visit"] == pytest.approx((pd.Timestamp(TEST) - past.iloc[-1]) / pd.Timedelta(days=1))
        assert row["days_between_visits"] == pytest.approx(past.dt.normalize().drop_duplicates().diff().dt.days.mean())


def test_a_log_without_times_or_without_dates_as_cutoffs_is_refused(page, event_log, prepared, prepare_log, extractor):
    for name, cutoffs in (("customers", "leave_one_out"), ("none", NO_CUTOFFS)):
        with pytest.raises(ValueError, match="has no test period: prepare it with `cutoffs`, two dates"):
            page(event_log, prepare_log(event_log, cutoffs=cutoffs), name)
    extractor.time = None
    with pytest.raises(ValueError, match="has no times, and the page draws them"):
        page(event_log, prepared, "other")


def test_labels_of_a_path_or_of_several_values_are_found(page, event_log, prepared, monkeypatch):
    histories = page(event_log, prepared)
    _, rows = histories._find_targets("items", "item 03")
    schema = histories.extractor.schema
    for change, written in (({"item": 0}, "b|{}"), ({"level": 1}, "{}|b")):
        with monkeypatch.context() as patch:
            patch.setattr(MCMFeatureExtractor, "schema", schema)  # elsewhere it is made at each reading
            patch.setitem(schema.specs, "items", replace(schema.specs["items"], separator="|", **change))
            histories.log["item"] = event_log["item"].map(written.format)
            assert len(rows) and histories._find_targets("items", "item 03")[1].tolist() == rows.tolist()


def test_a_customer_called_na_has_an_effect(tmp_path):
    table = pd.DataFrame({"customer": ["NA", "null", "007"], "effect": [1.5, 2.0, 3.0], "low": 0, "high": 9.5})
    table.assign(propensity=0.5, offer=[True, True, False]).to_csv(tmp_path / "fuel.csv", index=False)
    made = Histories._read_effects(SimpleNamespace(ids=["NA"]), str(tmp_path / "fuel.csv"))
    assert made["difference"].to_dict() == {"NA": 1.5, "null": 2.0} and {*made["label"]} == {"fuel"}
