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
action that was never seen in training has one too. On top of the encoder each action reads the history with a new
attentional readout. Beside it stands evidence: what pre-training expects of the action's values, which is MCM's own
scores, and what a softmax average can't hold, how often the customer did already what the action asks.

Shapes: B customers, L events, U encoder units, H hidden, J features, T tasks; A actions of the batch, R rows of
actions (an action that covers several kinds of interactions has a row for each), M events that did what an action
asks, D half-lives, X numbers of evidence, K offers of the customer with the most, O outcomes.
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

from .configuration_mcm import MCMConfig
from .embeddings_mcm import ValueEmbedding
from .modeling_mcm import FIRST_LABEL, MCMForMultiTaskRecommendation


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


class ActionHead(nn.Module):
    """From the customer, the action and the evidence to one log-odds an outcome.

        q_a = Q e_a;  r_a = sum_i softmax_i(q_a . h_i) h_i                                  (equation 2 for actions)
        logit_o(a) = bias_o + g_o . preferences(a) + d_o . x + w_o . f(c, r_a, e_a, r_a * e_a, x)

    c is the customer embedding, x the evidence, standardised over the offers, f one hidden layer. d and w start at 0
    and the g alike, so fine-tuning starts from MCM's own ranking.
    """

    def __init__(self, config: MCMConfig):
        super().__init__()
        hidden, outcomes, tasks = config.hidden_size, len(config.action_outcomes), len(config.tasks)
        sizes = dict(zip(config.features, config.vocabulary_sizes, strict=True))
        kinds = sizes.get(config.action_history_feature or "", FIRST_LABEL) - FIRST_LABEL
        counts = 2 + tasks + (1 + kinds if config.action_history_feature else 0)
        evidence = 2 * tasks + counts * len(config.action_half_lives_days)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.norm = nn.BatchNorm1d(evidence, momentum=None, affine=False)
        self.dense = nn.Linear(config.embedding_size + 3 * hidden + evidence, hidden)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.output = nn.Linear(hidden, outcomes)
        self.direct = nn.Linear(evidence, outcomes, bias=False)
        self.preference_gain = nn.Parameter(torch.empty(outcomes, tasks))

    def reset_parameters(self):
        """Fine-tuning starts from MCM's own ranking."""
        init.eye_(self.query.weight)
        init.zeros_(self.output.weight)
        init.zeros_(self.output.bias)
        init.zeros_(self.direct.weight)
        init.constant_(self.preference_gain, 1 / self.preference_gain.shape[1])

    def forward(self, hidden, unit_mask, customers, actions, offered, preferences, evidence):
        """Log-odds of shape `(B, K, O)`.

        Args:
            hidden, unit_mask: h of shape `(B, U, H)` and where it is real.
            customers (`(B, S)`): c, the customer embeddings.
            actions: e of shape `(A, H)`.
            offered: which actions each customer is offered, of shape `(B, K)`; negative where one has fewer.
            preferences: of shape `(B, K, T)`.
            evidence: of shape `(B, K, X)`.
        """
        real, asked = offered >= 0, actions[offered.clamp(min=0)]
        weights = (self.query(asked) @ hidden.transpose(1, 2)).masked_fill(~unit_mask[:, None], float("-inf"))
        read = weights.softmax(-1) @ hidden  # r: (B, K, H)
        rows, known = evidence[real], torch.zeros_like(evidence)
        # One offer alone has no spread, so it is standardised by those that were seen before.
        alone = self.training and len(rows) == 1
        seen = (self.norm.running_mean, self.norm.running_var)
        known[real] = nn.functional.batch_norm(rows, *seen) if alone else self.norm(rows)
        customers = customers[:, None].expand(-1, read.shape[1], -1)
        features = torch.cat([customers, read, asked, read * asked, known], -1)
        scores = self.output(self.dropout(self.activation(self.dense(features))))
        return scores + self.direct(known) + preferences @ self.preference_gain.T


