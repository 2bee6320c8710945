# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The model: what must not change its scores, what must, its loss, its start, and its way through a folder."""

import math
import sys

import pytest
import torch
from four_histories import assert_close, four_histories, rows, score
from one_task import prefix_cross_entropy, prefix_ranking_loss

from modeling_mcm import MCMConfig, MCMForMultiTaskRecommendation, MCMModel, readout_mcm
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.losses_mcm import Objective

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


def visit_ends(inputs, place):
    """Places of the last event of each visit of one row, the start row included."""
    visits = inputs["visit_ids"][place, : int(inputs["attention_mask"][place].sum())]
    return [i for i in range(len(visits)) if i + 1 == len(visits) or visits[i] != visits[i + 1]]


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


# --------------------------------------------------------------------------------------------------------- embeddings


def test_event_dropout_leaves_no_visit_empty(tiny_model, inputs):
    """A unit of zeros has no variance, and each layer norm would multiply its gradient by a million."""
    torch.manual_seed(0)
    none, some, all_but = (
        tiny_model(encoder_unit="visit", event_dropout_prob=share).model.embeddings.train()
        for share in (0.0, 0.3, 0.999)
    )
    visits = torch.arange(inputs["input_ids"].shape[1]).expand(4, -1) // 2
    plain, mask = none.units(none.events(inputs["input_ids"]), inputs["attention_mask"], visits)
    found, _ = some.units(some.events(inputs["input_ids"]), inputs["attention_mask"], visits)
    assert not torch.equal(found, plain) and (found[mask] != 0).any(-1).all()
    whole, _ = all_but.units(all_but.events(inputs["input_ids"]), inputs["attention_mask"], visits)
    assert torch.isclose(whole, plain).all(-1).float().mean() > 0.9  # visits that lost all events have them back


def test_event_dropout_hides_whole_events_in_training_alone(tiny_model, inputs):
    torch.manual_seed(0)
    none, some = (tiny_model(encoder_unit="visit", event_dropout_prob=share).model.embeddings for share in (0.0, 0.3))
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
    assert 0.37 < torch.stack(lost).mean() < 0.47  # 2 x .3 x .7


def test_event_dropout_leaves_events_that_are_units(tiny_model, inputs):
    embeddings = tiny_model(encoder_unit="event", event_dropout_prob=0.999).model.embeddings.train()
    events, mask = embeddings.events(inputs["input_ids"]), inputs["attention_mask"]
    assert torch.equal(embeddings.units(events, mask, None)[0], events * mask[..., None])


@pytest.mark.parametrize("unit", ["event", "visit"])
def test_event_dropout_keeps_the_gradients_of_a_deep_encoder_small(unit):
    """With its first weights, as training starts: biases are 0 then, so a unit of zeros stays one in every layer."""
    norms = []
    for share in (0.0, 0.9):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
        names = {"features": ["token_type", "a"], "vocabulary_sizes": [5, 9], "tasks": ["a"]}
        config = MCMConfig(**names, **sizes, encoder_unit=unit, event_dropout_prob=share, state_size=0)
        encoder = MCMForMultiTaskRecommendation(config).model.train()
        ids = torch.randint(2, 5, (8, 6, 2))
        visits = torch.tensor([0, 1, 1, 2, 2, 3]).expand(8, -1)
        hidden = encoder(input_ids=ids, attention_mask=torch.ones(8, 6), visit_ids=visits).last_hidden_state
        (hidden * torch.randn_like(hidden)).sum().backward()
        norms.append(max(float(each.grad.norm()) for each in encoder.parameters() if each.grad is not None))
    assert norms[1] < 10 * norms[0]  # also fails where it is no number


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


# ---------------------------------------------------------------------------------------------------------- mistakes


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


# -------------------------------------------------------------------------------------------------------------- loss


@pytest.fixture
def questions(inputs):
    """Two prefixes and up to three labels of each customer; ids under 2 are no targets."""
    label = torch.tensor([[2, 5, 3], [4, 1, -100], [-100, 0, 6], [-100, -100, -100]])
    return {
        "prefix_ends": torch.tensor([[0, 9], [0, 1], [3, 30], [0, 0]]),
        "label_prefixes": torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]),
        "labels": torch.stack([label, label.clamp(max=4), label.clamp(max=3)], dim=-1),
    }


