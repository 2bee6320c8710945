# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What labels decide, and what the forecaster is told of a shop."""

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from modeling_mcm.data import PreparedData, load_prepared
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.training.fitting import describe_customers, describe_shop, fill_label_values


def with_one_aisle_later(rows):
    """The rows, whose events from the validation cutoff on are all of one aisle."""
    table = rows.with_format("arrow")[:]
    place = table.column_names.index("feature_aisle")
    changed = [
        [*aisles[:end], *[2] * (len(aisles) - end)]
        for aisles, end in zip(table["feature_aisle"].to_pylist(), table["validation_end"].to_pylist(), strict=True)
    ]
    return datasets.Dataset(table.set_column(place, "feature_aisle", pa.array(changed, pa.list_(pa.int32()))))


def test_nothing_after_the_cutoff_changes_what_labels_decide(prepared, tiny_model):
    rows, found = load_prepared(prepared), []
    for each in (rows, with_one_aisle_later(rows)):
        model = tiny_model(extended=True, label_features=["aisle", "type"])
        decided = fill_label_values(model, each)
        found.append((decided, [model.label_values(place).tolist() for place in range(len(model.config.tasks))]))
    assert found[0] == found[1]


def test_labels_decide_the_features_that_never_change_with_them(prepared, tiny_model):
    model = tiny_model(extended=True, label_features=["aisle", "type"])
    rows = load_prepared(prepared)
    decided = fill_label_values(model, rows)
    place = model.config.tasks.index("items")
    assert "aisle" in decided["items"] and "aisle" not in decided["aisle"]  # an item has one aisle in the log
    usual = {}
    for row in rows:
        for label, aisle in zip(row["task_items"][: row["validation_end"]], row["feature_aisle"], strict=False):
            if label >= 2 and aisle >= 2:
                usual[label] = aisle
    found = model.label_values(place)[:, 0]
    assert {label: int(found[label]) for label in usual} == usual and found[:2].tolist() == [0, 0]
    tables = dict(zip(model.config.features, model.model.embeddings.events.feature_tables, strict=True))
    label, (aisle, kind) = next(iter(usual)), model.label_values(place)[next(iter(usual))]
    parts = [tables["items"].weight[label], tables["aisle"].weight[aisle]]
    parts += [tables["type"].weight[kind]] if kind > 0 else []
    torch.testing.assert_close(model.label_embeddings("items")[label], sum(parts) / len(parts))


CUTOFF = pd.Timestamp("2017-10-01").timestamp()


def describe(folder, model, extractor):
    rows = load_prepared(folder)
    known = PreparedRows(rows, np.flatnonzero(np.asarray(rows["validation_end"]) > 0))
    describe_shop(model, extractor, known, CUTOFF)
    return known


@pytest.fixture
def shop_model(tiny_model, extractor):
    """A function that makes a tiny model with a state, for a shop."""

    def make(**changes):
        return tiny_model(extended=True, state_size=12, summed_features=extractor.summed_features, **changes).model

    return make


def test_the_shop_is_described_by_its_target_visits(prepared, shop_model, extractor):
    """Views are none; the statistics are those of the visits that the log's targets make."""
    model = shop_model(forecast_days=[7, 365, 3650])
    rows = describe(prepared, model, extractor)
    purchase = extractor.vocabularies["type"].index("buy") + 2
    assert model.config.target_types == {"type": [purchase]}
    numbers = []
    for row in rows:
        read = slice(max(0, row["validation_end"] - extractor.max_events + 1), row["validation_end"])
        numbers.append(len(np.unique(row["visits"][read][row["task_items"][read] > 0])))
    repeats = np.mean([number - 1 for number in numbers if number])
    torch.testing.assert_close(model.forecaster.statistics[2].expm1().item(), repeats, rtol=0.01, atol=0.0)
    assert model.config.forecast_days == [7, 365]  # at most twice the period from the first visits of 2017
    assert 250 < model.forecaster.window < 280


def test_a_customer_who_came_once_describes_the_shop(event_log, prepare_log, tiny_model, extractor):
    """Where most come once, a customer with one visit is not expected back soon. Without them all had come again."""
    once = event_log[event_log["who"].isin(["c01", "c02"])].groupby("who").head(1)
    many = [once.assign(who=once["who"] + f"{copy:03}", when="2017-02-01", action="buy") for copy in range(150)]
    folder = prepare_log(pd.concat([event_log, *many]).astype({"when": event_log["when"].dtype}))
    data = PreparedData(folder)
    choices = {"state_size": 12, "summed_features": data.extractor.summed_features}
    model = tiny_model(extended=True, vocabulary_sizes=data.extractor.vocabulary_sizes, **choices)
    describe_customers(model, data, seed=0)
    assert model.model.forecaster.statistics[1] > 0.8  # share of customers with one visit
    row = data.extractor.encode({"events": many[0].iloc[:1].to_dict("list")}, "it")
    told = model.model(**data.extractor.pad([row], as_of=[round(CUTOFF)])).forecasts
    assert told["visit_probability_30d"] < 0.05 and told["visits_90d"] < 0.1


def test_a_log_without_times_has_no_forecasts(prepared, shop_model, extractor):
    model = shop_model(forecast_days=[7, 365])
    extractor.order = "place"
    describe(prepared, model, extractor)
    assert model.forecaster is None and model.config.forecast_days == []
