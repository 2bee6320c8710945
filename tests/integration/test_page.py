# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: a walk through all of it, its numbers beside the model's, and no other machine asked."""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from choices import STATE
from fitted import fill_forecaster, fill_scorer
from folders import flipped_bits

from modeling_mcm import CustomerModel, LiveCustomer, MCMFeatureExtractor
from modeling_mcm.commands.app import AppOptions, show
from modeling_mcm.data.tables import write_safely
from modeling_mcm.page import app, views
from modeling_mcm.page.histories import EFFECT, Histories
from modeling_mcm.page.views import Filters, PageContent, percent

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60_000  # milliseconds, on a busy machine
WHO = "c07"
ALL = "document.querySelector('#number').innerText.trim() === '34 customers'"


@pytest.fixture(scope="module")
def files(raw, prepared, tmp_path_factory):
    """The data set, the log and the profiles."""
    data = shutil.copytree(prepared, tmp_path_factory.mktemp("page") / "data")
    return [str(path) for path in (data, raw / "events.parquet", raw / "profile.parquet")]


@pytest.fixture(scope="module")
def histories(tiny_model, stored_extractor, files):
    model = fill_forecaster(fill_scorer(tiny_model(extended=True, scorer=True, kind_feature="type", **STATE)))
    model.scorer.chance.copy_(torch.tensor([0.5, 0.9, -0.2]))
    return Histories(model, MCMFeatureExtractor.from_pretrained(str(stored_extractor)), *files).wait()


@pytest.fixture(scope="module")
def page(histories):
    return PageContent(histories)


@pytest.fixture
def live(histories):
    return histories.case(WHO).live


def test_profiles_are_found_whatever_type_their_ids_have(histories, tmp_path):
    pd.DataFrame({"who": [1.0, 3.0], "age": ["old", None]}).to_parquet(tmp_path / "profile.parquet")
    assert histories._read_profiles(str(tmp_path / "profile.parquet")) == {"1": {"age": "old"}, "3": {}}


@pytest.fixture
def launch():
    """A function that shows the page of some customers, and says where."""
    with contextlib.ExitStack() as stack:

        def run(histories):
            blocks = app.build_page(histories)
            stack.callback(blocks.close)
            return app.launch_page(blocks, server_name="127.0.0.1")[1]

        yield run


