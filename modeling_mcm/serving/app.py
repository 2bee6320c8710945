#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A page that shows what MCM expects of a customer, what the customer really did, and which past visits decided.

    make app                                         after make quickstart; only this machine can open the page
    python modeling_mcm/serving/app.py --model runs/mine --data data/prepared --events log.parquet

In a Space on the Hub, use this file as `app.py`, write `modeling-mcm[app]` into requirements.txt, and set the paths in
the variables MCM_MODEL, MCM_DATA, MCM_EVENTS and MCM_PROFILE. The page loads nothing from other machines.
"""

# Gradio reads the annotations of functions below while they are defined: they must not become texts.
import argparse
import os
import random
import sys
from typing import Any

import torch

from modeling_mcm.extras import needs
from modeling_mcm.live.customer import LiveCustomer
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.serving import drawing
from modeling_mcm.serving.histories import Histories
from modeling_mcm.serving.style import CSS, SCRIPT
from modeling_mcm.state_mcm import MissingForecastsError

LABELS, MOVING = 6, 1000  # labels of a task that are shown; that are compared before and after
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


class Page:
    """The callbacks of the page. Every function returns HTML for a choice of the visitor."""

    def __init__(self, histories: Histories):
        self.histories, self.tasks = histories, list(histories.extractor.tasks)
        self._known = {task: set(self.labels(task)) for task in self.tasks}

    def show(self, customer_id: str) -> list[Any]:
        """Draws a customer: profile, expectations, timeline, explanation, forecasts, similar customers and map."""
        histories = self.histories
        household = histories.household(customer_id)
        live, main = household.live, histories.main_task
        alike = histories.alike(customer_id)
        similar = [
            (name, likeness, [entry["label"] for entry in self._scores(name, main, 3)]) for name, likeness in alike
        ]
        choice = (main, self.expected(live)[main][0]["label"])
        return [
            drawing.profile(customer_id, live.profile, len(live.events)),
            *self.why(customer_id, *choice),
            self.forecast(customer_id),
            drawing.alike(similar),
            drawing.customer_map(histories.map, histories.ids, customer_id, [name for name, _ in alike]),
            drawing.note("Choose an event: what is expected next is shown with it and without it."),
        ]

    def why(self, customer_id: str, task: str, label: str) -> list[str]:
        """Draws expectations, timeline and explanation for a chosen label."""
        household, now = self.histories.household(customer_id), self.histories.cutoff
        result = household.live.explain(task, label, now)
        shares: dict[str, float] = {}
        for visit in result.visits:
            shares[visit.time] = shares.get(visit.time, 0.0) + visit.share
        return [
            drawing.expectations(self.expected(household.live), household.bought, (task, label)),
            drawing.timeline(household.visits, now, shares),
            drawing.explanation(result),
        ]

    def expected(self, live: LiveCustomer) -> dict[str, list[dict[str, Any]]]:
        """Scores the best labels of every task, without those that MCM adds itself."""
        scores = live.scores(now=self.histories.cutoff, k=2 * LABELS)
        return {
            task: [entry for entry in scores[task] if entry["label"] in self._known[task]][:LABELS] for task in scores
        }

    def forecast(self, customer_id: str) -> str:
        """Draws the checkpoint's forecasts; an empty text if it has none."""
        try:
            return drawing.forecasts(self.histories.household(customer_id).live.forecast(self.histories.cutoff))
        except MissingForecastsError:
            return ""

    def what_if(self, customer_id: str, task: str, label: str) -> str:
        """Draws which labels' scores change most if an event with a label happens now."""
        if not label:
            return drawing.note("Choose what happens first.")
        event = self.histories.template(task, label)
        after = self.histories.what_if(customer_id, event, self.histories.cutoff)
        shown = self.histories.main_task
        result = []
        for live in (self.histories.household(customer_id).live, after):
            scores = live.scores(now=self.histories.cutoff, tasks=[shown], k=MOVING)[shown]
            result.append({entry["label"]: entry["score"] for entry in scores})
        return drawing.moves(shown, f"{label} ({task.replace('_', ' ')})", result[0], result[1])

    def labels(self, task: str) -> list[str]:
        """Lists the labels of a task that an event can have."""
        token = self.histories.extractor.token_type_feature
        own = self.histories.extractor.schema.reserved_token_types if task == token else []
        return [label for label in self.histories.extractor.vocabularies[task] if label not in own]

    def _scores(self, customer_id: str, task: str, number: int) -> list[dict[str, Any]]:
        live = self.histories.household(customer_id).live
        return live.scores(now=self.histories.cutoff, tasks=[task], k=number)[task]


