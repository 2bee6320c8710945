# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Every file of configuration/accelerate/ starts the processes that it says, on CPUs here; they train one model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from folders import assert_same_weights, losses, remove_files, weights

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = sorted((ROOT / "configuration" / "accelerate").glob("*.yaml"))
pytestmark = pytest.mark.slow


def command(settings, prepared, folder, *options, script="training/run_pretrain.py", launch=()):
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", settings, *launch, script]
    words += ["--data", prepared, "--config", "configuration/mcm-tiny", "--output_dir", folder, "--max_steps", 4]
    words += ["--recipe", "none"]  # which keeps no average of the weights under FSDP
    words += ["--per_device_train_batch_size", 4, "--logging_steps", 1, "--save_strategy", "steps", "--save_steps", 2]
    words += ["--eval_strategy", "steps", "--eval_steps", 2, "--report_to", "none", "--disable_tqdm", "true", *options]
    words += ["--config_overrides", "hidden_size=16", "num_hidden_layers=2", "num_attention_heads=2"]
    words += [
        "intermediate_size=32",
        "hidden_dropout_prob=0",
        "attention_probs_dropout_prob=0",
        "event_dropout_prob=0",
    ]
    return list(map(str, words))


def start(words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(words):
    process = start(words)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text[-3000:]
    return text


@pytest.fixture(scope="module")
def on_two(prepared, tmp_path_factory):
    """The folder of a run on two processes in full precision."""
    folder = tmp_path_factory.mktemp("two") / "run"
    run(command(ROOT / "configuration" / "accelerate" / "ddp_cpu.yaml", prepared, folder))
    return folder


def test_every_setting_is_tried():
    names = {path.stem for path in SETTINGS}
    assert names == {"one_cpu", "ddp_cpu", "ddp_gpu", "fsdp2", "bf16_multi_node"}
    for path in SETTINGS:
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize("name", ["one_cpu", "ddp_cpu", "ddp_gpu", "fsdp2"])
def test_a_setting_starts_its_processes(name, on_two, prepared, tmp_path):
    """Those for GPUs with two processes in the place of eight, and DDP in the place of FSDP."""
    settings = ROOT / "configuration" / "accelerate" / f"{name}.yaml"
    wanted = yaml.safe_load(settings.read_text())
    processes = min(wanted["num_processes"], 2)
    run(command(settings, prepared, tmp_path / "run", launch=["--num_processes", processes]))
    facts = json.loads((tmp_path / "run" / "pretraining.json").read_text())
    assert facts["machine"]["processes"] == processes and facts["batch_size"] == 4 * processes
    if processes == 2:
        precise = wanted["mixed_precision"] == "no"
        assert losses(tmp_path / "run") == pytest.approx(losses(on_two), rel=1e-6 if precise else 1e-2)
        assert precise == (losses(tmp_path / "run") == losses(on_two))  # bf16 it is


def test_two_machines_train_one_model(on_two, prepared, tmp_path):
    """Both of them here, one process on each."""
    settings = ROOT / "configuration" / "accelerate" / "bf16_multi_node.yaml"
    launch = ["--num_processes", 2, "--main_process_ip", "127.0.0.1", "--main_process_port", 29561, "--machine_rank"]
    machines = [start(command(settings, prepared, tmp_path / "run", launch=[*launch, rank])) for rank in (1, 0)]
    for machine in machines:
        text, _ = machine.communicate(timeout=300)
        assert machine.returncode == 0, text[-3000:]
    facts = json.loads((tmp_path / "run" / "pretraining.json").read_text())
    assert facts["machine"]["processes"] == 2
    assert losses(tmp_path / "run") == pytest.approx(losses(on_two), rel=1e-2)


def test_sharded_weights_give_the_model_of_whole_ones_also_after_a_resume(on_two, prepared, tmp_path):
    settings, folder = ROOT / "configuration" / "accelerate" / "fsdp2.yaml", tmp_path / "run"
    launch = ["--num_processes", 2, "--mixed_precision", "no"]
    words = command(settings, prepared, folder, script="tests/helpers/fsdp_on_cpus.py", launch=launch)
    run(words)
    assert (folder / "checkpoint-2" / "pytorch_model_fsdp.bin").is_file()  # it was FSDP
    assert losses(folder) == pytest.approx(losses(on_two), rel=1e-5)
    whole, sharded = weights(on_two), weights(folder)
    assert whole.keys() == sharded.keys()
    not_under_fsdp = ("model.state.", "model.forecasts.")  # a warning says so
    of_training = {name: value for name, value in whole.items() if not name.startswith(not_under_fsdp)}
    assert 10 < len(of_training) < len(whole)
    assert all(torch.allclose(value, sharded[name], atol=1e-4) for name, value in of_training.items())
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    remove_files(folder)
    os.rename(folder / "checkpoint-4", tmp_path / "checkpoint-4")
    assert "going on from" in run(words)
    assert_same_weights(folder, tmp_path)


def test_an_average_of_sharded_weights_is_refused(prepared, tmp_path):
    settings = ROOT / "configuration" / "accelerate" / "fsdp2.yaml"
    launch = ["--num_processes", 2, "--mixed_precision", "no"]
    script = "tests/helpers/fsdp_on_cpus.py"
    process = start(command(settings, prepared, tmp_path, "--ema_decay", 0.9, script=script, launch=launch))
    text, _ = process.communicate(timeout=300)
    assert process.returncode and "Found ema_decay with FSDP" in text
