# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of labels: what is read from them, what is refused, and that no label sees what came after its time."""

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import spearmanr

from modeling_mcm import MCMForCustomerPrediction
from modeling_mcm.data import load_prepared
from modeling_mcm.data.labels import LabelledCustomers, make_labels
from modeling_mcm.data.tables import read_table_file
from modeling_mcm.evaluation.metrics import mean_auc, measure_labels, rank_correlation
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.predictor_mcm import Predictor, Questions
from modeling_mcm.training.heads.customer import read_inputs


def make_table(values, time="2017-08-01", customers=None):
    customers = [f"c{place:02}" for place in range(len(values))] if customers is None else customers
    return pd.DataFrame({"customer_id": customers, "time": pd.Timestamp(time), "label": values})


def read(values, **options):
    return make_labels(make_table(values), **options)


# Values and options of `make_labels`; then the label's kind, classes and values
KINDS = """
[true, false, true, true] ; {} -> classes ; ['false', 'true'] ; [1, 0, 1, 1]
[0, 1, 1, 0] ; {} -> classes ; ['0', '1'] ; [0, 1, 1, 0]
[stays, leaves, stays, stays] ; {} -> classes ; [leaves, stays] ; [1, 0, 1, 1]
['1', '2', 3+, '1', '2', 3+] ; {} -> classes ; ['1', '2', 3+] ; [0, 1, 2, 0, 1, 2]
[10, 9, 9, 10, 2, 2] ; {kind: classes} -> classes ; ['2', '9', '10'] ; [2, 1, 1, 2, 0, 0]
[3, 4.5, 0, 1] ; {} -> number ; [] ; [3, 4.5, 0, 1]
[0, 1, 1, 0] ; {kind: number} -> number ; [] ; [0, 1, 1, 0]
""".strip().splitlines()


@pytest.mark.parametrize("line", KINDS)
def test_the_kind_of_a_label_follows_from_its_values(line):
    values, options, kind, classes, ids = map(yaml.safe_load, line.replace("->", ";").split(" ; "))
    labels = read(values, **options)
    assert (labels.kind, [*labels.classes], labels.values.tolist()) == (kind, classes, ids)
    config = labels.model_options()
    assert config["id2label"] == dict(enumerate(classes or ["label"]))
    assert config["problem_type"] == ("regression" if kind == "number" else "single_label_classification")


WRONG = r"""
{label: [1, 0, null, 1]}                 -> 'label' is missing in 1 of 4 labels, such as of customer
{time: [null, 2017-08-01, 2017-08-01, 2017-08-01]} -> 'time' is missing in 1 of 4 labels
{customer_id: [null, a, b, c]}           -> 'customer_id' is missing in 1 of 4 labels
{customer_id: [a, b, b, c]}              -> 'b' has two labels at 2017-08-01
{label: 1}                               -> is '1' in all 4 given labels: nothing can be learned
{label: 2.5}                             -> is 2.5 in all 4 given labels: nothing can be learned
{label: [1, b, 0, 1]}                    -> holds 1 \(int\) and 'b' \(str\); make them all text, booleans or numbers
{label: [true, 2, 3, 4]}                 -> holds True \(bool\) and 4 \(int\); make them all
{label: [[a], [b], [], []]}              -> holds \[\] \(list\); make them all
{label: [1.0, 2, 3, .inf]}               -> numbers that are not finite
{label: ['1', '2', n/a, '4']}            -> 4 classes in 4 labels.*a number with some text in it
{time: next week}                        -> column 'time': .*'next week'
{customer_id: [[a], [b], [c], [d]]}      -> column 'customer_id': .*\['a'\]
""".strip().splitlines()


@pytest.mark.parametrize("wrong", WRONG)
def test_tables_that_are_wrong_are_refused_with_a_reason(wrong):
    columns, message = wrong.split(" -> ")
    with pytest.raises(ValueError, match=message):
        make_labels(make_table([1, 0, 0, 1]).assign(**yaml.safe_load(columns)))


def test_columns_and_kinds_that_do_not_fit_are_refused():
    table = make_table(list("abca"))
    for given, options, message in (
        (table.rename(columns={"label": "churned"}), {}, "no column 'label'; they have customer_id, time, churned"),
        (table[:0], {}, "Label 'label' holds nothing"),
        (pd.concat([table, table[["time"]]], axis=1), {}, "several columns 'time'; rename"),
        (table, {"kind": "number"}, "holds text such as 'a', and a number was asked"),
        (table, {"kind": "yes"}, "`kind` is 'yes'; choose auto or classes"),
    ):
        with pytest.raises(ValueError, match=message):
            make_labels(given, **options)


