# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A page that lists the customers, answers the questions of a Monday, and shows what MCM expects of each customer,
what really came, and which visits decided.

The page loads nothing from other machines. `?customer=17` in its address opens a customer.
"""

# Gradio reads the annotations of functions below while they are defined: they must not become texts.
import atexit
import functools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from modeling_mcm.extras import needs

from .histories import LIKELIEST, Histories
from .views import COLOURS, QUESTIONS, THIRDS, PageContent, make_safe, read_number, write_table

with needs("app"):
    import gradio as gr
    from gradio.events import Dependency

LISTED = 100  # customers that the browser gets: of 500 a table takes twice as long; the file has all
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#timeline, #visits, #list, #map, #forecast, #moves { contain: inline-size; overflow: hidden; }
.wide { overflow: auto; max-height: 420px; }
.wide th, .wide td { padding: 4px 10px; text-align: left; }
.wide th { position: sticky; top: 0; background: var(--background-fill-primary); }
.wide button { text-decoration: underline; }
[role=tab] { color: var(--body-text-color) !important; }
"""
# A click on a heading of the list sorts, and one on a customer's id opens the customer
CLICKS = """element.addEventListener('click', ({target}) => { const part = target.closest('[data-open], [data-sort]');
if (part) trigger('click', {...part.dataset}); })"""
ADDRESS = """(who) => { if (who) { const url = new URL(location); url.searchParams.set('customer', who);
history.replaceState(null, '', url); scrollTo({top: 0}); } }"""
SUGGEST = """() => { for (const id of ['likely', 'label'])
document.querySelector(`#${id} input`).setAttribute('list', `${id}-labels`); }"""
SCROLL = "() => document.querySelector('#why').scrollIntoView({behavior: 'smooth', block: 'start'})"


def _suggestions(name: str, labels: list[str]) -> str:
    """Labels that the browser suggests for a field. (In a `gr.Dropdown` Enter takes another label than was typed.)"""
    options = "".join(f"<option>{escape(label)}</option>" for label in labels)
    return f"<datalist id='{name}-labels'>{options}</datalist>"


def _legend(colours: dict[str, str]) -> None:
    gr.HTML("".join(f"<span style='color: {colour}'>■</span> {name} &emsp;" for name, colour in colours.items()))


def _field(name: str, label: str, **options: Any) -> gr.Textbox:
    return gr.Textbox(label=label, max_lines=1, elem_id=name, **options)


def _on(triggers: Iterable, handler: Callable, *places: object, **options: Any) -> Dependency:
    """What happens on some events. A `ValueError` of the handler is shown as a warning, and then nothing changes."""

    def run(*values: object) -> object:
        try:
            return handler(*values)
        except ValueError as error:
            gr.Warning(escape(str(error)))
            return gr.skip()

    return gr.on([*triggers], functools.wraps(handler)(run), *places, api_visibility="private", **options)


