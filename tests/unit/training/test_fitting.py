# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What labels decide, the statistics of the customer state, and what the forecaster is told of a shop: of times that
know what came before, and of nothing after the cutoff."""

import numpy as np
import pandas as pd
import pytest
import torch
from other_device import other_device

from modeling_mcm.data import PreparedData, load_prepared
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.evaluation.cases import read_history
from modeling_mcm.state_mcm import GAPS
from modeling_mcm.training.counting import count_customers
from modeling_mcm.training.forecaster.describe import describe_shop
from modeling_mcm.training.labels import fill_label_values
from modeling_mcm.training.scorer.counts import LabelCounts
from modeling_mcm.training.state import count_at_times, fit_state, pad_past

CUTOFF = pd.Timestamp("2017-10-01").timestamp()


def read(folder):
    rows = load_prepared(str(folder))
    return PreparedRows(rows, np.flatnonzero(np.asarray(rows["validation_end"]) > 1))


@pytest.fixture(scope="module")
def rows(prepared):
    return read(prepared)


@pytest.fixture
def make(tiny_model, extractor):
    """A function that makes a tiny model with a state."""

    def make(**changes):
        return tiny_model(extended=True, **{"state_size": 12, "summed_features": extractor.summed_features} | changes)

    return make


@pytest.fixture
def fitted(make, extractor):
    """A function that gives a state, fitted to rows."""

    def fit(rows, cutoff=CUTOFF, **options):
        model = make().model
        fit_state(model, extractor, rows, cutoff, **options)
        return model.state

    return fit


def test_labels_decide_the_features_that_never_change_with_them(prepared, make):
    model, rows = make(label_features=["aisle", "type"]), load_prepared(prepared)
    decided = fill_label_values(model, rows)
    assert "aisle" in decided["items"] and "aisle" not in decided["aisle"]  # an item has one aisle in the log
    usual = {}
    for row in rows:
        for label, aisle in zip(row["task_items"][: row["validation_end"]], row["feature_aisle"], strict=False):
            if label >= 2 and aisle >= 2:
                usual[label] = aisle
    found = model.label_values(model.config.tasks.index("items"))
    assert {label: int(found[label, 0]) for label in usual} == usual and found[:2, 0].tolist() == [0, 0]
    tables = dict(zip(model.config.features, model.model.embeddings.events.feature_tables, strict=True))
    label, (aisle, kind) = next(iter(usual)), found[next(iter(usual))]
    parts = [tables["items"].weight[label], tables["aisle"].weight[aisle]]
    parts += [tables["type"].weight[kind]] if kind > 0 else []
    torch.testing.assert_close(model.label_embeddings("items")[label], sum(parts) / len(parts))
    names = np.arange(400)  # of labels: too many values for an attribute, and too few of others
    values = [names, names // 20, names // 2]
    table = LabelCounts(read_history(rows, "items"), 400, np.zeros(len(rows), int), values).make_tables()
    assert table.attributes[:, 0].tolist() == [0] * 4 + (names // 2 - 1)[4:].tolist() and table.totals[3] == 198
    torch.testing.assert_close(table.rarity, (table.attributes > 0) * float(np.log(200)))


def test_a_fitted_state_is_standardised_counts_and_directions(extractor, rows, make, fitted):
    """Days since the last event and the like, visits, sums and events; half of a small state at most."""
    assert len(make(state_size=64).model.state.plain_counts) == 16
    state, shares = fitted(rows), np.random.default_rng(0).random((2, 3))
    counts = count_at_times(state, extractor, rows.__getitems__([0, 3]), None, CUTOFF, shares).flatten(0, 1)
    z, plain = state.standardised(counts.clone()), len(state.plain_counts)
    assert plain == 6 and z.abs().mean() < 2
    found = state(counts)
    torch.testing.assert_close(found[:, :plain], z[:, state.plain_counts])
    torch.testing.assert_close(found[:, 0], z[:, state.num_few - 4])  # days since the last event
    assert found[:, plain:].std(0).min() > 0
    assert len(set(state.names)) == 12 and state.names[:5] == [*GAPS, "visits_7d"]


def test_nothing_after_the_cutoff_is_read(event_log, prepare_log, rows, make, fitted):
    """Other and fewer events after the validation cutoff, some visits later than before: the same statistics."""
    changed = event_log.copy()
    late = changed["when"] >= pd.Timestamp("2017-10-01")
    changed.loc[late, ["item", "aisle", "price"]] = ["item 03", "aisle 1", 1000.0]
    decided, values = [], []
    for known in (rows, read(prepare_log(changed[~late | (np.arange(len(changed)) % 3 == 0)]))):
        model = make(label_features=["aisle", "type"])
        decided.append(fill_label_values(model, known.rows))
        of_labels = [model.label_values(place) for place in range(len(model.config.tasks))]
        values.append((of_labels, fitted(known).state_dict()))
    torch.testing.assert_close(*values)
    assert decided[0] == decided[1] and late.any()


def test_days_count_from_the_first_event_that_is_read(extractor, rows):
    row = dict(rows[0])
    row["feature_items"] = np.where(np.arange(len(row["times"])) < 3, 0, row["feature_items"])  # the first is unread
    (times, unread), batch = pad_past(extractor, [row, row | {"feature_items": 0 * row["feature_items"]}], ["items"])
    days = batch["event_times"][0][batch["attention_mask"][0].bool()][1:]
    np.testing.assert_allclose(days, (times - times[0]) / 86_400, rtol=1e-5)
    assert times[0] > row["times"][0] == unread[0]


def test_the_same_seed_gives_the_same_state(rows, fitted):
    directions = [fitted(rows, None, seed=seed).directions for seed in (0, 0, 1)]
    assert torch.equal(directions[0], directions[1]) and not torch.equal(directions[0], directions[2])


def test_a_log_without_prices_and_with_one_token_type(event_log, prepare_log, make):
    log = event_log.assign(action="buy").drop(columns="price")
    features = [{"name": "type", "column": "action"}, {"name": "items", "column": "item"}]
    data = PreparedData(prepare_log(log, features=features, amount=None, tasks=["items"]))
    extractor = data.extractor
    assert not extractor.summed_features and extractor.vocabularies["type"][0] == "buy"
    assert not {"view", "coupon"} & set(extractor.vocabularies["type"])
    sizes = {"features": extractor.feature_names, "vocabulary_sizes": extractor.vocabulary_sizes}
    model = make(tasks=["items"], summed_features=[], **sizes)
    count_customers(model, data, seed=0)
    assert model.model.customer_forecasts.names()[0] == "visits_7d"


def test_a_model_on_a_gpu_is_described_as_on_the_cpu(prepared, make, inputs):
    data, answers = PreparedData(prepared), []
    with other_device() as device:
        for place in (torch.device("cpu"), device):
            model = make().to(place)
            count_customers(model, data, seed=0)
            answers.append(model.model(**{name: value.to(place) for name, value in inputs.items()}))
        torch.testing.assert_close(answers[1].forecasts["visits_30d"].cpu(), answers[0].forecasts["visits_30d"])
        torch.testing.assert_close(answers[1].pooler_output.cpu(), answers[0].pooler_output)


def test_the_shop_is_described_by_its_target_visits(rows, make, extractor):
    """Views are none; the statistics are those of the visits that the log's targets make."""
    model = make(forecast_days=[7, 365, 3650]).model
    describe_shop(model, extractor, rows, CUTOFF)
    assert model.config.target_types == {"type": [extractor.vocabularies["type"].index("buy") + 2]}
    numbers = []
    for row in rows:
        known = slice(row["validation_end"])
        numbers.append(len(np.unique(row["visits"][known][row["task_items"][known] > 0])))
    repeats = np.mean([number - 1 for number in numbers if number])
    torch.testing.assert_close(model.forecaster.statistics[2].expm1().item(), repeats, rtol=0.01, atol=0.0)
    assert model.config.forecast_days == [7, 365]  # at most twice the period from the first visits of 2017
    assert 250 < model.forecaster.window < 280


def test_a_customer_who_came_once_describes_the_shop(event_log, prepare_log, make):
    """Where most come once, a customer with one visit is not expected back soon. Without them all had come again."""
    once = event_log[event_log["who"].isin(["c01", "c02"])].groupby("who").head(1)
    many = [once.assign(who=once["who"] + f"{copy:03}", when="2017-02-01", action="buy") for copy in range(150)]
    data = PreparedData(prepare_log(pd.concat([event_log, *many]).astype({"when": event_log["when"].dtype})))
    model = make(vocabulary_sizes=data.extractor.vocabulary_sizes)
    count_customers(model, data, seed=0)
    assert model.model.forecaster.statistics[1] > 0.8  # share of customers with one visit
    row = data.extractor.encode({"events": many[0].iloc[:1].to_dict("list")}, "it")
    told = model.model(**data.extractor.pad([row], as_of=[round(CUTOFF)])).forecasts
    assert told["visit_probability_30d"] < 0.05 and told["visits_90d"] < 0.1


def test_a_log_without_times_has_no_forecasts(rows, make, extractor):
    model = make(forecast_days=[7, 365]).model
    extractor.order = "place"
    describe_shop(model, extractor, rows, CUTOFF)
    assert model.forecaster is None and model.config.forecast_days == []
