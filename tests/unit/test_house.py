# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of CONTRIBUTING.md that a parser can hold: who imports whom, what is left alone, what is installed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clean_copy import clean_copy
from packaging.version import Version
from transformers.dynamic_module_utils import get_imports

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "modeling_mcm"
HEADER = ["# Copyright 2026 The MCM Authors", "# SPDX-License-Identifier: Apache-2.0"]
FOLDERS = ("modeling_mcm", "configuration", "training", "examples", "benchmarks", "tests")
SOURCES = [ROOT / "setup.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
LIBRARY = [path for path in SOURCES if PACKAGE in path.parents]
FLAT = [path for path in LIBRARY if path.name.endswith("_mcm.py")]

# The files that travel with a checkpoint, without the ending `_mcm`. A file may read those in the lines above its own:
# the model reads nothing of the log, the log's files read the configuration alone, and the last ones read everything.
MODEL = [
    "earlier_configs files outputs readout_triton",
    "configuration",
    "counted_memory embeddings losses readout repeat_memory state",
    "action_counts resizing sampling scored_rows",
    "pretrained scores",
    "modeling",
    "action customer",
]
LOG = ["events", "times vocabulary_files", "inputs schema", "encoding", "processing", "action_inputs live_history"]
BOTH = ["explanations live_reader live_storage pipeline", "live_memories", "live_state", "live_window", "live"]
SIBLINGS: dict[str, set[str]] = {}  # by file, those that it may read
for lines, known in ((MODEL, set()), (LOG, {"configuration_mcm", "files_mcm"}), (BOTH, SIBLINGS)):
    above = set(known)
    for line in lines:
        names = {f"{name}_mcm" for name in line.split()}
        SIBLINGS |= {name: set(above) for name in names}
        above |= names
FILES_OF_A_LOG = {"configuration_mcm", "files_mcm", *(f"{name}_mcm" for line in LOG for name in line.split())}
FLAT_LIBRARIES = {"torch", "numpy", "transformers", "huggingface_hub", "safetensors"}
# What a travelling file may read where it is installed, and does without elsewhere.
OPTIONAL = {"readout_triton_mcm": {"triton"}}
# What the rooms of the package may read of the package.
ROOMS = {
    "data": {"data", "losses_mcm", *FILES_OF_A_LOG},
    "preparation": {"preparation", "data", "extras", "counted_memory_mcm", *FILES_OF_A_LOG},
    "evaluation": {"evaluation", "data", "extras", "modeling_mcm", *FILES_OF_A_LOG},
    "hub": {"hub", "data", "evaluation", *SIBLINGS},
    "extras": set(),
    "progress": set(),
    "option": set(),
    "training": {"training", "data", "evaluation", "extras", "option", *SIBLINGS},
    "scoring": {"scoring", "data", "preparation", "evaluation", "extras", *SIBLINGS},
    "serving": {"serving", "data", "evaluation", "extras", "training", *SIBLINGS},
    "__init__": set(SIBLINGS),
}
ROOMS["commands"] = {"commands", *ROOMS} - {"__init__"} | set(SIBLINGS)  # they call every room, and no room calls them
LOADS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(ROOT)) for path in paths])


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """(level, dotted module) of every import of a file, wherever it stands; the package's version is none."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif ast.unparse(node) == "from modeling_mcm import __version__":
            continue
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def calls(path):
    return [ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


def test_the_rooms_are_all_known():
    assert {path.stem for path in FLAT} == set(SIBLINGS) and all(path.parent == PACKAGE for path in FLAT)
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in LIBRARY}
    assert found - {"hub"} == {*SIBLINGS, *ROOMS} - {"hub"}


@named(FLAT)
def test_files_that_travel_are_flat(path):
    relative = []
    for level, module in imports(path):
        if level:
            relative.append(module)
            assert level == 1 and module in SIBLINGS[path.stem], f"from {'.' * level}{module} import"
        else:
            top = module.split(".")[0]
            known = FLAT_LIBRARIES | OPTIONAL.get(path.stem, set())
            assert top in known or top in sys.stdlib_module_names, f"import {module}"
    # transformers refuses a file of which a needed import is missing; those that it sees are needed
    assert set(get_imports(path)) <= FLAT_LIBRARIES | sys.stdlib_module_names
    # transformers looks for relative imports with a pattern, so one that is quoted in a docstring would count
    quoted = re.findall(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+))", path.read_text(), flags=re.MULTILINE)
    assert sorted(relative) == sorted(first or second for first, second in quoted)


@named([path for path in LIBRARY if path not in FLAT])
def test_rooms_read_only_the_rooms_they_may(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for level, module in imports(path):
        if level or module.split(".")[0] == "modeling_mcm":
            names = module.split(".")[0 if level else 1 :]
            assert level <= 1 and names and names[0] in ROOMS[room], f"from {'.' * level}{module} import"


@named(LIBRARY)
def test_the_library_reads_nothing_of_the_checkout(path):
    for level, module in imports(path):
        assert level or module.split(".")[0] not in FOLDERS[1:], f"import {module}"
    parsed = tree(path)
    documented = [node for node in ast.walk(parsed) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {id(node.body[0].value) for node in documented if ast.get_docstring(node)}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            assert not re.match(r"(\.\./)*(configuration|model_cards)(/|$)", node.value), node.value


@named(LIBRARY)
def test_the_library_runs_no_code_from_data_and_leaves_output_to_its_user(path):
    assert not LOADS_CODE & {module.split(".")[0] for _, module in imports(path)}
    forbidden = {"eval", "exec", "compile", "__import__", "torch.load", "logging.basicConfig", "breakpoint"}
    if PACKAGE / "commands" not in path.parents:
        forbidden.add("print")
    assert not forbidden & set(calls(path))
    assert not [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)]


@named([path for path in SOURCES if {ROOT / "training", ROOT / "examples", ROOT / "benchmarks"} & {*path.parents}])
def test_scripts_build_on_the_package_alone(path):
    others = {other.stem for folder in ("training", "examples", "tests") for other in (ROOT / folder).glob("*.py")}
    for level, module in imports(path):
        assert not level and module.split(".")[0] not in {*FOLDERS[1:], *others}, f"import {module}"


@named([path for path in SOURCES if ROOT / "benchmarks" in path.parents])
def test_no_benchmark_that_is_run_is_imported_by_another(path):
    texts = {other.stem: other.read_text(encoding="utf-8") for other in (ROOT / "benchmarks").rglob("*.py")}
    programs = {name for name, text in texts.items() if '\nif __name__ == "__main__":\n' in text}
    assert {"run_ablation", "recipe"} <= programs
    for _, module in imports(path):
        assert module.split(".")[0] not in programs, (
            f"import {module}: move what is shared to a file that is never run"
        )


@named([path for path in SOURCES if ROOT / "training" in path.parents])
def test_scripts_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
    assert [module for _, module in imports(path)][0].startswith("modeling_mcm.commands.")


@named([path for path in SOURCES if ROOT / "tests" in path.parents])
def test_no_test_imports_a_test(path):
    for _, module in imports(path):
        assert module != "conftest" and not module.startswith("test_"), f"import {module}: use tests/helpers/"


def test_unit_tests_mirror_the_package():
    folders = {path.name for path in (ROOT / "tests" / "unit").iterdir() if list(path.glob("*.py"))}
    assert folders <= {path.name for path in PACKAGE.iterdir() if path.is_dir()} | {"benchmarks"}


@named(SOURCES)
def test_every_file_has_the_licence_header_and_says_what_it_is_for(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    start = 1 if lines[0].startswith("#!") else 0
    assert lines[start : start + 2] == HEADER
    assert ast.get_docstring(tree(path))


def test_only_the_package_is_installed_and_it_is_whole(tmp_path):
    source, built = clean_copy(tmp_path / "source"), tmp_path / "built"
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(built)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in built.iterdir()] == ["modeling_mcm"]
    installed = {path.relative_to(built) for path in built.rglob("*") if path.is_file()}
    wanted = {path.relative_to(ROOT) for path in LIBRARY} | {Path("modeling_mcm/py.typed")}
    wanted |= {path.relative_to(ROOT) for kind in ("jinja", "yaml") for path in PACKAGE.rglob(f"*.{kind}")}
    assert installed == wanted


def test_the_oldest_versions_are_those_of_setup():
    required = next(
        ast.literal_eval(node.value)
        for node in ast.walk(tree(ROOT / "setup.py"))
        if isinstance(node, ast.keyword) and node.arg == "install_requires"
    )
    oldest = {re.split(">=|,", words)[0]: re.split(">=|,", words)[1] for words in required}
    lines = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned.keys() == oldest.keys()
    for name, version in oldest.items():
        assert Version(pinned[name]) == Version(version), name
