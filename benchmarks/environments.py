# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Environments of other libraries, one for each, under build/peers (some gigabytes)."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS, ENVIRONMENTS = ROOT / "benchmarks" / "peers", ROOT / "build" / "peers"
RECTOOLS = ["rectools[torch]==0.19.0", "pyarrow==20.0.0"]
COLES = ["pytorch-lifestream==0.7.0", "pyarrow"]


def install(packages: list[str]) -> str:
    """Makes the environment of some packages if it does not exist, and returns the path of its Python; without
    packages that of this process."""
    if not packages:
        return sys.executable
    folder = ENVIRONMENTS / packages[0].partition("[")[0]
    python, record = str(folder / "bin" / "python"), folder / "installed.json"
    if not record.is_file() or json.loads(record.read_text(encoding="utf-8")) != packages:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        record.write_text(json.dumps(packages), encoding="utf-8")  # last, so that it stands for a whole environment
    return python
