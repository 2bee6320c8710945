# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of the page as HTML and SVG: timeline, expectations, explanation, similar customers, changes and map.

Every text that comes from data is escaped. What can be clicked is a button with `data-` values, so that the keyboard
works too; the page's script sends the values to the server.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from modeling_mcm.live.explanations import Explanation
from modeling_mcm.serving.histories import Visit

WIDTH, HEIGHT, BASE, LEFT = 1000, 150, 112, 6
MAP_WIDTH, MAP_HEIGHT = 640, 360
MOVES = 8  # labels whose scores move most
KINDS = 4  # token types with a colour of their own
SHOWN_VISITS, SHOWN_VALUES = 5, 4


def note(text: str) -> str:
    """Draws a sentence in the place of content that is not there yet."""
    return f"<p class='note placeholder'>{escape(text)}</p>"


def percent(share: float) -> str:
    """Writes a probability as a percentage with at most three digits."""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def words(name: str) -> str:
    """Writes a name of the log, such as product_type, with spaces."""
    return escape(name.replace("_", " "))


def _day(time: str) -> str:
    return time[:10]


# ----------------------------------------------------------------------------------------------------------- timeline


def timeline(visits: Sequence[Visit], cutoff: str, shares: Mapping[str, float] | None = None) -> str:
    """Draws all visits on a time axis; visits that count for or against a label are coloured by their share.

    Args:
        visits (`Sequence[Visit]`): The visits, oldest first.
        cutoff (`str`): Time after which visits are hidden from the model.
        shares (`Mapping[str, float]`, *optional*): Share of each visit in a label's score, by the time of the visit.
    """
    if not visits:
        return "<p>No visit yet.</p>"
    first, edge = _seconds(visits[0].time), _seconds(cutoff)
    last = max(edge, *(_seconds(visit.time) for visit in visits))
    scale = (WIDTH - 2 * LEFT) / max(last - first, 1)
    kinds = _kinds(visits)
    largest = max((abs(share) for share in (shares or {}).values()), default=0) or 1.0
    tallest = math.log1p(max(visit.events for visit in visits))
    x_edge = LEFT + (edge - first) * scale
    parts = [f'<rect class="after" x="{x_edge:.1f}" y="0" width="{WIDTH - x_edge:.1f}" height="{BASE}"/>']
    parts += [_months(first, last, scale)]
    order = sorted(visits, key=lambda visit: abs((shares or {}).get(visit.time, 0)))  # what matters is drawn last
    for visit in order:
        x = LEFT + (_seconds(visit.time) - first) * scale
        tall = 8 + (BASE - 24) * math.log1p(visit.events) / max(tallest, 1e-6)
        share = (shares or {}).get(visit.time) if visit.is_past else None
        kind = f"kind{kinds.index(visit.kind)}" if visit.kind in kinds else "kindx"
        style = ""
        if shares is not None:
            weight = abs(share or 0) / largest
            way = "" if not visit.is_past else " against" if (share or 0) < 0 else " for"
            kind += " weighed" + way
            style = f' style="--weight:{weight:.3f}"'
        title = f"{_day(visit.time)}, {words(visit.kind)}: {', '.join(map(escape, visit.values[:SHOWN_VALUES]))}"
        title += f"; share {share:+.2f}" if share is not None else ""
        side = "" if visit.is_past else " hidden-visit"
        width = 4 if len(visits) < 150 else 3
        parts.append(
            f'<rect class="visit {kind}{side}"{style} x="{x - width / 2:.1f}" y="{BASE - tall:.1f}" width="{width}" '
            f'height="{tall:.1f}" rx="1.5"><title>{title}</title></rect>'
        )
    parts.append(f'<line class="cutoff" x1="{x_edge:.1f}" x2="{x_edge:.1f}" y1="0" y2="{BASE + 6}"/>')
    known, hidden = sum(visit.is_past for visit in visits), sum(not visit.is_past for visit in visits)
    spoken = f"{known} visits that the model knows, {hidden} after {_day(cutoff)} that it does not"
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Timeline: {spoken}">{"".join(parts)}</svg>'
    if shares is None:
        legend = "".join(f'<span><i class="kind{index}"></i>{words(kind)}</span>' for index, kind in enumerate(kinds))
    else:
        legend = '<span><i class="for"></i>speaks for it</span><span><i class="against"></i>speaks against it</span>'
    legend += f'<span><i class="after"></i>after {_day(cutoff)}, hidden from MCM</span>'
    head = f"<h2>Visits<small>{known} that MCM knows</small></h2>"
    return f'{head}<div class="timeline" tabindex="0">{svg}</div><p class="legend">{legend}</p>'


def _seconds(time: str) -> int:
    return int(np.datetime64(time, "s").astype(int))


