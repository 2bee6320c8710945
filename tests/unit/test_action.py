# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The head for offers: what it computes, what it may not depend on, what it learns, how it is stored and used."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from choices import perturb
from corner_shop import make_log
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import pipeline

from modeling_mcm import (
    ActionScoresPipeline,
    MCMFeatureExtractor,
    MCMForActionRecommendation,
    MCMForMultiTaskRecommendation,
    action_mcm,
)
from modeling_mcm.action_inputs_mcm import EncodedActions, encode_actions, find_matches, read_actions
from modeling_mcm.action_mcm import CLIPPED, KNOTS, LONGEST_DAYS, count_names, offer_loss, piecewise_linear
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import load_prepared
from modeling_mcm.data.offers import OfferCollator, OfferGroups, make_offers
from modeling_mcm.evaluation.offers import score_offers

ACTIONS = pd.DataFrame(
    [
        ("three", "buy", "item 03", None, 1.0),
        ("any of two", "buy", "item 07", "aisle 1", 3.0),
        ("any of two", "buy", "item 20", "aisle 3", 1.0),
        ("aisle", "buy", None, "aisle 2", 1.0),
        ("click", "click", None, None, 1.0),
    ],
    columns=["action_id", "action", "item", "aisle", "weight"],
)


def offers_of(log, seed=0, **columns):
    """Three offers for each of the first 20 customers, in the autumn; who likes aisle 2 takes that."""
    generator = np.random.default_rng(seed)
    rows = []
    for who in sorted(log["who"].unique())[:20]:
        when = f"2017-10-{int(generator.integers(10, 28))}"
        for action in ("three", "any of two", "aisle") if who != "c03" else ("click",):
            rows.append((who, when, action, float(generator.random() < 0.5), float(generator.random() < 0.4)))
    offers = pd.DataFrame(rows, columns=["customer_id", "time", "action_id", "click", "conversion"])
    return offers.assign(**columns)


@pytest.fixture
def offers(event_log):
    return make_offers(offers_of(event_log), ACTIONS)


@pytest.fixture
def action_model(tiny_config):
    """A function that makes a tiny model in evaluation mode whose every parameter has a say."""

    def make(*args, **changes):
        torch.manual_seed(0)
        return perturb(MCMForActionRecommendation(tiny_config(*args, **changes)).eval())

    return make


@pytest.fixture
def batch_of(prepared, extractor, offers):
    def make(model, groups):
        collator = OfferCollator(extractor, model.config, offers)
        return collator(OfferGroups(load_prepared(prepared), offers).__getitems__(list(groups)))

    return make


@pytest.fixture(params=[{}, {"extended": True}], ids=["paper", "extended"])
def choices(request):
    return request.param


def test_shapes_and_loss(action_model, batch_of, offers, choices):
    model = action_model(**choices)
    inputs = batch_of(model, range(5))
    outputs = model(**inputs)
    assert outputs.logits.shape == (5, 3, 2) and outputs.preferences.shape == (5, 3, 3)
    assert outputs.pooler_output.shape == (5, 16) and outputs.loss.ndim == 0
    alone = offers.groups["customer_id"].tolist().index("c03")
    assert inputs["offered_actions"][alone].tolist()[1:] == [-1, -1] and (outputs.logits[alone, 1:] < -1e30).all()
    observed = inputs["labels"] >= 0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs.logits[observed], inputs["labels"][observed], reduction="sum"
    )
    torch.testing.assert_close(outputs.loss, expected / 5)


