#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A page that shows what MCM expects of a customer, what the customer really did, and which past visits decided.

    make app                                         after make quickstart; only this machine can open the page
    python -m modeling_mcm.page.app --model runs/mine --data data/prepared --events log.parquet

In a Space on the Hub, use this file as `app.py`, write `modeling-mcm[app]` into requirements.txt, and set the paths in
the variables MCM_MODEL, MCM_DATA, MCM_EVENTS and MCM_PROFILE. The page loads nothing from other machines.
"""

# Gradio reads the annotations of functions below while they are defined: they must not become texts.
import argparse
import functools
import os
import random
import sys
from html import escape
from typing import Any

import pandas as pd
import torch

from modeling_mcm.extras import needs
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.page.histories import Histories
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.state_mcm import MissingForecastsError

LABELS, COMPARED, MOVES = 6, 1000, 8  # labels of a task that are shown; compared before and after; shown of those
VISITS, VALUES = 5, 4  # that are listed
LEAST = 0.05  # of the largest change: a visit with less speaks neither for nor against
COLOURS = {"speaks for it": "#159ca6", "speaks against it": "#d9622b", "other visit": "#98a3ad", "hidden": "#c7a43a"}
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#timeline, #visits { contain: inline-size; overflow: hidden; }
"""
QUICKSTART = {
    "model": "runs/quickstart",
    "data": "data/complete_journey/prepared",
    "events": "data/complete_journey/raw/events.parquet",
    "profile": "data/complete_journey/raw/profile.parquet",
}
HELP = {
    "model": "checkpoint folder",
    "data": "folder of the prepared data set",
    "events": "the raw log that it was made of, a Parquet file",
    "profile": "the raw profiles, a Parquet file",
}


def percent(share: float) -> str:
    """Writes a probability as a percentage with at most three digits."""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


