# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A training that is started again: finished, interrupted, damaged, with other options, in the wrong folder."""

import re
import shutil

import pytest
from choices import pretraining_options
from folders import assert_same_weights, content, cut, flipped, read_json, remove_files, rewritten, without
from in_process import call
from transformers.utils import logging

from modeling_mcm.training.options import PretrainingArguments
from modeling_mcm.training.resuming import (
    BEST_OPTIONS,
    DECIDING,
    FILES,
    PRETRAINING,
    RUN,
    RunError,
    checkpoint_fault,
    last_whole_checkpoint,
    output_folder_lock,
)


@pytest.fixture(scope="module")
def run(prepared):
    """A function that pre-trains for five steps in this process, and gives what was said."""

    def run(folder, *options, overrides=()):
        chosen = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 9, "use_cpu": "true"}
        plain = ["scorer=false", "state_size=0", *overrides]  # what is fitted after the steps is not of interest here
        words = pretraining_options(prepared, folder, *plain, per_device_train_batch_size=8, **chosen)
        said = []
        with pytest.MonkeyPatch.context() as patch:
            for room in ("pretraining", "finetuning", "fitting", "resuming"):
                for level in ("info", "warning"):
                    patch.setattr(logging.get_logger(f"modeling_mcm.training.{room}"), level, said.append)
            call("run_pretrain", *words, *options)
        return "\n".join(said)

    return run


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """The folder of a run of five steps, with checkpoints of steps 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of that folder, which a test may damage."""
    return shutil.copytree(finished, tmp_path / "run")


def test_a_finished_run_is_finished(run, folder):
    before = content(folder)
    free = ["--logging_steps", 1, "--save_steps", 1, "--per_device_eval_batch_size", 3]
    assert "holds this run, which is finished: nothing is left to train" in run(folder, *free)
    assert content(folder) == before


OPTIONS = {
    "learning_rate": (["--learning_rate", 0.1], [], "learning_rate 0.002 and this run has 0.1"),
    "batch size": (["--per_device_train_batch_size", 4], [], "batch size 8 and this run has 4"),
    "hidden_size": ([], ["hidden_size=32"], "hidden_size 16 and this run has 32"),
    "max_events": (["--max_events", 20], [], "max_events 40 and this run has 20"),
    "data": (["--data"], [], "other data"),
}


@pytest.mark.parametrize(("options", "overrides", "found"), OPTIONS.values(), ids=OPTIONS)
def test_other_options_are_refused_for_a_finished_run_and_an_interrupted_one(
    run, folder, options, overrides, found, prepare_log, event_log
):
    if options == ["--data"]:
        options = ["--data", prepare_log(event_log.iloc[:-3])]
    for _ in range(2):
        before = content(folder)
        with pytest.raises(SystemExit, match=f"was trained otherwise .*{found}.*nothing was changed: give another"):
            run(folder, *options, overrides=overrides)
        assert content(folder) == before
        remove_files(folder)


def test_every_option_that_decides_the_weights_exists():
    known = PretrainingArguments.__dataclass_fields__
    assert [name for name in (*DECIDING, *BEST_OPTIONS) if not any(each.startswith(name) for each in known)] == []


def plain_model(folder, finished):
    for name in ("model.safetensors", "config.json"):
        shutil.copy(finished / name, folder / name)


def another_kind(folder, finished):
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    (folder / RUN).write_text((folder / RUN).read_text().replace(PRETRAINING, "finetuning.json"))


def cut_run(folder, finished):
    plain_model(folder, finished)
    (folder / RUN).write_bytes((finished / RUN).read_bytes()[:100])


FOLDERS = {
    "unknown": (plain_model, r"nothing says what they were made with \(\S*run.json is missing\)"),
    "another kind": (another_kind, "trained otherwise .record finetuning.json and this run has pretraining.json"),
    "a cut run": (cut_run, "nothing says what they were made with .*run.json has 100 bytes and is cut"),
    "predictions": (
        lambda folder, _: (folder / "_predictions.json").write_text("{}"),
        "holds _predictions.json, and nothing says",
    ),
}


