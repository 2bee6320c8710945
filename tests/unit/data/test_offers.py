# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Offers: how tables are read, what is refused, and the metrics that are made of them."""

import importlib
import io
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from handmade_extractor import seconds
from sklearn.metrics import average_precision_score, roc_auc_score

from modeling_mcm.data import load_prepared
from modeling_mcm.data.offers import OfferReader, Offers, check_unseen, load_actions, load_offers, make_offers
from modeling_mcm.evaluation.metrics import weighted_ranking
from modeling_mcm.evaluation.offers import offer_metrics

OFFERS = """customer_id,time,action_id,conversion
1,2017-03-01,b,1
1,2017-03-01,a,0
2,2017-03-05,a,0
2,2017-03-05,b,1
1,2017-05-01,a,0"""
ACTIONS = """action_id,time,item
a,2017-01-01,x
a,2017-01-01,y
b,2017-01-01,z
a,2017-04-01,w"""
OFFERS, ACTIONS = (pd.read_csv(io.StringIO(text)) for text in (OFFERS, ACTIONS))


def test_offers_of_one_customer_and_time_are_a_group():
    offers = make_offers(OFFERS, ACTIONS)
    groups = offers.groups
    assert groups["group_id"].tolist() == ["1 2017-03-01", "1 2017-05-01", "2 2017-03-05"]
    assert groups["customer_id"].tolist() == ["1", "1", "2"] and groups["split"].tolist() == ["train"] * 3
    assert groups["time"].tolist() == [seconds(day) for day in ("2017-03-01", "2017-05-01", "2017-03-05")]
    assert offers.offsets.tolist() == [0, 2, 3, 5]
    assert offers.table["conversion"].tolist() == [0, 1, 0, 0, 1] and offers.outcomes == ["conversion"]
    assert make_offers(OFFERS, ACTIONS, ["conversion"] * 2).outcomes == ["conversion"]


def test_an_action_is_what_it_was_when_it_was_offered():
    offers = make_offers(OFFERS, ACTIONS)
    actions = offers.actions
    items = ["".join(actions.columns["item"][start:end]) for start, end in itertools.pairwise(actions.offsets)]
    assert [items[version] for version in offers.table["version"]] == ["xy", "z", "w", "xy", "z"]


def test_a_reader_reads_no_event_from_the_second_of_the_offer_on(prepared, extractor, tiny_config):
    rows = load_prepared(prepared)
    row = rows.with_format("numpy")[0]
    place = len(row["times"]) // 2
    offered = pd.DataFrame({"customer_id": row["customer_id"], "time": [row["times"][place].astype("M8[s]")]})
    offers = make_offers(
        offered.assign(action_id="a", click=1), pd.DataFrame({"action_id": ["a"], "item": ["item 03"]})
    )
    _, inputs = OfferReader(rows, offers, extractor, tiny_config()).read(np.array([0]))
    before = row["times"] < row["times"][place]
    assert 0 < before.sum() < place + 1
    past = {name: value[before] if np.ndim(value) else value for name, value in row.items()}
    assert torch.equal(inputs["input_ids"], extractor.pad([past])["input_ids"])


def test_an_outcome_may_be_unobserved_and_columns_may_be_absent():
    offers = make_offers(OFFERS.assign(click=[None, 1, None, 0, 1]), ACTIONS.drop(columns="time").head(3))
    np.testing.assert_array_equal(offers.table["click"], [1, np.nan, 1, np.nan, 0])


def test_tables_come_from_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="offers.parquet is no file; give a Parquet"):
        load_offers(tmp_path)
    OFFERS.assign(time=pd.to_datetime(OFFERS["time"])).to_parquet(tmp_path / "offers.parquet")
    ACTIONS.assign(time=pd.to_datetime(ACTIONS["time"])).to_parquet(tmp_path / "actions.parquet")
    loaded, made = load_offers(tmp_path), make_offers(OFFERS, ACTIONS)
    pd.testing.assert_frame_equal(loaded.table, made.table)
    assert loaded.actions.columns == made.actions.columns


