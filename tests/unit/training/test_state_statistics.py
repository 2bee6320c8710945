# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The statistics of the customer state: of times that know what came before, and of nothing after the cutoff."""

import numpy as np
import pandas as pd
import pytest
import torch
from choices import PAPER, TINY, from_data

from modeling_mcm import MCMConfig, MCMFeatureExtractor, MCMModel
from modeling_mcm.data import load_prepared
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.dataset import FEATURE_EXTRACTOR_FOLDER
from modeling_mcm.state_mcm import GAPS
from modeling_mcm.training.fitting import describe_shop
from modeling_mcm.training.state import count_at_times, fit_state

CUTOFF = pd.Timestamp("2017-10-01").timestamp()


def make_model(extractor, **changes):
    torch.manual_seed(0)
    choices = from_data(extractor) | TINY | PAPER | {"augmentation": "all_prefixes", "state_size": 12}
    return MCMModel(MCMConfig(**choices | {"summed_features": extractor.summed_features} | changes))


def read(folder):
    rows = load_prepared(str(folder))
    ends = np.asarray(rows["validation_end"])
    return PreparedRows(rows, np.flatnonzero(ends > 1), ends[ends > 1])


def fitted(extractor, rows, cutoff=CUTOFF, **options):
    model = make_model(extractor)
    fit_state(model, extractor, rows, cutoff, **options)
    return model.state


@pytest.fixture(scope="module")
def rows(prepared):
    return read(prepared)


def test_a_fitted_state_is_standardised_counts_and_directions(extractor, rows):
    """Days since the last event and the like, visits, sums and events; half of a small state at most."""
    assert len(make_model(extractor, state_size=64).state.plain_counts) == 16
    model = make_model(extractor)
    fit_state(model, extractor, rows, CUTOFF)
    state, read, generator = model.state, model.config.input_features, np.random.default_rng(0)
    counts = count_at_times(state, extractor, rows.__getitems__([0, 3]), read, CUTOFF, generator).flatten(0, 1)
    z, plain = state.standardised(counts.clone()), len(state.plain_counts)
    assert plain == 6 and z.abs().mean() < 2
    found = state(counts)
    torch.testing.assert_close(found[:, :plain], z[:, state.plain_counts])
    torch.testing.assert_close(found[:, 0], z[:, state.num_few - 4])  # days since the last event
    assert found[:, plain:].std(0).min() > 0
    assert len(set(state.names)) == 12 and state.names[:5] == [*GAPS, "visits_7d"]


def test_nothing_after_the_cutoff_is_read(event_log, prepare_log, rows, extractor):
    """Other and fewer events after the validation cutoff, some visits later than before: the same state."""
    changed = event_log.copy()
    late = changed["when"] >= pd.Timestamp("2017-10-01")
    changed.loc[late, "item"] = "item 03"
    changed.loc[late, "price"] = 1000.0
    changed = changed[~late | (np.arange(len(changed)) % 3 == 0)]
    state, other = fitted(extractor, rows), fitted(extractor, read(prepare_log(changed)))
    for name, value in state.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)
    assert late.any()


def test_the_same_seed_gives_the_same_state(extractor, rows):
    directions = [fitted(extractor, rows, None, seed=seed).directions for seed in (0, 0, 1)]
    assert torch.equal(directions[0], directions[1]) and not torch.equal(directions[0], directions[2])


def test_a_log_without_prices_and_with_one_token_type(event_log, prepare_log):
    log = event_log.assign(action="buy").drop(columns="price")
    features = [{"name": "type", "column": "action"}, {"name": "items", "column": "item"}]
    folder = prepare_log(log, features=features, amount=None, tasks=["items"])
    extractor = MCMFeatureExtractor.from_pretrained(str(folder / FEATURE_EXTRACTOR_FOLDER))
    assert not extractor.summed_features and extractor.vocabularies["type"][0] == "buy"
    assert not {"view", "coupon"} & set(extractor.vocabularies["type"])
    model = make_model(extractor)
    fit_state(model, extractor, read(folder), CUTOFF)
    describe_shop(model, extractor, read(folder), CUTOFF)
    assert model.customer_forecasts.names()[0] == "visits_7d"
