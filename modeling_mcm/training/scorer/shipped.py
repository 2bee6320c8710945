# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The network of counts that ships with the package: it has learned on many shops what the numbers of a label say. It
is told the shop by a few numbers of its counts, which give each task its vector.

Shapes: T tasks, S numbers of a shop, H numbers of a task's vector.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modeling_mcm.scorer_mcm import HIDDEN, LabelScorer

from .counts import ShopNumbers

SHIPPED_SCORER = Path(__file__).resolve().parents[2] / "scorer.safetensors"
# `config.learned` of a model whose scores come from these weights
SHIPPED: dict[str, str | int] = {"log": "of many other shops, as they ship with the package"}
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
def load_network(
    scorer: LabelScorer, shops: Sequence[ShopNumbers], weights: Mapping[str, Tensor] | None = None
) -> None:
    """Reads weights, by default those that ship with the package, into a scorer's network of counts, for the shops of
    its tasks; and how sure it is, which the shops said that it has learned from."""
    vectors, parts = ShopVectors(), dict[str, dict[str, Tensor]]()
    for name, value in (load_file(SHIPPED_SCORER) if weights is None else weights).items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    vectors.load_state_dict(parts["shop"])
    own = vectors(torch.tensor(shops, dtype=torch.float32)).to(scorer.calibration.device)  # (T, H)
    scorer.of_counts.load_state_dict(parts["network"] | {"task_vectors.weight": own})
    for name, value in parts.get("sure", {}).items():  # calibration and chance, `(Q, ...)`, the same in all tasks
        scorer.get_buffer(name).copy_(value)
    scorer.fitted.fill_(True)
