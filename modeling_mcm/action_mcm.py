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
"""The head for offers (section 3.3 of the paper): a score for each outcome of each action that a customer is offered.

An action is an interaction not yet taken, so its embedding comes out of the module that embeds interactions: an
action that was never seen in training has one too. The head reads the customer state at the time of the offers, the
action, the history with a new attentional readout for the action, and numbers: what pre-training expects of the
action's values, which is MCM's own scores, and the customer's counts of what the action asks (`action_counts_mcm`).

Shapes: B customers, L events, U encoder units, H hidden, J features, T tasks; A actions of the batch, R rows of
actions (an action that covers several kinds of interactions has a row for each), M events that did what an action
asks, X numbers that are known of an offer, K offers of the customer with the most, O outcomes, N small networks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from .action_counts_mcm import ActionCounts, count_names
from .configuration_mcm import MCMConfig
from .modeling_mcm import MCMForMultiTaskRecommendation

NETWORKS, UNITS = 4, 32  # small networks whose mean is the score, and hidden units of each
DROPOUT = 0.4  # of what the networks read, and of their hidden units
LEAST_SPREAD, FARTHEST = 0.05, 5.0  # of numbers that are standardised


@auto_docstring(custom_intro="What [`MCMForActionRecommendation`] returns.")
@dataclass
class MCMActionOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` is given):
        Binary cross-entropy, the sum over outcomes and a customer's observed offers, the mean over customers.
    logits (`torch.FloatTensor` of shape `(batch_size, offers, outcomes)`):
        Log-odds of each outcome of each offer; a number that is always the smallest where a customer has fewer offers.
    preferences (`torch.FloatTensor` of shape `(batch_size, offers, tasks)`):
        MCM's own scores: the log-probability, task by task, that what comes next has one of the action's values; 0
        where the action has no value of the task. Their sum over tasks is "MCM without fine-tuning".
    pooler_output (`torch.FloatTensor` of shape `(batch_size, embedding_size)`):
        The customer embedding, at the time of the offers.
    hidden_states, attentions (`tuple[torch.FloatTensor, ...]`, *optional*):
        As in [`MCMRecommendationOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    preferences: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class Standardised(nn.Module):
    """Numbers less their mean over their spread, both of all that training has seen so far.

    Moments of the batch alone, as in batch normalisation, would take the customers' level away: batches are of
    histories of similar length.
    """

    def __init__(self, size: int):
        super().__init__()
        self.count = nn.Buffer(torch.zeros(()))
        self.mean = nn.Buffer(torch.zeros(size))
        self.square = nn.Buffer(torch.ones(size))

    def reset_parameters(self):
        """Nothing has been seen."""
        init.zeros_(self.count)
        init.zeros_(self.mean)
        init.ones_(self.square)

    @torch.no_grad()
    def see(self, rows: torch.Tensor) -> None:
        """Takes more rows, of shape `(rows, numbers)`, into the moments."""
        rows = rows.to(self.mean.dtype)
        self.count.add_(len(rows))
        share = len(rows) / self.count.clamp(min=1)
        self.mean.add_(share * (rows.mean(0) - self.mean))
        self.square.add_(share * (rows.square().mean(0) - self.square))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The values, standardised, of the same shape."""
        spread = (self.square - self.mean.square()).clamp(min=LEAST_SPREAD**2).sqrt()
        return ((values - self.mean) / spread).clamp(-FARTHEST, FARTHEST)


