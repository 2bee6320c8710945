# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCMFeatureExtractor: ids worked out by hand, every form of input, and every mistake."""

from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from handmade_extractor import (
    BUY,
    CLICK,
    CLOSE,
    CUSTOMER,
    FEATURES,
    HISTORY,
    MISSING,
    MONDAY,
    SETTINGS,
    START,
    UNKNOWN,
    event,
    make,
    seconds,
)

from modeling_mcm.events_mcm import to_text


@pytest.fixture
def extractor():
    return make()


def test_history_has_the_expected_ids(extractor):
    row = extractor.encode(CUSTOMER)
    expected = {
        "visits": [0, 1, 1, 1, 2, 3, 3],
        "feature_type": [CLICK, CLICK, BUY, CLOSE, CLICK, CLICK, CLICK],
        "feature_items": [3, 4, 2, MISSING, MISSING, MISSING, UNKNOWN],
        "feature_a.b": [MISSING, 3, 3, MISSING, MISSING, 2, 4],
        "feature_hour": [11, 12, 12, 12, 12, 2, 2],
        "feature_weekday": [2, 2, 2, 2, 2, 4, 4],
        # 1 h after visit 0, 10 min after the start of visit 1, 38 h 20 min after visit 2
        "feature_gap": [MISSING, 2, 2, 2, 2, 4, 4],
        "task_items": [0, 0, 2, 0, 0, 0, 0],
        "task_type": [0, 0, BUY, 0, 0, 0, 0],
    }
    values = row.pop("value_a.b")
    assert values.dtype == np.float32 and values.tolist() == np.float32([0, 0.1, 2.4, 0, 0, 0, 2.5]).tolist()
    for key, ids in expected.items():
        assert row[key].dtype == np.int32 and row[key].tolist() == ids, key
    clock = [f"{MONDAY}T{at}:00" for at in ("09:00", "10:00", "10:20", "10:20", "10:10")]
    assert row["times"].dtype == np.int64
    assert row["times"].tolist() == [seconds(at) for at in [*clock, *["2017-01-04T00:30:00"] * 2]]
    assert (row["customer_id"], row["profile_age"], row["profile_Income"]) == ("c1", 3, 3)
    assert set(row) == {*expected, "times", "customer_id", "label_columns", "profile_age", "profile_Income"}


def test_model_input_starts_with_the_profile(extractor):
    batch, row = extractor(CUSTOMER), extractor.encode(CUSTOMER)
    assert extractor.vocabulary_sizes == [2 + size for size in (4, 3, 3, 24, 7, 3, 2, 2)]
    assert batch["input_ids"][0, 0].tolist() == [START, 0, 0, 0, 0, 0, 3, 3]
    for place, feature in enumerate(extractor.feature_names[:6]):
        assert batch["input_ids"][0, 1:, place].tolist() == row[f"feature_{feature}"].tolist()
    assert not batch["input_ids"][0, 1:, 6:].any()
    days = np.maximum.accumulate(row["times"] - row["times"][0]) / 86400  # visit 2 begins before visit 1 ends
    assert torch.equal(batch["event_times"][0], torch.tensor([0.0, *days], dtype=torch.float32))
    assert batch["visit_ids"][0].tolist() == [0, *(row["visits"] + 1)]
    assert list(batch) == extractor.model_input_names


def test_without_a_visit_column_events_of_one_time_are_one_visit():
    extractor = make(visit=None, end_of_visit=None)
    events = [event("2017-01-02T10:00:00", "buy"), event("2017-01-02T10:00:00"), event("2017-01-02T10:00:01")]
    row = extractor.encode({"events": events})
    assert row["visits"].tolist() == [0, 0, 1] and row["feature_type"].tolist() == [BUY, CLICK, CLICK]


def test_visits_of_one_start_are_ordered_by_key_and_those_without_key_come_first(extractor):
    events = [event(basket="b"), event(basket=10), event(basket=9.0), event()]
    events = [{**each, "price": price} for each, price in zip(events, [9, 2, 1, 0], strict=True)]
    row = extractor.encode({"events": events})
    assert row["visits"].tolist() == [0, 1, 2, 3] and row["feature_a.b"].tolist() == [2, 3, 3, 4]
    assert row["feature_gap"].tolist() == [MISSING, 2, 2, 2]


def test_without_target_token_types_every_event_is_a_target():
    row = make(target_token_types=()).encode({"events": [event(item="tea")]})
    assert row["task_type"].tolist() == [CLICK, 0] and row["feature_type"].tolist() == [CLICK, CLOSE]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("01", "01"), (1, "1"), (1.0, "1"), (np.int8(1), "1"), (np.float32(1), "1"), (Decimal("1.00"), "1"),
        (-0.0, "0"), (0.1, "0.1"), (2.0**53, repr(2.0**53)), (10**20, str(10**20)), (True, "true"),
        (np.False_, "false"),
        (date(2017, 1, 2), "2017-01-02"), (None, None), (float("nan"), None), (pd.NA, None),
        (pd.NaT, None), (Decimal("sNaN"), None),
    ],
)  # fmt: skip
def test_values_are_converted_to_text(value, text):
    assert to_text(value) == text


