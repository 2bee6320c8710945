# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A run of CI does not pass by skipping: a missing Java is a failure there, a missing graphics card is none."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults import expected

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
SKIPPED = {
    "a test": "def test_it(): pytest.skip({!r})",
    "a mark": "@pytest.mark.skipif(True, reason={!r})\ndef test_it(): pass",
    "a fixture": "@pytest.fixture\ndef spark(): pytest.skip({!r})\ndef test_it(spark): pass",
    "a file": "pytest.skip({!r}, allow_module_level=True)",
}


def run(folder, text, ci):
    (folder / "test_it.py").write_text(f"import pytest\n{text}\n")
    (folder / "test_other.py").write_text("def test_other(): pass\n")
    # Not the options of the run that this test is part of: --mount is known to tests/conftest.py alone.
    environment = {**os.environ, "PYTHONPATH": str(HELPERS), "CI": ci, "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "ci_skips", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("text", SKIPPED.values(), ids=SKIPPED)
def test_only_reasons_of_the_list_may_skip_a_test_in_ci(tmp_path, text):
    for ci, reason, status in (("true", "no Java", 1), ("true", "no GPU", 0), ("", "no Java", 0)):
        done = run(tmp_path, text.format(reason), ci)
        assert (done.returncode != 0) == status, done.stdout
        assert ("must not be skipped for this reason" in done.stdout) == status
        assert ("1  no GPU: needs a graphics card" in done.stdout) == (reason == "no GPU")


REASONS = {"no Java": "no Java", "no Spark": "Spark not installed", "any other reason": "tired today"}


@pytest.mark.parametrize(("reason", "message"), expected("Continuous integration", REASONS))
def test_a_reason_that_is_not_on_the_list_is_told(tmp_path, reason, message):
    done = run(tmp_path, SKIPPED["a fixture"].format(reason), "true")
    assert done.returncode == 1 and re.search(message, done.stdout)


def test_an_expected_failure_is_no_skip(tmp_path):
    assert run(tmp_path, "@pytest.mark.xfail\ndef test_it(): assert False", "true").returncode == 0
