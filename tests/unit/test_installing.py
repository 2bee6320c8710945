# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""`pip install modeling-mcm` alone does everything but what an extra is for, and a message names that extra."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import import_without
import pytest
from choices import TINY
from folders import read_json
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
SENTENCE = re.compile(r"\w+ is not installed, which comes with an extra: pip install 'modeling-mcm\[(\S+)\]'\.")
# What needs no extra, whatever is missing: training, fine-tuning, scoring of prepared data, the pipelines.
ALWAYS = ["modeling_mcm", "modeling_mcm.public", "modeling_mcm.training.encoder.trainer"]
ALWAYS += [f"modeling_mcm.{name}" for name in ("scoring", "pipeline_mcm", "data", "evaluation", "hub")]
ALWAYS += [f"modeling_mcm.data.{name}" for name in ("collator", "dataset", "schema", "offers")]


def beyond_the_base_install():
    """Every installed top-level module that `pip install modeling-mcm` alone does not bring."""
    waiting, base = [*DEPENDENCIES], {"modeling-mcm"}
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in base:
            base.add(name)
            needed = [Requirement(line) for line in metadata.requires(name) or []]
            waiting += [each.name for each in needed if not each.marker or each.marker.evaluate({"extra": ""})]
    modules = metadata.packages_distributions()
    names = {name for name, owners in modules.items() if not base & {canonicalize_name(each) for each in owners}}
    return sorted(names - {"_distutils_hack", "pkg_resources", "setuptools"})


# Each alone where several are imported side by side, and all together.
CASES = ["ibis", "duckdb", "lightgbm", "sqlalchemy", ",".join(beyond_the_base_install())]


def imported(nodes):
    """The packages that some statements import, by the names of the distributions that bring them."""
    nodes = list(nodes)
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    modules = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"modeling_mcm"}
    owners = metadata.packages_distributions()
    return {canonicalize_name(owners[name][0]) for name in modules}


def test_what_the_package_imports_is_declared():
    """By itself, and not because another package needs it. jinja2 is asked for by huggingface_hub where a card is
    written, uvicorn is started by its name, and SQLAlchemy finds its driver by its own."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "modeling_mcm").rglob("*.py")]
    assert imported(node for tree in trees for node in tree.body) == DEPENDENCIES - {"jinja2"}
    users = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name != "dev"}
    declared = {canonicalize_name(Requirement(line).name) for lines in users.values() for line in lines}
    assert imported(node for tree in trees for node in ast.walk(tree)) - DEPENDENCIES <= declared


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What came of every module and script, by what is hidden."""
    path = tmp_path_factory.mktemp("installing") / "report.json"
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "import_without.py"), str(path), *CASES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_json(path)


def speechless(outcomes):
    """Modules that neither work nor say which extra they need, and scripts that do not show their help."""
    found = {}
    for name, outcome in outcomes.items():
        words = SENTENCE.fullmatch(outcome[1]) if outcome and outcome[0] == "ImportError" else None
        if outcome and (name.endswith(".py") or not words or words[1] not in PROJECT["optional-dependencies"]):
            found[name] = outcome
    return found


@pytest.mark.parametrize("hidden", CASES, ids=[*CASES[:-1], "all"])
def test_without_a_package_it_works_or_names_the_extra(report, hidden):
    assert speechless(report[hidden]) == {}
    assert not [name for name in ALWAYS if report[hidden][name]]


LAZY = """
import sys, modeling_mcm
assert "transformers" not in sys.modules  # which takes seconds
"""
REGISTERED = """
from transformers import AutoConfig
AutoConfig.for_model("mcm")
assert {"CustomerModel", "explain"} <= {*dir(modeling_mcm)}
"""
WITHOUT_EXTRAS = """
import sys, modeling_mcm.training.encoder.trainer, modeling_mcm.scoring, modeling_mcm.data.collator
assert not {"ibis", "duckdb", "pyspark", "lightgbm"} & {*sys.modules}
import modeling_mcm.preparation.prepare
from modeling_mcm.preparation import prepare
assert type(prepare).__name__ == "function"  # though the module of its name came first
"""


@pytest.mark.parametrize("code", [LAZY + REGISTERED, WITHOUT_EXTRAS + REGISTERED], ids=["package", "modules"])
def test_imports_load_what_they_need_and_transformers_knows_the_model(code):
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


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
