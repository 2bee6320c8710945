# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Where a training starts: anew, from its last complete checkpoint, or not at all.

It does not start if it is finished, if its folder holds something else, or if its options or data are not those that
the folder's model was trained with: a resumed run would ignore some of them and mix others.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout
from safetensors import safe_open
from transformers import PreTrainedConfig, TrainingArguments

from modeling_mcm.files_mcm import damage, locked

PRETRAINING, FINE_TUNING = "pretraining.json", "finetuning.json"  # records, which a run writes as its last file
RECORDS = (PRETRAINING, FINE_TUNING)
TRAINER_STATE, CONFIG, VOCABULARIES = "trainer_state.json", "config.json", "vocabularies.json"
JSON_FILES = (CONFIG, "preprocessor_config.json", VOCABULARIES, "model.safetensors.index.json")
WEIGHTS: tuple[str, ...] = ("*.safetensors", "pytorch_model*")
MODEL_FILES = (CONFIG, "adapter_config.json", *WEIGHTS)
NEEDED = {  # names of files besides weights and state that a run goes on from, with all patterns of such files
    "optimizer.pt": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*", "rank*-of-*-optimizer.pt"),
    "scheduler.pt": ("scheduler.pt",),
    "rng_state.pth": ("rng_state*.pth",),
}
OTHER_FOLDERS = {  # a file that only such a folder holds, and a name for the folder
    "manifest.json": "a prepared data set",
    "_predictions.json": "predictions",
}
SHOWN = 3

# Options of `TrainingArguments` that do not change the weights: where and how often something is written, and how the
# work is divided. The size of a step is compared separately, in customers.
FREE = {"output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"}
FREE |= {"report_to", "run_name", "project", "disable_tqdm", "use_cpu", "debug", "deepspeed", "parallelism_config"}
FREE |= {"do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank", "full_determinism", "use_cache"}
FREE |= {"skip_memory_metrics", "auto_find_batch_size", "accelerator_config", "torch_empty_cache_steps", "label_names"}
FREE |= {"restore_callback_states_from_checkpoint", "enable_jit_checkpoint", "include_for_metrics", "eval_on_start"}
FREE |= {"prediction_loss_only", "bf16_full_eval", "fp16_full_eval", "include_num_input_tokens_seen"}
FREE_BEGINNINGS: tuple[str, ...] = ("_", "ddp_", "dataloader_", "eval_accumulation", "eval_do_concat", "eval_use")
FREE_BEGINNINGS += ("fsdp", "gradient_checkpointing", "activation_checkpointing", "hub_", "log_", "logging_")
FREE_BEGINNINGS += ("push_to_hub", "save_", "torch_compile", "trackio_")
# Options that decide which checkpoint is the best. They change the final weights only with load_best_model_at_end.
OF_THE_BEST = ("eval_strategy", "eval_steps", "eval_delay", "metric_for_best_model", "greater_is_better")


class RunError(ValueError):
    """A training can't start. The message says why, and what to do."""


class Start(NamedTuple):
    """Where a training starts."""

    checkpoint: str | None  # folder of the last complete checkpoint; `None` to start anew
    faults: list[str]  # a phrase for each file that is missing or damaged in newer checkpoints
    is_finished: bool  # whether nothing is left to train


def deciding_options(args: TrainingArguments) -> dict[str, Any]:
    """The options that decide the final weights of a training, by name, with values as JSON stores them."""
    facts = {
        name: value
        for name, value in args.to_dict().items()
        if name not in FREE and not name.startswith(FREE_BEGINNINGS)
    }
    facts["dataloader_drop_last"] = args.dataloader_drop_last
    if not args.load_best_model_at_end:
        facts = {name: value for name, value in facts.items() if name not in OF_THE_BEST}
    return json.loads(json.dumps(facts, default=lambda value: value.value if isinstance(value, Enum) else str(value)))


def step_size(args: TrainingArguments) -> int:
    """Counts the customers, or groups of offers, in one step of all processes together."""
    return args.train_batch_size * args.world_size * args.gradient_accumulation_steps


def changed_options(earlier: Mapping[str, Any], as_of: Mapping[str, Any]) -> list[str]:
    """A phrase for each option that both runs have and that differs."""
    return [
        f"{name} {earlier[name]} and this run has {as_of[name]}"
        for name in earlier
        if name in as_of and earlier[name] != as_of[name]
    ]


# Fields of a config that the training of the customer state sets.
FORECAST_FIELDS = ("forecast_days", "forecast_window", "target_features", "target_types")


def changed_config(folder: Path, config: PreTrainedConfig) -> list[str]:
    """A phrase for each field of a config that differs from that in a folder; none if that one can't be read."""
    path = folder / CONFIG
    if not path.is_file() or damage(path):
        return []
    earlier = json.loads(json.dumps(type(config).from_pretrained(str(folder)).to_dict(), default=str))
    as_of = json.loads(json.dumps(config.to_dict(), default=str))
    # MCM's own fields: those of every model depend on how it was made, and those of forecasts are learned.
    own = sorted(set(type(config).__annotations__) - set(FORECAST_FIELDS))
    phrases = changed_options({name: earlier.get(name) for name in own}, {name: as_of.get(name) for name in own})
    return [phrase if len(phrase) < 200 else f"another {phrase.partition(' ')[0]}" for phrase in phrases]


# --------------------------------------------------------------------------------------------------- whole checkpoints


def read_step(checkpoint: Path) -> int:
    """Reads the step from the name of a checkpoint folder, such as checkpoint-500."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Lists the checkpoint folders in an output folder, sorted by step."""
    paths = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rsplit("-", 1)[1].isdigit()]
    return sorted((path for path in paths if path.is_dir()), key=read_step)


