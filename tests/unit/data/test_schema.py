# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The event schema: reads back what it writes, and says what is wrong with a file."""

import pytest
import yaml
from in_process import ROOT

from modeling_mcm import MCMFeatureExtractor
from modeling_mcm.data import EventSchema
from modeling_mcm.data.schema import example_values

SCHEMAS = [
    *sorted((ROOT / "configuration" / "schemas").glob("*.yaml")),
    *sorted((ROOT / "modeling_mcm").rglob("*.yaml")),
]
MINIMAL = """
customer: user
time: at
token_type: kind
features: [{name: token_type, column: kind}, {name: item}]
tasks: [item]
cutoffs: {validation: 2024-03-01, test: 2024-04-01}
"""


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_shipped_schemas_read_back_equal(path):
    schema = EventSchema.from_yaml(path)
    assert EventSchema.from_dict(schema.to_dict()) == schema
    assert schema.name == path.stem


EXAMPLES = [
    "{}",
    "{target_token_types: [buy], end_of_visit: end, visit: visit_day}",
    "{token_type: null, features: [{name: item}], end_of_visit: end, visit: basket}",
    "{more: [{name: price, kind: numeric, factor: number}], amount: price, time_zone: '+05:30'}",
    "{more: [{name: tags, max_items: 2}, {name: genres, separator: '|', max_items: 2}], tasks: [tags]}",
    "{more: [{name: path, separator: ., levels: [top, low]}], profile: [{name: likes, max_items: 2}]}",
    "{time: null, order: place, cutoffs: leave_one_out, profile: [{name: age, kind: numeric}, {name: town}]}",
]


def change(changes):
    schema = yaml.safe_load(MINIMAL) | yaml.safe_load(changes)
    schema["features"] = schema["features"] + schema.pop("more", []) if "more" in schema else schema["features"]
    return schema


@pytest.mark.parametrize("known", [["end", "a.b", "buy"], ["[hidden 1]"], []])
@pytest.mark.parametrize("changes", EXAMPLES)
def test_every_example_of_an_event_and_a_profile_can_be_encoded(changes, known):
    schema = EventSchema.from_dict(change(changes))
    vocabularies = {name: [*known] for name, spec in schema.specs.items() if spec.kind == "categorical"}
    token = schema.token_feature.name
    own = [*schema.reserved_token_types, *([] if schema.token_type else ["event"])]
    vocabularies[token] = [*own, *(name for name in known if name not in own)]
    extractor = MCMFeatureExtractor.from_schema(
        schema, vocabularies, {s: [] for s in ("price", "age") if s in schema.specs}
    )
    event = {schema.order_column: "2024-03-01T10:00" if schema.time else 1} | example_values(extractor)
    row = extractor.encode({"events": [event], "profile": example_values(extractor, profile=True)})
    assert set(event) <= {*schema.event_columns} and len(row["times"]) >= 1
    assert (
        known != ["end", "a.b", "buy"] or "more" not in changes or row[f"feature_{schema.features[-1].name}"][0] != 1
    )


