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
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from modeling_mcm.data.dataset import CUSTOMER
from modeling_mcm.extras import needs
from modeling_mcm.forecaster_mcm import ALIVE, CHANCE, DAYS_TO_VISIT, MissingForecastsError
from modeling_mcm.page.histories import LIKELIEST, RHYTHM, VALUE, Histories
from modeling_mcm.scoring.scorer import CHANCES, SCORES

SHOWN_LABELS = 6  # of a task
COMPARED, MOVES = 1000, 8  # labels that are compared before and after; shown of those
VISITS, VALUES = 5, 4  # that are listed
LISTED = 100  # customers that the browser gets: of 500 a table takes twice as long; the file has all
WEEK, MONTH, QUARTER = 7, 30, 90  # days; what is told for them is that of the closest horizon
LEAST = 0.05  # of the largest change: a visit with less speaks neither for nor against
LEAST_MOVE = 0.0005  # smallest change of a probability that is shown
COLOURS = {"speaks for it": "#0f7f87", "speaks against it": "#c8450f", "other visit": "#6b7783", "hidden": "#94700d"}
THIRDS = {"lowest third": "#6b7783", "middle third": "#0f7f87", "highest third": "#c8450f"}  # of the map
BUYING = ("purchase", "buy", "order", "sale", "transaction")  # in token types that are purchases
COMES, LEAVES, MISSES, GROUPS, SENDS = MONDAY = (  # questions about all customers
    "Who will come this week?",
    "Who is slipping away?",
    "Who will buy it, and has not for a month?",
    "What is each group worth next quarter?",
    "What to send to whom?",
)
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


def percent(share: float) -> str:
    """Writes a probability as a percentage with at most three digits."""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def make_safe(table: pd.DataFrame) -> pd.DataFrame:
    """The table for a CSV file in which no program of spreadsheets takes a text for a formula."""

    def quote(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value[:1] in (*"=+-@\t\r",) else value

    return table.map(quote).rename(columns=quote)


def write_table(headers: Iterable[str], rows: Iterable[Sequence[Any]], opens: bool = False) -> str:
    """A table as HTML, wide ones with a scroll bar of their own. With `opens` a click on the first column opens the
    customer, and one on a heading sorts (`CLICKS`)."""

    def write(value: Any) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:,.2f}".rstrip("0").rstrip(".")
        return escape(str(value))

    def button(kind: str, text: str) -> str:
        return f"<button data-{kind}='{text}'>{text}</button>" if opens else text

    heads = "".join(f"<th>{button('sort', write(name))}</th>" for name in headers)
    body = "".join(
        f"<tr><td>{button('open', write(first))}</td>{''.join(f'<td>{write(value)}</td>' for value in others)}</tr>"
        for first, *others in rows
    )
    return f"<div class='wide' tabindex='0'><table><tr>{heads}</tr>{body}</table></div>"