def test_batching_does_not_change_scores(action_model, batch_of, choices):
    model = action_model(**choices)
    together = model(**batch_of(model, range(8)))
    for place in range(8):
        alone = model(**batch_of(model, [place]))
        count = alone.logits.shape[1]
        torch.testing.assert_close(together.logits[place, :count], alone.logits[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.preferences[place, :count], alone.preferences[0], atol=1e-5, rtol=1e-4)
    orders = [model(**batch_of(model, order)).logits for order in ([0, 1, 2], [2, 1, 0])]
    torch.testing.assert_close(orders[0], orders[1].flip(0), atol=1e-5, rtol=1e-4)


def test_scores_come_in_the_order_of_the_groups(action_model, batch_of, prepared, extractor, offers):
    model = action_model(extended=True)
    collator = OfferCollator(extractor, model.config, offers)
    scores = score_offers(model, collator, OfferGroups(load_prepared(prepared), offers), batch_size=3)
    assert scores.shape == (offers.offsets[-1], 3)
    for group in range(20):
        alone, part = model(**batch_of(model, [group])), slice(*offers.offsets[group : group + 2])
        np.testing.assert_allclose(scores[part, :2], alone.logits[0].detach(), atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(scores[part, 2], alone.preferences[0].sum(-1).detach(), atol=1e-5, rtol=1e-4)


def test_unobserved_outcomes_are_ignored():
    logits, labels = torch.randn(2, 3, 2, requires_grad=True), torch.ones(2, 3, 2)
    labels[0, 1, 1] = labels[1] = -100
    offer_loss(logits, labels).backward()
    assert ((logits.grad != 0) == (labels >= 0)).all()
    assert offer_loss(logits, torch.full_like(labels, -100)) == 0


def test_piecewise_linear_codes():
    values = torch.linspace(-2, CLIPPED, 29)
    codes = piecewise_linear(values[:, None])
    widths = torch.tensor(KNOTS).diff()
    torch.testing.assert_close(codes @ widths, values)
    assert (piecewise_linear(torch.zeros(3, 2)) == 0).all()
    bend = torch.tensor([float(low >= 1) for low in KNOTS[:-1]])  # 0 up to 1, then straight
    torch.testing.assert_close(codes @ (widths * bend), (values - 1).clamp(min=0))


def test_preferences_are_the_chance_of_the_actions_values(action_model, batch_of, extractor, offers):
    model = action_model(extended=True)
    inputs = batch_of(model, [0])
    history = {name: inputs[name] for name in ("input_ids", "attention_mask", "visit_ids", "event_times")}
    chances = MCMForMultiTaskRecommendation.forward(model, **history).logits["items"].softmax(-1)[0]
    names = offers.table["action_id"][: offers.offsets[1]]
    found = dict(zip(names, model(**inputs).preferences[0, :, 0], strict=True))
    either = chances[extractor.label_ids("items", ["item 07", "item 20"])].sum()
    torch.testing.assert_close(found["any of two"], either.log())
    assert found["aisle"] == 0  # it asks for no item


def test_matches_have_all_values_of_a_row(extractor, tiny_config):
    raw = read_actions(ACTIONS.astype(object).where(ACTIONS.notna(), None).to_dict("records"), "UTC")
    encoded = EncodedActions(extractor, tiny_config(), raw)
    names = kinds = ["three", "any of two", "aisle", "click"]
    assert raw.action_ids.tolist() == encoded.action_ids.tolist() == kinds
    assert encoded.features == ["type", "items", "aisle"]
    events = {
        "action": ["buy", "buy", "buy", "buy", "click", "buy"],
        "item": ["item 03", "item 07", "item 20", "item 07", "item 03", "item 12"],
        "aisle": ["aisle 0", "aisle 1", "aisle 3", "aisle 0", None, "aisle 2"],
    }
    ids = extractor.encode_actions(events)
    history = np.concatenate([np.zeros((1, ids.shape[1]), np.int64), ids])[None]
    matches = encoded.inputs(history, np.arange(4)[None])["action_matches"]
    found = {kind: [int(e) for _, e, a in matches if names[a] == kind] for kind in kinds}
    # the token type counts only where there is nothing else; "item 07" of aisle 0 is not what is asked
    assert found == {"three": [1, 5], "any of two": [2, 3], "aisle": [6], "click": [5]}


def test_unknown_values_match_nothing():
    events, rows = find_matches(np.array([[2, 1], [4, 3]]), np.array([[2, 1], [2, 3]]), token=0)
    assert (events.tolist(), rows.tolist()) == ([1], [1])


def list_known(model, inputs):
    """The numbers that the head reads, and what each of them is."""
    found = {}
    hook = model.action_head.register_forward_pre_hook(lambda module, arguments: found.update(known=arguments[-1]))
    model(**inputs)
    hook.remove()
    tasks = model.config.tasks
    names = [*(f"preference {task}" for task in tasks), *(f"labels {task}" for task in tasks)]
    return found["known"], [*names, *sum(count_names(model.config), [])]


def test_action_counts_match_sums_by_hand(action_model, batch_of, offers, event_log, extractor, monkeypatch):
    monkeypatch.setattr(action_mcm, "OFFER_HALF_LIVES", (20.0,))
    model = action_model(
        action_history_feature="type", action_features=["items", "aisle"], summed_features=extractor.summed_features
    )
    groups = [0, 5]
    inputs = batch_of(model, groups)
    known, names = list_known(model, inputs)
    assert known.shape[-1] == len(names) == len(set(names))
    checked = 0
    for place, group in enumerate(groups):
        made = offers.table[slice(*offers.offsets[group : group + 2])]
        start = pd.Timestamp(int(made["time"].iloc[0]), unit="s")
        log = event_log[(event_log["who"] == made["customer_id"].iloc[0]) & (event_log["when"] < start)]
        if len(log) >= 30:  # not all of it is in the window
            continue
        checked += 1
        days = (start - log["when"]).dt.total_seconds() / 86_400
        actions = made["action_id"].tolist()
        of_two = dict(zip(names, known[place, actions.index("any of two")].tolist(), strict=True))
        either = ((log["item"] == "item 07") & (log["aisle"] == "aisle 1")) | (
            (log["item"] == "item 20") & (log["aisle"] == "aisle 3")
        )
        visits = log["basket"].astype(object).where(log["basket"].notna(), log.index.to_series().map("{}".format))
        opens, aisle = ~visits.duplicated(keep="first"), log["aisle"].isin(["aisle 1", "aisle 3"])
        once = either & ~(visits[either].duplicated(keep="last").reindex(log.index, fill_value=False))
        chosen = {
            "did": either,
            "visits": once,
            "did as asked": either & (log["action"] == "buy"),
            "shared items": log["item"].isin(["item 07", "item 20"]),
            "shared aisle": aisle,
            f"type {2 + extractor.vocabularies['type'].index('click')}": log["action"] == "click",
        }
        for fading, weight in (("20d", 0.5 ** (days / 20)), ("all", days * 0 + 1)):
            for name, rows in chosen.items():
                expected = np.log1p(weight[rows].sum())
                assert of_two[f"{name} {fading}"] == pytest.approx(expected, abs=1e-4), name
            share = weight[aisle].sum() / weight[log["aisle"].notna()].sum()
            assert of_two[f"share of aisle {fading}"] == pytest.approx(np.log(share + 1e-3), abs=1e-4)
            for feature in extractor.summed_features:
                column = next(each["column"] for each in extractor.features if each["name"] == feature)
                total = np.log1p((weight * log[column].fillna(0))[either].sum())
                assert of_two[f"{feature} of did {fading}"] == pytest.approx(total, abs=1e-4)
        assert of_two["days since aisle"] == pytest.approx(np.log1p(days[aisle].min()), abs=1e-4)
        since = np.log1p(days[either].min()) if either.any() else np.log1p(LONGEST_DAYS)
        assert of_two["days since did"] == pytest.approx(since, abs=1e-4)
        assert of_two["all visits all"] == pytest.approx(np.log1p(opens.sum()), abs=1e-4)
        assert of_two["days since any"] == pytest.approx(np.log1p(days.min()), abs=1e-4)
        assert (of_two["values of aisle"], of_two["labels items"]) == (pytest.approx(np.log1p(2)),) * 2
    assert checked


def test_events_after_the_offers_are_ignored(action_model, prepared, extractor, offers):
    model = action_model(extended=True, summed_features=extractor.summed_features, action_history_feature="type")
    collator, groups = OfferCollator(extractor, model.config, offers), OfferGroups(load_prepared(prepared), offers)
    whole = groups.rows.__getitems__([0, 7])
    assert all((row["times"] >= groups.times[place]).any() for row, place in zip(whole, (0, 7), strict=True))
    expected = model(**collator(groups.__getitems__([0, 7]))).logits
    for row, place in zip(whole, (0, 7), strict=True):
        after = row["times"] >= groups.times[place]
        for name, values in row.items():
            if isinstance(values, np.ndarray) and name.startswith(("feature_", "value_")):
                row[name] = np.where(after, values.max(), values).astype(values.dtype)
    groups.rows = whole_rows = type("Rows", (), {})()
    whole_rows.__getitems__ = lambda places: [whole[(0, 7).index(place)] for place in places]
    torch.testing.assert_close(model(**collator(groups.__getitems__([0, 7]))).logits, expected, atol=0, rtol=0)


def test_a_batch_with_one_offer_can_be_trained_on(action_model, batch_of, offers):
    model = action_model(extended=True).train()
    alone = offers.groups["customer_id"].tolist().index("c03")
    assert batch_of(model, [alone])["offered_actions"].shape == (1, 1)
    model(**batch_of(model, [alone])).loss.backward()


def test_head_overfits_a_batch_and_is_saved(action_model, batch_of, tmp_path):
    model = action_model(extended=True, hidden_dropout_prob=0.0, event_dropout_prob=0.0).train()
    model.action_head.dropout.p = 0.0
    inputs = batch_of(model, range(12))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(80):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    model.eval().save_pretrained(tmp_path)
    loaded = MCMForActionRecommendation.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def test_fine_tuning_starts_from_the_pretrained_ranking(tiny_model, batch_of, tmp_path):
    pretrained = tiny_model(extended=True)
    pretrained.save_pretrained(tmp_path)
    model = MCMForActionRecommendation.from_pretrained(tmp_path).eval()
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pretrained.state_dict().items())
    assert all(value.isfinite().all() for value in state.values())
    outputs = model(**batch_of(model, range(6)))
    mean = outputs.preferences.mean(-1)[..., None].expand_as(outputs.logits)
    real = outputs.logits > -1e30
    torch.testing.assert_close(outputs.logits[real], mean[real])


def test_a_frozen_encoder_does_not_move(action_model, batch_of):
    model = action_model(extended=True).train()
    model.freeze_encoder()
    model(**batch_of(model, range(3))).loss.backward()
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"action_head"}


