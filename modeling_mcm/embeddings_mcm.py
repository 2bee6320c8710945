# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The encoder's input: embeddings of events (equation 1), of visits, and of positions.

Shapes: B customers, L events, J features, U encoder units (events or visits), H hidden size.
"""

from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from .configuration_mcm import MCMConfig


class ValueEmbedding(nn.Embedding):
    """Embedding table of a feature: one vector for each value id. The vector of the missing value (id 0) is 0. It is a
    class of its own, so that `_init_weights` can recognise it."""

    def __init__(self, size: int, hidden_size: int):
        super().__init__(size, hidden_size, padding_idx=0)


class HeterogeneousEmbedding(nn.Embedding):
    """Heterogeneous embedding (equation 1): the embedding e of an event is the average over its features' vectors. It
    replaces a language model's token embedding, which transformers requires to be an `nn.Embedding`. It has no weight
    of its own, but one table for each feature. The tables stand in a list, so that a feature may have any name."""

    def __init__(self, config: MCMConfig):
        nn.Module.__init__(self)
        self.embedding_dim = config.hidden_size
        input_features = config.input_features or config.features
        self.read = [index for index, name in enumerate(config.features) if name in input_features]
        self.feature_tables = nn.ModuleList(
            ValueEmbedding(size, config.hidden_size) for size in config.vocabulary_sizes
        )

    def extra_repr(self) -> str:
        """Number of features and hidden size, for `print(model)`."""
        return f"{len(self.feature_tables)} features, {self.embedding_dim}"

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeds events: the average over the vectors of the features that an event has.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L, J)`): Feature ids of each event; 0 is missing.

        Returns:
            `torch.FloatTensor` of shape `(B, L, H)`; 0 on padding.
        """
        total = reduce(Tensor.add_, (self.feature_tables[j](input_ids[..., j]) for j in self.read))
        return total / (input_ids[..., self.read] != 0).sum(-1, keepdim=True).clamp(min=1)


