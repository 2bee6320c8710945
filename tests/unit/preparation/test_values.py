# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Values of numeric features and the time `as_of`: from the log to what a model reads, alike on both ways."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import torch
from choices import PAPER, from_data
from folders import update_json
from handmade_extractor import event, make, seconds
from synthetic_log import check_rows, load_extractor, make_log, run, schema_with

from modeling_mcm import MCMConfig
from modeling_mcm.data import load_prepared
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.events_mcm import LARGEST_VALUE

DAY = 86_400
START = datetime(2024, 1, 1)
FIRST = seconds(START)
ODD = [-0.0, 1e-60, -1e-60, 1e39, -1e39, LARGEST_VALUE, np.nextafter(LARGEST_VALUE, np.inf), 1 / 3]


@pytest.fixture
def extractor():
    return make()


def customer(days, **others):
    """A customer who gets money back at the start of some days, as much as the number of the day."""
    events = [event(START + timedelta(days=day), "buy", item="tea", price=-day) for day in days]
    return {"events": events, **others}


@pytest.fixture
def warnings_of_mcm(monkeypatch):
    """What is warned of once, each message as often as it is asked for."""
    said = []
    monkeypatch.setattr("modeling_mcm.inputs_mcm.logger.warning_once", said.append)
    return said


def test_values_are_those_of_the_log_whatever_the_order_of_its_rows(tmp_path):
    log, generator = make_log(), np.random.default_rng(0)
    log["at"] = log["at"].dt.floor("D")  # many events of one time, which values then order
    log["price"] = log["price"].mask(generator.random(len(log)) < 0.3, generator.choice([*ODD, np.nan], len(log)))
    log["item"] = log["item"].mask(generator.random(len(log)) < 0.6)
    schema = schema_with(profile=[])
    made = run(tmp_path, log, schema, rows_per_shard=5)
    shuffled = run(tmp_path, log.sample(frac=1, random_state=0), schema, name="shuffled", rows_per_shard=5)
    assert made.shards == shuffled.shards and made.counts == shuffled.counts
    values = np.concatenate([row["value_price"] for row in check_rows(tmp_path, log).values()])
    expected = log["price"][log["price"].abs() <= LARGEST_VALUE].to_numpy(np.float32)
    assert sorted(values[values != 0]) == sorted(expected[expected != 0].tolist())
    assert np.float32(LARGEST_VALUE) in values and not np.signbit(values[values == 0]).any()


def test_a_model_gets_values_beside_ids(extractor):
    batch = extractor([customer([0, 3]), customer([1])])
    assert list(batch) == extractor.model_input_names
    values = batch["event_values"]
    assert values.dtype == torch.float32 and values.shape == (2, 5, 1)
    assert values[..., 0].tolist() == [[0, 0, 0, -3, 0], [0, -1, 0, 0, 0]]
    rows = [extractor.encode(customer(range(9)))]
    masked = extractor.pad(rows, mask_next=True)["event_values"][0]
    assert masked[:, 0].tolist() == [0, *(value for day in range(9) for value in (-day, 0)), 0]


def test_now_is_in_days_since_the_first_event(extractor, warnings_of_mcm):
    rows = [extractor.encode(each) for each in (customer([0, 3]), customer([1, 2, 8]), customer([]))]
    as_of = [FIRST + 3 * DAY, FIRST + 20.5 * DAY, FIRST]
    batch = extractor.pad(rows, as_of=as_of)
    assert batch["as_of"].dtype == torch.float32 and batch["as_of"].tolist() == [3.0, 19.5, 0.0]
    plain = extractor.pad(rows)
    assert list(batch) == [*plain, "as_of"] and all(torch.equal(batch[name], plain[name]) for name in plain)
    assert extractor.pad(rows, as_of=np.array(as_of))["as_of"].tolist() == [3.0, 19.5, 0.0]
    assert not warnings_of_mcm


