# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The model: what must and must not change its scores, refused inputs, the attention window, and first weights."""

import math

import pytest
import torch
from corner_shop import find_customer
from fitted import fill_forecaster, fill_scorer
from four_histories import assert_close, rows, score, visit_ends
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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
    "masked events": {"augmentation": "masked_lm", "readout": "last"},
    "eager": {"attn_implementation": "eager"},
    "extended": {"extended": True},
    "window": {"extended": True, "attention_window": 2},
    "extended last": {"extended": True, "readout": "last"},
}
COUNTED = {"extended": True, "scorer": True, "kind_feature": "type", "state_size": 12, "summed_features": ["a.b"]}


def events(inputs, chosen):
    return {name: value[:, chosen] for name, value in inputs.items()}


@pytest.mark.parametrize("choices", [*SWITCHES.values(), COUNTED], ids=[*SWITCHES, "counted"])
def test_padding_and_other_customers_do_not_change_answers(tiny_model, inputs, choices):
    model = tiny_model(**choices)
    if choices is COUNTED:
        fill_scorer(model)
        torch.nn.init.normal_(model.model.state.directions)
    scores, embeddings = score(model, inputs), model.model(**inputs).pooler_output
    longer = {
        name: torch.cat([value, value.new_zeros(value.shape[0], 3, *value.shape[2:])], 1)
        for name, value in inputs.items()
    }
    assert_close(score(model, longer), scores)
    for place, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        alone = events(rows(inputs, place), slice(length))
        assert_close(score(model, alone)[0], scores[place])
        assert_close(model(**alone).pooler_output[0], embeddings[place])


CAUSAL = {name: choices for name, choices in SWITCHES.items() if "causal" in name or "extended" in name}


@pytest.mark.parametrize("choices", CAUSAL.values(), ids=CAUSAL)
def test_all_prefixes_equal_each_prefix_alone(tiny_model, inputs, choices):
    model = tiny_model(**choices)
    ends = visit_ends(inputs, 2)
    together = score(model, rows(inputs, 2), prefix_ends=torch.tensor([ends]))[0]
    assert together.shape[0] == len(ends) > 5
    for place, end in enumerate(ends):
        assert_close(together[place], score(model, events(rows(inputs, 2), slice(end + 1)))[0])


