# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""BERT4Rec and SASRec of RecTools, through `fit` and `recommend`."""

import time

import numpy as np
import pandas as pd
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel

from protocol import TRAINER, ClockHooks, Task, run

MODELS = {"RecTools BERT4Rec": BERT4RecModel, "RecTools SASRec": SASRecModel}


class ClockCallback(ClockHooks, Callback):
    """Ends the training when the clock says so."""

    counted = "x"


def method(task: Task) -> dict[str, float]:
    items = task.read()
    user = np.repeat(np.arange(len(items)), [len(one) for one in items])
    order = np.concatenate([np.arange(len(one)) for one in items])
    log = pd.DataFrame({Columns.User: user, Columns.Item: np.concatenate(items), Columns.Weight: 1.0})
    log[Columns.Datetime] = pd.Timestamp("2020-01-01") + pd.to_timedelta(order, unit="min")
    dataset = Dataset.construct(log)

    def trainer() -> Trainer:
        return Trainer(callbacks=[ClockCallback(task.seconds)], **TRAINER)

    model = MODELS[task.method](
        n_blocks=task.layers,
        n_heads=task.heads,
        n_factors=task.hidden,
        dropout_rate=task.dropout,
        session_max_len=task.length,
        lr=task.learning_rate,
        batch_size=task.batch_size,
        get_trainer_func=trainer,
        recommend_batch_size=task.inference_batch_size,
    )
    model.fit(dataset)
    clock = next(one for one in model.fit_trainer.callbacks if isinstance(one, ClockCallback))
    start = time.perf_counter()
    model.recommend(np.arange(len(items)), dataset, k=task.top, filter_viewed=False)
    inference = len(items) / (time.perf_counter() - start)
    return {"training": clock.rate, "inference": inference}


if __name__ == "__main__":
    run(method)