@pytest.mark.parametrize("as_type", [list, np.array, lambda values: list(map(str, values))])
def test_number_on_an_edge_is_in_the_bin_above(extractor, as_type):
    prices = [-1e300, np.nextafter(0.1, 0), 0.1, np.nextafter(2.5, 0), 2.5, 1e300, np.nan]
    columns = {"when": [f"{MONDAY}T10:00:0{k}" for k in range(7)], "action": ["click"] * 7, "price": as_type(prices)}
    row = extractor.encode({"events": columns})
    assert row["feature_a.b"].tolist() == [2, 2, 3, 3, 4, 4, MISSING]


def test_forms_of_events_are_equal(extractor):
    frame = pd.DataFrame(HISTORY)
    parsed = frame.assign(when=pd.to_datetime(frame["when"]), basket=frame["basket"].astype("category"))
    arrays = {column: parsed[column].to_numpy() for column in parsed}
    columns = {column: list(frame[column]) for column in frame}
    for events in (frame, parsed, parsed.convert_dtypes(), columns, arrays, HISTORY[::-1]):
        np.testing.assert_equal(extractor.encode({**CUSTOMER, "events": events}), extractor.encode(CUSTOMER))


def test_columns_too_many_or_too_few_give_one_warning(extractor, monkeypatch):
    frame = pd.DataFrame(HISTORY)
    with pytest.warns(UserWarning, match="'shop', 'till'") as warned:
        row = extractor.encode({**CUSTOMER, "events": frame.assign(shop=1, till=2)})
    np.testing.assert_equal(row, extractor.encode(CUSTOMER))
    assert len(warned) == 1
    said: list = []
    monkeypatch.setattr("modeling_mcm.events_mcm.logger.warning_once", said.append)
    extractor.encode({"events": frame[["when", "action", "item"]]})
    assert len(said) == 1 and "column 'basket' or 'price': without the visit" in said[0]


@pytest.mark.parametrize(
    "events", [[], {}, {"when": [], "action": []}, pd.DataFrame(), pd.DataFrame(columns=["when"])]
)
def test_customer_without_history_has_the_start_row(extractor, events):
    batch = extractor({"events": events, "profile": {"age": "young"}})
    assert batch["input_ids"].tolist() == [[[START, 0, 0, 0, 0, 0, 2, 0]]]
    assert batch["attention_mask"].tolist() == [[1]] and batch["event_times"].tolist() == [[0.0]]


def test_long_history_keeps_all_events(extractor):
    """More than `max_events`, which the encoder reads."""
    events = [event(f"2017-01-{day:02d}", "click", price=day % 3) for day in range(1, 21)]
    whole, row = extractor({"events": events}), extractor.encode({"events": events})
    assert extractor.max_events == 8
    assert whole["input_ids"][0, :, 2].tolist() == [MISSING, *row["feature_a.b"]]
    assert whole["event_times"][0].tolist() == [0.0, *range(20)]


def test_times_ascend_where_visits_overlap(extractor):
    row = extractor.encode({"events": [event(f"2017-01-0{day}", "click") for day in (1, 3, 5, 6)]})
    row["times"][1:3] = row["times"][2:0:-1].copy()  # the second visit ends after the third one
    batch = extractor.pad([row, extractor.encode({"events": []})])
    assert batch["event_times"].tolist() == [[0.0, 0.0, 4.0, 4.0, 5.0], [0.0] * 5]


def test_batching_pads_with_zeros(extractor):
    customers = [{"events": []}, CUSTOMER, {"events": HISTORY[:2]}]
    batch = extractor(customers)
    for place, customer in enumerate(customers):
        single = extractor(customer)
        length = single["input_ids"].shape[1]
        for key, value in single.items():
            assert torch.equal(batch[key][place, :length], value[0])
            assert not batch[key][place, length:].any()


def test_masked_next_event_is_unknown(extractor):
    rows = [extractor.encode(customer) for customer in (CUSTOMER, {"events": []})]
    plain, masked = (extractor.pad(rows, return_tensors="np", mask_next=masked) for masked in (False, True))
    for place, row in enumerate(rows):
        end = 1 + len(row["times"])
        assert all(np.array_equal(masked[key][place, :end], plain[key][place, :end]) for key in plain)
        assert masked["input_ids"][place, end].tolist() == [UNKNOWN] * 6 + [0, 0]
        assert masked["attention_mask"][place].sum() == end + 1
        assert masked["visit_ids"][place, end] == plain["visit_ids"][place].max() + 1


def test_own_ids_are_those_of_no_value_of_the_log(extractor):
    own = extractor.decode_labels("type", extractor.own_ids("type"))
    assert own == ["[missing]", "[unknown]", *extractor.schema.reserved_token_types]
    assert extractor.own_ids("items") == [MISSING, UNKNOWN]


