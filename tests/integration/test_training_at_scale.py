# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Long runs on many shards: what kills, full disks, damaged shards and other machines do to them, and early ends."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import forked_runs
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from choices import NO_DROPOUT, pretraining_options
from folders import assert_same_weights, logged, losses, read_json, weights
from forked_runs import ROOT

from modeling_mcm.data import EventSchema
from modeling_mcm.preparation import prepare
from modeling_mcm.training.resuming import checkpoint_fault
from synthetic import make_click_log

STEPS = 18  # in epochs of nine, the last of two customers


@pytest.fixture(scope="module")
def data(prepare_log, event_log):
    """The log of 34 customers in shards of three."""
    return prepare_log(event_log, rows_per_shard=3)


@pytest.fixture(scope="module")
def options(data):
    """A function that gives the options of a run with a worker and a checkpoint every second step."""
    choices = {"max_steps": STEPS, "per_device_train_batch_size": 4, "dataloader_num_workers": 1, "ema_decay": 0.9}
    choices |= {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 3, "logging_steps": 1}

    def make(output_dir, *overrides, **options):
        return pretraining_options(data, output_dir, *overrides, **choices | options)

    return make


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory):
    """The folder of a run that nothing happened to, with all of its checkpoints."""
    folder = tmp_path_factory.mktemp("undisturbed")
    forked_runs.pretrain(options(folder / "run", save_total_limit=100), folder / "log")
    return folder / "run"


def assert_same_end(folder, undisturbed):
    assert_same_weights(folder, undisturbed)
    assert losses(folder) == losses(undisturbed) and len(losses(folder)) >= 12


def test_kills_lose_no_whole_checkpoint_and_change_no_weight(options, undisturbed, tmp_path):
    """Every other one within the first second, the rest at any moment of a step or of the writing of a checkpoint."""
    folder, log, generator = tmp_path / "run", tmp_path / "log", random.Random(7)
    chosen = options(folder, save_steps=1, dataloader_num_workers=0)
    reached = 0
    for kill in range(6):
        process = forked_runs.start(chosen, log)
        if kill % 2:
            time.sleep(generator.uniform(0, 1))
        else:
            forked_runs.wait_for(lambda: not checkpoint_fault(folder / f"checkpoint-{reached + 1}"), process)  # noqa: B023
            time.sleep(generator.uniform(0, 0.1))
        assert process.is_alive(), log.read_text(errors="replace")[-3000:]
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        steps = [int(each.name[11:]) for each in folder.glob("checkpoint-*") if not checkpoint_fault(each)]
        assert max(steps, default=0) >= reached
        reached = max(steps, default=0)
    assert 3 <= reached < STEPS
    forked_runs.pretrain(chosen, log)
    assert_same_end(folder, undisturbed)
    assert not any(map(checkpoint_fault, folder.glob("checkpoint-*")))


