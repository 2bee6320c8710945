#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Preparation of large logs on this machine: time, peak memory and disk, and what ten billion events would take.

    python benchmarks/scale.py --events 5e6 2e7 1e8 --folder /scratch --report_file docs/preparation.md
    python benchmarks/scale.py --events 1e7 --log_only true --folder /scratch    only writes /scratch/log

Writes synthetic logs (modeling_mcm.data.synthetic_stream) and runs training/prepare_data.py on each.
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
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tqdm.auto import tqdm

from modeling_mcm.data import PreparedManifest
from modeling_mcm.data.synthetic_stream import StreamSettings, write_event_log

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from arguments import parse_options

ROOT = Path(__file__).resolve().parents[1]
KIBI, GIGA = 1024, 1e9
PROJECTED = 10**10
SCHEMA = ROOT / "configuration" / "schemas" / "clickstream.yaml"


@dataclass
class ScaleOptions:
    """How much, where, within what."""

    events: list[float] = field(
        default_factory=lambda: [1e6, 2e6], metadata={"help": "Sizes of the logs, about; the smallest first."}
    )
    memory_limit: str = field(
        default="4GB", metadata={"help": "Of DuckDB, as prepare_data.py's; Python comes on top."}
    )
    rows_per_shard: int = field(default=1024, metadata={"help": "Most customers in one shard."})
    files: int = field(default=24, metadata={"help": "Files of a log, equal stretches of time."})
    seed: int = field(default=0, metadata={"help": "Of the logs."})
    folder: str | None = field(
        default=None, metadata={"help": "For logs, spilling and output; removed again. A temporary one if not given."}
    )
    log_only: bool = field(default=False, metadata={"help": "Write the first log into the folder and stop."})
    report_file: str | None = field(default=None, metadata={"help": "Markdown file, as run_evaluate.py's."})

    def __post_init__(self) -> None:
        if not self.events or min(self.events) < 1:
            raise ValueError("--events needs at least one size of at least 1.")
        if self.log_only and not self.folder:
            raise ValueError("--log_only needs a --folder to leave the log in.")


def write_log(folder: Path, events: float, options: ScaleOptions) -> int:
    """Writes a log of about so many events; returns how many."""
    settings = StreamSettings()
    customers = max(round(events / settings.mean_events), 1)
    return write_event_log(folder, customers, settings, options.seed, options.files, lambda blocks: tqdm([*blocks]))


def held(folder: Path) -> int:
    """Bytes of all files below a folder, which another process is changing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_blocks * 512
            except FileNotFoundError:  # removed since it was listed
                continue
    return total


def measure(events: float, options: ScaleOptions, scratch: Path) -> dict[str, float]:
    """The figures of one size; leaves nothing in `scratch`."""
    log, data = scratch / "log", scratch / "data"
    start = time.perf_counter()
    write_log(log, events, options)
    written, log_bytes = time.perf_counter() - start, held(log)
    command = [sys.executable, str(ROOT / "training" / "prepare_data.py"), "--events", str(log)]
    command += ["--schema", str(SCHEMA), "--output_dir", str(data), "--memory_limit", options.memory_limit]
    start, disk = time.perf_counter(), 0
    said = scratch / "said.txt"
    with open(said, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, "--rows_per_shard", str(options.rows_per_shard)], stdout=output, stderr=subprocess.STDOUT
        )
        while (done := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            disk = max(disk, held(scratch) - log_bytes)
            time.sleep(0.5)
    process.returncode = os.waitstatus_to_exitcode(done[1])
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"prepare_data.py ended with {process.returncode}: {said.read_text()[-2000:]}")
    counts = PreparedManifest.load(data).counts
    found = {
        "events": counts["rows"],
        "customers": counts["customers"],
        "writing": written,
        "seconds": seconds,
        "memory": done[2].ru_maxrss * KIBI / GIGA,
        "log": log_bytes / GIGA,
        "disk": disk / GIGA,
        "output": held(data) / GIGA,
    }
    for path in (log, data):
        shutil.rmtree(path)
    return found


def table(found: list[dict[str, float]]) -> list[list[str]]:
    """Rows of text: one a size, and the projection."""
    last = found[-1]
    times = PROJECTED / last["events"]
    exponent = 1.0
    if len(found) > 1:
        times_longer, times_more = (last[name] / found[-2][name] for name in ("seconds", "events"))
        exponent = max(math.log(times_longer) / math.log(times_more), 1.0)
    rows = [
        ["events", "customers", "log, GB", "minutes", "events a second", "peak memory, GB", "disk, GB", "result, GB"]
    ]
    for each in found:
        sizes = [f"{each['events']:,.0f}", f"{each['customers']:,.0f}", f"{each['log']:.2f}"]
        sizes += [f"{each['seconds'] / 60:.1f}", f"{each['events'] / each['seconds']:,.0f}"]
        rows.append([*sizes, *(f"{each[name]:.2f}" for name in ("memory", "disk", "output"))])
    minutes = last["seconds"] / 60 * times**exponent
    sizes = [f"{PROJECTED:,}, projected", f"{last['customers'] * times:,.0f}", f"{last['log'] * times:,.0f}"]
    sizes += [f"{minutes:,.0f} ({minutes / 60:,.0f} hours, exponent {exponent:.2f})"]
    sizes += [f"{PROJECTED / minutes / 60:,.0f}", "as given"]
    rows.append([*sizes, *(f"{last[name] * times:,.0f}" for name in ("disk", "output"))])
    return rows


def main() -> None:
    """Reads the options, measures, and writes what was asked for."""
    (options,) = parse_options(ScaleOptions, description=__doc__)
    if options.log_only:
        folder = Path(options.folder) / "log"
        print(f"{folder}: {write_log(folder, options.events[0], options):,} events")
        return
    from run_evaluate import text_table, write_report

    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    found = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for events in options.events:
            found.append(measure(events, options, Path(scratch)))
            print(json.dumps(found[-1]), flush=True)
    rows = table(found)
    memory = psutil.virtual_memory().total / GIGA
    caption = (
        f"Preparation of synthetic logs, DuckDB {importlib.metadata.version('duckdb')} within {options.memory_limit}; "
        f"{os.cpu_count()} cores, {memory:.0f} GB, {platform.machine()}."
    )
    print(f"\n{caption}\n\n{text_table(rows)}")
    if options.report_file:
        write_report(rows, caption, Path(options.report_file))


if __name__ == "__main__":
    main()