def test_events_later_than_now_are_left_out(extractor, warnings_of_mcm):
    days = [0, 1, 2, 5, 6, 7, 8]
    rows = [extractor.encode(customer(days)), extractor.encode(customer([4]))]
    batch = extractor.pad(rows, as_of=[FIRST + 5 * DAY, FIRST + 3 * DAY])
    earlier = extractor.pad([extractor.encode(customer(days[:4])), extractor.encode(customer([]))])
    assert all(torch.equal(batch[name], earlier[name]) for name in earlier)
    assert batch["as_of"].tolist() == [5.0, 0.0]
    assert len(warnings_of_mcm) == 1 and "later than `as_of`" in warnings_of_mcm[0]


@pytest.mark.parametrize("as_of", [float("nan"), -np.inf, None, "2024-01-01"])
def test_a_row_whose_time_is_none_is_named(extractor, as_of):
    rows = [extractor.encode(customer([1])), extractor.encode(customer([1], customer_id="ann"))]
    with pytest.raises(ValueError, match="Row 1 .customer 'ann'.: `as_of` is .*, expected a time in seconds"):
        extractor.pad(rows, as_of=[FIRST, as_of])
    with pytest.raises(ValueError, match="1 times `as_of` of 2 rows"):
        extractor.pad(rows, as_of=[FIRST])


NOON = START + timedelta(days=4.5)
TIMES = [NOON, pd.Timestamp(NOON), np.datetime64(NOON), FIRST + 4.5 * DAY, np.int64(FIRST + 9 * DAY // 2)]
TIMES += [NOON.replace(tzinfo=UTC), "2024-01-05T14:00:00+02:00"]


def test_as_of_is_read_as_times_of_the_log_are(extractor):
    customers = [customer([0, 4]), customer([1])]
    for as_of in TIMES:
        assert extractor(customers, as_of=as_of)["as_of"].tolist() == [4.5, 3.5]
    berlin = make(time_zone="Europe/Berlin")
    assert berlin(customer([0]), as_of="2024-01-01T23:00:00Z")["as_of"].tolist() == [1.0]
    for as_of, words in (
        ("soon", "`as_of`: found 'soon', which is no time"),
        (True, "`as_of`: found True"),
        ([START] * 2, "`as_of`: found "),
    ):
        with pytest.raises(ValueError, match=words):
            extractor(customers, as_of=as_of)


@pytest.mark.parametrize("mode", ["train", "evaluate"])
@pytest.mark.parametrize("augmentation", ["random_prefix", "all_prefixes", "masked_lm"])
def test_values_stay_with_their_events_in_every_batch(tmp_path, mode, augmentation):
    log = make_log()
    log["price"] = log["item"].fillna(99) + 1  # so that an event's value tells what it is
    run(tmp_path, log, schema_with(profile=[], max_events=20, amount="price"))
    extractor = load_extractor(tmp_path)
    rows = PreparedRows(load_prepared(tmp_path / "out"))
    choices = PAPER | {"augmentation": augmentation} | ({"readout": "last"} if augmentation == "masked_lm" else {})
    config = MCMConfig(
        **from_data(extractor), input_features=["type"], **choices
    )  # which no event without an item has
    collator = MCMCollator(extractor, config, mode)
    batch = collator(rows.__getitems__(list(range(len(rows)))))
    ids, values = batch["input_ids"], batch["event_values"][..., 0]
    texts = ["", "", *extractor.vocabularies["type"]]
    items = ids[..., extractor.feature_names.index("type")]
    known = items >= 2
    assert known.sum() > 50
    assert [float(texts[item]) + 1 for item in items[known]] == values[known].tolist()
    hidden = (ids == 1).all(dim=-1)
    assert hidden.any() == (augmentation == "masked_lm") and not values[hidden].any()
    assert not values[batch["attention_mask"] == 0].any() and not values[:, 0].any()


def test_data_of_another_format_are_refused(tmp_path):
    run(tmp_path, schema=schema_with(profile=[]))
    path = tmp_path / "out" / "manifest.json"
    for changes, message in (
        ({"shards": [{"rows": 5}]}, "cannot be read .it does not have the digest"),
        ({"format_version": 1}, "format 1 was found and .*prepare the data again"),
    ):
        update_json(path, digest=None, **changes)
        with pytest.raises(ValueError, match=message):
            load_prepared(tmp_path / "out")
    with pytest.raises(FileExistsError, match="can't be reused .*--overwrite"):
        run(tmp_path, schema=schema_with(profile=[]), reuse=True)
