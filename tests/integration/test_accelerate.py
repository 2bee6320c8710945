# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Every file of configuration/accelerate/ starts the processes that it says, on CPUs here; they train one model."""

import os
import subprocess
import sys

import pytest
from choices import NO_DROPOUT, pretraining_options
from folders import assert_same_weights, losses, read_json, remove_files
from forked_runs import ROOT, free_port

SETTINGS = ROOT / "configuration" / "accelerate"
pytestmark = pytest.mark.slow


def start(name, prepared, folder, *launch, script="training/run_pretrain.py"):
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", SETTINGS / f"{name}.yaml", *launch]
    choices = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1}
    choices |= {f"{what}_strategy": "steps" for what in ("save", "eval")} | {"save_steps": 2, "eval_steps": 2}
    words += [script, *pretraining_options(prepared, folder, "num_hidden_layers=2", *NO_DROPOUT, **choices)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, words)), cwd=ROOT, env=environment, **output)


def finish(process):
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text[-3000:]
    return text


def facts(folder):
    return read_json(folder / "pretraining.json")


@pytest.fixture(scope="module")
def on_two(prepared, tmp_path_factory):
    """The folder of a run on two processes in full precision."""
    folder = tmp_path_factory.mktemp("two") / "run"
    finish(start("ddp_cpu", prepared, folder))
    return folder


def test_every_setting_is_tried_here():
    assert {path.stem for path in SETTINGS.iterdir()} == {"one_cpu", "ddp_cpu", "ddp_gpu", "fsdp2", "bf16_multi_node"}


def test_a_setting_of_cpus_starts_its_processes(on_two, prepared, tmp_path):
    finish(start("one_cpu", prepared, tmp_path / "run"))
    for folder, processes in ((tmp_path / "run", 1), (on_two, 2)):
        assert facts(folder)["machine"]["processes"] == processes and facts(folder)["batch_size"] == 4 * processes


def test_two_machines_train_one_model_in_bf16_as_two_processes_of_one_do(on_two, prepared, tmp_path):
    """Both machines are here, with one process on each, and CPUs in the place of GPUs."""
    launch = ["--num_processes", 2, "--main_process_ip", "127.0.0.1", "--main_process_port", free_port()]
    launch.append("--machine_rank")
    machines = [start("bf16_multi_node", prepared, tmp_path / "two", *launch, rank) for rank in (1, 0)]
    for machine in machines:
        finish(machine)
    finish(start("ddp_gpu", prepared, tmp_path / "one", "--num_processes", 2))
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert facts(folder)["machine"]["processes"] == 2
        assert losses(folder) == pytest.approx(losses(on_two), rel=1e-2) and losses(folder) != losses(on_two)


def test_sharded_weights_give_the_model_of_whole_ones_also_after_a_resume(on_two, prepared, tmp_path):
    folder, launch = tmp_path / "run", ["--num_processes", 2, "--mixed_precision", "no"]
    script = "tests/helpers/fsdp_on_cpus.py"
    finish(start("fsdp2", prepared, folder, *launch, script=script))
    assert (folder / "checkpoint-2" / "pytorch_model_fsdp.bin").is_file()  # it was FSDP
    assert losses(folder) == pytest.approx(losses(on_two), rel=1e-5)
    # What reads the encoder is fitted at the end, and rounding changes ranks of labels that it scores alike.
    assert_same_weights(folder, on_two, tolerance=1e-4)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    remove_files(folder)
    os.rename(folder / "checkpoint-4", tmp_path / "checkpoint-4")
    assert "going on from" in finish(start("fsdp2", prepared, folder, *launch, script=script))
    assert_same_weights(folder, tmp_path)