def weight_faults(folder: Path) -> list[str]:
    """A phrase for each missing or damaged file that a model is read from: weights, config and feature extractor."""
    weights = [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    has_weights = any(not path.name.startswith("average.") for path in weights)
    faults = [] if has_weights else [f"{folder} has no model.safetensors"]
    faults += _damages([*weights, *(folder / name for name in JSON_FILES if (folder / name).exists())])
    index = folder / "model.safetensors.index.json"
    if index.exists() and not faults and not (folder / "model.safetensors").exists():
        parts = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        faults += [f"{folder} has no {name}" for name in sorted(parts) if not (folder / name).is_file()]
    return faults


def checkpoint_faults(checkpoint: Path) -> list[str]:
    """A phrase for each missing or damaged file that a run needs to go on from a checkpoint unchanged."""
    faults = _state_faults(checkpoint) + (weight_faults(checkpoint) or _divergence(checkpoint))
    for name, patterns in NEEDED.items():
        paths = [path for pattern in patterns for path in sorted(checkpoint.glob(pattern))]
        faults += _damages(paths) if paths else [f"{checkpoint} has no {name}"]
    return faults


def _damages(paths: Iterable[Path]) -> list[str]:
    return [fault for path in paths if (fault := damage(path))]


def _state_faults(checkpoint: Path) -> list[str]:
    path = checkpoint / TRAINER_STATE
    if not path.is_file():
        return [f"{checkpoint} has no {TRAINER_STATE}"]
    if fault := damage(path):
        return [fault]
    step = json.loads(path.read_text(encoding="utf-8")).get("global_step")
    return [] if step == read_step(checkpoint) else [f"{path} is of step {step}"]


def _divergence(folder: Path) -> list[str]:
    """Names the first file with NaN or infinite weights: a run that is resumed from it would go on diverging."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                value = file.get_tensor(name)
                if value.is_floating_point() and not value.isfinite().all():
                    return [f"{path} has NaN or infinite numbers in {name}"]
    return []


def last_whole_checkpoint(output_dir: str | Path) -> tuple[str | None, list[str]]:
    """Finds the newest complete checkpoint; files may have been damaged or deleted since they were written."""
    faults: list[str] = []
    for folder in reversed(checkpoints(output_dir)):
        if not (own := checkpoint_faults(folder)):
            return str(folder), faults
        faults += own
    return None, faults


# ---------------------------------------------------------------------------------------------------- finished folders


def find_start(output_dir: str | Path, record: str, run: Mapping[str, Any], config: PreTrainedConfig) -> Start:
    """Finds where a training starts that writes to a folder.

    Args:
        record (`str`): Name of the record that a finished run leaves there, `PRETRAINING` or `FINE_TUNING`.
        run (`dict[str, Any]`): What a resumed run must have in common: `data` and other digests, and `options` from
            [`deciding_options`].

    Raises:
        RunError: If the folder holds something else, or a model that was trained with other data or options.
    """
    folder = Path(output_dir)
    _check_folder(folder, record)
    checkpoint, faults = last_whole_checkpoint(folder)
    path = folder / record
    if path.exists() and not (damaged := damage(path)):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if changes := _changes(folder, facts, run, config):
            raise RunError(
                f"{folder} holds a model that was trained otherwise ({_some(changes)}), and nothing was changed: give "
                "another output_dir, or remove that folder."
            )
        if facts.get("finished") and not (faults_of_weights := weight_faults(folder)):
            return Start(checkpoint, [], True)
        faults = (faults_of_weights if facts.get("finished") else []) + faults
    elif has_model(folder) and checkpoint is None:
        reason = damaged if path.exists() else f"it has no {record}"
        raise RunError(
            f"{folder} holds a model, and nothing says what it was trained with ({reason}); nothing was changed: give "
            "another output_dir, or remove that folder."
        )
    return Start(checkpoint, faults, False)


def has_model(folder: Path) -> bool:
    """Whether a folder holds files of a model, complete or not."""
    return any(any(folder.glob(pattern)) for pattern in MODEL_FILES)


def _check_folder(folder: Path, record: str) -> None:
    for name, what in OTHER_FOLDERS.items():
        if (folder / name).exists():
            raise RunError(f"{folder} holds {what} ({name}), and nothing was changed: give another output_dir.")
    for other in RECORDS:
        if other != record and (folder / other).exists():
            raise RunError(
                f"{folder} holds the model of another kind of training ({other}), and nothing was changed: give "
                "another output_dir."
            )


def _changes(folder: Path, facts: Mapping[str, Any], run: Mapping[str, Any], config: Any) -> list[str]:
    """Names the data and options of a finished model that this run does not have."""
    earlier = facts.get("run", {})
    digests = [f"other {name}" for name in run if name != "options" and earlier.get(name) != run[name]]
    return digests + changed_options(earlier.get("options", {}), run["options"]) + changed_config(folder, config)


def _some(phrases: list[str]) -> str:
    more = f" and {len(phrases) - SHOWN} more" if len(phrases) > SHOWN else ""
    return f"{', '.join(phrases[:SHOWN])}{more}"


@contextmanager
def output_folder_lock(output_dir: str | Path, is_writer: bool = True) -> Iterator[None]:
    """A context that makes an output folder and locks it, so that no second run trains into it at the same time.
    Raises `RunError` if the folder can't be written to, or another run trains into it."""
    folder, existed = Path(output_dir).resolve(), Path(output_dir).exists()
    if not is_writer:
        yield
        return
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder, wait=False))
        except Timeout:
            raise RunError(
                f"Another run trains into {folder}: wait for its end, or give another output_dir."
            ) from None
        except OSError as error:
            raise RunError(f"{folder} can't be written to ({error.strerror}): give another output_dir.") from error
        yield
    if not existed and not any(folder.iterdir()):
        folder.rmdir()
