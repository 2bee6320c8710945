# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Every benchmark can be imported: `make figures` would be the first to miss a name that moved in the package."""

import importlib
from pathlib import Path

import pytest

NAMES = sorted(path.stem for path in (Path(__file__).resolve().parents[3] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_imported(name):
    assert importlib.import_module(name).__doc__