def build_page(histories: Histories) -> Any:
    """Makes the page as Gradio Blocks, which [`launch_page`] shows.

    Args:
        histories ([`Histories`]): The customers of the page, with their histories.
    """
    with needs("app"):
        import gradio as gr

    page = Page(histories)
    first = histories.ids[0]
    shown = page.show(first)

    def plain(value: str, **options: Any) -> Any:
        return gr.HTML(value, apply_default_css=False, **options)

    def html(value: str, **options: Any) -> Any:
        return plain(value, js_on_load=SCRIPT, **options)

    with gr.Blocks(title="MCM: a customer and why", analytics_enabled=False) as blocks:
        plain(
            f"<h1>What will this customer do next, and why?</h1><p class='lead'>{len(histories.ids):,} customers of "
            f"{histories.extractor.name.replace('_', ' ')}. MCM knows what came before {histories.cutoff[:10]}; "
            "what came after it stands beside its expectations. Choose one to see which visits speak for it.</p>"
        )
        with gr.Row(equal_height=True):
            customer = gr.Dropdown(
                histories.ids, value=first, label="Customer (type to look one up)", scale=4, elem_id="customer"
            )
            another = gr.Button("Another customer", scale=1, min_width=150, elem_id="another")
        profile = plain(shown[0])
        expectations = html(shown[1], elem_id="expectations")
        timeline = plain(shown[2], elem_id="timeline")
        why = plain(shown[3], elem_id="why")
        forecast = plain(shown[4], visible=bool(shown[4]), elem_id="forecast")
        with gr.Row():
            with gr.Column(min_width=300, scale=2):
                plain("<h2>What if this happens now?</h2>")
                task = gr.Dropdown(page.tasks, value=histories.main_task, label="What", elem_id="task")
                label = gr.Dropdown(page.labels(histories.main_task), value=None, label="Which", elem_id="label")
                add = gr.Button("Show what moves", variant="primary", elem_id="add")
            with gr.Column(min_width=300, scale=3):
                moves = plain(shown[7], elem_id="moves")
        with gr.Row():
            with gr.Column(min_width=300, scale=2):
                alike = html(shown[5], elem_id="alike")
            with gr.Column(min_width=300, scale=3):
                customers = html(shown[6], elem_id="map")

        outputs = [profile, expectations, timeline, why, forecast, alike, customers, moves]
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        def pick(event: gr.EventData) -> str:
            return event.customer

        def ask(who: str, event: gr.EventData) -> list[str]:
            return page.why(who, event.task, event.label)

        customer.change(page.show, customer, outputs, **options)
        another.click(lambda: random.choice(histories.ids), None, customer, **options)
        alike.pick(pick, None, customer, **options)
        customers.pick(pick, None, customer, **options)
        expectations.ask(ask, customer, [expectations, timeline, why], **options)
        task.change(lambda name: gr.Dropdown(page.labels(name), value=None), task, label, **options)
        add.click(page.what_if, [customer, task, label], moves, **options)
    return blocks


def launch_page(blocks: Any, waits: bool = True, **options: Any) -> Any:
    """Shows the page, with its own style and without files of other machines, and prints its address.

    Args:
        blocks (`gradio.Blocks`): The page.
        waits (`bool`): Whether the function returns only when the process gets a signal to stop.
        options (`dict[str, Any]`): Options of Gradio's `launch`.

    Returns:
        `tuple`: The application, its address on this machine, and its public address, which is `None`.
    """
    with needs("app"):
        import gradio as gr

    local = ["system-ui", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", font=local, font_mono=["ui-monospace", "monospace"]
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
    parser.add_argument(
        "--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="address to listen on"
    )
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
