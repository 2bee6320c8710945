# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""CoLES of pytorch-lifestream (Babaev et al., SIGMOD 2022): a GRU, whose vectors of slices of one customer are alike.

`python benchmarks/peers/coles.py '{"events": ...}'` reads `events`, a Parquet file with customer, time in days, and
columns of codes from 1 and of amounts, oldest first. It writes `embeddings`: a row a customer, in the order of ids.
"""

import json
import sys
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from ptls.data_load.datasets import MemoryMapDataset
from ptls.data_load.iterable_processing import SeqLenFilter
from ptls.data_load.utils import collate_feature_dict
from ptls.frames import PtlsDataModule
from ptls.frames.coles import ColesDataset, CoLESModule
from ptls.frames.coles.split_strategy import SampleSlices
from ptls.nn import RnnSeqEncoder, TrxEncoder
from pytorch_lightning import Trainer, seed_everything

from protocol import TRAINER

STEPS, BATCH, HIDDEN, WIDTH = 1000, 128, 128, 16
SLICES = {"split_count": 5, "cnt_min": 5, "cnt_max": 100}


def read(events: pd.DataFrame) -> list[dict]:
    """The sequence of each customer."""
    starts = np.flatnonzero(np.diff(events["customer"].to_numpy(), prepend=-1))
    columns = {name: torch.from_numpy(values.to_numpy(copy=True)) for name, values in events.items()}
    columns["event_time"] = columns.pop("time").float()
    customers = columns.pop("customer")
    return [
        {name: values[start:end] for name, values in columns.items()} | {"customer": customers[start].item()}
        for start, end in pairwise([*starts, len(events)])
    ]


def main() -> None:
    """Trains, and writes the vector of each customer."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    seed_everything(task["seed"])
    events = pd.read_parquet(task["events"])
    codes = {
        name: int(events[name].max()) + 1 for name in events if events[name].dtype.kind == "i" and name != "customer"
    }
    amounts = [name for name in events if events[name].dtype.kind == "f" and name != "time"]
    encoder = RnnSeqEncoder(
        trx_encoder=TrxEncoder(
            embeddings={name: {"in": size, "out": WIDTH} for name, size in codes.items()},
            numeric_values=dict.fromkeys(amounts, "log"),
        ),
        hidden_size=HIDDEN,
        type="gru",
    )
    module = CoLESModule(
        seq_encoder=encoder,
        optimizer_partial=partial(torch.optim.Adam, lr=1e-3),
        lr_scheduler_partial=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.95),
    )
    sequences = read(events)
    data = ColesDataset(
        MemoryMapDataset(sequences, [SeqLenFilter(min_seq_len=SLICES["cnt_min"])]), SampleSlices(**SLICES)
    )
    trainer = Trainer(**(TRAINER | {"max_epochs": -1, "max_steps": task.get("steps", STEPS)}))
    trainer.fit(module, PtlsDataModule(train_data=data, train_batch_size=BATCH, train_num_workers=0))
    encoder.eval()
    with torch.no_grad():
        vectors = [
            encoder(collate_feature_dict(sequences[start : start + BATCH])).numpy()
            for start in range(0, len(sequences), BATCH)
        ]
    names = [f"coles_{index}" for index in range(HIDDEN)]
    index = pd.Index([each["customer"] for each in sequences], name="customer")
    pd.DataFrame(np.concatenate(vectors), index, names).to_parquet(task["embeddings"])


if __name__ == "__main__":
    main()
