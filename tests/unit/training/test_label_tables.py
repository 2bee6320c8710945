# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A table of labels before a fine-tuning."""

import pandas as pd

from modeling_mcm.data import PreparedData
from modeling_mcm.training.heads.customer import LabelOptions, read_labels


def test_labels_from_before_the_validation_cutoff_are_told(prepared, tmp_path, caplog):
    times = ["2017-09-30 23:59:59", "2017-09-01", "2017-10-01", "2017-10-02"]
    table = pd.DataFrame({"customer_id": [f"c{place:02}" for place in range(4)], "time": times, "label": [0, 1, 0, 1]})
    for rows, said in ((table[2:], 0), (table, 1)):
        rows.to_csv(tmp_path / "labels.csv", index=False)
        read_labels(PreparedData(prepared), LabelOptions(labels=str(tmp_path / "labels.csv")))
        words = "2 labels are of times before 2017-10-01, and pre-training read events until then"
        assert caplog.text.count(words) == len(caplog.messages) == said
