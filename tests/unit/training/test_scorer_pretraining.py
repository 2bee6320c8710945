# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The network of counts that ships: the shops that it learns from, its training, and what it says without any fit."""

import numpy as np
import pytest
import torch
from in_process import call
from run_pretrain_scorer import Examples, make_examples, train_network
from safetensors.torch import load_file
from shops_of_labels import ShopData, cut_log, drop_repeats, make_config, read_log
from synthetic_labels import draw_log

from modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.cases import cases_at
from modeling_mcm.training.options import ModelOptions
from modeling_mcm.training.scorer.counts import count_log
from modeling_mcm.training.scorer.shipped import SHIPPED_SCORER, load_network


def draw(seed):
    return draw_log(np.random.default_rng(seed))


def test_the_seed_decides_a_synthetic_shop():
    one, same, other = draw(3), draw(3), draw(4)
    assert np.array_equal(one.time, same.time) and np.array_equal(one.labels["item"], same.labels["item"])
    assert len(one.time) != len(other.time)
    assert (np.diff(one.customer) >= 0).all() and (np.diff(one.visit) >= 0).all()


def test_a_log_that_is_read_has_the_cases_of_its_data(prepared):
    data = PreparedData(str(prepared))
    shop = ShopData(read_log(data))
    assert shop.manifest.counts["validation_cases"] == data.manifest.counts["validation_cases"]
    for ours, theirs in zip(*(cases_at(each, "validation").targets.values() for each in (shop, data)), strict=False):
        assert np.array_equal(ours.case, theirs.case)


def test_cuts_keep_customers_whole_in_order_and_before_the_end():
    log = draw(3)
    for seed in range(12):
        cut = cut_log(log, np.random.default_rng(seed))
        assert {*cut.customer} <= {*log.customer}
        if cut.has_times:
            assert ((np.diff(cut.time) >= 0) | (np.diff(cut.customer) > 0)).all()
        if cut.cutoffs:
            assert cut.time.max() < cut.cutoffs[1]


def test_nothing_repeats_where_repeats_are_dropped():
    log = drop_repeats(draw(3), "item")
    pairs = {*zip(log.customer.tolist(), log.labels["item"].tolist(), strict=True)}
    assert len(pairs) == len(log.customer)


def test_training_ranks_better_than_the_mix_that_it_starts_from_and_the_seed_decides_it():
    parts = [part for seed in range(3, 9) for part in make_examples(draw(seed), seed)]
    examples = Examples.of(parts, [1.0] * len(parts))
    (start, _), (network, vectors), (again, _) = (train_network(examples, steps, 0) for steps in (1, 60, 60))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())

    def rank(scorer, given):
        values = []
        for table, shop in parts:
            scorer.task_vectors.weight.data = given(torch.tensor([shop], dtype=torch.float32))
            values.append(table.compute_ndcg(scorer.eval()(0, table.features))[0].nanmean())
        return torch.stack(values).mean()

    with torch.no_grad():
        assert rank(network, vectors) > rank(start, lambda shop: torch.zeros(1, 64)) + 0.001


def test_the_command_writes_what_loads(tmp_path, prepared, capsys):
    path = tmp_path / "weights.safetensors"
    few = ["--cuts", "2", "--synthetic", "3", "--steps", "2", "--processes", "1"]
    call("run_pretrain_scorer", "--logs", prepared, "--output", path, *few)
    assert "tasks of shops" in capsys.readouterr().out
    made, shipped = load_file(path), load_file(SHIPPED_SCORER)
    assert {name: value.shape for name, value in made.items()} == {name: v.shape for name, v in shipped.items()}
    assert all(bool(value.isfinite().all()) for value in made.values())
    assert SHIPPED_SCORER.stat().st_size < 2_000_000


def test_the_network_is_told_the_shop(prepared):
    """Twice the customers are another shop, and other folds the same one."""
    log = read_log(PreparedData(str(prepared)))
    half = ShopData(log.select(log.customer < np.median(np.unique(log.customer))))
    whole = ShopData(log)
    few, many, again = (
        count_log(shop, make_config(shop.extractor), seed).counts[0].shop
        for shop, seed in ((half, 0), (whole, 0), (whole, 1))
    )
    assert many == pytest.approx(again)
    assert few.customers < many.customers and few.has_times == many.has_times
    model = MCMForMultiTaskRecommendation(make_config(whole.extractor))
    vectors = []
    for shop in (few, many):
        load_network(model.scorer, [shop] * len(model.config.tasks))
        vectors.append(model.scorer.of_counts.task_vectors.weight.clone())
    assert not torch.equal(*vectors) and bool(model.scorer.fitted)


def test_the_shipped_network_needs_no_encoder(prepared):
    with pytest.raises(ValueError, match="--network shipped reads counts alone"):
        ModelOptions(str(prepared), network="shipped")