def _kinds(visits: Sequence[Visit]) -> list[str]:
    counts: dict[str, int] = {}
    for visit in visits:
        counts[visit.kind] = counts.get(visit.kind, 0) + 1
    return sorted(counts, key=lambda kind: (-counts[kind], kind))[:KINDS]


def _months(first: int, last: int, scale: float) -> str:
    months = np.arange(np.datetime64(first, "s").astype("M8[M]"), np.datetime64(last, "s").astype("M8[M]") + 2)
    step = max(1, math.ceil(len(months) / 12))
    parts = [f'<line class="axis" x1="0" x2="{WIDTH}" y1="{BASE}" y2="{BASE}"/>']
    for month in months[1::step]:
        x = LEFT + (int(month.astype("M8[s]").astype(int)) - first) * scale
        if 24 < x < WIDTH - 24:
            name = month.astype("M8[s]").item().strftime("%b %Y" if str(month).endswith("-01") else "%b")
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{BASE}" y2="{BASE + 5}"/>')
            parts.append(f'<text x="{x:.1f}" y="{BASE + 26}">{name}</text>')
    return "".join(parts)


# -------------------------------------------------------------------------------------------- expectations, and why


def expectations(
    scores: Mapping[str, Sequence[Mapping[str, Any]]],
    bought: Mapping[str, Mapping[str, str]],
    choice: tuple[str, str] | None = None,
) -> str:
    """Draws the best labels of every task as buttons, beside what the customer really chose."""
    cards = []
    for task, labels in scores.items():
        largest = max((entry["score"] for entry in labels), default=1.0) or 1.0
        rows = []
        for entry in labels:
            label, share = entry["label"], entry["score"]
            came = bought.get(task, {}).get(label)
            badge = f'<em class="{"next" if came == "next visit" else "later"}">✓ {came}</em>' if came else ""
            pressed = str(choice == (task, label)).lower()
            rows.append(
                f'<button type="button" data-task="{escape(task)}" data-label="{escape(label)}" '
                f'aria-pressed="{pressed}"><span class="name">{escape(label)}{badge}</span>'
                f'<span class="share">{percent(share)}</span>'
                f'<span class="bar" style="width:{100 * share / largest:.1f}%"></span></button>'
            )
        hits = sum(bought.get(task, {}).get(entry["label"]) == "next visit" for entry in labels)
        note = f"{hits} of {len(labels)} in the next visit"
        cards.append(f'<section class="card"><h3>{words(task)}<small>{note}</small></h3>{"".join(rows)}</section>')
    return f'<h2>What MCM expects next</h2><div class="cards">{"".join(cards)}</div>'


def explanation(result: Explanation) -> str:
    """Draws why a label has its score: in a sentence, by part of the score, and by visit."""
    factor = math.exp(min(result.score - result.baseline, 50))
    gain = "more" if factor >= 1 else "less"
    times = f"{factor if factor >= 1 else 1 / max(factor, 1e-9):,.1f} times {gain}"
    top = [visit for visit in result.visits if visit.share > 0][:SHOWN_VISITS]
    largest = max((visit.share for visit in top), default=1.0)
    rows = []
    for visit in top:
        events = sorted(visit.events, key=lambda event: -event.share)
        texts = [event.values.get(result.task, "") for event in events if event.share > 0]
        names = [text for text in dict.fromkeys(texts) if text][:SHOWN_VALUES]
        names = [f"<b>{escape(name)}</b>" if name == result.label else escape(name) for name in names]
        share = 100 * visit.share / max(result.score - result.baseline, 1e-9)
        rows.append(
            f"<li><span class='when'>{_day(visit.time)}</span><span class='bar' "
            f"style='width:{34 * visit.share / largest:.1f}%'></span><span class='share'>{visit.share:+.2f}"
            f"{f' ({share:.0f}%)' if result.score > result.baseline else ''}</span>"
            f"<span class='values'>{', '.join(names)}</span></li>"
        )
    rest = sum(visit.share for visit in result.visits) - sum(visit.share for visit in top)
    parts = [
        f"<tr><td>{words(name)}</td><td>{value - result.baseline_parts.get(name, 0):+.2f}</td></tr>"
        for name, value in result.parts.items()
        if abs(value - result.baseline_parts.get(name, 0)) >= 0.005
    ]
    several = f"<li class='rest'>the other {len(result.visits) - len(top)} visits together {rest:+.2f}</li>"
    return (
        f"<div class='why' aria-live='polite'><h3>Why {escape(result.label)}, {percent(result.probability)}?</h3>"
        f"<p>Met <b>{escape(result.words)}</b>. With this history it is <b>{times}</b> likely than with none "
        f"(log-probability {result.score:.2f}, without history {result.baseline:.2f}).</p>"
        f"<div class='split'><ol>{''.join(rows)}{several}</ol>"
        "<details><summary>By part of the model</summary><p class='note'>What history changed; `others` is what the "
        f"other labels leave.</p><table>{''.join(parts)}</table></details></div></div>"
    )


