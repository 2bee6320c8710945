# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the page shows, as texts and tables: the list of customers, answers to the questions of a Monday, and what MCM
expects of a customer, what really came, and which visits decided.

An answer is a table, whose rows are customers, groups or totals. All are narrowed, limited and sorted in one way.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd

from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.forecaster_mcm import ALIVE, CHANCE, DAYS_TO_VISIT
from modeling_mcm.inputs_mcm import CUSTOMER
from modeling_mcm.live import LiveCustomer
from modeling_mcm.scoring.scorer import CHANCES, SCORES

from .histories import RHYTHM, VALUE, Histories
from .looking_back import CAME, GAP, MONTH, PAST, SINCE, calibrate, explode

SHOWN_LABELS, LEAST_CHANCE = 6, 1e-9  # of a task; before others are divided by it
COMPARED, MOVES = 1000, 8  # labels that are compared before and after; shown of those
VISITS, VALUES = 5, 4  # that are listed
WEEK, QUARTER = 7, 90  # days; what is shown for them, and for a month, is that of the closest horizon
LEAST = 0.05  # of the largest change: a visit with less speaks neither for nor against
LEAST_MOVE = 0.0005  # smallest change of a probability that is shown
COLOURS = {"speaks for it": "#0f7f87", "speaks against it": "#c8450f", "other visit": "#6b7783", "hidden": "#94700d"}
THIRDS = ["lowest third", "middle third", "highest third"]
BUYING = ("purchase", "buy", "order", "sale", "transaction")  # in token types that are purchases
EVERYONE, COMES, LEAVES, CHANGES, MISSES, SENDS, GROUPS, TOTALS = QUESTIONS = (
    "Everyone",
    "Who will come this week?",
    "Who is slipping away?",
    "What changed since last week?",
    "Who will buy again, after a month or more?",
    "What to send to whom?",
    "What is each group worth next quarter?",
    "What will they do together?",
)


class Filters(NamedTuple):
    """What is asked, and which rows of the answer are shown.

    Attributes:
        question (`str`): One of `QUESTIONS`.
        words (`str`): A group, or words of labels of the main task that are among a customer's likeliest.
        column (`str`): By which rows are sorted, and which the limits are for. Empty: the answer's own.
        least, most (`float`, *optional*): limits.
        falls (`bool`): Whether the largest value is first; of the answer's own column it says that.
        number (`int`, *optional*): At most so many rows, the first in the answer's own order.
    """

    question: str = EVERYONE
    words: str = ""
    column: str = ""
    least: float | None = None
    most: float | None = None
    falls: bool = False
    number: int | None = None


class Answer(NamedTuple):
    """Rows of an answer, and the column by which they are sorted, falling or not."""

    table: pd.DataFrame
    column: str
    falls: bool = True


