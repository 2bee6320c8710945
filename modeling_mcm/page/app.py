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

from modeling_mcm.data.tables import write_safely
from modeling_mcm.extras import needs

from .histories import Histories
from .views import (
    COLOURS,
    EVERYONE,
    GROUPS,
    TOTALS,
    Answer,
    Filters,
    PageContent,
    read_number,
    write_table,
)

with needs("app"):
    import gradio as gr
    from gradio.events import Dependency

LISTED = 100  # customers that the browser gets: of 500 a table takes twice as long; the file has all
CSS = """
.gradio-container { max-width: 1440px !important; margin: 0 auto !important; }
.gradio-container > main { padding: 8px !important; }
h1 { font-size: 1.2rem !important; margin: 0 !important; }
#timeline, #visits, #list, #forecast, #moves { contain: inline-size; overflow: hidden; padding: 0; }
#monday { contain: inline-size; }
#monday label { padding: 2px 8px; white-space: nowrap; }
.wide { overflow: auto; max-height: 75vh; font-size: 13px; }
.wide table { margin: 0; border: 0; border-collapse: separate; border-spacing: 0; }
.wide th, .wide td { padding: 0 6px; border-width: 0 0 1px; text-align: left; white-space: nowrap; }
.wide th { position: sticky; top: 0; z-index: 1; white-space: normal; vertical-align: bottom; line-height: 1.2; }
.wide th, .wide td:first-child { background: var(--background-fill-primary); }
.wide td:first-child { position: sticky; left: 0; }
.wide .number { text-align: right; }
.wide button { padding: 0; background: none; font: inherit; text-align: left; text-decoration: underline; }
@media (max-width: 640px) { #monday .wrap { flex-wrap: nowrap; overflow-x: auto; } }
"""
# A click on a heading of the list sorts, and one on a customer's id opens the customer
CLICKS = """element.addEventListener('click', ({target}) => { const part = target.closest('[data-open], [data-sort]');
if (part) trigger('click', {...part.dataset}); })"""
ADDRESS = """(who) => { if (who) { const url = new URL(location); url.searchParams.set('customer', who);
history.replaceState(null, '', url); scrollTo({top: 0}); } }"""
SUGGEST = """() => { for (const id of ['words', 'label'])
document.querySelector(`#${id} input`).setAttribute('list', `${id}-labels`); }"""
DOWNLOAD = "() => document.querySelector('#file').click()"
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
        self.known, self.main = set(histories.ids), histories.main_task
        self.folder = Path(tempfile.mkdtemp(prefix="mcm-page-"))  # nobody else may read it
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder / "gradio")  # where Gradio copies what the browser downloads
        with gr.Accordion("All customers", elem_id="all") as everyone:
            listed = self._draw_list()
        who, box, another = self._draw_customer()
        self.opened = [who, box, everyone]
        _on([another.click], lambda: self.open(random.choice(self.histories.ids)), None, self.opened)
        _on([box.submit], self.open, box, self.opened)
        _on(
            [listed.click],
            self.click,
            self.filters,
            [*self.opened, *self.filters, *self.parts],
            show_progress_on=listed,
        )

    # ------------------------------------------------------------------------------------------------- all customers

    def _draw_list(self) -> gr.HTML:
        first, scored = self.answer(Filters()), len(self.customers)
        number, table = self._describe(first.table, scored)
        question = gr.Radio(self.questions, value=EVERYONE, show_label=False, elem_id="monday", container=False)
        with gr.Row():
            name = self.main.replace("_", " ")
            words = _field("words", f"Likely {name}, or group" if self.tasks else "Group", scale=2, min_width=200)
            column = gr.Dropdown(
                [*first.table.columns], value=first.column, label="Order by", elem_id="column", scale=2, min_width=120
            )
            # an empty gr.Number is 0
            least, most, budget = (
                _field(name.split()[-1], name, min_width=60) for name in ("At least", "At most", "How many")
            )
            falls = gr.Checkbox(first.falls, label="Largest first", elem_id="falls", min_width=80)
        with gr.Row():
            count = gr.Markdown(number, elem_id="number")
            export = gr.Button("Export as CSV", elem_id="export", size="sm", scale=0)
            file = gr.DownloadButton(visible="hidden", elem_id="file")
        listed = gr.HTML(table, elem_id="list", js_on_load=CLICKS)
        # Of each browser: for what question and words the list is, and how many customers were scored then
        shown = gr.State((EVERYONE, "", scored))
        self.filters, self.timer = [question, words, column, least, most, falls, budget, shown], gr.Timer(2)
        self.parts = [count, listed]

        typed = [event for field in (words, least, most, budget) for event in (field.submit, field.blur)]
        chosen = [question.input, column.input, falls.input]
        outputs = [*self.filters, *self.parts]
        _on(
            [*chosen, *typed],
            self.show_list,
            self.filters,
            outputs,
            trigger_mode="always_last",
            show_progress_on=listed,
        )
        _on([self.timer.tick], self.fill, self.filters, [*outputs, self.timer], show_progress="hidden")
        written = _on([export.click], self.write_file, self.filters, file)
        written.then(None, js=DOWNLOAD, api_visibility="private")
        return listed

    def show_list(
        self,
        question: str,
        words: str,
        column: str,
        least: str,
        most: str,
        falls: bool,
        budget: str,
        shown: tuple[str, str, int],
    ) -> list:
        """Shows the rows that the filters let through; of another question, or for other words, in their own order.
        Fields that stay as they are get no value: somebody may be writing there."""
        fields: list = [gr.skip()] * len(self.filters)
        if question != shown[0]:
            fields[3] = fields[4] = least = most = ""
        column = column if (question, words) == shown[:2] else ""
        scored = len(self.histories.scored)
        found = self._filter(question, words, column, least, most, falls, budget)
        fields[2] = gr.Dropdown([*found.table.columns], value=found.column)
        fields[5], fields[7] = found.falls, (question, words, scored)
        return [*fields, *self._describe(found.table, scored)]

    def _filter(
        self, question: str, words: str, column: str, least: str, most: str, falls: bool, budget: str
    ) -> Answer:
        number = read_number(budget, "How many")
        limits = read_number(least, "At least"), read_number(most, "At most")
        asked = Filters(question, words, column, *limits, falls, None if number is None else max(0, int(number)))
        return self.answer(asked)

    def write_file(self, *filters: Any) -> Path:
        """Writes all rows that the filters let through, in a folder of their own: another browser has other rows."""
        file = Path(tempfile.mkdtemp(dir=self.folder), "customers.csv")
        write_safely(self._filter(*filters[:-1]).table, file)
        return file

    def fill(self, *filters: Any) -> list:
        """Shows the customers who were scored since, or why no more will be."""
        failed, is_new = self.histories.failure is not None, len(self.histories.scored) > filters[-1][-1]
        parts = self.show_list(*filters) if failed or is_new else [gr.skip()] * (len(self.filters) + len(self.parts))
        return [*parts, gr.Timer(active=len(self.histories.scored) < len(self.known) and not failed)]

    def _describe(self, table: pd.DataFrame, scored: int) -> list:
        """How many rows there are, and the table of the first."""
        kind, first, customers = table.columns[0], table.head(LISTED), len(self.known)
        number = f"{len(table):,} {kind}{'s' * (len(table) != 1)}"
        if len(table) > LISTED:
            number += f", the first {LISTED} are shown; the CSV has all"
        if failure := self.histories.failure:
            number += f" (the scoring stopped after {scored:,} of {customers:,}: {escape(failure)})"
        elif scored < customers:
            number += f" ({scored:,} of {customers:,} are scored so far)"
        return [number, write_table(first, first.itertuples(index=False), opens=True)]

    # --------------------------------------------------------------------------------------------------- one customer

    def _draw_customer(self) -> tuple[gr.Textbox, gr.Textbox, gr.Button]:
        with gr.Row(equal_height=True):
            box = _field("customer", "Customer", placeholder="Id, then Enter", scale=4)
            another = gr.Button("Another customer", scale=1, min_width=150, elem_id="another")
        who = gr.Textbox(visible="hidden", show_label=False)  # who is shown
        gr.HTML(_suggestions("words", self.list_words()), visible="hidden")
        about = [gr.HTML(elem_id="answer"), gr.HTML(visible=bool(self.days), elem_id="forecast")]
        with gr.Row(elem_id="expectations"):
            radios = [
                gr.Radio([], label=f"Next {name.replace('_', ' ')}", elem_id=f"next-{name}", min_width=300)
                for name in self.tasks
            ]
        why, visits = (gr.HTML(elem_id=name, visible=bool(self.tasks)) for name in ("why", "visits"))
        timeline = gr.BarPlot(
            x="time", y="events", color="visit", color_map=COLOURS, tooltip=["points without it", "what"], height=280,
            x_title=" ", y_title="events of the visit", color_title=" ", elem_id="timeline",
            label=f"Visits; those from {self.histories.cutoff[:10]} on are hidden from MCM",
        )  # fmt: skip
        _legend(COLOURS if self.tasks else dict([*COLOURS.items()][2:]))
        moves = self._draw_what_if(who) if self.tasks else gr.HTML(visible=False)

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
                suggested = gr.HTML(_suggestions("label", self.histories.list_labels(self.main)), visible="hidden")
                add = gr.Button("Show what moves", variant="primary", elem_id="add")
            moves = gr.HTML(elem_id="moves")
        _on(
            [task.change],
            lambda name: ["", _suggestions("label", self.histories.list_labels(name))],
            task,
            [label, suggested],
        )
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

    def click(self, event: gr.EventData, *filters: Any) -> list:
        """Opens a customer, the customers of a group, or all by the quantity of a total; or sorts by a column, by the
        same one again the other way round."""
        clicked: dict[str, str] = event._data or {}
        name, (question, words, column, least, most, falls, *others) = clicked.get("open", ""), filters
        fields = [gr.skip()] * (len(self.filters) + len(self.parts))
        if "sort" in clicked:
            falls = not falls if clicked["sort"] == column else clicked["sort"] != "customer"
            fields = self.show_list(question, words, clicked["sort"], least, most, falls, *others)
        elif question == GROUPS:
            fields = [EVERYONE, name, *self.show_list(EVERYONE, name, "", "", "", falls, *others)[2:]]
        elif question == TOTALS:
            asked = (EVERYONE, words, others[-1][-1])
            by = f"mean {name.rpartition(' in ')[0]} in {self._month} days"
            shown = self.show_list(EVERYONE, words, by, "", "", True, others[0], asked)
            fields = [EVERYONE, shown[1], shown[2], "", "", *shown[5:]]
        else:
            return [*self.open(name), *fields]
        return [*[gr.skip()] * len(self.opened), *fields]

    def show(self, who: str) -> list:
        """Shows a customer, and why the likeliest label of the main task is expected."""
        forecast = write_table(["forecast", *(f"{day} days" for day in self.days)], self.list_forecasts(who))
        about = [self.write_answer(who), forecast]
        if not self.tasks:
            return [*about, "", "", self.draw_timeline(who, {}, 0.0), ""]
        choices = self.list_expected(who)
        best = choices[self.main][0][1]
        radios = [gr.Radio(choices[name], value=best if name == self.main else None) for name in self.tasks]
        return [*about, *radios, *self.explain_label(who, self.main, best), ""]

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
            f"{histories.cutoff[:10]}; ✓ marks what came true after it. <a href='#answer'>One customer</a></p>"
        )
        page = PageComponents(histories)
        _on([blocks.load], page.start, None, page.opened)
        _on([blocks.load], page.fill, page.filters, [*page.filters, *page.parts, page.timer], show_progress="hidden")
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