# --------------------------------------------------------------------------------- forecasts, look-alikes, what if


def forecasts(result: Mapping[str, float]) -> str:
    """Draws the checkpoint's forecasts as a table, with a row for each quantity and a column for each horizon."""
    matches = {name: re.fullmatch(r"(.+)_(\d+)d", name) for name in result}
    horizons = sorted({int(match[2]) for match in matches.values() if match})
    lines: dict[str, dict[int, str]] = {}
    for name, match in matches.items():
        if match:
            title = percent(result[name]) if "probability" in name else f"{result[name]:,.1f}"
            lines.setdefault(match[1], {})[int(match[2])] = title
    rows = [
        f"<tr><td>{words(name)}</td>{''.join(f'<td>{values.get(days, str())}</td>' for days in horizons)}</tr>"
        for name, values in lines.items()
    ]
    single = [f"<span>{words(name)} <b>{result[name]:,.1f}</b></span>" for name, match in matches.items() if not match]
    head = f"<tr><th></th>{''.join(f'<th>{days} days</th>' for days in horizons)}</tr>"
    chips = f"<p class='chips'>{''.join(single)}</p>" if single else ""
    return f"<h2>Forecasts</h2><div class='moves'><table>{head}{''.join(rows)}</table>{chips}</div>"


def profile(customer_id: str, values: Mapping[str, Any], events: int) -> str:
    """Draws the customer's profile."""
    chips = [f"<span>{words(name)} <b>{escape(str(value))}</b></span>" for name, value in values.items()]
    chips = chips or ["<span>no profile</span>"]
    who = f"<span>customer <b>{escape(customer_id)}</b></span>"
    return f"<p class='chips'>{who}{''.join(chips)}<span><b>{events:,}</b> events</span></p>"


def alike(result: Iterable[tuple[str, float, Sequence[str]]]) -> str:
    """Draws customers with similar embeddings, each as a button, with what they are expected to choose."""
    rows = [
        f'<button type="button" data-customer="{escape(name)}"><span class="name">{escape(name)}</span>'
        f'<span class="share">{likeness:.2f}</span><span class="values">{escape(", ".join(texts))}</span></button>'
        for name, likeness, texts in result
    ]
    head = "<h2>Look-alikes<small>the closest embeddings, and what is expected of each</small></h2>"
    return f'{head}<div class="alike">{"".join(rows)}</div>'


def moves(task: str, what: str, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Draws the labels of a task whose scores an event changes most, before and after it."""
    order = sorted(after, key=lambda label: -abs(after[label] - before.get(label, 0)))[:MOVES]
    rows = []
    for label in order:
        change = after[label] - before.get(label, 0)
        sign, kind = ("▲", "up") if change > 0 else ("▼", "down")
        rows.append(
            f"<tr><td>{escape(label)}</td><td>{percent(before.get(label, 0))}</td><td>{percent(after[label])}</td>"
            f"<td class='{kind}'>{sign} {100 * abs(change):.1f}</td></tr>"
        )
    head = "<tr><th></th><th>before</th><th>after</th><th>points</th></tr>"
    return (
        f"<div class='moves' aria-live='polite'><h3>If {escape(what)} happens, {words(task)} moves</h3>"
        f"<table>{head}{''.join(rows)}</table></div>"
    )


def customer_map(points: Any, ids: Sequence[str], customer: str, near: Iterable[str]) -> str:
    """Draws all customers on a map of the two directions in which their embeddings differ most."""
    close = set(near)
    x = MAP_WIDTH * (0.5 + 0.47 * np.clip(points[:, 0], -1, 1))
    y = MAP_HEIGHT * (0.5 - 0.46 * np.clip(points[:, 1], -1, 1))
    dots: list[str] = []
    marked: list[str] = []  # drawn last, over the others
    for index, name in enumerate(ids):
        kind = " class='chosen'" if name == customer else " class='near'" if name in close else ""
        radius = 7 if name == customer else 4.5 if name in close else 2.2
        dot = f"<circle{kind} cx='{x[index]:.1f}' cy='{y[index]:.1f}' r='{radius}' data-customer='{escape(name)}'/>"
        (marked if kind else dots).append(dot)
    return (
        "<h2>All customers<small>the two directions in which embeddings differ most</small></h2>"
        f"<svg class='map' viewBox='0 0 {MAP_WIDTH} {MAP_HEIGHT}' role='img' aria-label='Map of {len(ids)} customers; "
        f"customer {escape(customer)} and look-alikes are marked'>{''.join(dots)}{''.join(marked)}</svg>"
    )
