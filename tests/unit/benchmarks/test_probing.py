# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the probe gives its learners: counts that know nothing from the cutoff on, and targets that the log says."""

import numpy as np
import pandas as pd
import pytest
from corner_shop import TEST, VALIDATION

from modeling_mcm.data import PreparedData
from probing import batches_at
from run_probe import numbers_of

CUTOFFS = {"validation": VALIDATION, "test": TEST}
DAYS, DAY = 30, 86_400


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_counts_know_nothing_of_what_came_later(event_log, prepared, prepare_log, extractor, cutoff):
    """Other and fewer events from the cutoff on."""
    late = event_log["when"] >= CUTOFFS[cutoff]
    changed = event_log.copy()
    changed.loc[late & (changed["action"] == "buy"), ["item", "aisle"]] = ["item 03", "aisle 0"]
    changed.loc[late, "price"] = 100.0
    changed = changed[~late | (np.arange(len(changed)) % 3 == 0)]
    found = []
    for folder in (prepared, prepare_log(changed)):
        parts = list(batches_at(PreparedData(folder), extractor, cutoff, min_events=3))
        blank = [row for _, rows, _ in parts for row in rows]
        assert all((row["times"] < pd.Timestamp(CUTOFFS[cutoff]).timestamp()).all() for row in blank)
        assert not any(row["profile_age"] for row in blank)
        found.append(np.concatenate([counts for *_, counts in parts]))
    assert len(found[0]) > 20 and np.nanmax(found[0]) > 1
    np.testing.assert_array_equal(*found)


def test_numbers_before_and_after_a_cutoff_are_those_of_the_log(event_log, prepared, extractor):
    cutoff, tasks = pd.Timestamp(TEST), ["task_items", "task_aisle"]
    month, compared = pd.Timedelta(days=DAYS), 0
    for rows, *_ in batches_at(PreparedData(prepared), extractor, "test", min_events=3):
        for row in rows:
            found = numbers_of(row, int(cutoff.timestamp()), DAYS * DAY, "a.b", tasks)
            log = event_log[event_log["who"] == row["customer_id"]]
            when, bought = log["when"], log["action"] == "buy"
            after, latest = (when >= cutoff) & (when < cutoff + month), (when < cutoff) & (when >= cutoff - month)
            for name, chosen in (("after", after), ("before", latest)):
                assert found[f"spend {name}"] == pytest.approx(log["price"][chosen].sum(), rel=1e-5)
                assert found[f"visits {name}"] == log["basket"][chosen & bought].nunique()
            assert found["all visits"] == log["basket"][(when < cutoff) & bought].nunique()
            compared += found["visits after"] > 0
    assert compared > 10
