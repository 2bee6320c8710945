# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""SASRec of RePlay, its model and its Lightning module; batches are padded tensors in memory, which costs nothing."""

import time

import lightning
import numpy as np
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.sequential import SasRec
from torch.utils.data import DataLoader

from protocol import TRAINER, ClockHooks, Task, run


class ClockCallback(ClockHooks, lightning.Callback):
    """Ends the training when the clock says so."""

    counted = "padding_mask"


def left_padded(items: list[np.ndarray], length: int, padding: int) -> torch.Tensor:
    """The latest `length` items of each, of shape `(sequences, length)`."""
    rows = np.full((len(items), length), padding)
    for row, one in zip(rows, items, strict=True):
        latest = one[-length:]
        row[length - len(latest) :] = latest
    return torch.from_numpy(rows)


def method(task: Task) -> dict[str, float]:
    items = task.read()
    schema = TensorSchema(
        TensorFeatureInfo(
            "item_id",
            is_seq=True,
            feature_type=FeatureType.CATEGORICAL,
            embedding_dim=task.hidden,
            padding_value=task.items,
            cardinality=task.items,
            feature_hint=FeatureHint.ITEM_ID,
            feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
        )
    )
    whole = left_padded([one for one in items if len(one) > 1], task.length + 1, task.items)

    def training_batch(rows: list[torch.Tensor]) -> dict:
        batch = torch.stack(rows)
        read, targets = batch[:, :-1], batch[:, 1:, None]
        inputs = {"feature_tensors": {"item_id": read}, "padding_mask": read != task.items}
        return inputs | {"positive_labels": targets, "target_padding_mask": targets != task.items}

    callback = ClockCallback(task.seconds)
    trainer = lightning.Trainer(callbacks=[callback], **TRAINER)
    sizes = {"embedding_dim": task.hidden, "num_heads": task.heads, "num_blocks": task.layers}
    model = SasRec.from_params(schema, max_sequence_length=task.length, dropout=task.dropout, **sizes)
    module = LightningModule(model, OptimizerFactory(learning_rate=task.learning_rate))
    trainer.fit(module, DataLoader(whole, task.batch_size, shuffle=True, collate_fn=training_batch))

    model.eval()
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in left_padded(items, task.length, task.items).split(task.inference_batch_size):
            scores = model(feature_tensors={"item_id": batch}, padding_mask=batch != task.items)["logits"]
            scores.topk(task.top)
    inference = len(items) / (time.perf_counter() - start)
    return {"training": callback.rate, "inference": inference}


if __name__ == "__main__":
    run(method)
