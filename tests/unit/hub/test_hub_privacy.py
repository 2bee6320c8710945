# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Values, and pairs of labels, that too few customers have are counted, and are in no published file if that is
wanted; the others stay as they are."""

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from choices import PAPER, STATE, TINY, from_data
from corner_shop import VALIDATION, find_customer, make_log
from safetensors.torch import load_file

from modeling_mcm import CustomerModel, MCMConfig, MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.data import PreparedData
from modeling_mcm.data.dataset import END
from modeling_mcm.evaluation.cases import read_history
from modeling_mcm.hub import model_card, write_upload_folder
from modeling_mcm.hub.folder import hide_values, rare_values
from modeling_mcm.training.forecaster.shop import SHARED_BY
from modeling_mcm.training.scorer.counts import LabelCounts, measure_rarity

LEAST = 5


@pytest.fixture(scope="module")
def log(event_log):
    """A log in which two customers alone have one of the items."""
    theirs = event_log.loc[event_log["item"] == "item 05", "who"].unique()[:2]
    return event_log[(event_log["item"] != "item 05") | event_log["who"].isin(theirs)]


@pytest.fixture(scope="module")
def data(log, prepare_log):
    return prepare_log(log)


@pytest.fixture(scope="module")
def rows(data):
    return PreparedData(data, END).rows


@pytest.fixture
def extractor(data):
    return MCMFeatureExtractor.from_pretrained(str(data / "feature_extractor"))


@pytest.fixture
def checkpoint(rows, extractor, tmp_path, monkeypatch):
    """A checkpoint with the tables of the data set's labels."""
    monkeypatch.setattr("modeling_mcm.hub.folder.LABELS_AT_ONCE", 7)  # in parts
    choices = TINY | PAPER | {"scorer": True, "values_digest": extractor.values_digest, "label_features": ["aisle"]}
    choices |= STATE | {"calendar": [17000, 9]}
    model = MCMForMultiTaskRecommendation(MCMConfig(**from_data(extractor) | choices))
    for index, (task, size) in enumerate(model.config.label_sizes.items()):
        table = model.scorer.tables[index]
        counts = LabelCounts(read_history(rows, task, kind="feature"), size, np.arange(len(rows)) % 5)
        table.load_state_dict(counts.make_tables().state_dict())
        table.attributes[2:, 0] = 1 + torch.arange(2, size) % 3
        table.rarity.copy_(torch.from_numpy(measure_rarity(table.attributes.numpy())))
        model.label_values(index)[2:] = 2
    visits = torch.arange(9.0)  # of those who come back, by day
    model.model.forecaster.calendar.counts.copy_(torch.stack([visits, visits + 10], 1))
    model.save_pretrained(tmp_path / "checkpoint")
    extractor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_customers_of_a_value_are_counted_once_each_and_in_the_whole_log(log, rows, extractor):
    expected = log.groupby("item")["who"].nunique()
    assert (expected > log[log["when"] < VALIDATION].groupby("item")["who"].nunique()).any()
    for least in range(30):
        rare = rare_values(rows, extractor, least)
        assert sorted(rare["items"]) == sorted(expected[expected < least].index)
        assert len(rare["age"]) == 2 * (least > 17)


def test_a_value_that_is_a_placeholder_already_is_refused():
    with pytest.raises(ValueError, match=r"'town' has a value such as '\[hidden 2\]'"):
        hide_values({"town": ["Rome", "[hidden 2]"]}, {"town": ["Rome"]})


