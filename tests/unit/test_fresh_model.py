# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How a model starts: chances of a new one, counts of the training period, and what a checkpoint lacks."""

import math

import pytest
import torch
from four_histories import assert_close, four_histories

from modeling_mcm import MCMForMultiTaskRecommendation, MCMModel
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.losses_mcm import Objective


@pytest.fixture
def inputs(extractor, event_log):
    return four_histories(extractor, event_log)


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
