# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face Trainer whose runs can be killed at any time and started again.

A checkpoint is complete or does not exist. A run is resumed only with the same data and options, and a run that has
made all of its steps makes no more. The final model replaces an earlier one only when all of its files are written.
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

from modeling_mcm.files_mcm import flush_folder, replace_folder, write_json
from modeling_mcm.training.callbacks import BestCheckpointFinder, RunConsistency
from modeling_mcm.training.resuming import (
    TRAINER_STATE,
    WEIGHTS,
    changed_config,
    checkpoints,
    deciding_options,
    read_step,
    step_size,
)

INCOMPLETE = "_incomplete"  # folder in output_dir that checkpoints are written to, before they are moved
FINAL = "final"  # folder in it that the final model is written to


class ResumableTrainer(Trainer):
    """`Trainer` that refuses to resume another run's checkpoint, and writes folders completely or not at all.
    [`remember_run`] sets what a resumed run must have in common with the first; [`finish`] writes the final model."""

    _is_saving = False
    run_consistency: RunConsistency | None = None

    @property
    def group_size(self) -> int:
        """`int`: number of customers, or of groups of offers, in one step of all processes together."""
        return step_size(self.args)

    def remember_run(self, facts: dict[str, Any], options: Mapping[str, Any]) -> None:
        """Sets what all processes, and a run with the checkpoint that it resumes, must have in common."""
        own = json.loads(json.dumps(options, default=str))
        self.run_consistency = RunConsistency(facts, deciding_options(self.args) | own)
        self.add_callback(self.run_consistency)
        self.add_callback(BestCheckpointFinder())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as `Trainer` does, after a check that the checkpoint to resume is of the same run. Raises
        `ValueError` if the checkpoint was trained with other data or options."""
        if self.args.should_save:
            shutil.rmtree(Path(str(self.args.output_dir), INCOMPLETE), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if (
            isinstance(resume_from_checkpoint, str) and self.run_consistency is not None
        ):  # earlier than torch's error on shapes
            folder = Path(resume_from_checkpoint)
            state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
            earlier = state.get("stateful_callbacks", {}).get(RunConsistency.STATE, {})
            model: Any = self.model
            config = getattr(model, "config", None)
            changes = [] if config is None else changed_config(folder, config)
            self.run_consistency.check(state.get("global_step", 0), earlier, changes)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.control.should_training_stop:  # true if the resumed run has ended
            super()._run_epoch(*args, **kwargs)

    def _uncounted(self) -> AbstractContextManager[None]:
        """A context for work whose seconds are not counted as training."""
        return nullcontext()

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, INCOMPLETE) if self._is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint to another folder, and renames it when the files of every process are on the disk."""
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
                self.state.save_to_json(str(folder / INCOMPLETE / name / TRAINER_STATE))
                replace_folder(folder / INCOMPLETE / name, folder / name)
                self._drop_old_checkpoints(folder, name)
            self.accelerator.wait_for_everyone()

    def _drop_old_checkpoints(self, folder: Path, newest: str) -> None:
        """Keeps `save_total_limit` checkpoints, with the newest and the best."""
        needed = {newest, Path(self.state.best_model_checkpoint or newest).name}
        others = [path for path in checkpoints(folder) if path.name not in needed]
        others.sort(key=lambda path: read_step(path) <= self.state.global_step)  # stable, so by step after that
        limit = self.args.save_total_limit or 0
        for path in others[: max(len(others) + len(needed) - limit, 0)] if limit > 0 else ():
            path.rename(folder / INCOMPLETE / path.name)
        shutil.rmtree(folder / INCOMPLETE)

    def finish(self, record: str, facts: Mapping[str, Any]) -> None:
        """Writes the final model into the output folder: all of its files or, if that fails, none. The record is
        written first, as of a run that is not finished, and the weights last. If both are there, they are of the same
        run. Raises `OSError` if the files can't be written; checkpoints stay as they are."""
        folder = Path(str(self.args.output_dir))
        written = folder / INCOMPLETE / FINAL
        try:
            self.save_model(str(written), _internal_call=True)
            if self.args.should_save:
                self.state.save_to_json(str(written / TRAINER_STATE))
                flush_folder(written)
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
            for name in weights:  # files of an earlier model that this one does not have
                (folder / name).unlink()
            shutil.rmtree(folder / INCOMPLETE, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub()

    def write_record(self, record: str, facts: Mapping[str, Any], is_finished: bool) -> None:
        """Writes the record of a run into the output folder."""
        write_json(Path(str(self.args.output_dir), record), {**facts, "finished": is_finished})
