# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The head for offers: what it computes, what it may not depend on, how it is stored and used."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from choices import perturb
from huggingface_hub.errors import StrictDataclassClassValidationError
from other_device import other_device
from transformers import pipeline

from modeling_mcm import (
    ActionScoresPipeline,
    MCMForActionRecommendation,
    MCMForMultiTaskRecommendation,
    action_mcm,
)
from modeling_mcm.action_inputs_mcm import EncodedActions, find_matches
from modeling_mcm.action_mcm import LONGEST_DAYS, number_names
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data import load_prepared
from modeling_mcm.data.offers import OfferReader, make_offers
from modeling_mcm.evaluation.offers import score_offers
from modeling_mcm.predictor_mcm import Questions
from modeling_mcm.training.heads.offers import read_offers

ACTIONS = pd.DataFrame(
    [
        ("three", "click", "item 03", None),
        ("any of two", "buy", "item 07", "aisle 1"),
        ("any of two", "buy", "item 20", "aisle 3"),
        ("aisle", "buy", None, "aisle 2"),
        ("click", "click", None, None),
    ],
    columns=["action_id", "action", "item", "aisle"],
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
def reader_of(prepared, extractor, offers):
    return lambda model: OfferReader(load_prepared(prepared), offers, extractor, model.config)


@pytest.fixture
def batch_of(reader_of, offers):
    """A function that makes model inputs of some groups, with the outcomes of their offers."""

    def make(model, groups):
        rows, batch = reader_of(model).read(np.array(groups))
        labels = torch.full((*batch["offered_actions"].shape, 2), -100.0)
        known = offers.table[offers.outcomes].to_numpy(np.float32)[rows]
        labels[batch["offered_actions"] >= 0] = torch.from_numpy(known)
        return batch | {"labels": labels}

    return make


@pytest.fixture(params=[{}, {"extended": True}], ids=["paper", "extended"])
def choices(request):
    return request.param


def test_loss_is_of_observed_outcomes(action_model, batch_of, offers, choices):
    model = action_model(**choices)
    inputs = batch_of(model, range(5))
    inputs["labels"][0] = -100  # nobody saw what came of these
    outputs, observed = model(**inputs), inputs["labels"] >= 0
    alone = offers.groups["customer_id"].tolist().index("c03")
    assert inputs["offered_actions"][alone].tolist()[1:] == [-1, -1] and (outputs.logits[alone, 1:] < -1e30).all()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs.logits[observed], inputs["labels"][observed], reduction="sum"
    )
    torch.testing.assert_close(outputs.loss, expected / 5)


