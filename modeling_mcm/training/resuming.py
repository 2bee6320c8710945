# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Where a training starts: anew, from its last whole checkpoint, or not at all.

Not at all where it is finished, where its folder holds something else, and where its options or data are not those
that the folder's model was trained with: a run that went on would ignore some of them and mix others.
"""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, Any, NamedTuple

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, TrainingArguments

from modeling_mcm.files_mcm import values_digest

if os.name == "posix":
    import fcntl

PRETRAINING, FINE_TUNING = "pretraining.json", "finetuning.json"  # what a finished run wrote, last of all
RECORDS = (PRETRAINING, FINE_TUNING)
VALUES_DIGEST = "values_digest"
STATE, CONFIG, VALUES = "trainer_state.json", "config.json", "vocabularies.json"
JSON_FILES = (CONFIG, "preprocessor_config.json", VALUES, "model.safetensors.index.json")
WEIGHTS: tuple[str, ...] = ("*.safetensors", "pytorch_model*")
MODEL_FILES = (CONFIG, "adapter_config.json", *WEIGHTS)
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*", "rank*-of-*-optimizer.pt")
OTHER_FOLDERS = {  # a file that says what a folder is
    "manifest.json": "a prepared data set",
    "mcm_export.json": "an export",
    "_predictions.json": "predictions",
}
LOCK = ".training.lock"
SHOWN = 3

# Options of `TrainingArguments` that leave the weights as they are: where and how often something is written, and how
# the work is shared out. The size of a step is compared apart, in customers.
FREE = {"output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"}
FREE |= {"report_to", "run_name", "project", "disable_tqdm", "use_cpu", "debug", "deepspeed", "parallelism_config"}
FREE |= {"do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank", "full_determinism", "use_cache"}
FREE |= {"skip_memory_metrics", "auto_find_batch_size", "accelerator_config", "torch_empty_cache_steps", "label_names"}
FREE |= {"restore_callback_states_from_checkpoint", "enable_jit_checkpoint", "include_for_metrics", "eval_on_start"}
FREE |= {"prediction_loss_only", "bf16_full_eval", "fp16_full_eval", "include_num_input_tokens_seen"}
FREE_BEGINNINGS: tuple[str, ...] = ("_", "ddp_", "dataloader_", "eval_accumulation", "eval_do_concat", "eval_use")
FREE_BEGINNINGS += ("fsdp", "gradient_checkpointing", "activation_checkpointing", "hub_", "log_", "logging_")
FREE_BEGINNINGS += ("push_to_hub", "save_", "torch_compile", "trackio_")
# Which evaluation is the best decides about the weights only where the best are kept.
OF_THE_BEST = ("eval_strategy", "eval_steps", "eval_delay", "metric_for_best_model", "greater_is_better")


class RunError(ValueError):
    """A training that does not start; the message says why, and what to do."""


class Start(NamedTuple):
    """Where a training starts.

    Attributes:
        checkpoint (`str`, *optional*): The folder of the last whole checkpoint; `None` to start anew.
        faults (`list[str]`): What was found to be missing or damaged, file by file.
        is_finished (`bool`): Whether there is nothing left to train.
    """

    checkpoint: str | None
    faults: list[str]
    is_finished: bool


def deciding_options(args: TrainingArguments) -> dict[str, Any]:
    """The options that decide which weights a training ends with, as JSON keeps them."""
    chosen = {
        name: value
        for name, value in args.to_dict().items()
        if name not in FREE and not name.startswith(FREE_BEGINNINGS)
    }
    chosen["dataloader_drop_last"] = args.dataloader_drop_last
    if not args.load_best_model_at_end:
        chosen = {name: value for name, value in chosen.items() if name not in OF_THE_BEST}
    return json.loads(json.dumps(chosen, default=lambda value: value.value if isinstance(value, Enum) else str(value)))


def changed_options(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A phrase for each option that both know and that differs."""
    return [
        f"{name} {earlier[name]} and this run has {now[name]}"
        for name in earlier
        if name in now and earlier[name] != now[name]
    ]