COLUMNS = r"""
[2017-01-01, 2017-02-01, 2017-03-01, 2017-01-01] -> 'extra' holds datetime.*make .*, of a date the days from it
[[a], [b], [c], []] -> 'extra' holds .*\(list\); make them all
[null, null, null, null] -> 'extra' holds nothing; make them all
[a, b, c, d] -> 'extra' has 4 classes in 4 labels
[1, 2, 3, .inf] -> 'extra' holds numbers that are not finite
""".strip().splitlines()


@pytest.mark.parametrize("line", COLUMNS)
def test_a_further_column_that_is_no_feature_is_refused(line):
    values, message = line.split(" -> ")
    labels = make_labels(make_table([1, 0, 0, 1]).assign(extra=pd.Series(yaml.safe_load(values), dtype=object)))
    with pytest.raises(ValueError, match="Column " + message):
        labels.model_options()


def test_further_columns_are_described_by_the_labels_that_are_trained_on():
    columns = {"plan": ["a"] * 6 + ["b"] * 4, "age": [*range(9), None], 7: [True] * 10}
    labels = make_labels(make_table([0, 1] * 5).assign(**{str(name): values for name, values in columns.items()}))
    assert labels.of(range(8)).model_options()["label_columns"] == {
        "7": {"[missing]": 0, "true": 1},
        "age": {"": 3.5, "[missing]": 0},
        "plan": {"[missing]": 0, "a": 0.75},
    }