@pytest.fixture
def browse(launch, histories):
    """A function that opens the page in a browser that reaches this machine alone; gives it and who else was asked."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright not installed")
    with contextlib.ExitStack() as stack:
        play = stack.enter_context(sync_api.sync_playwright())
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        stack.callback(browser.close)

        def run(width=1280, scheme="light", query="", address=None, waits="#expectations input[type=radio]"):
            address = address or launch(histories)
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            context.set_default_timeout(PATIENCE)
            others = []

            def route(asked):
                if asked.request.url.startswith((address, "data:", "blob:")):
                    asked.continue_()
                else:
                    others.append(asked.request.url)
                    asked.abort()

            context.route("**/*", route)
            page = context.new_page()
            page.on("pageerror", lambda error: others.append(f"error: {error}"))
            page.goto(address + query)
            page.wait_for_selector(waits)
            page.wait_for_selector("#answer h2")
            return page, others

        yield run


def choose(page, field, value):
    entry = page.locator(f"#{field} input")
    entry.fill(value)
    entry.press("Enter")


def open_customer(page, name):
    assert page.locator("#customer input").input_value() == ""
    choose(page, "customer", name)


def radio(page, field, value):
    return page.locator(f"#{field} input[type=radio][value='{value}']")


def test_a_walk_through_the_page_with_the_keyboard_alone(browse, histories, page, live):
    answers = page
    page, others = browse()
    open_customer(page, WHO)
    page.wait_for_selector(f"#answer:has-text('Customer {WHO}')")
    assert f"customer={WHO}" in page.url
    expected = answers.list_expected(WHO)
    for task, choices in expected.items():
        assert page.locator(f"#next-{task} label").all_inner_texts() == [text for text, _ in choices]
    # with Tab from the first label of a task to the next one
    (_, first), (_, label), *_ = expected["items"]
    radio(page, "next-items", first).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_selector(f"#why h3:has-text('Why {label}?')")
    assert radio(page, "next-items", label).is_checked()
    page.wait_for_function("document.querySelector('#why').getBoundingClientRect().top < innerHeight / 2")
    found = live.explain("items", label, histories.cutoff)
    assert f"Bought {found.words}" in page.locator("#why").inner_text()
    shown, best = page.locator("#visits").inner_text(), found.visits[0]
    without = best.without * list_chances(answers)[label] / found.chance
    assert best.without >= found.chance or (best.time[:10] in shown and f"{without:.1%}" in shown)
    assert page.locator("#timeline canvas, #timeline svg").count() > 0
    # what if
    choose(page, "label", "item 05")
    for cell in answers.list_moves(WHO, "items", "item 05")[0]:
        page.wait_for_selector(f"#moves td:has-text('{cell}')")
    open_customer(page, "c08")
    page.wait_for_function("scrollY === 0")
    assert others == []


def wait_for_list(page, number, kind="customer"):
    page.wait_for_selector(f"#number:has-text('{number} {kind}{'s' * (number != 1)}')")


def test_the_list_finds_sorts_opens_and_exports_customers(browse, page, monkeypatch):
    monkeypatch.setattr(app, "LISTED", 5)
    answers = page
    page, others = browse(query="?customer=c21")
    page.wait_for_selector("#answer:has-text('Customer c21')")
    open_customer(page, "c2")  # the beginning of ten ids
    page.wait_for_selector("text=There is no customer 'c2'.")
    page.get_by_text("All customers").click()
    page.locator("#list [data-sort='days late']").click()
    page.wait_for_selector("#number:has-text('34 customers, the first 5 are shown; the CSV has all')")
    for falls in (True, False):
        first = answers.answer(Filters(column="days late", falls=falls)).table["customer"].iloc[0]
        page.wait_for_function(f"document.querySelector('#list td').innerText === '{first}'")
        page.locator("#list [data-sort='days late']").click()
    first = answers.answer(Filters(column="days late", falls=True)).table["customer"].iloc[0]
    page.wait_for_function(f"document.querySelector('#list td').innerText === '{first}'")
    choose(page, "words", "ITEM 05")
    found = answers.answer(Filters(words="item 05")).table["customer"].tolist()
    page.wait_for_selector(f"#number:has-text('{len(found)} customers')")
    with page.expect_download() as download:
        page.locator("#export").click()
    assert pd.read_csv(download.value.path())["customer"].tolist() == found
    assert others == []


@pytest.fixture
def slipping(histories, monkeypatch):
    """Some customers slip away: of so few none came less than their interval says, so its end is moved."""
    low = histories.scored["visits_30d_low80_30d_ago"] + 2
    monkeypatch.setattr(histories, "scored", histories.scored.assign(visits_30d_low80_30d_ago=low))


def test_each_answer_sorts_filters_opens_and_exports_in_the_browser(browse, page, slipping):
    """A heading, a limit, the file and the first row of every answer: none of them loses the question."""
    answers = page
    page, others = browse(query="?customer=c21")
    for question in answers.questions:
        if not page.locator("#monday").is_visible():
            page.get_by_text("All customers").click()
        page.locator("#words input").fill("")
        page.locator(f"#monday label:has-text('{question}')").click()
        whole = answers.answer(Filters(question))
        kind = whole.table.columns[0]
        wait_for_list(page, len(whole.table), kind)
        numbers = whole.table.select_dtypes("number").drop(columns=whole.column, errors="ignore")
        column = next(name for name in reversed(numbers.columns) if numbers[name].nunique() > 2)
        page.locator(f'#list [data-sort="{column}"]').click()
        ordered = answers.answer(Filters(question, column=column, falls=True)).table
        page.wait_for_function(f"document.querySelector('#list td').innerText === '{ordered.iloc[0, 0]}'")
        page.wait_for_function(f"document.querySelector('#column input').value === '{column}'")
        least = float(ordered[column].median())
        choose(page, "least", str(least))
        found = answers.answer(Filters(question, "", column, least, None, True)).table
        assert 0 < len(found) < len(whole.table)
        wait_for_list(page, len(found), kind)
        with page.expect_download() as download:
            page.locator("#export").click()
        assert pd.read_csv(download.value.path()).iloc[:, 0].tolist() == found.iloc[:, 0].tolist()
        page.locator("#list [data-open]").first.click()
        name = found.iloc[0, 0]
        if kind == "customer":
            page.wait_for_selector(f"#answer:has-text('Customer {name}')")
            page.wait_for_selector("#monday", state="hidden")
        elif kind == "group":
            wait_for_list(page, len(answers.answer(Filters(words=name)).table))
        else:
            by = f"mean {name.split()[0]} in 30 days"
            page.wait_for_function(f"document.querySelector('#column input').value === '{by}'")
    assert others == []


def test_each_browser_fills_for_itself(browse, launch, score_slowly):
    go_on = threading.Event()
    slow = score_slowly(lambda: go_on.wait(60))
    address = launch(slow)
    early, _ = browse(address=address)
    early.wait_for_selector("#number:has-text('(8 of 34 are scored so far)')")
    go_on.set()
    slow.wait()
    early.wait_for_function(ALL)
    late, _ = browse(address=address)
    late.wait_for_function(ALL)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_is_light_and_dark(browse, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python not installed")
    lights = []
    for scheme in ("light", "dark"):
        page, others = browse(width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        lights.append(sum(map(int, re.findall(r"\d+", ground)[:3])))
        page.wait_for_selector("#timeline :text('events of the visit')")
        found = axe.Axe().run(page).response["violations"]
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert [node["html"] + node["failureSummary"] for each in serious for node in each["nodes"]] == []
        assert others == []
    assert lights[0] > 500 > lights[1]


def list_chances(page):
    """The chances of a customer's likely labels as the list has them, which count how often such chances came true."""
    labels = page.histories.scored.set_index("customer_id")["items"][WHO]
    return {label: ask(page, words=label).loc[WHO, "chance, %"] / 100 for label in labels}