WRONG = """
{conversion: [1, 0, 2, 1, 0]}                -> Outcome 'conversion' is 2 in row 2; expected 0, 1 or null
{conversion: null}                           -> Found 5 offers with outcomes .*; expected at least one of each
{customer_id: [1, null, 2, 2, 1]}            -> column 'customer_id': null in 1 of 5 rows
{time: [null, 2017-03-01, 2017-03-05, 2017-03-05, 2017-05-01]} -> [Cc]olumn 'time': found no time
{time: soon}                                 -> [Cc]olumn 'time': found 'soon', which is no time
{action_id: [b, b, a, b, a]}                 -> Group '1 2017-03-01' offers action 'b' twice; keep one row
{action_id: [b, a, a, c, a]}                 -> Action 'c', offered on 2017-03-05, has no row in the actions
{time: 2016-03-01}                           -> Group '1 2016-03-01' offers action 'a' twice
{time: 2016-03-01, action_id: [b, a, a, b, c]} -> Action '[ab]', offered on 2016-03-01, has no
{split: [train, tset, test, test, train]}    -> Column 'split' holds .*'tset'.*; expected train, val
{group_id: g}                                -> Group 'g' has several values of 'customer_id'
{split: [train, test, test, test, train]}    -> Group '1 2017-03-01' has several values of 'split'
""".strip().splitlines()


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_offers_are_refused(wrong):
    changed, message = wrong.split(" -> ")
    with pytest.raises(ValueError, match=message):
        make_offers(OFFERS.assign(**yaml.safe_load(changed)), ACTIONS)


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="The offers have no column 'action_id'; they have customer_id, time, conver"):
        make_offers(OFFERS.drop(columns="action_id"), ACTIONS)
    with pytest.raises(ValueError, match="The actions have no column 'action_id'"):
        make_offers(OFFERS, ACTIONS.rename(columns={"action_id": "action"}))
    with pytest.raises(ValueError, match="The offers have no column 'click'"):
        make_offers(OFFERS, ACTIONS, outcomes=["click"])
    with pytest.raises(ValueError, match="Found 0 offers"):
        make_offers(OFFERS.head(0), ACTIONS, outcomes=["conversion"])


def test_an_outcome_of_one_class_can_not_be_learned():
    offers = make_offers(OFFERS, ACTIONS)
    offers.check_trainable()
    with pytest.raises(ValueError, match="Outcome 'conversion' is .*0.0.* in all 1 observed training offers"):
        make_offers(OFFERS.tail(1), ACTIONS).check_trainable()


def test_offers_that_overlap_the_evaluation_period_are_refused():
    split = ["train", "train", "train", "train", "test"]  # from 1 and 5 March, and from 1 May
    offers = make_offers(OFFERS.assign(split=split), ACTIONS)
    train, test = offers.of(["train"]), offers.of(["test"])
    check_unseen(test, seconds("2017-05-01"))
    train.check_before(test)
    offers.check_before(offers.of([]))
    check_unseen(offers.of([]), seconds("2017-06-01"))
    with pytest.raises(ValueError, match="start on 2017-05-01, but the model was pre-trained on events before 2017-0"):
        check_unseen(test, seconds("2017-05-02"))
    with pytest.raises(
        ValueError, match="Group '1 2017-05-01' is trained on and starts on 2017-05-01, when offers to"
    ):
        offers.check_before(test)


# ------------------------------------------------------------------------------------------------------------ metrics


def made_of(groups, taken, customers="abcdefgh"):
    """Offers of groups, numbered from 0, of the customers."""
    table = pd.DataFrame({"group_id": groups, "customer_id": [customers[group] for group in groups]})
    return Offers(table.assign(conversion=np.array(taken, np.float32)), ["conversion"], None)


@pytest.fixture
def three():
    """Three groups, of which the second takes nothing and the first and last are of one customer."""
    return made_of([0, 0, 0, 1, 1, 2, 2, 2], [1, 0, 0, 0, np.nan, 0, 1, 1], "aba")


def first(offers, scores, k=10):
    found = offer_metrics(offers, "conversion", np.array(scores, float), k)
    return {name: values.mean for name, values in found.items()}


def test_which_offer_ranks_within_groups_that_take_one(three):
    scores = [0.1, 0.5, 0.9, 0, 0, 3, 2, 1]
    assert first(three, scores, 3)["ndcg@3"] == pytest.approx(
        np.mean([0.5, (1 / np.log2(3) + 0.5) / (1 + 1 / np.log2(3))])
    )
    assert (first(three, scores, 1)["recall@1"], first(three, scores, 2)["recall@2"]) == (0, 0.25)
    tied = first(three, np.zeros(8), 1)["ndcg@1"]
    assert tied == pytest.approx(np.mean([1 / 3, 2 / 3]))  # in expectation over the order of equals