def test_batching_does_not_change_scores(action_model, batch_of, reader_of, offers, choices):
    """Scores come in the order of the table, and are those that each group has alone."""
    model = action_model(**choices)
    scores = score_offers(model, reader_of(model), batch_size=3)
    assert scores.shape == (offers.offsets[-1], 3)
    for group in range(20):
        alone, part = model(**batch_of(model, [group])), slice(*offers.offsets[group : group + 2])
        np.testing.assert_allclose(scores[part, :2], alone.logits[0].detach(), atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(scores[part, 2], alone.preferences[0].sum(-1).detach(), atol=1e-5, rtol=1e-4)


def test_offers_on_another_device_are_read_and_scored_as_on_the_cpu(action_model, reader_of):
    model = action_model(extended=True)
    reader = reader_of(model)
    expected, read = score_offers(model, reader), read_offers(model, reader)
    with other_device() as device, torch.no_grad():  # which knows no inference mode
        model.to(device)
        np.testing.assert_allclose(score_offers.__wrapped__(model, reader), expected, rtol=1e-5, atol=1e-6)
        again = read_offers.__wrapped__(model, reader)
    torch.testing.assert_close(again.numbers, read.numbers)
    np.testing.assert_array_equal(again.labels.toarray(), read.labels.toarray())


def test_preferences_are_the_chance_of_the_actions_values(action_model, batch_of, extractor, offers):
    model = action_model(extended=True)
    inputs = batch_of(model, [0])
    names = ("input_ids", "attention_mask", "visit_ids", "event_times", "as_of")
    history = {name: inputs[name] for name in names}
    chances = MCMForMultiTaskRecommendation.forward(model, **history).logits["items"].softmax(-1)[0]
    names = offers.table["action_id"][: offers.offsets[1]]
    found = dict(zip(names, model(**inputs).preferences[0, :, 0], strict=True))
    either = chances[extractor.label_ids("items", ["item 07", "item 20"])].sum()
    torch.testing.assert_close(found["any of two"], either.log())
    assert found["aisle"] == 0  # it asks for no item


def test_later_events_change_no_offer(action_model, batch_of):
    model = action_model(extended=True)
    inputs = batch_of(model, [0])
    matches, inputs["as_of"] = inputs["action_matches"], inputs["event_times"][:, 20]
    until = int((inputs["event_times"] <= inputs["as_of"]).sum())
    cut = {name: value[:, :until] for name, value in inputs.items() if name.startswith(("in", "att", "vis", "event"))}
    cut["action_matches"] = matches[matches[:, 1] < until]
    assert 0 < len(cut["action_matches"]) < len(matches)
    torch.testing.assert_close(model(**inputs).logits, model(**inputs | cut).logits)


def test_unknown_values_match_nothing():
    events, rows = find_matches(np.array([[2, 1], [4, 3]]), np.array([[2, 1], [2, 3]]), token=0)
    assert (events.tolist(), rows.tolist()) == ([1], [1])


def test_numbers_match_sums_by_hand(action_model, batch_of, offers, event_log, extractor, monkeypatch):
    monkeypatch.setattr(action_mcm, "OFFER_HALF_LIVES", (20.0,))
    model = action_model(summed_features=extractor.summed_features)
    groups, names = [0, 5], number_names(model.config)
    outputs = model(**batch_of(model, groups))
    known, embedding = outputs.numbers.split([len(names), model.config.embedding_size], -1)
    assert len(names) == len(set(names)) and torch.equal(embedding[:, 1], outputs.pooler_output)
    checked = unasked = 0
    for place, group in enumerate(groups):
        made = offers.table[slice(*offers.offsets[group : group + 2])]
        start = pd.Timestamp(int(made["time"].iloc[0]), unit="s")
        log = event_log[(event_log["who"] == made["customer_id"].iloc[0]) & (event_log["when"] < start)]
        if len(log) >= 30:  # not all of it is in the window
            continue
        checked += 1
        item, aisle, days = log["item"], log["aisle"], (start - log["when"]).dt.total_seconds() / 86_400
        values = dict(zip(made["action_id"], known[place].tolist(), strict=False))
        two, three, second = (dict(zip(names, values[name], strict=True)) for name in ("any of two", "three", "aisle"))
        either = ((item == "item 07") & (aisle == "aisle 1")) | ((item == "item 20") & (aisle == "aisle 3"))
        viewed = item == "item 03"  # whether it was clicked on, as asked, or bought
        sums = [
            (two, "did", either),
            (two, "did as asked", either & (log["action"] == "buy")),
            (two, "shared items", item.isin(["item 07", "item 20"])),
            (two, "shared aisle", aisle.isin(["aisle 1", "aisle 3"])),
            (two, "a.b of did", either * log["price"].fillna(0)),
            (second, "did", aisle == "aisle 2"),
            (three, "did", viewed),
            (three, "did as asked", viewed & (log["action"] == "click")),
        ]
        for fading, weight in (("20d", 0.5 ** (days / 20)), ("all", 1)):
            for found, name, values in sums:
                expected = np.log1p((weight * values).sum())
                assert found[f"{name} {fading}"] == pytest.approx(expected, abs=1e-4), name
        unasked += three["did all"] > three["did as asked all"]
        since = days[either].min() if either.any() else LONGEST_DAYS
        assert two["days since did"] == pytest.approx(np.log1p(since), abs=1e-4)
        assert (two["labels of aisle"], two["labels of items"]) == (pytest.approx(np.log1p(2)),) * 2
    assert checked and unasked


def test_a_new_head_says_the_same_of_all_and_reads_the_pretrained_model(tiny_model, batch_of, tmp_path):
    pretrained = tiny_model(extended=True)
    pretrained.save_pretrained(tmp_path)
    model = MCMForActionRecommendation.from_pretrained(tmp_path).eval()
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pretrained.state_dict().items())
    logits = model(**batch_of(model, range(6))).logits
    assert (logits[logits > -1e30] == 0).all()


