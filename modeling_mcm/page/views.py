# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the page shows, as texts and tables: the list of customers, answers to the questions of a Monday, and what MCM
expects of a customer, what really came, and which visits decided."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
import pandas as pd

from modeling_mcm.forecaster_mcm import ALIVE, CHANCE, DAYS_TO_VISIT
from modeling_mcm.inputs_mcm import CUSTOMER
from modeling_mcm.live import LiveCustomer
from modeling_mcm.scoring.scorer import CHANCES, EMBEDDING, SCORES

from .histories import RHYTHM, VALUE, Histories

SHOWN_LABELS = 6  # of a task
COMPARED, MOVES = 1000, 8  # labels that are compared before and after; shown of those
VISITS, VALUES = 5, 4  # that are listed
WEEK, MONTH, QUARTER = 7, 30, 90  # days; what is shown for them is that of the closest horizon
LEAST = 0.05  # of the largest change: a visit with less speaks neither for nor against
LEAST_MOVE = 0.0005  # smallest change of a probability that is shown
COLOURS = {"speaks for it": "#0f7f87", "speaks against it": "#c8450f", "other visit": "#6b7783", "hidden": "#94700d"}
THIRDS = {"lowest third": "#6b7783", "middle third": "#0f7f87", "highest third": "#c8450f"}  # of the map
BUYING = ("purchase", "buy", "order", "sale", "transaction")  # in token types that are purchases
FORMULA = r"^(?=[=+\-@\t\r])"  # begins what a program of spreadsheets would compute
COMES, LEAVES, MISSES, GROUPS, SENDS = QUESTIONS = (  # questions about all customers
    "Who will come this week?",
    "Who is slipping away?",
    "Who will buy it, and has not for a month?",
    "What is each group worth next quarter?",
    "What to send to whom?",
)


def percent(share: float) -> str:
    """Writes a probability as a percentage with at most three digits."""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def make_safe(table: pd.DataFrame) -> pd.DataFrame:
    """The table for a CSV file in which no program of spreadsheets takes a text for a formula."""
    return table.replace(FORMULA, "'", regex=True).rename(columns=lambda name: re.sub(FORMULA, "'", name))


def write_table(headers: Iterable[str], rows: Iterable[Sequence], opens: bool = False) -> str:
    """A table as HTML, wide ones with a scroll bar of their own. With `opens` a click on the first column opens the
    customer, and one on a heading sorts (`app.CLICKS`)."""

    def write(value: object) -> str:
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


def read_number(text: str, name: str) -> float | None:
    """The number in a field, None if it is empty. Raises `ValueError` for another text."""
    if not text.strip():
        return None
    with contextlib.suppress(ValueError):
        if np.isfinite(number := float(text)):
            return number
    raise ValueError(f"{name} is {text!r}: write a number, such as 12.5, or leave the field empty.")


