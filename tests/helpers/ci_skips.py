# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Hooks of pytest: with `CI=true` a test that is skipped fails, unless no installation could help against its reason.

Otherwise a machine without Java passes without a single test of Spark. The list is printed at the end of such a run.
"""

import os

import pytest

# Beginnings of reasons, and what would have to be there.
ALLOWED = {
    "no GPU": "a graphics card",
    "another C library": "Linux with glibc",
    "no disk can be mounted": "the right to mount a disk",
    "no chromium": "Debian's chromium, or another Chrome",
    "no PostgreSQL server": "Debian's postgresql",
    "no git history": "a clone with all of its commits",
    "mounts a disk": "to be asked for with --mount",
}


def _is_forbidden(reason: str) -> bool:
    reason = reason.removeprefix("Skipped: ")
    return os.environ.get("CI") == "true" and not reason.startswith(tuple(ALLOWED))


def _fail(report) -> None:
    """Makes a failure of a report of a skip whose reason is not on the list."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if report.skipped and not hasattr(report, "wasxfail") and _is_forbidden(reason):
        report.outcome = "failed"
        report.longrepr = f"CI=true, and a test must not be skipped for this reason: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Fails a test that is skipped."""
    _fail((yield).get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report():
    """Fails a file that is skipped as a whole."""
    _fail((yield).get_result())


def pytest_terminal_summary(terminalreporter):
    """Prints the list, and how often each reason was given."""
    if os.environ.get("CI") != "true":
        return
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])]
    terminalreporter.section("skipped with CI=true; any other reason is a failure")
    for start, needed in ALLOWED.items():
        number = sum(reason.startswith(start) for reason in reasons)
        terminalreporter.line(f"{number:4d}  {start}: needs {needed}")
