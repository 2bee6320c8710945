# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The head for offers finds what is true: clicks and conversions of customers whose preferences are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from choices import EXTENDED, of_data
from corner_shop import make_log

from modeling_mcm import MCMConfig, MCMFeatureExtractor, MCMForActionRecommendation
from modeling_mcm.data import EventSchema, load_prepared
from modeling_mcm.data.offer_collator import OfferCollator, OfferGroups
from modeling_mcm.data.offers import make_offers
from modeling_mcm.evaluation.offers import score_offers
from modeling_mcm.preparation import prepare
from synthetic import ShopSettings, make_click_log, make_offer_log

CUSTOMERS = 149
CLICKSTREAM = Path(__file__).parents[2] / "configuration" / "schemas" / "clickstream.yaml"


def true_log_odds(log, day):
    """By customer and item: a click likes what was bought often before, a conversion what is in aisle 0 or 1."""
    before = log[(log["when"] < day) & (log["action"] == "buy")]
    counts = before.groupby(["who", "item"]).size()

    def of(who, item):
        times = counts.get((who, item), 0)
        return -2.0 + 2.0 * np.log1p(times), -1.5 + 2.5 * (int(item[5:]) < 12)

    return of


def test_both_outcomes_of_offers_with_a_known_truth_are_recovered(prepare_log, tiny_config):
    day, generator = "2017-10-20", np.random.default_rng(1)
    log = make_log(customers=CUSTOMERS, seed=1)
    items = [f"item {number:02}" for number in range(24)]
    truth, rows = true_log_odds(log, day), []
    for who in sorted(log["who"].unique()):
        for item in generator.choice(items, 12, replace=False):
            log_odds = np.array(truth(who, item))
            taken = (generator.random(2) < 1 / (1 + np.exp(-log_odds))).astype(float)
            taken[generator.random(2) < 0.2] = np.nan  # nobody looked
            rows.append((who, day, item, *taken, *log_odds))
    columns = ["customer_id", "time", "action_id", "click", "conversion", "true_click", "true_conversion"]
    table = pd.DataFrame(rows, columns=columns).sort_values(["customer_id", "action_id"], ignore_index=True)
    aisles = [f"aisle {int(item[5:]) // 6}" for item in items]
    actions = pd.DataFrame({"action_id": items, "action": "buy", "item": items, "aisle": aisles})
    offers = make_offers(table, actions)

    folder = prepare_log(log)
    extractor = MCMFeatureExtractor.from_pretrained(str(folder / "feature_extractor"))
    config = tiny_config(extended=True, vocabulary_sizes=extractor.vocabulary_sizes, hidden_dropout_prob=0.0)
    torch.manual_seed(0)
    model = MCMForActionRecommendation(config)
    groups, collator = OfferGroups(load_prepared(folder), offers), OfferCollator(extractor, config, offers)
    optimizer = torch.optim.AdamW(model.parameters(), 0.005, weight_decay=0.1)
    trained, new = np.arange(CUSTOMERS - 29), list(range(CUSTOMERS - 29, CUSTOMERS))
    for _ in range(12):
        for places in np.split(generator.permutation(trained), 12):
            loss = model(**collator(groups.__getitems__(places.tolist()))).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found = model.eval()(**collator(groups.__getitems__(new))).logits.reshape(-1, 2).numpy()
    for place, outcome in enumerate(("click", "conversion")):
        expected = table[f"true_{outcome}"].to_numpy().reshape(CUSTOMERS, 12)[new].reshape(-1)
        other = table[f"true_{('conversion', 'click')[place]}"].to_numpy().reshape(CUSTOMERS, 12)[new].reshape(-1)
        correlation = np.corrcoef(found[:, place], expected)[0, 1]
        assert correlation > 0.85 and correlation > np.corrcoef(found[:, place], other)[0, 1] + 0.3


def test_clicks_and_conversions_of_the_synthetic_shop_are_recovered(tmp_path):
    """Tastes and love of deals are latent there: a short history tells only so much of them."""
    log = make_click_log(1000, ShopSettings(items=300, subcategories=30, categories=6, min_events=20))
    made = make_offer_log(log, {"train": "2024-03-01", "test": "2024-04-01"}, offers_a_customer=3)
    schema = EventSchema.from_yaml(CLICKSTREAM)
    prepare(log.events.drop_columns(["true_probability", "subcategory_id"]), schema, tmp_path / "data")
    extractor = MCMFeatureExtractor.from_pretrained(str(tmp_path / "data" / "feature_extractor"))
    offers = make_offers(made.offers.to_pandas(), made.actions.to_pandas())
    config = MCMConfig(
        **of_data(extractor),
        action_history_feature="token_type",
        **{
            **EXTENDED,
            "max_position_embeddings": 100,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
    )
    torch.manual_seed(0)
    model, generator = MCMForActionRecommendation(config), np.random.default_rng(0)
    rows, collator = load_prepared(tmp_path / "data"), OfferCollator(extractor, config, offers)
    train, test = (
        OfferGroups(rows, offers, offers.groups(["train"])),
        OfferGroups(rows, offers, offers.groups(["test"])),
    )
    optimizer = torch.optim.AdamW(model.parameters(), 0.003, weight_decay=0.1)
    for _ in range(2):
        for places in np.array_split(generator.permutation(len(train)), len(train) // 32):
            loss = model(**collator(train.__getitems__(places.tolist()))).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = score_offers(model, collator, test, 128)[0]
    table = made.offers.to_pandas().sort_values(["group_id", "action_id"], ignore_index=True)
    for place, outcome in enumerate(("click", "conversion")):
        true = table[f"{outcome}_probability"].to_numpy()[offers.indices(test.groups)]
        assert np.corrcoef(found[:, place], np.log(true / (1 - true)))[0, 1] > 0.5
        assert (1 / (1 + np.exp(-found[:, place]))).mean() == pytest.approx(true.mean(), rel=0.15)