def test_metrics_are_those_of_scikit_learn(three):
    found = first(three, [3, 2, 1, 0, 0, -3, -2, -1])
    takes = [sum(1 / (1 + np.exp(-log_odds)) for log_odds in group) for group in ((3, 2, 1), (0, 0), (-3, -2, -1))]
    for name, reference in (("average_precision", average_precision_score), ("roc_auc", roc_auc_score)):
        assert found[name] == pytest.approx(reference([1, 0, 1], takes))
    weights = np.random.default_rng(0).integers(1, 4, (20, 40))
    taken, scores = np.arange(40) % 3 == 0, np.random.default_rng(1).integers(0, 9, 40).astype(float)
    weighted = weighted_ranking(taken, scores, weights)
    for name, reference in (("average_precision", average_precision_score), ("roc_auc", roc_auc_score)):
        np.testing.assert_allclose(weighted[name], [reference(taken, scores, sample_weight=row) for row in weights])
    with pytest.raises(ValueError, match="2 of 2 groups take an offer; expected some that do and some that don't"):
        first(made_of([0, 1], [1, 1]), [1, 1])


def test_intervals_resample_customers_with_all_of_their_groups(three):
    scores = np.array([3, 2, 1, 0, 0, 3, 2, 1.0])
    found = offer_metrics(three, "conversion", scores)
    assert found["ndcg@10"].low == found["ndcg@10"].mean == found["ndcg@10"].high  # both takers are customer a
    apart = Offers(three.table.assign(customer_id=list("aaabbccc")), ["conversion"], None)
    other = offer_metrics(apart, "conversion", scores)["ndcg@10"]
    assert other.low < other.mean < other.high and (found["ndcg@10"].customers, other.customers) == (2, 3)


def test_a_resample_without_takers_has_no_say():
    assert offer_metrics(made_of([0, 1], [1, 0]), "conversion", np.array([1.0, 0.0]))["roc_auc"].low == 1


def test_each_action_is_offered_in_the_version_that_holds(extractor, tiny_config, tmp_path):
    table = pd.DataFrame({"action_id": ["a", "a", "b"], "action": "buy", "item": ["item 03", "item 07", "item 20"]})
    table.assign(time=["2017-01-01", "2017-06-01", "2017-02-01"]).to_csv(tmp_path / "actions.csv", index=False)
    items = extractor.feature_names.index("items")
    for as_of, wanted in ((None, ["item 07", "item 20"]), (seconds("2017-03-01"), ["item 03", "item 20"])):
        actions = load_actions(tmp_path / "actions.csv", extractor, tiny_config(), as_of)
        ids = actions.ids[actions.offsets[actions.offered], items]
        assert ids.tolist() == extractor.label_ids("items", wanted).tolist()
        assert actions.action_ids.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="Action 'b', offered on 2017-01-05, has no row in the actions that holds"):
        load_actions(tmp_path / "actions.csv", extractor, tiny_config(), seconds("2017-01-05"))
    table.assign(weight=[1, None, 0]).to_csv(tmp_path / "actions.csv", index=False)
    with pytest.raises(ValueError, match="unknown 'weight'"):  # which no head reads
        load_actions(tmp_path / "actions.csv", extractor, tiny_config())


def test_the_example_offers_departments_that_were_never_bought_from():
    example = importlib.import_module("2_offers_from_purchases")
    events = pd.DataFrame(
        [(1, "2017-04-01", "MEAT"), (1, "2017-05-03", "FISH"), (1, "2017-05-03", None), (2, "2017-04-02", "FISH")]
        + [(2, "2017-05-30", "MEAT"), (2, "2017-12-30", "MEAT")],
        columns=["household_id", "time", "department"],
    ).assign(time=lambda frame: pd.to_datetime(frame["time"]))
    made = make_offers(*example.new_department_offers(events))
    found = made.table.set_index(["customer_id", "action_id"])["conversion"].to_dict()
    assert found == {("1", "FISH"): 1.0, ("2", "MEAT"): 0.0}  # 30 May is too late
    assert set(made.table["time"]) == {seconds("2017-05-01")}  # later there is nothing new left


def test_an_unobserved_offer_is_not_ranked():
    assert first(made_of([0, 0, 0, 1], [np.nan, 1, 0, 0]), [9, 1, 0, 0], 1)["ndcg@1"] == 1