class Page:
    """What the page shows, as texts and tables."""

    def __init__(self, histories: Histories):
        self.histories, self.tasks = histories, histories.tasks
        days = histories.model.model.customer_forecasts.days
        self._days = [f"{day:g}" for day in days]
        self._week, self._month, self._quarter = (
            f"{min(days, key=lambda day: abs(day - wanted)):g}" if days else "" for wanted in (WEEK, MONTH, QUARTER)
        )
        self._listed: tuple[Any, pd.DataFrame] = None, pd.DataFrame()  # a `Scored`, and its list

    @property
    def customers(self) -> pd.DataFrame:
        """A row for each customer that is scored so far, ordered by id: as numbers where all ids are numbers."""
        if self._listed[0] is not (scored := self.histories.scored):
            self._listed = scored, self._list(scored.table)
        return self._listed[1]

    def labels(self, task: str) -> list[str]:
        """Lists the labels of a task that an event can have."""
        extractor = self.histories.extractor
        own = extractor.schema.reserved_token_types if task == extractor.token_type_feature else []
        return [label for label in extractor.vocabularies[task] if label not in own]

    def find_label(self, task: str, text: str) -> str:
        """The label that a text means, whatever its capitals. Raises `ValueError` if there is none."""
        labels, text = self.labels(task), text.strip()
        same = {label.lower(): label for label in reversed(labels)}
        if text not in labels and text.lower() not in same:
            raise ValueError(f"There is no {task.replace('_', ' ')} {text!r}: choose one of the list.")
        return text if text in labels else same[text.lower()]

    # -------------------------------------------------------------------------------------------------- all customers

    def _list(self, scored: pa.Table) -> pd.DataFrame:
        main = self.histories.main_task
        table = scored.select([CUSTOMER, *RHYTHM]).to_pandas()
        table.columns = ["customer", "days since visit", "usual gap"]
        table["days late"] = table["days since visit"] - table["usual gap"]
        table[self._value] = scored[VALUE].to_numpy()
        if f"{CHANCE}_{self._month}d" in scored.column_names:
            told, comes = self._names(), f"{CHANCE}_{self._week}d"
            table[f"{told[comes]}, %"] = 100 * scored[comes].to_numpy().astype(float)
            for name in [DAYS_TO_VISIT, f"visits_{self._month}d", *self._sums()]:
                table[told[name]] = scored[name].to_numpy().astype(float)
            table["alive, %"] = 100 * scored[ALIVE].to_numpy().astype(float)
        for name in self.histories.predictions:
            table[name] = scored[name].to_numpy()
        table = table.round({name: 2 if name in self.histories.predictions else 1 for name in table.columns[1:]})
        names = np.stack(scored[main].to_numpy()) if len(table) else np.empty((0, 1), object)
        table["likely next"] = [", ".join(map(str, best)) for best in names[:, :3]]
        ids = table["customer"]
        order = np.argsort(ids.astype("uint64") if ids.str.fullmatch(r"\d{1,18}").all() else ids, kind="stable")
        return table.iloc[order]

    @property
    def _value(self) -> str:
        """The column of what a customer was worth so far."""
        names = [self._words()[name] for name in self.histories.model.config.summed_features] or ["visits"]
        return f"{names[0]} so far"

    def _sums(self) -> list[str]:
        """Names of the forecasts of sums, such as what is spent in a month."""
        return [f"{name}_{self._month}d" for name in self.histories.model.config.summed_features]

    def _words(self) -> dict[str, str]:
        """Quantities that are told, in words: the sum of amounts is what a customer spends."""
        told, extractor = self.histories.model.model.customer_forecasts, self.histories.extractor
        spend = f"spend ({extractor.currency})" if extractor.currency else "spend"
        return {name: spend if name == extractor.amount else name.replace("_", " ") for name in told.quantities} | {
            CHANCE: "comes"
        }

    def _names(self) -> dict[str, str]:
        """Forecasts in words, by name: `amount_30d` is "mean spend in 30 days"."""
        words = {name: word if name == CHANCE else f"mean {word}" for name, word in self._words().items()}
        names = {f"{name}_{day}d": f"{word} in {day} days" for day in self._days for name, word in words.items()}
        return names | {DAYS_TO_VISIT: "days to next visit"}

    def find(self, label: str, column: str, least: float | None, most: float | None, is_falling: bool) -> pd.DataFrame:
        """Finds customers for whom a label (empty: any) is among the likeliest, and a column is between two limits
        (None: no limit), ordered by the column. Raises `ValueError` if there is no such label."""
        table, main = self.customers, self.histories.main_task
        if label:
            label, scored = self.find_label(main, label), self._listed[0].table
            names, values = (scored[name].combine_chunks() for name in (main, self._told))
            at = np.flatnonzero(pc.equal(names.values, label))
            chances = np.full(len(scored), np.nan)
            chances[names.value_parent_indices().to_numpy()[at]] = 100 * values.values.to_numpy()[at]
            table = table.copy()
            table.insert(1, f"{label}, %", chances[table.index].round(2))
            table = table.dropna(subset=f"{label}, %")
            column = f"{label}, %" if column == "customer" else column
        if least is not None or most is not None:
            if column == "customer":
                raise ValueError("There are limits for no column: order by the one that they are for.")
            table = table[table[column].between(-np.inf if least is None else least, np.inf if most is None else most)]
        if column == "customer":
            return table[:: -1 if is_falling else 1]
        return table.sort_values(column, ascending=not is_falling, kind="stable")

    def monday(self, question: str, label: str = "", budget: int = 0) -> pd.DataFrame:
        """Answers one of `MONDAY`: who will come, as many as are expected, likeliest first; who is late, by the value
        that is at risk; who will buy a label and had it, but not within a month; what groups are worth; and what each
        of at most `budget` customers takes most likely. Raises `ValueError` where what a question needs is not there.
        """
        table, main = self.customers, self.histories.main_task
        week = f"{self._names().get(f'{CHANCE}_{self._week}d')}, %"
        if question in (COMES, LEAVES, GROUPS) and week not in table:
            raise ValueError("The checkpoint has no forecasts, and this question needs them.")
        if question == COMES:
            number = round(table[week].sum() / 100)
            return table.sort_values(week, ascending=False, kind="stable").head(number)
        if question == LEAVES:
            risk = (table[self._value] * (1 - table["alive, %"] / 100)).round(2)
            late = table.assign(**{"at risk": risk})[table["days late"] > 0]
            return late.sort_values("at risk", ascending=False, kind="stable")
        if question == MISSES:
            if not label.strip():
                raise ValueError("Say which one first, in the field of what is likely.")
            likely, days = (
                self.find(label, "customer", None, None, True),
                self.histories.days_since(main, self.find_label(main, label)),
            )
            likely.insert(2, "days since it", likely["customer"].map(days).round(1))
            return likely[likely["days since it"] > MONTH]
        return self._groups() if question == GROUPS else self._sent(budget)

    def _groups(self) -> pd.DataFrame:
        """What the customers of each value of the profile, and of each third by value so far, will do in a quarter."""
        table, scored = self.customers, self._listed[0].table
        sums = [f"{name}_{self._quarter}d" for name in (*self.histories.model.config.summed_features, "visits")]
        values = pd.DataFrame({self._names()[name].removeprefix("mean "): scored[name].to_numpy() for name in sums})
        groups = pd.DataFrame([self.histories.profiles.get(name, {}) for name in table["customer"]], index=table.index)
        groups[self._value] = _thirds(table[self._value])
        parts = []
        for column in groups:
            names = groups[column].astype("string").fillna("unknown")
            part = values.groupby(names).sum().round(1)
            part.insert(0, "customers", names.value_counts())
            part.insert(0, "group", [f"{column}: {name}" for name in part.index])
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def _sent(self, budget: int) -> pd.DataFrame:
        """The customers who most likely take their best offer; without a checkpoint for offers, their best label."""
        if budget < 1:
            raise ValueError("Say first how many can be sent, a whole number from 1 on, in the field Budget.")
        table, offers = self.customers, self.histories.offers
        if offers:
            what, chances = table[offers].idxmax(axis=1).str.removesuffix(", %"), table[offers].max(axis=1)
        else:
            columns = (self._listed[0].table[name].to_pylist() for name in (self.histories.main_task, self._told))
            what, chances = (pd.Series([best[0] for best in column])[table.index] for column in columns)
            chances = (100 * chances).round(2)
        sent = pd.DataFrame({"customer": table["customer"], "send": what, "chance, %": chances})
        return sent.sort_values("chance, %", ascending=False, kind="stable").head(budget)

    @functools.cached_property
    def _told(self) -> str:
        """The column of the chances of the main task's labels, or of their scores."""
        main = self.histories.main_task
        return main + (CHANCES if main + CHANCES in self.histories.scored.table.column_names else SCORES)

    def map(self, found: pd.DataFrame, column: str) -> tuple[pd.DataFrame, str]:
        """Places customers of the list on a map, with the values and thirds of a column, and says which: the one that
        orders the list; in the order of ids what they spend, or how late they are."""
        if column == "customer":
            column = next((name for name in found if name.startswith("mean spend")), "days late")
        found, scored = found.dropna(subset=column), self.histories.scored
        centred = scored.directions - scored.directions.mean(0)
        _, axes = np.linalg.eigh(centred.T @ centred)
        x, y = (centred[[scored.indices[name] for name in found["customer"]]] @ axes[:, -2:]).T
        placed = {"x": x, "y": y, "customer": found["customer"], "value": found[column]}
        return pd.DataFrame(placed | {"third": _thirds(found[column])}), column

    # --------------------------------------------------------------------------------------------------- one customer

    def answer(self, customer_id: str) -> str:
        """Writes what is expected in one sentence, and the profile below it, as HTML."""
        household = self.histories.household(customer_id)
        live, parts = household.live, []
        with_forecast = self._forecast(customer_id)
        if with_forecast:
            away, longest, week = with_forecast[DAYS_TO_VISIT], self._days[-1], self._days[0]
            when = "probably stays away for" if away >= float(longest) else "comes in about"
            days = longest if away >= float(longest) else f"{max(away, 1):.0f}"
            share = percent(with_forecast[f"{CHANCE}_{week}d"])
            when += f" {days} day{'s' * (days != '1')} ({share} within {week} days)"
            for name in self.histories.model.config.summed_features:
                amount = f"{with_forecast[f'{name}_{self._month}d']:,.0f}"
                when += f", spends {amount} {self.histories.extractor.currency or ''}".rstrip()
                when += f" on average in {self._month} days"
            parts = [when]
        (likely,) = live.scores(self.histories.cutoff, [self.histories.main_task], 3).values()
        parts.append(f"likely next: {', '.join(entry['label'] for entry in likely)}")
        sentence = "; ".join(parts)
        values = "".join(f", {escape(name.replace('_', ' '))} {escape(str(v))}" for name, v in live.profile.items())
        return (
            f"<h2>{escape(sentence[0].upper() + sentence[1:])}.</h2>"
            f"<p>Customer <b>{escape(customer_id)}</b>{values}, {len(live.events):,} events</p>"
        )

    def expected(self, customer_id: str) -> dict[str, list[tuple[str, str]]]:
        """Lists the best labels of every task as (text, label): the probability, and whether it came true."""
        household = self.histories.household(customer_id)
        scores = household.live.scores(self.histories.cutoff, k=SHOWN_LABELS)
        choices: dict[str, list[tuple[str, str]]] = {}
        for task in self.tasks:
            choices[task] = []
            for entry in scores[task]:
                came = household.bought[task].get(entry["label"])
                told = percent(entry.get("chance", entry["score"]))
                choices[task].append((f"{entry['label']} · {told}{f' · ✓ {came}' if came else ''}", entry["label"]))
        return choices

    def why(self, customer_id: str, task: str, label: str) -> tuple[str, pd.DataFrame, list[Any]]:
        """Explains a label: a sentence as HTML, the timeline, and the visits that speak for it."""
        household, cutoff = self.histories.household(customer_id), self.histories.cutoff
        result = household.live.explain(task, label, cutoff)
        visits: list[Any] = []
        changes: dict[str, float] = {}
        times = {visit.time for visit in household.visits}
        for visit in result.visits:
            if visit.without is None or visit.time not in times:  # a letter that the shop sent is no visit
                continue
            change = changes[visit.time] = visit.without - result.chance
            if change < 0 and len(visits) < VISITS:
                texts = dict.fromkeys(event[task] for event in visit.events if task in event)
                first = sorted(texts, key=lambda text: text != label)[:VALUES]
                visits.append([visit.time[:10], f"{result.chance:.1%} → {visit.without:.1%}", ", ".join(first)])
        decides = f"<b>Without the visit of {visits[0][0]}: {visits[0][1]}.</b> " if visits else ""
        sentence = (
            f"<h3>Why {escape(label)}?</h3><p>{decides}{self._verb} {escape(result.words)}. "
            f"With no history: {result.baseline:.1%}.</p>"
        )
        largest = max(map(abs, changes.values()), default=0.0)
        rows = []
        for seen in household.visits:
            change = changes.get(seen.time, 0.0)
            side = "other visit" if abs(change) <= LEAST * largest else [*COLOURS][change > 0]
            what = ", ".join(seen.values[:VALUES])
            points = f"{100 * change:+.2f}"
            rows.append((pd.Timestamp(seen.time), seen.events, side if seen.is_past else "hidden", points, what))
        return sentence, pd.DataFrame(rows, columns=["time", "events", "visit", "points without it", "what"]), visits

    @property
    def _verb(self) -> str:
        types = " ".join(self.histories.extractor.target_token_types).lower()
        return "Bought" if any(word in types for word in BUYING) else "Chosen"

    def _forecast(self, customer_id: str) -> dict[str, Any]:
        try:
            return self.histories.household(customer_id).live.forecast(self.histories.cutoff)
        except MissingForecastsError:
            return {}

    def forecast(self, customer_id: str) -> list[list[str]]:
        """Lists the checkpoint's forecasts by quantity and horizon, the median with its interval of 80% and the mean;
        none if it has none."""
        result, rows = self._forecast(customer_id), []
        for quantity, word in self._words().items() if result else ():
            names = [f"{quantity}_{day}d" for day in self._days]
            if quantity == CHANCE:
                rows.append([word, *(percent(result[name]) for name in names)])
                continue
            medians = [[result[f"{name}_{what}"] for what in ("median", "low80", "high80")] for name in names]
            told = "{:,.0f} ({:,.0f} to {:,.0f})".format
            rows.append([f"{word}, median (80% of such customers)", *(told(*values) for values in medians)])
            rows.append([f"{word}, mean", *(f"{result[name]:,.1f}" for name in names)])
        return rows

    def alike(self, customer_id: str) -> list[tuple[str, str]]:
        """Lists similar customers as (text, id), with what is expected of each."""
        likely = self.customers.set_index("customer")["likely next"]
        close = self.histories.alike(customer_id)
        return [(f"{name} · {likeness:.2f} · {likely.get(name, '')}", name) for name, likeness in close]

    def what_if(self, customer_id: str, task: str, label: str) -> list[list[str]]:
        """Lists what changes most if an event with a label happens now: labels with their scores before and after it,
        and the forecast that moves most. Raises `ValueError` if there is no such label."""
        label = self.find_label(task, label)
        after = self.histories.what_if(customer_id, self.histories.template(task, label), self.histories.cutoff)
        shown, before = self.histories.main_task, self.histories.household(customer_id).live
        result: list[dict[str, float]] = []
        for live in (before, after):
            scores = live.scores(self.histories.cutoff, [shown], COMPARED)[shown]
            result.append({entry["label"]: entry.get("chance", entry["score"]) for entry in scores})
        old, new = result
        moved = [name for name in new if abs(new[name] - old.get(name, 0)) >= LEAST_MOVE]
        moved.sort(key=lambda name: -abs(new[name] - old.get(name, 0)))
        rows = [_move(name, old.get(name, 0), new[name], percent) for name in moved[:MOVES]]
        if told := self._forecast(customer_id):
            then: dict[str, Any] = after.forecast(self.histories.cutoff)
            names = self._names()
            most = max(names, key=lambda name: abs(np.log(max(then[name], 1e-6) / max(told[name], 1e-6))))
            told_as = percent if most.startswith(CHANCE) else "{:,.1f}".format
            move = _move(names[most], told[most], then[most], told_as)
            rows += [move] * (move[1] != move[2])
        return rows


