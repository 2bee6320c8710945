# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The scores of all customers as a table: what would make no table is refused before anything is scored."""

import pytest

from modeling_mcm.scoring import ScoringJob


@pytest.mark.parametrize(
    ("tasks", "twice"),
    [
        (("customer_id",), "customer_id"),
        (("item", "embedding"), "embedding"),
        (("item", "item_scores"), "item_scores"),
        (("embedding_scores", "embedding"), "embedding"),
    ],
)
def test_a_task_that_would_overwrite_a_column_is_refused(tasks, twice):
    kept = {"top_k": 1, "embeddings": False, "batch_size": 1, "rows_per_file": 1}
    with pytest.raises(ValueError, match=f"two columns '{twice}'.*another name"):
        ScoringJob("model", "data", "scores", tasks=tasks, **kept)
    assert ScoringJob("model", "data", "scores", tasks=("item", "items_scores"), **kept)