@pytest.mark.parametrize(("change", "message"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_of_something_else_is_left_alone(run, finished, tmp_path, change, message):
    folder = tmp_path / "run"
    folder.mkdir()
    change(folder, finished)
    before = content(folder)
    with pytest.raises(SystemExit, match=message) as refused:
        run(folder)
    assert str(folder) in str(refused.value.code) and content(folder) == before


def test_a_file_in_the_place_of_the_folder_is_left_alone(run, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(SystemExit, match="run can't be written to .*: give another"):
        run(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_lock_ends_with_its_run_and_leaves_nothing(run, tmp_path):
    with output_folder_lock(tmp_path / "run"):
        with pytest.raises(RunError, match="Another run writes into"), output_folder_lock(tmp_path / "run"):
            pass
        with pytest.raises(SystemExit, match="Another run writes into .*: wait for its end, or give another"):
            run(tmp_path / "run")
    assert not any((tmp_path / "run").iterdir())


CUT = "has .* bytes and is cut or damaged"
DAMAGE = {
    "no optimizer": (without("optimizer.pt"), "checkpoint-4/optimizer.pt can't be read"),
    "a flipped bit of the weights": (flipped("model.safetensors"), "model.safetensors is damaged"),
    "an optimizer without its last byte": (cut("optimizer.pt", -1), "optimizer.pt is damaged"),
    "cut vocabularies": (cut("vocabularies.json", 0.5), "vocabularies.json is damaged"),
    "no list of files": (without(FILES), "checkpoint-4/files.json is missing"),
    "no state": (without("trainer_state.json"), "checkpoint-4/trainer_state.json is missing"),
    "a cut state": (cut("trainer_state.json", 50), f"trainer_state.json {CUT}"),
    "a state that is a list": (rewritten("trainer_state.json", "[]"), "trainer_state.json holds no JSON object"),
}


def test_each_damaged_file_of_a_checkpoint_is_named(folder):
    checkpoint = folder / "checkpoint-4"
    assert checkpoint_fault(checkpoint) is None
    listed = read_json(checkpoint / FILES)
    assert {path.name for path in checkpoint.iterdir()} == {*listed, FILES, "trainer_state.json"}
    shutil.copytree(checkpoint, folder / "whole")
    for name, (change, message) in DAMAGE.items():
        shutil.rmtree(checkpoint)
        shutil.copytree(folder / "whole", checkpoint)
        change(checkpoint)
        assert re.search(message, checkpoint_fault(checkpoint)), name


def test_a_checkpoint_that_is_not_whole_is_named_and_the_last_whole_one_is_taken(run, folder, finished):
    remove_files(folder)
    shutil.rmtree(folder / "checkpoint-5")
    change, message = DAMAGE["cut vocabularies"]
    change(folder / "checkpoint-4")
    said = run(folder)
    assert re.search(message, said) and str(folder / "checkpoint-4") in said
    assert f"going on from {folder / 'checkpoint-2'}" in said
    assert_same_weights(folder, finished)
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-5")
    assert (folder / "unused-checkpoint-4").is_dir()


def test_where_no_checkpoint_is_whole_the_run_starts_anew_and_says_why(run, folder, finished):
    remove_files(folder)
    for each in folder.glob("checkpoint-*"):
        (each / "optimizer.pt").unlink()
    said = run(folder)
    assert said.count("optimizer.pt can't be read") == 3 and "so not used" in said and "starting anew" in said
    assert_same_weights(folder, finished)


@pytest.mark.parametrize("damage", [without("model.safetensors"), cut("config.json", 9)])
def test_a_finished_model_that_is_damaged_is_written_again_from_its_last_checkpoint(run, folder, finished, damage):
    damage(folder)
    said = run(folder)
    assert str(folder / "checkpoint-5") in said and re.search(r"run(/\S+)? (has|\S+ has).*(cut|no model)", said)
    assert_same_weights(folder, finished)
    assert {path.name[-2:] for path in folder.glob("checkpoint-*")} == {"-2", "-4", "-5"}
    assert "which is finished" in run(folder)


def test_a_run_that_was_killed_after_its_last_step_makes_no_step_more(run, folder, finished):
    remove_files(folder)
    before = content(folder)
    assert f"going on from {folder / 'checkpoint-5'}" in run(folder)
    assert_same_weights(folder, finished)
    assert before.items() <= content(folder).items()
    assert read_json(folder / PRETRAINING)["steps"] == 5


def test_the_newest_whole_checkpoint_outlives_broken_ones(run, folder, finished):
    remove_files(folder)
    cut("optimizer.pt", 9)(folder / "checkpoint-5")
    cut("optimizer.pt", 9)(folder / "checkpoint-4")
    (folder / "checkpoint-5").rename(folder / "checkpoint-90")
    run(folder, "--save_total_limit", 2)
    assert_same_weights(folder, finished)
    assert [path.name for path in sorted(folder.glob("checkpoint-*"))] == ["checkpoint-4", "checkpoint-5"]
    assert not any(checkpoint_fault(folder / f"checkpoint-{step}") for step in (4, 5))


BEST = "--eval_strategy steps --eval_steps 2 --load_best_model_at_end true --save_only_model false".split()
BEST += "--metric_for_best_model loss --greater_is_better true --max_steps 6".split()  # the first, as it falls


def read_best(folder):
    state = read_json(folder / "trainer_state.json")
    return state["best_global_step"], state["best_model_checkpoint"]


def test_the_best_checkpoint_is_found_where_it_lies_now_or_is_said_to_be_lost(run, tmp_path):
    run(tmp_path / "first", *BEST)
    assert read_best(tmp_path / "first")[0] == 2
    moved, damaged = (shutil.copytree(tmp_path / "first", tmp_path / name) for name in ("moved", "damaged"))
    cut("model.safetensors", 100)(damaged / "checkpoint-2")
    for folder in (moved, damaged):
        remove_files(folder)
        shutil.rmtree(folder / "checkpoint-6")
    assert "can't be used" not in run(moved, *BEST)
    assert_same_weights(moved, tmp_path / "first")
    assert read_best(moved) == (2, str(moved / "checkpoint-2"))
    said = run(damaged, *BEST)
    assert re.search(r"best checkpoint so far, of step 2 .* can't be used .*model.safetensors is damaged", said)
    assert read_best(damaged)[0] == 6  # it went on from step 4, so the last one alone was evaluated again
