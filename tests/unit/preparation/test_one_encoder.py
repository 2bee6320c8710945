# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Preparation makes ids in SQL and the feature extractor in numpy: on random logs they are the same ids."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
import torch
from synthetic_log import check_row, load_extractor, read_rows

from modeling_mcm import MCMFeatureExtractor
from modeling_mcm.data import EventSchema, read_schema
from modeling_mcm.preparation import prepare

BERLIN = "Europe/Berlin"
FEATURES = [{"name": "action"}, {"name": "item", "min_count": 2}, {"name": "genres", "separator": "|", "max_items": 3}]
FEATURES += [{"name": "price", "kind": "numeric", "bins": 5}, {"name": "paid", "kind": "numeric", "bins": 3}]
FEATURES += [{"name": "product", "kind": "numeric", "column": "price", "factor": "paid", "bins": 4}]
FEATURES += [{"name": "tags", "max_items": 2}, {"name": "path", "separator": ".", "levels": ["department", "aisle"]}]
FEATURES += [{"name": "hour", "kind": "hour"}, {"name": "weekday", "kind": "weekday"}]
FEATURES += [{"name": "gap", "kind": "days_since_visit", "bins": 4}]
PROFILE = [{"name": "home", "separator": "/", "levels": ["country", "town"]}, {"name": "likes", "max_items": 2}]
PROFILE += [{"name": "income", "kind": "numeric", "bins": 3}]
SCHEMA = {
    "customer": "who",
    "time": "when",
    "visit": "basket",
    "token_type": "action",
    "features": FEATURES,
    "profile": PROFILE,
    "amount": "product",
    "tasks": ["item", "genres", "aisle", "action"],
    "target_token_types": ["buy"],
    "end_of_visit": "close",
    "cutoffs": {"validation": "2024-04-15", "test": "2024-11-15"},
    "min_history": 2,
    "time_zone": BERLIN,
    "on_duplicate": "drop",
}
# Moments at which a zone's clock changes, midnight and the hours around 1970 and around the first year of the zone.
CHANGES = ["1900-01-01", "1916-04-30T22:00", "1969-12-31", "1970-01-01", "2024-03-31T01:00", "2024-10-27T01:00"]
TEXTS = ["tea", " tea", "tea ", "Tea", "green tea", "чай", "茶", "é", "e\u0301", "😀", "\ufffd", "", "'", '"', "%"]
TEXTS += ["nan", "NULL", "None", "true", "1", "1.0", "01", "a|b", "a.b", "\t", "x\ny"]
VALUES = {
    "text": (pa.string(), TEXTS),
    "float": (pa.float64(), [1.0, -0.0, 0.1, 1e20, 2.0**53, 2.0**53 - 1, 1e-7, 1 / 3, float("inf"), float("nan")]),
    "single": (pa.float32(), [float(np.float32(number)) for number in (1, 0.1, 1e20, 1e-7, 16777217)]),
    "whole": (pa.int64(), [0, -1, 7, 2**53 + 1, 2**62]),
    "boolean": (pa.bool_(), [True, False]),
}
PARTS = ["a", "b", "a b", "", "é", "茶", "0.5", "|", "."]
OFFSETS = ["", "Z", "+02:00", "-05:30", " UTC", "+0100"]


def moment(generator):
    """A random moment: of 2024, or within two hours of a change."""
    if generator.random() < 0.6:
        return datetime(2024, 1, 1) + timedelta(hours=int(generator.integers(366 * 24)))
    change, shift = generator.choice(CHANGES), generator.integers(-7200, 7200)
    return datetime.fromisoformat(str(change)) + timedelta(seconds=int(shift))


def times(generator, kind):
    """A function that gives random times of a kind: text, moments with a zone, or times without one."""

    def of_text():
        return moment(generator).isoformat(*[" T"[generator.integers(2)]]) + str(generator.choice(OFFSETS))

    def of_zone():
        shift = timezone(timedelta(minutes=int(generator.integers(-600, 600))))
        return moment(generator).replace(tzinfo=UTC).astimezone(shift) + timedelta(microseconds=999_999)

    return {"text": of_text, "zone": of_zone, "plain": lambda: moment(generator) + timedelta(microseconds=1)}[kind]


TIME_TYPES = {"text": pa.string(), "zone": pa.timestamp("us", "UTC"), "plain": pa.timestamp("us")}