def test_numbers_of_the_page_are_those_of_the_model_and_of_the_list(histories, page, live):
    expected, scores, listed = page.list_expected(WHO), live.scores(histories.cutoff, k=6), list_chances(page)
    for task, choices in expected.items():
        told = listed if task == "items" else {}
        best = [(entry["label"], percent(told.get(entry["label"], entry["chance"]))) for entry in scores[task]]
        assert [(label, text.split(" · ")[1]) for text, label in choices] == best
    bought = histories.case(WHO).bought["items"]
    assert all(text.partition(" · ✓ ")[2] == bought.get(label, "") for text, label in expected["items"])
    times = {visit.time for visit in histories.case(WHO).visits}
    labels = [entry["label"] for entry in live.scores(histories.cutoff, ["items"])["items"]]
    explained = (live.explain("items", label, histories.cutoff) for label in labels)
    # a click, which is no visit, is what matters most
    found = next(each for each in explained if each.visits[0].time not in times)
    sentence, reasons, timeline = page.explain_label(WHO, "items", found.label)
    for_it = [visit for visit in found.visits if visit.without < found.chance][:5]
    factor = listed[found.label] / found.chance
    assert factor != pytest.approx(1, abs=0.01)
    change = f"{listed[found.label]:.1%} → "
    rows = re.findall("<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", reasons)
    assert for_it and [row[:2] for row in rows] == [
        (v.time[:10], change + f"{factor * v.without:.1%}") for v in for_it
    ]
    assert [row[2].startswith("click") for row in rows] == [visit.time not in times for visit in for_it]
    assert f"Without the events of {for_it[0].time[:10]}: {change}{factor * for_it[0].without:.1%}" in sentence
    hidden = timeline["visit"] == "hidden"
    assert ((timeline["time"] >= histories.cutoff) == hidden).all() and 0 < hidden.sum() < len(timeline)


def test_what_if_shows_what_moves(histories, page, live, monkeypatch):
    after = histories.suppose_event(WHO, "items", "item 05")
    old, new = (
        {entry["label"]: entry["chance"] for entry in each.scores(histories.cutoff, ["items"], 100)["items"]}
        for each in (live, after)
    )
    for name, chance in list_chances(page).items():
        old[name], new[name] = chance, new[name] * chance / old[name]
    *moves, forecast = page.list_moves(WHO, "items", "item 05")
    assert 0 < len(moves) <= 8
    for name, was, becomes, ratio in moves:
        assert (was, becomes) == (percent(old[name]), percent(new[name])) and abs(new[name] - old[name]) >= 0.0005
        assert ratio == f"× {new[name] / old[name]:.2g}"
    name = {words: name for name, words in page.names.items()}[forecast[0]]
    told = [each.forecast(histories.cutoff)[name] for each in (live, after)]
    assert forecast[3] == f"× {told[1] / told[0]:.2g}"
    monkeypatch.setattr(histories, "suppose_event", lambda *_: live)
    assert page.list_moves(WHO, "items", "item 05") == []