class Page:
    """What the page shows, as texts and tables."""

    def __init__(self, histories: Histories):
        self.histories, self.tasks = histories, list(histories.extractor.tasks)
        self._known = {task: set(self.labels(task)) for task in self.tasks}

    def labels(self, task: str) -> list[str]:
        """Lists the labels of a task that an event can have."""
        extractor = self.histories.extractor
        own = extractor.schema.reserved_token_types if task == extractor.token_type_feature else []
        return [label for label in extractor.vocabularies[task] if label not in own]

    def profile(self, customer_id: str) -> str:
        """Writes the profile and the number of events that MCM knows, as HTML."""
        live = self.histories.household(customer_id).live
        values = "".join(f", {escape(name.replace('_', ' '))} {escape(str(v))}" for name, v in live.profile.items())
        return f"<p>Customer <b>{escape(customer_id)}</b>{values}, {len(live.events):,} events</p>"

    def expected(self, customer_id: str) -> dict[str, list[tuple[str, str]]]:
        """Lists the best labels of every task as (text, label): the probability, and whether it came true."""
        household = self.histories.household(customer_id)
        scores = household.live.scores(now=self.histories.cutoff, k=2 * LABELS)
        choices: dict[str, list[tuple[str, str]]] = {}
        for task in self.tasks:
            for entry in [entry for entry in scores[task] if entry["label"] in self._known[task]][:LABELS]:
                came = household.bought[task].get(entry["label"])
                text = f"{entry['label']} · {percent(entry['score'])}{f' · ✓ {came}' if came else ''}"
                choices.setdefault(task, []).append((text, entry["label"]))
        return choices

    def why(self, customer_id: str, task: str, label: str) -> tuple[str, pd.DataFrame, list[Any]]:
        """Explains a label: a sentence as HTML, the timeline, and the visits that speak for it."""
        household, cutoff = self.histories.household(customer_id), self.histories.cutoff
        result = household.live.explain(task, label, cutoff)
        sentence = (
            f"<h3>Why {escape(label)}, {percent(result.probability)}?</h3><p>Met {escape(result.words)}. With no "
            f"history it would be <b>{percent(result.baseline)}</b>.</p>"
        )
        visits: list[Any] = []
        changes: dict[str, float] = {}
        for visit in result.visits:
            if visit.without is None:
                continue
            change = changes[visit.time] = visit.without - result.probability
            if change < 0 and len(visits) < VISITS:
                texts = dict.fromkeys(event[task] for event in visit.events if event.get(task) in self._known[task])
                first = sorted(texts, key=lambda text: text != label)[:VALUES]
                visits.append([visit.time[:10], f"{result.probability:.1%} → {visit.without:.1%}", ", ".join(first)])
        largest = max(map(abs, changes.values()), default=0.0)
        rows = []
        for seen in household.visits:
            change = changes.get(seen.time, 0.0)
            side = "other visit" if abs(change) <= LEAST * largest else [*COLOURS][change > 0]
            what = ", ".join(seen.values[:VALUES])
            points = f"{100 * change:+.2f}"
            rows.append((pd.Timestamp(seen.time), seen.events, side if seen.is_past else "hidden", points, what))
        return sentence, pd.DataFrame(rows, columns=["time", "events", "visit", "points without it", "what"]), visits

    def forecast(self, customer_id: str) -> list[list[str]]:
        """Lists the checkpoint's forecasts, with their intervals of 80%; none if it has no forecasts."""
        try:
            result = self.histories.household(customer_id).live.forecast(self.histories.cutoff)
        except MissingForecastsError:
            return []
        rows = []
        for name, value in result.items():
            if isinstance(value, str) or "_low" in name or "_high" in name:
                continue
            text = percent(value) if "probability" in name else f"{value:,.1f}"
            if f"{name}_low80" in result:
                low, high = (float(result[f"{name}_{end}80"]) for end in ("low", "high"))
                text += f" ({low:,.0f} to {high:,.0f})"
            rows.append([name.replace("_", " "), text])
        return rows

    def alike(self, customer_id: str) -> list[tuple[str, str]]:
        """Lists similar customers as (text, id), with what is expected of each."""
        main = self.histories.main_task
        choices: list[tuple[str, str]] = []
        for name, likeness in self.histories.alike(customer_id):
            live = self.histories.household(name).live
            best = [entry["label"] for entry in live.scores(now=self.histories.cutoff, tasks=[main], k=3)[main]]
            choices.append((f"{name} · {likeness:.2f} · {', '.join(best)}", name))
        return choices

    def what_if(self, customer_id: str, task: str, label: str) -> list[list[str]]:
        """Lists the labels whose scores change most if an event with a label happens now, before and after it."""
        if not label:
            return []
        after = self.histories.what_if(customer_id, self.histories.template(task, label), self.histories.cutoff)
        shown = self.histories.main_task
        result: list[dict[str, float]] = []
        for live in (self.histories.household(customer_id).live, after):
            scores = live.scores(now=self.histories.cutoff, tasks=[shown], k=COMPARED)[shown]
            result.append({entry["label"]: entry["score"] for entry in scores})
        changes = {name: score - result[0].get(name, 0) for name, score in result[1].items()}
        order = sorted(changes, key=lambda name: -abs(changes[name]))[:MOVES]
        old, new = result
        return [[name, percent(old.get(name, 0)), percent(new[name]), f"{100 * changes[name]:+.1f}"] for name in order]