class ActionHead(nn.Module):
    """From the customer, the action and what is known of both to one log-odds an outcome.

        q_a = Q e_a;  r_a = sum_i softmax_i(q_a . h_i) h_i                                  (equation 2 for actions)
        logit_o(a) = bias_o + g_o . preferences(a) + mean_n (d_no . x + w_no . f_n(r_a, e_a, r_a * e_a, x))

    x is the numbers and the customer state, standardised, f_n one hidden layer. Few customers take an offer, so the N
    networks are small, much of what they read is dropped out in training, each is trained as if it were alone, and
    the mean of their log-odds is the score. d and w start at 0 and the g alike, so fine-tuning starts from MCM's own
    ranking.
    """

    def __init__(self, config: MCMConfig):
        super().__init__()
        hidden, outcomes, tasks = config.hidden_size, len(config.action_outcomes), len(config.tasks)
        known = 2 * tasks + sum(map(len, count_names(config))) + config.embedding_size
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.standardised = Standardised(known)
        self.dense = nn.Linear(3 * hidden + known, NETWORKS * UNITS)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Parameter(torch.empty(NETWORKS, UNITS, outcomes))
        self.bias = nn.Parameter(torch.empty(outcomes))
        self.direct = nn.Parameter(torch.empty(NETWORKS, known, outcomes))
        self.preference_gain = nn.Parameter(torch.empty(outcomes, tasks))

    def reset_parameters(self):
        """Fine-tuning starts from MCM's own ranking."""
        init.eye_(self.query.weight)
        init.zeros_(self.output)
        init.zeros_(self.bias)
        init.zeros_(self.direct)
        init.constant_(self.preference_gain, 1 / self.preference_gain.shape[1])

    def forward(self, hidden, unit_mask, states, actions, offered, preferences, known):
        """Log-odds of every network, of shape `(N, B, K, O)`.

        Args:
            hidden, unit_mask: h of shape `(B, U, H)` and where it is real.
            states (`(B, S)`): the customer states.
            actions: e of shape `(A, H)`.
            offered: which actions each customer is offered, of shape `(B, K)`; negative where one has fewer.
            preferences: of shape `(B, K, T)`.
            known: the numbers, of shape `(B, K, X)`.
        """
        real, asked = offered >= 0, actions[offered.clamp(min=0)]
        weights = (self.query(asked) @ hidden.transpose(1, 2)).masked_fill(~unit_mask[:, None], float("-inf"))
        read = weights.softmax(-1) @ hidden  # r: (B, K, H)
        known = torch.cat([known.to(read.dtype), states[:, None].expand(-1, read.shape[1], -1)], -1)
        if self.training:
            self.standardised.see(known[real])
        known = self.dropout(self.standardised(known).to(read.dtype) * real[..., None])
        vectors = self.dropout(torch.cat([read, asked, read * asked], -1))
        units = self.activation(self.dense(torch.cat([vectors, known], -1))).unflatten(-1, (NETWORKS, UNITS))
        units = self.dropout(units)
        scores = torch.einsum("bknu,nuo->nbko", units, self.output) + torch.einsum("bkx,nxo->nbko", known, self.direct)
        return scores + self.bias + preferences @ self.preference_gain.T


