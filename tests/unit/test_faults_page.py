# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The page of faults is the table that the tests read, and every area of the table has its test."""

from pathlib import Path

import faults
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"


def test_the_page_is_the_table(request):
    if request.config.getoption("--update-faults"):
        PAGE.write_text(faults.page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == faults.page()


@pytest.mark.parametrize("area", faults.AREAS)
def test_an_area_has_its_test(area):
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    assert any(f'expected("{area}", ' in text for text in tests), area


def test_a_fault_without_a_test_is_found():
    with pytest.raises(ValueError, match="differ: .*a cut config"):
        faults.expected("Checkpoints", {})
