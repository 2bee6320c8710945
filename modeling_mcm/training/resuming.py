# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Trainings that can be killed at any time and started again: anew, from the last whole checkpoint, or not at all.

A run writes what decides its weights into its folder first (run.json), and its record last. It does not start if it is
finished, if its folder holds something else, or if its options or data are not those of run.json: a resumed run would
ignore some of them and mix others. `Trainer` writes checkpoints in place. So each gets a list of its files with their
digests before its last file, the state, is written: one that a kill cut, or that was damaged since, does not fit it.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import PreTrainedConfig, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from modeling_mcm.checkpoint_mcm import CheckpointError, check_files, damage
from modeling_mcm.files_mcm import read_json, some, write_json
from modeling_mcm.folders import RunError, file_digest, lock_output

logger = logging.get_logger(__name__)
PRETRAINING, FINE_TUNING = "pretraining.json", "finetuning.json"  # records, which a run writes as its last file
LOG_FILE = "log.json"  # where the prepared log of a model's counts is
RUN = "run.json"  # what a run is, which it writes as its first file
FILES = "files.json"  # digests of the files of a checkpoint, by name
UNUSED = "unused-"  # beginning of the name that a checkpoint gets which no run can go on from
Facts = dict[str, Any]  # of a run, by name, as JSON stores them
LONG = 120  # number of characters from which a message does not show two values, such as digests
FULL_DISK = ("No space left", "inline_container", "iostream error")  # words of errors; the last ones are torch.save's
FOREIGN = ("*.json", "*.safetensors", "checkpoint-*")  # files of a folder that a run without run.json leaves alone
# Beginnings of the options of `TrainingArguments` that decide the weights. The size of a step is compared as
# "batch size", in customers. Those of the best decide which checkpoint that is.
DECIDING = """adam_ bf16 data_seed dataloader_drop_last early_stopping fp16 ignore_data_skip label_smoothing
learning_rate load_best lr_ max_ neftune num_train optim seed tf32 train_sampling use_liger warmup
weight_decay""".split()
BEST_OPTIONS = ("eval_strategy", "eval_steps", "eval_delay", "metric_for_best_model", "greater_is_better")


def deciding_options(args: TrainingArguments, config: PreTrainedConfig, own: Facts) -> Facts:
    """The options that decide the final weights of a training, by name, with values as JSON stores them: those of the
    `Trainer`, of the model's config before it is trained, and a command's `own`."""
    beginnings = (*DECIDING, *(BEST_OPTIONS if args.load_best_model_at_end else ()))
    facts = {name: value for name, value in args.to_dict().items() if name.startswith(beginnings)}
    fields = config.to_dict()  # of these MCM's own: those of every model depend on how it was made
    facts |= {name: fields.get(name) for name in type(config).__annotations__} | dict(own)
    facts["batch size"] = step_size(args)
    return json.loads(json.dumps(facts, default=str))


def step_size(args: TrainingArguments) -> int:
    """Counts the customers in one step of all processes together."""
    return args.train_batch_size * args.world_size * args.gradient_accumulation_steps


def checkpoint_fault(checkpoint: Path) -> str | None:
    """Says which file is missing or damaged that a run needs to go on from a checkpoint; `None` if all are whole."""
    if fault := damage(checkpoint / FILES) or damage(checkpoint / TRAINER_STATE_NAME):
        return fault
    for name, digest in read_json(checkpoint / FILES).items():
        try:
            if file_digest(checkpoint / name) != digest:
                return f"{checkpoint / name} is damaged"
        except OSError as error:
            return f"{checkpoint / name} can't be read ({error.strerror})"
    return None


def last_whole_checkpoint(output_dir: Path) -> str | None:
    """Finds the newest complete checkpoint. Those after it, which were cut by a kill or damaged since, are named. What
    was cut is removed, and what was damaged is set aside under another name."""
    while (newest := get_last_checkpoint(str(output_dir))) and (fault := checkpoint_fault(Path(newest))):
        logger.warning(f"Interrupted while it was written, or damaged since, so not used: {fault}.")
        aside = Path(newest).with_name(UNUSED + Path(newest).name)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.move(newest, aside) if Path(newest, FILES).exists() else shutil.rmtree(newest)
    return newest