def build_page(histories: Histories) -> Any:
    """Makes the page as Gradio Blocks, which [`launch_page`] shows.

    Args:
        histories ([`Histories`]): The customers of the page, with their histories.
    """
    with needs("app"):
        import gradio as gr

    page = Page(histories)
    tasks, main, first = page.tasks, histories.main_task, histories.ids[0]
    tables: dict[str, Any] = {"interactive": False, "wrap": True}

    def show(who: str) -> list[Any]:
        choices = page.expected(who)
        best = choices[main][0][1]
        radios = [gr.Radio(choices[name], value=best if name == main else None) for name in tasks]
        return [
            page.profile(who),
            *radios,
            *page.why(who, main, best),
            page.forecast(who),
            gr.Radio(page.alike(who)),
            [],
        ]

    def ask(name: str, who: str, chosen: str) -> list[Any]:
        return [*page.why(who, name, chosen), *(gr.Radio(value=None) for other in tasks if other != name)]

    with gr.Blocks(title="MCM: a customer and why", analytics_enabled=False) as blocks:
        gr.HTML(
            f"<h1>What will this customer do next, and why?</h1><p>{len(histories.ids):,} customers of "
            f"{escape(histories.extractor.name.replace('_', ' '))}. MCM knows what came before "
            f"{histories.cutoff[:10]}; ✓ marks what came true after it. Choose a label to see why it is expected.</p>"
        )
        with gr.Row(equal_height=True):
            customer = gr.Dropdown(
                histories.ids, value=first, label="Customer (type to look one up)", scale=4, elem_id="customer"
            )
            another = gr.Button("Another customer", scale=1, min_width=150, elem_id="another")
        profile = gr.HTML(elem_id="profile")
        with gr.Row(elem_id="expectations"):
            radios = {
                name: gr.Radio([], label=f"Next {name.replace('_', ' ')}", elem_id=f"next-{name}", min_width=300)
                for name in tasks
            }
        told = f"Visits; those from {histories.cutoff[:10]} on are hidden from MCM"
        timeline = gr.BarPlot(
            x="time", y="events", color="visit", color_map=COLOURS, tooltip=["points without it", "what"], height=280,
            x_title=" ", color_title=" ", label=told, elem_id="timeline",
        )  # fmt: skip
        gr.HTML("".join(f"<span style='color: {colour}'>■</span> {name} &emsp;" for name, colour in COLOURS.items()))
        why = gr.HTML(elem_id="why")
        told = "Visits that speak for it"
        visits = gr.Dataframe(headers=["visit", "without it", "with"], label=told, elem_id="visits", **tables)
        forecast = gr.Dataframe(headers=["forecast", "value"], visible=bool(page.forecast(first)), **tables)
        with gr.Row():
            with gr.Column(min_width=300):
                task = gr.Dropdown(tasks, value=main, label="What if this happens now?", elem_id="task")
                label = gr.Dropdown(page.labels(main), value=None, label="Which", elem_id="label")
                add = gr.Button("Show what moves", variant="primary", elem_id="add")
            moves = gr.Dataframe(headers=[main, "before", "after", "points"], elem_id="moves", scale=2, **tables)
        alike = gr.Radio([], label="Look-alikes, and what is expected of each", elem_id="alike")

        reasons = [why, timeline, visits]
        shown = [profile, *radios.values(), *reasons, forecast, alike, moves]
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        blocks.load(show, customer, shown, **options)
        customer.change(show, customer, shown, **options)
        another.click(lambda: random.choice(histories.ids), None, customer, **options)
        alike.input(lambda name: name, alike, customer, **options)
        for name, radio in radios.items():
            others = [other for other in radios.values() if other is not radio]
            radio.input(functools.partial(ask, name), [customer, radio], [*reasons, *others], **options)
        task.change(lambda name: gr.Dropdown(page.labels(name), value=None), task, label, **options)
        add.click(page.what_if, [customer, task, label], moves, **options)
    return blocks


def launch_page(blocks: Any, waits: bool = True, **options: Any) -> Any:
    """Shows the page without files of other machines, and prints its address.

    Args:
        blocks (`gradio.Blocks`): The page.
        waits (`bool`): Whether the function returns only when the process gets a signal to stop.
        options (`dict[str, Any]`): Options of Gradio's `launch`.

    Returns:
        `tuple`: The application, its address on this machine, and its public address, which is `None`.
    """
    with needs("app"):
        import gradio as gr

    theme = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    options |= {"quiet": True, "ssr_mode": False, "prevent_thread_lock": True}
    launched = blocks.launch(theme=theme, css=CSS, footer_links=[], **options)
    sys.stdout.write(f"The page is at {launched[1]}\n")
    sys.stdout.flush()
    if waits:
        blocks.block_thread()
    return launched


def main() -> None:
    """Reads the options and shows the page until the process gets a signal to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in QUICKSTART.items():
        parser.add_argument(f"--{name}", default=os.environ.get(f"MCM_{name.upper()}", default), help=HELP[name])
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    parser.add_argument("--host", default=host, help="address to listen on")
    parser.add_argument("--port", type=int, default=None, help="port to listen on; a free one from 7860 by default")
    options = parser.parse_args()
    torch.set_num_threads(1)  # of a request
    try:
        with needs("app"):
            import gradio  # noqa: F401
        if missing := [path for path in (options.model, options.data, options.events) if not os.path.exists(path)]:
            raise ValueError(
                f"{missing[0]} is not there: run `make quickstart` first, or give --model, --data, --events."
            )
        extractor = MCMFeatureExtractor.from_pretrained(options.model)
        model = MCMForMultiTaskRecommendation.from_pretrained(options.model).eval()
        profile = options.profile if options.profile and os.path.exists(options.profile) else None
        histories = Histories(model, extractor, options.data, options.events, profile, cache=options.model)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"app: {error}")
    launch_page(build_page(histories), server_name=options.host, server_port=options.port)


if __name__ == "__main__":
    main()
