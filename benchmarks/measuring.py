# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What benchmarks share.

A measurement in a process of its own, a model with random weights, how a table or a page is shown, and the records of
finished steps.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from modeling_mcm import MCMConfig, MCMForMultiTaskRecommendation
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.evaluation.reports import replace_part, text_table, write_report
from modeling_mcm.files_mcm import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
KIBI = 1024  # bytes of the system's unit of memory
Batch = dict[str, torch.Tensor]


def measure_alone(script: str, options: Any, **changes: Any) -> Any:
    """Runs a benchmark again in a process of its own, and reads the JSON of its last line.

    Args:
        script (`str`): Path of the benchmark.
        options (dataclass): Its options.
        changes (`Any`): Options that differ in that process. Those that are None or empty are left out.

    Raises:
        RuntimeError: If the process fails; the message has the end of its errors.
    """
    values = {name: value for name, value in (asdict(options) | changes).items() if value not in (None, "")}
    flags: list[str] = []
    for name, value in values.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(script).stem} with {changes} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def shape_of(config: str) -> dict[str, Any]:
    """Reads the fields of a folder's config.json."""
    fields = json.loads((ROOT / config / "config.json").read_text(encoding="utf-8"))
    del fields["model_type"]
    return fields


def random_model(
    config: str, labels: int, batch_size: int, units: int, **fields: Any
) -> tuple[MCMForMultiTaskRecommendation, Batch]:
    """Makes a model with random weights for one task, and a batch of random histories with one event in each visit.

    Args:
        config (`str`): Folder with a config.json, the shape of the model.
        labels (`int`): Number of labels.
        batch_size (`int`): Number of customers.
        units (`int`): Number of visits of each customer.
        fields (`Any`): Other fields of the config.
    """
    task = {"features": ["token_type", "item"], "vocabulary_sizes": [5, labels + FIRST_LABEL], "tasks": ["item"]}
    model = MCMForMultiTaskRecommendation(MCMConfig(**shape_of(config) | task | fields)).train()
    grid = (batch_size, units)
    items, positions = torch.randint(FIRST_LABEL, labels + FIRST_LABEL, grid), torch.arange(units).expand(grid)
    return model, {
        "input_ids": torch.stack([torch.full(grid, 2), items], -1),
        "attention_mask": torch.ones(grid, dtype=torch.long),
        "visit_ids": positions,
        "event_times": positions.float(),
        "prefix_ends": positions,
        "labels": items.roll(-1, 1)[..., None],
        "label_prefixes": positions,
    }


def show(table: Sequence[Sequence[str]], caption: str, report_file: str | None) -> None:
    """Prints a table with its caption, and writes both to a Markdown file if one is named."""
    print(f"\n{caption}\n\n{text_table(table)}")
    if report_file:
        write_report(table, caption, Path(report_file))


def print_or_write(page: str, report_file: str | None) -> None:
    """Writes a page to a Markdown file, or prints it if none is named."""
    if report_file:
        write_text(report_file, page)
    else:
        print(page)


def write_sentence(path: Path, name: str, sentence: str) -> None:
    """Writes a sentence between the lines <!-- name --> and <!-- /name --> of a page.

    Raises:
        ValueError: If the file has no such lines.
    """
    if not replace_part(path, f"{sentence}\n", name):
        raise ValueError(f"{path} has no lines <!-- {name} --> and <!-- /{name} -->: add them where it goes.")


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
