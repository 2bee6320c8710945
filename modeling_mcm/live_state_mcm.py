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
"""The state of a live customer, so that a new visit takes the same time after ten visits and after a thousand.

The encoder is causal, so the hidden vector of a unit never changes, and everything else can be updated step by step:

- for each layer, the keys and values of the start row and of the latest `attention_window` units;
- for the readout, the average of each label so far and the logarithm of the sum of its weights;
- for the memories, the fading counts of each label met, its first and last unit and time, and its rate;
- for related labels, the two products with the tables of the counted memory;
- for the customer state, the fading counts.

`LiveState.extend` reads further events and returns a new state. The old state does not change, so an unfinished visit
can be read again when it has grown.

Shapes: L events, J features, U units (events or visits), W cached units, H hidden size, V labels of all tasks, S
labels met by the customer, K half-lives, A latest labels, T tasks, N summed features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F

from .configuration_mcm import FIRST_LABEL, MISSING_ID
from .counted_memory_mcm import HABIT_VISITS, LATEST, LEAST_RATE, LEAST_WEIGHT, Histories, RelatedTable
from .modeling_mcm import MCMForMultiTaskRecommendation
from .state_mcm import TASTE_HALF_LIFE

SCORES_AT_ONCE = 2**22  # largest number of elements of z in memory
DECAY = 2.0 ** (-1 / HABIT_VISITS)
# Columns of `LiveState.met` after the K fading counts.
NUMBER, FIRST_UNIT, LAST_UNIT, FIRST_TIME, LAST_TIME, RATE = range(6)
COLUMNS = 6
MOST_UNREAD = 64  # number of calls of `extend` after which the readout reads the units of all of them


class TaskTables(NamedTuple):
    """Parameters of one task's labels (V labels of this task).

    Attributes:
        place (`int`): index of the task.
        labels (`slice`): the task's labels among the labels of all tasks.
        bias (`torch.FloatTensor` of shape `(V,)`): bias of each label.
        gains (`torch.FloatTensor` of shape `(V, K)`): label gains c of the repeat memory.
        rarity (`torch.FloatTensor` of shape `(V, 1)`): rarities r of the repeat memory.
    """

    place: int
    labels: slice
    bias: torch.Tensor
    gains: torch.Tensor
    rarity: torch.Tensor


class Reader:
    """A model's parameters in the form that live states need; they are computed once, not for every new visit.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): the model, in evaluation mode, for which [`is_incremental`] is True.
            Its weights must not change afterwards.
    """

    def __init__(self, model: MCMForMultiTaskRecommendation):
        config = model.config
        self.model, self.tasks, self.window = model, list(config.tasks), config.attention_window
        self.unit, self.reads_last = config.encoder_unit, config.readout == "last"
        self.heads, self.layers = config.num_attention_heads, list(model.model.encoder.layer)
        self.hidden_size = config.hidden_size
        self.projections = [_projections(layer) for layer in self.layers]
        self.event_tables = model.model.embeddings.events.joined()
        memory, counted = model.repeat_memory, model.counted_memory
        self.tables: list[TaskTables] = []
        vectors, start = [], 0
        for place, scored in enumerate(model._all_labels()):
            size = len(scored.vectors)
            gains, rarity = scored.memory or (scored.vectors.new_zeros(size, 0), scored.vectors.new_zeros(size, 1))
            bias = model._label_offsets(scored, torch.float32)
            labels = slice(start, start + size)
            self.tables.append(TaskTables(place, labels, bias.detach(), gains.detach(), rarity.detach()))
            scale = 1.0 if model.readout_scale is None else model.readout_scale[place].detach()
            vectors.append(scored.vectors.detach() * scale)
            start += size
        self.vectors, self.labels = torch.cat(vectors), start
        self.features = torch.tensor(model.task_features)
        self.starts = torch.tensor([table.labels.start for table in self.tables])
        self.task_of = torch.repeat_interleave(torch.tensor([len(table) for table in vectors]))
        self.is_related = torch.tensor([counted is not None and counted.has_related(k) for k in range(len(vectors))])
        self.relates_some, self.relates_all = bool(self.is_related.any()), bool(self.is_related.all())
        self.rates = torch.zeros(0) if memory is None else torch.exp(-memory.log_half_life.detach()).double()
        self.by_day = torch.arange(len(self.rates)) < (0 if memory is None else memory.num_days)
        state = model.model.state
        self.has_state = state is not None
        half_lives = [] if state is None else [*state.half_lives, math.inf]
        self.half_lives = torch.tensor(half_lives, dtype=torch.float64)
        self.few: list[int] = [] if state is None else state.few
        self.many: list[int] = [] if state is None else state.many
        self.channels = 0 if state is None else 2 + state.num_sums
        # Indices of the half-lives of features with many values: the one nearest to a month, and the infinite one.
        nearest = sorted(range(len(half_lives)), key=lambda k: abs(half_lives[k] - TASTE_HALF_LIFE))[:1]
        self.slow = [*nearest, len(half_lives) - 1] if half_lives else []
        self.few_rows, self.many_rows = self._rows(self.few), self._rows(self.many)
        # P z of features with many values: a row of P for each count, and P z of a customer without any such value.
        self.taste: torch.Tensor | None = None
        if state is not None and state.taste is not None:
            weight = state.taste.weight.detach()
            nothing = state.standardised(weight.new_zeros(state.num_many), slice(state.num_few, None))
            self.taste = weight.T.contiguous()
            self.no_taste = (weight.double() @ nothing.double()).float()

    def _rows(self, features: Sequence[int]) -> torch.Tensor:
        """Index of the first count of each feature, and the index behind the last: of shape `(features + 1,)`."""
        sizes = self.model.config.vocabulary_sizes
        return torch.tensor([0, *(sizes[feature] for feature in features)]).cumsum(0)


def _projections(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a layer's queries, keys and values, as one product, of shape `(3 H, H)` and `(3 H,)`."""
    heads = layer.attention.self
    three = (heads.query, heads.key, heads.value)
    return torch.cat([each.weight.detach() for each in three]), torch.cat([each.bias.detach() for each in three])