def plain_loss(scores, labels, label_prefixes, weights=None):
    weights = torch.ones(labels.shape) if weights is None else weights
    customers = []
    for row in range(len(labels)):
        triples = zip(labels[row].tolist(), label_prefixes[row].tolist(), weights[row].tolist(), strict=True)
        terms = [
            (weight, -weight * scores[row, prefix].log_softmax(-1)[label])
            for label, prefix, weight in triples
            if label >= FIRST_LABEL
        ]
        customers.append(sum(loss for _, loss in terms) / sum(weight for weight, _ in terms) if terms else 0.0)
    return torch.as_tensor(sum(customers) / len(customers))


def test_equation_4_against_a_plain_loop(questions):
    torch.manual_seed(0)
    scores, labels = torch.randn(4, 2, 8), questions["labels"][..., 0]
    found = prefix_cross_entropy(scores, labels, questions["label_prefixes"])
    assert_close(found, plain_loss(scores, labels, questions["label_prefixes"]))
    assert_close(prefix_cross_entropy(scores, labels), plain_loss(scores, labels, torch.zeros_like(labels)))
    weights = 0.5 + torch.rand(labels.shape)
    weighted = prefix_cross_entropy(scores, labels, questions["label_prefixes"], weights)
    assert abs(weighted - found) > 1e-4
    assert_close(weighted, plain_loss(scores, labels, questions["label_prefixes"], weights))
    alike = prefix_cross_entropy(scores, labels, questions["label_prefixes"], torch.full(labels.shape, 0.2))
    assert_close(alike, found)
    assert prefix_cross_entropy(scores, labels, label_weights=torch.zeros(labels.shape)).item() == 0
    assert prefix_cross_entropy(scores, torch.full_like(labels, -100)).item() == 0


def test_the_ranking_loss_stands_beside_equation_4(tiny_model, inputs, questions):
    plain = tiny_model(augmentation="all_prefixes")(**inputs, **questions)
    model = tiny_model(augmentation="all_prefixes")
    model.objective = Objective(ranking_loss_weight=0.5)
    ranked = model(**inputs, **questions)
    for place, (task, loss) in enumerate(plain.task_losses.items()):
        ranking = prefix_ranking_loss(plain.logits[task], questions["labels"][..., place], questions["label_prefixes"])
        assert ranking > 0.1
        assert_close(ranked.task_losses[task], loss + 0.5 * ranking)


def test_the_loss_is_the_sum_over_the_tasks(tiny_model, inputs, questions):
    model = tiny_model(augmentation="all_prefixes")
    output = model(**inputs, **questions)
    assert list(output.logits) == ["items", "aisle", "type"]
    assert set(output.task_losses) == set(output.logits)
    for place, task in enumerate(output.logits):
        assert_close(
            output.task_losses[task],
            plain_loss(output.logits[task], questions["labels"][..., place], questions["label_prefixes"]),
        )
    assert_close(output.loss, sum(output.task_losses.values()))
    assert model(**inputs).loss is None and model(**inputs).task_losses is None


def test_a_step_leaves_padding_at_0(tiny_model, inputs, questions):
    model = tiny_model(extended=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    questions["prefix_ends"] = torch.tensor([visit_ends(inputs, row)[:1] * 2 for row in range(4)])
    model(**inputs, **questions).loss.backward()
    optimizer.step()
    for table in model.model.embeddings.events.feature_tables:
        assert not table.weight[0].any()


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["what is asked", "every unit"])
@pytest.mark.parametrize("most", [1, 10**9], ids=["one by one", "all at once"])
def test_training_scores_units_and_gets_the_loss_of_the_asked_ones(tiny_model, inputs, most, share, monkeypatch):
    monkeypatch.setattr(readout_mcm, "NEARLY_ALL", 1.01 - share)
    monkeypatch.setattr(sys.modules[MCMModel.__module__], "PART_ELEMENTS", (most, most))
    model = tiny_model(extended=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ends = torch.stack([inputs["attention_mask"].sum(1) - 1, torch.zeros(4, dtype=torch.long)] * 2, dim=1)
    labels = torch.stack([torch.randint(2, size, (4, 3)) for size in model.config.label_sizes.values()], dim=-1)
    prefixes = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 3, 3], [2, 2, 2]])
    labels[2, 0], labels[1] = -100, -100  # prefixes that are asked for nothing
    batch = {**inputs, "prefix_ends": ends, "labels": labels, "label_prefixes": prefixes}
    asked = model.eval()(**batch)
    seen, losses = [], model._losses_side_by_side
    monkeypatch.setattr(model, "_losses_side_by_side", lambda *given: seen.append(len(given[0])) or losses(*given))
    every = model.train()(**batch)
    assert_close((every.loss, every.task_losses), (asked.loss, asked.task_losses))
    assert every.logits is None and seen == ([1] * 4 if most == 1 else [4])
    found, expected = (torch.autograd.grad(loss, list(model.parameters())) for loss in (every.loss, asked.loss))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("most", [1, 10**9], ids=["one by one", "all at once"])
