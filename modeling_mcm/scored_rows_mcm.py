# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Which rows of scores a batch has: one for each customer, or one for each unit at which a prefix ends.

Shapes: B customers, L events, U encoder units (events or visits), R rows of scores, P prefixes, N labels a customer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .readout_mcm import PackedUnits


class ScoredRows(NamedTuple):
    """The rows of scores of a batch.

    Attributes:
        customers (`torch.LongTensor` of shape `(R,)`): the customer of each row.
        last_events (`torch.LongTensor` of shape `(R,)`): place of the last event that each row knows.
        ends (`torch.LongTensor` of shape `(B, E)`): last unit of each row, customer by customer.
        is_row (`torch.BoolTensor` of shape `(B, E)`, *optional*): which of `ends` have a row; `None`: each has one.
        of_units (`torch.LongTensor` of shape `(B, U)`): the row at each unit; without meaning where there is none.
        mask (`torch.BoolTensor` of shape `(B, U)`): the units that are read.
        packed (`PackedUnits`, *optional*): the same, where prefixes have rows; `None`: the whole history has one.
    """

    customers: torch.Tensor
    last_events: torch.Tensor
    ends: torch.Tensor
    is_row: torch.Tensor | None
    of_units: torch.Tensor
    mask: torch.Tensor
    packed: PackedUnits | None

    @classmethod
    def of_histories(cls, batch: Mapping[str, Any], event_units: torch.Tensor) -> "ScoredRows":
        """One row for each customer, which knows the whole history.

        Args:
            batch: `attention_mask` `(B, L)` and `unit_mask` `(B, U)`.
            event_units (`torch.LongTensor` of shape `(B, L)`): the unit of each event.
        """
        last_events = batch["attention_mask"].sum(1) - 1
        customers = torch.arange(last_events.shape[0], device=last_events.device)
        ends = event_units.gather(1, last_events[:, None])
        mask = batch["unit_mask"]
        return cls(customers, last_events, ends, None, customers[:, None].expand_as(mask), mask, None)

    @classmethod
    def of_prefixes(cls, batch: Mapping[str, Any], event_units: torch.Tensor, is_end: torch.Tensor) -> "ScoredRows":
        """One row for each unit at which a prefix ends, which knows the events up to its end.

        Args:
            batch: `attention_mask` `(B, L)` and `unit_mask` `(B, U)`.
            event_units (`torch.LongTensor` of shape `(B, L)`): the unit of each event.
            is_end (`torch.BoolTensor` of shape `(B, U)`): where a prefix ends.
        """
        mask = batch["unit_mask"].clone()
        mask[:, 0] = True  # an empty history too has a row to look up, of which nothing is read
        packed = PackedUnits.of(mask, is_end)
        scored = slice(None) if packed.asked is None else packed.asked
        customers, units = packed.customers[scored], packed.units[scored]
        event = torch.arange(event_units.shape[1], device=event_units.device).expand_as(event_units)
        event = event * batch["attention_mask"]
        last_events = torch.zeros_like(mask).long().scatter_reduce(1, event_units, event, "amax")
        most = int(is_end.sum(1).max())
        ends = (~is_end).byte().argsort(dim=1, stable=True)[:, :most]  # each customer's, in their order
        return cls(customers, last_events[customers, units], ends, is_end.gather(1, ends), packed.rows, mask, packed)

    def cells(self, customers: torch.Tensor, ends: torch.Tensor, columns: torch.Tensor, width: int) -> torch.Tensor:
        """Places in the flat scores.

        Args:
            customers (`torch.LongTensor` of shape `(M,)`): customers.
            ends (`torch.LongTensor` of shape `(M,)`): places among the customer's `ends`.
            columns (`torch.LongTensor` of shape `(M,)`): columns of the scores.
            width (`int`): columns of a row.
        """
        return self.of_units[customers, self.ends[customers, ends]] * width + columns


__all__ = ["ScoredRows"]