def test_rare_values_are_hidden_in_their_place_and_read_as_unknown(
    checkpoint, rows, data, extractor, event_log, tmp_path
):
    rare = rare_values(rows, extractor, LEAST)
    assert 0 < len(rare["items"]) < 24 and not {"history_start", "end_of_visit"} & set(rare["type"])
    exposure = write_upload_folder(checkpoint, tmp_path / "out", data, LEAST)
    assert (exposure.min_customers, exposure.hidden) == (LEAST, True)
    assert exposure.rare == {name: len(values) for name, values in rare.items()} | {"label_columns": 0}
    text = (tmp_path / "out" / "vocabularies.json").read_text()
    assert not [value for value in rare["items"] if f'"{value}"' in text]
    hidden = type(extractor).from_pretrained(str(tmp_path / "out"))
    model = MCMForMultiTaskRecommendation.from_pretrained(tmp_path / "out")
    assert model.config.values_digest == hidden.values_digest != extractor.values_digest
    before, after = (each(find_customer(event_log, "c00"))["input_ids"][0] for each in (extractor, hidden))
    place = extractor.feature_names.index("items")
    secret = np.isin(before[:, place], extractor.label_ids("items", rare["items"]))
    assert (after[secret, place] == 1).all() and (after[~secret] == before[~secret]).all()


def customers_of_pairs(rows, task, size):
    """The number of customers by pair of labels `(size, size)`."""
    has = torch.zeros(len(rows), size)
    for customer, row in enumerate(rows):
        has[customer, [label for label in row[f"feature_{task}"][: row["validation_end"]] if label > 1]] = 1
    return has.T @ has


