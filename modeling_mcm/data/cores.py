# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Work on batches of customers, shared out to the cores of a CPU."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_cores(
    function: Callable[[Item], Result], items: Iterable[Item], device: torch.device | None = None
) -> Iterator[Result]:
    """Calls a function with each item, and yields the results in the order of the items. As many items are in work at
    a time as torch has threads, and one where the work is on another device: operations on a batch of customers are
    too small to be shared by cores."""
    threads = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads if device is None or device.type == "cpu" else 1) as pool:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            yield from (each.result() for each in waiting)
    finally:
        torch.set_num_threads(threads)
