# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What benchmarks share: the tables that they leave for the page of results, and records of finished steps."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_mcm.evaluation.reports import text_table
from modeling_mcm.files_mcm import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "docs/results"  # a JSON file a table; results.py makes the page from them


def write_table(folder: str | Path, name: str, caption: str, table: Sequence[Sequence[str]]) -> None:
    """Prints a table and writes it to `folder/name.json`, a row a line; the first row is the heading."""
    print(f"\n{caption}\n\n{text_table(table)}")
    rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in table)
    caption = json.dumps(caption, ensure_ascii=False)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_text(Path(folder, f"{name}.json"), f'{{\n  "caption": {caption},\n  "table": [\n{rows}\n  ]\n}}\n')


def run_training_script(name: str, *words: Any) -> None:
    """Runs a script of training/ in a process of its own."""
    subprocess.run([sys.executable, str(ROOT / "training" / f"{name}.py"), *map(str, words)], check=True)


def is_finished(record: Path, options: dict[str, Any]) -> bool:
    """Whether a step was finished with these options. If not, the record goes: what it speaks of will be replaced."""
    try:
        if json.loads(record.read_text(encoding="utf-8")) == options:
            return True
    except (OSError, ValueError):
        pass
    record.unlink(missing_ok=True)
    return False


def write_record(record: Path, options: dict[str, Any]) -> None:
    """Says that a step was finished with these options; written last."""
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, options)
