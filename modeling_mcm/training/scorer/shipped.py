# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The network of counts that ships with the package: it has learned on many shops what the numbers of a label say. It
is told the shop by a few numbers of its counts, which give each task its vector.

Shapes: T tasks, S numbers of a shop, H numbers of a task's vector.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modeling_mcm.scorer_mcm import HIDDEN, ScoreNetwork

from .counts import ShopNumbers

SHIPPED_SCORER = Path(__file__).resolve().parents[2] / "scorer.safetensors"
FARTHEST_SHOP = 2.5  # largest absolute value of a standardised number of a shop
SHOP_HIDDEN = 16


class ShopVectors(nn.Module):
    """Makes the vector of a task from the numbers of its shop."""

    def __init__(self) -> None:
        super().__init__()
        size = len(ShopNumbers._fields)
        self.mean, self.std = nn.Buffer(torch.zeros(size)), nn.Buffer(torch.ones(size))
        self.first, self.last = nn.Linear(size, SHOP_HIDDEN), nn.Linear(SHOP_HIDDEN, HIDDEN[0])

    def forward(self, shops: Tensor) -> Tensor:
        """Vectors `(T, H)` of shops `(T, S)`."""
        z = ((shops - self.mean) / self.std).clamp(-FARTHEST_SHOP, FARTHEST_SHOP)
        return self.last(torch.tanh(self.first(z)))


@torch.no_grad()
def load_network(network: ScoreNetwork, shops: Sequence[ShopNumbers]) -> None:
    """Reads the weights that ship with the package into a network of counts, for the shops of its tasks."""
    weights, vectors = load_file(SHIPPED_SCORER), ShopVectors()
    parts = {part: {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(part)}
             for part in ("network", "shop")}  # fmt: skip
    vectors.load_state_dict(parts["shop"])
    network.load_state_dict(parts["network"] | {"task_vectors.weight": vectors(torch.tensor(shops))})