def test_a_file_is_read_by_its_ending_and_ids_stay_as_they_are_written(tmp_path):
    table = make_table(["x", "y", "x", "y"], customers=["007", "7", "08", "9"])
    table.to_csv(tmp_path / "labels.csv", index=False)
    table.to_parquet(tmp_path / "labels.parquet")
    for name in ("labels.csv", "labels.parquet"):
        labels = make_labels(read_table_file(tmp_path / name, ("customer_id", "time")))
        assert labels.customer_ids.tolist() == ["007", "7", "08", "9"]
        assert (labels.times == pd.Timestamp("2017-08-01").value // 10**9).all()
    with pytest.raises(FileNotFoundError, match="absent.csv is no file"):
        read_table_file(tmp_path / "absent.csv")


# A file, what it holds, and what is said of it
BAD_FILES = [
    ("labels.txt", b"x", "ends in '.txt', expected .parquet or .csv"),
    ("cut.parquet", b"PAR1", "cut.parquet can't be read"),
    ("wide.csv", "customer_id,time,label\n".encode("utf-16"), "wide.csv, line 1: a null byte.* if the file is UTF"),
    (
        "twice.csv",
        b"customer_id,time,label,x,x\na,2017-08-01,1,2,3\n",
        "has several columns 'x' among",
    ),
    ("long.csv", b"customer_id,time,label\na,2017-08-01,1\nb,2017-08-01,0,5\n", "long.csv, line 3: 4 fields"),
    (
        "empty.csv",
        b"customer_id,time,label\na,2017-08-01,x\n,2017-08-01,y\nNA,2017-08-01,NA\n",
        "Column 'customer_id' is missing in 1 of 3 labels.*an empty field is missing",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_file_of_labels_that_can_not_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make_labels(read_table_file(tmp_path / name, ("customer_id", "time")))


def test_all_labels_of_a_customer_are_on_one_side_and_classes_keep_their_shares():
    customers = np.repeat([f"c{place:03}" for place in range(100)], 2)
    table = make_table(np.repeat(np.arange(100) % 10 == 0, 2), customers=customers)
    table["time"] += pd.to_timedelta(np.arange(200) % 2, "D")
    labels = make_labels(table)
    train, held_out = labels.split(0.2, seed=1)
    assert not set(customers[train]) & set(customers[held_out]) and len(train) + len(held_out) == 200
    assert (len(held_out), labels.values[held_out].sum()) == (40, 4)
    again = labels.split(0.2, seed=1)
    assert (again[1] == held_out).all() and (labels.split(0.2, seed=2)[1] != held_out).any()
    assert len(labels.split(0.0, seed=1)[1]) == 0


@pytest.fixture(scope="module")
def rows(prepared):
    return load_prepared(prepared)


def test_customers_and_times_that_the_log_does_not_know_are_refused_or_left_out_and_counted(rows):
    table = make_table([0, 1, 1, 0], customers=["c00", "nobody", "c02", "c03"])
    with pytest.raises(ValueError, match="'nobody'.*1 customers of the labels are not in the prepared .*--on_unknown"):
        LabelledCustomers(rows, make_labels(table))
    kept = LabelledCustomers(rows, make_labels(table), "drop")
    assert kept.dropped == 1 and kept.labels.customer_ids.tolist() == ["c00", "c02", "c03"]
    assert kept.labels.values.tolist() == [0, 1, 0]
    early = make_labels(make_table([0, 1, 1, 0], "2016-05-01"))
    with pytest.raises(ValueError, match="4 labels are of times before any event.*2016-05-01T00:00:00 of 'c00'"):
        LabelledCustomers(rows, early)
    with pytest.raises(ValueError, match="No label is left: none of the 4"):
        LabelledCustomers(rows, early, "drop")
    with pytest.raises(ValueError, match="4 labels are of times that the log does not reach: it ends on 2017"):
        LabelledCustomers(rows, make_labels(make_table([0, 1, 1, 0], "2018-02-01")), "drop")


def test_what_a_head_reads_are_the_events_before_the_time_at_that_time(rows, extractor, tiny_config, event_log):
    labels = make_labels(make_table([0.5, 1.5, 2.5]))
    known = {"state_size": 12, "summed_features": extractor.summed_features, "forecast_days": [7.0]}
    model = MCMForCustomerPrediction(tiny_config(extended=True, **known)).eval()
    inputs, table = read_inputs(model, extractor, LabelledCustomers(rows, labels))
    sizes = model.config.label_sizes.items()
    for place, state in enumerate(inputs.numbers):
        name, time = labels.customer_ids[place], labels.times[place]
        known = event_log[(event_log["who"] == name) & (event_log["when"] < pd.Timestamp(time, unit="s"))]
        row = extractor.encode({"events": known})
        days = (time - row["times"][[-1, 0]]) / SECONDS_PER_DAY
        plain = [*days, len(row["times"]), row["visits"][-1] + 1]
        for feature in extractor._encoding.event_features:
            plain.append(len(np.unique(row[f"feature_{feature}"])))
        assert table[place][: len(plain)].tolist() == pytest.approx(np.log1p(plain).tolist())
        found = Predictor(model, extractor).ask([row], Questions(float(time), embedding=True))["embedding"][0]
        assert state.numpy() == pytest.approx(found.numpy(), abs=1e-5)
        had = [np.bincount(row[f"feature_{task}"], minlength=size) * (np.arange(size) > 1) for task, size in sizes]
        counts = np.log1p(np.concatenate(had))
        assert inputs.labels.toarray()[place] == pytest.approx(counts / np.linalg.norm(counts))


def test_metrics_are_those_of_the_books():
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 3, 60), generator.normal(size=(60, 3))
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn not installed")
    expected = sklearn.roc_auc_score(labels, chances, multi_class="ovr")
    assert mean_auc(labels, scores) == pytest.approx(expected)
    assert np.isnan(mean_auc(np.zeros(5, int), scores[:5]))
    rounded = np.round(scores[:, 0], 1)
    assert rank_correlation(labels, rounded) == pytest.approx(spearmanr(labels, rounded)[0])
    assert np.isnan(rank_correlation([1, 1], [1, 2]))
    found = measure_labels(scores, labels, is_number=False)
    assert found == {"auc": pytest.approx(expected), "accuracy": np.mean(scores.argmax(1) == labels)}
    assert measure_labels(scores[:, :1], labels, True)["mae"] == pytest.approx(np.abs(scores[:, 0] - labels).mean())


def test_numbers_that_begin_with_0_stay_text_in_a_csv_table(tmp_path):
    (tmp_path / "columns.csv").write_text("customer_id,code,age,vip,gap\n1,00,0.5,true,\n2,10,,false,\n")
    table = read_table_file(tmp_path / "columns.csv", ["customer_id"])
    assert table["customer_id"].tolist() == ["1", "2"] and table["code"].tolist() == ["00", "10"]
    assert table["age"][0] == 0.5 and table["vip"].tolist() == [True, False] and table["gap"].isna().all()
