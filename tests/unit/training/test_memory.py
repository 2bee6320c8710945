# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Freed memory is kept where glibc's malloc can be told so, and nothing happens elsewhere."""

import platform
import subprocess
import sys

import pytest

from modeling_mcm.training import memory

# Pages that the system hands out while blocks of 16 MB come and go.
COUNT = """
import resource, sys
from modeling_mcm.training.memory import keep_freed_memory
told = sys.argv[1] == "keep" and keep_freed_memory()
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    kept = [torch.ones(2**22) for _ in range(3)]
    del kept
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(way):
    command = [sys.executable, "-c", COUNT, way]
    told, count = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.split()
    return told == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_blocks_are_used_again():
    (told, kept), (_, given_back) = pages("keep"), pages("leave")
    assert told and kept < given_back / 2


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