def is_incremental(model: MCMForMultiTaskRecommendation) -> bool:
    """Whether a model's hidden vectors never change when further units follow, as a [`LiveState`] requires.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): the model.
    """
    config = model.config
    reads_all = not config.input_features or set(config.input_features) == set(config.features)
    return config.encoder_attention == "causal" and config.augmentation != "masked_lm" and reads_all


@dataclass
class LiveState:
    """The summary of a customer's events from which scores, embedding and forecasts are computed.

    Times are days from the customer's first event. "Index of a label" means its index among the labels of all tasks.

    Attributes:
        units (`int`): number of units, the start row included.
        visits (`int`): number of the last visit; the start row is visit 0.
        time (`float`): time of the last event.
        began (`float`): time of the first event, infinite without events.
        hidden (`torch.FloatTensor` of shape `(H,)`): hidden vector of the last unit, after the last layer.
        kept (`torch.LongTensor` of shape `(W,)`): numbers of the units whose keys and values are cached.
        caches (`torch.FloatTensor` of shape `(layers, 2, heads, W, H / heads)`): keys and values of these units.
        average (`torch.FloatTensor` of shape `(V,)`): readout of each label over all units but the unread ones.
        weight (`torch.FloatTensor` of shape `(V,)`): log-sum-exp of z of each label over the same units.
        unread (`tuple[torch.FloatTensor, ...]`, each of shape `(U, H)`): hidden vectors of the latest units, which the
            readout has not read. It reads them when scores are computed, in these parts, so that the scores have the
            same bits at any time.
        labels (`torch.LongTensor` of shape `(S,)`): indices of the labels met, ascending.
        met (`torch.DoubleTensor` of shape `(S, K + 6)`): for each label met the fading counts, the number of units
            with it, the first and the last of these units, their times, and its rate, not normalised.
        label_visits (`torch.LongTensor` of shape `(T,)`): number of visits with a label of each task.
        latest (`torch.LongTensor` of shape `(T, A)`): label ids of each task's latest labels, the last one at the end;
            0 where there are fewer.
        latest_times (`torch.FloatTensor` of shape `(T, A)`): times of the latest labels.
        sums (`torch.DoubleTensor` of shape `(2 + N, half-lives)`): counts of the customer state: the fading numbers of
            events and visits, and the fading sums.
        few (`torch.DoubleTensor` of shape `(values, half-lives)`): fading counts of features with few values.
        many (`torch.DoubleTensor` of shape `(values, 2)`): fading counts of features with many values.
        habits (`torch.DoubleTensor` of shape `(V,)`): rates of the labels met times the table of habits.
        new (`torch.DoubleTensor` of shape `(V,)`): labels met times the table of new labels.
    """

    units: int
    visits: int
    time: float
    began: float
    hidden: torch.Tensor
    kept: torch.Tensor
    caches: torch.Tensor
    average: torch.Tensor
    weight: torch.Tensor
    unread: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    met: torch.Tensor
    label_visits: torch.Tensor
    latest: torch.Tensor
    latest_times: torch.Tensor
    sums: torch.Tensor
    few: torch.Tensor
    many: torch.Tensor
    habits: torch.Tensor
    new: torch.Tensor

    @classmethod
    def empty(cls, reader: Reader) -> "LiveState":
        """The state before the start row.

        Args:
            reader ([`Reader`]): parameters of the model.
        """
        tasks, size = len(reader.tables), reader.labels
        kernels = reader.tables[0].gains.shape[1]
        caches = torch.zeros(len(reader.layers), 2, reader.heads, 0, reader.hidden_size // reader.heads)
        return cls(
            units=0,
            visits=0,
            time=0.0,
            began=math.inf,
            hidden=torch.zeros(reader.hidden_size),
            kept=torch.zeros(0, dtype=torch.long),
            caches=caches,
            average=torch.zeros(size),
            weight=torch.full((size,), float("-inf")),
            unread=(),
            labels=torch.zeros(0, dtype=torch.long),
            met=torch.zeros(0, kernels + COLUMNS, dtype=torch.float64),
            label_visits=torch.zeros(tasks, dtype=torch.long),
            latest=torch.zeros(tasks, LATEST, dtype=torch.long),
            latest_times=torch.zeros(tasks, LATEST),
            sums=torch.zeros(reader.channels, len(reader.half_lives), dtype=torch.float64),
            few=torch.zeros(int(reader.few_rows[-1]), len(reader.half_lives), dtype=torch.float64),
            many=torch.zeros(int(reader.many_rows[-1]), 2, dtype=torch.float64),
            habits=torch.zeros(size, dtype=torch.float64),
            new=torch.zeros(size, dtype=torch.float64),
        )

    @torch.inference_mode()
    def tensors(self, reader: Reader) -> dict[str, torch.Tensor]:
        """The tensors to store, from which `of_tensors` restores the state.

        Args:
            reader ([`Reader`]): parameters of the model.
        """
        self._read_out(reader)
        stored = {each.name: getattr(self, each.name) for each in fields(self)}
        stored = {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}
        stored["numbers"] = torch.tensor([self.units, self.visits, self.time, self.began], dtype=torch.float64)
        stored["many_values"] = self.many.any(1).nonzero()[:, 0]
        stored["many"] = self.many[stored["many_values"]]
        return {name: value.contiguous() for name, value in stored.items() if name not in ("habits", "new")}

    @classmethod
    def of_tensors(cls, stored: dict[str, torch.Tensor], reader: Reader) -> "LiveState":
        """Restores a state.

        Args:
            stored (`dict[str, torch.Tensor]`): result of `tensors`.
            reader ([`Reader`]): parameters of the same model.
        """
        values: dict[str, Any] = dict(stored)
        units, visits, time, began = values.pop("numbers").tolist()
        state = cls.empty(reader)
        state.many[values.pop("many_values")] = values.pop("many")
        state = replace(state, **values, units=int(units), visits=int(visits), time=time, began=began)
        state._relate(reader, state.labels, state.met[:, RATE - COLUMNS], state.labels)
        return state

    @torch.inference_mode()
    def extend(
        self,
        reader: Reader,
        input_ids: torch.Tensor,
        times: torch.Tensor,
        visits: torch.Tensor,
        values: torch.Tensor | None = None,
    ) -> "LiveState":
        """Reads further events, whole visits, and returns the new state.

        Args:
            reader ([`Reader`]): parameters of the model.
            input_ids (`torch.LongTensor` of shape `(L, J)`): feature ids of the events, oldest first.
            times (`torch.FloatTensor` of shape `(L,)`): days from the customer's first event, in ascending order.
            visits (`torch.LongTensor` of shape `(L,)`): visit of each event; the start row is visit 0.
            values (`torch.FloatTensor` of shape `(L, N)`, *optional*): values of the summed features. Default: 0.

        Raises:
            ValueError: if there are more units than position embeddings.
        """
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
        state._remember(reader, input_ids, events, units, unit_times, times, of_event)
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
        for place, (layer, projections) in enumerate(zip(reader.layers, reader.projections, strict=True)):
            # Queries, keys and values, of shape (3, heads, U, H / heads).
            new = F.linear(x[0], *projections).view(count, 3, reader.heads, -1).permute(1, 2, 0, 3)
            cache = torch.cat([self.caches[place], new[1:]], 2)
            scale = layer.attention.self.scaling
            read = F.scaled_dot_product_attention(new[:1], cache[:1], cache[1:], mask, scale=scale)
            read = read[0].transpose(0, 1).reshape(1, count, -1)
            x = layer.feed_forward_chunk(layer.attention.output(read, x))
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

    def _remember(self, reader: Reader, input_ids, events, units, unit_times, times, visits) -> None:
        """What new events add to the memories; `visits` of the events are counted from 0."""
        memory = reader.model.repeat_memory
        votes = torch.ones(len(events)) if memory is None else memory.vote(events)[:, 0].exp()
        ids = input_ids.T[reader.features]  # (T, L)
        known = ids >= FIRST_LABEL
        task, event = known.nonzero(as_tuple=True)
        labels = ids[task, event] + reader.starts[task]
        count = len(unit_times)
        # Each label's votes in each unit: pairs (label, unit), each once, in the order of labels and units.
        pairs, of_vote, number = (labels * count + units[event]).unique(return_inverse=True, return_counts=True)
        vote = torch.zeros(len(pairs)).index_add(0, of_vote, votes[event]) / number
        pair_labels, pair_units = pairs // count, pairs % count
        met_now, of_pair, meetings = pair_labels.unique_consecutive(return_inverse=True, return_counts=True)
        is_first, places = self._make_room(met_now)

        slots, kernels = places[of_pair], self.met.shape[1] - COLUMNS
        pair_times = unit_times[pair_units]
        if memory is not None:
            faded, columns = self.met[:, :kernels], self.met[:, kernels:]
            ages = torch.where(reader.by_day, float(unit_times[-1]) - self.time, float(count))
            faded *= torch.exp2(-ages.double().clamp(min=0) * reader.rates)
            if count == 1:
                added = vote.double()[:, None].expand(-1, kernels)
            else:
                days, steps = (unit_times[-1] - pair_times).clamp(min=0), (count - 1 - pair_units).float()
                since = torch.where(reader.by_day, days[:, None], steps[:, None]).double()
                added = vote[:, None] * torch.exp2(-since * reader.rates)
            faded.index_add_(0, slots, added)
        else:
            columns = self.met
        columns[:, NUMBER].index_add_(0, places, meetings.double())
        ends = meetings.cumsum(0)
        opening, last = (ends - meetings)[is_first], ends - 1
        pair_units = pair_units + self.units
        for column, values in ((FIRST_UNIT, pair_units), (FIRST_TIME, pair_times)):
            columns[:, column].index_copy_(0, places[is_first], values[opening].double())
        for column, values in ((LAST_UNIT, pair_units), (LAST_TIME, pair_times)):
            columns[:, column].index_copy_(0, places, values[last].double())
        if reader.relates_some:
            if reader.unit != "visit":
                number = int(visits[-1]) + 1
                cells = (labels * number + visits[event]).unique()
                pair_labels, visits_met = cells // number, cells % number
            else:
                number, visits_met = count, pairs % count
            self._habits(reader, pair_labels, visits_met, number, met_now[is_first])
        self._latest(ids, known, times)

    def _make_room(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds rows to `met` for labels that have none, in a copy, so that the earlier state does not change.

        Args:
            labels: indices of labels, ascending.

        Returns:
            Whether each label is new, and its row of `met`, both of shape `(labels,)`.
        """
        places = torch.searchsorted(self.labels, labels)
        is_new = F.pad(self.labels, (0, 1), value=-1)[places] != labels
        new = labels[is_new]
        if not len(new):
            self.met = self.met.clone()
            return is_new, places
        self.labels, order = torch.cat([self.labels, new]).sort()
        self.met = F.pad(self.met, (0, 0, 0, len(new)))[order]
        return is_new, places + is_new.cumsum(0) - is_new.long()

    def _habits(self, reader: Reader, labels, visits, number: int, new) -> None:
        """Adds new visits to the rates of labels and to the products with the tables of related labels.

        Args:
            labels: index of the label of each distinct pair of a label and a visit with it.
            visits: visit of each pair.
            number: number of new visits.
            new: indices of labels that are met for the first time.
        """
        tasks = reader.task_of[labels]
        if not reader.relates_all:
            related = reader.is_related[tasks]
            labels, visits, tasks = labels[related], visits[related], tasks[related]
            new = new[reader.is_related[reader.task_of[new]]]
        has_label = torch.zeros(len(reader.tables), number, dtype=torch.bool)
        has_label[tasks, visits] = True
        passed = has_label.cumsum(1)  # visits with a label of the task, up to each
        fades = DECAY ** passed[:, -1].double()
        self.label_visits = self.label_visits + passed[:, -1]
        weights = DECAY ** (passed[tasks, -1] - passed[tasks, visits]).double()
        rates = self.met[:, RATE - COLUMNS]
        rates *= fades[reader.task_of[self.labels]]
        rates.index_add_(0, torch.searchsorted(self.labels, labels), weights)
        self.habits = self.habits * fades[reader.task_of]
        self.new = self.new.clone()
        self._relate(reader, labels, weights, new)

    def _relate(self, reader: Reader, labels, rates, new) -> None:
        """Adds products with the tables of related labels: those of `labels` times their `rates` to `habits`, and
        those of `new` labels to `new`. Indices of labels are ascending."""
        counted = reader.model.counted_memory
        if counted is None:
            return
        for total, tables, of, amounts in (
            (self.habits, counted.habit_tables, labels, rates),
            (self.new, counted.new_tables, new, None),
        ):
            ends = torch.searchsorted(of, reader.starts).tolist()
            for table, start, end in zip(reader.tables, ends, [*ends[1:], len(of)], strict=True):
                if start == end or not counted.has_related(table.place):
                    continue
                related = cast(RelatedTable, tables[str(table.place)])
                rows = of[start:end] - table.labels.start
                values = related.weights[rows].double()
                if amounts is not None:
                    values *= amounts[start:end, None]
                total[table.labels].scatter_add_(0, related.related[rows].flatten().long(), values.flatten())

    def _latest(self, ids, known, times) -> None:
        latest, latest_times = [], []
        for place in range(len(ids)):
            some = known[place].nonzero()[-LATEST:, 0]
            latest.append(torch.cat([self.latest[place], ids[place, some]])[-LATEST:])
            latest_times.append(torch.cat([self.latest_times[place], times[some]])[-LATEST:])
        self.latest, self.latest_times = torch.stack(latest), torch.stack(latest_times)

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

    def _of_task(self, table: TaskTables) -> slice:
        """The rows of `labels` and `met` that belong to a task."""
        bounds = torch.tensor([table.labels.start, table.labels.stop])
        return slice(*torch.searchsorted(self.labels, bounds).tolist())

    # ---------------------------------------------------------------------------------------------------- questions

    @torch.inference_mode()
    def logits(
        self, reader: Reader, tasks: Sequence[str] | None = None, now: float | None = None
    ) -> dict[str, torch.Tensor]:
        """Scores of all labels, before the softmax.

        Args:
            reader ([`Reader`]): parameters of the model.
            tasks (`Sequence[str]`, *optional*): names of the tasks. Default: all tasks.
            now (`float`, *optional*): moment of the scores, in days from the customer's first event. Default: the time
                of the last event.

        Returns:
            `dict[str, torch.FloatTensor]`: by task the scores of its labels, of shape `(labels,)`.
        """
        self._read_out(reader)
        wait = 0.0 if now is None else max(now - self.time, 0.0)
        result = {}
        for task in reader.tasks if tasks is None else tasks:
            place = reader.tasks.index(task)
            parts = self._parts(reader, reader.tables[place], wait)
            result[task] = reader.model.joined_scores(place, {name: part[None, None] for name, part in parts.items()})[
                0, 0
            ]
        return result

    @torch.inference_mode()
    def embedding(self, reader: Reader, now: float | None = None) -> torch.Tensor:
        """Customer embedding: the customer state at a moment or, in a model without one, the last hidden vector.

        Args:
            reader ([`Reader`]): parameters of the model.
            now (`float`, *optional*): moment in days from the customer's first event, not before the last event.
                Default: the time of the last event.

        Returns:
            `torch.FloatTensor` of shape `(embedding size,)`.
        """
        if not reader.has_state:
            return self.hidden
        model = reader.model.model
        now = self.time if now is None else now
        fade = torch.exp2((self.time - torch.tensor(now).double()).clamp(max=0) / reader.half_lives)
        visits = float(self.sums[1, -1])
        since = (now - self.time, now - self.began) if visits else (0.0, 0.0)
        gap = (since[1] - since[0]) / max(visits - 1, 1)
        gaps = torch.tensor([*since, since[0] / (gap + 0.5), gap], dtype=torch.float64).clamp(min=0)
        few = [(self.sums * fade).flatten().clamp(min=0), (self.few * fade).flatten(), gaps]
        state = cast(Any, model.state)
        z = state.standardised(torch.cat(few).log1p().float(), slice(None, state.num_few))
        taste = None
        if reader.taste is not None:  # P z of no values, plus the difference that the customer's values make
            values = self.many[:, -1].nonzero()[:, 0]
            places = (2 * values[:, None] + torch.arange(2)).flatten()
            counts = (self.many[values] * fade[reader.slow]).flatten().log1p().float()
            places_of_all = places + state.num_few
            differs = state.standardised(counts, places_of_all)
            differs -= state.standardised(torch.zeros_like(counts), places_of_all)
            weighted = {"per_sample_weights": differs[None], "mode": "sum"}
            taste = reader.no_taste + F.embedding_bag(places[None], reader.taste, **weighted)[0]
        return state.joined(z, taste)

    @torch.inference_mode()
    def forecast(self, reader: Reader, now: float | None = None) -> dict[str, torch.Tensor]:
        """Forecasts by name; empty if the model has no trained forecasts.

        Args:
            reader ([`Reader`]): parameters of the model.
            now (`float`, *optional*): moment in days from the customer's first event, not before the last event.
                Default: the time of the last event.

        Returns:
            `dict[str, torch.FloatTensor]`, each of shape `()`.
        """
        forecasts = cast(Any, reader.model.model.forecasts)
        return forecasts(self.embedding(reader, now)) if forecasts is not None and forecasts.is_trained else {}

    def _parts(self, reader: Reader, table: TaskTables, wait: float) -> dict[str, torch.Tensor]:
        """Parts of a task's scores, each of shape `(labels,)`, as `score_parts` of the model returns them. `wait` is
        the number of days from the last event to the moment of the scores."""
        model = reader.model
        size = table.labels.stop - table.labels.start
        parts = {"readout": self.average[table.labels], "bias": table.bias}
        part = self._of_task(table)
        labels, met = self.labels[part] - table.labels.start, self.met[part]
        if model.repeat_memory is not None:
            parts["repeats"] = torch.zeros(size)
            parts["repeats"][labels] = self._repeats(reader, table, labels, met.float(), wait)
        counted = model.counted_memory
        if counted is not None:
            is_met = torch.zeros(size, dtype=torch.bool)
            is_met[labels] = True
            if counted.has_followers(table.place):
                parts["followers"] = self._followers(counted, table.place)
                if model.repeat_memory is None:
                    parts["followers"] = parts["followers"] + counted.met_gain[table.place] * is_met
            if counted.has_related(table.place):
                total = max(int(self.label_visits[table.place]), 1)
                habits = self.habits[table.labels] * ((1 - DECAY) / (1 - DECAY**total))
                parts["met"] = is_met
                parts["habits"] = (habits.clamp(min=0) + LEAST_RATE).log().float()
                parts["new"] = torch.log1p(self.new[table.labels].clamp(min=0) / LEAST_WEIGHT).float()
        return parts

    def _repeats(
        self, reader: Reader, table: TaskTables, labels: torch.Tensor, met: torch.Tensor, wait: float
    ) -> torch.Tensor:
        """Values that the repeat memory adds to the scores of labels met, by the formula of [`RepeatMemory`]."""
        memory = cast(Any, reader.model.repeat_memory)
        task, kernels = table.place, met.shape[1] - COLUMNS
        counts, columns = met[:, :kernels], met[:, kernels:]
        if wait:  # counts that fade with days fade until the moment of the scores
            counts = counts * torch.exp2(-wait * reader.by_day * reader.rates).float()
        rarity = table.rarity[labels]
        length = torch.log1p(torch.tensor(float(self.units - 1)))
        gains = memory.memory_gain[task] + table.gains[labels] + memory.memory_growth[task] * length
        terms = torch.log1p(counts * (memory.log_sensitivity[task] + memory.rarity_weight[task] * rarity).exp())
        added = (terms * gains).sum(-1)
        if len(memory.network_in):
            number = columns[:, NUMBER]
            since_first, since_last = self.units - 1 - columns[:, FIRST_UNIT], self.units - 1 - columns[:, LAST_UNIT]
            gap = (since_first - since_last) / (number - 1).clamp(min=1)
            days = [self.time + wait - columns[:, column] for column in (FIRST_TIME, LAST_TIME)]
            habits = torch.stack([number, since_first, since_last, gap, *days], 1).clamp(min=0).log1p()
            length = length.expand(len(labels), 1)
            inputs = torch.cat([terms, habits, length / 3, rarity / 2], 1)
            added = added + memory.network_out[task](memory.network_in[task](inputs).relu())[:, 0]
        return added

    def _followers(self, counted, place: int) -> torch.Tensor:
        """Values that followers of the latest labels add to a task's scores, of shape `(labels,)`."""
        labels = F.pad(self.latest[place], (0, 1))[None]
        times = F.pad(self.latest_times[place], (0, 1), value=self.time)[None]
        nothing = torch.zeros_like(labels)
        histories = Histories(nothing, times, torch.zeros(1, dtype=torch.long), torch.tensor([labels.shape[1] - 1]))
        return counted.followers(place, labels, histories)[0]


def _added(counts: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Adds new events to counts of feature values.

    Args:
        counts: counts of shape `(values, k)`, changed in place.
        ids: feature ids of the events, of shape `(L, features)`.
        rows: row of each feature's first value in `counts`.
        weights: weights of the events, of shape `(L, k)`.
    """
    event, feature = (ids > MISSING_ID).nonzero(as_tuple=True)
    return counts.index_add_(0, ids[event, feature] + rows[feature], weights[event])


__all__ = ["LiveState", "Reader", "is_incremental"]