# Keys that are changed; `more` is added to the features. Then what is said.
MISTAKES = r"""
{custmer: user}                                          -> did you mean 'customer'
{customer: 7}                                            -> `customer` is 7
{features: item}                                         -> `features`.*list
{features: [item]}                                       -> Entry 0 of `features`
{features: [{column: item}]}                             -> no `name`
{features: [{name: item}]}                               -> column: kind
{profile: [{name: item}]}                                -> named 'item'
{profile: [{name: h, kind: hour}]}                       -> 'h' of the profile has kind 'hour'
{tasks: []}                                              -> `tasks` is empty
{tasks: [items]}                                         -> 'items'
{cutoffs: {validation: '2024-13-01', test: 2024-04-01}}  -> 2024-13-01
{cutoffs: {validation: 2024-03-01}}                      -> no `test`
{cutoffs: {validation: 2024-05-01, test: 2024-04-01}}    -> is after test
{cutoffs: {validation: 1709251200, test: 2024-04-01}}    -> `cutoffs: validation`: found 1709251200 .int., exp
{cutoffs: leave_two_out}                                 -> 'leave_two_out'.*leave_one_out
{time_zone: Mars/Olympus}                                -> Mars/Olympus.*or an offset such as
{time_zone: '+5:30'}                                     -> `time_zone` is '\+5:30'; give an IANA name
{time_zone: '+25:00'}                                    -> `time_zone` is '\+25:00'
{amount: item}                                           -> `amount` is 'item', which is no numeric event feature
{end_of_visit: history_start}                            -> another meaning
{min_history: true}                                      -> `min_history` is True; give a whole number of at least
{max_events_per_customer: 10000000000}                   -> 10000000000; .* at most 100,000,000
{max_events: 30, max_events_per_customer: 29}            -> is 29; give a whole number of at least 30
{target_token_types: [null]}                             -> `target_token_types` is None; give
{delimiter: '||'}                                        -> `delimiter` is '\|\|'
{delimiter: ''}                                          -> `delimiter` is ''
{delimiter: "\n"}                                        -> `delimiter` is '\\n'
{delimiter: §}                                           -> `delimiter` is '§'
{quote: <>}                                              -> `quote` is '<>'
{on_bad_row: skip}                                       -> `on_bad_row` is 'skip'
{more: [{name: brand, mincount: 2}]}                     -> did you mean 'min_count'
{more: [{name: h, kind: hour, column: c}]}               -> `column` is for
{more: [{name: p, bins: 2}]}                             -> `bins`
{more: [{name: p, kind: numeric}], tasks: [p]}           -> 'p'
{more: [{name: p, kind: numeric, max_values: 3}]}        -> `max_values` is for categorical features
{more: [{name: brand, factor: n}]}                       -> `factor` is for numeric
{more: [{name: g, separator: '|'}]}                      -> `separator` alone.*max_items.*levels
{more: [{name: g, separator: '|', max_items: 3, levels: [a]}]} -> `max_items` or `levels` alone
{more: [{name: g, separator: ., item: 1, level: 1}]}     -> remove `item` or `level`
{more: [{name: g, levels: [a, b]}]}                      -> no `separator`
{more: [{name: g, separator: ., levels: a}]}             -> `levels` is 'a'; write.*list
{more: [{name: g, separator: '', max_items: 3}]}         -> separator` is ''
{more: [{name: g, separator: '|', max_items: 3, kind: numeric}]} -> `separator` is for categorical features
{more: [{name: g, separator: '|', max_items: 1000000}]}  -> is 1000000; give a whole number of at least 1 and at
{more: [{name: g, max_item: 2, max_items: null}]}        -> did you mean 'max_items'
{more: [{name: g, max_items: 2}, {name: g_2}]}           -> named 'g_2'.*NAME_2
{more: [{name: g, max_items: 2}, {name: f, column: g, item: 2}]} -> Two features read `item` 2
{more: [{name: g, max_items: 2}, {name: f, column: g, item: 4, min_count: 2}]} -> 'g' and 'f' share.*`min_count` is 1 a
{token_type: null}                                       -> no `token_type`.*rename
{token_type: null, target_token_types: [buy]}            -> `target_token_types` chooses.*add `token_type
{token_type: null, features: [{name: item}], tasks: [token_type, item]} -> the same for every event
{token_type: null, features: [{name: item}], end_of_visit: event} -> another meaning
{time: null}                                             -> no `time`.*`order`
{order: place}                                           -> `time` and `order`.*keep one
{time: null, order: 1}                                   -> `order` is 1
{time: null, order: place}                               -> can't be dates; write `cutoffs: leave_one_out`
{time: null, order: place, more: [{name: h, kind: hour}]} -> 'h' has kind 'hour'.*remove
{time: null, order: rows, on_duplicate: drop}            -> rows at two places are two events
""".strip().splitlines()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_fix(mistake):
    changes, message = mistake.rsplit(" -> ", 1)
    with pytest.raises(ValueError, match=message):
        EventSchema.from_dict(change(changes))


FAULTS = """
customer: other                                       -> line 8, column 1 is not valid YAML: the key 'customer'
name: caf\xe9                                            -> is no text in UTF-8
visit: [session                                       -> schema.yaml, line .* is not valid YAML
name: !!python/object/apply:os.system [true]          -> is not valid YAML: could not
profile: &all [*all]                                  -> schema.yaml: Entry 0 of `profile` is
name: 2024-02-30                                      -> is not valid YAML: day is out of range for month
""".strip().splitlines()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_file_is_named(tmp_path, fault):
    line, message = fault.split(" -> ")
    path = tmp_path / "schema.yaml"
    path.write_text(MINIMAL + line.strip(), encoding="latin-1")
    with pytest.raises(ValueError, match=message) as raised:
        EventSchema.from_yaml(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    path.write_text("\ufeff" + MINIMAL, encoding="utf-8")  # a byte order mark
    assert EventSchema.from_yaml(path).customer == "user"
