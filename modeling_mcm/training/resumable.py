# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face Trainer whose runs can be killed at any time and started again.

Checkpoints are there whole or not at all, a run that goes on is the run that was, one that has made all of its steps
makes no more, and the model that it ends with takes its place in one go.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import Trainer

from modeling_mcm.files_mcm import write_json
from modeling_mcm.training.callbacks import BestSoFar, SameRun
from modeling_mcm.training.resuming import (
    STATE,
    WEIGHTS,
    changed_config,
    checkpoints,
    deciding_options,
    step_of,
)

# The private methods of `Trainer` that the trainers of this package override, with the parameters that they read. They
# are no part of its interface, so a new transformers may rename them: a test holds them to the installed version.
PRIVATE_METHODS: dict[str, tuple[str, ...]] = {
    "_get_output_dir": ("trial",),
    "_get_train_sampler": ("train_dataset",),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_prepare_for_training": ("max_steps", "train_dataloader", "resume_from_checkpoint"),
    "_run_epoch": ("model", "epoch", "train_dataloader"),
    "_save": ("output_dir", "state_dict"),
    "_save_checkpoint": ("model", "trial"),
}
INCOMPLETE = "_incomplete"  # folder in output_dir where a checkpoint is while it is written
FINAL = "final"  # and there, the model that a run ends with


class ResumableTrainer(Trainer):
    """`Trainer` that refuses to go on from another run's checkpoint, and writes folders whole or not at all.

    `remember_run` says what must be the same; `finish` writes what a run ends with.
    """

    _is_saving = False
    same_run: SameRun | None = None

    def remember_run(self, facts: dict[str, Any], options: Mapping[str, Any]) -> None:
        """What all processes, and a run that goes on from a checkpoint, must agree on.

        Args:
            facts: of data and order, such as the digest of the data.
            options: besides those of `TrainingArguments` that decide the weights.
        """
        self.same_run = SameRun(facts, deciding_options(self.args) | json.loads(json.dumps(options, default=str)))
        self.add_callback(self.same_run)
        self.add_callback(BestSoFar())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if self.args.should_save:
            shutil.rmtree(Path(str(self.args.output_dir), INCOMPLETE), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if isinstance(resume_from_checkpoint, str) and self.same_run is not None:  # before weights of other sizes
            folder = Path(resume_from_checkpoint)
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            earlier = state.get("stateful_callbacks", {}).get(SameRun.STATE, {})
            model: Any = self.model
            config = getattr(model, "config", None)
            changes = [] if config is None else changed_config(folder, config)
            self.same_run.check(state.get("global_step", 0), earlier, changes)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.control.should_training_stop:  # a run that was ended and is started again
            super()._run_epoch(*args, **kwargs)

    def _uncounted(self) -> AbstractContextManager[None]:
        """Around what takes no time of the training."""
        return nullcontext()

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, INCOMPLETE) if self._is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint aside and renames it when all of it, from every process, is on the disk."""
        with self._uncounted():
            folder = Path(self._get_output_dir(trial))
            name = f"checkpoint-{self.state.global_step}"
            try:
                self._is_saving = True
                super()._save_checkpoint(model, trial)
            except (OSError, RuntimeError, SafetensorError) as error:
                free = shutil.disk_usage(folder).free
                shutil.rmtree(folder / INCOMPLETE, ignore_errors=True)
                raise OSError(
                    f"{folder / name} can't be written ({error}; {free:,} bytes are free); checkpoints before it are "
                    "whole. Make room on the disk, or keep fewer (save_total_limit), and start the run again: it goes "
                    "on from the last one."
                ) from error
            finally:
                self._is_saving = False
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(folder / name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(folder / INCOMPLETE / name / STATE))
                settle(folder / INCOMPLETE / name, folder / name)
                self._drop_old_checkpoints(folder, name)
            self.accelerator.wait_for_everyone()

    def _drop_old_checkpoints(self, folder: Path, newest: str) -> None:
        """Keeps `save_total_limit` checkpoints, the newest and the best among them; none is ever there in part.

        Those of later steps than the newest were not whole when the run went on from an earlier one: they go first.
        """
        kept = {newest, Path(self.state.best_model_checkpoint or newest).name}
        others = [path for path in checkpoints(folder) if path.name not in kept]
        others.sort(key=lambda path: step_of(path) <= self.state.global_step)  # stable, so by step after that
        limit = self.args.save_total_limit or 0
        for path in others[: max(len(others) + len(kept) - limit, 0)] if limit > 0 else ():
            path.rename(folder / INCOMPLETE / path.name)
        shutil.rmtree(folder / INCOMPLETE)

    def finish(self, record: str, facts: Mapping[str, Any]) -> None:
        """Puts the model that a run ends with in its folder: all of its files or, if that fails, none.

        The record takes its place first, and says that the run is not finished yet; the weights come last. Whoever
        finds both knows that they are of one run.

        Args:
            record: name of the file of facts.
            facts: what is known of the run; under `run` what a run that is started again must have in common with it.
        """
        folder = Path(str(self.args.output_dir))
        written = folder / INCOMPLETE / FINAL
        try:
            self.save_model(str(written), _internal_call=True)
            if self.args.should_save:
                self.state.save_to_json(str(written / STATE))
                flush(written)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder / INCOMPLETE, ignore_errors=True)
            raise OSError(
                f"The model of {folder} can't be written ({error}); checkpoints are whole. Make room on the disk, and "
                "start the run again: it goes on from the last one."
            ) from error
        if self.args.should_save:
            self.write_record(record, facts, is_finished=False)
            weights = {path.name for pattern in WEIGHTS for path in folder.glob(pattern)}
            for path in sorted(written.iterdir(), key=lambda path: (path.suffix == ".safetensors", path.name)):
                os.replace(path, folder / path.name)
                weights.discard(path.name)
            for name in weights:  # of an earlier save, damaged or in other parts
                (folder / name).unlink()
            shutil.rmtree(folder / INCOMPLETE, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub()

    def write_record(self, record: str, facts: Mapping[str, Any], is_finished: bool) -> None:
        """Says what the model in the folder was trained with, and whether nothing is left to do."""
        write_json(Path(str(self.args.output_dir), record), {**facts, "finished": is_finished})


def flush(folder: Path) -> None:
    """Waits until the files of a folder are on the disk."""
    for path in [*(path for path in folder.rglob("*") if path.is_file()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def settle(written: Path, place: Path) -> None:
    """Moves a folder to its place in one step, once its files are on the disk; one that is there is replaced."""
    flush(written)
    if place.exists():
        place.rename(written.with_name(f"{written.name}-before"))
    written.rename(place)
