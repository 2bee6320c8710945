# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What a training row asks, on histories that are small enough to see through, and in which order rows come."""

import pickle
import re
from datetime import datetime, timedelta

import numpy as np
import pytest
import torch
from choices import PAPER, from_data
from handmade_extractor import BUY, CLICK, CLOSE, FEATURES, SETTINGS, START, UNKNOWN, make

from modeling_mcm import MCMConfig
from modeling_mcm.data import load_prepared
from modeling_mcm.data.collator import IGNORED, LengthGroupedSampler, MCMCollator, PreparedRows

DAY = 86_400
MODES = {
    "random event": {},
    "random visit": {"encoder_unit": "visit"},
    "last event": {"augmentation": "last_prefix"},
    "last visit": {"augmentation": "last_prefix", "encoder_unit": "visit"},
    "all events": {"augmentation": "all_prefixes"},
    "all visits": {"augmentation": "all_prefixes", "encoder_unit": "visit"},
    "masked": {"augmentation": "masked_lm", "readout": "last"},
}
UNITS = {"next_event": "event", "next_visit": "visit"}


EXTRACTOR = make(
    features=[FEATURES[1], FEATURES[0]],
    vocabularies={"items": [f"item {number}" for number in range(60)], "type": SETTINGS["vocabularies"]["type"]},
    bins={},
    amount=None,
    max_events=40,
)


@pytest.fixture
def collator(monkeypatch):
    def make(mode="train", epoch=0, seed=0, half_life=0, masked=0.4, cutoff="validation", **choices):
        monkeypatch.setattr("modeling_mcm.data.collator.MASKED", masked)
        as_of = choices.pop("as_of", None)
        config = MCMConfig(**from_data(EXTRACTOR) | PAPER | choices)
        made = MCMCollator(EXTRACTOR, config, mode, cutoff, seed, as_of, half_life)
        made.epoch.fill_(epoch)
        return made

    return make


def row(number, visits, validation=10_000, test=20_000, same_time=True):
    """A prepared row from `[(day, items bought, items clicked)]`; a visit with a purchase is closed. Ids from 2."""
    events = [
        {"when": datetime(1970, 1, 1) + timedelta(day, 0 if same_time else 60 * place), "basket": str(visit)} | line
        for visit, (day, *lists) in enumerate(visits)
        for place, line in enumerate(
            {"item": f"item {item - 2}", "action": action}
            for action, of_action in zip(("buy", "click"), lists, strict=True)
            for item in of_action
        )
    ]
    encoded = EXTRACTOR.encode({"customer_id": str(number), "events": events})
    unseen = {f"unseen_{task}": encoded[f"task_{task}"] * 0 for task in EXTRACTOR.tasks}
    ends = {"validation_end": validation, "test_end": test}
    return (
        encoded
        | unseen
        | {name: int((encoded["times"] < day * DAY).sum()) for name, day in ends.items()}
        | {"row": number}
    )


def read_visits(text):
    """`[(day, items bought, items clicked)]` of a text with a visit a line."""
    parts = [re.split("[:|]", line) for line in text.strip().splitlines()]
    return [(int(day), *([*map(int, items.split())] for items in lists)) for day, *lists in parts]


# Items up to 19 are of the training period, 20 to 29 of validation, 30 and up of test.
HISTORY = read_visits("""
1: 2 3 3 | 4
2: | 5 6
4: 7 |
6: 2 8 9 9 10 | 11
9: 12 |
""")
LATER = read_visits("""
12: 20 |
12: | 21
13: 22 23 22 | 24
21: | 30
22: 31 32 | 33
""")


@pytest.fixture
def rows():
    return [
        row(0, HISTORY + LATER, 10, 20),
        row(1, HISTORY[:2] + LATER, 10, 20),
        row(2, HISTORY[3:], 10, 20),
        row(3, [(3, [2], [])], 10, 20),
    ]


