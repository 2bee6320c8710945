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

import pandas as pd
import pytest
import torch
from choices import STATE
from fitted import fill_forecaster, fill_scorer
from folders import flipped_bits

from modeling_mcm import MCMFeatureExtractor
from modeling_mcm.commands.app import AppOptions, show
from modeling_mcm.page import app, views
from modeling_mcm.page.histories import Histories
from modeling_mcm.page.views import PageContent, percent

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60_000  # milliseconds, on a busy machine
WHO = "c07"


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
def address(histories):
    """Where the page is shown."""
    blocks = app.build_page(histories)
    _, url, _ = app.launch_page(blocks, server_name="127.0.0.1")
    yield url
    blocks.close()


@pytest.fixture
def browse(address):
    """A function that opens the page in a browser that reaches this machine alone; gives it and who else was asked."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright not installed")
    with contextlib.ExitStack() as stack:
        play = stack.enter_context(sync_api.sync_playwright())
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        stack.callback(browser.close)

        def run(width=1280, scheme="light", query=""):
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
            page.wait_for_selector("#why h3")
            page.wait_for_selector("#expectations input[type=radio]")
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
    assert best.without >= found.chance or (best.time[:10] in shown and f"{best.without:.1%}" in shown)
    assert page.locator("#timeline canvas, #timeline svg").count() > 0
    # what if
    choose(page, "label", "item 05")
    for cell in answers.list_moves(WHO, "items", "item 05")[0]:
        page.wait_for_selector(f"#moves td:has-text('{cell}')")
    open_customer(page, "c08")
    page.wait_for_function("scrollY === 0")
    assert others == []


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
        first = answers.find("", "days late", None, None, falls)["customer"].iloc[0]
        page.wait_for_function(f"document.querySelector('#list td').innerText === '{first}'")
        page.locator("#list [data-sort='days late']").click()
    choose(page, "likely", "ITEM 05")
    found = answers.find("item 05", "days late", None, None, True)["customer"].tolist()
    page.wait_for_selector(f"#number:has-text('{len(found)} customers')")
    with page.expect_download() as download:
        page.locator("#export").click()
    assert pd.read_csv(download.value.path())["customer"].tolist() == found
    page.get_by_role("tab", name="Map").click()
    page.wait_for_selector("#map .mark-symbol path")
    page.locator("#map .mark-symbol.role-mark path").first.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element:has-text('customer')")
    page.get_by_role("tab", name="Table").click()
    page.locator("#monday button").first.click()
    page.wait_for_selector(f"#number:has-text('{app.QUESTIONS[0]}')")
    page.locator("#list [data-open]").first.click()
    first = answers.answer_question(app.QUESTIONS[0])["customer"].iloc[0]
    page.wait_for_selector(f"#answer:has-text('Customer {first}')")
    assert others == []


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


def test_numbers_of_the_page_are_those_of_the_model(histories, page, live):
    expected, scores = page.list_expected(WHO), live.scores(histories.cutoff, k=6)
    for task, choices in expected.items():
        best = [(entry["label"], percent(entry["chance"])) for entry in scores[task]]
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
    change = f"{found.chance:.1%} → "
    rows = re.findall("<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", reasons)
    assert for_it and [row[:2] for row in rows] == [(v.time[:10], change + f"{v.without:.1%}") for v in for_it]
    assert [row[2].startswith("click") for row in rows] == [visit.time not in times for visit in for_it]
    assert f"Without the events of {for_it[0].time[:10]}: {change}{for_it[0].without:.1%}" in sentence
    hidden = timeline["visit"] == "hidden"
    assert ((timeline["time"] >= histories.cutoff) == hidden).all() and 0 < hidden.sum() < len(timeline)


def test_what_if_shows_what_moves(histories, page, live, monkeypatch):
    after = histories.suppose_event(WHO, "items", "item 05")
    old, new = (
        {entry["label"]: entry["chance"] for entry in each.scores(histories.cutoff, ["items"], 100)["items"]}
        for each in (live, after)
    )
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


def test_the_list_is_the_predictions_ordered_and_filtered(histories, page, live, monkeypatch):
    everyone = page.find("", "customer", None, None, False)
    assert everyone["customer"].tolist() == sorted(histories.ids)
    row, told = everyone.set_index("customer").loc[WHO], live.forecast(histories.cutoff)
    assert row["mean spend in 30 days"] == pytest.approx(told["a.b_30d"], abs=0.06)
    scores = live.scores(histories.cutoff, ["items"], 3)["items"]
    best = scores[0]["label"]
    assert row["likely next"] == ", ".join(entry["label"] for entry in scores)
    assert row["days late"] == pytest.approx(row["days since visit"] - row["usual gap"], abs=0.11)
    late = page.find("", "days late", 1, None, True)["days late"]
    assert 0 < len(late) == (everyone["days late"] >= 1).sum() and late.is_monotonic_decreasing
    likely = page.find(best, "customer", None, None, True).set_index("customer")[f"{best}, %"]
    assert likely.is_monotonic_decreasing and likely[WHO] == pytest.approx(100 * scores[0]["chance"], abs=0.006)
    placed, column = page.place_on_map(page.customers, "customer")
    most = placed.groupby("third")["value"].max()
    assert column == "mean spend in 30 days" and most.loc[[*views.THIRDS]].is_monotonic_increasing
    assert len(placed) == len(histories.ids) and page.place_on_map(page.customers, "days late")[1] == "days late"
    ids = [str(number) for number in range(len(histories.ids), 0, -1)]
    monkeypatch.setattr(histories, "scored", histories.scored.assign(customer_id=ids))
    assert PageContent(histories).customers["customer"].tolist() == ids[::-1]  # numbers are ordered as numbers


def test_mondays_questions_are_views_on_the_list(histories, page, event_log):
    everyone = page.customers.set_index("customer")
    past, cutoff = event_log[event_log["when"] < histories.cutoff], pd.Timestamp(histories.cutoff)
    comes = page.answer_question(views.COMES)["comes in 7 days, %"]
    assert 0 < len(comes) == round(everyone["comes in 7 days, %"].sum() / 100) and comes.is_monotonic_decreasing
    leaves = page.answer_question(views.LEAVES).set_index("customer")
    assert 0 < len(leaves) == (everyone["days late"] > 0).sum() and leaves["at risk"].is_monotonic_decreasing
    risk = past.groupby("who")["price"].sum() * (1 - everyone["alive, %"] / 100)
    assert leaves["at risk"].to_dict() == pytest.approx(risk[leaves.index].to_dict(), abs=0.1)
    had = past[(past["item"] == "item 05") & (past["action"] == "buy")].groupby("who")["when"].max()
    days = ((cutoff - had) / pd.Timedelta(days=1)).loc[lambda days: days > 30]
    misses = page.answer_question(views.MISSES, " Item 05").set_index("customer")["days since it"]
    likely = page.find("item 05", "customer", None, None, True)["customer"]
    assert misses.to_dict() == pytest.approx(days[days.index.isin(likely)].to_dict(), abs=0.06) and len(misses)
    groups, lives = page.answer_question(views.GROUPS), {name: histories.case(name).live for name in histories.ids}
    total = sum(live.forecast(histories.cutoff)["a.b_90d"] for live in lives.values())
    for column in ("age", "spend so far"):
        of_column = groups[groups["group"].str.startswith(f"{column}: ")]
        assert of_column["customers"].sum() == len(everyone)
        assert of_column["spend in 90 days"].sum() == pytest.approx(total, rel=1e-2)
    sent = page.answer_question(views.SENDS, budget=3)
    best = {name: live.scores(histories.cutoff, ["items"], 1)["items"][0] for name, live in lives.items()}
    assert sent["chance, %"].iloc[0] == pytest.approx(100 * max(each["chance"] for each in best.values()), abs=0.006)
    assert sent["send"].tolist() == [best[name]["label"] for name in sent["customer"]] and len(sent) == 3


@pytest.mark.parametrize(
    "ask, words",
    [
        (lambda page: page.answer_question(views.MISSES), "Say which one first"),
        (lambda page: page.answer_question(views.SENDS), "Say first how many can be sent"),
        (lambda page: page.find("item 0", "customer", None, None, True), "There is no items 'item 0': choose one of"),
        (lambda page: page.find("", "customer", 1, None, True), "There are limits for no column"),
        (lambda page: views.read_number("viele", "At least"), "At least is 'viele': write a number, such as 12.5"),
        (lambda page: views.read_number("inf", "Budget"), "Budget is 'inf': write a number"),
    ],
)
def test_what_a_question_lacks_is_said(page, ask, words):
    with pytest.raises(ValueError, match=words):
        ask(page)


def test_an_unknown_customer_of_the_address_is_said(histories):
    start = next(each.fn for each in app.build_page(histories).fns.values() if "start" in str(each.fn))
    request = SimpleNamespace(query_params={"customer": "abc"})
    with pytest.warns(UserWarning, match="There is no customer .*abc.*: the first one is shown"):
        assert start(request)[0] == sorted(histories.ids)[0]


def test_wide_tables_scroll_by_themselves_and_their_texts_are_no_code(histories):
    bad = "<img src=x onerror=alert(1)>'"
    table = views.write_table(["customer", bad], [[bad, 1234567.5], ["c2", float("nan")]], opens=True)
    assert "<img" not in table and table.count("'&lt;img src=x onerror=alert(1)&gt;&#x27;'") == 2
    assert "<td>1,234,567.5</td>" in table and "<td></td>" in table and table.startswith("<div class='wide'")
    assert ".wide { overflow: auto" in app.CSS
    kinds = {block.get_block_name(): block for block in app.build_page(histories).blocks.values()}
    assert "dataframe" not in kinds  # whose tables made a page of 390 pixels wider


def test_cells_of_an_export_are_no_formulas():
    table = pd.DataFrame({"customer": ["=1+1", "+a", "-5", "@x", "7"], "=days": [-1.5, 2, 3, 4, 5]})
    safe = views.make_safe(table)
    assert safe["customer"].tolist() == ["'=1+1", "'+a", "'-5", "'@x", "7"]
    assert safe["'=days"].tolist() == table["=days"].tolist()


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
    number, *_, timer = fill("", "customer", "", "", False).values()
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
    shown.append(page.list_labels("type"))
    assert not any(own in str(shown) for own in ("history_start", "end_of_visit", "[unknown]", "[missing]"))


def test_the_command_shows_the_page_of_a_csv_log_whose_export_is_private_and_gone_at_the_end(
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
        exported = [path.relative_to(temporary) for path in temporary.rglob("customers.csv")]
        assert exported and not any((temporary / path.parts[0]).stat().st_mode & 0o077 for path in exported)
        process.terminate()
    assert list(temporary.rglob("*.csv")) == []


def test_all_customers_are_scored_on_all_cores(save, files, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail(f"{number} threads"))
    monkeypatch.setattr("modeling_mcm.commands.app.Histories", lambda *_: None)
    monkeypatch.setattr("modeling_mcm.commands.app.build_page", lambda *_: SimpleNamespace(block_thread=lambda: None))
    monkeypatch.setattr("modeling_mcm.commands.app.launch_page", lambda *_, **__: (None, "", None))
    show(AppOptions(model=save(extended=True), data=files[0], events=files[1]))


def test_scores_of_an_earlier_start_are_those_of_the_model(histories, live, files, monkeypatch):
    embedding = histories.scored.set_index("customer_id")["embedding"][WHO]
    assert embedding == pytest.approx(live.embedding(histories.cutoff), abs=1e-5)
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
