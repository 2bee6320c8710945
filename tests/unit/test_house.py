# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that ruff and import-linter (pyproject.toml) cannot hold: what travels to the Hub."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "modeling_mcm"
FLAT = sorted(PACKAGE.glob("*_mcm.py"))
FLAT_LIBRARIES = {"torch", "numpy", "transformers", "huggingface_hub", "safetensors", "filelock"}


def imports(path):
    """(level, module) of every import of a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


@pytest.mark.parametrize("path", FLAT, ids=lambda path: path.stem)
def test_files_that_travel_are_flat(path):
    found = list(imports(path))
    relative = sorted(module for level, module in found if level)
    assert all(level <= 1 for level, _ in found) and set(relative) <= {other.stem for other in FLAT}
    assert {module.split(".")[0] for level, module in found if not level} <= FLAT_LIBRARIES | sys.stdlib_module_names
    # transformers refuses a file of which an import that it sees is missing
    assert set(get_imports(path)) <= FLAT_LIBRARIES | sys.stdlib_module_names
    # it looks for relative imports with a pattern, so one that is quoted in a docstring would count
    quoted = re.findall(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+))", path.read_text(), flags=re.MULTILINE)
    assert relative == sorted(first or second for first, second in quoted)


def test_benchmarks_go_through_public_entrances():
    """Those of packages that docs/api.md shows, or commands; nothing below them, and nothing private."""
    shown = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("modeling_mcm"):
                public = importlib.import_module(node.module)
                assert hasattr(public, "__path__") and f"::: {node.module}" in shown, (path.name, node.module)
                assert {alias.name for alias in node.names} <= {*public.__all__}, (path.name, node.module)
            assert not (isinstance(node, ast.Import) and any("modeling_mcm" in each.name for each in node.names)), path
            name = node.attr if isinstance(node, ast.Attribute) else ""
            assert not re.match("_[a-z]", name) or name == "_asdict", (path.name, name)
