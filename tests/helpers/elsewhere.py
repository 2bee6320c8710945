# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The answers of a published folder in a process without the package, and whether two answers are the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

READER = Path(__file__).with_name("remote_reader.py")


def read_elsewhere(source, customers, actions, folder, **environment):
    """The numbers that `remote_reader.py` finds, in a process without the package."""
    folder.mkdir()
    (folder / "customers.json").write_text(json.dumps({"customers": customers, "actions": actions}))
    command = [sys.executable, str(READER), str(source), str(folder / "customers.json"), str(folder)]
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    known |= {"HF_HOME": str(folder / "cache")} | environment
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "numbers.json").read_text())


def assert_close(found, expected, tolerance=1e-6):
    """Raises if two nests of lists, dicts, texts and numbers differ."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
    else:
        assert found == expected