def _move(name: str, old: float, new: float, told_as: Callable[[float], str]) -> list[str]:
    return [name, told_as(old), told_as(new), f"× {new / old:.2g}" if old else "new"]


def _thirds(values: pd.Series) -> pd.Series:
    return pd.cut(values.rank(pct=True), [0, 1 / 3, 2 / 3, 1], labels=[*THIRDS]).astype(str)


def _read_number(text: str, name: str) -> float | None:
    try:
        number = float(text) if text.strip() else 0.0
        if np.isfinite(number):
            return number if text.strip() else None
    except ValueError:
        pass
    raise ValueError(f"{name} is {text!r}: write a number, such as 12.5, or leave the field empty.")


def _suggestions(field: str, labels: list[str]) -> str:
    """Labels that the browser suggests for a field. (In a `gr.Dropdown` Enter takes another label than was typed.)"""
    options = "".join(f"<option>{escape(label)}</option>" for label in labels)
    return f"<datalist id='{field}-labels'>{options}</datalist>"


def _legend(colours: dict[str, str]) -> str:
    return "".join(f"<span style='color: {colour}'>■</span> {name} &emsp;" for name, colour in colours.items())


def build_page(histories: Histories) -> Any:
    """Makes the page as Gradio Blocks, which [`launch_page`] shows.

    Args:
        histories ([`Histories`]): The customers of the page, with their histories.
    """
    with needs("app"):
        import gradio as gr

    page = Page(histories)
    tasks, main, shop = page.tasks, histories.main_task, histories.extractor.name.replace("_", " ")
    files = Path(tempfile.mkdtemp(prefix="mcm-page-"))  # nobody else may read it
    atexit.register(shutil.rmtree, files, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(files / "gradio")  # where Gradio copies what the browser downloads

    def refuse(why: str, outputs: int) -> list[Any]:
        gr.Warning(escape(why))
        return [gr.skip()] * outputs

    def find(label: str, column: str, least: str, most: str, is_falling: bool) -> Iterator[list[Any]]:
        """The first customers, and then the file of all, which takes longer."""
        try:
            limits = _read_number(least, "At least"), _read_number(most, "At most")
            found = page.find(label, column, *limits, is_falling)
        except ValueError as error:
            yield refuse(str(error), 4)
            return
        yield from tell(found, column)

    def answer_monday(question: str, label: str, budget: str) -> Iterator[list[Any]]:
        try:
            found = page.monday(question, label, int(_read_number(budget, "Budget") or 0))
        except ValueError as error:
            yield refuse(str(error), 4)
            return
        yield from tell(found, "customer", f"**{question}** ")

    def tell(found: pd.DataFrame, column: str, heading: str = "") -> Iterator[list[Any]]:
        number, table, drawn = draw(found, column)
        shown = [heading + number, table, gr.ScatterPlot(**drawn)]
        yield [*shown, gr.DownloadButton(interactive=False)]
        yield [*[gr.skip()] * 3, gr.DownloadButton(value=write(found), interactive=True)]

    def draw(found: pd.DataFrame, column: str) -> tuple[str, str, dict[str, Any]]:
        """How many rows there are, and the table and the map of the first."""
        number, first = f"{len(found):,} {'customers' if 'customer' in found else 'groups'}", found.head(LISTED)
        if len(found) > LISTED:
            number += f", the first {LISTED} are shown; the CSV has all"
        if (scored := len(page.customers)) < len(histories.ids):
            number += f" ({scored:,} of {len(histories.ids):,} are scored so far)"
        table = write_table(first, first.itertuples(index=False), opens=True)
        if "days late" not in found or not len(found):  # nothing to draw
            return number, table, {}
        placed, title = page.map(first, column)
        return number, table, {"value": placed, "color_title": title}

    def write(found: pd.DataFrame) -> Path:
        safe = pa.Table.from_pandas(make_safe(found), preserve_index=False)
        pyarrow.csv.write_csv(safe, files / "customers.csv")
        return files / "customers.csv"

    def fill(*asked: Any) -> Iterator[list[Any]]:
        """Shows the customers who were scored since."""
        number = len(page.customers)
        is_done = number == len(histories.ids)
        if filled == [number]:
            yield [*[gr.skip()] * 4, gr.Timer(active=not is_done)]
            return
        filled[:] = [number]
        for shown in find(*asked):
            yield [*shown, gr.Timer(active=not is_done)]

    def open_customer(name: str) -> list[Any]:
        """Opens a customer by the exact id, and closes the list."""
        if (name := name.strip()) not in known:
            return refuse(f"There is no customer {name!r}.", 3)
        return [name, "", gr.Accordion(open=False)]

    def start(request: gr.Request) -> list[Any]:
        asked = request.query_params.get("customer")
        if asked and asked.strip() in known:
            return open_customer(asked)
        if asked:
            refuse(f"There is no customer {asked!r}: the first one is shown.", 0)
        return [page.customers["customer"].iloc[0], "", gr.Accordion(open=True)]

    def click(event: gr.EventData, column: str, is_falling: bool) -> list[Any]:
        """Opens a customer, or sorts by a column: by the same one again the other way round."""
        clicked = event._data or {}
        if (name := clicked.get("sort")) in columns:
            return [*[gr.skip()] * 3, name, (not is_falling) if name == column else name != "customer"]
        return [*open_customer(clicked["open"] if "open" in clicked else ""), gr.skip(), gr.skip()]

    def show(who: str) -> list[Any]:
        choices = page.expected(who)
        best = choices[main][0][1]
        radios = [gr.Radio(choices[name], value=best if name == main else None) for name in tasks]
        headers = ["forecast", *(f"{day} days" for day in page._days)]
        first = [page.answer(who), write_table(headers, page.forecast(who)), *radios]
        return [*first, *explain(who, main, best), gr.Radio(page.alike(who), value=None), ""]

    def explain(who: str, name: str, label: str) -> list[Any]:
        sentence, timeline, visits = page.why(who, name, label)
        return [sentence, timeline, write_table(["visit that speaks for it", "without it", "with"], visits)]

    def ask(name: str, who: str, chosen: str) -> list[Any]:
        return [*explain(who, name, chosen), *(gr.Radio(value=None) for other in tasks if other != name)]

    def what_if(who: str, name: str, chosen: str) -> Any:
        try:
            moves = page.what_if(who, name, chosen)
        except ValueError as error:
            return refuse(str(error), 1)[0]
        return write_table([main.replace("_", " "), "before", "after", "ratio"], moves)

    known, filled = set(histories.ids), [len(page.customers)]
    with gr.Blocks(title="MCM: customers and why", analytics_enabled=False) as blocks:
        gr.HTML(
            f"<h1>What will customers do next, and why?</h1><p>{len(histories.ids):,} customers of "
            f"{escape(shop)}. MCM knows what came before {histories.cutoff[:10]}; ✓ marks what came true after it. "
            "<a href='#answer'>One customer</a>, <a href='#what-if'>what if</a></p>"
        )
        with gr.Accordion("All customers", elem_id="all") as everyone:
            columns = [*page.customers.columns[:-1]]
            with gr.Row(elem_id="monday"):
                questions = [gr.Button(question, size="sm", min_width=150) for question in MONDAY]
                budget = gr.Textbox(label="Budget: how many can be sent", max_lines=1, elem_id="budget", min_width=90)
            with gr.Row():
                told = f"Likely to buy (among the {LIKELIEST} likeliest)" if page._verb == "Bought" else "Likely next"
                likely = gr.Textbox(label=told, max_lines=1, elem_id="likely", scale=2)
                column = gr.Dropdown(columns, value="customer", label="Order and colour by", elem_id="column")
                # an empty gr.Number is 0
                least = gr.Textbox(label="At least", max_lines=1, elem_id="least", min_width=90)
                most = gr.Textbox(label="At most", max_lines=1, elem_id="most", min_width=90)
                falling = gr.Checkbox(False, label="Largest first", elem_id="falling", min_width=120)
            told, table, drawn = draw(page.customers, "customer")
            number = gr.Markdown(told, elem_id="number")
            with gr.Tab("Table"):
                listed = gr.HTML(table, elem_id="list", js_on_load=CLICKS)
            with gr.Tab("Map"):  # drawn when it is chosen, since that takes a second
                places = gr.ScatterPlot(
                    **drawn, x="x", y="y", color="third", color_map=THIRDS,
                    x_title=" ", y_title=" ", x_axis_labels_visible=False, tooltip=["customer", "value"], height=320,
                    elem_id="map", label="Map of the customers of the table: similar ones are close",
                )  # fmt: skip
                gr.HTML(_legend(THIRDS))
            download = gr.DownloadButton("Export as CSV", write(page.customers), elem_id="export", size="sm")
        with gr.Row(equal_height=True):
            box = gr.Textbox(label="Customer", placeholder="Id, then Enter", max_lines=1, scale=4, elem_id="customer")
            another = gr.Button("Another customer", scale=1, min_width=150, elem_id="another")
        customer = gr.Textbox(visible="hidden", show_label=False)  # who is shown
        gr.HTML(_suggestions("likely", page.labels(main)), visible="hidden")
        suggested = gr.HTML(_suggestions("label", page.labels(main)), visible="hidden")
        answer = gr.HTML(elem_id="answer")
        forecast = gr.HTML(visible=bool(page._days), elem_id="forecast")
        with gr.Row(elem_id="expectations"):
            radios = {
                name: gr.Radio([], label=f"Next {name.replace('_', ' ')}", elem_id=f"next-{name}", min_width=300)
                for name in tasks
            }
        why = gr.HTML(elem_id="why")
        visits = gr.HTML(elem_id="visits")
        told = f"Visits; those from {histories.cutoff[:10]} on are hidden from MCM"
        timeline = gr.BarPlot(
            x="time", y="events", color="visit", color_map=COLOURS, tooltip=["points without it", "what"], height=280,
            x_title=" ", y_title="events of the visit", color_title=" ", label=told, elem_id="timeline",
        )  # fmt: skip
        gr.HTML(_legend(COLOURS))
        with gr.Row(elem_id="what-if"):
            with gr.Column(min_width=300):
                task = gr.Dropdown(tasks, value=main, label="What if this happens now?", elem_id="task")
                label = gr.Textbox(label="Which", max_lines=1, elem_id="label")
                add = gr.Button("Show what moves", variant="primary", elem_id="add")
            moves = gr.HTML(elem_id="moves")
        alike = gr.Radio([], label="Look-alikes, and what is expected of each", elem_id="alike")

        reasons = [why, timeline, visits]
        shown = [answer, forecast, *radios.values(), *reasons, alike, moves]
        options: dict[str, Any] = {"api_visibility": "private"}
        filters, result = [likely, column, least, most, falling], [number, listed, places, download]
        typed = [event for part in (likely, least, most) for event in (part.submit, part.blur)]
        gr.on([column.change, falling.change, *typed], find, filters, result, trigger_mode="always_last", **options)
        for question, button in zip(MONDAY, questions, strict=True):
            button.click(functools.partial(answer_monday, question), [likely, budget], result, **options)
        opened = [customer, box, everyone]
        blocks.load(start, None, opened, **options)
        box.submit(open_customer, box, opened, **options)
        listed.click(click, [column, falling], [*opened, column, falling], **options)
        alike.input(open_customer, alike, opened, **options)
        another.click(lambda: open_customer(random.choice(histories.ids)), None, opened, **options)
        customer.change(show, customer, shown, **options)
        customer.change(None, customer, None, js=ADDRESS, **options)
        for name, radio in radios.items():
            others = [other for other in radios.values() if other is not radio]
            asked = radio.input(functools.partial(ask, name), [customer, radio], [*reasons, *others], **options)
            asked.then(None, js=SCROLL, **options)
        task.change(lambda name: ["", _suggestions("label", page.labels(name))], task, [label, suggested], **options)
        gr.on([add.click, label.submit], what_if, [customer, task, label], moves, **options)
        blocks.load(None, js=SUGGEST, **options)
        timer = gr.Timer(2, active=len(page.customers) < len(histories.ids))
        timer.tick(fill, filters, [*result, timer], **options)
    return blocks


def launch_page(blocks: Any, waits: bool = True, **options: Any) -> Any:
    """Shows the page without files of other machines.

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
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
    )
    options |= {"quiet": True, "ssr_mode": False, "prevent_thread_lock": True}
    launched = blocks.launch(theme=theme, css=CSS, footer_links=[], **options)
    if waits:
        blocks.block_thread()
    return launched