@auto_docstring(custom_intro="MCM fine-tuned to offers: for every offered action, the log-odds of every outcome.")
class MCMForActionRecommendation(MCMForMultiTaskRecommendation):
    def __init__(self, config: MCMConfig):
        super().__init__(config)
        self.action_head = ActionHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (ActionHead, Standardised)):
            module.reset_parameters()

    def _check_resizable(self, feature: str) -> None:
        if feature == self.config.action_history_feature:
            raise ValueError(
                f"{feature!r} is the `action_history_feature`: this head counts each of its values. Resize "
                "the pre-trained checkpoint instead, and fine-tune it again."
            )

    def freeze_encoder(self):
        """Leaves only the head to training."""
        self.requires_grad_(False)
        self.action_head.requires_grad_(True)

    def action_embeddings(self, input_ids, rows, weights, number: int) -> torch.Tensor:
        """e_a of shape `(A, H)`, of that number A of actions; other arguments as in `forward`."""
        embedded = self.model.embeddings.events(input_ids)
        embedded = embedded * weights[:, None].to(embedded.dtype)
        return embedded.new_zeros(number, embedded.shape[-1]).index_add(0, rows, embedded)

    def known_of(
        self,
        logits: Mapping[str, torch.Tensor],
        counts: ActionCounts,
        action_ids: torch.Tensor,
        rows: torch.Tensor,
        matches: torch.Tensor,
        offered: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The numbers that are known of the offers.

        Args:
            logits: MCM's own scores, task -> `(B, V)`.
            counts: of the histories, at the time of the offers.
            action_ids: feature ids of the actions' rows, of shape `(R, J)`.
            rows: the action of each row, of shape `(R,)`.
            matches: as `action_matches` of `forward`.
            offered: as `offered_actions` of `forward`.

        Returns:
            Preferences of shape `(B, K, T)`, and x of shape `(B, K, X)`: preferences; log(1 + labels of the action),
            task by task; and the numbers of `count_names`.
        """
        batch, asked = torch.arange(len(offered), device=offered.device)[:, None], offered.clamp(min=0)
        number = int(offered.max()) + 1
        preferences, sizes = [], []
        for place, task in zip(self.task_features, self.config.tasks, strict=True):
            actions, labels = counts.labels_of(place, action_ids, rows)
            size = torch.bincount(actions, minlength=number)
            chances = logits[task].softmax(-1)[:, labels]
            total = chances.new_zeros(len(chances), number).index_add(1, actions, chances).clamp(1e-9, 1)
            preferences.append(torch.where(size > 0, total.log(), 0.0)[batch, asked])
            sizes.append(size.to(total.dtype).log1p()[asked])
        own = torch.stack(preferences, -1)
        of_offers = counts.of_offers(action_ids, rows, matches, number)[batch, asked]
        of_customers = counts.of_customers()[:, None].expand(-1, offered.shape[1], -1)
        return own, torch.cat([own, torch.stack(sizes, -1), of_offers, of_customers], -1)

    @can_return_tuple
    @auto_docstring(custom_intro="From histories and offered actions to log-odds, and to the loss.\n")
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        visit_ids: torch.LongTensor | None = None,
        event_times: torch.FloatTensor | None = None,
        action_input_ids: torch.LongTensor | None = None,
        action_rows: torch.LongTensor | None = None,
        action_weights: torch.FloatTensor | None = None,
        action_matches: torch.LongTensor | None = None,
        days_to_offers: torch.FloatTensor | None = None,
        offered_actions: torch.LongTensor | None = None,
        labels: torch.FloatTensor | None = None,
        event_values: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MCMActionOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_features)`):
            As in [`MCMModel.forward`]: the history before the offers.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            As in [`MCMModel.forward`].
        visit_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            As in [`MCMModel.forward`].
        event_times (`torch.FloatTensor` of shape `(batch_size, sequence_length)`):
            Days since the customer's first event.
        action_input_ids (`torch.LongTensor` of shape `(rows, num_features)`):
            Feature ids of the actions' rows.
        action_rows (`torch.LongTensor` of shape `(rows,)`):
            Which action each row is of.
        action_weights (`torch.FloatTensor` of shape `(rows,)`):
            Share of each row in its action.
        action_matches (`torch.LongTensor` of shape `(matches, 3)`):
            Customer, event and action of each event that did what the action asks.
        days_to_offers (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            Days from each customer's last event to the offers; none by default.
        offered_actions (`torch.LongTensor` of shape `(batch_size, offers)`):
            Which actions each customer is offered; negative where one has fewer.
        labels (`torch.FloatTensor` of shape `(batch_size, offers, outcomes)`, *optional*):
            1, 0, or a negative number where the outcome was not observed.
        event_values (`torch.FloatTensor` of shape `(batch_size, sequence_length, num_values)`, *optional*):
            As in [`MCMModel.forward`].

        Returns:
            [`MCMActionOutput`].
        """
        if offered_actions is None or event_times is None:
            raise ValueError("There are no offers, or no times of the events: OfferCollator gives both.")
        if attention_mask is None:
            attention_mask = (input_ids != 0).any(-1).long()
        now = event_times.amax(1)  # padding has time 0
        if days_to_offers is not None:
            now = now + days_to_offers
        ages = now[:, None] - event_times
        happened = attention_mask.bool() & (torch.arange(ages.shape[1], device=ages.device) > 0)  # not the start row
        moment = {"event_times": event_times, "event_values": event_values, "now": now}
        outputs = self.model(input_ids, attention_mask=attention_mask, visit_ids=visit_ids, **moment, **kwargs)
        # MCM's own scores are evidence, not a way to train the readout: that costs most and has few labels here.
        with torch.no_grad():
            inputs = (input_ids, attention_mask, visit_ids, event_times)
            expected = super().forward(*inputs, encoder_outputs=outputs).logits
            happened_at = ages.masked_fill(~happened, torch.inf)
            counts = ActionCounts(self.config, input_ids, visit_ids, happened_at, event_values)
            offers: Any = (action_input_ids, action_rows, action_matches, offered_actions)
            own, known = self.known_of(expected, counts, *offers)
        actions = self.action_embeddings(action_input_ids, action_rows, action_weights, int(offered_actions.max()) + 1)
        units = (outputs.last_hidden_state, outputs.unit_mask.bool(), outputs.pooler_output)
        own = own.to(actions.dtype)
        each = self.action_head(*units, actions, offered_actions, own, known)
        logits = each.mean(0)
        return MCMActionOutput(
            loss=None if labels is None else offer_loss(each if self.training else logits, labels),
            logits=logits.masked_fill(offered_actions[..., None] < 0, torch.finfo(logits.dtype).min / 2),
            preferences=own,
            pooler_output=outputs.pooler_output,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def offer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy: sum over outcomes and observed offers, mean over customers.

    Args:
        logits: of shape `(B, K, O)`, or `(N, B, K, O)`: the mean over the N.
        labels: 1, 0, or a negative number where the outcome was not observed, of shape `(B, K, O)`.
    """
    observed, labels = labels >= 0, labels.clamp(min=0).expand_as(logits)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses * observed).sum() / logits[..., 0, 0].numel()


__all__ = ["MCMForActionRecommendation"]