def ask(page, *filters, **others):
    """The rows of an answer by their first column."""
    table = page.answer(Filters(*filters, **others)).table
    return table.set_index(table.columns[0])


def test_the_list_is_the_predictions_ordered_and_filtered(histories, page, live, monkeypatch):
    everyone = ask(page, column="customer")
    assert everyone.index.tolist() == sorted(histories.ids)
    row, told = everyone.loc[WHO], live.forecast(histories.cutoff)
    assert row["mean spend in 30 days"] == pytest.approx(told["a.b_30d"], abs=0.06)
    scores = live.scores(histories.cutoff, ["items"], 3)["items"]
    assert row["likely next"] == ", ".join(entry["label"] for entry in scores)
    assert row["days late"] == pytest.approx(row["days since visit"] - row["usual gap"], abs=0.11)
    late = ask(page, column="days late", least=1, falls=True)["days late"]
    assert 0 < len(late) == (everyone["days late"] >= 1).sum() and late.is_monotonic_decreasing
    ids = [str(number) for number in range(len(histories.ids), 0, -1)]
    monkeypatch.setattr(histories, "scored", histories.scored.assign(customer_id=ids))
    assert PageContent(histories).customers["customer"].tolist() == ids[::-1]  # numbers are ordered as numbers


def test_words_find_labels_and_groups(histories, page):
    likely = page._list_likely(len(histories.ids))
    best = ask(page, words="ITEM 05")["chance, %"]
    assert 0 < len(best) == (likely["label"] == "item 05").sum() and best.is_monotonic_decreasing
    several = ask(page, words="item")
    assert len(several) == len(histories.ids) and several["which"].nunique() > 3
    highest = likely.groupby(level=0)["chance, %"].max()
    assert sorted(several["chance, %"]) == pytest.approx(sorted(highest))
    young = ask(page, words="Age: YOUNG")
    assert 0 < len(young) < len(histories.ids)
    assert {histories.profiles[name]["age"] for name in young.index} == {"young"}
    assert page.find_label("items", "05") == "item 05"


@pytest.mark.parametrize("words", ["", "item 05", "age: old"])
@pytest.mark.parametrize("question", views.QUESTIONS)
def test_each_answer_sorts_by_each_column_and_is_limited(page, question, words):
    whole = page.answer(Filters(question, words))
    first = whole.table.columns[0]
    for column in whole.table:
        for falls in (False, True):
            found = page.answer(Filters(question, words, column, falls=falls)).table
            assert set(found[first]) == set(whole.table[first])
            values = found[column].dropna()
            assert values.is_monotonic_decreasing if falls else values.is_monotonic_increasing
        if pd.api.types.is_numeric_dtype(whole.table[column]) and len(whole.table):
            least = whole.table[column].median()
            found = page.answer(Filters(question, words, column, least, least + 1)).table
            assert set(found[first]) == set(whole.table.loc[whole.table[column].between(least, least + 1), first])
    few = page.answer(Filters(question, words, number=2)).table
    assert few[first].tolist() == whole.table[first].tolist()[:2]
    if words.startswith("age") and first == "customer":
        assert all(page.histories.profiles[name]["age"] == "old" for name in whole.table["customer"])


@pytest.fixture(scope="module")
def ago(histories, event_log):
    """A function that gives what is forecast of each customer some days before the cutoff, and the events since."""

    def run(days):
        start, end = pd.Timestamp(histories.cutoff) - pd.Timedelta(days=days), pd.Timestamp(histories.cutoff)
        told = {}
        then = histories._past.at(int(pd.Timestamp(start).timestamp()), shop_alone=True)  # with the counts of then
        for name, events in event_log[event_log["when"] < start].groupby("who"):
            customer = LiveCustomer(then.model, then.extractor, histories.profiles[name], name)
            customer.add(events)
            told[name] = customer.forecast(start)
        return pd.DataFrame(told).T, event_log[(event_log["when"] >= start) & (event_log["when"] < end)]

    return run