def test_unseen_action_is_scored_by_its_features(action_model, extractor, event_log, tmp_path):
    model = action_model(extended=True)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    score = pipeline("action-scores", model=str(tmp_path))
    assert type(score) is ActionScoresPipeline
    customer = {"events": event_log[event_log["who"] == "c00"].to_dict("list")}
    actions = [
        {"action_id": "three", "action": "buy", "item": "item 03"},
        {"action_id": "new", "action": "buy", "item": "item 03"},
        {"action_id": "any", "action": "buy", "item": "item 07", "weight": 3.0},
        {"action_id": "any", "action": "buy", "item": "item 20", "weight": 1.0},
    ]
    found = score(customer, actions=actions)
    assert [each["action_id"] for each in found] == ["three", "new", "any"]
    assert all(0 < each[outcome] < 1 for each in found for outcome in ("click", "conversion"))
    assert found[0]["click"] == pytest.approx(found[1]["click"], abs=1e-6)
    alone = score(customer, actions=actions[1:2])
    assert alone[0]["click"] == pytest.approx(found[1]["click"], abs=1e-5)
    later = score(customer, actions=actions, time="2018-06-01")
    assert later[2]["click"] != found[2]["click"]
    with pytest.raises(ValueError, match="has events at or after the `time` of the offers"):
        score(customer, actions=actions, time="2017-06-01")
    with pytest.raises(ValueError, match="`time`: found 'soon', which is no time"):
        score(customer, actions=actions, time="soon")
    both = score([customer, {"events": []}], actions=actions, batch_size=2)
    assert both[0][2]["conversion"] == pytest.approx(found[2]["conversion"], abs=1e-5) and len(both[1]) == 3