@pytest.fixture
def score(action_model, extractor, tmp_path):
    """The pipeline of a folder."""
    action_model(extended=True).save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    return pipeline("action-scores", model=str(tmp_path))


def test_unseen_action_is_scored_by_its_features(score, event_log):
    assert type(score) is ActionScoresPipeline
    log = event_log[event_log["who"] == "c00"]
    customer, before = ({"events": log[log["when"] < end]} for end in ("2018-01-01", "2017-06-01"))
    actions = [
        {"action_id": "three", "action": "buy", "item": "item 03"},
        {"action_id": "new", "action": "buy", "item": "item 03"},
        {"action_id": "any", "action": "buy", "item": "item 07"},
        {"action_id": "any", "action": "buy", "item": "item 20"},
    ]
    found, nobody = score([customer, {"events": []}], actions=actions, batch_size=2)
    assert [each["action_id"] for each in found] == ["three", "new", "any"] and len(nobody) == 3
    assert all(0 < each[outcome] < 1 for each in found for outcome in ("click", "conversion"))
    alone = score(customer, actions=actions[1:2])[0]
    assert alone["click"] == pytest.approx(found[1]["click"], abs=1e-5) == pytest.approx(found[0]["click"], abs=1e-5)
    later, earlier, cut = (
        score(given, actions=actions, as_of=day)
        for given, day in ((customer, "2018-06-01"), (customer, "2017-06-01"), (before, "2017-06-01"))
    )
    assert later[2]["click"] != found[2]["click"] and earlier == cut != found


THREE = {"action_id": "three", "action": "buy", "item": "item 03"}


# Actions, and what is said of them
WRONG = r"""
[{action_id: empty, item: null}]               -> Action 'empty' has a row without a value in any feature
[{action_id: three, colour: red}]              -> The actions: .*'colour'
[{action_id: three}]                           -> have no columns besides their ids; give columns of the event log
[{item: item 03}]                              -> The actions have no column 'action_id'; they have item
[]                                             -> The actions: found \[\], expected a table or a list
{action_id: [], item: []}                      -> The actions: found no rows, expected a table
null                                           -> There are no `actions`
""".strip().splitlines()


@pytest.mark.parametrize("line", WRONG)
def test_bad_actions_are_refused(score, line):
    actions, message = line.split(" -> ")
    actions = yaml.safe_load(actions)
    with pytest.raises(ValueError, match=message):
        score({"events": []}, actions=pd.DataFrame(actions) if isinstance(actions, dict) else actions)


def test_bad_options_are_refused(score, action_model, extractor, tiny_config):
    with pytest.raises(ValueError, match=r"Unknown options \['action'\]"):
        score({"events": []}, action=[THREE])
    with pytest.raises(ValueError, match="`as_of`: found 'soon', which is no time"):
        score({"events": []}, actions=[THREE], as_of="soon")
    with pytest.raises(ValueError, match="There are no offers"):
        action_model()(torch.full((1, 2, len(extractor.feature_names)), FIRST_LABEL))
    with pytest.raises(StrictDataclassClassValidationError, match="expected at least one outcome"):
        tiny_config(action_outcomes=[])


def test_actions_of_another_checkpoint_are_refused(score, extractor):
    extractor.vocabularies["items"].reverse()
    actions = EncodedActions(extractor, score.model.config, [THREE])
    with pytest.raises(ValueError, match="`actions` was made for a checkpoint with other values: make another"):
        score.predictor.check(Questions(offers=actions))


def test_empty_history_is_scored_and_unknown_customer_refused(action_model, prepared, extractor, event_log):
    rows, model = load_prepared(prepared), action_model(extended=True)
    before = make_offers(offers_of(event_log, time="2016-12-01"), ACTIONS)
    inputs = OfferReader(rows, before, extractor, model.config).read(np.arange(3))[1]
    assert inputs["input_ids"].shape[1] == 1 and model(**inputs).logits.isfinite().all()
    nobody = make_offers(offers_of(event_log, customer_id="nobody", group_id=[str(n) for n in range(58)]), ACTIONS)
    with pytest.raises(ValueError, match="1 customers of the offers are not in the prepared data set.*'nobody'"):
        OfferReader(rows, nobody, extractor, model.config)
