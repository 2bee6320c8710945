# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""SASRec, eSASRec or BERT4Rec of RecTools, trained until the NDCG@10 of a held-out item stops to rise.

`python benchmarks/peers/rectools_converged.py '{"method": ...}'` reads `events`, a Parquet file with customer, item
and part (0 training, 1 after the validation cutoff), oldest first. It writes `lists`: for each customer
the best ten items of all (`items`), and of those that the customer did not have (`new`), best first.
"""

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.ligr import LiGRLayers

# eSASRec (RecSys 2025) is SASRec with other layers and a sampled softmax.
MORE = {"loss": "sampled_softmax", "n_negatives": 256, "transformer_layers_type": LiGRLayers}
MODELS: dict[str, Any] = {
    "RecTools SASRec": SASRecModel,
    "RecTools eSASRec": partial(SASRecModel, **MORE),
    "RecTools BERT4Rec": BERT4RecModel,
}
MOST_EPOCHS, TOP, BATCH = 200, 10, 128
# Epochs without a rise that end the training, and how many steps these are at least: MovieLens 100k has 8 an epoch.
PATIENCE, LEAST_STEPS = 5, 200
WATCHED: dict[str, Any] = {"monitor": "ndcg", "mode": "max"}


class LabelledModule(TransformerLightningModule):
    """RecTools' losses, whose logits of padding, most of the work, are not computed."""

    def compute_logits(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of all items `(N, V)`, and the labels `(N,)`, at the positions that have one."""
        label = batch["y"]  # (B, L) in training, (B, 1) in validation
        items = self.torch_model.item_model.get_all_embeddings()
        sessions = self.torch_model.encode_sessions(batch, items)[:, -label.shape[1] :]
        logits = self.torch_model.similarity_module(sessions[label != 0], items) / self.logits_t
        return logits, label[label != 0]

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        logits, label = self.compute_logits(batch)
        if "negatives" in batch:
            logits = logits.gather(1, torch.cat([label[:, None], batch["negatives"][batch["y"] != 0]], 1))
            label = torch.zeros_like(label)
        return F.cross_entropy(logits, label)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        logits, label = self.compute_logits(batch)
        rank = (logits > logits.gather(1, label[:, None])).sum(1)
        ndcg = torch.where(rank < TOP, 1 / (rank + 2.0).log2(), 0.0).mean()
        self.log("ndcg", ndcg, on_step=False, on_epoch=True, batch_size=len(label))


def held_out(log: pd.DataFrame) -> np.ndarray:
    """Marks the first event of each customer after the validation cutoff."""
    later = log[Columns.Weight].to_numpy() > 1
    return later & (log.groupby([log[Columns.User], later]).cumcount().to_numpy() == 0)


def main() -> None:
    task: dict = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    seed_everything(task["seed"])
    log = pd.read_parquet(task["events"])
    columns = {Columns.User: log["customer"], Columns.Item: log["item"], Columns.Weight: 1.0 + log["part"]}
    whole = pd.DataFrame(columns).assign(datetime=pd.Timestamp("2020-01-01") + pd.to_timedelta(log.index, unit="s"))
    fitted = Dataset.construct(whole[held_out(whole) | (whole[Columns.Weight] == 1)])
    folder = Path(task["lists"]).parent
    best = ModelCheckpoint(folder, "best", save_weights_only=True, enable_version_counter=False, **WATCHED)
    patience = max(PATIENCE, math.ceil(LEAST_STEPS / math.ceil(log["customer"].nunique() / BATCH)))

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=MOST_EPOCHS, accelerator="cpu",
            callbacks=[EarlyStopping(**WATCHED, patience=patience, verbose=True), best],
            logger=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    longest = int(log.groupby("customer").size().quantile(0.95))
    model = MODELS[task["method"]](
        session_max_len=min(max(longest, 20), 100), batch_size=BATCH, lightning_module_type=LabelledModule,
        get_val_mask_func=held_out, get_trainer_func=trainer,
    )  # fmt: skip
    model.fit(fitted)
    epochs = model.fit_trainer.current_epoch
    model.load_weights_from_checkpoint(folder / "best.ckpt")
    every, users = Dataset.construct(whole), whole[Columns.User].unique()
    lists = {}
    for name, filtered in (("items", False), ("new", True)):
        found = model.recommend(users, every, k=TOP, filter_viewed=filtered, on_unsupported_targets="ignore")
        lists[name] = found.groupby(Columns.User, sort=False)[Columns.Item].agg(list)
    pd.DataFrame(lists).rename_axis("customer").reset_index().to_parquet(task["lists"])
    print("\n" + json.dumps({"epochs": epochs}))


if __name__ == "__main__":
    main()
