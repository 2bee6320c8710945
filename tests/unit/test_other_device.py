# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The pretended device refuses what a GPU refuses, and computes what the CPU computes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from other_device import other_device
from torch import nn

REFUSED = {
    "sum": lambda here, there: here + there,
    "in place": lambda here, there: there.add_(here),
    "a number there": lambda here, there: here.add_(there[0, 0]),
    "joined": lambda here, there: torch.stack([here[0, 0], there[0, 0]]),
    "indices there": lambda here, there: here[there.long()],
    "table": lambda here, there: nn.functional.embedding(here.long(), there),
    "layer": lambda here, there: nn.Linear(3, 1).to(there.device)(here),
    "draw": lambda here, there: nn.init.normal_(there, generator=torch.Generator()),
    "NumPy": lambda here, there: there.numpy(),
}
ALLOWED = {
    "a number here": lambda here, there: there + here[0, 2],
    "indices here": lambda here, there: there[torch.tensor([1])],
    "a list of indices": lambda here, there: there[[1, 0], [0, 2]],
    "copied": lambda here, there: torch.zeros_like(there).copy_(here),
    "made": lambda here, there: torch.tensor([[1.0, 2.0]], device=there.device) @ there,
    "thread": lambda here, there: ThreadPoolExecutor().submit(lambda: here.to(there.device)).result(),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_mixes_devices_is_refused(case):
    with other_device() as device, pytest.raises((RuntimeError, TypeError), match="device|numpy"):
        here = torch.arange(6.0).view(2, 3)
        REFUSED[case](here, here.to(device))


@pytest.mark.parametrize("case", ALLOWED)
def test_results_stay_on_the_device_and_are_those_of_the_cpu(case):
    here = torch.arange(6.0).view(2, 3)
    expected = ALLOWED[case](here, here)
    with other_device() as device:
        found = ALLOWED[case](here, here.to(device))
    assert found.device == device and torch.equal(found.cpu(), expected)
