# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Imports every public module and asks every script for `--help` while packages are hidden; run by test_installing.

    python tests/helpers/import_without.py report.json ibis lightgbm,sklearn

Each argument after the first is a case: packages, separated by commas, that are as if they were not installed. The
report has by case and by module or script null where it worked, and otherwise the kind of the error and its words.
What the base install brings is imported while the packages of all cases are hidden; then each case is a process.
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "modeling_mcm").rglob("*.py")
)
SCRIPTS = sorted(path.name for path in (ROOT / "training").glob("*.py"))


def hide(packages):
    """From here on these packages, separated by commas, are as if they were not installed, and no others."""
    for name in [name for name, module in sys.modules.items() if module is None]:
        del sys.modules[name]
    sys.modules.update(dict.fromkeys(packages.split(",")))


def outcome(run):
    """None, or the kind and the words of what `run` raised."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run()
    except SystemExit as end:
        return None if end.code in (0, None) else ["SystemExit", str(end.code)]
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def outcomes(packages):
    """Errors of every module and script without some packages, by name; `None` where there is none."""
    hide(packages)
    found = {name: outcome(lambda name=name: importlib.import_module(name)) for name in MODULES}
    for name in SCRIPTS:
        sys.argv = [name, "--help"]
        found[name] = outcome(lambda name=name: runpy.run_path(str(ROOT / "training" / name), run_name="__main__"))
    return found


def main():
    """Writes the report."""
    path, cases = Path(sys.argv[1]), sys.argv[2:]
    sys.path[:1] = [str(ROOT), str(ROOT / "training")]
    hide(",".join(cases))
    for name in ("torch", "transformers", "transformers.pipelines", "datasets", "accelerate", "evaluate", "pandas"):
        importlib.import_module(name)
    importlib.import_module("transformers").Trainer  # noqa: B018  lazy, and slow to import
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as processes:
        found = processes.map(outcomes, cases, chunksize=1)
    path.write_text(json.dumps(dict(zip(cases, found, strict=True)), indent=1))


if __name__ == "__main__":
    main()
