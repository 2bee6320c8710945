# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of the page of results."""

import results


def test_mcm_is_compared_with_the_best_other_method():
    head = ["log", "question", "task", "method", "value", "MCM less it", "MCM over it"]
    rows = [["a", "next", "item", *cells] for cells in (["x", "0.2 ±0.1", "", "+9%"], ["y", "0.5 ±0.1", "", "-4%"])]
    table = [
        head,
        *rows,
        ["a", "next", "item", "MCM", "0.4 ±0.1", "", ""],
        ["b", "next", "item", "MCM", "0.3", "", ""],
    ]
    table.insert(-1, ["b", "next", "item", "y", "0.1", "", "+200%"])
    found = results.several_logs(table)
    assert found[0] == ["log", "question", "task", "x", "y", "MCM", "MCM over the best other"]
    assert found[1:] == [
        ["a", "next", "item", "0.2", "0.5", "0.4", "-4%"],
        ["b", "next", "item", "", "0.1", "0.3", "+200%"],
    ]