def test_a_killed_worker_ends_the_run_which_goes_on_when_started_again(options, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = forked_runs.start(options(folder), tmp_path / "log")
    forked_runs.wait_for(lambda: (folder / "checkpoint-4").exists())
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 1
    workers[0].kill()
    text = forked_runs.finish(process, 1, tmp_path / "log")
    # torch's own error, or ours if the worker was killed while it handed over a batch
    assert re.search("DataLoader worker .*(killed|exited unexpectedly)", text)
    assert "going on from" in forked_runs.pretrain(options(folder), tmp_path / "again")
    assert_same_end(folder, undisturbed)


def test_two_processes_of_which_one_is_killed_go_on_together(options, tmp_path):
    """In the middle of an epoch, whose last step is of two customers for one process and of none for the other.

    What is drawn depends on torch's generators alone, which a checkpoint has, one for each process.
    """

    def chosen(folder):
        return options(folder, per_device_train_batch_size=2, max_steps=12, save_total_limit=100, sampled_labels=1)

    forked_runs.run_two(chosen(tmp_path / "undisturbed"), tmp_path / "log")
    folder = tmp_path / "run"
    processes = forked_runs.start_two([chosen(folder)] * 2, tmp_path / "first")
    forked_runs.wait_for(lambda: not checkpoint_fault(folder / "checkpoint-4"))
    os.kill(processes[1].pid, signal.SIGKILL)
    for process in processes:
        process.join(60)
        assert process.exitcode not in (0, None)
    for later in folder.glob("checkpoint-*"):
        if later.name not in ("checkpoint-2", "checkpoint-4"):
            shutil.rmtree(later)
    forked_runs.run_two(chosen(folder), tmp_path / "again")
    assert_same_end(folder, tmp_path / "undisturbed")


def test_a_full_disk_loses_no_checkpoint_and_the_run_goes_on_when_there_is_room(
    options, undisturbed, small_disk, tmp_path
):
    of_one = sum(path.stat().st_size for path in (undisturbed / "checkpoint-2").iterdir())
    folder = small_disk(int(2.6 * of_one)) / "run"
    text = forked_runs.pretrain(options(folder), tmp_path / "log", expect=1)
    assert re.search(r"run can't be written to \(.* bytes are free\); earlier checkpoints are whole", text)
    faults = [checkpoint_fault(folder / f"checkpoint-{step}") for step in (2, 4, 6)]
    assert faults[:2] == [None, None] and faults[2]
    small_disk("64m")
    assert "going on from" in forked_runs.pretrain(options(folder), tmp_path / "again")
    assert_same_end(folder, undisturbed)


def test_processes_with_other_data_train_nothing(options, prepare_log, event_log, tmp_path):
    log = pd.concat([event_log, event_log.tail(1).assign(when=event_log["when"].min())])
    choices = [options(tmp_path / "run"), [*options(tmp_path / "run"), "--data", prepare_log(log)]]
    for process, log in zip(forked_runs.start_two(choices, tmp_path / "log"), ("log.0", "log.1"), strict=True):
        text = forked_runs.finish(process, 1, tmp_path / log)
        assert re.search(r"Process [01] has other data.*Give every machine the same data", text)
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_a_run_goes_on_with_other_numbers_of_processes_and_workers(options, tmp_path):
    """Two processes with workers, stopped after five steps, then one without: as one alone would have done."""
    folders = [tmp_path / "alone", tmp_path / "changing"]

    def chosen(folder, **more):
        return options(folder, *NO_DROPOUT, **{"dataloader_num_workers": 0, "save_steps": 5} | more)

    forked_runs.pretrain(chosen(folders[0]), tmp_path / "log")
    both = chosen(folders[1], per_device_train_batch_size=2, dataloader_num_workers=2)
    processes = forked_runs.start_two([both, both], tmp_path / "log")
    forked_runs.wait_for(lambda: not checkpoint_fault(folders[1] / "checkpoint-5"))
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    for later in folders[1].glob("checkpoint-1?"):
        shutil.rmtree(later)
    assert "going on from" in forked_runs.pretrain(chosen(folders[1]), tmp_path / "again")
    assert len(losses(folders[0])) == STEPS and losses(folders[1]) == pytest.approx(losses(folders[0]), rel=1e-5)
    assert_same_weights(folders[1], folders[0], tolerance=2e-5)


@pytest.fixture(scope="module")
def stopping(options, tmp_path_factory):
    """Options of a run that learns too fast, evaluates every third step and may end early; and its folder."""
    folder = tmp_path_factory.mktemp("stopping")
    choices = {"early_stopping_patience": 3, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 3}
    choices |= {"learning_rate": 0.05, "max_steps": 300, "ema_decay": 0.5, "save_total_limit": 100}

    def chosen(name):
        return options(folder / name, **choices)

    forked_runs.pretrain(chosen("run"), folder / "log")
    return chosen, folder / "run"


def test_a_run_ends_early_with_the_average_that_was_evaluated_best(stopping):
    _, folder = stopping
    state = read_json(folder / "trainer_state.json")
    found = {entry["step"]: entry["eval_loss"] for entry in logged(folder) if "eval_loss" in entry}
    best = min(found, key=found.get)
    assert best < state["global_step"] == best + 9 < 300  # three evaluations later
    assert state["best_metric"] == found[best] and state["best_model_checkpoint"].endswith(f"checkpoint-{best}")
    checkpoint = folder / f"checkpoint-{best}"
    average, own = weights(checkpoint, "average.safetensors"), weights(checkpoint)
    fitted_last = "model.state.", "model.forecaster.", "scorer."  # after the average
    trained = {name: value for name, value in weights(folder).items() if not name.startswith(fitted_last)}
    assert trained and all(torch.equal(value, average[f"module.{name}"]) for name, value in trained.items())
    assert any(not torch.equal(value, own[name]) for name, value in trained.items())


def test_patience_outlives_a_kill_and_an_early_end_stays_the_end(stopping, tmp_path):
    chosen, folder = stopping
    state = read_json(folder / "trainer_state.json")
    last, killed = f"checkpoint-{state['global_step'] - 3}", folder.with_name("killed")
    for name in {last, f"checkpoint-{state['best_global_step']}"}:
        shutil.copytree(folder / name, killed / name)
    shutil.copy(folder / "run.json", killed)
    before = weights(folder)
    for path, words in ((killed, last), (folder, "which is finished: nothing is left to train")):
        assert words in forked_runs.pretrain(chosen(path.name), tmp_path / path.name)
        assert read_json(path / "trainer_state.json")["global_step"] == state["global_step"]
        assert all(torch.equal(value, before[name]) for name, value in weights(path).items())


@pytest.mark.slow
def test_a_start_on_a_thousand_customers_takes_at_most_so_much_memory(tmp_path):
    pq.write_table(make_click_log(customers=1000).events, tmp_path / "events.parquet")
    schema = EventSchema.from_yaml(ROOT / "configuration" / "schemas" / "clickstream.yaml")
    prepare(str(tmp_path / "events.parquet"), schema, tmp_path / "data")
    options = ["start", "--data", str(tmp_path / "data"), "--output_dir", str(tmp_path / "model")]
    process = subprocess.Popen([sys.executable, "-m", "modeling_mcm.commands.main", *options])
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0 and usage.ru_maxrss < 1.2e6  # KiB; it took .84e6