def percent(share: float) -> str:
    """Writes a probability as a percentage with at most three digits."""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def write_table(headers: Iterable[str], rows: Iterable[Sequence], opens: bool = False) -> str:
    """A table as HTML, wide ones with a scroll bar of their own. With `opens` a click on the first column opens the
    customer, and one on a heading sorts (`app.CLICKS`)."""

    def write(value: object) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:,.2f}".rstrip("0").rstrip(".")
        return escape(str(value))

    def cell(value: object) -> str:
        return f"<td{' class=number' * isinstance(value, float | int)}>{write(value)}</td>"

    def button(kind: str, text: str) -> str:
        return f"<button data-{kind}='{text}'>{text}</button>" if opens else text

    heads = "".join(f"<th>{button('sort', write(name))}</th>" for name in headers)
    body = "".join(
        f"<tr><td>{button('open', write(first))}</td>{''.join(map(cell, others))}</tr>" for first, *others in rows
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
        self.histories, self.tasks = histories, histories.tasks if histories.has_labels else []
        self.forecasts = histories.model.model.customer_forecasts
        self.days = [f"{day:g}" for day in self.forecasts.days]
        self._week, self._month, self._quarter = (
            min(self.days, key=lambda day: abs(float(day) - wanted), default="") for wanted in (WEEK, MONTH, QUARTER)
        )
        self._sums = histories.model.config.summed_features
        self._value = f"{self._words[self._sums[0]] if self._sums else 'visits'} so far"
        self._worth = f"{[*self._sums, 'visits'][0]}_{self._month}d"  # the forecast of what a customer is worth
        self._list = functools.lru_cache(1)(self._list_scored)
        self._list_likely = functools.lru_cache(1)(self._list_likely_labels)
        self._list_groups = functools.lru_cache(1)(self._list_groups_of)

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

    def list_words(self) -> list[str]:
        """Labels and groups by which the list is narrowed."""
        groups = self._list_groups(len(self.customers))
        return [
            *pd.unique(groups.to_numpy().ravel()),
            *(self.histories.list_labels(self.histories.main_task) if self.tasks else []),
        ]

    def find_labels(self, task: str, text: str) -> list[str]:
        """The label that a text is, whatever its capitals, or all with its words. Raises `ValueError` if there is
        none."""
        labels, words = self.histories.list_labels(task), text.lower().split()
        same = [label for label in labels if label.lower() == text.strip().lower()]
        found = same or [label for label in labels if all(word in label.lower() for word in words)]
        if not found:
            raise ValueError(
                f"No {task.replace('_', ' ')} has {text.strip()!r}: write a word of one, such as {labels[0]!r}."
            )
        return [text.strip()] if text.strip() in same else found

    def find_label(self, task: str, text: str) -> str:
        """The one label that a text means. Raises `ValueError` if there is none, or several."""
        labels = self.find_labels(task, text)
        if len(labels) > 1:
            raise ValueError(
                f"{len(labels)} have {text.strip()!r}, such as {labels[0]!r} and {labels[1]!r}: write one."
            )
        return labels[0]

    # -------------------------------------------------------------------------------------------------- all customers

    @property
    def customers(self) -> pd.DataFrame:
        """A row for each customer that is scored so far, ordered by id: as numbers where all ids are numbers. The
        index counts the rows of `scored`."""
        return self._list(len(self.histories.scored))

    @property
    def questions(self) -> list[str]:
        """Those of `QUESTIONS` that this log and checkpoint can answer."""
        labels, forecasts = self.histories.has_labels, self.forecasts.are_trained
        sends = labels or bool(self.histories.offers) or len(self.histories.effects) > 0
        needs = {MISSES: labels, SENDS: sends, EVERYONE: True}
        return [question for question in QUESTIONS if needs.get(question, forecasts)]

    def _list_scored(self, number: int) -> pd.DataFrame:
        scored, names, columns = self.histories.scored[:number], self.names, {"customer": CUSTOMER}
        rest = {"days since visit": RHYTHM[0], "usual gap": RHYTHM[1]}
        if self.forecasts.are_trained:
            comes, visits = f"{CHANCE}_{self._week}d", f"visits_{self._month}d"
            columns |= {f"{names[comes]}, %": comes, names[self._worth]: self._worth}
            rest |= {"alive, %": ALIVE, names[visits]: visits, names[DAYS_TO_VISIT]: DAYS_TO_VISIT}
        columns |= {name: name for name in self.histories.predictions}
        shown, columns = len(columns), columns | {self._value: VALUE} | rest
        table = scored[[*columns.values()]].set_axis([*columns], axis=1)
        table = table.astype(dict.fromkeys(table.columns[1:], float))
        table.insert(shown, "days late", table["days since visit"] - table["usual gap"])
        shares = [name for name in (f"{names.get(f'{CHANCE}_{self._week}d')}, %", "alive, %") if name in table]
        table[shares] *= 100
        table = table.round({name: 2 if name in self.histories.predictions else 1 for name in table.columns[1:]})
        if self.histories.has_labels:
            likely = [", ".join(map(str, labels[:3])) for labels in scored[self.histories.main_task]]
            table.insert(shown + 1, "likely next", likely)
        ids = table["customer"]
        return table.iloc[
            np.argsort(ids.astype("uint64") if ids.str.fullmatch(r"\d{1,18}").all() else ids, kind="stable")
        ]

    def _list_likely_labels(self, number: int) -> pd.DataFrame:
        """The likeliest labels of each row of `scored`, best first, as `label` and `chance, %` in percent, as often as
        it came a month ago; a score where the checkpoint has no chances. And days since it, and its usual gap."""
        scored, main = self.histories.scored[:number], self.histories.main_task
        if main + CHANCES in scored:
            likely = explode(scored, main, (CHANCES, SINCE, GAP))
            likely[CHANCES] = calibrate(likely, explode(scored, PAST + main, (CHANCES, SINCE, CAME)))
        else:
            likely = explode(scored, main, (SCORES, SINCE, GAP)).rename(columns={SCORES: CHANCES})
        likely[CHANCES] = (100 * likely[CHANCES]).round(2)
        names = {CHANCES: "chance, %", SINCE: "days since it", GAP: "its usual gap"}
        return likely.round({SINCE: 1, GAP: 1}).rename(columns=names).dropna(subset="label")

    def _list_groups_of(self, number: int) -> pd.DataFrame:
        """The groups of each customer: by each column of the profile, and by thirds of the value so far."""
        table, profiles = self._list(number), self.histories.profiles
        groups = pd.DataFrame([profiles.get(name, {}) for name in table["customer"]], index=table.index)
        groups[self._value] = pd.cut(table[self._value].rank(pct=True), [0, 1 / 3, 2 / 3, 1], labels=THIRDS)
        return groups.astype("string").fillna("unknown").apply(lambda column: f"{column.name}: " + column)

    def answer(self, filters: Filters) -> Answer:
        """The rows that are shown, in their order. Raises `ValueError` if no label and no group has the words, or
        there are limits for a column that holds no numbers."""
        found = self._answer_question(filters.question, filters.words.strip())
        table, column = found.table, filters.column if filters.column in found.table else found.column
        falls = filters.falls if column == filters.column else found.falls
        if filters.number is not None:
            table = _take_first(table, found.column, found.falls, filters.number)
        if (filters.least, filters.most) != (None, None):
            if not pd.api.types.is_numeric_dtype(table[column]):
                raise ValueError(f"There are limits for {column!r}, which holds no numbers: order by another column.")
            least, most = (-np.inf if filters.least is None else filters.least), filters.most
            table = table[table[column].between(least, np.inf if most is None else most)]
        return Answer(_sort(table, column, falls), column, falls)

    def _answer_question(self, question: str, words: str) -> Answer:
        """All rows of an answer: of all customers, or of those that the words name."""
        number = len(self.customers)  # later there may be more
        table, likely = self._narrow(words, number)
        if question == MISSES:
            return self._join_likely(table, likely[likely["days since it"] > MONTH], "chance, %")
        if question == SENDS:
            return self._choose_sent(table, likely, number)
        if question == GROUPS:
            groups = self._list_groups(number).loc[table.index]
            named = groups.melt(ignore_index=False, value_name="group")["group"]
            parts = {group: self._value_group(rows) for group, rows in named.groupby(named).groups.items()}
            values = pd.DataFrame.from_dict(parts, "index").round(1)
            return Answer(values.rename_axis("group").reset_index(), "group", False)
        if question == TOTALS:
            return Answer(self._add_up(table), "forecast")
        week, scored = f"{self.names.get(f'{CHANCE}_{self._week}d')}, %", self.histories.scored
        if question == COMES:
            return Answer(_take_first(table, week, True, round(table[week].sum() / 100)), week)
        if question == LEAVES:
            return self._find_slipping(table)
        if question == CHANGES:
            parts = {}
            for name in (self._worth, f"{CHANCE}_{self._week}d", ALIVE):
                is_share = name != self._worth
                words = f"alive{', %' * is_share}" if name == ALIVE else f"{self.names[name]}{', %' * is_share}"
                change = scored[name].astype(float) - scored[f"{name}_{self._week}d_ago"]
                parts[f"{words}, change"] = (change * (100 if is_share else 1)).round(2)
            changes = pd.DataFrame(parts).loc[table.index]
            return Answer(_insert(table, changes).dropna(subset=[*parts]), next(iter(parts)), False)
        chance = [name for name in ("chance, %",) if name in table]
        worth = self.names[self._worth] if self._worth in scored else self._value
        return Answer(table, [*chance, worth][0])

    def _narrow(self, words: str, number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The customers of a group, or for whom a label with some words is among the likeliest, with its chance, and
        all likely labels of these customers, or those with the words."""
        table, has_labels = self._list(number), self.histories.has_labels
        likely = self._list_likely(number) if has_labels else pd.DataFrame(columns=["label"])
        if not words:
            return table, likely
        is_in = (self._list_groups(number).apply(lambda column: column.str.lower()) == words.lower()).any(axis=1)
        if is_in.any():
            return table[is_in], likely[likely.index.isin(table.index[is_in])]
        if not has_labels:
            raise ValueError(f"There is no group {words!r}: choose one of the list.")
        likely = likely[likely["label"].isin(self.find_labels(self.histories.main_task, words))]
        return self._join_likely(table, likely, "chance, %").table, likely

    def _join_likely(self, table: pd.DataFrame, likely: pd.DataFrame, column: str, name: str = "which") -> Answer:
        """The customers who have one of some likely labels, with the one that is highest in a column."""
        best = likely[likely.index.isin(table.index)].sort_values(column, ascending=False, kind="stable")
        best = best[~best.index.duplicated()].rename(columns={"label": name})
        others = table[table.index.isin(best.index)].drop(columns=[*best, "which"], errors="ignore")
        return Answer(_insert(others, best), column)

    def _find_slipping(self, table: pd.DataFrame) -> Answer:
        """Customers who came less often in the last month than all that their own forecast of a month ago held likely
        (below its interval of 80%), by what they are expected to spend less than then."""
        scored, day = self.histories.scored.loc[table.index], self._month
        said, came = scored[f"visits_{day}d_{day}d_ago"], scored[f"visits_in_{day}d"]
        lost = scored[f"{self._worth}_{day}d_ago"] - scored[self._worth]
        word = f"at risk in {day} days"
        parts = {word: lost, f"came in {day} days": came, "as forecast then": said}
        is_below = came < scored[f"visits_{day}d_low80_{day}d_ago"]
        return Answer(_insert(table, pd.DataFrame(parts).astype(float).round(1))[is_below], word)

    def _compare(self, rows: pd.Index, name: str, day: str) -> list[float]:
        """The sum of a forecast of some customers, what the same one said as long ago as it reaches, what came since,
        and its error in percent."""
        scored = self.histories.scored.loc[rows]
        names = [f"{name}_{day}d", f"{name}_{day}d_{day}d_ago", f"{name}_in_{day}d"]
        forecast, said, came = scored[names].sum().astype(float)
        return [forecast, said, came, 100 * (said / came - 1) if came else np.nan]

    def _value_group(self, rows: pd.Index) -> dict[str, float]:
        """What the customers of a group will do in a quarter, and by how much the same forecast was wrong before."""
        values = {"customers": float(len(rows))}
        for name in (*self._sums, "visits"):
            words, compared = self.names[f"{name}_{self._quarter}d"], self._compare(rows, name, self._quarter)
            values |= {words.removeprefix("mean "): compared[0], f"{name}: error of the last quarter, %": compared[3]}
        return values

    def _add_up(self, table: pd.DataFrame) -> pd.DataFrame:
        """What customers will do together in each horizon, beside what the same forecasts said before; and by how much
        the calendar makes its days busier than those that the forecasts read."""
        busier = [100 * (each - 1) for each in self.forecasts.find_busy(self.histories.as_of / SECONDS_PER_DAY)]
        rows = [
            [self.names[f"{name}_{day}d"].removeprefix("mean "), *self._compare(table.index, name, day), more]
            for day, more in zip(self.days, busier, strict=True)
            for name in (*self._sums, "visits")
        ]
        columns = ["total", "forecast", "the last one said", "came", "error, %", "calendar, %"]
        return pd.DataFrame(rows, columns=columns).round(1)

    def _choose_sent(self, table: pd.DataFrame, likely: pd.DataFrame, number: int) -> Answer:
        """The offer that makes the largest difference, where that is known, or the one that is likeliest to be taken;
        without either, the label that is likelier than usual by the most, of those that the customer never had, or not
        for a month and longer than usual: others are bought anyway."""
        if len(effects := self.histories.effects):
            rows = pd.Series(table.index, table["customer"])
            known = effects[effects.index.isin(rows.index)]
            others = table.drop(columns="chance, %", errors="ignore")
            return self._join_likely(others, known.set_axis(rows[known.index]), "difference", "send")
        if offers := self.histories.offers:
            best = table[offers].idxmax(axis=1).str.removesuffix(", %")
            parts = pd.DataFrame({"send": best, "chance, %": table[offers].max(axis=1)})
            return Answer(_insert(table.drop(columns="chance, %", errors="ignore"), parts), "chance, %")
        usual = self._list_likely(number).groupby("label")["chance, %"].sum() / number
        since, gap = likely["days since it"], likely["its usual gap"]
        due = likely[since.isna() | (since > gap.clip(lower=MONTH))]
        usually = due["label"].map(usual)
        due = due.assign(**{"more than usual": (due["chance, %"] - usually).round(2)})
        return self._join_likely(table, due, "more than usual", "send")

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
        if histories.has_labels:
            (likely,) = live.scores(histories.cutoff, [histories.main_task], 3).values()
            parts.append(f"likely next: {', '.join(entry['label'] for entry in likely)}")
        sentence = "; ".join(parts) or "No forecasts"
        values = "".join(f", {escape(name.replace('_', ' '))} {escape(str(v))}" for name, v in live.profile.items())
        return (
            f"<h2>{escape(sentence[0].upper() + sentence[1:])}.</h2>"
            f"<p>Customer <b>{escape(customer_id)}</b>{values}, {len(live.events):,} events</p>"
        )

    def _find_chances(self, customer_id: str, task: str) -> dict[str, float]:
        """The chances that the list of all customers has of a customer's likely labels; none of another task, or while
        the customer is not scored."""
        if task != self.histories.main_task:
            return {}
        table = self.customers
        likely = self._list_likely(len(table)).loc[table.index[table["customer"] == customer_id]]
        return dict(zip(likely["label"], likely["chance, %"] / 100, strict=True))

    def list_expected(self, customer_id: str) -> dict[str, list[tuple[str, str]]]:
        """Lists the best labels of every task as (text, label): the chance, and whether it came true."""
        case = self.histories.case(customer_id)
        scores = case.live.scores(self.histories.cutoff, k=SHOWN_LABELS)
        choices: dict[str, list[tuple[str, str]]] = {}
        for task in self.tasks:
            choices[task], told = [], self._find_chances(customer_id, task)
            for entry in scores[task]:
                came = case.bought[task].get(entry["label"])
                chance = told.get(entry["label"], entry.get("chance", entry["score"]))
                text = f"{entry['label']} · {percent(chance)}"
                choices[task].append((text + f" · ✓ {came}" * bool(came), entry["label"]))
        return choices

    def explain_label(self, customer_id: str, task: str, label: str) -> list:
        """Explains a label: a sentence and what speaks for it, as HTML, and the timeline. That may be no visit, such
        as a letter that the shop sent: then it says of what kind its events are."""
        case, kind = self.histories.case(customer_id), self.histories.extractor.token_type_feature
        result = case.live.explain(task, label, self.histories.cutoff)
        chance = self._find_chances(customer_id, task).get(label, result.chance)
        factor = chance / max(result.chance, LEAST_CHANCE)
        reasons: list[list[str]] = []
        changes = {}
        times = {visit.time for visit in case.visits}
        for visit in result.visits:
            if visit.without is None:
                continue
            without = min(visit.without * factor, 1.0)
            change = changes[visit.time] = without - chance
            if change < 0 and len(reasons) < VISITS:
                texts = dict.fromkeys(event[task] for event in visit.events if task in event)
                first = sorted(texts, key=lambda text: text != label)[:VALUES]
                kinds = {event[kind]: None for event in visit.events if kind in event and visit.time not in times}
                what = ", ".join(dict.fromkeys([*kinds, *first]))
                reasons.append([visit.time[:10], f"{chance:.1%} → {without:.1%}", what])
        decides = f"<b>Without the events of {reasons[0][0]}: {reasons[0][1]}.</b> " if reasons else ""
        sentence = (
            f"<h3>Why {escape(label)}?</h3><p>{decides}{self.verb} {escape(result.words)}. "
            f"With no history: {min(result.baseline * factor, 1.0):.1%}.</p>"
        )
        timeline = self.draw_timeline(customer_id, changes, LEAST * max(map(abs, changes.values()), default=0.0))
        return [sentence, write_table(["what speaks for it", "without it", "with"], reasons), timeline]

    def draw_timeline(self, customer_id: str, changes: Mapping[str, float], least: float) -> pd.DataFrame:
        """A customer's visits, with the changes of a probability without each, by its time; smaller ones than `least`
        say nothing."""
        rows = []
        for seen in self.histories.case(customer_id).visits:
            change = changes.get(seen.time, 0.0)
            side = "other visit" if abs(change) <= least else [*COLOURS][change > 0]
            side = side if seen.time < self.histories.cutoff else "hidden"
            what, points = ", ".join(seen.values[:VALUES]), f"{100 * change:+.2f}"
            rows.append((pd.Timestamp(seen.time), seen.events, side, points, what))
        return pd.DataFrame(rows, columns=["time", "events", "visit", "points without it", "what"])

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
        main = self.histories.main_task
        old, new = (
            {entry["label"]: entry.get("chance", entry["score"]) for entry in entries}
            for live in lives
            for entries in live.scores(self.histories.cutoff, [main], COMPARED).values()
        )
        for name, told in self._find_chances(customer_id, main).items():
            if name in old and name in new:
                old[name], new[name] = told, min(new[name] * told / max(old[name], LEAST_CHANCE), 1.0)
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


def _sort(table: pd.DataFrame, column: str, falls: bool) -> pd.DataFrame:
    """Ids keep the order of the list, which is that of numbers where they are."""
    if column == "customer":
        return table[:: -1 if falls else 1]
    return table.sort_values(column, ascending=not falls, kind="stable")


def _take_first(table: pd.DataFrame, column: str, falls: bool, number: int) -> pd.DataFrame:
    """The first rows by a column, in the order of the table."""
    return table[table.index.isin(_sort(table, column, falls).index[:number])]


def _insert(table: pd.DataFrame, columns: pd.DataFrame) -> pd.DataFrame:
    """The table with further columns after the first one."""
    return pd.concat([table.iloc[:, :1], columns.reindex(table.index), table.iloc[:, 1:]], axis=1)
