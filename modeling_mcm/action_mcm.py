# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The head for offers (the paper's incentive task): predicts each outcome of each action that a customer is offered.

An action is an event that has not happened yet. The head is a linear model of the customer embedding at the time of
the offers, of numbers of the customer and the action (MCM's own scores of the action's labels, and counts of the
customer's events that did what the action asks for or share a label with it, see [`number_names`]), and of the
action's labels themselves. So it scores an action that no training offer had. It is fitted at once
(`modeling_mcm.training.heads.offers`).

Shapes: B customers, L events, J features, T tasks; A actions of the batch, R action rows (an action that covers
several kinds of events has one row for each kind), M matches (events that did what an action asks for), X numbers of
an offer, K offers of the customer with the most, O outcomes, D half-lives with the infinite one of undecayed counts, V
labels of all tasks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from .configuration_mcm import FIRST_LABEL, MCMConfig
from .modeling_mcm import MCMForMultiTaskRecommendation
from .state_mcm import Exact, ZeroLinear, decay_weights, find_events, sum_by_value

# Half-lives of the counts, in days; events are also counted undecayed.
OFFER_HALF_LIVES = (14.0, 60.0, 365.0)
LONGEST_DAYS = 10_000.0  # number of days since an event that never happened
LEAST_CHANCE = 1e-9  # of an action's values, before the logarithm


@auto_docstring(custom_intro="Output of [`MCMForActionRecommendation`].")
@dataclass
class MCMActionOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` is given):
        Binary cross-entropy, summed over outcomes and a customer's observed offers, averaged over customers.
    logits (`torch.FloatTensor` of shape `(batch_size, offers, outcomes)`):
        Log-odds of each outcome of each offer; masked with a large negative value where a customer has fewer offers.
    preferences (`torch.FloatTensor` of shape `(batch_size, offers, tasks)`):
        MCM's own scores: for each task the log-probability that the next event has one of the action's values; 0
        where the action has no value of the task. Their sum over tasks is "MCM without fine-tuning".
    numbers (`torch.FloatTensor` of shape `(batch_size, offers, numbers)`):
        What the head reads of each offer: the numbers of [`number_names`], and the customer embedding.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, embedding_size)`):
        Customer embedding at the time of the offers.
    hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
        As in [`MCMModelOutput`].
    attentions (`tuple[torch.FloatTensor, ...]`, *optional*):
        As in [`MCMModelOutput`].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    preferences: Tensor | None = None
    numbers: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def number_names(config: MCMConfig) -> list[str]:
    """Names of the numbers of an offer: the preferences by task; by half-life in days ("all": undecayed) the events
    that did what the action asks for, those of them with its token type, and the sums of their values; the days since
    the last of them; and by task the events that share a label with the action, and the number of its labels."""
    half_lives = [*(f"{days:g}d" for days in OFFER_HALF_LIVES), "all"]
    did = ["did", "did as asked", *(f"{name} of did" for name in config.summed_features)]
    names = [f"{kind} {each}" for kind in did for each in half_lives] + ["days since did"]
    for task in config.tasks:
        names += [*(f"shared {task} {each}" for each in half_lives), f"labels of {task}"]
    return [*(f"preference {task}" for task in config.tasks), *names]


class ActionHead(Exact):
    """A linear model of the numbers of an offer, and of the action's labels as a vector of length 1."""

    def __init__(self, numbers: int, labels: int, outcomes: int):
        super().__init__()
        self.numbers = ZeroLinear(numbers, outcomes)
        self.labels = ZeroLinear(labels, outcomes, bias=False)

    def forward(self, numbers: Tensor, labels: Tensor, offered: Tensor) -> Tensor:
        """Log-odds `(B, K, O)` from numbers `(B, K, X)`, the labels of each action `(A, V)`, and which action each
        offer is of, `(B, K)`."""
        return self.numbers(numbers) + self.labels(F.normalize(labels))[offered]


