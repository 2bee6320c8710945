# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scripts of training/, examples/ and benchmarks/ in the process of the test, which has imported everything."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def call(script, *options):
    """Calls a script's main with options, from the root of the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, options)])
        importlib.import_module(script).main()
