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
"""From ids to what the encoder reads: equation 1, visits, positions.

Shapes: B customers, L events, J features, U encoder units (events or visits), H hidden.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_mcm import MCMConfig

# Rows up to which a table is copied beside the others in every pass, so that all are read at once.
SMALL_TABLE = 2**16


class ValueEmbedding(nn.Embedding):
    """A vector for every value of a feature, or for every label of a task; the missing value's is 0.

    A class of its own, because `from_pretrained` and `post_init` initialise only modules that hold parameters
    themselves.
    """

    def __init__(self, size: int, hidden_size: int):
        super().__init__(size, hidden_size, padding_idx=0)


def grow(module: nn.Module, number: int, like: int | slice) -> None:
    """New rows of a table: the row, or the mean of the rows, that `like` names; zeros where it names none."""
    table = cast(nn.Embedding, module)
    rows = table.weight[like].reshape(-1, table.embedding_dim)
    row = rows.mean(0) if len(rows) else torch.zeros_like(table.weight[0])
    table.weight = nn.Parameter(torch.cat([table.weight, row.expand(number, -1)]))
    table.num_embeddings += number


class JoinedTables(NamedTuple):
    """Tables of features that are looked up as one, and the features that are looked up one by one.

    Attributes:
        features (`list[int]`): places of the features whose tables are joined.
        others (`list[int]`): places of the other features that are read.
        rows (`torch.Tensor` of shape `(rows, H)`, *optional*): the joined tables, one below the other.
        starts (`torch.LongTensor` of shape `(features,)`, *optional*): where each of them begins.
    """

    features: list[int]
    others: list[int]
    rows: torch.Tensor | None = None
    starts: torch.Tensor | None = None


class HeterogeneousEmbedding(nn.Embedding):
    """Heterogeneous embedding module (equation 1): e of an interaction is the average over its features' values.

    It takes the place of a language model's token embedding, which transformers asks to be an `nn.Embedding`, and has
    no weight of its own: one table a feature, so that a single vocabulary can grow, in a list, so that a feature may
    have any name.
    """

    def __init__(self, config: MCMConfig):
        nn.Module.__init__(self)
        self.embedding_dim = config.hidden_size
        read = config.input_features or config.features
        self.read = [place for place, name in enumerate(config.features) if name in read]
        self.feature_tables = nn.ModuleList(
            ValueEmbedding(size, config.hidden_size) for size in config.vocabulary_sizes
        )

    def extra_repr(self) -> str:
        return f"{len(self.feature_tables)} features, {self.embedding_dim}"

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """e_i of shape `(B, L, H)`: the average of the embeddings of the features that are present.

        Events that are padding are passed over. Small tables are read as one, each event's rows added up at once: J
        passes over memory become one.
        """
        if input_ids.shape[-1] != len(self.feature_tables):
            raise ValueError(
                f"`input_ids` has {input_ids.shape[-1]} features, this checkpoint reads {len(self.feature_tables)}: "
                "make the inputs with the checkpoint's own feature extractor."
            )
        if torch.compiler.is_exporting():  # the number of real events is data, which a graph does not follow
            return self.average(input_ids, JoinedTables([], self.read))
        ids = input_ids.flatten(0, -2)
        real = (ids != 0).any(-1).nonzero()[:, 0]
        events = self.average(ids.index_select(0, real), self.joined())
        every = events.new_zeros(len(ids), events.shape[-1]).index_copy(0, real, events)
        return every.view(*input_ids.shape[:-1], -1)

    def joined(self) -> "JoinedTables":
        """The small tables of the features that are read, as one."""
        small = [j for j in self.read if len(self._table(j)) <= SMALL_TABLE]
        others = [j for j in self.read if j not in small]
        if not small:
            return JoinedTables(small, others)
        tables = [self._table(j) for j in small]
        starts = torch.tensor([0, *(len(table) for table in tables[:-1])], device=tables[0].device).cumsum(0)
        return JoinedTables(small, others, torch.cat(tables), starts)

    def average(self, ids: torch.Tensor, joined: "JoinedTables") -> torch.Tensor:
        """The average over features of ids of shape `(..., J)`, of shape `(..., H)`; those of `joined` are looked up
        at once, which needs ids of shape `(L, J)`."""
        total: torch.Tensor | int = 0
        if joined.features:
            rows = ids[:, joined.features]
            # A missing value's row, 0 in every table, is the first of the first here: it has no gradient.
            rows = torch.where(rows == 0, 0, rows + cast(torch.Tensor, joined.starts))
            total = F.embedding_bag(rows, cast(torch.Tensor, joined.rows), mode="sum", padding_idx=0)
        total = sum((self.feature_tables[j](ids[..., j]) for j in joined.others), total)
        return cast(torch.Tensor, total) / (ids[..., self.read] != 0).sum(-1, keepdim=True).clamp(min=1)

    def _table(self, feature: int) -> torch.Tensor:
        return cast(ValueEmbedding, self.feature_tables[feature]).weight


def digest_bytes(digest: str | None) -> torch.Tensor:
    """The digest of `MCMConfig.values_digest` as a tensor of shape `(32,)`; all 0 where it is not known."""
    return torch.tensor(list(bytes.fromhex(digest or "00" * 32)), dtype=torch.uint8)


def check_inputs(
    attention_mask: torch.Tensor,
    visit_ids: torch.Tensor | None = None,
    event_times: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Looks at what a model is asked about, outside of training and of exports: the collator's batches are right.

    Args:
        attention_mask: of shape `(B, L)`.
        visit_ids (*optional*): of shape `(B, L)`.
        event_times (*optional*): of shape `(B, L)`.
        input_ids (*optional*): of shape `(B, L, J)`.
        sizes (*optional*): number of ids of each of the J features. Tables of several features are read as one, so an
            id outside of its own would be answered with another feature's value.

    Raises:
        ValueError: naming the input, what was found and the first customer of the batch of whom it is.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or attention_mask.is_meta:
        return
    real = attention_mask.bool()
    both = real[:, 1:] & real[:, :-1]
    faults: list[tuple[str, str, torch.Tensor, str]] = []
    advice = "MCMFeatureExtractor gives them"
    for name, values in (("visit_ids", visit_ids), ("event_times", event_times)):
        if values is None:
            continue
        if values.shape != real.shape:
            raise ValueError(
                f"`{name}` has shape {tuple(values.shape)}, and {tuple(real.shape)} was expected, one for each event: "
                f"{advice}."
            )
        falls = both & (values[:, 1:] < values[:, :-1])
        faults += [
            (name, "is no number or infinite", ~values.isfinite() & real, advice),
            (name, "is negative", (values < 0) & real, advice),
            (name, "is less than that of the event before", falls, "give the events in their order"),
        ]
        if name == "visit_ids":
            if values.is_floating_point() or values.dtype == torch.bool:
                raise ValueError(f"`visit_ids` is {values.dtype}, and whole numbers were expected: {advice}.")
            faults.append((name, "is not under the number of events", (values >= real.shape[1]) & real, advice))
    if input_ids is not None and sizes is not None and input_ids.shape[-1] == len(sizes):
        if input_ids.shape[:2] != real.shape:
            raise ValueError(
                f"`attention_mask` has shape {tuple(real.shape)}, and {tuple(input_ids.shape[:2])} was expected, one "
                f"for each event: {advice}."
            )
        limits = torch.tensor(list(sizes.values()), device=input_ids.device)
        outside = (input_ids < 0) | (input_ids >= limits)
        for name, wrong in zip(sizes, outside.unbind(-1), strict=True):
            faults.append(("input_ids", f"is not from 0 to {sizes[name] - 1} in feature {name!r}", wrong, advice))
    if not faults or not torch.stack([wrong.any() for _, _, wrong, _ in faults]).any():  # one question to the device
        return
    for name, what, wrong, way in faults:
        if wrong.any():
            row, place = wrong.nonzero()[0].tolist()
            event = place + (wrong.shape[1] < real.shape[1])
            raise ValueError(f"`{name}` {what} at event {event} of customer {row} of the batch: {way}.")


class MCMEmbeddings(nn.Module):
    """The encoder's input: H = E + P, equation 1 and positions, with a layer norm and dropout as in BERT."""

    def __init__(self, config: MCMConfig):
        super().__init__()
        self.encoder_unit, self.event_dropout = config.encoder_unit, config.event_dropout_prob
        self.events = HeterogeneousEmbedding(config)
        # Which values the rows of the tables are of: saved with the weights, compared with config and vocabularies.
        self.values_digest = nn.Buffer(digest_bytes(config.values_digest))
        self.position_embeddings: nn.Embedding | None = None
        if config.max_position_embeddings:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def units(
        self, events: torch.Tensor, attention_mask: torch.Tensor, visit_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder's units and their mask: the events themselves, or each visit's sum over the root of its size.

        The root keeps the scale of a visit's vector whatever its size: a mean would shrink with it. In training,
        events are dropped whole: the encoder must not know a customer by heart. The repeat memory still counts them.
        """
        weight = attention_mask.to(events.dtype)
        if self.training and self.event_dropout > 0:
            weight = weight * (torch.rand_like(weight) >= self.event_dropout)
        if self.encoder_unit == "event":
            return events * weight[..., None], attention_mask.bool()
        if visit_ids is None:
            raise ValueError("encoder_unit='visit' needs `visit_ids`: MCMFeatureExtractor and the collator give them.")
        batch, length, hidden = events.shape
        count = cast(int, visit_ids.max().item()) + 1  # not int(...), which an export can't follow
        torch._check(count >= 1)  # so that an export knows it for a size
        flat = (visit_ids + count * torch.arange(batch, device=events.device)[:, None]).flatten()
        sizes = events.new_zeros(batch * count).index_add(0, flat, attention_mask.to(events.dtype).flatten())
        sums = events.new_zeros(batch * count, hidden).index_add(0, flat, (events * weight[..., None]).flatten(0, 1))
        visits = (sums / sizes.clamp(min=1).sqrt()[:, None]).view(batch, count, hidden)
        return visits, (sizes > 0).view(batch, count)

    def forward(self, input_ids, attention_mask, visit_ids=None):
        events = self.events(input_ids)
        units, unit_mask = self.units(events, attention_mask, visit_ids)
        if self.position_embeddings is not None:
            length, longest = units.shape[1], self.position_embeddings.num_embeddings
            torch._check_value(  # an `if` on the number of visits, which is data, would stop an export
                length <= longest,
                lambda: (
                    f"A sequence has {length} {self.encoder_unit}s, this checkpoint reads {longest} "
                    "(max_position_embeddings): keep the latest."
                ),
            )
            units = units + self.position_embeddings.weight[:length]
        return self.dropout(self.norm(units)), unit_mask, events
