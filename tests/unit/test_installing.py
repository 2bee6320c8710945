# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""`pip install modeling-mcm` alone does everything but what an extra is for, and a message names that extra."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import import_without
import pytest
from choices import TINY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = re.compile(r"\w+ is not installed, which comes with an extra: pip install 'modeling-mcm\[(\S+)\]'\.")
# What needs no extra, whatever is missing: training, fine-tuning, scoring of prepared data, the pipelines.
ALWAYS = ["modeling_mcm", "modeling_mcm.training.trainer", "modeling_mcm.training.callbacks", "modeling_mcm.scoring"]
ALWAYS += ["modeling_mcm.pipeline_mcm", "modeling_mcm.data", "modeling_mcm.evaluation", "modeling_mcm.hub"]
ALWAYS += [f"modeling_mcm.data.{name}" for name in ("collator", "dataset", "schema", "offers")]


# Each alone where several are imported side by side, and all together.


def beyond_the_base_install():
    """Every installed top-level module that `pip install modeling-mcm` alone does not bring."""
    waiting, base = ["modeling-mcm"], set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in base:
            base.add(name)
            needed = [Requirement(each) for each in metadata.requires(name) or []]
            waiting += [each.name for each in needed if not each.marker or each.marker.evaluate({"extra": ""})]
    modules = metadata.packages_distributions()
    names = {name for name, owners in modules.items() if not base & {canonicalize_name(each) for each in owners}}
    return sorted(names - {"_distutils_hack", "pkg_resources", "setuptools"})


EXTRAS = set(metadata.metadata("modeling-mcm").get_all("Provides-Extra"))
# Each alone where several are imported side by side, and all together.
CASES = ["ibis", "duckdb", "lightgbm", "sqlalchemy", ",".join(beyond_the_base_install())]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What came of every module and script, by what is hidden."""
    path = tmp_path_factory.mktemp("installing") / "report.json"
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "import_without.py"), str(path), *CASES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text())


def speechless(outcomes):
    """Modules that neither work nor say which extra they need, and scripts that do not show their help."""
    found = {}
    for name, outcome in outcomes.items():
        words = SENTENCE.fullmatch(outcome[1]) if outcome and outcome[0] == "ImportError" else None
        if outcome and (name.endswith(".py") or not words or words[1] not in EXTRAS):
            found[name] = outcome
    return found


@pytest.mark.parametrize("hidden", CASES, ids=[*CASES[:-1], "all"])
def test_without_a_package_it_works_or_names_the_extra(report, hidden):
    assert speechless(report[hidden]) == {}
    assert not [name for name in ALWAYS if report[hidden][name]]


def test_the_sentence_names_the_package_and_the_extra(report):
    for package in ("ibis", "duckdb"):
        said = {outcome[1] for outcome in report[package].values() if outcome}
        assert said == {f"{package} is not installed, which comes with an extra: pip install 'modeling-mcm[data]'."}


def test_imports_load_no_package_of_an_extra_and_functions_keep_their_names():
    code = "import sys, modeling_mcm.training.trainer, modeling_mcm.scoring, modeling_mcm.data.collator\n"
    code += "print(sorted({'ibis', 'duckdb', 'pyspark', 'lightgbm'} & set(sys.modules)))\n"
    code += "import modeling_mcm.preparation.prepare\nfrom modeling_mcm.preparation import prepare\n"
    code += "print(type(prepare).__name__)"  # the function, though the module of its name came first
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "function"]


def test_a_module_of_ours_that_is_missing_is_no_extra():
    from modeling_mcm.extras import needs

    with pytest.raises(ModuleNotFoundError, match="modeling_mcm.nowhere"), needs("data"):
        import modeling_mcm.nowhere  # noqa: F401


@pytest.mark.slow
def test_training_and_scoring_run_without_any_extra(prepared, tmp_path):
    code = "import runpy, sys\nfrom import_without import hide\nhide(sys.argv.pop(1))\n"
    code += "sys.argv.pop(0)\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(import_without.__file__).parent)])}
    (tmp_path / "config.json").write_text('{"model_type": "mcm"}')
    sizes = [f"{name}={value}" for name, value in TINY.items()]
    pretrain = ["--config", tmp_path, "--config_overrides", *sizes, "--max_steps", 2, "--output_dir", tmp_path / "run"]
    predict = ["--model", tmp_path / "run", "--output_dir", tmp_path / "scores"]
    for script, options in (("run_pretrain", pretrain), ("run_predict", predict)):
        hidden = ",".join(beyond_the_base_install())
        command = [sys.executable, "-c", code, hidden, f"training/{script}.py", "--data", prepared, *options]
        done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "scores").glob("*.parquet"))
