# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The state of a live customer, so that a new visit takes the same time after ten visits and after a thousand.

The encoder is causal, so the hidden vector of a unit never changes, and everything else can be updated step by step:

- for each layer, the keys and values of the start row and of the latest `attention_window` units;
- for the readout, the average of each label so far and the logarithm of the sum of its weights;
- for the memories, what [`~live.memories.LiveMemories`] holds;
- for the customer state, the fading counts.

`LiveState.extend` reads further events and returns a new state. The old state does not change, so an unfinished visit
can be read again when it has grown.

Shapes: L events, J features, U units (events or visits), W cached units, H hidden size, V labels of all tasks, N
summed features, Q = 1 + N.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
import torch.nn.functional as F

from modeling_mcm.configuration_mcm import MISSING_ID
from modeling_mcm.forecaster_mcm import Visits
from modeling_mcm.live.memories import LiveMemories, Moment, NewUnits
from modeling_mcm.live.weights import Reader

SCORES_AT_ONCE = 2**22  # largest number of elements of z in memory
MOST_UNREAD = 64  # number of calls of `extend` after which the readout reads the units of all of them


@dataclass
class LiveState:
    """The summary of a customer's events from which scores, embedding and forecasts are computed. Times are days from
    the customer's first event."""

    units: int  # number of units, the start row included
    visits: int  # number of the last visit; the start row is visit 0
    time: float  # time of the last event
    began: float  # time of the first event, infinite without events
    hidden: torch.Tensor  # (H,): hidden vector of the last unit, after the last layer
    kept: torch.Tensor  # (W,): numbers of the units whose keys and values are cached
    caches: torch.Tensor  # (layers, 2, heads, W, H / heads): keys and values of these units
    average: torch.Tensor  # (V,): readout of each label over all units but the unread ones
    weight: torch.Tensor  # (V,): log-sum-exp of z of each label over the same units
    # each (U, H): hidden vectors of the latest units, which the readout has not read. It reads them when scores are
    # computed, in these parts, so that the scores have the same bits at any time
    unread: tuple[torch.Tensor, ...]
    memories: LiveMemories  # what the memories need of the events
    # (2 + N, half-lives): counts of the customer state: the fading numbers of events and visits, and the fading sums
    sums: torch.Tensor
    few: torch.Tensor  # (values, half-lives): fading counts of features with few values
    many: torch.Tensor  # (values, 2): fading counts of features with many values
    visit_times: torch.Tensor  # (visits that the forecaster counts,); none if the model has no forecaster
    visit_amounts: torch.Tensor  # (those visits, Q): the amounts of each

    @classmethod
    def empty(cls, reader: Reader) -> "LiveState":
        """The state before the start row."""
        caches = torch.zeros(len(reader.layers), 2, reader.heads, 0, reader.hidden_size // reader.heads)
        return cls(
            units=0,
            visits=0,
            time=0.0,
            began=math.inf,
            hidden=torch.zeros(reader.hidden_size),
            kept=torch.zeros(0, dtype=torch.long),
            caches=caches,
            average=torch.zeros(reader.labels),
            weight=torch.full((reader.labels,), float("-inf")),
            unread=(),
            memories=LiveMemories.empty(reader),
            sums=torch.zeros(reader.channels, len(reader.half_lives), dtype=torch.float64),
            few=torch.zeros(int(reader.few_rows[-1]), len(reader.half_lives), dtype=torch.float64),
            many=torch.zeros(int(reader.many_rows[-1]), 2, dtype=torch.float64),
            visit_times=torch.zeros(0),
            visit_amounts=torch.zeros(0, max(reader.channels - 1, 0)),
        )

    @torch.inference_mode()
    def tensors(self, reader: Reader) -> dict[str, torch.Tensor]:
        """The tensors to store, from which `of_tensors` restores the state."""
        self._read_out(reader)
        tensors = {each.name: getattr(self, each.name) for each in fields(self)}
        tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
        tensors |= self.memories.tensors()
        tensors["numbers"] = torch.tensor([self.units, self.visits, self.time, self.began], dtype=torch.float64)
        tensors["many_values"] = self.many.any(1).nonzero()[:, 0]
        tensors["many"] = self.many[tensors["many_values"]]
        return {name: value.contiguous() for name, value in tensors.items()}

    @classmethod
    def of_tensors(cls, tensors: dict[str, torch.Tensor], reader: Reader) -> "LiveState":
        """Restores a state from the result of `tensors`."""
        memories = LiveMemories.of_tensors(tensors, reader)
        values: dict[str, Any] = {name: value for name, value in tensors.items() if name not in memories.tensors()}
        units, visits, time, began = values.pop("numbers").tolist()
        state = cls.empty(reader)
        state.many[values.pop("many_values")] = values.pop("many")
        values |= {"units": int(units), "visits": int(visits), "time": time, "began": began}
        return replace(state, memories=memories, **values)

    @torch.inference_mode()
    def extend(
        self,
        reader: Reader,
        input_ids: torch.Tensor,
        times: torch.Tensor,
        visits: torch.Tensor,
        values: torch.Tensor | None = None,
    ) -> "LiveState":
        """Reads whole visits, and returns the new state. Raises `ValueError` if there are more units than position
        embeddings."""
        size = max(1, SCORES_AT_ONCE // reader.labels)
        if values is None:
            values = torch.zeros(len(visits), max(reader.channels - 2, 0))
        if 0 < len(visits) <= size:
            return self._extend(reader, input_ids, times, visits, values)
        changes = F.pad(visits[1:] != visits[:-1], (1, 0), value=True) if len(visits) else visits
        starts = changes.nonzero()[:, 0].tolist()
        state, begin = self, 0
        while begin < len(visits):  # some visits at a time, a visit that is larger alone
            end = next((start for start in reversed(starts) if begin < start <= begin + size), 0)
            if len(visits) - begin <= size or not end:
                end = next((start for start in starts if start >= begin + size), len(visits))
            part = slice(begin, end)
            state = state._extend(reader, input_ids[part], times[part], visits[part], values[part])
            begin = end
        return state

    def _extend(self, reader: Reader, input_ids, times, visits, values) -> "LiveState":
        by_visit = reader.unit == "visit"
        _, of_event, sizes = visits.unique_consecutive(return_inverse=True, return_counts=True)
        units = of_event if by_visit else torch.arange(len(visits))
        unit_times = times[sizes.cumsum(0) - 1] if by_visit else times
        count = len(unit_times)
        events = reader.model.model.embeddings.events.average(input_ids, reader.event_tables)
        state = replace(self)
        state.unread = (*self.unread, state._encode(reader, events, units, count))
        if len(state.unread) > MOST_UNREAD:
            state._read_out(reader)
        new = NewUnits(input_ids, events, units, of_event, times, unit_times)
        state.memories = self.memories.extend(reader, new, self.units, self.time)
        if reader.has_state and self.units:  # the start row is no event
            state._count(reader, input_ids, times, visits, values)
        state.units, state.visits, state.time = self.units + count, int(visits[-1]), float(times[-1])
        return state

    def _encode(self, reader: Reader, events: torch.Tensor, units: torch.Tensor, count: int) -> torch.Tensor:
        """Hidden vectors of new units, of shape `(U, H)`; caches their keys and values."""
        embeddings = reader.model.model.embeddings
        x = events
        if reader.unit == "visit":
            sizes = torch.bincount(units, minlength=count)
            x = events.new_zeros(count, events.shape[1]).index_add(0, units, events) / sizes.sqrt()[:, None]
        numbers = torch.arange(self.units, self.units + count)
        if embeddings.position_embeddings is not None:
            longest = embeddings.position_embeddings.num_embeddings
            if self.units + count > longest:
                raise ValueError(
                    f"A sequence has {self.units + count} {reader.unit}s, this checkpoint reads {longest} "
                    "(max_position_embeddings): keep the latest."
                )
            x = x + embeddings.position_embeddings.weight[numbers]
        x = embeddings.norm(x)[None]
        cached = torch.cat([self.kept, numbers])
        window = reader.window
        mask = None
        if count > 1:
            age = numbers[:, None] - cached
            mask = age >= 0
            if window is not None:
                mask &= (age < window) | (cached == 0)
        caches = []
        for index, (layer, projections) in enumerate(zip(reader.layers, reader.projections, strict=True)):
            # Queries, keys and values, of shape (3, heads, U, H / heads).
            new = F.linear(x[0], *projections).view(count, 3, reader.heads, -1).permute(1, 2, 0, 3)
            cache = torch.cat([self.caches[index], new[1:]], 2)
            scale = layer.attention.self.scaling
            attention = F.scaled_dot_product_attention(new[:1], cache[:1], cache[1:], mask, scale=scale)
            attention = attention[0].transpose(0, 1).reshape(1, count, -1)
            x = layer.feed_forward_chunk(layer.attention.output(attention, x))
            caches.append(cache)
        self.kept, self.caches = cached, torch.stack(caches)
        if window is not None and len(cached) > window:  # drop units before the window, but not the start row
            keep = ((cached == 0) | (self.units + count - cached < window)).nonzero()[:, 0]
            self.kept, self.caches = cached[keep], self.caches.index_select(3, keep)
        self.hidden = x[0, -1]
        return x[0]

    def _read_out(self, reader: Reader) -> None:
        """Updates the readout by the unread units."""
        for hidden in self.unread[-1:] if reader.reads_last else self.unread:
            z = F.linear(hidden, reader.vectors)
            if reader.reads_last:
                self.average = z[-1]
                break
            all_z, all_weights = torch.cat([self.average[None], z]), torch.cat([self.weight[None], z])
            self.weight = all_weights.logsumexp(0)
            self.average = ((all_weights - self.weight).exp() * all_z).sum(0)
        self.unread = ()

    def _count(self, reader: Reader, input_ids, times, visits, values) -> None:
        """Adds new events to the counts of the customer state."""
        ages = (times[-1] - times).double()
        weights = torch.exp2(-ages[:, None] / reader.half_lives)  # (L, half-lives)
        fade = torch.exp2((self.time - times[-1].double()).clamp(max=0) / reader.half_lives)
        opens = F.pad(visits[1:] != visits[:-1], (1, 0), value=True).double()
        channels = torch.cat([torch.ones_like(opens)[:, None], opens[:, None], values[:, : reader.channels - 2]], 1)
        self.sums = self.sums * fade + channels.double().T @ weights
        self.few = _added(self.few * fade, input_ids[:, reader.few], reader.few_rows, weights)
        slow = weights[:, reader.slow]
        self.many = _added(self.many * fade[reader.slow], input_ids[:, reader.many], reader.many_rows, slow)
        self.began = min(self.began, float(times[0]))
        forecaster = reader.model.model.forecaster
        if forecaster is not None:
            summed = values[None, :, : reader.channels - 2] if reader.channels > 2 else None
            event = torch.ones(1, len(times), dtype=torch.bool)
            numbers = visits.unique_consecutive(return_inverse=True)[1][None]
            new = forecaster.read(input_ids[None], event, numbers, times[None], summed)
            self.visit_times = torch.cat([self.visit_times, new.times[new.is_visit]])
            self.visit_amounts = torch.cat([self.visit_amounts, new.amounts[new.is_visit]])

    # ---------------------------------------------------------------------------------------------------- questions

    @torch.inference_mode()
    def logits(
        self, reader: Reader, tasks: Sequence[str] | None = None, now: float | None = None
    ) -> dict[str, torch.Tensor]:
        """Scores of all labels before the softmax, by task (default: all tasks) of shape `(labels,)`, at `now` in days
        from the customer's first event (default: at the last event)."""
        self._read_out(reader)
        moment = Moment(self.units, self.time, 0.0 if now is None else max(now - self.time, 0.0))
        result = {}
        for task in reader.tasks if tasks is None else tasks:
            index = reader.tasks.index(task)
            table = reader.tables[index]
            parts = {"readout": self.average[table.labels], "bias": table.bias}
            parts |= self.memories.parts(reader, table, moment)
            rows = {name: part[None, None] for name, part in parts.items()}
            result[task] = reader.model.joined_scores(index, rows)[0, 0]
        return result

    @torch.inference_mode()
    def embedding(self, reader: Reader, now: float | None = None) -> torch.Tensor:
        """Customer embedding `(embedding size,)`: the customer state at `now`, in days from the customer's first event
        (default: at the last event), or in a model without one the last hidden vector."""
        if not reader.has_state:
            return self.hidden
        state = cast(Any, reader.model.model.state)
        if math.isinf(self.began):  # no events: the average of the training's moments, as `MCMModel.state_counts`
            nothing = torch.zeros(state.num_few)
            return state.joined(nothing, None if reader.taste is None else state.taste(torch.zeros(state.num_many)))
        now = self.time if now is None else min(now, self.time + state.longest_silence.item())
        fade = torch.exp2((self.time - torch.tensor(now).double()).clamp(max=0) / reader.half_lives)
        visits = float(self.sums[1, -1])
        since = (now - self.time, now - self.began)
        gap = (since[1] - since[0]) / max(visits - 1, 1)
        gaps = torch.tensor([*since, since[0] / (gap + 0.5), gap], dtype=torch.float64).clamp(min=0)
        few = [(self.sums * fade).flatten().clamp(min=0), (self.few * fade).flatten(), gaps]
        z = state.standardised(torch.cat(few).log1p().float(), slice(None, state.num_few))
        taste = None
        if reader.taste is not None:  # P z of no values, plus the difference that the customer's values make
            values = self.many[:, -1].nonzero()[:, 0]
            indices = (2 * values[:, None] + torch.arange(2)).flatten()
            counts = (self.many[values] * fade[reader.slow]).flatten().log1p().float()
            indices_of_all = indices + state.num_few
            differs = state.standardised(counts, indices_of_all)
            differs -= state.standardised(torch.zeros_like(counts), indices_of_all)
            weighted = {"per_sample_weights": differs[None], "mode": "sum"}
            taste = reader.no_taste + F.embedding_bag(indices[None], reader.taste, **weighted)[0]
        return state.joined(z, taste)

    @torch.inference_mode()
    def forecast(self, reader: Reader, now: float | None = None) -> dict[str, torch.Tensor]:
        """Forecasts by name, each of shape `()`, from `now` on as in `embedding`; empty without trained forecasts."""
        forecasts = reader.model.model.customer_forecasts
        if not forecasts.are_trained:
            return {}
        visits = Visits(
            self.visit_times[None], torch.ones(1, len(self.visit_times), dtype=torch.bool), self.visit_amounts[None]
        )
        moment = torch.tensor([self.time if now is None else now])
        told = forecasts.compute(self.embedding(reader, now)[None], visits, moment)
        return {name: value[0] for name, value in told.items()}


def _added(counts: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Adds new events to `counts` of feature values, of shape `(values, k)`, in place."""
    event, feature = (ids > MISSING_ID).nonzero(as_tuple=True)
    return counts.index_add_(0, ids[event, feature] + rows[feature], weights[event])