@auto_docstring(custom_intro="MCM fine-tuned to offers: for every offered action, the log-odds of every outcome.")
class MCMForActionRecommendation(MCMForMultiTaskRecommendation):
    def __init__(self, config: MCMConfig):
        super().__init__(config)
        # CODEPATH: none by default ("features"): actions are known by their features alone.
        self.action_vectors: nn.Module | None = None
        if config.action_embedding != "features":
            self.action_vectors = ValueEmbedding(FIRST_LABEL + len(config.action_ids), config.hidden_size)
        self.action_head = ActionHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ActionHead):
            module.reset_parameters()

    def _check_resizable(self, feature: str) -> None:
        if feature == self.config.action_history_feature:
            raise ValueError(
                f"{feature!r} is the `action_history_feature`: this head counts each of its values. Resize "
                "the pre-trained checkpoint instead, and fine-tune it again."
            )

    def freeze_encoder(self):
        """Leaves only the head and the actions' own vectors to training."""
        self.requires_grad_(False)
        self.action_head.requires_grad_(True)
        if self.action_vectors is not None:
            self.action_vectors.requires_grad_(True)

    def action_embeddings(self, input_ids, rows, weights, ids) -> torch.Tensor:
        """e_a of shape `(A, H)`; arguments as in `forward`."""
        own = None if self.action_vectors is None else self.action_vectors(ids)
        if own is not None and self.config.action_embedding == "learned":
            return own
        embedded = self.model.embeddings.events(input_ids)
        embedded = embedded * weights[:, None].to(embedded.dtype)
        summed = embedded.new_zeros(len(ids), embedded.shape[-1]).index_add(0, rows, embedded)
        return summed if own is None else summed + own

    def evidence_for(
        self,
        logits: Mapping[str, torch.Tensor],
        input_ids: torch.Tensor,
        visit_ids: torch.Tensor | None,
        ages: torch.Tensor,
        action_ids: torch.Tensor,
        rows: torch.Tensor,
        matches: torch.Tensor,
        offered: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is known of the offers beside hidden vectors.

        Args:
            logits: MCM's own scores, task -> `(B, V)`.
            input_ids: of the histories, of shape `(B, L, J)`.
            visit_ids: of the histories, of shape `(B, L)`; `None` makes each event a visit.
            ages: days from each event to the offers, infinite where there is no event, of shape `(B, L)`.
            action_ids: feature ids of the actions' rows, of shape `(R, J)`.
            rows: the action of each row, of shape `(R,)`.
            matches: as `action_matches` of `forward`.
            offered: as `offered_actions` of `forward`.

        Returns:
            Preferences of shape `(B, K, T)` and evidence of shape `(B, K, X)`: preferences; log(1 + n) of the events
            that did what the action asks, n halved with every half-life; the same of the visits with such an event; of
            such events with the action's value of `config.action_history_feature` (bought with a coupon, where the
            action is a coupon); of the events that share a label with it, task by task; log(1 + labels of the
            action), task by task; log(1 + n) of all events with each value of `config.action_history_feature`.
        """
        half_lives = ages.new_tensor(self.config.action_half_lives_days)
        weights = torch.exp2(-ages[..., None] / half_lives)  # (B, L, D)
        batch, asked = torch.arange(len(ages), device=ages.device)[:, None], offered.clamp(min=0)
        count = int(offered.max()) + 1
        owners, events, actions = matches.T
        cells, of_matches = owners * count + actions, weights[owners, events]

        def total_of(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
            """Of each customer and action, of shape `(B, A, D)`."""
            zeros = values.new_zeros(len(ages) * count, len(half_lives))
            return zeros.index_add(0, places, values).view(len(ages), count, -1)

        visits = events if visit_ids is None else visit_ids[owners, events]
        keys, visit_of = (cells * ages.shape[1] + visits).unique(return_inverse=True)
        once = of_matches.new_zeros(len(keys), len(half_lives))
        once = once.scatter_reduce(0, visit_of[:, None].expand_as(of_matches), of_matches, "amax")
        did = [total_of(of_matches, cells), total_of(once, keys // ages.shape[1])]
        if self.config.action_history_feature is not None:
            kind = self.config.features.index(self.config.action_history_feature)
            asked_kinds = torch.zeros(count, self.config.vocabulary_sizes[kind], dtype=torch.bool, device=ages.device)
            asked_kinds[rows, action_ids[:, kind]] = True
            same = asked_kinds[actions, input_ids[owners, events, kind]]
            did.append(total_of(of_matches[same], cells[same]))

        def counts_of(place: int) -> torch.Tensor:
            """Of each value of a feature, of shape `(B, V, D)`."""
            zeros = weights.new_zeros(len(ages), self.config.vocabulary_sizes[place], len(half_lives))
            return zeros.scatter_add_(1, input_ids[..., place, None].expand_as(weights), weights)

        preferences, shared, sizes = [], [], []
        for place, task in zip(self.task_features, self.config.tasks, strict=True):
            values = self.config.vocabulary_sizes[place]
            pairs = (rows * values + action_ids[:, place]).unique()  # a label counts once an action
            pairs = pairs[pairs % values >= FIRST_LABEL]
            actions, labels = pairs // values, pairs % values
            size = torch.bincount(actions, minlength=count).to(weights.dtype)
            of_labels = torch.cat([logits[task].softmax(-1)[..., None], counts_of(place)], -1)[:, labels]
            total = of_labels.new_zeros(len(ages), count, 1 + len(half_lives)).index_add(1, actions, of_labels)
            preferences.append(torch.where(size > 0, total[..., 0].clamp(1e-9, 1).log(), 0.0)[batch, asked])
            shared.append(total[..., 1:].log1p()[batch, asked])
            sizes.append(size.log1p()[asked])
        own = torch.stack(preferences, -1)
        found = [own, *(each.log1p()[batch, asked] for each in did), *shared, torch.stack(sizes, -1)]
        if self.config.action_history_feature is not None:
            kinds = counts_of(kind)[:, FIRST_LABEL:]
            found.append(kinds.log1p().flatten(1)[:, None].expand(-1, offered.shape[1], -1))
        return own, torch.cat(found, -1)

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
        action_ids: torch.LongTensor | None = None,
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
        action_ids (`torch.LongTensor` of shape `(actions,)`):
            Place of each action's own vector, 0 where it has none.
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
        if offered_actions is None or action_ids is None or event_times is None:
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
            known: Any = (action_input_ids, action_rows, action_matches, offered_actions)
            own, evidence = self.evidence_for(
                expected, input_ids, visit_ids, ages.masked_fill(~happened, torch.inf), *known
            )
        actions = self.action_embeddings(action_input_ids, action_rows, action_weights, action_ids)
        units = (outputs.last_hidden_state, outputs.unit_mask.bool(), outputs.pooler_output)
        own, evidence = own.to(actions.dtype), evidence.to(actions.dtype)
        logits = self.action_head(*units, actions, offered_actions, own, evidence)
        return MCMActionOutput(
            loss=None if labels is None else offer_loss(logits, labels),
            logits=logits.masked_fill(offered_actions[..., None] < 0, torch.finfo(logits.dtype).min / 2),
            preferences=own,
            pooler_output=outputs.pooler_output,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def offer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy: sum over outcomes and observed offers, mean over customers.

    Args:
        logits: of shape `(B, K, O)`.
        labels: 1, 0, or a negative number where the outcome was not observed, of the same shape.
    """
    observed = labels >= 0
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels.clamp(min=0), reduction="none")
    return (losses * observed).sum() / logits.shape[0]


__all__ = ["MCMForActionRecommendation"]
