# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The state of a live customer, so that a new visit takes the same time after ten visits and after a thousand.

The state keeps the model inputs of the events, in compact types, from which the scorer and the customer state compute
their counts anew: that takes the same few operations on any history. What an encoder needs is updated step by step,
because in a causal encoder the hidden vector of a unit never changes:

- for each layer, the keys and values of the start row and of the latest `attention_window` units;
- for the readout, the average of each label so far and the logarithm of the sum of its weights.

`LiveState.extend` reads further events and returns a new state. The old state does not change, so an unfinished visit
can be read again when it has grown.

Shapes: L events, the start row included, J features, U units (events or visits), W cached units, H hidden size, V
labels of all tasks (0 if the scores need no readout), N summed features.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from modeling_mcm.live.storage import OF_EVENTS
from modeling_mcm.live.weights import Reader

SCORES_AT_ONCE = 2**22  # largest number of elements of z in memory
MOST_UNREAD = 64  # number of calls of `extend` after which the readout reads the units of all of them


@dataclass
class LiveState:
    """The events that the model reads of a customer, and what its encoder has computed of them."""

    input_ids: torch.Tensor  # (L, J): feature ids of each event, int16 where they fit
    visit_ids: torch.Tensor  # (L,): visit of each event, int32; the start row is visit 0
    event_times: torch.Tensor  # (L,): days from the first event to each event
    event_values: torch.Tensor  # (L, N): values of the summed features
    hidden: torch.Tensor  # (H,): hidden vector of the last unit, after the last layer
    units: torch.Tensor  # (): number of units that the encoder has read, the start row included
    cache: DynamicCache  # keys and values of the start row and of the latest units
    average: torch.Tensor  # (V,): readout of each label over all units but the unread ones
    weight: torch.Tensor  # (V,): log-sum-exp of z of each label over the same units
    # each (U, H): hidden vectors of the latest units, which the readout has not read. It reads them when scores are
    # computed, in these parts, so that the scores have the same bits at any time
    unread: tuple[torch.Tensor, ...] = ()

    @classmethod
    def empty(cls, reader: Reader) -> "LiveState":
        """The state before the start row."""
        config, heads = reader.model.config, reader.model.config.num_attention_heads
        return cls(
            input_ids=torch.zeros(0, len(config.features), dtype=reader.id_type),
            visit_ids=torch.zeros(0, dtype=torch.int32),
            event_times=torch.zeros(0),
            event_values=torch.zeros(0, len(config.summed_features)),
            hidden=torch.zeros(config.hidden_size),
            units=torch.tensor(0),
            cache=DynamicCache(
                [tuple(torch.zeros(2, 1, heads, 0, config.hidden_size // heads))] * config.num_hidden_layers
            ),
            average=torch.zeros(len(reader.vectors)),
            weight=torch.full((len(reader.vectors),), float("-inf")),
        )

    @classmethod
    def restored(cls, reader: Reader, tensors: Mapping[str, Any]) -> "LiveState":
        """The state of stored `tensors`. Raises `ValueError` if they are not those of a state of this model."""
        empty = cls.empty(reader).tensors(reader)
        if sorted(tensors) != sorted(empty):
            raise ValueError(f"its state has {sorted(tensors)}, expected {sorted(empty)}")
        for name, found in tensors.items():
            shape = list(empty[name].shape)
            if name in OF_EVENTS:
                shape[0] = len(tensors["visit_ids"])
            elif name == "caches" and found.dim() == len(shape) == 5:
                shape[3] = found.shape[3]
            if (found.dtype, list(found.shape)) != (empty[name].dtype, shape) or found.isnan().any():
                raise ValueError(f"{name} of its state is {found.dtype} {list(found.shape)}, expected {shape}")
        sizes = torch.tensor(reader.model.config.vocabulary_sizes)
        if (tensors["input_ids"] < 0).any() or (tensors["input_ids"] >= sizes).any():
            raise ValueError("its state has ids that no vocabulary has")
        cache = DynamicCache([tuple(layer[:, None]) for layer in tensors["caches"]])
        return cls(**{name: value for name, value in tensors.items() if name != "caches"}, cache=cache)

    @torch.inference_mode()
    def tensors(self, reader: Reader) -> dict[str, torch.Tensor]:
        """The tensors to store; `restored` takes them."""
        self._read_out(reader)
        layers = [torch.cat([layer.keys, layer.values]) for layer in cast(Any, self.cache.layers)]
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        tensors = {name: value.contiguous() for name, value in values.items() if isinstance(value, torch.Tensor)}
        return tensors | {"caches": torch.stack(layers) if layers else torch.zeros(0)}

    @torch.inference_mode()
    def extend(
        self,
        reader: Reader,
        input_ids: torch.Tensor,
        times: torch.Tensor,
        visits: torch.Tensor,
        values: torch.Tensor | None = None,
    ) -> "LiveState":
        """Reads whole visits, and returns the new state.

        Args:
            reader ([`Reader`]): The model's parameters.
            input_ids (`torch.LongTensor` of shape `(L, J)`): Feature ids of the new events.
            times (`torch.FloatTensor` of shape `(L,)`): Days from the first event to each of them.
            visits (`torch.LongTensor` of shape `(L,)`): Their visits.
            values (`torch.FloatTensor` of shape `(L, N or more)`, *optional*): Their values of numeric features.

        Raises:
            ValueError: If there are more units than position embeddings.
        """
        if not len(visits):
            return self
        if values is None:
            values = self.event_values.new_zeros(len(visits), self.event_values.shape[1])
        new = {"input_ids": input_ids, "visit_ids": visits, "event_times": times}
        new["event_values"] = values[:, : self.event_values.shape[1]]
        joined: dict[str, Any] = {
            name: torch.cat([getattr(self, name), value.to(getattr(self, name))]) for name, value in new.items()
        }
        state = replace(self, **joined)
        if reader.encodes:
            state._encode(reader, input_ids, visits)
        return state

    def _encode(self, reader: Reader, input_ids: torch.Tensor, visits: torch.Tensor) -> None:
        """Computes hidden vectors of new units, and caches their keys and values."""
        core, before, window = reader.model.model, int(self.units), reader.window
        visit_ids = (visits - visits[0])[None]
        x, *_ = core.embeddings(input_ids[None], torch.ones_like(visit_ids), visit_ids, reader.event_tables, before)
        count, mask = x.shape[1], None
        if count > 1:
            length = self.cache.get_seq_length() + count
            hides = torch.ones(count, length, dtype=torch.bool).triu(length - count + 1)
            if window is not None:
                hides |= torch.ones_like(hides).tril(length - count - window)
            hides[:, 0] = False  # every unit reads the start row
            mask = x.new_zeros(1, 1, *hides.shape).masked_fill(hides, torch.finfo(x.dtype).min)
        self.cache = copy(self.cache)  # the old state keeps its layers
        self.cache.layers = [copy(layer) for layer in self.cache.layers]
        for layer in core.encoder.layer:  # BertEncoder's own wrappers take a fifth of the time
            x = layer.feed_forward_chunk(layer.attention(x, mask, cache=self.cache)[0])
        if window is not None and (length := self.cache.get_seq_length()) > window:
            kept = torch.tensor([0, *range(length - window + 1, length)])  # the start row and the latest units
            for layer in cast(Any, self.cache.layers):
                layer.keys, layer.values = layer.keys.index_select(2, kept), layer.values.index_select(2, kept)
        self.units, self.hidden = self.units + count, x[0, -1]
        if reader.reads_readout:
            self.unread = (*self.unread, x[0])
            if len(self.unread) > MOST_UNREAD:
                self._read_out(reader)

    def _read_out(self, reader: Reader) -> None:
        """Updates the readout by the unread units."""
        if reader.reads_last and self.unread:
            self.average = F.linear(self.unread[-1][-1:], reader.vectors)[0]
            self.unread = ()
        for units in self.unread:
            for hidden in units.split(max(1, SCORES_AT_ONCE // len(reader.vectors))):
                z = F.linear(hidden, reader.vectors)
                all_z, all_weights = torch.cat([self.average[None], z]), torch.cat([self.weight[None], z])
                self.weight = all_weights.logsumexp(0)
                self.average = ((all_weights - self.weight).exp() * all_z).sum(0)
        self.unread = ()

    # ---------------------------------------------------------------------------------------------------- questions

    def inputs(self, as_of: float | None = None) -> dict[str, Any]:
        """Model inputs of the events, a batch of one customer, at `as_of` in days from the first event."""
        return {
            "input_ids": self.input_ids[None].long(),
            "attention_mask": torch.ones(1, len(self.visit_ids), dtype=torch.long),
            "visit_ids": self.visit_ids[None].long(),
            "event_times": self.event_times[None],
            "event_values": self.event_values[None],
            "as_of": None if as_of is None else torch.tensor([as_of]),
        }

    @torch.inference_mode()
    def logits(
        self,
        reader: Reader,
        tasks: Sequence[str] | None = None,
        as_of: float | None = None,
        horizon_days: float | None = None,
    ) -> dict[str, torch.Tensor]:
        """Scores of all labels before the softmax, by task (default: all tasks) of shape `(labels,)`, at `as_of` in
        days from the first event (default: at the last event), of the next visit or of `horizon_days`."""
        self._read_out(reader)
        tasks, readout = reader.model.config.tasks if tasks is None else tasks, None
        if reader.reads_readout or not reader.is_scored:
            averages = self.average.split([len(offset) for offset in reader.offsets.values()])
            pairs = zip(averages, reader.offsets.values(), strict=True)
            by_task = dict(zip(reader.model.config.tasks, ((a + b)[None] for a, b in pairs), strict=True))
            readout = [by_task[task] for task in tasks]
        scores: Any = readout
        if reader.is_scored:
            scores = reader.model.score_candidates(self.inputs(as_of), readout, tasks, horizon_days)
        return {task: of_task[0] for task, of_task in zip(tasks, scores, strict=True)}

    @torch.inference_mode()
    def embedding(self, reader: Reader, as_of: float | None = None) -> torch.Tensor:
        """Customer embedding `(embedding size,)`: the customer state at `as_of`, in days from the first event
        (default: at the last event), or in a model without one the last hidden vector."""
        model = reader.model.model
        if model.state is None:
            return self.hidden
        return model.state(model.state_counts(**self.inputs(as_of)))[0]

    @torch.inference_mode()
    def forecast(
        self, reader: Reader, as_of: float | None = None, days: Sequence[float] | None = None
    ) -> dict[str, torch.Tensor]:
        """Forecasts by name, each of shape `()`, from `as_of` on as in `embedding`; empty without trained
        forecasts."""
        forecasts = reader.model.model.customer_forecasts
        if not forecasts.are_trained:
            return {}
        told = reader.model.model.forecast(**self.inputs(as_of), days=days)
        return {name: value[0] for name, value in told.items()}
