# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What a folder holds and what a training left in it, and ways to damage it."""

import json
import random

import torch
from safetensors.torch import load_file


def content(folder):
    """The bytes of every file of a folder, by its path in it."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(folder, name="model.safetensors"):
    """The tensors of a checkpoint by name."""
    return load_file(folder / name)


def read_json(path):
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def logged(folder):
    """The lines that the Trainer logged."""
    return read_json(folder / "trainer_state.json")["log_history"]


def losses(folder):
    """The training losses by step."""
    return {entry["step"]: entry["loss"] for entry in logged(folder) if "loss" in entry}


def changed_weights(before, after):
    """Names of the tensors that two checkpoints both have, with other values."""
    ours, theirs = weights(before), weights(after)
    return {name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])}


def assert_same_weights(folder, other, tolerance=0.0):
    """Raises if two checkpoints differ. With a tolerance, what is fitted to the encoder's scores is left out."""
    left_out = "scorer." if tolerance else "nothing"
    ours, theirs = (
        {name: value for name, value in weights(each).items() if not name.startswith(left_out)}
        for each in (folder, other)
    )
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def remove_files(folder):
    """Leaves what a run does that is killed before its model is written: the folders, and what the run is."""
    for path in folder.iterdir():
        if path.is_file() and path.name != "run.json":
            path.unlink()


def cut(name, left):
    """A change of a folder: a file ends after `left` bytes, or after that share of them if it is a fraction."""

    def change(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: left if isinstance(left, int) else int(len(data) * left)])

    return change


def without(name):
    """A change of a folder: a file is gone."""
    return lambda folder: (folder / name).unlink()


def flipped(name):
    """A change of a folder: the byte in the middle of a file is another one."""

    def change(folder):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 255
        (folder / name).write_bytes(bytes(data))

    return change


def flipped_bits(path, number=25):
    """Flips one bit of a file at each of some places, yields the place, and puts the file right again."""
    whole = path.read_bytes()
    for place in random.Random(path.name).sample(range(8 * len(whole)), number):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        yield place
    path.write_bytes(whole)


def edit_json(path, change):
    """Changes what a JSON file holds in place."""
    values = read_json(path)
    change(values)
    path.write_text(json.dumps(values))


def update_json(path, **changes):
    """Changes values of a JSON file."""
    edit_json(path, lambda values: values.update(changes))


def rewritten(name, text):
    """A change of a folder: a file holds another text."""
    return lambda folder: (folder / name).write_text(text)
