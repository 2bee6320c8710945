# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How every script here reads a checkpoint: whole, or not at all.

`from_pretrained` warns of weights that a checkpoint lacks and draws them at random. That is right for a new head, and
wrong for everything else: an evaluation of a half-random model looks like a bad model.
"""

from typing import Any

from transformers import PreTrainedModel

SHOWN = 3


def read_checkpoint(model_class: type[PreTrainedModel], folder: str, new: tuple[str, ...] = (), **options: Any) -> Any:
    """A model with every weight of its checkpoint.

    Args:
        model_class: what is read.
        folder: checkpoint folder, or name on the Hub.
        new: beginnings of the names of weights that may start anew, such as those of a new head.
        options: of `from_pretrained`.

    Raises:
        SystemExit: with a message, if a weight is not there or has another shape.
    """
    loaded: Any = model_class.from_pretrained(folder, output_loading_info=True, **options)
    model, found = loaded
    missing = [name for name in sorted(found["missing_keys"]) if not name.startswith(new)]
    if missing:
        raise SystemExit(
            f"{folder} lacks {len(missing)} weights of {model_class.__name__}, which would start at random: "
            f"{', '.join(missing[:SHOWN])}{' ...' if len(missing) > SHOWN else ''}. It was saved as another class or "
            "by another version: give the folder that a training of this version wrote."
        )
    return model
