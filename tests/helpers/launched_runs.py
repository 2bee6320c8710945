# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scripts as a person starts them: one process, or two of accelerate."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ONE_PROCESS = [sys.executable]
TWO_PROCESSES = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
TWO_PROCESSES += ["--mixed_precision", "no", "--dynamo_backend", "no"]


def run(launcher, script, *options, expect=0, folder="training"):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*launcher, f"{folder}/{script}.py", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode == 0) == (expect == 0), done.stderr[-3000:]
    return done
