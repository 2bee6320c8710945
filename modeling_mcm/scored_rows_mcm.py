# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of a batch's score matrix: one for each customer, or one for each unit at which a prefix ends.

Shapes: B customers, L events, U encoder units (events or visits), R scored prefixes of all customers, E scored
prefixes of the customer with the most, M selected scores.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .readout_mcm import PackedUnits


class ScoredRows(NamedTuple):
    """The rows of a batch's score matrix: one row for each scored prefix.

    Attributes:
        customers (`torch.LongTensor` of shape `(R,)`): customer of each row.
        last_events (`torch.LongTensor` of shape `(R,)`): index of the last event of each row's prefix.
        ends (`torch.LongTensor` of shape `(B, E)`): index of the last unit of each scored prefix, by customer.
        is_row (`torch.BoolTensor` of shape `(B, E)`, *optional*): whether an element of `ends` is real or padding;
            `None`: all are real.
        of_units (`torch.LongTensor` of shape `(B, U)`): row of the prefix that ends at each unit; without meaning
            where no scored prefix ends.
        mask (`torch.BoolTensor` of shape `(B, U)`): units that the readout reads.
        packed (`PackedUnits`, *optional*): the units without padding where prefixes are scored; `None` where only the
            whole histories are.
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
        """One row for each customer: the whole history is scored.

        Args:
            batch (`dict`): `attention_mask` of shape `(B, L)` and `unit_mask` of shape `(B, U)`.
            event_units (`torch.LongTensor` of shape `(B, L)`): index of each event's unit.
        """
        last_events = batch["attention_mask"].sum(1) - 1
        customers = torch.arange(last_events.shape[0], device=last_events.device)
        ends = event_units.gather(1, last_events[:, None])
        mask = batch["unit_mask"]
        return cls(customers, last_events, ends, None, customers[:, None].expand_as(mask), mask, None)

    @classmethod
    def of_prefixes(cls, batch: Mapping[str, Any], event_units: torch.Tensor, is_end: torch.Tensor) -> "ScoredRows":
        """One row for each prefix that ends at a unit of `is_end`; it reads the events up to the prefix's end.

        Args:
            batch (`dict`): `attention_mask` of shape `(B, L)` and `unit_mask` of shape `(B, U)`.
            event_units (`torch.LongTensor` of shape `(B, L)`): index of each event's unit.
            is_end (`torch.BoolTensor` of shape `(B, U)`): True where a scored prefix ends.
        """
        mask = batch["unit_mask"].clone()
        mask[:, 0] = True  # an empty history needs a row for the look-ups below; its scores are not used
        packed = PackedUnits.of(mask, is_end)
        scored = slice(None) if packed.scored is None else packed.scored
        customers, units = packed.customers[scored], packed.units[scored]
        event = torch.arange(event_units.shape[1], device=event_units.device).expand_as(event_units)
        event = event * batch["attention_mask"]
        last_events = torch.zeros_like(mask).long().scatter_reduce(1, event_units, event, "amax")
        most = int(is_end.sum(1).max())
        ends = (~is_end).byte().argsort(dim=1, stable=True)[:, :most]  # ascending for each customer
        return cls(
            customers, last_events[customers, units], ends, is_end.gather(1, ends), packed.score_rows, mask, packed
        )

    def cells(self, customers: torch.Tensor, ends: torch.Tensor, columns: torch.Tensor, width: int) -> torch.Tensor:
        """Indices of selected scores in the flattened score matrix.

        Args:
            customers (`torch.LongTensor` of shape `(M,)`): customer of each selected score.
            ends (`torch.LongTensor` of shape `(M,)`): its prefix, as an index into the customer's row of `ends`.
            columns (`torch.LongTensor` of shape `(M,)`): its column in the score matrix.
            width (`int`): number of columns of the score matrix.

        Returns:
            `torch.LongTensor` of shape `(M,)`.
        """
        return self.of_units[customers, self.ends[customers, ends]] * width + columns


__all__ = ["ScoredRows"]