def questions(batch, place):
    """All that a batch asks of one row: the input, and the labels of each prefix as (end, labels of all tasks)."""
    length = int(batch["attention_mask"][place].sum())
    labels = batch["labels"][place]
    prefixes = batch.get("label_prefixes", torch.zeros_like(batch["labels"][..., 0]))[place].tolist()
    ends = batch["prefix_ends"][place].tolist() if "prefix_ends" in batch else [length - 1]
    asked = [(ends[p], *label) for p, label in zip(prefixes, labels.tolist(), strict=True) if max(label) >= 2]
    return batch["input_ids"][place, :length].tolist(), sorted(asked)


def items(batch, place=0):
    return [event[0] for event in questions(batch, place)[0]]


@pytest.mark.parametrize("choices", MODES.values(), ids=MODES)
def test_a_draw_depends_on_seed_epoch_and_row_alone(collator, rows, choices):
    together = collator(epoch=3, **choices)(rows)
    for place in range(len(rows)):
        alone = collator(epoch=3, **choices)([rows[place]])
        assert questions(alone, 0) == questions(together, place)
    draws = {epoch: str(questions(collator(epoch=epoch, **choices)(rows), 0)) for epoch in range(8)}
    assert len(set(draws.values())) > 3  # an epoch has a draw of its own
    assert str(questions(collator(epoch=3, seed=1, **choices)(rows), 0)) != draws[3]


def expected_questions(history, target):
    """All prefixes of a history and what follows each, told by plain loops: {end: labels of the task items}."""
    visits, kinds, labels = (history[name].tolist() for name in ("visits", "feature_type", "feature_items"))
    result = {}
    for i in range(history["validation_end"]):
        if kinds[i] == BUY:
            end = i if target == "next_event" else visits.index(visits[i])
            result.setdefault(end, set()).add(labels[i])
    return result


@pytest.mark.parametrize("target", UNITS)
@pytest.mark.parametrize("augmentation", ["random_prefix", "last_prefix"])
@pytest.mark.parametrize("visits", [HISTORY + LATER, [(3, [2], [])]], ids=["long", "one visit"])
def test_a_prefix_is_asked_for_what_comes_right_after_it(collator, target, augmentation, visits):
    history = row(0, visits, 10, 20, same_time=False)
    expected = expected_questions(history, target)
    seen = set()
    for epoch in range(120):
        made = collator(epoch=epoch, encoder_unit=UNITS[target], augmentation=augmentation)
        read, asked = questions(made([history]), 0)
        end = len(read) - 1
        assert read[0] == [0, START]
        assert [event[0] for event in read[1:]] == history["feature_items"][:end].tolist()
        assert sorted(label for _, label, _ in asked if label >= 2) == sorted(expected[end])  # no label twice
        assert sorted(kind for *_, kind in asked if kind != IGNORED) == [BUY]
        seen.add(end)
    # Every prefix is drawn, the empty one only where there is no other; or the last one.
    assert seen == (set(expected) - {0} or {0} if augmentation == "random_prefix" else {max(expected)})


@pytest.mark.parametrize("target", UNITS)
def test_all_prefixes_are_asked_together(collator, target):
    history = row(0, HISTORY + LATER, 10, 20, same_time=False)
    read, asked = questions(collator(augmentation="all_prefixes", encoder_unit=UNITS[target])([history]), 0)
    together = {}
    for end, label, _ in asked:
        together.setdefault(end, set()).add(label)
    assert {end: labels - {IGNORED} for end, labels in together.items()} == expected_questions(history, target)
    assert [event[0] for event in read[1:]] == history["feature_items"][: history["validation_end"]].tolist()


@pytest.mark.parametrize("name", ["random event", "all visits", "masked"])
def test_an_item_sequence_holds_the_events_with_items_and_keeps_the_cutoffs(collator, name):
    history = row(0, HISTORY + LATER, 10, 20, same_time=False)
    choices = {**MODES[name], "input_features": ["items"]}
    read, asked = questions(collator(**choices)([history]), 0)
    assert asked and all(event[0] for event in read[1:])
    for cutoff, target in (("validation", [20]), ("test", [31, 32])):
        batch = collator("evaluate", cutoff=cutoff, **choices)([history])
        read = [event[0] for event in questions(batch, 0)[0][1:] if event[0] != UNKNOWN]
        assert read == [item for item in history["feature_items"][: history[f"{cutoff}_end"]].tolist() if item]
        assert batch["labels"][0, :, 0].tolist() == target