def test_who_slips_away_came_less_than_the_own_forecast_said(histories, page, ago, slipping):
    told, events = ago(30)
    came = events[events["action"] == "buy"].groupby("who")["basket"].nunique().reindex(told.index, fill_value=0)
    found = ask(page, views.LEAVES)
    assert 0 < len(found) < len(histories.ids)
    assert set(found.index) == set(told.index[came < told["visits_30d_low80"] + 2])
    assert found["came in 30 days"].to_dict() == came[found.index].to_dict()
    now = {name: histories.case(name).live.forecast(histories.cutoff)["a.b_30d"] for name in found.index}
    assert found["at risk in 30 days"].is_monotonic_decreasing
    lost = told["a.b_30d"][found.index] - pd.Series(now)
    assert found["at risk in 30 days"].to_dict() == pytest.approx(lost.to_dict(), abs=0.06)


def test_what_changed_is_beside_the_forecast_of_a_week_ago(histories, page, ago):
    told, _ = ago(7)
    found = ask(page, views.CHANGES)["mean spend in 30 days, change"]
    assert set(found.index) == set(told.index) and found.is_monotonic_increasing
    now = histories.case(WHO).live.forecast(histories.cutoff)["a.b_30d"]
    assert found[WHO] == pytest.approx(now - told.loc[WHO, "a.b_30d"], abs=0.006)


@pytest.mark.parametrize("words", ["", "age: young"])
def test_totals_are_beside_what_the_last_forecast_said_and_what_came(histories, page, ago, words):
    names = ask(page, words=words).index
    told, events = ago(90)
    told = told[told.index.isin(names)]
    total = ask(page, views.TOTALS, words).loc["spend in 90 days"]
    now = sum(histories.case(name).live.forecast(histories.cutoff)["a.b_90d"] for name in names)
    assert total["forecast"] == pytest.approx(now, rel=1e-3)
    assert total["the last one said"] == pytest.approx(told["a.b_90d"].sum(), rel=1e-3)
    came = events.loc[events["who"].isin(told.index), "price"].sum()
    assert total["came"] == pytest.approx(came, abs=0.06)
    assert total["error, %"] == pytest.approx(100 * (told["a.b_90d"].sum() / came - 1), abs=0.1)
    forecasts = histories.model.model.customer_forecasts
    busy = dict(zip(forecasts.days, forecasts.find_busy(histories.as_of / 86400), strict=True))
    assert total["calendar, %"] == pytest.approx(100 * (busy[90] - 1), abs=0.051)
    groups = ask(page, views.GROUPS, words)
    if words:
        assert groups.loc["age: young", "customers"] == len(names) and "age: old" not in groups.index
        assert groups.loc["age: young", "spend in 90 days"] == pytest.approx(total["forecast"], abs=0.1)


def test_who_comes_are_as_many_as_are_expected(page):
    everyone, comes = ask(page), ask(page, views.COMES)["comes in 7 days, %"]
    assert 0 < len(comes) == round(everyone["comes in 7 days, %"].sum() / 100) and comes.is_monotonic_decreasing


def test_labels_that_are_sent_or_bought_again_are_not_bought_anyway(histories, page, event_log):
    past, cutoff = event_log[event_log["when"] < histories.cutoff], pd.Timestamp(histories.cutoff)
    bought = past[past["action"] == "buy"]
    begins = bought.groupby("basket")["when"].transform("min")
    since = (cutoff - begins).groupby([bought["who"], bought["item"]]).min() / pd.Timedelta(days=1)
    days = pd.to_datetime(begins.dt.date).groupby([bought["who"], bought["item"]])
    gap = (days.max() - days.min()).dt.days / (days.nunique() - 1).replace(0, np.nan)
    again = ask(page, views.MISSES, " Item 05")
    likely = ask(page, words="item 05").index
    had = since.xs("item 05", level=1).loc[lambda values: values > 30]
    assert again["days since it"].to_dict() == pytest.approx(had[had.index.isin(likely)].to_dict(), abs=0.06)
    assert len(again) and (ask(page, views.MISSES)["days since it"] > 30).all()
    sent = ask(page, views.SENDS)
    assert len(sent) > 10 and sent["more than usual"].is_monotonic_decreasing
    for name, row in sent.iterrows():
        pair = name, row["send"]
        assert pair not in since.index or since[pair] > max(30, gap[pair])
    usual = page._list_likely(len(histories.ids)).groupby("label")["chance, %"].sum() / len(histories.ids)
    row = sent.iloc[0]
    assert row["more than usual"] == pytest.approx(row["chance, %"] - usual[row["send"]], abs=0.006)