def test_offers_before_the_last_event_are_refused(action_model, extractor, tmp_path):
    action_model(extended=True).save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    score = pipeline("action-scores", model=str(tmp_path))
    events = [
        {"when": when, "basket": basket, "action": "buy", "item": "item 01"}
        for when, basket in [("2017-06-01", "a"), ("2017-06-02", "b"), ("2017-06-05", "a")]
    ]
    actions = [{"action_id": "three", "action": "buy", "item": "item 03"}]
    with pytest.raises(ValueError, match="has events at or after the `time` of the offers"):
        score({"events": events}, actions=actions, time="2017-06-03")
    found, later, waited = (
        score({"events": events[:count]}, actions=actions, time=time)
        for count, time in ((3, "2017-06-06"), (3, "2017-06-09"), (2, "2017-06-06"))
    )
    assert found != later != waited != found


def test_bad_actions_are_refused(action_model, extractor, tiny_config, tmp_path):
    def encoded(config, *actions):
        encode_actions(extractor, config, list(actions))

    three = {"action_id": "three", "action": "buy", "item": "item 03"}
    encoded(tiny_config(), three)
    with pytest.raises(ValueError, match="Action 'empty' has no value in any feature; add some"):
        encoded(tiny_config(), three, {"action_id": "empty", "item": None})
    with pytest.raises(ValueError, match="The actions: .*'colour'"):
        encoded(tiny_config(), three | {"colour": "red"})
    with pytest.raises(ValueError, match="have no columns besides their ids; give columns of the event log"):
        encoded(tiny_config(), {"action_id": "three"})
    for weight in (0, -1, math.inf):
        with pytest.raises(ValueError, match="Action 'heavy' has the weight .*give a number above 0"):
            encoded(tiny_config(), three, three | {"action_id": "heavy", "weight": weight})
    with pytest.raises(ValueError, match="The actions: column 'weight': found 'x'"):
        encoded(tiny_config(), three | {"weight": "x"})
    with pytest.raises(ValueError, match="The actions have no column 'action_id'; they have item"):
        encoded(tiny_config(), {"item": "item 03"})
    with pytest.raises(ValueError, match="expected a list of dicts"):
        encoded(tiny_config())
    with pytest.raises(ValueError, match="There are no offers"):
        action_model()(torch.full((1, 2, len(extractor.feature_names)), FIRST_LABEL))
    action_model().save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    score = pipeline("action-scores", model=str(tmp_path))
    with pytest.raises(ValueError, match="There are no `actions`"):
        score({"events": []})
    with pytest.raises(ValueError, match=r"Unknown options \['action'\]"):
        score({"events": []}, action=[three])
    with pytest.raises(StrictDataclassClassValidationError, match="is 'colour', no feature: expected one of"):
        tiny_config(action_history_feature="colour")
    with pytest.raises(StrictDataclassClassValidationError, match="expected at least one outcome"):
        tiny_config(action_outcomes=[])