def command_line() -> str:
    """The command of this process, as a person writes it."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def check_processes(run: Facts) -> None:
    """Raises [`RunError`] if the processes of a run have different data or options."""
    for process, other in enumerate(gather_object([run])):
        if changes := _changes(other, run):
            raise RunError(
                f"Process {process} has {some(changes)}: one model can't be trained on both. Give every machine the "
                "same data and options."
            )


def is_finished(folder: Path, record: str, run: Facts) -> bool:
    """Says whether a folder holds a run that is finished.

    Args:
        record (`str`): Name of the record that a finished run leaves there, `PRETRAINING` or `FINE_TUNING`.
        run (`dict`): What a run that is started again must have in common: `data` and other digests, and
            `options`, such as those of [`deciding_options`].

    Raises:
        RunError: If the folder holds something else, or a model that was trained with other data or options.
    """
    run = {"record": record, **run}
    path, advice = folder / RUN, "and nothing was changed: give another output_dir, or remove that folder."
    if fault := damage(path):
        if foreign := sorted(file.name for pattern in FOREIGN for file in folder.glob(pattern)):
            raise RunError(
                f"{folder} holds {some(foreign)}, and nothing says what they were made with ({fault}), {advice}"
            )
    elif changes := _changes(read_json(path), run):
        raise RunError(f"{folder} holds a model that was trained otherwise ({some(changes)}), {advice}")
    elif (folder / record).exists():
        try:
            check_files(folder)
            logger.info(f"{folder} holds this run, which is finished: nothing is left to train.")
            return True
        except CheckpointError as error:
            logger.warning(f"The model is damaged, so it is written again: {error}")
    return False


def begin_run(folder: Path, record: str, run: Facts) -> None:
    """Writes into a folder what the run is, with the arguments of [`is_finished`], and removes an earlier record."""
    write_json(folder / RUN, {"record": record, **run})
    (folder / record).unlink(missing_ok=True)


def name_log(folder: Path, data: Path) -> None:
    """Writes into the folder of a model where the prepared log is that it counts, from there."""
    write_json(folder / LOG_FILE, {"data": os.path.relpath(data.resolve(), folder.resolve())})


def _changes(earlier: Facts, run: Facts) -> list[str]:
    """A phrase for each of the data and options of another run that differs from this run's."""
    before, now = ({**facts, **facts.get("options", {}), "options": None} for facts in (earlier, run))
    changes = []
    for name, value in now.items():
        if before.get(name) != value:
            phrase = f"{name} {before.get(name)} and this run has {value}"
            changes.append(phrase if len(phrase) < LONG else f"other {name}")
    return changes


@contextmanager
def output_folder_lock(output_dir: str | Path, is_writer: bool = True) -> Iterator[None]:
    """A context that makes an output folder and locks it, so that no second run writes into it at the same time.
    Raises `RunError` if the folder can't be written to, or another run writes into it, and `OSError` if its disk gets
    full."""
    folder = Path(output_dir).resolve()
    with lock_output(folder) if is_writer else nullcontext():
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if not any(words in str(error) for words in FULL_DISK):
                raise
            raise OSError(
                f"{folder} can't be written to ({error}; {shutil.disk_usage(folder).free:,} bytes are free); earlier "
                "checkpoints are whole. Make room on the disk, or keep fewer (save_total_limit), and start the run "
                "again: it goes on from the last one."
            ) from error


class ResumedRun(TrainerCallback):
    """When a run is resumed, leaves one ended that had ended, and finds its best checkpoint, also in a folder that was
    moved."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Sets the path of the best checkpoint, or warns and leaves it out if its files are missing or damaged."""
        if not state.global_step:
            return
        control.should_training_stop = state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]
        if state.best_metric is None or not args.load_best_model_at_end:
            return
        folder = Path(args.output_dir, f"checkpoint-{state.best_global_step}")
        if not (fault := checkpoint_fault(folder)):
            state.best_model_checkpoint = str(folder)
            return
        logger.warning(
            f"The best checkpoint so far, of step {state.best_global_step} with {state.best_metric:.4f}, can't be "
            f"used ({fault}): the best of those that follow is kept."
        )
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