class PageContent:
    """What the page shows of the customers of some [`Histories`]."""

    def __init__(self, histories: Histories):
        self.histories, self.tasks = histories, histories.tasks
        self.forecasts = histories.model.model.customer_forecasts
        self.days = [f"{day:g}" for day in self.forecasts.days]
        self._week, self._month, self._quarter = (
            min(self.days, key=lambda day: abs(float(day) - wanted), default="") for wanted in (WEEK, MONTH, QUARTER)
        )
        self._sums = histories.model.config.summed_features
        self._value = f"{self._words[self._sums[0]] if self._sums else 'visits'} so far"
        self._list = functools.lru_cache(1)(self._list_scored)

    @property
    def _words(self) -> dict[str, str]:
        """Quantities in words: the sum of amounts is what a customer spends."""
        extractor = self.histories.extractor
        spend = f"spend ({extractor.currency})" if extractor.currency else "spend"
        words = {name: name.replace("_", " ") for name in self.forecasts.quantities} | {CHANCE: "comes"}
        return words | ({extractor.amount: spend} if extractor.amount in words else {})

    @property
    def verb(self) -> str:
        """What a customer did with a label."""
        types = " ".join(self.histories.extractor.target_token_types).lower()
        return "Bought" if any(word in types for word in BUYING) else "Chosen"

    @property
    def names(self) -> dict[str, str]:
        """Forecasts in words, by name: `amount_30d` is "mean spend in 30 days"."""
        words = {name: word if name == CHANCE else f"mean {word}" for name, word in self._words.items()}
        names = {f"{name}_{day}d": f"{word} in {day} days" for day in self.days for name, word in words.items()}
        return names | {DAYS_TO_VISIT: "days to next visit"}

    def list_labels(self, task: str) -> list[str]:
        """Lists the labels of a task that an event can have."""
        extractor = self.histories.extractor
        own = extractor.schema.reserved_token_types if task == extractor.token_type_feature else []
        return [label for label in extractor.vocabularies[task] if label not in own]

    def find_label(self, task: str, text: str) -> str:
        """The label that a text means, whatever its capitals. Raises `ValueError` if there is none."""
        labels, text = self.list_labels(task), text.strip()
        same = [label for label in labels if label.lower() == text.lower()]
        if not same:
            raise ValueError(f"There is no {task.replace('_', ' ')} {text!r}: choose one of the list.")
        return text if text in same else same[0]

    # -------------------------------------------------------------------------------------------------- all customers

    @property
    def customers(self) -> pd.DataFrame:
        """A row for each customer that is scored so far, ordered by id: as numbers where all ids are numbers. The
        index counts the rows of `scored`."""
        return self._list(len(self.histories.scored))

    def _list_scored(self, number: int) -> pd.DataFrame:
        scored, (since, gap) = self.histories.scored[:number], RHYTHM
        columns = {"customer": CUSTOMER, "days since visit": since, "usual gap": gap, self._value: VALUE}
        comes, names, shares = f"{CHANCE}_{self._week}d", self.names, []
        if comes in scored:
            shares = [f"{names[comes]}, %", "alive, %"]
            sums = [f"{name}_{self._month}d" for name in ("visits", *self._sums)]
            columns |= {shares[0]: comes} | {names[name]: name for name in (DAYS_TO_VISIT, *sums)} | {shares[1]: ALIVE}
        columns |= {name: name for name in self.histories.predictions}
        table = scored[[*columns.values()]].set_axis([*columns], axis=1)
        table = table.astype(dict.fromkeys(table.columns[1:], float))
        table.insert(3, "days late", table["days since visit"] - table["usual gap"])
        table[shares] *= 100
        table = table.round({name: 2 if name in self.histories.predictions else 1 for name in table.columns[1:]})
        table["likely next"] = [", ".join(map(str, labels[:3])) for labels in scored[self.histories.main_task]]
        ids = table["customer"]
        return table.iloc[
            np.argsort(ids.astype("uint64") if ids.str.fullmatch(r"\d{1,18}").all() else ids, kind="stable")
        ]

    def _list_likely(self) -> pd.DataFrame:
        """The likeliest labels of each row of `scored`, best first, as `label` and `chance` in percent: a score where
        the checkpoint has no chances."""
        table, main = self.histories.scored, self.histories.main_task
        chances = main + (CHANCES if main + CHANCES in table else SCORES)
        likely = table[[main, chances]].set_axis(["label", "chance"], axis=1)
        likely = likely.explode(["label", "chance"])
        return likely.assign(chance=(100 * likely["chance"].astype(float)).round(2))

    def find(self, label: str, column: str, least: float | None, most: float | None, is_falling: bool) -> pd.DataFrame:
        """Finds customers for whom a label (empty: any) is among the likeliest, and a column is between two limits
        (None: no limit), ordered by the column. Raises `ValueError` if there is no such label."""
        table = self.customers
        if label:
            label, likely = self.find_label(self.histories.main_task, label), self._list_likely()
            name, chances = f"{label}, %", likely["chance"][likely["label"] == label]
            table = table[table.index.isin(chances.index)].copy()
            table.insert(1, name, chances)
            column = name if column == "customer" else column
        if column == "customer":
            if least is not None or most is not None:
                raise ValueError("There are limits for no column: order by the one that they are for.")
            return table[:: -1 if is_falling else 1]
        table = table.sort_values(column, ascending=not is_falling, kind="stable")
        if least is None and most is None:
            return table
        return table[table[column].between(-np.inf if least is None else least, np.inf if most is None else most)]

    def answer_question(self, question: str, label: str = "", budget: int = 0) -> pd.DataFrame:
        """Answers one of `QUESTIONS`: who will come, as many as are expected, likeliest first; who is late, by the
        value that is at risk; who will buy a label and had it, but not within a month; what groups are worth; and what
        each of at most `budget` customers takes most likely. Raises `ValueError` where what a question needs is not
        there.
        """
        table, main = self.customers, self.histories.main_task
        week = f"{self.names.get(f'{CHANCE}_{self._week}d')}, %"
        if question == MISSES:
            if not label.strip():
                raise ValueError("Say which one first, in the field of what is likely.")
            likely = self.find(label, "customer", None, None, True)
            days = self.histories.days_since(main, self.find_label(main, label))
            likely.insert(2, "days since it", likely["customer"].map(days).round(1))
            return likely[likely["days since it"] > MONTH]
        if question == SENDS:
            return self._choose_sent(budget)
        if week not in table:
            raise ValueError("The checkpoint has no forecasts, and this question needs them.")
        if question == GROUPS:
            return self._value_groups()
        if question == COMES:
            return table.sort_values(week, ascending=False, kind="stable").head(round(table[week].sum() / 100))
        risk = (table[self._value] * (1 - table["alive, %"] / 100)).round(2)
        late = table.assign(**{"at risk": risk})[table["days late"] > 0]
        return late.sort_values("at risk", ascending=False, kind="stable")

    def _value_groups(self) -> pd.DataFrame:
        """What the customers of each value of the profile, and of each third by value so far, will do in a quarter."""
        table, histories = self.customers, self.histories
        sums = [f"{name}_{self._quarter}d" for name in (*self._sums, "visits")]
        values = histories.scored[sums].copy()
        values.columns = [self.names[name].removeprefix("mean ") for name in sums]
        groups = pd.DataFrame([histories.profiles.get(name, {}) for name in table["customer"]], index=table.index)
        groups[self._value] = _thirds(table[self._value])
        values.insert(0, "customers", 1)
        names = {column: groups[column].astype("string").fillna("unknown") for column in groups}
        sums = pd.concat({column: values.groupby(names[column]).sum().round(1) for column in groups})
        sums.insert(0, "group", [f"{column}: {name}" for column, name in sums.index])
        return sums.reset_index(drop=True)

    def _choose_sent(self, budget: int) -> pd.DataFrame:
        """The customers who most likely take their best offer; without a checkpoint for offers, their best label."""
        if budget < 1:
            raise ValueError("Say first how many can be sent, a whole number from 1 on, in the field Budget.")
        table, offers = self.customers, self.histories.offers
        if offers:
            labels, chances = table[offers].idxmax(axis=1).str.removesuffix(", %"), table[offers].max(axis=1)
        else:
            best = self._list_likely().groupby(level=0).first().loc[table.index]
            labels, chances = best["label"], best["chance"]
        sent = pd.DataFrame({"customer": table["customer"], "send": labels, "chance, %": chances})
        return sent.sort_values("chance, %", ascending=False, kind="stable").head(budget)

    def place_on_map(self, table: pd.DataFrame, column: str) -> tuple[pd.DataFrame, str]:
        """Places customers of the list on a map, with the values and thirds of a column, and says which: the one that
        orders the list; in the order of ids what they spend, or how late they are."""
        if column == "customer":
            column = next((name for name in table if name.startswith("mean spend")), "days late")
        table, embeddings = table.dropna(subset=column), np.stack(self.histories.scored[EMBEDDING])
        spread = (embeddings - embeddings.mean(0)) / np.maximum(embeddings.std(0), 1e-6)
        directions = spread / np.maximum(np.linalg.norm(spread, axis=1, keepdims=True), 1e-6)
        centred = directions - directions.mean(0)
        _, axes = np.linalg.eigh(centred.T @ centred)
        x, y = (centred[table.index] @ axes[:, -2:]).T
        placed = {"x": x, "y": y, "customer": table["customer"], "value": table[column]}
        return pd.DataFrame(placed | {"third": _thirds(table[column])}), column

    # --------------------------------------------------------------------------------------------------- one customer

    def write_answer(self, customer_id: str) -> str:
        """Writes what is expected in one sentence, and the profile below it, as HTML."""
        histories, live = self.histories, self.histories.case(customer_id).live
        parts = []
        if forecast := self._forecast(live):
            away, longest, week = forecast[DAYS_TO_VISIT], self.days[-1], self.days[0]
            stays = away >= float(longest)
            days = longest if stays else f"{max(away, 1):.0f}"
            words = f"{'probably stays away for' if stays else 'comes in about'} {days} day{'s' * (days != '1')}"
            words += f" ({percent(forecast[f'{CHANCE}_{week}d'])} within {week} days)"
            for name in self._sums:
                amount = f"{forecast[f'{name}_{self._month}d']:,.0f} {histories.extractor.currency or ''}".rstrip()
                words += f", spends {amount} on average in {self._month} days"
            parts.append(words)
        (likely,) = live.scores(histories.cutoff, [histories.main_task], 3).values()
        sentence = "; ".join([*parts, f"likely next: {', '.join(entry['label'] for entry in likely)}"])
        values = "".join(f", {escape(name.replace('_', ' '))} {escape(str(v))}" for name, v in live.profile.items())
        return (
            f"<h2>{escape(sentence[0].upper() + sentence[1:])}.</h2>"
            f"<p>Customer <b>{escape(customer_id)}</b>{values}, {len(live.events):,} events</p>"
        )

    def list_expected(self, customer_id: str) -> dict[str, list[tuple[str, str]]]:
        """Lists the best labels of every task as (text, label): the probability, and whether it came true."""
        case = self.histories.case(customer_id)
        scores = case.live.scores(self.histories.cutoff, k=SHOWN_LABELS)
        choices: dict[str, list[tuple[str, str]]] = {}
        for task in self.tasks:
            choices[task] = []
            for entry in scores[task]:
                came = case.bought[task].get(entry["label"])
                text = f"{entry['label']} · {percent(entry.get('chance', entry['score']))}"
                choices[task].append((text + f" · ✓ {came}" * bool(came), entry["label"]))
        return choices

    def explain_label(self, customer_id: str, task: str, label: str) -> list:
        """Explains a label: a sentence and what speaks for it, as HTML, and the timeline. That may be no visit, such
        as a letter that the shop sent: then it says of what kind its events are."""
        case, kind = self.histories.case(customer_id), self.histories.extractor.token_type_feature
        result = case.live.explain(task, label, self.histories.cutoff)
        reasons: list[list[str]] = []
        changes = {}
        times = {visit.time for visit in case.visits}
        for visit in result.visits:
            if visit.without is None:
                continue
            change = changes[visit.time] = visit.without - result.chance
            if change < 0 and len(reasons) < VISITS:
                texts = dict.fromkeys(event[task] for event in visit.events if task in event)
                first = sorted(texts, key=lambda text: text != label)[:VALUES]
                kinds = {event[kind]: None for event in visit.events if kind in event and visit.time not in times}
                what = ", ".join(dict.fromkeys([*kinds, *first]))
                reasons.append([visit.time[:10], f"{result.chance:.1%} → {visit.without:.1%}", what])
        decides = f"<b>Without the events of {reasons[0][0]}: {reasons[0][1]}.</b> " if reasons else ""
        sentence = (
            f"<h3>Why {escape(label)}?</h3><p>{decides}{self.verb} {escape(result.words)}. "
            f"With no history: {result.baseline:.1%}.</p>"
        )
        largest = max(map(abs, changes.values()), default=0.0)
        rows = []
        for seen in case.visits:
            change = changes.get(seen.time, 0.0)
            side = "other visit" if abs(change) <= LEAST * largest else [*COLOURS][change > 0]
            side = side if seen.time < self.histories.cutoff else "hidden"
            what, points = ", ".join(seen.values[:VALUES]), f"{100 * change:+.2f}"
            rows.append((pd.Timestamp(seen.time), seen.events, side, points, what))
        timeline = pd.DataFrame(rows, columns=["time", "events", "visit", "points without it", "what"])
        return [sentence, write_table(["what speaks for it", "without it", "with"], reasons), timeline]

    def _forecast(self, live: LiveCustomer) -> dict[str, float]:
        return live.forecast(self.histories.cutoff) if self.forecasts.are_trained else {}

    def list_forecasts(self, customer_id: str) -> list[list[str]]:
        """Lists the checkpoint's forecasts by quantity and horizon, the median with its interval of 80% and the mean;
        none if it has none."""
        result, rows = self._forecast(self.histories.case(customer_id).live), []
        for quantity, word in self._words.items() if result else ():
            names = [f"{quantity}_{day}d" for day in self.days]
            if quantity == CHANCE:
                rows.append([word, *(percent(result[name]) for name in names)])
                continue
            medians = [[result[f"{name}_{end}"] for end in ("median", "low80", "high80")] for name in names]
            write = "{:,.0f} ({:,.0f} to {:,.0f})".format
            rows.append([f"{word}, median (80% of such customers)", *(write(*values) for values in medians)])
            rows.append([f"{word}, mean", *(f"{result[name]:,.1f}" for name in names)])
        return rows

    def list_moves(self, customer_id: str, task: str, label: str) -> list[list[str]]:
        """Lists what changes most if an event with a label happens now: labels with their scores before and after it,
        and the forecast that moves most. Raises `ValueError` if there is no such label."""
        lives = (
            self.histories.case(customer_id).live,
            self.histories.suppose_event(customer_id, task, self.find_label(task, label)),
        )
        old, new = (
            {entry["label"]: entry.get("chance", entry["score"]) for entry in entries}
            for live in lives
            for entries in live.scores(self.histories.cutoff, [self.histories.main_task], COMPARED).values()
        )
        most = pd.Series({name: abs(new[name] - old.get(name, 0)) for name in new}).nlargest(MOVES)
        rows = [_move(name, old.get(name, 0), new[name], percent) for name in most.index[most >= LEAST_MOVE]]
        before, after = map(self._forecast, lives)
        if before:
            names = self.names
            name = max(names, key=lambda name: abs(np.log(max(after[name], 1e-6) / max(before[name], 1e-6))))
            write = percent if name.startswith(CHANCE) else "{:,.1f}".format
            move = _move(names[name], before[name], after[name], write)
            rows += [move] * (move[1] != move[2])
        return rows


def _move(name: str, old: float, new: float, write: Callable[[float], str]) -> list[str]:
    return [name, write(old), write(new), f"× {new / old:.2g}" if old else "new"]


def _thirds(values: pd.Series) -> pd.Series:
    return pd.cut(values.rank(pct=True), [0, 1 / 3, 2 / 3, 1], labels=[*THIRDS]).astype(str)
