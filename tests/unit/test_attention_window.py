# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The attention window: which units a unit reads; and which events of a long history are read at all."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_mcm.inputs_mcm import first_kept

VISITS = {"extended": True, "max_position_embeddings": None}


def hidden(model, inputs):
    with torch.no_grad():
        return model.model(**inputs).last_hidden_state


@pytest.fixture
def inputs(extractor, event_log):
    """A customer's history; visits are its units, the start row the first."""
    return extractor({"events": event_log[event_log["who"] == "c03"], "profile": {"age": "old"}})


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [1, 3])
def test_a_unit_reads_the_latest_ones_and_the_start_row(tiny_model, inputs, window, implementation):
    model = tiny_model(attention_window=window, attn_implementation=implementation, **VISITS)
    before = hidden(model, inputs)
    changed = {name: value.clone() for name, value in inputs.items()}
    changed["input_ids"][inputs["visit_ids"] == 2, :] = 1
    differs = (hidden(model, changed) - before).abs().amax(-1)[0] > 1e-6
    assert differs.nonzero()[:, 0].tolist() == list(range(2, 2 + window))
    changed = {name: value.clone() for name, value in inputs.items()}
    changed["input_ids"][:, 0, -1] = 3
    assert ((hidden(model, changed) - before).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("unknown", [False, True])
def test_kernels_that_read_lengths_alone_are_refused_where_the_window_matters(
    tiny_model, inputs, monkeypatch, unknown
):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "lengths_alone", sdpa_attention_forward)
    if not unknown:  # a kernel whose masks transformers does not know gets none
        monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, "lengths_alone", flash_attention_mask)
    units = int(inputs["visit_ids"].max()) + 1
    for window in (None, units - 1):
        model = tiny_model(attention_window=window, attn_implementation="lengths_alone", **VISITS)
        torch.testing.assert_close(hidden(model, inputs), hidden(tiny_model(**VISITS), inputs))
    model = tiny_model(attention_window=units - 2, attn_implementation="lengths_alone", **VISITS)
    with pytest.raises(ValueError, match=r"'lengths_alone', whose kernel reads no mask.*attn_implementation='sdpa'"):
        hidden(model, inputs)


def test_a_window_as_long_as_the_history_changes_nothing(tiny_model, inputs):
    units = int(inputs["visit_ids"].max()) + 1
    whole = hidden(tiny_model(**VISITS), inputs)
    torch.testing.assert_close(hidden(tiny_model(attention_window=units - 1, **VISITS), inputs), whole)
    assert not torch.allclose(hidden(tiny_model(attention_window=units - 3, **VISITS), inputs), whole, atol=1e-6)


def test_padding_changes_nothing_under_a_window(tiny_model, extractor, event_log):
    model = tiny_model(attention_window=2, **VISITS)
    customers = [{"events": event_log[event_log["who"] == name]} for name in ("c00", "c01", "c02")]
    together = hidden(model, extractor(customers))
    for place, customer in enumerate(customers):
        alone = hidden(model, extractor(customer))[0]
        torch.testing.assert_close(together[place, : len(alone)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choices", [{"attention_window": 0, **VISITS}, {"attention_window": 8}])
def test_a_window_must_be_positive_and_of_a_causal_encoder(tiny_config, choices):
    with pytest.raises(StrictDataclassError, match="`attention_window` is"):
        tiny_config(**choices)


@pytest.mark.parametrize("window", [1, 7, 8, 39, 2047])
def test_the_first_event_that_is_read_moves_in_steps(window):
    starts = [first_kept(events, window) for events in range(4 * window)]
    kept = [events - start for events, start in enumerate(starts)]
    assert starts[: window + 1] == [0] * (window + 1)  # a history that fits is read whole
    assert max(kept) == window and min(kept[window:]) > window - max(1, window // 8)
    assert starts == sorted(starts) and len(set(starts)) <= 1 + 3 * window // max(1, window // 8) + 1