def read_weights(folder):
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize("size, least", [("1GB", LEAST), ("20KB", LEAST + 1)], ids=["one file", "several files"])
def test_only_pairs_of_enough_customers_are_published(checkpoint, rows, data, extractor, tmp_path, size, least):
    if size == "20KB":
        model = MCMForMultiTaskRecommendation.from_pretrained(checkpoint)
        (checkpoint / "model.safetensors").unlink()
        model.save_pretrained(checkpoint, max_shard_size=size)
    before, number, rare_pairs = read_weights(checkpoint), 0, 0
    exposure = write_upload_folder(checkpoint, tmp_path / "out", data, least)
    after, same = read_weights(tmp_path / "out"), {*before}
    for place, task in enumerate(extractor.tasks):
        kinds = "neighbours", "weights", "counts", "attributes", "rarity"
        names = [*(f"scorer.tables.{place}.{kind}" for kind in kinds), f"label_values_{place}"]
        old_ids, old, counts, known, _, values = (before[name] for name in names)
        ids, new, left, told, rarity, left_values = (after[name] for name in names)
        first, shown_first = (values[f"scorer.tables.{place}.first"] for values in (before, after))
        same -= {*names, f"scorer.tables.{place}.first"}
        customers = customers_of_pairs(rows, task, old.shape[1])
        is_kept = customers[torch.arange(len(customers))[:, None], old_ids] >= least
        for listed, kept in ((old_ids, ids), (old, new)):
            for at in product(*map(range, listed.shape[:2])):  # and no gap tells of a pair
                hidden = (~is_kept[at]).sum().item()
                assert kept[at].tolist() == listed[at][is_kept[at]].tolist() + [0] * hidden
        gone, is_rare = ~is_kept & (old != 0), customers.diag() < least
        number += gone.sum().item()
        rare_pairs += (gone & (is_rare[:, None] | is_rare[old_ids])).sum().item()
        assert torch.equal(left, counts.masked_fill(is_rare, 0))
        assert torch.equal(shown_first[~is_rare], first[~is_rare])
        assert (shown_first[is_rare] == (first[~is_rare].min() if (~is_rare).any() else 0)).all()
        for shown, whole in ((told, known), (left_values, values)):
            assert torch.equal(shown, whole.masked_fill(is_rare[:, None], 0))
        shared = [(told[:, 0] == value).sum() for value in told[:, 0].clamp(min=1)]  # as if the rare ones were not
        expected = torch.tensor([len(told) / number for number in shared]).log() * (told[:, 0] > 0)
        assert rarity[:, 0].numpy() == pytest.approx(expected.numpy()) and not rarity[:, 1:].any()
    assert exposure.pairs == number > rare_pairs > 0  # two labels that many have may be a pair of one customer
    if least > SHARED_BY:  # nobody reaches it
        assert (after["model.forecaster.most"] > before["model.forecaster.most"]).all()
        same -= {"model.forecaster.most"}
    days = "model.forecaster.calendar.counts"
    is_few = (before[days][:, 0] > 0) & (before[days][:, 0] < least)
    assert torch.equal(after[days], before[days] * ~is_few[:, None])
    same -= {days}
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in same)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder with the data of a shop and a model of a label, the labels and what is known of days. Of the customers
    nine are of Bree, and nine have the plan aurum; an offensive is planned, of a size."""
    folder, log = tmp_path_factory.mktemp("shop"), make_log(customers=60)
    number = log["who"].str[1:].astype(int)
    log["city"] = np.where(number < 9, "Bree", "Rome")
    days = pd.DataFrame({"from": ["2017-05-01", "2018-01-02"], "to": ["2017-05-20", "2018-12-31"]})
    days = days.assign(name=["spring sale", "offensive"], value=[1.0, 37.75])
    columns = {"customer": "who", "time": "when", "visit": "basket", "tasks": ["item"]}
    columns["features"] = [{"name": name} for name in ("action", "item", "city")]
    model = CustomerModel.fit(log, columns, learn=False, known=days, folder=folder / "shop", disable_tqdm=True)
    who = [*model.customers]
    labels = pd.DataFrame({"customer": who * 2, "as_of": pd.Timestamp("2017-10-01")})  # two of each customer
    labels["as_of"] += pd.to_timedelta(np.arange(len(labels)) // len(who), unit="D")
    labels["stays"] = np.arange(len(labels)) % 3 > 0
    labels["plan"] = np.where(labels["customer"].str[1:].astype(int) % 7 == 0, "aurum", "basic")
    model.finetune(labels, "stays", folder / "tuned", validation_share=0)
    return folder, log, days


def test_nothing_that_few_customers_have_and_no_plan_is_in_any_byte(tuned, tmp_path):
    (folder, log, days), out = tuned, tmp_path / "out"
    checkpoint = folder / "tuned"
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["label_columns"]["plan"].keys() == {"[missing]", "aurum", "basic"} and "offensive" in config["known"]
    share = str(config["label_columns"]["plan"]["aurum"]).encode()
    secrets = [b"Bree", b"aurum", b"offensive", b"37.75", share]
    exposure = write_upload_folder(checkpoint, out, folder / "shop" / "data", 20)
    model_card(out, "org/x", checkpoint, exposure).save(out / "README.md")
    for path in out.iterdir():
        assert not [secret for secret in secrets if secret in path.read_bytes()], path
    assert exposure.rare["city"] == 1 and exposure.rare["label_columns"] == 2
    published = json.loads((out / "config.json").read_text())
    assert [*published["known"]] == ["spring sale"] and [*published["label_columns"]["plan"]] == ["[missing]"]
    before, after = (CustomerModel.load(place, log) for place in (checkpoint, out))
    is_rare = log.groupby("item")["who"].transform("nunique") < 20
    others = [*{*log["who"]}.difference(log.loc[is_rare | (log["city"] == "Bree"), "who"])]
    assert len(others) > 10
    pd.testing.assert_frame_equal(after.predict(others), before.predict(others))
    days = days[1:].assign(name="spring sale", value=0)  # of a plan nothing was learned; days of few visits are hidden
    found, expected = (model.forecast(others, days=[30], known=days) for model in (after, before))
    pd.testing.assert_series_equal(found["visits_30d"], expected["visits_30d"], rtol=0.05)


def test_the_script_says_how_many_pairs_it_hid(checkpoint, data, tmp_path, command):
    words = ["--model", checkpoint, "--repo_id", "org/x", "--min_customers", LEAST, "--dry_run", "--data", data]
    said = command("push_to_hub", *words, "--output_dir", tmp_path / "out")
    number = write_upload_folder(checkpoint, tmp_path / "again", data, LEAST).pairs
    assert number and f" values are hidden, and {number:,} weights of pairs of labels" in said
