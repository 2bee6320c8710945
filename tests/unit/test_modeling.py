# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The model: what must not change its scores, what must, and inputs that it refuses.

Its loss: test_model_losses.py; how it starts: test_fresh_model.py; its best labels: test_preferences.py.
"""

import pytest
import torch
from four_histories import assert_close, four_histories, rows, score, visit_ends

from modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.configuration_mcm import FIRST_LABEL

LAYOUTS = {
    f"{attention} {unit}": {"augmentation": augmentation, "encoder_unit": unit}
    for attention, augmentation in (("bidirectional", "random_prefix"), ("causal", "all_prefixes"))
    for unit in ("event", "visit")
}
SWITCHES = {
    **LAYOUTS,
    "last": {"readout": "last"},
    "bias": {"readout_bias": True},
    "one input feature": {"input_features": ["items"]},
    "no positions": {"max_position_embeddings": None},
    "memory": {"repeat_memory": True},
    "masked events": {"augmentation": "masked_lm", "readout": "last"},
    "eager": {"attn_implementation": "eager"},
    "extended": {"extended": True},
    "extended last": {"extended": True, "readout": "last"},
}
every_switch = pytest.mark.parametrize("choices", SWITCHES.values(), ids=SWITCHES.keys())


@pytest.fixture
def inputs(extractor, event_log):
    return four_histories(extractor, event_log)


def events(inputs, chosen):
    return {name: value[:, chosen] for name, value in inputs.items()}


@every_switch
def test_padding_changes_nothing(tiny_model, inputs, choices):
    model = tiny_model(**choices)
    scores = score(model, inputs)
    longer = {
        name: torch.cat([value, value.new_zeros(value.shape[0], 3, *value.shape[2:])], 1)
        for name, value in inputs.items()
    }
    assert_close(score(model, longer), scores)
    embeddings = model.model(**{k: inputs[k] for k in ("input_ids", "attention_mask", "visit_ids")}).pooler_output
    for place, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        alone = events(rows(inputs, place), slice(length))
        assert_close(score(model, alone)[0], scores[place])
        assert_close(model(**alone).pooler_output[0], embeddings[place])


@every_switch
def test_the_order_of_a_batch_changes_nothing(tiny_model, inputs, choices):
    model = tiny_model(**choices)
    assert_close(score(model, rows(inputs, 2, 3, 0, 1)), score(model, inputs)[[2, 3, 0, 1]])


@every_switch
def test_a_save_and_a_load_change_nothing(tiny_model, inputs, choices, tmp_path):
    model = tiny_model(**choices)
    model.save_pretrained(tmp_path)
    loaded, info = MCMForMultiTaskRecommendation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.features == ["type", "items", "a.b", "aisle", "weekday", "gap", "age"]
    assert loaded.config.tasks == ["items", "aisle", "type"]
    assert {n: v.tolist() for n, v in loaded.state_dict().items()} == {
        n: v.tolist() for n, v in model.state_dict().items()
    }
    assert_close(score(loaded.eval(), inputs), score(model, inputs))


@pytest.mark.parametrize("choices", [*SWITCHES.values()][:4], ids=[*SWITCHES][:4])
def test_every_event_is_read(tiny_model, inputs, choices):
    model = tiny_model(**choices)
    scores = score(model, rows(inputs, 2))
    for place in range(int(inputs["attention_mask"][2].sum())):
        changed = rows(inputs, 2)
        changed["input_ids"] = changed["input_ids"].clone()
        changed["input_ids"][0, place, 0] = 7 - changed["input_ids"][0, place, 0]
        assert not torch.allclose(score(model, changed), scores, atol=1e-6)


CAUSAL = {name: choices for name, choices in SWITCHES.items() if "causal" in name or "extended" in name}
every_causal = pytest.mark.parametrize("choices", CAUSAL.values(), ids=CAUSAL.keys())


@every_causal
def test_all_prefixes_of_one_pass_equal_each_prefix_alone(tiny_model, inputs, choices):
    model = tiny_model(**choices)
    ends = visit_ends(inputs, 2)
    together = score(model, rows(inputs, 2), prefix_ends=torch.tensor([ends]))[0]
    assert together.shape[0] == len(ends) > 5
    for place, end in enumerate(ends):
        assert_close(together[place], score(model, events(rows(inputs, 2), slice(end + 1)))[0])


def test_a_prefix_at_a_moment_equals_the_history_until_then(tiny_model, inputs):
    model, history = tiny_model(extended=True), rows(inputs, 2)
    ends = visit_ends(inputs, 2)
    moments = history["event_times"][0, ends] + torch.arange(len(ends)) % 3 * 20.0
    prefixes = {"prefix_ends": torch.tensor([ends]), "prefix_times": moments[None]}
    together = score(model, history, **prefixes)[0]
    for place, end in enumerate(ends):
        assert_close(together[place], score(model, events(history, slice(end + 1)), now=moments[place : place + 1])[0])
    unmoved = score(model, history, prefix_ends=prefixes["prefix_ends"])[0]
    moved = (together - unmoved).abs().amax(-1) > 1e-4
    assert moved.tolist() == [place % 3 > 0 and place > 0 for place in range(len(ends))]


@every_causal
def test_later_events_have_no_effect_on_earlier_prefixes(tiny_model, inputs, choices):
    model = tiny_model(**choices)
    ends = visit_ends(inputs, 2)
    before = ends[len(ends) // 2]
    changed = rows(inputs, 2)
    changed["input_ids"] = changed["input_ids"].clone()
    changed["input_ids"][:, before + 1 :] = 1
    prefixes = {"prefix_ends": torch.tensor([ends])}
    found, expected = score(model, changed, **prefixes)[0], score(model, rows(inputs, 2), **prefixes)[0]
    middle = ends.index(before) + 1
    assert_close(found[:middle], expected[:middle])
    assert all(not torch.allclose(found[place], expected[place], atol=1e-4) for place in range(middle, len(ends)))


@pytest.mark.parametrize("choices", [LAYOUTS["bidirectional visit"], LAYOUTS["causal visit"], {"extended": True}])
def test_the_order_inside_a_visit_changes_nothing(tiny_model, inputs, choices):
    model = tiny_model(**choices)
    visits = inputs["visit_ids"][2].tolist()
    turned = sorted(range(len(visits)), key=lambda place: (visits[place], -place))
    assert turned != list(range(len(visits)))
    assert_close(score(model, events(rows(inputs, 2), turned)), score(model, rows(inputs, 2)))
    by_event = tiny_model()
    difference = score(by_event, events(rows(inputs, 2), turned)) - score(by_event, rows(inputs, 2))
    assert difference.abs().max() > 1e-3  # an encoder of events does see it


def test_attention_goes_through_the_fused_kernel_by_default(tiny_model, inputs):
    fused, plain = tiny_model(), tiny_model(attn_implementation="eager")
    assert fused.config._attn_implementation == "sdpa" and plain.config._attn_implementation == "eager"
    assert_close(score(fused, inputs), score(plain, inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_switch
def test_half_precision_stays_near(tiny_model, inputs, choices, dtype):
    exact = score(tiny_model(**choices), inputs)
    found = score(tiny_model(**choices).to(dtype), inputs)
    assert found.dtype == dtype
    # 8 and 11 bits, and tens of roundings behind each other, of scores of size 1 to 5
    torch.testing.assert_close(found.float(), exact, atol=0.25 if dtype == torch.bfloat16 else 0.03, rtol=0.03)


def test_unknown_and_missing_are_never_preferred(tiny_model, inputs):
    for logits in tiny_model()(**inputs).logits.values():
        assert (logits[:, :FIRST_LABEL] == torch.finfo(logits.dtype).min / 2).all()
        assert (logits[:, FIRST_LABEL:].abs() < 1e4).all()


def test_the_customer_embedding(tiny_model, inputs):
    model_inputs = {k: inputs[k] for k in ("input_ids", "attention_mask", "visit_ids")}
    lengths = inputs["attention_mask"].sum(1)
    mean = tiny_model().model(**model_inputs)
    last = tiny_model(augmentation="all_prefixes").model(**model_inputs)
    for row, length in enumerate(lengths.tolist()):
        assert_close(mean.pooler_output[row], mean.last_hidden_state[row, :length].mean(0))
        assert_close(last.pooler_output[row], last.last_hidden_state[row, length - 1])


def test_inputs_that_do_not_fit_are_refused(tiny_model, inputs):
    without_times = {name: value for name, value in inputs.items() if name != "event_times"}
    with pytest.raises(ValueError, match="needs `event_times`: MCMFeatureExtractor"):
        tiny_model(repeat_memory=True)(**without_times)
    narrow = {**inputs, "input_ids": inputs["input_ids"][..., :5]}
    with pytest.raises(ValueError, match="5 features, this checkpoint reads 7.*own feature extractor"):
        tiny_model()(**narrow)
    without_visits = {name: value for name, value in inputs.items() if name != "visit_ids"}
    with pytest.raises(ValueError, match="needs `visit_ids`"):
        tiny_model(encoder_unit="visit")(**without_visits)
    with pytest.raises(ValueError, match=r"events, this checkpoint reads 20 \(max_position_embeddings\): keep"):
        tiny_model(max_position_embeddings=20)(**inputs)
    tiny_model(max_position_embeddings=20, encoder_unit="visit")(**inputs)  # fewer visits than events
    tiny_model(max_position_embeddings=None)(**inputs)