def test_a_customer_without_an_event_counts_and_adds_nothing(tiny_model, inputs, questions, most, monkeypatch):
    monkeypatch.setattr(sys.modules[MCMModel.__module__], "PART_ELEMENTS", (most, most))
    model = tiny_model(extended=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    inputs["attention_mask"][3], questions["labels"][3] = 0, -100
    questions["prefix_ends"] = torch.tensor([*(visit_ends(inputs, row)[:1] * 2 for row in range(3)), [0, 0]])
    others = model(**rows(inputs, 0, 1, 2), **rows(questions, 0, 1, 2)).loss.item()
    assert model(**inputs, **questions).loss.item() == pytest.approx(others * 3 / 4, rel=1e-5)


def test_a_frozen_model_gives_its_losses_in_training(tiny_model, inputs, questions):
    model = tiny_model(extended=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).requires_grad_(False)
    questions["prefix_ends"] = torch.tensor([[0, visit_ends(inputs, row)[-1]] for row in range(4)])
    found = model.train()(**inputs, **questions).loss
    assert not found.requires_grad
    assert found.item() == pytest.approx(model.eval()(**inputs, **questions).loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"readout": "last"},
        {"augmentation": "all_prefixes", "repeat_memory": True},
        {"extended": True},
    ],
)
def test_one_batch_is_overfitted(tiny_config, inputs, choices):
    torch.manual_seed(0)
    config = tiny_config(**choices, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, hidden_size=32)
    model = MCMForMultiTaskRecommendation(config)
    labels = torch.stack([torch.randint(2, size, (4, 2)) for size in config.label_sizes.values()], dim=-1)
    batch = {**inputs, "labels": labels[:, :1]}
    if config.augmentation == "all_prefixes":  # another answer after each of two prefixes, where a row has two
        ends = [(visit_ends(inputs, row)[-2:] * 2)[:2] for row in range(4)]
        labels[:, 1][torch.tensor([first == second for first, second in ends])] = -100
        places = torch.arange(2).expand(4, 2)
        batch |= {"labels": labels, "prefix_ends": torch.tensor(ends), "label_prefixes": places}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # The repeat memory lifts what a customer met, whatever is asked: with it, chance is unlearned more slowly.
    assert losses[-1] < (0.03 if model.repeat_memory is None else 0.1 * losses[0])


# ------------------------------------------------------------------------------------------------------------- start


def test_a_fresh_model_gives_every_label_about_the_same_chance(tiny_config, inputs):
    torch.manual_seed(0)
    config = tiny_config(hidden_size=64)
    model = MCMForMultiTaskRecommendation(config).eval()
    model.objective = Objective(ranking_loss_weight=0)
    assert model.label_embeddings("items")[2:].std().item() == pytest.approx(1 / math.sqrt(64), rel=0.1)
    losses = []
    for _ in range(20):
        labels = torch.stack([torch.randint(2, size, (4, 8)) for size in config.label_sizes.values()], dim=-1)
        losses.append(model(**inputs, labels=labels).task_losses["items"])
    # z = e_w . h has a variance of about 1, which puts the loss above log V by about half of it
    excess = torch.stack(losses).mean().item() - math.log(config.label_sizes["items"] - FIRST_LABEL)
    assert 0 < excess < 1


