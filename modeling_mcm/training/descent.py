# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the minimum of a function: at once by L-BFGS, or step by step by AdamW."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


@torch.enable_grad()
def minimize(function: Callable[..., Tensor], start: Sequence[Tensor], **options: Any) -> list[Tensor]:
    """Parameters of a function that minimise it, by L-BFGS."""
    parameters = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe", **options)

    def closure() -> float:
        optimizer.zero_grad()
        loss = function(*parameters)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return [value.detach() for value in parameters]


def make_descent(
    network: nn.Module, learning_rate: float, weight_decay: float, steps: int, warm_up: float
) -> Callable[[Tensor], None]:
    """Makes a function that lowers a loss by a step of AdamW. In so many steps the learning rate rises, in the share
    `warm_up` of them, and falls."""
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=warm_up)

    def descend(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    return descend
