# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The numbers of candidate labels are those of plain loops over events, one by one."""

from math import log, log1p, log2

import numpy as np
import pytest
import torch

from modeling_mcm.features_mcm import COMPARED, EVIDENCE, FEATURES, LabelHistory, compare
from modeling_mcm.scorer_mcm import LabelTables, Readout, candidate_features

SIZES, VISITS, GAP = (9, 7), 300, 2.5  # labels of each task; visits of all customers, and their median gap
PADDED = 24


def draw_customer(generator, length):
    """Events (labels, visit, time, kind): visits on one day, visits of several moments, and events without a label."""
    visit, time, events = 0, 0.0, []
    for _ in range(length):
        if step := generator.integers(4):
            visit += int(step > 1)
            time += float(generator.choice([0, 0, 0.01, 0.25, 1, 6.5, 30]))
        labels = [int(generator.integers(2, size - 1)) * int(generator.random() < 0.8) for size in SIZES]
        events.append((labels, visit, time, int(generator.choice([0, 0, 1, 2, 3]))))
    return events


def to_inputs(customers):
    """The events of customers as model inputs: labels, visits, times, kinds."""
    number = len(customers)
    labels, visits = torch.zeros(number, PADDED, 2, dtype=torch.long), torch.zeros(number, PADDED, dtype=torch.long)
    columns = labels, visits, torch.zeros(number, PADDED), torch.zeros(number, PADDED, dtype=torch.long)
    for place, events in enumerate(customers):
        for column, values in zip(columns, zip(*events, strict=True), strict=False):
            column[place, : len(events)] = torch.tensor(values)
    return columns


def draw_tables(generator, has_times):
    tables = [LabelTables(size) for size in SIZES]
    for table, size in zip(tables, SIZES, strict=True):
        table.neighbours.copy_(torch.from_numpy(generator.integers(2, size, table.neighbours.shape)))
        table.weights.copy_(torch.from_numpy(generator.normal(0.3, 0.5, table.weights.shape)))
        table.counts.copy_(torch.from_numpy(generator.integers(0, 60, table.counts.shape)))
        table.attributes.copy_(torch.from_numpy(generator.integers(0, 4, table.attributes.shape)))
        table.rarity.copy_(torch.rand(table.rarity.shape) * (table.attributes > 0))
        table.totals.copy_(torch.tensor([VISITS, GAP, has_times, 3]))
    return tables


def read_steps(events, task, as_of, has_times):
    """The task's labelled events as (label, kind, visits ago, moments ago, gaps ago)."""
    kept = [(labels[task], visit, time, kind) for labels, visit, time, kind in events if labels[task] >= 2]
    result = []
    for label, visit, time, kind in kept:
        visits = len({other[1] for other in kept if other[1] > visit})
        moments = len({other[1:3] for other in kept if other[1:3] > (visit, time)})
        result.append((label, kind, visits, moments, max(as_of - time, 0) / GAP if has_times else moments))
    return result


def describe_label(steps, label):
    """The numbers that the history alone gives of a label."""
    own = [step for step in steps if step[0] == label]
    if not own:
        return {}
    kinds, visits, moments, gaps = ([step[place] for step in own] for place in range(1, 5))
    values = {"seen": 1.0, "since_visits": log1p(min(visits)), "since_moments": log1p(min(moments))}
    values["in_last_visit"] = float(0 in visits)
    values["since_days"] = log1p(min(gaps) / own_gap(steps))
    for kind in range(3):
        faded = [(name, 0.5 ** (ago / 8)) for name, each, _, ago, _ in steps if each == kind]
        values[f"share_kind_{kind}"] = sum(x for name, x in faded if name == label) / max(
            sum(x for _, x in faded), 0.5
        )
        values[f"last_kind_{kind}"] = float((kind, min(moments)) in zip(kinds, moments, strict=True))
    values["share_days"] = sum(0.5 ** (gap / 8) for gap in gaps) / sum(0.5 ** (step[4] / 8) for step in steps)
    mean_gap = (max(gaps) - min(gaps)) / max(len(set(moments)) - 1, 1)
    if len(set(moments)) > 1 and mean_gap:
        values["overdue_days"] = log(min(max(min(gaps) / max(mean_gap, 0.02), 1e-3), 1e3))
    visits, moments = sorted(set(visits)), sorted(set(moments))
    for half_life in (2.5, 5, 15, 40):
        values[f"share_visits_{half_life:g}"] = fade(visits, half_life) / fade({step[2] for step in steps}, half_life)
    for half_life in (2, 8):
        values[f"share_moments_{half_life:g}"] = fade(moments, half_life) / fade({s[3] for s in steps}, half_life)
    values |= {"visits": log1p(len(visits)), "share_since_first": len(visits) / (visits[-1] + 1)}
    values |= {"several": float(len(visits) > 1), "third": float(len(visits) > 2)}
    if len(visits) > 1:
        values["overdue_visits"] = log((visits[0] + 1) / np.diff(visits).mean())
    if len(visits) > 2:
        values["irregularity"] = np.diff(visits).std() / np.diff(visits).mean()
    return values