def test_popularity_is_where_the_bias_starts(tiny_config, inputs):
    torch.manual_seed(0)
    model = MCMForMultiTaskRecommendation(tiny_config(readout_bias=True)).eval()
    counts = {task: torch.arange(size) for task, size in model.config.label_sizes.items()}
    before = model(**inputs).logits["aisle"]
    model.initialize_from_popularity(counts)
    shares = counts["aisle"][FIRST_LABEL:] + 1.0
    expected = torch.log(shares / shares.sum())
    assert_close(model(**inputs).logits["aisle"][:, FIRST_LABEL:], before[:, FIRST_LABEL:] + expected)
    assert expected.exp().sum().item() == pytest.approx(1)


def test_popularity_gives_the_memory_its_rarities(tiny_model):
    model = tiny_model(extended=True)
    rarity, bias = model.repeat_memory.label_rarity[1].weight, model.readout_bias[1]
    model.initialize_from_popularity({task: torch.ones(size) for task, size in model.config.label_sizes.items()})
    assert_close(rarity[FIRST_LABEL:], torch.zeros_like(rarity[FIRST_LABEL:]))  # V share is 1
    counts = {task: torch.full((size,), 10.0) for task, size in model.config.label_sizes.items()}
    counts["aisle"][FIRST_LABEL] = 1000
    model.initialize_from_popularity(counts)
    assert rarity[FIRST_LABEL] < 0 < rarity[FIRST_LABEL + 1]
    assert rarity[FIRST_LABEL].item() == pytest.approx(-math.log(bias[FIRST_LABEL].exp().item() * (len(bias) - 2)))


def test_what_a_checkpoint_lacks_starts_as_in_a_fresh_model(tiny_model, tiny_config, tmp_path):
    """`from_pretrained` builds on the meta device: what nothing fills would hold whatever was in memory."""
    tiny_model(extended=True).model.save_pretrained(tmp_path)
    config = tiny_config(extended=True)
    model, info = MCMForMultiTaskRecommendation.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert model.readout_scale.tolist() == [1.0] * 3
    assert not any(bias.any() for bias in model.readout_bias)
    memory = model.repeat_memory
    assert torch.equal(memory.log_half_life, torch.tensor([7.0, 30, 120, 2, 6, 20, 60]).log())
    assert torch.equal(memory.log_sensitivity, torch.ones(3, 7))
    assert_close(memory.memory_gain, torch.full((3, 7), 1.2 / 7))
    assert_close(memory.rarity_weight, torch.full((3, 7), 0.3))
    silent = (memory.vote, *memory.label_gains, *memory.label_rarity, *memory.network_out)
    assert len(memory.network_in) == 3
    assert not any(parameter.any() for module in silent for parameter in module.parameters())
    heads = [name for name in model.state_dict() if not name.startswith("model.")]
    assert sorted(info["missing_keys"]) == sorted(heads)
    # an empty checkpoint: the base model's parameters too
    (tmp_path / "model.safetensors").unlink()
    MCMForMultiTaskRecommendation(config).save_pretrained(tmp_path, state_dict={"readout_scale": torch.ones(3)})
    empty = MCMForMultiTaskRecommendation.from_pretrained(tmp_path)
    fresh = MCMForMultiTaskRecommendation(config)
    for (name, found), made in zip(empty.named_parameters(), fresh.parameters(), strict=True):
        assert found.isfinite().all(), name
        assert found.std(correction=0).item() == pytest.approx(made.std(correction=0).item(), rel=0.5, abs=1e-7), name
        assert found.mean().item() == pytest.approx(made.mean().item(), rel=0.2, abs=0.15), name


def test_the_base_model_is_read_from_a_heads_checkpoint(tiny_model, inputs, tmp_path):
    model = tiny_model(extended=True)
    model.save_pretrained(tmp_path)
    base = MCMModel.from_pretrained(tmp_path).eval()
    assert torch.equal(
        base(**{k: inputs[k] for k in ("input_ids", "attention_mask", "visit_ids")}).pooler_output,
        model(**inputs).pooler_output,
    )


# ------------------------------------------------------------------------------------------------------- preferences


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
