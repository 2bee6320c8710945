# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests share: one thread, a small event log with awkward names, its prepared data set, tiny models."""

import atexit
import os
import shutil
import subprocess
import tempfile

CACHE = tempfile.TemporaryDirectory(prefix="mcm-tests-")
atexit.register(CACHE.cleanup)
# Before torch starts its threads; the subprocesses of the tests inherit it.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": CACHE.name}

import pytest  # noqa: E402
import torch  # noqa: E402
from choices import EXTENDED, PAPER, TINY, from_data, perturb  # noqa: E402
from corner_shop import SCHEMA, make_log, make_profile  # noqa: E402
from in_process import call  # noqa: E402

from modeling_mcm import MCMConfig, MCMFeatureExtractor, MCMForMultiTaskRecommendation  # noqa: E402
from modeling_mcm.data import EventSchema  # noqa: E402
from modeling_mcm.data.dataset import FEATURE_EXTRACTOR_FOLDER  # noqa: E402
from modeling_mcm.preparation import prepare  # noqa: E402
from modeling_mcm.preparation.engine import spark_session  # noqa: E402

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden", action="store_true", help="write what tests compare with anew: golden files, tables"
    )
    parser.addoption("--mount", action="store_true", help="mount small disks in memory, to fill them; needs root")


# What no installation gives. With CI=true any other skip, such as for want of Java, fails the run.
MAY_BE_MISSING = ("no GPU", "no disk can be mounted", "mounts a disk", "no git")


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or os.environ.get("CI") != "true":
        return
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", [])}
    if wrong := [reason for reason in reasons if not reason.startswith(MAY_BE_MISSING)]:
        reporter.write_line(f"CI=true, and no test may be skipped for these reasons: {wrong}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def event_log():
    """A log of 34 customers, one row an event."""
    return make_log()


@pytest.fixture(scope="session")
def prepare_log(tmp_path_factory):
    """A function that prepares a log of the schema above and gives the folder."""

    def run(log, rows_per_shard=20, **changes):
        folder, schema = tmp_path_factory.mktemp("prepared") / "data", EventSchema.from_dict(SCHEMA | changes)
        prepare(log, schema, folder, profile=make_profile(log), rows_per_shard=rows_per_shard)
        return folder

    return run


@pytest.fixture(scope="session")
def prepared(event_log, prepare_log):
    """Folder of the log's prepared data set."""
    return prepare_log(event_log)


@pytest.fixture(scope="session")
def raw(event_log, prepared):
    """Folder of the log and its profiles as files, where benchmarks look for it; no test changes them."""
    folder = prepared.with_name("raw")
    folder.mkdir()
    event_log.to_parquet(folder / "events.parquet")
    make_profile(event_log).to_parquet(folder / "profile.parquet")
    return folder


@pytest.fixture(scope="session")
def stored_extractor(prepared):
    """Folder of the prepared data set's feature extractor."""
    return prepared / FEATURE_EXTRACTOR_FOLDER


@pytest.fixture
def extractor(stored_extractor):
    """The prepared data set's feature extractor, a new one for each test."""
    return MCMFeatureExtractor.from_pretrained(str(stored_extractor))


@pytest.fixture
def inputs(extractor, event_log):
    """Histories of 14, 1, 30 and no events as model inputs, the third the longest; `age` is missing for some."""
    customers = [
        {"events": event_log[event_log["who"] == who].head(count), "profile": profile}
        for who, count, profile in [("c00", 14, {"age": "old"}), ("c01", 1, None), ("c02", 30, {"age": "young"})]
    ]
    return dict(extractor([*customers, {"events": [], "profile": {"age": "old"}}]))


@pytest.fixture(scope="session")
def tiny_config(stored_extractor):
    """A function that makes a tiny config for the log's features: the paper's choices, with `extended=True` ours."""

    def make(extended=False, **changes):
        data = from_data(MCMFeatureExtractor.from_pretrained(str(stored_extractor)))
        return MCMConfig(**data | TINY | (EXTENDED if extended else PAPER) | changes)

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """A function that makes a tiny model in evaluation mode whose every parameter has a say (none is left at 0)."""

    def make(extended=False, **changes):
        torch.manual_seed(0)
        model = MCMForMultiTaskRecommendation(tiny_config(extended, **changes)).eval()
        return perturb(model)

    return make


@pytest.fixture
def save(tiny_model, extractor, tmp_path):
    """A function that saves a tiny model of the choices as a checkpoint and gives its folder."""

    def run(**choices):
        for part in (tiny_model(**choices), extractor):
            part.save_pretrained(tmp_path / "checkpoint")
        return str(tmp_path / "checkpoint")

    return run


@pytest.fixture
def command(capsys):
    """A function that calls a script with options and gives what it printed; `fails` is what it ends with."""

    def run(script, *options, fails=None):
        if fails is None:
            call(script, *options)
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as caught:
            call(script, *options)
        said = f"{caught.value.code} {capsys.readouterr().err}"
        assert caught.value.code not in (0, None) and fails in said
        return said

    return run


@pytest.fixture
def small_disk(tmp_path, request):
    """A function that mounts a disk of a size in memory, or changes its size, and gives its folder."""
    if not request.config.getoption("--mount"):
        pytest.skip("mounts a disk: give --mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def size(size):
        how = f"remount,size={size}" if mounted else f"size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        mounted.append(size)
        return folder

    yield size
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    """A Spark session with two workers, one for all tests: it starts slowly. `engine="spark"` then finds it."""
    pytest.importorskip("pyspark", reason="Spark not installed")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("no Java")
    few = {"spark.sql.shuffle.partitions": "2", "spark.sql.adaptive.enabled": "false", "spark.ui.enabled": "false"}
    few |= {"spark.log.level": "ERROR", "spark.local.dir": str(tmp_path_factory.mktemp("spark"))}
    with spark_session({"spark.master": "local[2]", **few}) as session:
        yield session
