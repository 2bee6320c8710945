# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The documentation as a site: it builds without a warning, and every public name has its place in it."""

import re
import shutil
import subprocess
import sys

import pytest
from in_process import ROOT

pytest.importorskip("zensical", reason="zensical not installed")
pytest.importorskip("mkdocstrings", reason="mkdocstrings not installed")

import modeling_mcm
import modeling_mcm.data
import modeling_mcm.evaluation
import modeling_mcm.hub
import modeling_mcm.preparation
import modeling_mcm.scoring
import modeling_mcm.serving

pytestmark = pytest.mark.slow
ROOMS = modeling_mcm.data, modeling_mcm.evaluation, modeling_mcm.hub, modeling_mcm.preparation
PACKAGES = [modeling_mcm, *ROOMS, modeling_mcm.scoring, modeling_mcm.serving]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the site, built from a copy of the pages; a warning is a failure."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "CONTRIBUTING.md", folder / "docs")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (folder / "docs" / "index.md").write_text(readme.replace("](docs/", "]("), encoding="utf-8")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "paths: [.]" in config
    (folder / "mkdocs.yml").write_text(config.replace("paths: [.]", f"paths: [{ROOT}]"), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(folder / "mkdocs.yml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "No issues found" in done.stdout + done.stderr, done.stderr[-3000:]
    return folder / "build" / "site"


def test_every_public_name_is_documented(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    names = {name for package in PACKAGES for name in package.__all__} - {"MCMPreTrainedModel"}
    assert not [name for name in names if not re.search(rf'id="[\w.]+\.{name}"', page)]
    for name in ("MCMModel", "MCMForMultiTaskRecommendation", "MCMForActionRecommendation"):
        forward = page[page.index(f'id="modeling_mcm.{name}.forward"') :][:20_000]
        assert all(argument in forward for argument in ("input_ids", "attention_mask", "of shape"))


def test_nothing_is_fetched_from_another_host(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link|source)\b[^>]*?(?:src|href)="?(?:https?:)?//[^">]+', text)
        assert not [tag for tag in loaded if 'rel="canonical"' not in tag and "rel=canonical" not in tag], page.name
