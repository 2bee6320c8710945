#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Preparation of large logs on this machine: time, peak memory and disk, and what ten billion events would take.

    python benchmarks/scale.py --events 5e6 2e7 1e8 --folder /scratch

Writes synthetic logs (benchmarks/synthetic_stream.py) and runs training/prepare_data.py on each. Memory is the largest
resident size of that process, as the system counted it, and disk the most that its folder held beside the log. The
projection takes the last size's figures, and for the time the exponent between the last two, or 1 if that is larger.
"""

import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from tqdm.auto import tqdm

from measuring import RESULTS, ROOT, write_table
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.data import PreparedManifest
from modeling_mcm.option import option
from synthetic_stream import StreamSettings, write_event_log

KIBI, GIGA = 1024, 1e9  # the system's unit of memory, and that of the table
PROJECTED = 10**10
SCHEMA = ROOT / "configuration" / "schemas" / "clickstream.yaml"


@dataclass
class ScaleOptions:
    """How many events are prepared, with how much memory."""

    events: list[float] = option([1e6, 2e6], "Sizes of the logs, about; the smallest first.")
    memory_limit: str = option("4GB", "Memory that DuckDB may use in preparation; the memory of Python comes on top.")
    rows_per_shard: int = option(1024, "Largest number of customers in one shard.")
    files: int = option(24, "Number of files of a log, each of the same length of time.")
    seed: int = option(0, "Seed of the random logs.")
    folder: str | None = option(None, "Folder for logs and temporary data. By default the system's temporary one.")
    results: str = option(RESULTS, "Folder of the table.")

    def __post_init__(self) -> None:
        if not self.events or min(self.events) < 1:
            raise ValueError("--events needs at least one size of at least 1.")


def folder_size(folder: Path) -> int:
    """Counts the bytes of all files in a folder that another process is changing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_blocks * 512
            except FileNotFoundError:  # removed since it was listed
                continue
    return total


def timed(options: dict[str, str], scratch: Path) -> dict[str, float]:
    """Prepares a log, which writes in `scratch`, and measures seconds, memory and disk."""
    before, start, disk = folder_size(scratch), time.perf_counter(), 0
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        command = [sys.executable, str(ROOT / "training" / "prepare_data.py"), *words]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while (done := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            disk = max(disk, folder_size(scratch) - before)
            time.sleep(0.5)
        seconds, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(done[1])
        output.seek(0)
        if process.returncode:
            raise RuntimeError(f"prepare_data.py ended with {process.returncode}: {output.read()[-2000:]}")
    return {"seconds": seconds, "memory": done[2].ru_maxrss * KIBI / GIGA, "disk": disk / GIGA}


def measure(events: float, options: ScaleOptions, scratch: Path) -> dict[str, float]:
    """Measures one size, and removes all files from `scratch`."""
    log, data, settings = scratch / "log", scratch / "data", StreamSettings()
    customers = math.ceil(1.02 * events / settings.mean_events)
    write_event_log(log, customers, settings, options.seed, options.files, lambda blocks: tqdm([*blocks]))
    result = {"log": folder_size(log) / GIGA}
    flags = {"events": str(log), "schema": str(SCHEMA), "output_dir": str(data), "memory_limit": options.memory_limit}
    result |= timed(flags | {"rows_per_shard": str(options.rows_per_shard)}, scratch)
    counts = PreparedManifest.load(data).counts
    result |= {"events": counts["rows"], "customers": counts["customers"], "output": folder_size(data) / GIGA}
    for path in scratch.iterdir():
        shutil.rmtree(path)
    return result


def table(points: list[dict[str, float]]) -> list[list[str]]:
    """Makes rows of text, one for each size and one for the projection."""
    last = points[-1]
    times = PROJECTED / last["events"]
    exponent = 1.0
    if len(points) > 1:
        times_longer, times_more = (last[name] / points[-2][name] for name in ("seconds", "events"))
        exponent = max(math.log(times_longer) / math.log(times_more), 1.0)
    rows = [
        ["events", "customers", "log, GB", "minutes", "events a second", "peak memory, GB", "disk, GB", "result, GB"]
    ]
    for point in points:
        sizes = [f"{point['events']:,.0f}", f"{point['customers']:,.0f}", f"{point['log']:.2f}"]
        sizes += [f"{point['seconds'] / 60:.1f}", f"{point['events'] / point['seconds']:,.0f}"]
        rows.append([*sizes, *(f"{point[name]:.2f}" for name in ("memory", "disk", "output"))])
    minutes = last["seconds"] / 60 * times**exponent
    sizes = [f"{PROJECTED:,}, projected", f"{last['customers'] * times:,.0f}", f"{last['log'] * times:,.0f}"]
    sizes += [f"{minutes:,.0f} ({minutes / 60:,.0f} hours, exponent {exponent:.2f})"]
    sizes += [f"{PROJECTED / minutes / 60:,.0f}", "as given"]
    rows.append([*sizes, *(f"{last[name] * times:,.0f}" for name in ("disk", "output"))])
    return rows


def main() -> None:
    """Reads the options, measures, and writes the table."""
    (options,) = parse_options(ScaleOptions, description=__doc__)
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    points = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for events in options.events:
            points.append(measure(events, options, Path(scratch)))
            print(json.dumps(points[-1]), flush=True)
    memory = psutil.virtual_memory().total / GIGA
    caption = (
        f"Preparation of synthetic logs, DuckDB {importlib.metadata.version('duckdb')} within {options.memory_limit}; "
        f"{os.cpu_count()} cores, {memory:.0f} GB, {platform.machine()}."
    )
    write_table(options.results, "preparation", caption, table(points))


if __name__ == "__main__":
    main()
