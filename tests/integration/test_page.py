# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: a walk through all of it, its numbers beside the model's, and no other machine asked."""

import contextlib
import dataclasses
import shutil
import sys

import pytest
from corner_shop import make_profile

from modeling_mcm.page import app
from modeling_mcm.page.app import Page, percent
from modeling_mcm.page.histories import Histories

pytest.importorskip("gradio", reason="Gradio not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60_000  # milliseconds, on a busy machine
WHO = "c07"


@pytest.fixture(scope="module")
def page_files(event_log, tmp_path_factory):
    """The raw log and profiles as files."""
    folder = tmp_path_factory.mktemp("raw")
    event_log.to_parquet(folder / "events.parquet")
    make_profile(event_log).to_parquet(folder / "profile.parquet")
    return folder


@pytest.fixture
def histories(tiny_model, extractor, prepared, page_files, tmp_path):
    files = [str(page_files / f"{name}.parquet") for name in ("events", "profile")]
    return Histories(tiny_model(extended=True), extractor, str(prepared), *files, cache=str(tmp_path))


@pytest.fixture
def address(histories):
    """Where the page is shown."""
    blocks = app.build_page(histories)
    _, url, _ = app.launch_page(blocks, server_name="127.0.0.1", waits=False)
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

        def run(width=1280, scheme="light"):
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
            page.goto(address)
            page.wait_for_selector("#why h3")
            page.wait_for_selector("#expectations input[type=radio]")
            return page, others

        yield run


def choose(page, field, value):
    """Looks a value up in a list, with the keyboard alone."""
    entry = page.locator(f"#{field} input")
    entry.focus()
    entry.fill(value)
    page.wait_for_selector(f"ul[role=listbox] li:has-text('{value}')")
    page.keyboard.press("Enter")


def radio(page, field, value):
    return page.locator(f"#{field} input[type=radio][value='{value}']")


def test_a_walk_through_the_page_with_the_keyboard_alone(browse, histories):
    page, others = browse()
    choose(page, "customer", WHO)
    page.wait_for_selector(f"#profile:has-text('Customer {WHO}')")
    expected = Page(histories).expected(WHO)
    for task, choices in expected.items():
        assert page.locator(f"#next-{task} label").all_inner_texts() == [text for text, _ in choices]
    # with Tab from the first label of a task to the next one
    (_, first), (_, label), *_ = expected["items"]
    radio(page, "next-items", first).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_selector(f"#why h3:has-text('Why {label},')")
    assert radio(page, "next-items", label).is_checked()
    found = histories.household(WHO).live.explain("items", label, histories.cutoff)
    assert found.words in page.locator("#why").inner_text()
    shown, best = page.locator("#visits").inner_text(), found.visits[0]
    assert best.without >= found.probability or (best.time[:10] in shown and f"{best.without:.1%}" in shown)
    assert page.locator("#timeline canvas, #timeline svg").count() > 0
    # what if
    for _ in range(10):  # a list that is still busy takes no choice
        choose(page, "label", "item 05")
        page.locator("#add").press("Enter")
        page.wait_for_timeout(2000)
        if page.locator("#moves td:has-text('%')").count():
            break
    assert page.locator("#moves td:has-text('%')").count()
    # a look-alike
    name = histories.alike(WHO)[0][0]
    radio(page, "alike", name).press("Space")
    page.wait_for_selector(f"#profile:has-text('Customer {name}')")
    assert others == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_is_light_and_dark(browse, width):
    lights = []
    for scheme in ("light", "dark"):
        page, others = browse(width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        colours = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('#why h3')).color]"
        )
        ground, ink = (sum(map(int, colour.partition("(")[2].rstrip(")").split(",")[:3])) for colour in colours)
        lights.append(ground > ink)
        assert abs(ground - ink) > 300 and others == []
    assert lights == [True, False]


