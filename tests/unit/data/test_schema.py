# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The event schema: reads back what it writes, and says what is wrong with a file."""

from pathlib import Path

import pytest

from modeling_mcm.data import EventSchema

ROOT = Path(__file__).parents[3]
SCHEMAS = [
    *sorted((ROOT / "configuration" / "schemas").glob("*.yaml")),
    *sorted((ROOT / "modeling_mcm").rglob("*.yaml")),
]
TOKEN = {"name": "token_type", "column": "kind"}
MINIMAL = {
    "customer": "user",
    "time": "at",
    "token_type": "kind",
    "features": [TOKEN, {"name": "item"}],
    "tasks": ["item"],
    "cutoffs": {"validation": "2024-03-01", "test": "2024-04-01"},
}


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_shipped_schemas_read_back_equal(path):
    schema = EventSchema.from_yaml(path)
    assert EventSchema.from_dict(schema.to_dict()) == schema
    assert schema.name == path.stem


MISTAKES = {
    "unknown key": ({"custmer": "user"}, "did you mean 'customer'"),
    "customer is no text": ({"customer": 7}, "`customer` is 7"),
    "features is no list": ({"features": "item"}, "`features`.*list"),
    "feature is no mapping": ({"features": ["item"]}, "Entry 0 of `features`"),
    "unknown feature key": ({"features": [{"name": "item", "mincount": 2}]}, "did you mean 'min_count'"),
    "feature without name": ({"features": [{"column": "item"}]}, "no `name`"),
    "column of a derived feature": (
        {"features": [{"name": "h", "kind": "hour", "column": "c"}]},
        "`column` is for",
    ),
    "bins of a category": ({"features": [{"name": "p", "bins": 2}]}, "`bins`"),
    "name twice": ({"features": [TOKEN, {"name": "item"}], "profile": [{"name": "item"}]}, "named 'item'"),
    "derived profile": ({"profile": [{"name": "h", "kind": "hour"}]}, "'h' of the profile has kind 'hour'"),
    "no token type": ({"features": [{"name": "item"}]}, "column: kind"),
    "no task": ({"tasks": []}, "`tasks` is empty"),
    "unknown task": ({"tasks": ["items"]}, "'items'"),
    "numeric task": ({"features": [TOKEN, {"name": "p", "kind": "numeric"}], "tasks": ["p"]}, "'p'"),
    "no such date": ({"cutoffs": {"validation": "2024-13-01", "test": "2024-04-01"}}, "2024-13-01"),
    "one cutoff": ({"cutoffs": {"validation": "2024-03-01"}}, "no `test`"),
    "cutoffs in the wrong order": ({"cutoffs": {"validation": "2024-05-01", "test": "2024-04-01"}}, "not before test"),
    "cutoff with a zone": ({"cutoffs": {"validation": "2024-03-01T00:00:00Z", "test": "2024-04-01"}}, "time zone"),
    "no such zone": ({"time_zone": "Mars/Olympus"}, "Mars/Olympus"),
    "a category as amount": ({"amount": "item"}, "`amount` is 'item', which is no numeric event feature"),
    "factor of a category": ({"features": [TOKEN, {"name": "item", "factor": "n"}]}, "`factor` is for numeric"),
    "reserved end of visit": ({"end_of_visit": "history_start"}, "another meaning"),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_named_with_its_fix(change, message):
    with pytest.raises(ValueError, match=message):
        EventSchema.from_dict({**MINIMAL, **change})
