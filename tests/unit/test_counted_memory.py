# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The counted memory: its sums beside plain loops, nobody's own pairs in training, nothing of the future."""

import math
from collections import Counter, defaultdict
from itertools import product

import pytest
import torch
from choices import PAPER
from torch.testing import assert_close

from modeling_mcm import MCMConfig, MCMForMultiTaskRecommendation
from modeling_mcm.counted_memory_mcm import (
    FOLLOWERS,
    HABIT_VISITS,
    LAG_UNIT,
    LAG_WEIGHTS,
    LATEST,
    SHRINKAGE,
    CountedMemory,
    Histories,
)
from modeling_mcm.modeling_mcm import PARTS

LABELS, FIRST = 12, 2


def fill(table, customers):
    """Fills a table as preparation does: the heaviest followers of each label, by weight and then by id."""
    counts, totals, rows = Counter(), Counter(), defaultdict(list)
    for moments, labels in customers:
        totals.update(label for label in labels if label >= FIRST)
        for place, other in product(range(len(labels)), repeat=2):
            weight = LAG_WEIGHTS.get(moments[other] - moments[place], 0)
            if weight and min(labels[place], labels[other]) >= FIRST:
                counts[labels[place], labels[other]] += weight
    for (label, follower), weight in counts.items():
        rows[label].append((-weight, follower))
    for label, found in rows.items():
        kept = sorted((follower, -weight) for weight, follower in sorted(found)[:FOLLOWERS])
        for column, (follower, weight) in zip(range(FOLLOWERS - len(kept), FOLLOWERS), kept, strict=True):
            table.followers[label, column], table.counts[label, column] = follower, weight
    for label, number in totals.items():
        table.totals[label] = number
    return counts, totals


@pytest.fixture
def customers():
    """Moments and labels of a few customers; several events share a moment, some have no label."""
    torch.manual_seed(1)
    moments = [torch.randint(0, 2, (9,)).cumsum(0).tolist() for _ in range(5)]
    return [(each, torch.randint(0, LABELS, (9,)).tolist()) for each in moments]


@pytest.fixture
def memory():
    memory = CountedMemory([LABELS], [True], [True])
    memory.reset_parameters()
    memory.label_rarity(0).copy_(torch.linspace(-1, 1, LABELS))
    return memory


def histories_of(customers, rows):
    """Rows, each a customer and the last event that it sees."""
    moments = torch.tensor([each for each, _ in customers])
    return Histories(moments, moments * 0.5, *(torch.tensor(column) for column in zip(*rows, strict=True)))


def expected(memory, counts, totals, moments, labels, end):
    """What followers add to the scores of one row."""
    latest = [place for place in range(end, -1, -1) if labels[place] >= FIRST][:LATEST]
    decay, rate = torch.sigmoid(memory.position_decay[0]).item(), memory.log_rate[0].exp().item()
    n = Counter()
    for j, place in enumerate(latest):
        weight = decay**j * math.exp(-rate * 0.5 * (moments[end] - moments[place]))
        for (label, follower), count in counts.items():
            if label == labels[place]:
                n[follower] += weight * count / LAG_UNIT / (totals[label] + 1) ** SHRINKAGE
    added = torch.zeros(LABELS)
    for follower, value in n.items():
        sensitivity = memory.follower_sensitivity[0] + memory.follower_rarity[0] * memory.label_rarity(0)[follower]
        added[follower] = memory.follower_gain[0] * math.log1p(value * sensitivity.exp())
    return added


@pytest.mark.parametrize("without_own", [False, True])
def test_followers_match_loops(customers, memory, without_own):
    """Without its own pairs a customer's row is what the tables of all others would say."""
    fill(memory.follower_tables["0"], customers)
    labels = torch.tensor([each for _, each in customers])
    rows = list(product(range(len(customers)), (0, 4, 8)))
    found = memory.followers(0, labels, histories_of(customers, rows), without_own=without_own)
    for (customer, end), row in zip(rows, found, strict=True):
        others = [each for place, each in enumerate(customers) if not (without_own and place == customer)]
        empty = CountedMemory([LABELS], [True], [False]).follower_tables["0"]
        counts, totals = fill(empty, others)
        assert_close(row, expected(memory, counts, totals, *customers[customer], end), atol=1e-5, rtol=1e-5)


