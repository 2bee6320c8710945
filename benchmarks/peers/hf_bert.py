# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A plain BERT of transformers with a masked-language-model head over the items, trained by a loop of ten lines."""

import time

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM

from protocol import Clock, Task, run

PADDING, MASK, FIRST_ITEM, MASKED, IGNORED = 0, 1, 2, 0.15, -100


def right_padded(items: list[np.ndarray], length: int) -> torch.Tensor:
    """The latest `length` items of each as ids, of shape `(sequences, length)`."""
    rows = np.full((len(items), length), PADDING)
    for row, one in zip(rows, items, strict=True):
        latest = one[-length:] + FIRST_ITEM
        row[: len(latest)] = latest
    return torch.from_numpy(rows)


def method(task: Task) -> dict[str, float]:
    items = task.read()
    config = BertConfig(
        vocab_size=task.items + FIRST_ITEM,
        hidden_size=task.hidden,
        num_hidden_layers=task.layers,
        num_attention_heads=task.heads,
        intermediate_size=4 * task.hidden,
        hidden_dropout_prob=task.dropout,
        max_position_embeddings=task.length + 1,
        pad_token_id=PADDING,
    )
    model = BertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), task.learning_rate)
    loader = DataLoader(right_padded(items, task.length), task.batch_size, shuffle=True)
    clock, over = Clock(task.seconds), False
    while not over:
        for batch in loader:
            hidden = (torch.rand(batch.shape) < MASKED) & (batch != PADDING)
            labels = torch.where(hidden, batch, IGNORED)
            inputs = {"input_ids": torch.where(hidden, MASK, batch), "attention_mask": (batch != PADDING).long()}
            model(**inputs, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            over = clock.step(len(batch))
            if over:
                break
    rate = clock.rate()

    model.eval()
    start = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(items), task.inference_batch_size):
            sequences = [np.append(one, MASK - FIRST_ITEM) for one in items[at : at + task.inference_batch_size]]
            batch = right_padded(sequences, task.length + 1)
            last = (batch != PADDING).sum(1) - 1
            hidden = model.bert(batch, attention_mask=(batch != PADDING).long()).last_hidden_state
            scores = model.cls(hidden[torch.arange(len(batch)), last])
            scores[:, FIRST_ITEM:].topk(task.top)
    inference = len(items) / (time.perf_counter() - start)
    return {"training": rate, "inference": inference}


if __name__ == "__main__":
    run(method)
