# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings: of events, of the encoder's units, and of labels, which are those of the features. And event dropout."""

import math

import torch
from four_histories import assert_close, rows, score


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


def test_visit_is_the_scaled_sum_of_its_events(tiny_model, inputs):
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


def test_labels_share_the_feature_embeddings(tiny_model):
    model = tiny_model()
    tables = dict(zip(model.config.features, model.model.embeddings.events.feature_tables, strict=True))
    for task, size in model.config.label_sizes.items():
        assert model.label_embeddings(task) is tables[task].weight and len(tables[task].weight) == size


def test_only_the_input_features_are_read(tiny_model, inputs):
    model = tiny_model(input_features=["items", "age"])
    ids = inputs["input_ids"].clone()
    ids[..., [0, 2, 3, 4, 5]] = 1  # type, a.b, aisle, weekday, gap
    changed = {**inputs, "input_ids": ids}
    assert torch.equal(score(model, changed), score(model, inputs))
    assert not torch.allclose(score(tiny_model(), changed), score(tiny_model(), inputs), atol=1e-3)


def test_order_is_unknown_without_positions(tiny_model, inputs):
    model = tiny_model(max_position_embeddings=None)
    turned = rows(inputs, 2)
    turned["input_ids"] = turned["input_ids"].flip(1)
    assert_close(score(model, turned), score(model, rows(inputs, 2)))
    assert "position" not in " ".join(model.state_dict())


# ------------------------------------------------------------------------------------------------------- event dropout


def test_event_dropout_hides_whole_events_and_leaves_no_visit_empty(tiny_model, inputs):
    """A unit of zeros has no variance, and each layer norm would multiply its gradient by a million."""
    torch.manual_seed(0)
    none, some, all_but = (
        tiny_model(encoder_unit="visit", event_dropout_prob=share).model.embeddings for share in (0.0, 0.3, 0.999)
    )
    mask = inputs["attention_mask"]
    visits = torch.arange(mask.shape[1]).expand(4, -1) // 2  # two events each
    events = torch.eye(mask.shape[1]).expand(4, -1, -1)  # each event has a column of its own
    plain = none.units(events, mask, visits)[0]
    for embeddings in (none.train(), some):
        assert torch.equal(embeddings.units(events, mask, visits)[0], plain)
    pairs = plain.gt(0).sum(-1) == 2  # visits that can lose one of their events
    lost = []
    for _ in range(40):
        units = some.train().units(events, mask, visits)[0]
        assert torch.equal(units, plain.masked_fill(units == 0, 0)) and torch.equal(units[~pairs], plain[~pairs])
        lost.append((units[pairs].gt(0).sum(-1) == 1).float().mean())
        assert (units[plain.any(-1)] != 0).any(-1).all()
    assert 0.37 < torch.stack(lost).mean() < 0.47  # 2 x .3 x .7
    whole = all_but.train().units(events, mask, visits)[0]
    assert (whole == plain).all(-1).float().mean() > 0.9  # visits that lost all events have them back


def test_event_dropout_does_not_hide_units(tiny_model, inputs):
    embeddings = tiny_model(encoder_unit="event", event_dropout_prob=0.999).model.embeddings.train()
    events, mask = embeddings.events(inputs["input_ids"]), inputs["attention_mask"]
    assert torch.equal(embeddings.units(events, mask, None)[0], events * mask[..., None])