def test_own_pair_in_a_full_row_is_removed_whole(memory, monkeypatch):
    """Else what is left of its count would tell a training row what its customer did next."""
    table = memory.follower_tables["0"]
    monkeypatch.setattr("modeling_mcm.counted_memory_mcm.FOLLOWERS", 2)
    table.followers, table.counts = torch.zeros(LABELS, 2, dtype=torch.int32), torch.zeros(LABELS, 2)
    table.followers[2], table.counts[2] = torch.tensor([3, 4]), torch.tensor([500.0, 300.0])
    histories = Histories(torch.tensor([[0, 1]]), torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]))
    found = table.look_up(torch.tensor([[2, 4]]), histories, without_own=True)
    assert found.labels[0, 0].tolist() == [3, 4]
    assert found.counts[0, 0, 0] > 0 and found.counts[0, 0, 1] == 0  # 300 - 240 is under the row's least


def test_rates_and_met_labels_match_loops(customers, memory):
    visits, labels = (torch.tensor(column) for column in zip(*customers, strict=True))
    rows = list(product(range(len(customers)), (0, 3, 8)))
    histories = histories_of(customers, rows)
    found, met = memory.rates(0, labels, visits, histories), memory.met(0, labels, histories)
    for (customer, end), rate, seen in zip(rows, found, met, strict=True):
        of_visit = defaultdict(set)
        for moment, label in zip(*(values[: end + 1] for values in customers[customer]), strict=True):
            if label >= FIRST:
                of_visit[moment].add(label)
        weights = [2 ** (-ago / HABIT_VISITS) for ago in range(len(of_visit))]
        wanted = torch.zeros(LABELS)
        for weight, (_, those) in zip(weights, sorted(of_visit.items(), reverse=True), strict=True):
            for label in those:
                wanted[label] += weight / sum(weights)
        assert_close(rate, wanted)
        assert seen.nonzero()[:, 0].tolist() == sorted(set().union(*of_visit.values()))


def test_related_labels_are_a_product_with_their_table(memory):
    table, inputs = memory.habit_tables["0"], torch.rand(3, LABELS) * (torch.rand(3, LABELS) > 0.5)
    weights = torch.randn(LABELS, LABELS).half().float()
    table.related[:, :LABELS] = torch.arange(LABELS)
    table.weights[:, :LABELS] = weights
    assert_close(table(inputs), (inputs @ weights).clamp(min=0), atol=1e-5, rtol=1e-5)


@pytest.fixture
def counting_model(customers):
    """A function that makes a small model with both kinds of tables, filled, whose gains count."""

    def make(**choices):
        torch.manual_seed(0)
        given = {"features": ["kind", "item"], "vocabulary_sizes": [5, LABELS], "tasks": ["item"], "hidden_size": 16}
        given |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        given |= PAPER | {"augmentation": "all_prefixes", "follower_tasks": ["item"], "related_tasks": ["item"]}
        model = MCMForMultiTaskRecommendation(MCMConfig(**(given | choices))).eval()
        memory = model.counted_memory
        fill(memory.follower_tables["0"], customers)
        for table in (*memory.habit_tables.values(), *memory.new_tables.values()):
            table.related[:, :LABELS] = torch.arange(LABELS)
            table.weights[FIRST:, FIRST:LABELS] = torch.randn(LABELS - FIRST, LABELS - FIRST)
        memory.habit_gain.fill_(0.4), memory.new_gain.fill_(1.0), memory.new_offset.fill_(-3.0)
        model.score_scales.copy_(torch.tensor([[0.7, 1.2, 1.0, 0.8]]))
        return model

    return make


@pytest.fixture
def histories():
    torch.manual_seed(3)
    ids = torch.stack([torch.randint(2, 5, (3, 7)), torch.randint(0, LABELS, (3, 7))], -1)
    days = torch.rand(3, 7).cumsum(1)
    return {"input_ids": ids, "visit_ids": torch.arange(7).expand(3, -1), "event_times": days}


