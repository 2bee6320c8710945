#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Preparation of large logs on this machine: time, peak memory and disk, and what ten billion events would take.

    python benchmarks/scale.py --events 5e6 2e7 1e8 --folder /scratch --report_file docs/preparation.md
    python benchmarks/scale.py --events 2e6 8e6 --files 730 --update true --report_file docs/operations.md
    python benchmarks/scale.py --events 1e7 --log_only true --folder /scratch    only writes /scratch/log

Writes synthetic logs (benchmarks/synthetic_stream.py) and runs training/prepare_data.py on each.
Memory is the largest resident size of that process, as the system counted it, and disk the most that its folder held
beside the log. The projection takes the last size's figures, and for the time the exponent between the last two, or 1
if that is larger.
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
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from measuring import KIBI, ROOT, show
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.data import PreparedManifest
from modeling_mcm.option import option
from synthetic_stream import StreamSettings, write_event_log

GIGA = 1e9
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
    folder: str | None = option(
        None, "Folder for logs, temporary data and results, which is emptied. By default a temporary one."
    )
    log_only: bool = option(False, "Write the first log into --folder and stop.")
    update: bool = option(False, "Measure also what the log's last file costs as an update, and tell that.")
    report_file: str | None = option(None, "Markdown file to write the table to, as `mcm evaluate` does.")

    def __post_init__(self) -> None:
        if not self.events or min(self.events) < 1:
            raise ValueError("--events needs at least one size of at least 1.")
        if self.log_only and not self.folder:
            raise ValueError("--log_only needs a --folder to leave the log in.")


def write_log(folder: Path, events: float, options: ScaleOptions) -> int:
    """Writes a log of about the given number of events, usually some more, and returns the number."""
    settings = StreamSettings()
    customers = math.ceil(1.02 * events / settings.mean_events)
    return write_event_log(folder, customers, settings, options.seed, options.files, lambda blocks: tqdm([*blocks]))


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


@dataclass
class Run:
    """What a command took, in seconds and bytes, and its last output."""

    seconds: float
    memory: int
    disk: int
    output: str


def timed(script: str, options: dict[str, str], scratch: Path) -> Run:
    """Runs a command that writes in `scratch`, and measures it."""
    before, start, disk = folder_size(scratch), time.perf_counter(), 0
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        command = [sys.executable, str(ROOT / "training" / script), *words]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while (done := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            disk = max(disk, folder_size(scratch) - before)
            time.sleep(0.5)
        seconds, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(done[1])
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{script} ended with {process.returncode}: {text[-2000:]}")
    return Run(seconds, done[2].ru_maxrss * KIBI, disk, text)


def measure(events: float, options: ScaleOptions, scratch: Path) -> dict[str, float]:
    """Measures one size, and removes all files from `scratch`."""
    log, data, start = scratch / "log", scratch / "data", time.perf_counter()
    write_log(log, events, options)
    result = {"writing": time.perf_counter() - start, "log": folder_size(log) / GIGA}
    flags = {"events": str(log), "schema": str(SCHEMA), "output_dir": str(data), "memory_limit": options.memory_limit}
    flags["rows_per_shard"] = str(options.rows_per_shard)
    if options.update:
        tomorrow = max(log.iterdir())
        tomorrow.rename(scratch / tomorrow.name)
        timed("prepare_data.py", flags, scratch)
        (scratch / tomorrow.name).rename(tomorrow)
        flags |= {"output_dir": str(scratch / "full")}
        update = {"data": str(data), "events": str(log), "memory_limit": options.memory_limit}
        updated = timed("update_data.py", update, scratch)
        result |= {"update": updated.seconds, "update memory": updated.memory / GIGA}
        result["prepared"] = len(pq.read_table(tomorrow, columns=["user_id"])["user_id"].unique())
        result["new"] = pq.read_metadata(tomorrow).num_rows
    run = timed("prepare_data.py", flags, scratch)
    counts = PreparedManifest.load(data).counts
    result |= {"events": counts["rows"], "customers": counts["customers"], "seconds": run.seconds}
    result |= {"memory": run.memory / GIGA, "disk": run.disk / GIGA, "output": folder_size(data) / GIGA}
    for path in scratch.iterdir():
        shutil.rmtree(path)
    return result


def update_table(points: list[dict[str, float]]) -> list[list[str]]:
    """Makes rows of text that compare an update with preparing everything."""
    rows = [
        [
            "events",
            "customers",
            "new events",
            "their customers",
            "update, s",
            "full preparation, s",
            "ratio",
            "memory, GB",
        ]
    ]
    for point in points:
        cells = [f"{point[name]:,.0f}" for name in ("events", "customers", "new", "prepared", "update", "seconds")]
        rows.append([*cells, f"{point['update'] / point['seconds']:.2f}", f"{point['update memory']:.2f}"])
    return rows


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
    """Reads the options, measures, and writes the files that the options name."""
    (options,) = parse_options(ScaleOptions, description=__doc__)
    if options.log_only:
        folder = Path(options.folder) / "log"
        print(f"{folder}: {write_log(folder, options.events[0], options):,} events")
        return
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    points = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for events in options.events:
            points.append(measure(events, options, Path(scratch)))
            print(json.dumps(points[-1]), flush=True)
    rows = (update_table if options.update else table)(points)
    memory = psutil.virtual_memory().total / GIGA
    what = f"An update by the last of {options.files} files" if options.update else "Preparation"
    caption = (
        f"{what} of synthetic logs, DuckDB {importlib.metadata.version('duckdb')} within {options.memory_limit}; "
        f"{os.cpu_count()} cores, {memory:.0f} GB, {platform.machine()}."
    )
    show(rows, caption, options.report_file)


if __name__ == "__main__":
    main()
