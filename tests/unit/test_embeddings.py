# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings: of events, of the encoder's units, and of labels, which are those of the features."""

import math

import pytest
import torch
from four_histories import assert_close, four_histories, rows, score


@pytest.fixture
def inputs(extractor, event_log):
    return four_histories(extractor, event_log)


def test_equation_1_to_the_letter(tiny_model, inputs):
    model = tiny_model().model
    model.embeddings.norm = torch.nn.Identity()
    hidden = model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}, output_hidden_states=True).hidden_states
    assert len(hidden) == 1 + model.config.num_hidden_layers
    tables = [table.weight for table in model.embeddings.events.feature_tables]
    for place in (0, 1, 5, 14):
        ids = inputs["input_ids"][0, place].tolist()
        present = [tables[j][value] for j, value in enumerate(ids) if value != 0]
        assert 0 < len(present) < len(ids)  # some features are missing, and the average is over the others
        expected = sum(present) / len(present) + model.embeddings.position_embeddings.weight[place]
        assert_close(hidden[0][0, place], expected)


def test_a_visit_is_the_sum_of_its_events_over_the_root_of_their_number(tiny_model, inputs):
    embeddings = tiny_model(encoder_unit="visit").model.embeddings
    e = embeddings.events(inputs["input_ids"])
    units, mask = embeddings.units(e, inputs["attention_mask"], inputs["visit_ids"])
    for row in range(len(e)):
        real = inputs["attention_mask"][row].bool()
        visits = inputs["visit_ids"][row][real]
        assert mask[row].tolist() == [unit <= int(visits.max()) for unit in range(units.shape[1])]
        for visit in visits.unique().tolist():
            of_visit = e[row][real][visits == visit]
            assert_close(units[row, visit], of_visit.sum(0) / math.sqrt(len(of_visit)))


@pytest.mark.parametrize("unit", ["event", "visit"])
@torch.no_grad()
def test_the_memory_gets_the_units_that_the_encoder_reads(tiny_model, inputs, unit):
    model = tiny_model(encoder_unit=unit, augmentation="all_prefixes", repeat_memory=True)
    ends = torch.tensor([[1, 14], [0, 1], [3, 31], [0, 0]])
    found = model(**inputs, prefix_ends=ends).logits
    memory, model.repeat_memory = model.repeat_memory, None
    without = model(**inputs, prefix_ends=ends).logits
    output = model.model(**{k: inputs[k] for k in ("input_ids", "attention_mask", "visit_ids")})
    for row in range(4):
        units = inputs["visit_ids"][row] if unit == "visit" else torch.arange(inputs["visit_ids"].shape[1])
        real = inputs["attention_mask"][row].bool()
        days = torch.zeros(1, output.unit_mask.shape[1])  # a unit's time is that of its last event
        for place in real.nonzero()[:, 0]:
            days[0, units[place]] = inputs["event_times"][row, place]
        label_ids = inputs["input_ids"][row, :, model.task_features][None]
        met = memory.votes(label_ids, units[None], output.event_embeddings[row][None], days.shape[1])
        remembered = memory(range(len(model.config.tasks)), days, units[ends[row]][None], met)
        for task, (_, prefixes, labels, added) in zip(model.config.tasks, remembered, strict=True):
            expected = without[task][row].clone()
            expected[prefixes, labels] += added
            assert_close(found[task][row], expected)
    for task in model.config.tasks:
        assert not torch.allclose(found[task], without[task], atol=1e-3)


def test_label_embeddings_are_those_of_the_features(tiny_model, inputs):
    model = tiny_model()
    tables = model.model.embeddings.events.feature_tables
    places = {task: model.config.features.index(task) for task in model.config.tasks}
    for task, size in model.config.label_sizes.items():
        assert model.label_embeddings(task).shape == (size, 16)
        assert model.label_embeddings(task) is tables[places[task]].weight
    before = model(**inputs).logits["aisle"]
    with torch.no_grad():
        model.label_embeddings("aisle")[3] += 1
    assert not torch.allclose(model(**inputs).logits["aisle"][:, 3], before[:, 3])


def test_only_the_input_features_are_read(tiny_model, inputs):
    model = tiny_model(input_features=["items", "age"])
    ids = inputs["input_ids"].clone()
    ids[..., [0, 2, 3, 4, 5]] = 1  # type, a.b, aisle, weekday, gap
    changed = {**inputs, "input_ids": ids}
    assert torch.equal(score(model, changed), score(model, inputs))
    assert not torch.allclose(score(tiny_model(), changed), score(tiny_model(), inputs), atol=1e-3)
    tables = model.model.embeddings.events.feature_tables
    start = inputs["input_ids"][0, 0]
    assert_close(model.model.embeddings.events(inputs["input_ids"])[0, 0], tables[6].weight[start[6]])


def test_without_positions_the_order_of_events_is_not_known(tiny_model, inputs):
    model = tiny_model(max_position_embeddings=None)
    turned = rows(inputs, 2)
    turned["input_ids"] = turned["input_ids"].flip(1)
    assert_close(score(model, turned), score(model, rows(inputs, 2)))
    assert "position" not in " ".join(model.state_dict())