def test_numbers_of_the_page_are_those_of_the_model_and_the_log(histories, event_log):
    page, live = Page(histories), histories.household(WHO).live
    future = event_log[(event_log["who"] == WHO) & (event_log["when"] >= histories.cutoff)]
    future = future[(future["action"] == "buy") & (future["basket"] == future["basket"].dropna().iloc[0])]
    for task, choices in page.expected(WHO).items():
        own = histories.extractor.schema.reserved_token_types if task == "type" else []
        scores = live.scores(now=histories.cutoff, tasks=[task], k=12)[task]
        best = [(e["label"], percent(e["score"])) for e in scores if e["label"] not in own]
        assert [(label, text.split(" · ")[1]) for text, label in choices] == best[:6]
        if task == "items":
            assert {label for text, label in choices if "next visit" in text} <= set(future["item"])
    label = live.scores(now=histories.cutoff, tasks=["items"], k=1)["items"][0]["label"]
    _, timeline, visits = page.why(WHO, "items", label)
    found = live.explain("items", label, histories.cutoff)
    for_it = [visit for visit in found.visits if visit.without < found.probability][:5]
    change = f"{found.probability:.1%} → "
    assert for_it and [row[:2] for row in visits] == [[v.time[:10], change + f"{v.without:.1%}"] for v in for_it]
    assert all((label in row[2]) == visit.has_label for row, visit in zip(visits, for_it, strict=True))
    assert ((timeline["time"] >= histories.cutoff) == (timeline["visit"] == "hidden")).all()
    assert 0 < (timeline["visit"] == "hidden").sum() < len(timeline)
    strongest = timeline.loc[timeline["points without it"].astype(float).idxmin()]
    assert strongest["visit"] == "speaks for it" and str(strongest["time"])[:10] == found.visits[0].time[:10]
    after = histories.what_if(WHO, histories.template("items", "item 05"), histories.cutoff)
    chance = {each["label"]: percent(each["score"]) for each in after.scores(tasks=["items"], k=100)["items"]}
    moves = page.what_if(WHO, "items", "item 05")
    assert len(moves) == 8 and all(new == chance[name] and old != "" for name, old, new, _ in moves)
    assert page.what_if(WHO, "items", None) == []


def test_paths_may_be_in_the_environment(monkeypatch, page_files, save, prepared):
    files = {name: str(page_files / f"{name}.parquet") for name in ("events", "profile")}
    for name, value in {"model": save(extended=True), "data": str(prepared), **files}.items():
        monkeypatch.setenv(f"MCM_{name.upper()}", value)
    shown = []
    monkeypatch.setattr(app, "launch_page", lambda blocks, **options: shown.append(options))
    monkeypatch.setattr(sys, "argv", ["app.py"])
    app.main()
    assert shown == [{"server_name": "127.0.0.1", "server_port": None}]


def test_a_page_without_a_quickstart_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    with pytest.raises(SystemExit, match="app: runs/quickstart is not there: run `make quickstart` first"):
        app.main()


def test_embeddings_of_an_earlier_start_are_those_of_the_model(histories, prepared, page_files, tmp_path, extractor):
    live = histories.household(WHO).live
    assert histories.embeddings[histories.indices[WHO]] == pytest.approx(live.embedding(histories.cutoff), abs=1e-5)
    files = [str(page_files / f"{name}.parquet") for name in ("events", "profile")]
    again = Histories(histories.model, extractor, str(prepared), *files, cache=str(tmp_path))
    assert (again.embeddings == histories.embeddings).all()


def test_values_of_a_log_cannot_put_code_into_the_page(histories, monkeypatch):
    bad, page, live = "<img src=x onerror=alert(1)>", Page(histories), histories.household(WHO).live
    found = live.explain("items", page.expected(WHO)["items"][0][1], histories.cutoff)
    monkeypatch.setattr(live, "explain", lambda *_: dataclasses.replace(found, words=bad))
    live.profile["age"] = bad
    assert "<img" not in page.profile(WHO) and "<img" not in page.why(WHO, "items", bad)[0]