def check_inputs(
    config: MCMConfig,
    input_ids: Tensor,
    attention_mask: Tensor,
    visit_ids: Tensor | None,
    event_times: Tensor | None,
    event_values: Tensor | None,
    as_of: Tensor | None = None,
) -> None:
    """Checks model inputs that callers made: shapes, types, value ranges and order.

    Training does not call it, because the collator's batches are correct.

    Args:
        input_ids (`torch.LongTensor` of shape `(B, L, J)`): Feature ids of each event.
        attention_mask (`torch.Tensor` of shape `(B, L)`): 1 where an event is real.
        visit_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): Visit of each event.
        event_times (`torch.FloatTensor` of shape `(B, L)`, *optional*): Days from the first event to each event.
        event_values (`torch.FloatTensor` of shape `(B, L, N)`, *optional*): Numbers of each event.
        as_of (`torch.FloatTensor` of shape `(B,)`, *optional*): Time of the outputs.

    Raises:
        ValueError: for the first fault; the message names the input, the event and the customer.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or attention_mask.is_meta:
        return
    shape, advice = input_ids.shape[:2], "MCMFeatureExtractor gives them"
    if input_ids.shape[-1] != len(config.features):
        raise ValueError(
            f"`input_ids` has {input_ids.shape[-1]} features, this checkpoint reads {len(config.features)}: make the "
            "inputs with the checkpoint's own feature extractor."
        )
    given = {"attention_mask": attention_mask, "visit_ids": visit_ids, "event_times": event_times}
    named = {name: values for name, values in given.items() if values is not None}
    for name, values in named.items():
        if values.shape != shape:
            raise ValueError(
                f"`{name}` has shape {tuple(values.shape)}, and {tuple(shape)} was expected, one for each event: "
                f"{advice}."
            )
    if visit_ids is not None and (visit_ids.is_floating_point() or visit_ids.dtype == torch.bool):
        raise ValueError(f"`visit_ids` is {visit_ids.dtype}, and whole numbers were expected: {advice}.")
    if config.augmentation == "masked_lm" and as_of is not None and find_later(event_times, as_of).any():
        raise ValueError("Events are later than `as_of`, and the masked event is the last: give `as_of` to pad alone.")
    columns = torch.stack([values.float() for values in named.values()])
    limits = columns.new_tensor([shape[1] if name == "visit_ids" else torch.inf for name in named])
    ascends = columns.diff(dim=2, prepend=0 * columns[..., :1]) >= 0  # not so next to NaN
    real, sizes = attention_mask.bool(), torch.tensor(config.vocabulary_sizes, device=input_ids.device)
    outside = (input_ids < 0) | (input_ids >= sizes)
    infinite = torch.zeros_like(real) if event_values is None else ~event_values.isfinite().all(-1)
    wrong = ~(ascends & (columns < limits[:, None, None])) & real
    places = torch.cat([wrong, outside.movedim(-1, 0), infinite[None]]).nonzero()
    if not len(places):
        return
    faults = [(name, "is no number, out of range, or less than that of the event before") for name in named]
    sizes_of = zip(config.features, config.vocabulary_sizes, strict=True)
    faults += [("input_ids", f"is not from 0 to {size - 1} in feature {name!r}") for name, size in sizes_of]
    faults.append(("event_values", "is no number or infinite"))
    place, row, event = places[0].tolist()
    name, what = faults[place]
    raise ValueError(f"`{name}` {what} at event {event} of customer {row} of the batch: {advice}.")


def find_later(event_times: Tensor | None, as_of: Tensor) -> Tensor:
    """Says of each place `(B, L)` whether it is an event later than the time `(B,)` of its row."""
    if event_times is None:
        raise ValueError("`as_of` needs `event_times`: MCMFeatureExtractor gives them.")
    is_later = event_times > as_of[:, None]
    is_later[:, 0] = False  # the start row has no time; and a slice without it can't be exported for one event
    return is_later


class MCMEmbeddings(nn.Module):
    """The encoder's input H = E + P: unit embeddings (equation 1) plus positions, then BERT's layer norm and
    dropout."""

    def __init__(self, config: MCMConfig):
        super().__init__()
        self.encoder_unit, self.event_dropout = config.encoder_unit, config.event_dropout_prob
        self.events = HeterogeneousEmbedding(config)
        self.position_embeddings = None
        if config.max_position_embeddings:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def units(self, events: Tensor, attention_mask: Tensor, visit_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Makes encoder units of events: the events themselves, or visits.

        A visit's vector is the sum of its events' vectors divided by the square root of their number. The root keeps
        the scale of the vector for every visit size; a mean would shrink with it. Training drops random events of
        visits whole, so that the encoder does not memorise customers; the scorer still counts these events. A visit
        keeps at least one event, and events that are units are never dropped. Returns unit vectors of shape
        `(B, U, H)`, and a boolean mask of shape `(B, U)`, True where a unit is real. Raises `ValueError` if units are
        visits and there are no `visit_ids`.
        """
        weight = attention_mask.to(events.dtype)
        if self.encoder_unit == "event":
            return events * weight[..., None], attention_mask.bool()
        if visit_ids is None:
            raise ValueError("encoder_unit='visit' needs `visit_ids`: MCMFeatureExtractor and the collator give them.")
        batch, _, hidden = events.shape
        # Sizes of an export are those of its inputs; and not int(...), which can't be compiled
        count = visit_ids.shape[1] if torch.compiler.is_exporting() else cast(int, visit_ids.max().item()) + 1
        torch._check(count >= 1)  # tells a compiler that it is a size
        if self.training and self.event_dropout > 0:
            weight = self._drop_events(weight, visit_ids, count)
        flat = (visit_ids + count * torch.arange(batch, device=events.device)[:, None]).flatten()
        sizes = events.new_zeros(batch, count).scatter_add(1, visit_ids, attention_mask.to(events.dtype))
        sums = events.new_zeros(batch * count, hidden).index_add(0, flat, (events * weight[..., None]).flatten(0, 1))
        return sums.view(batch, count, hidden) / sizes.clamp(min=1).sqrt()[..., None], sizes > 0

    def _drop_events(self, weight: Tensor, visit_ids: Tensor, count: int) -> Tensor:
        """Sets the weights of random events to 0, but never those of all events of a visit, or of the start row."""
        kept = weight * (torch.rand_like(weight) >= self.event_dropout)
        number = kept.new_zeros(len(kept), count).scatter_add(1, visit_ids, kept)
        return torch.where(number.gather(1, visit_ids) > 0, kept, weight)

    def forward(self, input_ids, attention_mask, visit_ids=None):
        """Computes the encoder's input.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L, J)`): Feature ids of each event.
            attention_mask (`torch.Tensor` of shape `(B, L)`): 1 where an event is real.
            visit_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): Visit of each event.

        Returns:
            Unit vectors of shape `(B, U, H)`, and a boolean unit mask of shape `(B, U)`.

        Raises:
            ValueError: If there are more units than position embeddings, or units are visits and there are no
                `visit_ids`.
        """
        units, unit_mask = self.units(self.events(input_ids), attention_mask, visit_ids)
        if self.position_embeddings is not None:
            length, longest = units.shape[1], self.position_embeddings.num_embeddings
            torch._check_value(  # an `if` that depends on the data can't be compiled
                length <= longest,
                lambda: (
                    f"A sequence has {length} {self.encoder_unit}s, this checkpoint reads {longest} "
                    "(max_position_embeddings): keep the latest."
                ),
            )
            units = units + self.position_embeddings.weight[:length]
        return self.dropout(self.norm(units)), unit_mask
