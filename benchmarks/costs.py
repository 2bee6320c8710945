# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the commands cost on a log: CPU seconds, and the memory of their largest process.

    python benchmarks/costs.py --log complete_journey --output docs/costs.md

Each command runs as a user runs it, with the threads of the environment (`OMP_NUM_THREADS`).
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from logs import LOGS, prepared
from modeling_mcm.data import PreparedData

PAGE = """# What the commands cost

Complete Journey is {customers:,} customers with {events:,} events, five tasks. {threads} thread(s), {machine}, at
commit {commit}, by `benchmarks/costs.py`. The start of Python is part of the seconds (five), and PyTorch of the memory
of the largest process (half a gigabyte).

{table}
"""


def list_commands(data: PreparedData, runs: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands by name."""
    folder, raw = str(data.folder), data.folder.with_name("raw")
    start, shipped, encoder = (str(runs / name) for name in ("start", "shipped", "encoder"))
    files = ["--events", f"{raw / 'events.parquet'}", "--profile", f"{raw / 'profile.parquet'}"]
    yield "prepare", ["prepare", "--demo", data.schema.name, "--output_dir", str(runs / "prepared")]
    yield "start", ["start", "--data", folder, "--output_dir", start]
    yield "start --network shipped", ["start", "--data", folder, "--output_dir", shipped, "--network", "shipped"]
    words = ["--config", "configuration/mcm-tiny", "--num_train_epochs", "1", "--dataloader_num_workers", "1"]
    yield "pretrain, one epoch of mcm-tiny", ["pretrain", "--data", folder, "--output_dir", encoder, *words]
    yield "predict", ["predict", "--model", start, *files, "--output_dir", str(runs / "predictions")]


def measure(words: list[str]) -> dict[str, float]:
    """Runs a command. `wait4` tells of this child alone."""
    child = subprocess.Popen([sys.executable, "-m", "modeling_mcm.commands.main", *words])
    status, usage = os.wait4(child.pid, 0)[1:]
    if status:
        raise subprocess.CalledProcessError(status, words)
    cpu = usage.ru_utime + usage.ru_stime
    return {"CPU seconds": cpu, "memory, GB": usage.ru_maxrss * 1024 / 1e9}


@dataclass
class CostOptions:
    """Which log the commands run on."""

    log: str = HfArg(default="complete_journey", help="Log of `benchmarks/logs.py`.")
    data: str = HfArg(default="data", help="Folder of the logs.")
    runs: str = HfArg(default="runs/costs", help="Folder of the runs, which is emptied.")
    output: str = HfArg(default="docs/costs.md", help="File of the page.")


def main() -> None:
    """Runs the commands, and writes the page."""
    (options,) = HfArgumentParser(CostOptions, description=__doc__).parse_args_into_dataclasses()
    data, runs = prepared(LOGS[options.log], options.data), Path(options.runs)
    shutil.rmtree(runs, ignore_errors=True)
    rows = {f"`mcm {name}`": measure(words) for name, words in list_commands(data, runs)}
    columns = ["CPU seconds", "memory, GB"]
    lines = [" | ".join(["command", *columns]), " | ".join(["---", *["---:"] * len(columns)])]
    for name, row in rows.items():
        lines.append(" | ".join([name, *(f"{row[key]:.{2 if 'memory' in key else 0}f}" for key in columns)]))
    table = "\n".join(f"| {line} |" for line in lines)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    facts = {"customers": data.manifest.counts["customers"], "events": data.manifest.counts["events"]}
    facts |= {"threads": os.environ.get("OMP_NUM_THREADS", os.cpu_count()), "machine": platform.machine()}
    Path(options.output).write_text(PAGE.format(**facts, commit=commit.strip(), table=table), encoding="utf-8")


if __name__ == "__main__":
    main()
