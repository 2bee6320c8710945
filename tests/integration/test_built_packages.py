# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The wheel and the sdist of a release: built, installed where no checkout is, and used by the command line."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from tutorial import ROOT, write_files

from modeling_mcm import __version__

pytestmark = pytest.mark.slow
PIP = f"{sys.executable} -m pip --quiet --disable-pip-version-check".split()


def run(command, folder, **environment):
    """What a command prints in a folder, where Python finds no checkout but for the path of `environment`."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([*map(str, command)], cwd=folder, env=known, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    return done.stdout


def wheel_of(source, folder):
    """Builds the wheel of a folder with a setup.py, without network."""
    run([*PIP, *"wheel --no-deps --no-index --no-build-isolation --wheel-dir".split(), folder, source], folder)
    return folder / f"modeling_mcm-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which the wheel that was built from the sdist is installed; it has what the checkout's wheel has."""
    places = {name: tmp_path_factory.mktemp(name) for name in ("direct", "sdist", "unpacked", "again", "installed")}
    source = places["sdist"] / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):  # a build leaves nothing in the repository
        shutil.copy(ROOT / name, source)
    for name in ("modeling_mcm", "configuration", "training", "tests"):  # of which the first alone is packaged
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheel = wheel_of(source, places["direct"])
    run([sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", places["sdist"]], source)
    with tarfile.open(places["sdist"] / f"modeling_mcm-{__version__}.tar.gz") as archive:
        archive.extractall(places["unpacked"], filter="data")
    again = wheel_of(places["unpacked"] / f"modeling_mcm-{__version__}", places["again"])
    contents = [{entry.filename: entry.CRC for entry in zipfile.ZipFile(path).infolist()} for path in (wheel, again)]
    records = [name for name in contents[0] if name.endswith("/RECORD")]
    assert len(records) == 1 and contents[0] == contents[1]
    kinds = ("*.py", "*.jinja", "*.yaml", "*.safetensors", "py.typed")
    files = {str(path.relative_to(ROOT)) for kind in kinds for path in (ROOT / "modeling_mcm").rglob(kind)}
    assert {name for name in contents[0] if ".dist-info/" not in name} == files
    run([*PIP, "install", "--no-deps", "--no-index", "--target", places["installed"], again], places["installed"])
    return places["installed"]


def test_the_installed_command_goes_from_a_log_to_scores(installed, tmp_path):
    path = {"PYTHONPATH": str(installed)}  # before an editable installation of the checkout
    where = run([sys.executable, "-c", "import modeling_mcm; print(modeling_mcm.__file__)"], tmp_path, **path)
    assert Path(where.strip()) == installed / "modeling_mcm" / "__init__.py"

    def mcm(words):
        return run([sys.executable, installed / "bin" / "mcm", *words.split()], tmp_path, **path)

    write_files(tmp_path)
    run([sys.executable, "make_log.py"], tmp_path)
    log = "--events log.csv --profile profile.csv --schema schema.yaml"
    assert "Cases       160 validation, 160 test" in mcm(f"prepare {log} --output_dir data")
    few = "--max_steps 3 --eval_strategy no --report_to none --disable_tqdm true"
    mcm(f"pretrain --data data --config mcm-tiny --output_dir run {few}")
    said = mcm("evaluate --model run --data data --baselines most_popular")
    assert "160 test cases of small_shop" in said and "\nMCM  " in said
    mcm("predict --model run --data data --output_dir scores")
    scores = pd.read_parquet(tmp_path / "scores")
    assert len(scores) == 160 and {"customer_id", "product_category", "visits_30d"} <= set(scores)