def test_labels_to_ids_and_back(extractor):
    assert extractor.label_ids("items", ["tea", 7, "coffee", None]).tolist() == [3, 2, UNKNOWN, MISSING]
    assert extractor.decode_labels("items", torch.tensor([3, 2, 1, 0])) == ["tea", "7", "[unknown]", "[missing]"]
    with pytest.raises(ValueError, match="'items' has no label id 5; ids run from 0 to 4"):
        extractor.decode_labels("items", [5])
    for call in (extractor.decode_labels, extractor.label_ids):
        with pytest.raises(ValueError, match="'age', expected one of items, type"):
            call("age", [2])
    with pytest.raises(ValueError, match="Task 'items': found 'tea', expected a list"):
        extractor.label_ids("items", "tea")


# What is changed of a customer with events at 10:00; then what is said.
MISTAKES = r"""
{events: [{itme: tea}]}                    -> columns of the events.*did you mean 'item'.*who, when
{events: [{}, {when: null}]}               -> column 'when'.*no time \(None\).*leave the event out
{events: {action: [click]}}                -> column 'when'.*no time
{events: [{when: 02/01/2017}]}             -> column 'when'.*'02/01/2017'.*ISO 8601
{events: [{when: 1483351200}]}             -> 'when'.*\(int\).*ISO 8601
{events: [{item: [tea]}]}                  -> column 'item'.*\['tea'\] \(list\).*convert it
{events: [{price: cheap}]}                 -> column 'price'.*'cheap'.*expected a number
{events: [{price: .inf}]}                  -> column 'price'.*found inf.*expected a number
{events: [{price: '1_000'}]}               -> column 'price'.*'1_000'.*expected a number
{events: [{action: close}]}                -> column 'action'.*'close'.*rename the token type
{events: [{who: d}, {who: e}]}             -> column 'who'.*d, e.*dict of its own
{events: [{who: d}], customer_id: c}       -> Customer 'c'.*column 'who'.*c, d
{events: [{who: [d]}]}                     -> column 'who'.*\['d'\].*convert it
{events: [{who: d}, {}]}                   -> column 'who'.*None, d
{events: {when: ['2017-01-02'], action: []}} -> different lengths, {'when': 1, 'action': 0}
{events: {when: '2017-01-02'}}             -> column 'when'.*expected a list or array
{events: [buy]}                            -> event 0 is 'buy'.*expected a dict
{events: buy}                              -> events are str.*list of dicts
{profile: {}}                              -> no `events`.*empty list
{event: []}                                -> 'event'.*did you mean 'events'
[{}]                                       -> found list.*dict with `events`
{events: [], profile: {Age: 3}}            -> profile.*'Age'.*did you mean 'age'
{events: [], profile: {Income: much}}      -> profile: column 'Income'.*'much'
{events: [], profile: [3]}                 -> profile is list.*expected a dict
""".strip().splitlines()
ARRAYS = [
    ({"item": [np.timedelta64(5, "D")]}, "column 'item'.*timedelta64.*convert"),
    ({"price": np.array([5], "m8[s]")}, "'price'.*a number"),
    ({"price": np.ones((1, 2))}, r"column 'price'.*\(1, 2\)"),
]


@pytest.mark.parametrize("mistake", [*MISTAKES, *ARRAYS])
def test_a_mistake_is_named_with_customer_and_column(extractor, mistake):
    customer, message = mistake.rsplit(" -> ", 1) if isinstance(mistake, str) else mistake
    customer = yaml.safe_load(customer) if isinstance(customer, str) else {"events": {"when": [MONDAY]} | customer}
    if "events" in customer and isinstance(customer["events"], list):
        customer["events"] = [event(**each) if isinstance(each, dict) else each for each in customer["events"]]
    with pytest.raises(ValueError, match=f"(?s){message}") as raised:
        extractor([{"events": []}, customer])
    assert "Customer 'c'" in str(raised.value) or "Customer 1 of the list" in str(raised.value)


def test_an_event_without_any_feature_is_refused():
    extractor = make(features=[f for f in FEATURES if f.get("kind") not in ("hour", "weekday")])
    with pytest.raises(ValueError, match=f"the event at {MONDAY}.* has no value in any feature; leave it out"):
        extractor.encode({"events": [{"when": MONDAY}]})


def test_bad_rows_are_refused(extractor):
    row = extractor.encode(CUSTOMER)
    with pytest.raises(ValueError, match="no 'feature_items'; prepare the data with the schema of this checkpoint"):
        extractor.pad([{key: value for key, value in row.items() if key != "feature_items"}])
    with pytest.raises(ValueError, match="'items' has ids from 0 to 9, this checkpoint has 5"):
        extractor.pad([{**row, "feature_items": row["feature_items"] * 0 + [0, 1, 2, 3, 4, 5, 9]}])
    with pytest.raises(ValueError, match="7 times but 6 values of 'feature_items'"):
        extractor.pad([{**row, "feature_items": row["feature_items"][1:]}])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token_type": "event"}, "token type column 'event'"),
        ({"end_of_visit": "checkout"}, "no 'checkout'"),
        (
            {"vocabularies": {**SETTINGS["vocabularies"], "age": ["old", "old"]}},
            "'age' is not a list of distinct texts",
        ),
        ({"bins": {**SETTINGS["bins"], "gap": [1.0, 0.5]}}, "'gap' are not finite and strictly increasing"),
        ({"bins": {}}, "Found bins of"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)
