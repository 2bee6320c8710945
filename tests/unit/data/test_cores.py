# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Tests of work that is shared out to cores: results in order, errors of the work, threads as they were."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from modeling_mcm.data.collator import map_on_cores


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("device", [None, torch.device("meta")])
def test_results_come_in_the_order_of_items_that_are_read_as_they_are_needed(two_threads, device):
    read: list[int] = []

    def work(item):
        time.sleep(0.02 * (item % 2 == 0))  # every second one takes longer
        return item, torch.get_num_threads()

    results = map_on_cores(work, (read.append(item) or item for item in range(9)), device)
    assert next(results) == (0, 1) and len(read) < 9
    stopped = map_on_cores(work, range(9), device)  # while the other goes on, and never read to its end
    assert next(stopped) == (0, 1) and torch.get_num_threads() == 2
    assert [*results] == [(item, 1) for item in range(1, 9)]
    stopped.close()
    with ThreadPoolExecutor() as pool:
        assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 2


def test_an_error_of_the_work_is_raised_and_threads_are_as_before(two_threads):
    results = map_on_cores(lambda item: 1 // item, [2, 1, 0])
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert torch.get_num_threads() == 2