def test_what_followed_long_ago_weighs_less(collator):
    choices = {"augmentation": "all_prefixes", "encoder_unit": "visit"}
    batch = collator(half_life=5, **choices)([row(0, HISTORY), row(1, HISTORY[:1])])
    found = dict(zip(batch["labels"][0, :, 0].tolist(), batch["label_weights"][0].tolist(), strict=True))
    found.pop(IGNORED)  # what the visit holds twice
    bought_last = {2: 6, 3: 1, 7: 4, 8: 6, 9: 6, 10: 6, 12: 9}  # day
    assert found == pytest.approx({item: 2 ** (-(9 - day) / 5) for item, day in bought_last.items()})
    assert batch["label_weights"][1].tolist()[:2] == [1, 1]  # a customer's latest target counts whole
    assert "label_weights" not in collator(**choices)([row(0, HISTORY)])
    faded = collator(half_life=1, **choices)([row(0, HISTORY)])  # asked back to day 9 - 4
    assert {label for label in faded["labels"][0, :, 0].tolist() if label > 0} == {2, 8, 9, 10, 12}


@pytest.mark.parametrize("name", ["all events", "all visits", "masked"])
def test_events_of_one_time_are_shuffled_and_the_end_of_a_visit_stays_last(collator, rows, name):
    orders = set()
    for epoch in range(20):
        read, _ = questions(collator(epoch=epoch, masked=0.0, **MODES[name])(rows[:1]), 0)
        read = read[1:]
        assert [kind for _, kind in read].count(CLOSE) == 4
        start = 0
        for _, bought, clicked in HISTORY:
            size = len(bought) + len(clicked)
            visit = read[start : start + size]
            expected = [[item, BUY] for item in bought] + [[item, CLICK] for item in clicked]
            hidden = visit.count([UNKNOWN, UNKNOWN])
            assert hidden <= 1 if name == "masked" else not hidden
            assert hidden or sorted(visit) == sorted(expected)  # features of an event stay together
            assert not bought or read[start + size] == [0, CLOSE]
            start += size + bool(bought)
        orders.add(str(read[: len(HISTORY[0][1]) + 1]))
    assert len(orders) > 5


LONG = [(day, [2 + day, 3 + day], [4 + day]) for day in range(12)]  # 4 events a visit


@pytest.mark.parametrize(
    "size, name", [(13, "all events"), (13, "all visits"), (15, "all visits"), (15, "all events")]
)
def test_a_long_history_is_cut_at_the_end_of_a_visit_and_asks_nothing_that_it_lost(collator, size, name):
    history = row(0, LONG, same_time=False)
    starts = set()
    for epoch in range(60):
        read, asked = questions(collator(epoch=epoch, max_events=size, **MODES[name])([history]), 0)
        assert len(read) == size and read[0] == [0, START] and read[-1] == [0, CLOSE]
        last_visit = max(event[0] for event in read) - 4
        start = 4 * (last_visit + 1) - (size - 1)  # events before the window
        starts.add(start)
        kept = history["feature_items"][start : start + size - 1].tolist()
        assert [event[0] for event in read[1:]] == kept
        ends = {end for end, *_ in asked}
        assert (0 in ends) == (start == 0)
        assert max(ends) < size
        # every visit of which the window holds the history is asked for
        assert {label for _, label, _ in asked} >= set(range(2 + last_visit, 4 + last_visit))
    assert len(starts) > 5 and (min(starts) == 0) == (size == 13)


@pytest.mark.parametrize("name", ["random event", "random visit", "last event", "last visit"])
def test_one_prefix_of_a_long_history_has_its_latest_events(collator, name):
    """Whatever is left out changes no question; of a history to evaluate all events are read."""
    history = row(0, LONG, same_time=False)
    for epoch in range(20):
        read, asked = questions(collator(epoch=epoch, max_events=7, **MODES[name])([history]), 0)
        whole, asked_whole = questions(collator(epoch=epoch, max_events=300, **MODES[name])([history]), 0)
        assert read == [whole[0], *whole[1:][-6:]] and len(whole) > 1
        assert [label for _, *label in asked] == [label for _, *label in asked_whole]
    assert len(questions(collator("evaluate", max_events=7, **MODES[name])([history]), 0)[0]) == 1 + 4 * len(LONG)