class PageComponents(PageContent):
    """The page as components of the `gr.Blocks` that it is made in, and what happens on it."""

    def __init__(self, histories: Histories):
        super().__init__(histories)
        self.known, self.main, self.filled = set(histories.ids), histories.main_task, len(self.customers)
        self.columns = [*self.customers.columns[:-1]]
        folder = Path(tempfile.mkdtemp(prefix="mcm-page-"))  # nobody else may read it
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")  # where Gradio copies what the browser downloads
        self.file = folder / "customers.csv"
        with gr.Accordion("All customers", elem_id="all") as everyone:
            listed, *sorting = self._draw_list()
        who, box, another = self._draw_customer()
        self.opened = [who, box, everyone]
        _on([another.click], lambda: self.open(random.choice(self.histories.ids)), None, self.opened)
        _on([box.submit], self.open, box, self.opened)
        _on([listed.click], self.click, sorting, [*self.opened, *sorting])

    # ------------------------------------------------------------------------------------------------- all customers

    def _draw_list(self) -> tuple[gr.HTML, gr.Dropdown, gr.Checkbox]:
        number, table, plot, file = self._describe(self.customers, "customer")
        with gr.Row(elem_id="monday"):
            questions = [gr.Button(question, size="sm", min_width=150) for question in QUESTIONS]
            budget = _field("budget", "Budget: how many can be sent", min_width=90)
        with gr.Row():
            words = f"Likely to buy (among the {LIKELIEST} likeliest)" if self.verb == "Bought" else "Likely next"
            likely = _field("likely", words, scale=2)
            column = gr.Dropdown(self.columns, value="customer", label="Order and colour by", elem_id="column")
            # an empty gr.Number is 0
            least, most = (_field(name, f"At {name}", min_width=90) for name in ("least", "most"))
            falling = gr.Checkbox(False, label="Largest first", elem_id="falling", min_width=120)
        parts: list[gr.components.Component] = [gr.Markdown(number, elem_id="number")]
        with gr.Tab("Table"):
            listed = gr.HTML(table, elem_id="list", js_on_load=CLICKS)
        with gr.Tab("Map"):  # drawn when it is chosen, since that takes a second
            drawn = gr.ScatterPlot(
                **plot, x="x", y="y", color="third", color_map=THIRDS,
                x_title=" ", y_title=" ", x_axis_labels_visible=False, tooltip=["customer", "value"], height=320,
                elem_id="map", label="Map of the customers of the table: similar ones are close",
            )  # fmt: skip
            _legend(THIRDS)
        parts += [listed, drawn, gr.DownloadButton("Export as CSV", file, elem_id="export", size="sm")]
        self.parts, self.timer = parts, gr.Timer(2, active=self.filled < len(self.known))

        filters = [likely, column, least, most, falling]
        typed = [event for field in (likely, least, most) for event in (field.submit, field.blur)]
        _on([column.change, falling.change, *typed], self.show_list, filters, parts, trigger_mode="always_last")
        for button in questions:
            _on([button.click], self.show_monday, [button, likely, budget], parts)
        _on([self.timer.tick], self.fill, filters, [*parts, self.timer])
        return listed, column, falling

    def show_list(self, label: str, column: str, least: str, most: str, is_falling: bool) -> list:
        """Shows the customers that the filters let through."""
        limits = read_number(least, "At least"), read_number(most, "At most")
        return self._list_table(self.find(label, column, *limits, is_falling), column)

    def show_monday(self, question: str, label: str, budget: str) -> list:
        """Shows the answer to one of `QUESTIONS`."""
        table = self.answer_question(question, label, int(read_number(budget, "Budget") or 0))
        return self._list_table(table, "customer", f"**{question}** ")

    def fill(self, *filters: Any) -> dict:
        """Shows the customers who were scored since, or why no more will be."""
        failed, before, self.filled = self.histories.failure is not None, self.filled, len(self.customers)
        shown = zip(self.parts, self.show_list(*filters), strict=True) if failed or self.filled > before else ()
        return dict(shown) | {self.timer: gr.Timer(active=self.filled < len(self.known) and not failed)}

    def _list_table(self, table: pd.DataFrame, column: str, heading: str = "") -> list:
        number, shown, plot, file = self._describe(table, column)
        return [heading + number, shown, gr.ScatterPlot(**plot), file]

    def _describe(self, table: pd.DataFrame, column: str) -> tuple[str, str, dict, Path]:
        """How many rows there are, the table and the map of the first, and the file of all."""
        first, scored, customers = table.head(LISTED), len(self.customers), len(self.known)
        number = f"{len(table):,} {'customers' if 'customer' in table else 'groups'}"
        if len(table) > LISTED:
            number += f", the first {LISTED} are shown; the CSV has all"
        if failure := self.histories.failure:
            number += f" (the scoring stopped after {scored:,} of {customers:,}: {escape(failure)})"
        elif scored < customers:
            number += f" ({scored:,} of {customers:,} are scored so far)"
        plot = {}
        if "days late" in table and len(table):
            placed, title = self.place_on_map(first, column)
            plot = {"value": placed, "color_title": title}
        pyarrow.csv.write_csv(pa.Table.from_pandas(make_safe(table), preserve_index=False), self.file)
        return number, write_table(first, first.itertuples(index=False), opens=True), plot, self.file

    # --------------------------------------------------------------------------------------------------- one customer

    def _draw_customer(self) -> tuple[gr.Textbox, gr.Textbox, gr.Button]:
        with gr.Row(equal_height=True):
            box = _field("customer", "Customer", placeholder="Id, then Enter", scale=4)
            another = gr.Button("Another customer", scale=1, min_width=150, elem_id="another")
        who = gr.Textbox(visible="hidden", show_label=False)  # who is shown
        gr.HTML(_suggestions("likely", self.list_labels(self.main)), visible="hidden")
        about = [gr.HTML(elem_id="answer"), gr.HTML(visible=bool(self.days), elem_id="forecast")]
        with gr.Row(elem_id="expectations"):
            radios = [
                gr.Radio([], label=f"Next {name.replace('_', ' ')}", elem_id=f"next-{name}", min_width=300)
                for name in self.tasks
            ]
        why, visits, timeline = gr.HTML(elem_id="why"), gr.HTML(elem_id="visits"), gr.BarPlot(
            x="time", y="events", color="visit", color_map=COLOURS, tooltip=["points without it", "what"], height=280,
            x_title=" ", y_title="events of the visit", color_title=" ", elem_id="timeline",
            label=f"Visits; those from {self.histories.cutoff[:10]} on are hidden from MCM",
        )  # fmt: skip
        _legend(COLOURS)
        moves = self._draw_what_if(who)

        reasons = [why, visits, timeline]
        _on([who.change], self.show, who, [*about, *radios, *reasons, moves])
        who.change(None, who, js=ADDRESS, api_visibility="private")
        for name, radio in zip(self.tasks, radios, strict=True):
            others = [other for other in radios if other is not radio]
            asked = _on([radio.input], functools.partial(self.ask, name), [who, radio], [*reasons, *others])
            asked.then(None, js=SCROLL, api_visibility="private")
        return who, box, another

    def _draw_what_if(self, who: gr.Textbox) -> gr.HTML:
        with gr.Row(elem_id="what-if"):
            with gr.Column(min_width=300):
                task = gr.Dropdown(self.tasks, value=self.main, label="What if this happens now?", elem_id="task")
                label = _field("label", "Which")
                suggested = gr.HTML(_suggestions("label", self.list_labels(self.main)), visible="hidden")
                add = gr.Button("Show what moves", variant="primary", elem_id="add")
            moves = gr.HTML(elem_id="moves")
        _on([task.change], lambda name: ["", _suggestions("label", self.list_labels(name))], task, [label, suggested])
        _on([add.click, label.submit], self.show_moves, [who, task, label], moves)
        return moves

    def open(self, name: str) -> list:
        """Opens a customer by the exact id, and closes the list."""
        if (name := name.strip()) not in self.known:
            raise ValueError(f"There is no customer {name!r}.")
        return [name, "", gr.Accordion(open=False)]

    def start(self, request: gr.Request) -> list:
        """Opens the customer of the page's address, or the first one."""
        asked = request.query_params.get("customer", "").strip()
        if asked in self.known:
            return self.open(asked)
        if asked:
            gr.Warning(escape(f"There is no customer {asked!r}: the first one is shown."))
        return [self.customers["customer"].iloc[0], "", gr.Accordion(open=True)]

    def click(self, event: gr.EventData, column: str, is_falling: bool) -> list:
        """Opens a customer, or sorts by a column: by the same one again the other way round."""
        clicked: dict[str, str] = event._data or {}
        if (name := clicked.get("sort")) in self.columns:
            return [*[gr.skip()] * 3, name, (not is_falling) if name == column else name != "customer"]
        return [*self.open(clicked.get("open", "")), gr.skip(), gr.skip()]

    def show(self, who: str) -> list:
        """Shows a customer, and why the likeliest label of the main task is expected."""
        choices = self.list_expected(who)
        best = choices[self.main][0][1]
        radios = [gr.Radio(choices[name], value=best if name == self.main else None) for name in self.tasks]
        forecast = write_table(["forecast", *(f"{day} days" for day in self.days)], self.list_forecasts(who))
        return [self.write_answer(who), forecast, *radios, *self.explain_label(who, self.main, best), ""]

    def ask(self, task: str, who: str, label: str) -> list:
        """Shows why a label is expected; those of the other tasks are no longer chosen."""
        return [*self.explain_label(who, task, label), *(gr.Radio(value=None) for _ in self.tasks[1:])]

    def show_moves(self, who: str, task: str, label: str) -> str:
        """Shows what moves if an event with a label happens now."""
        return write_table(
            [self.main.replace("_", " "), "before", "after", "ratio"], self.list_moves(who, task, label)
        )