def fade(steps, half_life):
    return sum(0.5 ** (step / half_life) for step in steps)


def own_gap(steps):
    gaps, moments = [step[4] for step in steps], [step[3] for step in steps]
    return max((max(gaps) - min(gaps)) / max(*moments, 1), 0.02) if steps else 0.02


def describe_customer(steps):
    """The numbers that are the same for all labels."""
    labels = {step[0] for step in steps}
    choices = len({(step[0], step[2]) for step in steps})
    return {
        "customer_repeats": (choices - len(labels) + 0.5) / (choices + 1),
        "customer_labels": log1p(choices / max(len({step[2] for step in steps}), 1)),
        "customer_moments": log1p(max(len({step[3] for step in steps}), 1)),
        "customer_since": log1p(min((step[4] for step in steps), default=0) / own_gap(steps)),
    }


def sum_evidence(steps, table):
    """Evidence for all labels, `(5, V)`."""
    result = np.zeros((5, table.counts.shape[1]))
    labels = {step[0] for step in steps}
    recent = {label: sum(0.6**ago for ago in {s[3] for s in steps if s[0] == label} if ago < 8) for label in labels}
    last = {label: float(any(step[0] == label and step[3] == 0 for step in steps)) for label in labels}
    for label in labels:
        weights = recent[label] / sum(recent.values()), last[label] / sum(last.values()), 1.0
        weights += (describe_label(steps, label)["share_visits_15"],)
        for kind, weight in enumerate(weights):
            for other, value in zip(table.neighbours[kind, label], table.weights[kind, label], strict=True):
                result[kind, other] += weight * float(value)
        for value, rarity in zip(table.attributes[label], table.rarity[label], strict=True):
            result[4] += weights[0] * float(rarity) * (table.attributes == value).sum(1).numpy()
    return result.clip(min=0)


def describe_popularity(counts, visits, label, personal, next_transitions):
    counts = counts.double().numpy()
    count, repeats, next_repeats, recent, gaps = counts[:, label]
    share, recent_share = count / max(counts[0].sum(), 1), recent / max(counts[3].sum(), 1)
    gap = (gaps + 1) / (repeats + 0.5)
    return {
        "lift": log((next_transitions + 1e-4) / (share + 1e-4)),
        "label_rate": log1p(30 * count / visits),
        "label_share": log(max(share, 1e-7)),
        "trend": log((recent_share + 1e-4) / (share + 1e-4)),
        "label_repeats": (repeats + 0.5) / (count + 2),
        "label_next_repeats": (next_repeats + 0.1) / (count + 2),
        "label_gap": log1p(gap),
        "label_overdue": log(np.exp(personal["since_visits"]) / gap) if personal else 0.0,
    }


def describe_row(steps, table, labels, counts, visits, readout, vectors):
    """The numbers of a row's candidates, by name, each a list."""
    evidence = sum_evidence(steps, table)
    rows, compared = [], []
    for label in labels:
        personal = describe_label(steps, label)
        values = dict.fromkeys((each.name for each in FEATURES), 0.0) | describe_customer(steps) | personal
        logs = {name: log1p(30 * number) for name, number in zip(EVIDENCE, evidence[:, label], strict=True)}
        values |= {name: number for name, number in logs.items() if name in values}
        values |= describe_popularity(counts, visits, label, personal, evidence[1, label])
        number = dict(zip(EVIDENCE, evidence[:, label], strict=True)) | {name: values[name] for name in COMPARED}
        number |= {"popularity": float(counts[0, label]), "recency": -values["since_moments"] if personal else -1e6}
        if readout is not None:
            values["readout"] = number["readout"] = float(readout[2:].log_softmax(0)[label - 2])
            latest = [vectors[step[0]] for step in steps[-5:]]
            cosines = [float(vectors[label] @ other / vectors[label].norm() / other.norm()) for other in latest]
            values["cosine_last"] = cosines[-1] if cosines else 0.0
            values["cosine_latest"] = max([*cosines, 0.0])
        rows.append(values)
        compared.append(number)
    for name in compared[0] if compared else ():
        numbers = [round(number[name], 7) for number in compared]
        for place, values in enumerate(rows):  # of equal ones the first is ahead
            ahead = sum(other > numbers[place] for other in numbers) + numbers[:place].count(numbers[place])
            values[f"{name}_rank"] = log2(1 + ahead)
            if f"{name}_ratio" in values:
                values[f"{name}_ratio"] = compared[place][name] / max(*(each[name] for each in compared), 1e-9)
    return rows