class RandomLog:
    """Random events and profiles of 30 customers, as Python values; `edges` are numbers at the borders of bins."""

    def __init__(self, seed, time_kind, value_kind, edges=(), customers=30):
        self.generator, self.value_kind = np.random.default_rng(seed), value_kind
        self.time_kind, self.edges, self.customers = time_kind, list(edges), customers
        time = times(self.generator, time_kind)
        instants = [time() for _ in range(60)]
        self.events = [self.event(instants, time) for _ in range(customers * 12)]
        repeated = np.random.default_rng(seed).choice(self.events, customers * 2)
        self.events += [event | {"paid": event["paid"] and f" {event['paid']}"} for event in repeated]
        some = self.generator.permutation(customers)[: customers * 2 // 3].tolist()
        self.profiles = [self.profile(f"customer {place}") for place in some]

    def choose(self, values, missing=0.15):
        return None if self.generator.random() < missing else values[self.generator.integers(len(values))]

    def several(self, values, most=5):
        return [values[place] for place in self.generator.integers(len(values), size=self.generator.integers(most))]

    def number(self):
        usual = [round(float(self.generator.normal()), 1), float("nan"), float("inf"), float("-inf"), -0.0, 1e39]
        at_edges = [float(f) for e in self.edges for f in (e, np.nextafter(e, np.inf), np.nextafter(e, -np.inf))]
        return self.choose([*usual[:1] * 12, *usual, *at_edges])

    def paid(self):
        number = self.number()
        return number if number is None else self.choose([repr(number), f" {number!r} ", f"{number:+e}"], 0)

    def event(self, instants, time):
        joined = {"genres": "|", "path": "."}
        return {
            "who": f"customer {self.generator.integers(self.customers)}",
            "when": self.choose(instants, 0) if self.generator.random() < 0.7 else time(),
            "basket": self.choose(["b", "10", "9", "茶", "", "B"], 0.5),
            "action": self.choose(["buy", "view", "Buy"], 0.05),
            "item": self.choose(VALUES[self.value_kind][1]),
            "price": self.number(),
            "paid": self.paid(),
            **{name: self.choose([mark.join(self.several(PARTS))]) for name, mark in joined.items()},
            "tags": self.choose([[self.choose(PARTS) for _ in range(self.generator.integers(4))]]),
        }

    def profile(self, customer):
        values = {"who": customer, "home": self.choose(["/".join(self.several(["de", "ulm", "", "é"]))])}
        return values | {"income": self.number(), "likes": self.choose([self.several([3, 4, 5])])}

    def tables(self):
        text = dict.fromkeys(("who", "basket", "action", "paid", "genres", "path"), pa.string())
        kinds = {"when": TIME_TYPES[self.time_kind], "item": VALUES[self.value_kind][0], "price": pa.float64()}
        kinds |= text | {"tags": pa.list_(pa.string())}
        ordered = pa.schema([(name, kinds[name]) for name in self.events[0]])
        people = {"who": pa.string(), "home": pa.string(), "income": pa.float64(), "likes": pa.list_(pa.int64())}
        return pa.Table.from_pylist(self.events, ordered), pa.Table.from_pylist(self.profiles, pa.schema(people))


def check_same_ids(folder, log, extractor):
    """Rows of preparation are those of the feature extractor; returns the ids that occur by column."""
    profiles = {profile["who"]: profile for profile in log.profiles}
    rows, occurring = read_rows(folder.parent, folder.name), {}
    assert set(rows) == {event["who"] for event in log.events}
    for customer, row in rows.items():
        events = [event for event in log.events if event["who"] == customer]
        encoded = extractor.encode({"customer_id": customer, "events": events, "profile": profiles.get(customer)})
        check_row(row, encoded, customer)
        for column, ids in encoded.items():
            if column.startswith(("feature_", "profile_")):
                occurring.setdefault(column, set()).update(np.atleast_1d(ids).tolist())
    return occurring


def test_times_as_categories_have_the_same_ids(tmp_path):
    moments = [datetime(2024, 1, 1, 10, 0, 0, 250_000 * (k % 3)) for k in range(30)]
    kinds = {"zone": pa.timestamp("us", "Europe/Berlin"), "plain": pa.timestamp("ns"), "day": pa.date32()}
    log = {name: pa.array(moments).cast("timestamp[us]").cast(kind, safe=False) for name, kind in kinds.items()}
    log |= {"who": [str(k % 3) for k in range(30)], "when": [datetime(2024, 1, 1 + k) for k in range(30)]}
    cutoffs = {"validation": "2024-01-20", "test": "2024-01-25"}
    schema = {"customer": "who", "time": "when", "features": [{"name": name} for name in kinds], "tasks": ["zone"]}
    prepare(pa.table(log), EventSchema.from_dict(schema | {"cutoffs": cutoffs}), tmp_path / "data")
    rows, extractor = read_rows(tmp_path, "data"), load_extractor(tmp_path, "data")
    for events in (pa.table(log).to_pylist(), pa.table(log).to_pandas().to_dict("records")):
        for customer, row in rows.items():
            encoded = extractor.encode({"events": [event for event in events if event["who"] == customer]})
            for name in kinds:
                assert encoded[f"feature_{name}"].tolist() == list(row[f"feature_{name}"])


def test_a_visit_over_a_cutoff_is_one_where_both_parts_are_read(tmp_path):
    generator, events = np.random.default_rng(0), []
    for customer in range(20):  # a visit a day, some of which go on after midnight
        for day in range(30):
            start = datetime(2024, 4, 1 if day < 15 else 2) + timedelta(
                days=day, hours=float(generator.uniform(14, 22))
            )
            for minutes in np.cumsum(generator.integers(1, 200, generator.integers(1, 5))).tolist():
                event = {"who": f"c{customer}", "when": start + timedelta(minutes=minutes), "basket": day}
                kind = {"action": ("view", "buy")[generator.integers(2)], "item": f"i{generator.integers(5)}"}
                events.append(event | kind)
    features = [each for each in FEATURES if each["name"] in ("action", "item", "hour", "gap")]
    cutoffs = {"validation": "2024-04-11", "test": "2024-04-24"}
    schema = SCHEMA | {"features": features, "profile": [], "tasks": ["item"], "cutoffs": cutoffs}
    schema |= {"time_zone": "UTC", "amount": None}
    prepare(pa.Table.from_pylist(events), EventSchema.from_dict(schema), tmp_path / "data")
    rows, extractor, cut = read_rows(tmp_path, "data"), load_extractor(tmp_path, "data"), 0
    for customer, row in rows.items():
        own = [event for event in events if event["who"] == customer]
        row = {name: np.array(value) if isinstance(value, list) else value for name, value in row.items()}
        whole = extractor.encode({"events": own})
        for time, end in [
            (cutoffs["validation"], "validation_end"),
            (cutoffs["test"], "test_end"),
            ("2025-01-01", ""),
        ]:
            before = [event for event in own if event["when"] < datetime.fromisoformat(time)]
            part = {name: value[: row.get(end)] for name, value in row.items() if isinstance(value, np.ndarray)}
            expected, second = extractor({"events": before}), int(np.datetime64(time, "s").astype(int)) - 1
            at_time = [extractor.pad([each], as_of=[second]) for each in (row, whole)]
            for found in (extractor.pad([part]), *at_time):
                assert all(torch.equal(found[name], value) for name, value in expected.items()), (customer, time)
            cut += len(part["times"]) < len(row["times"]) and before[-1]["basket"] == own[len(before)]["basket"]
    assert cut > 5


TYPES = [("text", "text"), ("zone", "float"), ("plain", "single"), ("text", "whole"), ("zone", "boolean")]


@pytest.mark.parametrize("seed", range(5))
def test_sql_and_numpy_give_the_same_ids(tmp_path, seed):
    time_kind, value_kind = TYPES[seed]
    log = RandomLog(seed, time_kind, value_kind)
    events, profiles = log.tables()
    prepare(events, EventSchema.from_dict(SCHEMA), tmp_path / "fitted", profile=profiles, rows_per_shard=7)
    extractor = load_extractor(tmp_path, "fitted")

    # Another log read by the checkpoint, as `run_predict --events` does: no cutoff makes two of a visit, as in the
    # feature extractor. It has numbers at the borders of the bins and, since some values are dropped, unknown ones.
    edges = [edge for feature in ("price", "paid", "income") for edge in extractor.bins[feature]]
    vocabularies = {name: values[(len(values) + 2) // 3 :] for name, values in extractor.vocabularies.items()}
    vocabularies["action"] = extractor.vocabularies["action"]
    stored = extractor.to_dict() | {"vocabularies": vocabularies, "bins": extractor.bins}
    stored.pop("feature_extractor_type")
    known = MCMFeatureExtractor(**stored)
    other = RandomLog(seed + 100, time_kind, value_kind, edges)
    events, profiles = other.tables()
    prepare(events, read_schema(known), tmp_path / "scored", profile=profiles, feature_extractor=known)
    occurring = check_same_ids(tmp_path / "scored", other, known)
    for column in (
        "feature_item",
        "feature_genres",
        "feature_tags",
        "feature_aisle",
        "profile_country",
        "profile_likes",
    ):
        assert {0, 1} < occurring[column] and max(occurring[column]) > 1, column
    for feature, size in zip(known.feature_names, known.vocabulary_sizes, strict=True):
        if feature in known.bins and feature not in ("gap", "income"):
            assert occurring[f"feature_{feature}"] == {0, *range(2, size)}, feature
    assert occurring["feature_weekday"] == set(range(2, 9))