@pytest.mark.parametrize("choices", [LAYOUTS["bidirectional visit"], LAYOUTS["causal visit"], {"extended": True}])
def test_order_inside_a_visit_does_not_change_scores(tiny_model, inputs, choices):
    model = tiny_model(**choices)
    visits = inputs["visit_ids"][2].tolist()
    turned = sorted(range(len(visits)), key=lambda place: (visits[place], -place))
    assert turned != list(range(len(visits)))
    assert_close(score(model, events(rows(inputs, 2), turned)), score(model, rows(inputs, 2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("choices", SWITCHES.values(), ids=SWITCHES)
def test_half_precision_stays_near(tiny_model, inputs, choices, dtype):
    exact = score(tiny_model(**choices), inputs)
    found = score(tiny_model(**choices).to(dtype), inputs)
    assert found.dtype == dtype
    # 8 and 11 bits, and tens of roundings behind each other, of scores of size 1 to 5
    torch.testing.assert_close(found.float(), exact, atol=0.25 if dtype == torch.bfloat16 else 0.03, rtol=0.03)


@torch.no_grad()
def test_counts_stay_exact_in_half_precision(tiny_model, inputs, tmp_path):
    model = fill_scorer(tiny_model(**COUNTED), reads_readout=False)
    torch.nn.init.normal_(model.model.state.directions)
    model.save_pretrained(tmp_path)
    exact = model(**inputs)
    for found in (MCMForMultiTaskRecommendation.from_pretrained(tmp_path, dtype=torch.float16), model.bfloat16()):
        assert found.dtype.itemsize == 2
        torch.testing.assert_close(found(**inputs, parts=("embedding",)).to_tuple(), exact.to_tuple(), rtol=0, atol=0)


ASKED = {
    **LAYOUTS,
    "last": SWITCHES["last"],
    "window": SWITCHES["window"],
    "counted": COUNTED | {"forecast_window": 300},
}


@torch.no_grad()
@pytest.mark.parametrize("choices", ASKED.values(), ids=ASKED)
def test_answers_at_a_time_are_those_of_the_history_until_then(tiny_model, inputs, choices):
    model = tiny_model(**choices)
    if model.scorer is not None:
        fill_forecaster(fill_scorer(model))
        torch.nn.init.normal_(model.model.state.directions)
    for place, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        history = events(rows(inputs, place), slice(length))
        for end in range(1, length, 4):
            as_of = history["event_times"][:, end - 1]
            until = events(history, history["event_times"][0] <= as_of)
            found, expected = (model(**given, as_of=as_of) for given in (history, until))
            assert_close(found.logits, expected.logits)
            assert_close(found.pooler_output, expected.pooler_output)
            assert_close(found.forecasts or {}, expected.forecasts or {})


def test_unknown_and_missing_labels_are_masked(tiny_model, inputs):
    for logits in tiny_model()(**inputs).logits.values():
        assert (logits[:, :FIRST_LABEL] == torch.finfo(logits.dtype).min / 2).all()
        assert (logits[:, FIRST_LABEL:].abs() < 1e4).all()


def test_customer_embedding_is_pooled_by_attention_type(tiny_model, inputs):
    model_inputs = {k: inputs[k] for k in ("input_ids", "attention_mask", "visit_ids")}
    lengths = inputs["attention_mask"].sum(1)
    mean = tiny_model().model(**model_inputs)
    last = tiny_model(augmentation="all_prefixes").model(**model_inputs)
    for row, length in enumerate(lengths.tolist()):
        assert_close(mean.pooler_output[row], mean.last_hidden_state[row, :length].mean(0))
        assert_close(last.pooler_output[row], last.last_hidden_state[row, length - 1])


def test_bad_inputs_are_refused(tiny_model, inputs):
    with pytest.raises(ValueError, match="later than `as_of`, and the masked event is the last"):
        tiny_model(**SWITCHES["masked events"])(**inputs, as_of=torch.zeros(4))
    with pytest.raises(ValueError, match="`as_of` needs `event_times`"):
        tiny_model()(**inputs | {"event_times": None}, as_of=torch.zeros(4))
    with pytest.raises(ValueError, match="`event_times`: MCMFeatureExtractor"):
        tiny_model(state_size=8)(**inputs | {"event_times": None})
    narrow = {**inputs, "input_ids": inputs["input_ids"][..., :5]}
    with pytest.raises(ValueError, match="5 features, this checkpoint reads 7.*own feature extractor"):
        tiny_model()(**narrow)
    with pytest.raises(ValueError, match="needs `visit_ids`"):
        tiny_model(encoder_unit="visit")(**inputs | {"visit_ids": None})
    with pytest.raises(ValueError, match=r"events, this checkpoint reads 20 \(max_position_embeddings\): keep"):
        tiny_model(max_position_embeddings=20)(**inputs)
    tiny_model(max_position_embeddings=20, encoder_unit="visit")(**inputs)  # fewer visits than events
    tiny_model(max_position_embeddings=None)(**inputs)


VISITS = {"extended": True, "max_position_embeddings": None}


def hidden(model, history):
    with torch.no_grad():
        return model.model(**history).last_hidden_state


@pytest.fixture
def history(extractor, event_log):
    """A customer's history; visits are its units, the start row the first."""
    return extractor(find_customer(event_log, "c03"))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [1, 3])
def test_window_reads_latest_units_and_start_row(tiny_model, history, window, implementation):
    model = tiny_model(attention_window=window, attn_implementation=implementation, **VISITS)
    before = hidden(model, history)
    changed = {name: value.clone() for name, value in history.items()}
    changed["input_ids"][history["visit_ids"] == 2, :] = 1
    differs = (hidden(model, changed) - before).abs().amax(-1)[0] > 1e-6
    assert differs.nonzero()[:, 0].tolist() == list(range(2, 2 + window))
    changed = {name: value.clone() for name, value in history.items()}
    changed["input_ids"][:, 0, -1] = 3
    assert ((hidden(model, changed) - before).abs().amax(-1) > 1e-6).all()


@pytest.fixture
def uncompiled():
    """The kernel of flex attention as plain operations: to compile it takes a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("choices", [{}, {"attention_window": 3}, {"augmentation": "random_prefix"}])
def test_attention_that_is_declared_gives_the_same(tiny_model, history, uncompiled, choices):
    model = tiny_model(**VISITS | choices)
    flex = tiny_model(attn_implementation="flex_attention", **VISITS | choices)
    assert_close(hidden(flex, history), hidden(model, history))
    assert model._supports_flash_attn == ("attention_window" not in choices)
    if not model._supports_flash_attn:
        with pytest.raises(ValueError, match="does not support Flash"):
            tiny_model(attn_implementation="flash_attention_2", **VISITS | choices)


def test_kernels_without_masks_are_refused_with_a_window(tiny_model, history, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "lengths_alone", sdpa_attention_forward)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, "lengths_alone", flash_attention_mask)
    units = int(history["visit_ids"].max()) + 1
    for window in (None, units - 1):
        model = tiny_model(attention_window=window, attn_implementation="lengths_alone", **VISITS)
        torch.testing.assert_close(hidden(model, history), hidden(tiny_model(**VISITS), history))
    model = tiny_model(attention_window=units - 2, attn_implementation="lengths_alone", **VISITS)
    with pytest.raises(ValueError, match=r"'lengths_alone'.*needs a mask.*attn_implementation='sdpa'"):
        hidden(model, history)


def test_each_class_leaves_out_the_weights_that_it_says_alone(tiny_config):
    class Own(MCMForMultiTaskRecommendation):
        _keys_to_ignore_on_load_unexpected = ["^own"]

    assert Own(tiny_config())._keys_to_ignore_on_load_unexpected == {"^own"}
    assert not MCMForMultiTaskRecommendation(tiny_config())._keys_to_ignore_on_load_unexpected


MOST = 12  # events that the encoder reads: fewer than two of four customers have


@torch.no_grad()
@pytest.mark.parametrize("choices", SWITCHES.values(), ids=SWITCHES)
def test_the_encoder_reads_the_latest_events_alone(tiny_model, inputs, choices):
    """A history longer than `max_events` has the answers of its latest events; another has those that it has alone."""
    whole, found = tiny_model(**choices), tiny_model(max_events=MOST, **choices)(**inputs)
    for place, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        latest = events(rows(inputs, place), [0, *range(max(1, length - MOST + 1), length)])
        if length > MOST:
            latest["visit_ids"][:, 1:] -= latest["visit_ids"][:, 1:2] - 1
        expected = whole(**latest)
        assert_close(found.pooler_output[place], expected.pooler_output[0])
        for task, logits in expected.logits.items():
            assert_close(found.logits[task][place], logits[0])


@torch.no_grad()
def test_all_but_the_encoder_reads_all_events(tiny_model, inputs):
    """`max_events` changes nothing of state, forecasts and counts, and the first events change all of them."""
    answers, whole = [], rows(inputs, 2)
    for most, history in ((300, whole), (2, whole), (2, events(whole, [0, *range(4, 39)]))):
        model = tiny_model(**COUNTED | {"forecast_window": 300}, max_events=most)
        fill_forecaster(fill_scorer(model, reads_readout=False))
        torch.nn.init.constant_(model.model.state.directions, 0.1)
        answers.append(model(**history))
    whole, short, later = answers
    for name in ("logits", "pooler_output", "forecasts"):
        torch.testing.assert_close(short[name], whole[name], rtol=0, atol=0)
    assert (later.pooler_output - short.pooler_output).abs().max() > 1e-3
    assert (later.forecasts["visits_90d"] - short.forecasts["visits_90d"]).abs() > 1e-3
    assert (later.logits["items"] - short.logits["items"]).abs().max() > 1e-3


def test_prefixes_beyond_what_the_encoder_reads_are_refused(tiny_model, inputs):
    model = tiny_model(max_events=MOST, **LAYOUTS["causal visit"])
    with pytest.raises(ValueError, match="`prefix_ends` .* 39 .* 12 .*max_events"):
        score(model, inputs, prefix_ends=torch.zeros(4, 1, dtype=torch.long))


def test_fresh_model_gives_labels_equal_chances(tiny_config, inputs):
    torch.manual_seed(0)
    config = tiny_config(hidden_size=64)
    model = MCMForMultiTaskRecommendation(config).eval()
    assert model.label_embeddings("items")[2:].std().item() == pytest.approx(1 / math.sqrt(64), rel=0.1)
    scores = model(**inputs).logits["items"][:, FIRST_LABEL:]
    # z = e_w . h has a variance of about 1, which puts the mean loss of a label above log V by about half of it
    assert 0 < -scores.log_softmax(1).mean().item() - math.log(scores.shape[1]) < 1


def test_bias_starts_at_popularity(tiny_config, inputs):
    torch.manual_seed(0)
    model = MCMForMultiTaskRecommendation(tiny_config(readout_bias=True)).eval()
    counts = {task: torch.arange(size) for task, size in model.config.label_sizes.items()}
    before = model(**inputs).logits["aisle"]
    model.initialize_from_popularity(counts)
    shares = counts["aisle"][FIRST_LABEL:] + 1.0
    expected = torch.log(shares / shares.sum())
    assert_close(model(**inputs).logits["aisle"][:, FIRST_LABEL:], before[:, FIRST_LABEL:] + expected)
    assert expected.exp().sum().item() == pytest.approx(1)
