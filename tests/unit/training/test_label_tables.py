# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A table of labels before a fine-tuning: early labels are told, and one value alone among the held-out is refused."""

import pandas as pd
import pytest

from modeling_mcm.data import PreparedData
from modeling_mcm.data.labels import make_labels
from modeling_mcm.training import labels as module


@pytest.fixture
def read(prepared, tmp_path, monkeypatch):
    """A function that reads labels at times, of the first customers of the log; gives what was warned of."""

    def run(*times):
        said = []
        monkeypatch.setattr(module.logger, "warning", said.append)
        customers = [f"c{place:02}" for place in range(len(times))]
        table = pd.DataFrame({"customer_id": customers, "time": times, "label": [0, 1] * (len(times) // 2)})
        table.to_csv(tmp_path / "labels.csv", index=False)
        module.read_labels(PreparedData(prepared), module.LabelOptions(labels=str(tmp_path / "labels.csv")))
        return said

    return run


def test_labels_from_before_the_validation_cutoff_are_told(read):
    (said,) = read("2017-09-30 23:59:59", "2017-09-01", "2017-10-01", "2017-10-02")
    assert said.startswith("2 labels are of times before 2017-10-01, and pre-training read events until then")
    assert read("2017-10-01", "2017-10-02") == []


def test_one_value_among_the_customers_that_are_held_out_is_refused_where_they_are_evaluated():
    customers = [f"c{place}" for place in range(10)]
    table = pd.DataFrame({"customer_id": customers, "time": "2017-10-02", "label": ["stays"] * 9 + ["leaves"]})
    labels = make_labels(table)
    with pytest.raises(ValueError, match="Label 'label' is 'stays' in all 2 validation labels: nothing can be"):
        module._split(labels, 0.2, 0)
    trained_on, held_out = module._split(labels, 0, 0)
    assert (len(trained_on), len(held_out)) == (10, 0)