def test_empty_history_is_scored_and_unknown_customer_refused(action_model, prepared, extractor, event_log):
    rows, model = load_prepared(prepared), action_model(extended=True)
    before = make_offers(offers_of(event_log, time="2016-12-01"), ACTIONS)
    groups = OfferGroups(rows, before)
    assert all(len(groups[place]["history"]["times"]) == 0 for place in range(3))
    logits = model(**OfferCollator(extractor, model.config, before)(groups.__getitems__([0, 1, 2]))).logits
    assert logits.isfinite().all()
    nobody = make_offers(offers_of(event_log, customer_id="nobody", group_id=[str(n) for n in range(58)]), ACTIONS)
    with pytest.raises(ValueError, match="1 customers of the offers are not in the prepared data set.*'nobody'"):
        OfferGroups(rows, nobody)


CUSTOMERS = 149


def true_log_odds(log, day):
    """By customer and item: a click likes what was bought often before, a conversion what is in aisle 0 or 1."""
    before = log[(log["when"] < day) & (log["action"] == "buy")]
    counts = before.groupby(["who", "item"]).size()

    def of(who, item):
        times = counts.get((who, item), 0)
        return -2.0 + 2.0 * np.log1p(times), -1.5 + 2.5 * (int(item[5:]) < 12)

    return of


def test_known_outcomes_are_recovered(prepare_log, tiny_config):
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
