# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM under transformers' own tests: ModelTesterMixin, ConfigTester and FeatureExtractionSavingTestMixin, unmodified.

The wheel of transformers has no tests, but the source distribution of the same version has: it is fetched with pip.
"""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PASSED = 210  # at least, half of them on MCMModel and its multi-task head; the rest is skipped: text, images, devices
# What the source distribution lacks of the modules that its tests import.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


@pytest.fixture(scope="module")
def transformers_tests(tmp_path_factory):
    """Folder with the package `transformers_tests`."""
    folder = tmp_path_factory.mktemp("mixins")
    pip = f"-m pip download --quiet --no-deps --no-binary :all: transformers=={transformers.__version__} --dest"
    subprocess.run([sys.executable, *pip.split(), folder], check=True, timeout=300)
    package = folder / "transformers_tests"
    for path in (".", *{Path(name).parent for name in STUBS}):
        (package / path).mkdir(parents=True, exist_ok=True)
        (package / path / "__init__.py").touch()
    for name, text in STUBS.items():
        (package / name).write_text(text)
    with tarfile.open(next(folder.glob("transformers-*.tar.gz"))) as archive:
        for member in archive.getmembers():
            path = Path(member.name)
            if path.parent.name == "tests" and path.match("test_*_common.py"):
                (package / path.name).write_bytes(archive.extractfile(member).read())
    return folder


def test_the_mixins_of_transformers_pass(transformers_tests):
    paths = os.pathsep.join([str(transformers_tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = "-m pytest --override-ini=addopts= -q -p no:cacheprovider".split()
    run = subprocess.run(
        [sys.executable, *words, HERE / "mixins.py"],
        env=os.environ | {"PYTHONPATH": paths, "CI": ""},
        capture_output=True,
        text=True,
        timeout=900,
    )
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?)\b", run.stdout)}
    assert run.returncode == 0 and set(counts) == {"passed"}, run.stdout[-6000:] + run.stderr[-2000:]
    print(f"{counts['passed']} of transformers' own tests pass.")
    assert counts["passed"] >= PASSED