def changed_config(folder: Path, config: PreTrainedConfig) -> list[str]:
    """A phrase for each field of a model's config that differs from that of a folder; none where it can't be read."""
    path = folder / CONFIG
    if not path.is_file() or _damage(path):
        return []
    earlier = json.loads(json.dumps(type(config).from_pretrained(str(folder)).to_dict(), default=str))
    now = json.loads(json.dumps(config.to_dict(), default=str))
    # Not the fields of every model, which differ by how a config was made; nor what an earlier version did not know.
    own = sorted(name for name in type(config).__annotations__ if name != VALUES_DIGEST or earlier.get(name))
    phrases = changed_options({name: earlier.get(name) for name in own}, {name: now.get(name) for name in own})
    return [phrase if len(phrase) < 200 else f"another {phrase.partition(' ')[0]}" for phrase in phrases]


# --------------------------------------------------------------------------------------------------- whole checkpoints


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint folder, by its name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders, by step."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rsplit("-", 1)[1].isdigit()]
    return sorted((path for path in found if path.is_dir()), key=step_of)


def weight_faults(folder: Path) -> list[str]:
    """What is missing or damaged of the files that a model is read from: weights, config, feature extractor."""
    faults = []
    weights = [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    if not [path for path in weights if not path.name.startswith("average.")]:
        faults.append(f"{folder} has no model.safetensors")
    for path in weights:
        faults += _damage(path)
    for path in (folder / name for name in JSON_FILES):
        faults += _damage(path) if path.exists() else []
    index = folder / "model.safetensors.index.json"
    if index.exists() and not faults and not (folder / "model.safetensors").exists():
        parts = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        faults += [f"{folder} has no {name}" for name in sorted(parts) if not (folder / name).is_file()]
    return faults


def checkpoint_faults(checkpoint: Path) -> list[str]:
    """What keeps a run from going on from a checkpoint as if nothing had happened; empty if it is whole."""
    faults = _state_faults(checkpoint) + (weight_faults(checkpoint) or _divergence(checkpoint))
    for what, patterns in (("optimizer.pt", OPTIMIZERS), ("scheduler.pt", ("scheduler.pt",))):
        found = [path for pattern in patterns for path in sorted(checkpoint.glob(pattern))]
        faults += [fault for path in found for fault in _damage(path)] if found else [f"{checkpoint} has no {what}"]
    states = sorted(checkpoint.glob("rng_state*.pth"))
    return faults + (
        [fault for path in states for fault in _damage(path)] if states else [f"{checkpoint} has no rng_state.pth"]
    )


def _state_faults(checkpoint: Path) -> list[str]:
    path = checkpoint / STATE
    if not path.is_file():
        return [f"{checkpoint} has no {STATE}"]
    if faults := _damage(path):
        return faults
    step = json.loads(path.read_text(encoding="utf-8")).get("global_step")
    return [] if step == step_of(checkpoint) else [f"{path} is of step {step}"]


def _divergence(folder: Path) -> list[str]:
    """Files of weights with numbers that are none, from which a run could only go on to diverge."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                value = file.get_tensor(name)
                if value.is_floating_point() and not value.isfinite().all():
                    return [f"{path} has NaN or infinite numbers in {name}"]
    return []


def _damage(path: Path) -> list[str]:
    """What is wrong with the content of a file; folders, as of sharded states, are not looked into."""
    if path.is_dir():
        return []
    try:
        if path.suffix == ".json":
            if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
                return [f"{path} holds no JSON object"]
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
        else:  # what torch writes is a zip file with a checksum of each part
            with zipfile.ZipFile(path) as file:
                if (part := file.testzip()) is not None:
                    return [f"{path} is damaged (the checksum of {part} does not fit)"]
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        size = f"{path.stat().st_size:,} bytes" if path.exists() else "no file behind its link"
        return [f"{path} has {size} and is cut or damaged ({error})"]
    return []


def last_whole_checkpoint(output_dir: str | Path) -> tuple[str | None, list[str]]:
    """The newest checkpoint from which a run can go on as if nothing had happened, and what is wrong with newer ones.

    MCMTrainer leaves none that was not written to its end. Where something else did, or a file was damaged or deleted
    since, the file is named.
    """
    faults: list[str] = []
    for folder in reversed(checkpoints(output_dir)):
        if not (found := checkpoint_faults(folder)):
            return str(folder), faults
        faults += found
    return None, faults


# ---------------------------------------------------------------------------------------------------- finished folders


def find_start(output_dir: str | Path, record: str, run: Mapping[str, Any], config: PreTrainedConfig) -> Start:
    """Where a training starts that writes to a folder.

    Args:
        output_dir: the folder, which need not be there.
        record: the file that a finished run leaves there, `PRETRAINING` or `FINE_TUNING`.
        run: what must be the same: `data` and other digests, and `options` as `deciding_options` gives them.
        config: of the model that is to be trained, with the digest of its values.

    Raises:
        RunError: the folder holds something else, or a model that was trained otherwise.
    """
    folder = Path(output_dir)
    _check_folder(folder, record)
    checkpoint, faults = last_whole_checkpoint(folder)
    path = folder / record
    if path.exists() and not (damaged := _damage(path)):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if changes := _changes(folder, facts, run, config):
            raise RunError(
                f"{folder} holds a model that was trained otherwise ({_some(changes)}), and nothing was changed: give "
                "another output_dir, or remove that folder."
            )
        if facts.get("finished", True) and not (found := weight_faults(folder)):
            return Start(checkpoint, [], True)
        faults = (found if facts.get("finished", True) else []) + faults
    elif has_model(folder) and checkpoint is None:
        reason = damaged[0] if path.exists() else f"it has no {record}"
        raise RunError(
            f"{folder} holds a model, and nothing says what it was trained with ({reason}); nothing was changed: give "
            "another output_dir, or remove that folder."
        )
    return Start(checkpoint, faults, False)


def has_model(folder: Path) -> bool:
    """Whether files of a model lie in a folder, whole or not."""
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
    """What a finished model was trained with and this run has not."""
    options = run["options"]
    if "run" not in facts:  # of an earlier version
        earlier = {name: facts[name] for name in ("learning_rate", "seed", "max_events") if name in facts}
        same = config.values_digest in (None, _digest_of_values(folder))
        return ([] if same else ["other data"]) + changed_options(earlier, options) + changed_config(folder, config)
    digests = [f"other {name}" for name in run if name != "options" and facts["run"].get(name) != run[name]]
    return digests + changed_options(facts["run"].get("options", {}), options) + changed_config(folder, config)


def _digest_of_values(folder: Path) -> str | None:
    path = folder / VALUES
    return None if not path.is_file() or _damage(path) else values_digest(json.loads(path.read_text(encoding="utf-8")))


def _some(phrases: list[str]) -> str:
    more = f" and {len(phrases) - SHOWN} more" if len(phrases) > SHOWN else ""
    return f"{', '.join(phrases[:SHOWN])}{more}"


@contextmanager
def alone(output_dir: str | Path, is_writer: bool = True) -> Iterator[None]:
    """Makes a folder, and keeps a second run out of it while this one trains; only the process that writes asks.

    Raises:
        RunError: the folder can't be written to, or another run trains into it.
    """
    folder, existed = Path(output_dir), Path(output_dir).exists()
    if not is_writer:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{folder} can't be written to ({error.strerror}): give another output_dir.") from error
    with file:
        # Workers of a data loader that outlive a killed run for some seconds must not hold its lock.
        if os.name == "posix":
            os.register_at_fork(after_in_child=file.close)
            _lock(file, folder)
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            if not existed and not any(folder.iterdir()):
                folder.rmdir()


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"Another run trains into {folder}: wait for its end, or give another output_dir.") from None
    except OSError:  # a disk without locks
        return
