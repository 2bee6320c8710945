# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: a walk through all of it, its numbers beside the model's, and no other machine asked."""

import contextlib
import importlib
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from corner_shop import make_profile

from modeling_mcm.page.drawing import percent
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
    from modeling_mcm.page.app import build_page, launch_page

    blocks = build_page(histories)
    _, url, _ = launch_page(blocks, server_name="127.0.0.1", waits=False)
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
            page.wait_for_selector("#expectations button")
            return page, others

        yield run


def choose(page, field, value):
    """Looks a value up in a list, with the keyboard alone."""
    entry = page.locator(f"#{field} input")
    entry.focus()
    entry.fill(value)
    page.wait_for_selector(f"ul[role=listbox] li:has-text('{value}')")
    page.keyboard.press("Enter")


def show(page, customer):
    choose(page, "customer", customer)
    page.wait_for_selector(f".chips:has-text('customer {customer}')")
    page.wait_for_selector(f"#map circle.chosen[data-customer='{customer}']", state="attached")


def expected_of(histories, customer, task, count):
    """Labels and probabilities as the page should write them."""
    own = histories.extractor.schema.reserved_token_types if task == "type" else []
    scores = histories.household(customer).live.scores(now=histories.cutoff, tasks=[task], k=count + len(own))[task]
    return [(each["label"], percent(each["score"])) for each in scores if each["label"] not in own][:count]


def test_a_walk_through_the_page_with_the_keyboard_alone(browse, histories, event_log):
    page, others = browse()
    show(page, WHO)
    for task in histories.extractor.tasks:
        buttons = page.locator(f"#expectations button[data-task='{task}']")
        shown = [(each.get_attribute("data-label"), each.locator(".share").inner_text()) for each in buttons.all()]
        assert shown and shown == expected_of(histories, WHO, task, len(shown))
    # what really came
    future = event_log[(event_log["who"] == WHO) & (event_log["when"] >= histories.cutoff)]
    future = future[(future["action"] == "buy") & (future["basket"] == future["basket"].dropna().iloc[0])]
    shown = page.locator("#expectations button[data-task='items']:has(em.next)").all()
    assert {each.get_attribute("data-label") for each in shown} <= set(future["item"])
    assert page.locator("#timeline .hidden-visit").count() > 0
    # from the list of customers on with Tab to a label, and Enter
    page.locator("#another").focus()
    for _ in range(2):
        page.keyboard.press("Tab")
    label = page.evaluate("document.activeElement.dataset.label")
    task = page.evaluate("document.activeElement.dataset.task")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#why h3:has-text('Why {label}')")
    found = histories.household(WHO).live.explain(task, label, histories.cutoff)
    said = page.locator("#why").inner_text()
    assert found.words in said and f"{found.visits[0].share:+.2f}" in said and found.visits[0].time[:10] in said
    assert page.locator(f"#expectations button[aria-pressed=true][data-label='{label}']").count() == 1
    strongest = page.locator("#timeline .visit.for[style*='--weight:1.000'] title").text_content()
    assert strongest.startswith(found.visits[0].time[:10]) or found.visits[0].share < 0
    # what if
    choose(page, "task", "items")
    for _ in range(10):  # the labels of the task come when the page has answered
        page.wait_for_timeout(500)
        choose(page, "label", "item 05")
        page.locator("#add").press("Enter")
        page.wait_for_timeout(2000)
        if page.locator("#moves table").is_visible():
            break
    page.wait_for_selector("#moves table")
    after = histories.what_if(WHO, histories.template("items", "item 05"), histories.cutoff)
    chance = {each["label"]: each["score"] for each in after.scores(tasks=["items"], k=100)["items"]}
    for row in page.locator("#moves tr:has(td)").all():
        name, _, new, _ = row.locator("td").all_inner_texts()
        assert new == percent(chance[name])
    # a look-alike
    other = page.locator("#alike button").first
    name = other.get_attribute("data-customer")
    assert name == histories.alike(WHO)[0][0]
    other.press("Enter")
    page.wait_for_selector(f".chips:has-text('customer {name}')")
    assert others == []


def test_a_dot_of_the_map_is_a_customer(browse, histories):
    page, others = browse()
    assert page.locator("#map circle").count() == len(histories.ids)
    page.locator(f"#map circle[data-customer='{WHO}']").dispatch_event("click")
    page.wait_for_selector(f".chips:has-text('customer {WHO}')")
    assert others == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_is_light_and_dark(browse, width):
    lights = []
    for scheme in ("light", "dark"):
        page, others = browse(width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        colours = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('.card h3')).color]"
        )
        ground, ink = (sum(map(int, colour.partition("(")[2].rstrip(")").split(",")[:3])) for colour in colours)
        lights.append(ground > ink)
        assert abs(ground - ink) > 300 and others == []
    assert lights == [True, False]


def test_a_space_runs_the_same_file(monkeypatch, page_files, save, prepared, tmp_path):
    folder = save(extended=True)
    source = Path(importlib.import_module("modeling_mcm.page.app").__file__)
    shutil.copy(source, tmp_path / "space_app.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    space = importlib.import_module("space_app")
    places = {"MCM_MODEL": folder, "MCM_DATA": str(prepared), "MCM_EVENTS": str(page_files / "events.parquet")}
    places["MCM_PROFILE"] = str(page_files / "profile.parquet")
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    shown = []
    monkeypatch.setattr(space, "launch_page", lambda blocks, **options: shown.append((blocks, options)))
    monkeypatch.setattr(sys, "argv", ["app.py"])
    space.main()
    assert len(shown) == 1


@pytest.mark.parametrize("waits", [True, False])
def test_the_page_prints_its_address_and_waits_if_it_should(capsys, waits):
    from modeling_mcm.page.app import launch_page

    blocks = Mock(**{"launch.return_value": (None, "http://127.0.0.1:7861/", None)})
    assert launch_page(blocks, waits=waits)[1] == "http://127.0.0.1:7861/"
    assert capsys.readouterr().out == "The page is at http://127.0.0.1:7861/\n"
    assert blocks.block_thread.called == waits


def test_a_page_without_a_quickstart_says_so(monkeypatch, tmp_path):
    from modeling_mcm.page import app

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


def test_values_of_a_log_cannot_put_code_into_the_page():
    from modeling_mcm.page import drawing

    bad = "<img src=x onerror=alert(1)>'\""
    scores = {bad: [{"label": bad, "score": 0.5}]}
    for html in (
        drawing.expectations(scores, {}),
        drawing.profile(bad, {bad: bad}, 1),
        drawing.alike([(bad, 1, [bad])]),
    ):
        assert "<img" not in html and "'\"" not in html