def test_masked_events_are_targets_and_their_labels_are_what_was_hidden(collator, rows):
    shares, numbers = [], []
    for epoch in range(40):
        batch = collator(epoch=epoch, **MODES["masked"])(rows)
        for place, source in enumerate(rows):
            end = source["validation_end"]
            read, asked = questions(batch, place)
            hidden = [i for i, event in enumerate(read) if event == [UNKNOWN, UNKNOWN]]
            assert [prefix for prefix, *_ in asked] == hidden and hidden
            assert all(kind == BUY for _, _, kind in asked)
            events = list(zip(source["feature_items"][:end], source["feature_type"][:end], strict=True))
            restored = [tuple(event) for i, event in enumerate(read[1:], 1) if i not in hidden]
            restored += [(label, kind) for _, label, kind in asked]
            assert sorted(restored) == sorted(events)
            if place == 0:
                shares.append(len(hidden) / (source["task_items"][:end] > 0).sum())
                numbers.append(len(hidden))
    assert 0.3 < np.mean(shares) < 0.5 and len(set(numbers)) > 2  # of a probability of 0.4


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("cutoff, history, target", [("validation", 5, [20]), ("test", 8, [31, 32])])
def test_evaluation_reads_up_to_the_cutoff_and_asks_for_the_visit_after_it(
    collator, rows, name, cutoff, history, target
):
    batch = collator("evaluate", cutoff=cutoff, **MODES[name])(rows)
    end = rows[0][f"{cutoff}_end"]
    read = items(batch)[1:]
    if name == "masked":
        assert batch["input_ids"][0, len(read)].tolist() == [UNKNOWN, UNKNOWN]
        read = read[:-1]
    assert read == rows[0]["feature_items"][:end].tolist()  # the order as it is stored, nothing drawn
    labels = batch["labels"][0, :, 0]
    assert labels[labels >= 2].tolist() == target
    assert not (batch["labels"][3] >= 2).any()  # no visit after the cutoff
    assert "prefix_ends" not in batch and "label_prefixes" not in batch


def test_the_time_of_a_prediction_is_on_the_clock_of_the_events(collator, rows):
    batch = collator("evaluate", as_of=30 * DAY)(rows)
    assert batch["as_of"].tolist() == [30 - 1, 30 - 1, 30 - 6, 30 - 3]
    for mode, as_of in (("evaluate", None), ("train", 30 * DAY)):
        assert "as_of" not in collator(mode, as_of=as_of)(rows)


# ------------------------------------------------------------------------------------------------ rows and their order


def test_prepared_rows_come_as_they_are_stored(prepared):
    stored = load_prepared(prepared)
    kept = PreparedRows(stored, indices=[5, 2, 9])
    assert len(kept) == 3
    expected = stored.to_list()
    for found, place in zip([*kept.__getitems__([1, 0]), kept[2]], [2, 5, 9], strict=True):
        assert found.pop("row") == place
        assert {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()} == expected[place]
    assert len(pickle.dumps(kept)) < 10_000  # a worker opens the file itself
    assert pickle.loads(pickle.dumps(kept))[2]["customer_id"] == expected[9]["customer_id"]


LENGTHS = np.random.default_rng(0).integers(2, 60, 83)


def make_sampler(seed=0, epoch=0):
    return LengthGroupedSampler(LENGTHS, 8, seed, torch.tensor(epoch))


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own():
    moving = make_sampler()
    order = list(moving)
    assert sorted(order) == list(range(83)) and len(moving) == 83 and list(moving) == order
    moving.epoch.fill_(1)
    assert order != list(moving) == list(make_sampler(epoch=1)) and list(make_sampler(seed=1)) != order


def test_groups_hold_rows_of_similar_length():
    grouped = np.array(list(make_sampler())[:80]).reshape(-1, 8)
    spread = np.ptp(LENGTHS[grouped], axis=1).mean()
    assert spread < 0.4 * np.ptp(LENGTHS[np.arange(80).reshape(-1, 8)], axis=1).mean()
    assert np.abs(np.diff(LENGTHS[grouped].mean(axis=1))).max() > 10  # and the groups come in no order