@pytest.mark.parametrize("has_times", [True, False], ids=["times", "no times"])
@pytest.mark.parametrize("counted", ["at the end", "for each customer, and an encoder"])
def test_each_number_is_that_of_a_loop(has_times, counted):
    generator = np.random.default_rng(7)
    customers = [draw_customer(generator, length) for length in (0, 1, 1, 2, 3, 5, 8, 13, *[PADDED] * 8)]
    ends = [(events[-1][2] if events else 0.0) + float(generator.integers(3)) * 4 for events in customers]
    tables, number = draw_tables(generator, has_times), len(customers)
    readout, counts, visits = None, [table.counts.expand(number, -1, -1) for table in tables], [[VISITS] * number] * 2
    given = {}
    if counted != "at the end":
        counts = [torch.from_numpy(generator.integers(0, 60, (number, 5, size))).float() for size in SIZES]
        visits = [torch.from_numpy(generator.integers(50, 400, number)).float() for _ in SIZES]
        scores, vectors = (
            torch.from_numpy(generator.normal(size=shape)).float() for shape in ((number, SIZES[0]), (SIZES[0], 4))
        )
        readout = [Readout(scores, vectors), None]
        given = {"counts": counts, "visits": visits, "readout": readout}
    history = LabelHistory.from_batch(*to_inputs(customers), torch.tensor(ends))
    found = candidate_features(history, tables, **given)
    assert len(found.label) == number * (sum(SIZES) - 4)  # so few labels are all candidates
    for row in range(2 * number):
        customer, task = divmod(row, 2)
        steps = read_steps(customers[customer], task, ends[customer], has_times)
        own = found.row == row
        of_task = None if readout is None else readout[task]
        said = (None, None) if of_task is None else (of_task.scores[customer], of_task.vectors)
        arguments = counts[task][customer], float(visits[task][customer]), *said
        expected = describe_row(steps, tables[task], found.label[own].tolist(), *arguments)
        for label, values, numbers in zip(found.label[own].tolist(), expected, found.features[own], strict=True):
            assert values.keys() == {each.name for each in FEATURES}
            for each, value in zip(FEATURES, numbers.tolist(), strict=True):
                assert value == pytest.approx(values[each.name], rel=1e-4, abs=2e-5), (row, label, each.name)


def test_a_history_reads_no_event_after_the_time_of_the_prediction():
    generator = np.random.default_rng(3)
    drawn = [draw_customer(generator, length) for length in (0, 1, 1, 3, 8, *[PADDED] * 8)]
    customers = [[(labels, visit + 1, time, kind) for labels, visit, time, kind in events] for events in drawn]
    ends = [events[len(events) // 3][2] - float(generator.integers(2)) if events else 0.0 for events in customers]
    kept = [[event for event in events if event[2] <= end] for events, end in zip(customers, ends, strict=True)]
    assert sum(map(len, kept)) < sum(map(len, customers)) - 50 and [] in kept[1:]
    whole, cut = (LabelHistory.from_batch(*to_inputs(each), torch.tensor(ends)) for each in (customers, kept))
    for name, value in whole._asdict().items():
        torch.testing.assert_close(value, getattr(cut, name), rtol=0, atol=0, msg=name)
    assert whole.is_new.tolist() == [not events for events in kept]


def test_each_number_has_a_name_of_its_own():
    assert len({each.name for each in FEATURES}) == len(FEATURES)


def test_ranks_begin_with_the_largest_number_and_the_first_of_equal_ones():
    row, values = torch.tensor([0, 0, 0, 0, 2, 2]), torch.tensor([[-1.0, 3.0, -2.0, 3.0, -5.0, 1e-9]])
    copy = values.clone()
    ranks, largest = compare(row, values)
    assert ranks.tolist() == [[3, 1, 4, 2, 2, 1]] and largest[0, 0] == 3 and largest[0, 5] == values[0, 5]
    assert torch.equal(values, copy) and compare(row[:0], values[:, :0])[0].shape == (1, 0)


def test_a_label_of_a_hundred_thousand_is_reached_by_its_evidence():
    table = LabelTables(100_000)
    last = len(table.neighbours[0]) - 1
    table.neighbours[0, 7, 0], table.weights[0, 7, 0] = last, 1.0
    labels, events = torch.tensor([[[7]], [[9]]]), torch.zeros(2, 1, dtype=torch.long)
    found = candidate_features(LabelHistory.from_batch(labels, events, events.float(), events), [table])
    rows = found.row[found.label == last]
    assert rows.tolist() == [0] and len(found.row) < 200  # of others the popular ones
    transitions = [feature.name for feature in FEATURES].index("transitions")
    assert found.features[found.label == last, transitions].item() == pytest.approx(log1p(30))
