# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""`preferences`: the best labels of a task, and the units that the readout weighs for them."""

import pytest
import torch
from four_histories import assert_close, four_histories

from modeling_mcm.configuration_mcm import FIRST_LABEL


@pytest.fixture
def inputs(extractor, event_log):
    return four_histories(extractor, event_log)


@pytest.mark.parametrize("choices", [{}, {"extended": True}], ids=["paper", "extended"])
def test_preferences_are_the_best_labels_and_the_events_that_spoke_for_them(tiny_model, inputs, choices):
    model = tiny_model(**choices)
    found = model.preferences("items", k=4, return_weights=True, **inputs)
    shares = model(**inputs).logits["items"].softmax(-1)
    expected = shares.sort(dim=-1, descending=True)
    assert torch.equal(found["labels"], expected.indices[:, :4])
    assert_close(found["scores"], expected.values[:, :4])
    weights, mask = found["weights"], found["unit_mask"]
    assert weights.shape == (4, 4, mask.shape[1])
    assert_close(weights.sum(-1), torch.ones(4, 4))
    assert not weights.masked_select(~mask[:, None]).any()
    hidden = model.model(**{k: inputs[k] for k in ("input_ids", "attention_mask", "visit_ids")}).last_hidden_state
    scale = 1 if model.readout_scale is None else model.readout_scale[0]
    z = scale * hidden[2] @ model.label_embeddings("items")[found["labels"][2, 1]]  # equation 2 by hand, for one label
    assert_close(weights[2, 1], z.masked_fill(~mask[2], -torch.inf).softmax(0))


def test_preferences_end_with_the_labels_and_refuse_what_is_not_there(tiny_model, inputs):
    model = tiny_model(readout="last")
    found = model.preferences("aisle", k=100, **inputs)
    assert sorted(found["labels"][0].tolist()) == list(range(FIRST_LABEL, model.config.label_sizes["aisle"]))
    assert_close(found["scores"].sum(-1), torch.ones(4))
    assert set(found) == {"labels", "scores"}
    with pytest.raises(ValueError, match="No task 'colour'.*'items', 'aisle', 'type'"):
        model.preferences("colour", **inputs)
    with pytest.raises(ValueError, match="Only the attentional readout has weights"):
        model.preferences("aisle", return_weights=True, **inputs)