def build_page(histories: Histories) -> gr.Blocks:
    """Makes the page as Gradio Blocks, which [`launch_page`] shows.

    Args:
        histories ([`Histories`]): The customers of the page, with their histories.
    """
    with gr.Blocks(title="MCM: customers and why", analytics_enabled=False) as blocks:
        gr.HTML(
            f"<h1>What will customers do next, and why?</h1><p>{len(histories.ids):,} customers of "
            f"{escape(histories.extractor.name.replace('_', ' '))}. MCM knows what came before "
            f"{histories.cutoff[:10]}; ✓ marks what came true after it. <a href='#answer'>One customer</a>, "
            "<a href='#what-if'>what if</a></p>"
        )
        page = PageComponents(histories)
        _on([blocks.load], page.start, None, page.opened)
        blocks.load(None, js=SUGGEST, api_visibility="private")
    return blocks


def launch_page(blocks: gr.Blocks, **options: Any) -> tuple:
    """Shows the page without files of other machines.

    Args:
        blocks (`gradio.Blocks`): The page.
        options (`dict[str, Any]`): Options of Gradio's `launch`.

    Returns:
        `tuple`: The application, its address on this machine, and its public address, which is `None`.
    """
    theme = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
    )
    return blocks.launch(
        theme=theme, css=CSS, footer_links=[], quiet=True, ssr_mode=False, prevent_thread_lock=True, **options
    )