def test_a_score_is_the_sum_of_its_parts(counting_model, histories):
    model = counting_model(related_tasks=[], readout_bias=True)
    parts = model.score_parts(**histories)["item"]
    assert set(parts) == {"readout", "bias", "followers"}
    scales = model.score_scales[0]
    wanted = parts["readout"] * scales[0] + parts["bias"] * scales[1] + parts["followers"] * scales[3]
    assert_close(model(**histories).logits["item"][:, FIRST:], wanted[:, FIRST:])
    assert parts["followers"].abs().sum() > 0


def test_related_labels_do_not_change_the_chance_of_new_labels(counting_model, histories):
    """Else a customer of two events, to whom almost all is new, would be told that they repeat themselves."""
    model = counting_model()
    model.counted_memory.new_offset.zero_()
    parts = model.score_parts(**histories)["item"]
    scales = model.score_scales[0]
    others = sum(parts[name] * scale for name, scale in zip(PARTS, scales, strict=True) if name in parts)[:, FIRST:]
    found, met = model(**histories).logits["item"][:, FIRST:].softmax(-1), parts["met"][:, FIRST:]
    assert_close((found * met).sum(1), (others.softmax(-1) * met).sum(1))
    model.counted_memory.new_gain += 1
    moved = model(**histories).logits["item"][:, FIRST:].softmax(-1)
    assert_close(moved * met, found * met)
    ratio = torch.where(met, 0, moved.log() - found.log() - parts["new"][:, FIRST:])  # one number a customer
    assert all(row[~known].std() < 1e-4 for row, known in zip(ratio, met, strict=True))
    assert not torch.allclose(moved, found, atol=1e-3)


def test_future_events_are_ignored(counting_model, histories):
    model, ends = counting_model(), torch.tensor([[3]] * 3)
    before = model(**histories, prefix_ends=ends).logits["item"]
    changed = {name: value.clone() for name, value in histories.items()}
    changed["input_ids"][:, 4:, 1] = (changed["input_ids"][:, 4:, 1] + 3) % LABELS
    changed["event_times"][:, 4:] += 5
    assert_close(model(**changed, prefix_ends=ends).logits["item"], before)
    whole, other = (model(**inputs).logits["item"] for inputs in (histories, changed))
    assert not torch.allclose(whole, other, atol=1e-3)  # what was changed counts as soon as it is no future


def test_padding_does_not_change_scores(counting_model, histories):
    model = counting_model()
    padded = {name: torch.cat([value, value[:, -4:]], 1) for name, value in histories.items()}
    padded["input_ids"][:, 7:] = 0
    assert_close(model(**padded).logits["item"], model(**histories).logits["item"])


def test_save_and_load_do_not_change_scores(counting_model, histories, tmp_path):
    model = counting_model()
    model.save_pretrained(tmp_path)
    loaded = MCMForMultiTaskRecommendation.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**histories).logits["item"], model(**histories).logits["item"])
    assert loaded.counted_memory.follower_tables["0"].followers.dtype == torch.int32


def test_training_leaves_own_pairs_out(counting_model, histories):
    """One customer's step, whose own pairs are all that its tables hold, sees no followers at all."""
    model = counting_model(related_tasks=[], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    one = {name: value[:1].clone() for name, value in histories.items()}
    one["input_ids"][0, :, 1] = torch.arange(2, 9)
    table = model.counted_memory.follower_tables["0"]
    for buffer in (table.followers, table.counts, table.totals):
        buffer.zero_()
    fill(table, [(list(range(7)), list(range(2, 9)))])
    asked = {"prefix_ends": torch.tensor([[1, 3]]), "label_prefixes": torch.tensor([[0, 1]])}
    asked["labels"] = torch.tensor([[[4], [6]]])
    model.train()
    trained = model(**one, **asked).loss
    table.counts.zero_()
    model.counted_memory.met_gain.zero_()
    assert_close(trained, model(**one, **asked).loss)
    fill(table, [(list(range(7)), list(range(2, 9)))])
    assert not torch.allclose(trained, model.eval()(**one, **asked).loss)