@auto_docstring(custom_intro="MCM fine-tuned to offers: it predicts the log-odds of every outcome of every offer.")
class MCMForActionRecommendation(MCMForMultiTaskRecommendation):
    def __init__(self, config: MCMConfig):
        super().__init__(config)
        size = len(number_names(config)) + config.embedding_size
        self.action_head = ActionHead(size, sum(config.label_sizes.values()), len(config.action_outcomes))
        self.post_init()

    def action_labels(self, action_ids: Tensor, rows: Tensor, count: int) -> Tensor:
        """Which labels each action has, as 0 or 1 in the order of the tasks, of shape `(A, V)`, from the feature ids
        `(R, J)` and the action `(R,)` of each row."""
        parts = []
        for task, size in self.config.label_sizes.items():
            has = torch.zeros(count, size, device=rows.device)
            has[rows, action_ids[:, self.config.features.index(task)]] = 1.0
            has[:, :FIRST_LABEL] = 0.0
            parts.append(has)
        return torch.cat(parts, 1)

    def describe_offers(
        self,
        scores: Mapping[str, Tensor],
        input_ids: Tensor,
        ages: Tensor,
        event_values: Tensor | None,
        labels: Tensor,
        matches: Tensor,
    ) -> Tensor:
        """Computes the numbers of each customer and action, of shape `(B, A, X)`; every sum n is told as log(1 + n).

        Args:
            scores (`dict[str, torch.FloatTensor]`): MCM's own scores `(B, V)` by task.
            input_ids (`torch.LongTensor` of shape `(B, L, J)`): Feature ids of each event.
            ages (`torch.FloatTensor` of shape `(B, L)`): Days from each event to the offers; infinite where there is
                no event.
            event_values (`torch.FloatTensor` of shape `(B, L, N)`, *optional*): Values of the summed features.
            labels (`torch.FloatTensor` of shape `(A, V)`): Those of `action_labels`.
            matches (`torch.LongTensor` of shape `(M, 4)`): Customer, event and action of each match, and 1 where they
                have one token type.
        """
        batch, count, (owners, events, actions, as_asked) = len(ages), len(labels), matches.T
        weights = decay_weights(ages.clamp(max=LONGEST_DAYS), [*OFFER_HALF_LIVES, math.inf], ages.isfinite())
        did, cells = weights[owners, events], owners * count + actions  # (M, D) and (M,)
        factors = [torch.ones_like(as_asked), as_asked]
        if event_values is not None:
            factors += event_values[owners, events, : len(self.config.summed_features)].unbind(-1)
        done = torch.cat([did * factor[:, None] for factor in factors], -1)
        done = done.new_zeros(batch * count, done.shape[1]).index_add(0, cells, done)
        last = ages.new_full((batch * count,), LONGEST_DAYS)
        last = last.scatter_reduce(0, cells, ages[owners, events], "amin")
        numbers = torch.cat([done, last[:, None]], 1).clamp(min=0).log1p().view(batch, count, -1)
        preferences, shared = [], []
        sizes = self.config.label_sizes
        for (task, size), has in zip(sizes.items(), labels.split([*sizes.values()], 1), strict=True):
            number = has.sum(1).to(weights.dtype)
            counts = sum_by_value(input_ids[..., self.config.features.index(task)], weights, size)
            counts = torch.cat([counts, scores[task].softmax(-1)[..., None].to(counts.dtype)], -1)
            counts = torch.einsum("av,bvd->bad", has.to(counts.dtype), counts)
            preferences.append(torch.where(number > 0, counts[..., -1].clamp(LEAST_CHANCE, 1).log(), 0.0))
            shared += [counts[..., :-1].log1p(), number.log1p()[None, :, None].expand(batch, -1, 1)]
        return torch.cat([torch.stack(preferences, -1), numbers, *shared], -1)

    @can_return_tuple
    @auto_docstring(custom_intro="Computes log-odds of offers from histories and actions, and the loss.\n")
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visit_ids: Tensor | None = None,
        event_times: Tensor | None = None,
        action_input_ids: Tensor | None = None,
        action_rows: Tensor | None = None,
        action_matches: Tensor | None = None,
        offered_actions: Tensor | None = None,
        labels: Tensor | None = None,
        event_values: Tensor | None = None,
        as_of: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MCMActionOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_features)`):
            Feature ids of each event before the offers, oldest event first, padded on the right with 0. The first row
            is the start row.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 where an event is real, 0 on padding. Default: 1 where any feature is present.
        visit_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Visit of each event, counted from 0 for each customer.
        event_times (`torch.FloatTensor` of shape `(batch_size, sequence_length)`):
            Days from the customer's first event to each event, in ascending order.
        action_input_ids (`torch.LongTensor` of shape `(rows, num_features)`):
            Feature ids of each action row.
        action_rows (`torch.LongTensor` of shape `(rows,)`):
            Index of each row's action.
        action_matches (`torch.LongTensor` of shape `(matches, 4)`):
            Index of customer, event and action of each event that did what the action asks for, and 1 if it has the
            action's token type, too.
        offered_actions (`torch.LongTensor` of shape `(batch_size, offers)`):
            Index of the action of each offer; negative where a customer has fewer offers.
        labels (`torch.FloatTensor` of shape `(batch_size, offers, outcomes)`, *optional*):
            1 if the outcome happened, 0 if it did not, a negative number if it was not observed.
        event_values (`torch.FloatTensor` of shape `(batch_size, sequence_length, num_values)`, *optional*):
            Values of `config.summed_features` of each event, 0 where one is missing. Required if the config has
            summed features.
        as_of (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            Time of the offers, in days on the clock of `event_times`. Default: that of each customer's last event.

        Returns:
            [`MCMActionOutput`].

        Raises:
            ValueError: If there are no offers, no times, or no `event_values` where the config has summed features.
        """
        if offered_actions is None or event_times is None:
            raise ValueError("There are no offers, or no times of the events: EncodedActions.batch gives both.")
        if attention_mask is None:
            attention_mask = (input_ids != 0).any(-1).long()
        time = event_times.amax(1) if as_of is None else as_of  # padding has time 0
        history = input_ids, attention_mask, visit_ids, event_times
        outputs = super().forward(*history, event_values=event_values, as_of=time, parts=("embedding",), **kwargs)
        ages = time[:, None] - event_times
        ages = ages.masked_fill(~find_events(attention_mask) | (ages < 0), torch.inf)
        offered, actions = offered_actions.clamp(min=0), cast(Any, (action_input_ids, action_rows, action_matches))
        action_labels = self.action_labels(actions[0], actions[1], int(offered.max()) + 1)
        numbers = self.describe_offers(outputs.logits, input_ids, ages, event_values, action_labels, actions[2])
        numbers = numbers.take_along_dim(offered[..., None], 1)
        embedding = outputs.pooler_output[:, None].expand(-1, numbers.shape[1], -1)
        read = torch.cat([numbers, embedding.to(numbers.dtype)], -1)
        logits = self.action_head(read, action_labels, offered)
        return MCMActionOutput(
            loss=None if labels is None else offer_loss(logits, labels).sum() / len(logits),
            logits=logits.masked_fill(offered_actions[..., None] < 0, torch.finfo(logits.dtype).min / 2),
            preferences=numbers[..., : len(self.config.tasks)],
            numbers=read,
            pooler_output=outputs.pooler_output,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def offer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of log-odds, of the same shape; labels below 0 are not observed, and their loss is 0."""
    losses = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0), reduction="none")
    return losses * (labels >= 0)