def test_what_is_sent_is_what_makes_the_largest_difference(histories, files, tmp_path):
    path = [str(tmp_path / f"{name}.csv") for name in ("fuel", "bread")]
    customers = histories.ids[:4]
    effects = pd.DataFrame({"fuel": [1.0, 3, 2, 5], "bread": [2, 0.5, 4, 6]}, pd.Index(customers, name="customer"))
    for name, file in zip(effects, path, strict=True):
        own = pd.DataFrame({"effect": effects[name], "low": 0, "high": 9, "propensity": 0.5, "offer": True})
        own.loc[customers[3], "offer"] = name == "fuel"  # the budget ends there
        own.to_csv(file)
    sent = ask(PageContent(Histories(histories.model, histories.extractor, *files, uplift=path).wait()), views.SENDS)
    assert sent["difference"].to_dict() == dict(zip(customers, [2, 3, 4, 5], strict=True))
    assert sent["send"].tolist() == ["fuel", "bread", "fuel", "bread"] and sent["difference"].is_monotonic_decreasing
    effects.reset_index().assign(customer="nobody").to_csv(path[0])
    with pytest.raises(ValueError, match="no column 'effect' nor 'low' nor 'high' nor 'offer'"):
        Histories(histories.model, histories.extractor, *files, uplift=path)
    pd.read_csv(path[1]).assign(customer="nobody").to_csv(path[1], index=False)
    with pytest.raises(ValueError, match="has none of the page's customers: ask `mcm uplift` about the same log"):
        Histories(histories.model, histories.extractor, *files, uplift=path[1:])


@pytest.mark.parametrize(
    "question, words",
    [
        (lambda page: ask(page, words="item x"), "No items has 'item x': write a word of one, such as 'item"),
        (lambda page: page.find_label("items", "item"), "have 'item', such as 'item .*: write one"),
        (lambda page: ask(page, column="likely next", least=1), "limits for 'likely next', which holds no numbers"),
        (lambda page: views.read_number("viele", "At least"), "At least is 'viele': write a number, such as 12.5"),
        (lambda page: views.read_number("inf", "Budget"), "Budget is 'inf': write a number"),
    ],
)
def test_what_a_question_lacks_is_said(page, question, words):
    with pytest.raises(ValueError, match=words):
        question(page)


def test_a_log_without_labels_has_no_questions_about_them(browse, launch, event_log, tmp_path):
    log = event_log.loc[event_log["action"] == "buy", ["who", "when", "price"]]
    model = CustomerModel.fit(
        log, {"cutoffs": {"validation": "2017-10-01", "test": "2017-11-01"}}, folder=tmp_path / "shop", learn=False
    )
    files = [str(tmp_path / "shop" / name) for name in ("data", "events.parquet")]
    page, others = browse(
        address=launch(Histories(model.model, model.feature_extractor, *files).wait()), waits="#timeline"
    )
    shown = page.locator("#monday").inner_text()
    assert views.LEAVES in shown and views.SENDS not in shown and views.MISSES not in shown
    text = page.locator("body").inner_text().lower()
    assert "likely" not in text and "why event" not in text and "what if" not in text
    page.wait_for_selector("#timeline canvas, #timeline svg")
    assert others == []


def test_an_unknown_customer_of_the_address_is_said(histories):
    start = next(each.fn for each in app.build_page(histories).fns.values() if "start" in str(each.fn))
    request = SimpleNamespace(query_params={"customer": "abc"})
    with pytest.warns(UserWarning, match="There is no customer .*abc.*: the first one is shown"):
        assert start(request)[0] == sorted(histories.ids)[0]


