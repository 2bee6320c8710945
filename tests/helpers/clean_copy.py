# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A copy of what packages are built from, so that a build finds and leaves nothing in the repository."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def clean_copy(folder: Path) -> Path:
    """Copies the files that a build reads, and folders that may not get into a package, to a new folder."""
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("modeling_mcm", "configuration", "training", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