def test_wide_tables_scroll_by_themselves_and_their_texts_are_no_code(histories):
    bad = "<img src=x onerror=alert(1)>'"
    table = views.write_table(["customer", bad], [[bad, 1234567.5], ["c2", float("nan")]], opens=True)
    assert "<img" not in table and table.count("'&lt;img src=x onerror=alert(1)&gt;&#x27;'") == 2
    assert (
        "<td class=number>1,234,567.5</td>" in table
        and "<td class=number></td>" in table
        and table.startswith("<div class='wide'")
    )
    assert ".wide { overflow: auto" in app.CSS
    kinds = {block.get_block_name(): block for block in app.build_page(histories).blocks.values()}
    assert "dataframe" not in kinds  # whose tables made a page of 390 pixels wider


def test_cells_of_an_export_are_no_formulas(histories, page, tmp_path):
    table = pd.DataFrame({"customer": ["=1+1", "+a", "-5", "@x", "7"], "=days": [-1.5, 2, 3, 4, 5]})
    write_safely(table, tmp_path / "table.csv")
    safe = pd.read_csv(tmp_path / "table.csv", dtype={"customer": str})
    assert safe["customer"].tolist() == ["'=1+1", "'+a", "'-5", "'@x", "7"]
    assert safe["'=days"].tolist() == table["=days"].tolist()


def test_what_uplift_wrote_of_a_customer_whose_id_looks_like_a_formula_is_found(tmp_path):
    table = pd.DataFrame({"customer": ["=1+1", "'b"], **dict.fromkeys((*EFFECT, "offer"), 1)}).astype({"offer": bool})
    write_safely(table, tmp_path / "coupon.csv")
    found = Histories._read_effects(SimpleNamespace(ids=table["customer"]), tmp_path / "coupon.csv")
    assert found.index.tolist() == ["=1+1", "'b"]


def test_a_file_is_written_when_it_is_asked_for_and_by_nobody_else(page, monkeypatch):
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *_, **__: pytest.fail("written"))
    with app.gr.Blocks():
        components = app.PageComponents(page.histories)
        shown = components.show_list(views.EVERYONE, "item 05", "", "", "", True, "", (views.EVERYONE, "", 0))[7]
    monkeypatch.undo()
    path = components.write_file(views.EVERYONE, "item 05", "", "", "", True, "", shown)
    assert pd.read_csv(path)["customer"].tolist() == page.answer(Filters(words="item 05")).table["customer"].tolist()
    assert not any(folder.stat().st_mode & 0o077 for folder in (path.parent, components.folder))


@pytest.fixture
def score_slowly(histories, files, prepared, tmp_path, monkeypatch):
    """A function that gives the customers anew; the first are scored, and something happens before others are."""

    def start(happens):
        score = Histories._score

        def wait_after_the_first(self, scorer, tuned, part, *others):
            assert part.start == 0 or happens()
            return score(self, scorer, tuned, part, *others)

        monkeypatch.setattr("modeling_mcm.page.histories.BATCH", 8)
        monkeypatch.setattr(Histories, "_score", wait_after_the_first)
        data = shutil.copytree(prepared, tmp_path / "data")
        return Histories(histories.model, histories.extractor, str(data), *files[1:])

    return start


def test_the_list_appears_with_the_first_customers_and_fills(page, score_slowly):
    go_on = threading.Event()
    again = score_slowly(lambda: go_on.wait(60))
    filling = PageContent(again)
    assert len(filling.customers) == 8 and len(again.ids) == 34
    last = again.ids[-1]
    assert again.case(last).live.events  # one may be opened before
    go_on.set()
    again.wait()
    pd.testing.assert_frame_equal(filling.customers, page.customers, atol=0.11)  # batches round otherwise


def test_why_the_scoring_stopped_is_said_and_logged(score_slowly, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("modeling_mcm"), "propagate", True)
    stopped = score_slowly(lambda: float("no <room> left"))
    blocks = app.build_page(stopped)
    stopped.wait()
    assert "no <room> left" in caplog.text and "Traceback" in caplog.text
    fill = next(each.fn for each in blocks.fns.values() if "fill" in str(each.fn))
    *_, number, _, timer = fill(views.EVERYONE, "", "", "", "", False, "", (views.EVERYONE, "", 8))
    assert number.endswith(
        "(the scoring stopped after 8 of 34: ValueError: could not convert string to "
        "float: &#x27;no &lt;room&gt; left&#x27;)"
    )
    assert not timer.active


def test_the_sentence_on_top_says_what_the_model_forecasts(histories, page, live, monkeypatch):
    sentence, told = page.write_answer(WHO).partition("</h2>")[0], live.forecast(histories.cutoff)
    assert percent(told["visit_probability_7d"]) in sentence
    assert f"spends {told['a.b_30d']:,.0f} on average in 30 days" in sentence
    rows = {row[0]: row[1:] for row in page.list_forecasts(WHO)}
    assert rows["comes"] == [percent(told[f"visit_probability_{days}d"]) for days in (7, 30, 90)]
    assert rows["spend, mean"] == [f"{told[f'a.b_{days}d']:,.1f}" for days in (7, 30, 90)]
    best = live.scores(histories.cutoff, ["items"], 3)["items"]
    assert sentence.endswith(f"; likely next: {', '.join(entry['label'] for entry in best)}.")
    monkeypatch.setattr(histories.extractor, "currency", "EUR")
    assert f"spends {told['a.b_30d']:,.0f} EUR on average" in page.write_answer(WHO)
    assert "spend (EUR), mean" in [row[0] for row in page.list_forecasts(WHO)]


def test_own_tokens_and_unknown_values_appear_nowhere(histories, page, live):
    types = live.scores(histories.cutoff, ["type"], 100)["type"]
    assert {entry["label"] for entry in types} == {"buy", "click"}
    shown = [page.list_expected(WHO), page.explain_label(WHO, "type", "buy"), page.write_answer(WHO)]
    shown.append(histories.list_labels("type"))
    assert not any(own in str(shown) for own in ("history_start", "end_of_visit", "[unknown]", "[missing]"))


def test_the_command_shows_the_page_of_a_csv_log_whose_exports_are_private_and_gone_at_the_end(
    save, prepared, event_log, tmp_path
):
    event_log.to_csv(tmp_path / "log.csv", index=False)
    temporary, data = tmp_path / "temporary", shutil.copytree(prepared, tmp_path / "data")
    temporary.mkdir()
    words = ["--model", save(extended=True), "--data", data, "--events", tmp_path / "log.csv"]
    command = [sys.executable, "-m", "modeling_mcm.commands.main", "app", *words]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert "The page is at http://127.0.0.1:" in process.stdout.readline()
        (folder,) = temporary.glob("mcm-page-*")
        assert not folder.stat().st_mode & 0o077
        process.terminate()
    assert not folder.exists()


def test_all_customers_are_scored_on_all_cores(save, files, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail(f"{number} threads"))
    monkeypatch.setattr("modeling_mcm.commands.app.Histories", lambda *_: None)
    monkeypatch.setattr("modeling_mcm.commands.app.build_page", lambda *_: SimpleNamespace(block_thread=lambda: None))
    monkeypatch.setattr("modeling_mcm.commands.app.launch_page", lambda *_, **__: (None, "", None))
    show(AppOptions(model=save(extended=True), data=files[0], events=files[1]))


def test_scores_of_an_earlier_start_are_those_of_the_model(histories, live, files, monkeypatch):
    spend = histories.scored.set_index("customer_id")["a.b_30d"][WHO]
    assert spend == pytest.approx(live.forecast(histories.cutoff)["a.b_30d"], abs=1e-4)
    monkeypatch.setattr("modeling_mcm.page.histories.BatchScorer", None)  # nothing is scored again
    again = Histories(histories.model, histories.extractor, *files)
    pd.testing.assert_frame_equal(again.scored, histories.scored)
    for _ in flipped_bits(Path(files[0], "page.parquet"), 8):
        with pytest.raises(TypeError):  # it would be scored again
            Histories(histories.model, histories.extractor, *files)


def test_values_of_a_log_cannot_put_code_into_the_page(histories, page, live, monkeypatch):
    bad, label = "<img src=x onerror=alert(1)>", page.list_expected(WHO)["items"][0][1]
    found = dataclasses.replace(live.explain("items", label, histories.cutoff), words=bad)
    monkeypatch.setattr(live, "explain", lambda *_: found)
    monkeypatch.setattr(live, "scores", lambda *_: {"items": [{"label": bad}]})
    monkeypatch.setitem(live.profile, "age", bad)
    assert "<img" not in page.write_answer(WHO) and "<img" not in page.explain_label(WHO, "items", bad)[0]
