# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The head for offers (section 3.3 of the paper): predicts each outcome of each action that a customer is offered.

An action is an event that has not happened yet, so the module that embeds events embeds it; an action that was never
seen in training has an embedding too. The head reads the customer state at the time of the offers, the action, the
history by an attentional readout with the action as query, and numeric features: MCM's own scores of the action's
values, and counts of the customer's events that match the action ([`ActionCounts`]).

Shapes: B customers, L events, U encoder units, H hidden size, J features, T tasks; A actions of the batch, R action
rows (an action that covers several kinds of events has one row for each kind), M matches (events that did what an
action asks for), X numeric features of an offer, K offers of the customer with the most, O outcomes, N networks. In
the counts N are summed features, D half-lives with the infinite one of undecayed counts, V values of a feature.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from .configuration_mcm import FIRST_LABEL, MCMConfig
from .modeling_mcm import MCMForMultiTaskRecommendation
from .state_mcm import MIN_STD, decay_weights, sum_by_value

NETWORKS, HIDDEN_UNITS = 4, 32  # number of small networks whose mean is the score, and hidden units of each
HEAD_DROPOUT = 0.4  # dropout probability on the networks' inputs and on their hidden units
CLIPPED = 5.0  # largest absolute value of standardised numbers
KNOTS = (-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0, CLIPPED)  # where the piecewise-linear codes bend
# Half-lives of the counts, in days; matches are also counted undecayed.
OFFER_HALF_LIVES = (14.0, 60.0, 365.0)
LONGEST_DAYS = 10_000.0  # number of days since an event that never happened
LEAST_SHARE = 1e-3  # added to shares of a customer's events before the logarithm


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
    pooler_output (`torch.FloatTensor` of shape `(batch_size, embedding_size)`):
        Customer embedding at the time of the offers.
    hidden_states (`tuple[torch.FloatTensor, ...]`, *optional*):
        As in [`MCMModelOutput`].
    attentions (`tuple[torch.FloatTensor, ...]`, *optional*):
        As in [`MCMModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    preferences: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class Standardised(nn.Module):
    """Standardises numbers by mean and standard deviation over all training examples so far. Those of a batch, as in
    batch normalisation, would remove differences between customers: it has histories of similar length."""

    def __init__(self, size: int):
        super().__init__()
        self.count = nn.Buffer(torch.zeros(()))
        self.mean = nn.Buffer(torch.zeros(size))
        self.square = nn.Buffer(torch.ones(size))

    def reset_parameters(self):
        """Sets the statistics to those before training: no examples, mean 0, standard deviation 1."""
        init.zeros_(self.count)
        init.zeros_(self.mean)
        init.ones_(self.square)

    @torch.no_grad()
    def update(self, examples: torch.Tensor) -> None:
        """Updates the statistics."""
        examples = examples.to(self.mean.dtype)
        self.count.add_(len(examples))
        share = len(examples) / self.count.clamp(min=1)
        self.mean.add_(share * (examples.mean(0) - self.mean))
        self.square.add_(share * (examples.square().mean(0) - self.square))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Standardises values of shape `(..., size)`; the result has the same shape and is clipped at 5."""
        std = (self.square - self.mean.square()).clamp(min=MIN_STD**2).sqrt()
        return ((values - self.mean) / std).clamp(-CLIPPED, CLIPPED)


def piecewise_linear(values: torch.Tensor) -> torch.Tensor:
    """Piecewise-linear codes of standardised numbers (Gorishniy et al., On Embeddings for Numerical Features, 2022),
    of shape `(..., size * (len(KNOTS) - 1))`."""
    knots = values.new_tensor(KNOTS)
    low, high = knots[:-1], knots[1:]
    return (((values[..., None] - low) / (high - low)).clamp(0, 1) - (low < 0).to(values.dtype)).flatten(-2)


def counted_features(config: MCMConfig) -> list[str]:
    """Features that an action and a history share and that are counted: `config.action_features`, by default all
    tasks."""
    return list(config.tasks if config.action_features is None else config.action_features)


def count_names(config: MCMConfig) -> tuple[list[str], list[str]]:
    """Names of the numbers of `ActionCounts.count_offers` and of `ActionCounts.count_customers`, in their order."""
    half_lives = [*(f"{days:g}d" for days in OFFER_HALF_LIVES), "all"]
    kinds = ["did", "visits", *(f"{name} of did" for name in config.summed_features)]
    kinds += ["did as asked"] if config.action_history_feature else []
    names = [f"{kind} {each}" for kind in kinds for each in half_lives] + ["days since did"]
    for feature in counted_features(config):
        names += [f"{kind} {feature} {each}" for kind in ("shared", "share of") for each in half_lives]
        names += [f"days since {feature}", f"values of {feature}"]
    of_customers = [f"all visits {each}" for each in half_lives] + ["days since any"]
    if (kind_of_event := config.action_history_feature) is not None:
        size = config.vocabulary_sizes[config.features.index(kind_of_event)]
        ids = range(FIRST_LABEL, size)
        of_customers += [f"{kind_of_event} {value} {each}" for value in ids for each in half_lives]
        of_customers += [f"days since {feature} {value}" for value in ids]
    return names, of_customers


class ActionCounts:
    """Decayed counts of a batch of histories at the time of the offers; every count n is returned as log(1 + n).

    Args:
        input_ids (`torch.LongTensor` of shape `(B, L, J)`): Feature ids of each event, the start row first.
        visit_ids (`torch.LongTensor` of shape `(B, L)`, *optional*): Visit of each event; `None`: each event is a
            visit.
        ages (`torch.FloatTensor` of shape `(B, L)`): Days from each event to the offers, infinite on padding.
        event_values (`torch.FloatTensor` of shape `(B, L, N)`, *optional*): Values of the summed features; may be
            `None` if there are no summed features.
        action_ids (`torch.LongTensor` of shape `(R, J)`): Feature ids of the action rows.
        rows (`torch.LongTensor` of shape `(R,)`): Index of each row's action.
        matches (`torch.LongTensor` of shape `(M, 3)`): Customer, event and action of each match.
        count (`int`): Number of actions A.

    Raises:
        ValueError: If there are summed features and no `event_values`.
    """

    def __init__(
        self,
        config: MCMConfig,
        input_ids: torch.Tensor,
        visit_ids: torch.Tensor | None,
        ages: torch.Tensor,
        event_values: torch.Tensor | None,
        action_ids: torch.Tensor,
        rows: torch.Tensor,
        matches: torch.Tensor,
        count: int,
    ):
        if config.summed_features and event_values is None:
            raise ValueError("The head for offers sums values: `event_values` of MCMFeatureExtractor are missing.")
        self.config, self.input_ids, self.ages, self.event_values = config, input_ids, ages, event_values
        self.action_ids, self.rows, self.matches, self.count = action_ids, rows, matches, count
        self.is_event = ages.isfinite()
        self.visits = torch.arange(ages.shape[1], device=ages.device).expand_as(ages)
        if visit_ids is not None:
            self.visits = visit_ids
        half_lives = [*OFFER_HALF_LIVES, math.inf]
        self.weights = decay_weights(ages.clamp(max=LONGEST_DAYS), half_lives, self.is_event)  # (B, L, D)

    def count_values(self, feature: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts of each value of a feature `(B, V, D)`, and days since the latest event with it `(B, V)`."""
        index = self.config.features.index(feature)
        ids, size = self.input_ids[..., index], self.config.vocabulary_sizes[index]
        days = self.ages.new_full((len(ids), size), LONGEST_DAYS)
        days.scatter_reduce_(1, ids, self.ages.clamp(max=LONGEST_DAYS), "amin")
        return sum_by_value(ids, self.weights, size), days

    def count_customers(self) -> torch.Tensor:
        """Counts that do not depend on the action. Returns `torch.FloatTensor` of shape `(B, numbers)`; the second
        list of `count_names` names the numbers."""
        opens = self.is_event & (self.visits != F.pad(self.visits, (1, 0), value=-1)[:, :-1])
        last = self.ages.clamp(max=LONGEST_DAYS).amin(1, keepdim=True)
        numbers = [torch.einsum("bld,bl->bd", self.weights, opens.to(self.weights.dtype)).log1p(), last.log1p()]
        if self.config.action_history_feature is not None:
            counts, days = self.count_values(self.config.action_history_feature)
            numbers += [counts[:, FIRST_LABEL:].log1p().flatten(1), days[:, FIRST_LABEL:].log1p()]
        return torch.cat(numbers, -1)

    def count_offers(self) -> torch.Tensor:
        """Counts `(B, A, numbers)` of the events that match each action, and of the values that action and history
        share; the first list of `count_names` names them."""
        numbers, count = self._sum_matches(), self.count
        for feature in counted_features(self.config):
            actions, labels = self.find_labels(self.config.features.index(feature))
            size = torch.bincount(actions, minlength=count).to(self.weights.dtype)
            counts, days = self.count_values(feature)
            counts[:, :FIRST_LABEL] = 0
            shared = counts.new_zeros(len(counts), count, counts.shape[-1]).index_add(1, actions, counts[:, labels])
            share = shared / counts.sum(1)[:, None].clamp(min=LEAST_SHARE)
            last = days.new_full((len(days), count), LONGEST_DAYS)
            last = last.scatter_reduce(1, actions.expand(len(days), -1), days[:, labels], "amin")
            numbers += [shared.log1p(), (share + LEAST_SHARE).log(), last[..., None].log1p()]
            numbers.append(size.log1p()[None, :, None].expand(len(counts), -1, -1))
        return torch.cat(numbers, -1)

    def find_labels(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Distinct values of a feature in each action: pairs of an action's and a value's index."""
        values = self.config.vocabulary_sizes[index]
        pairs = (self.rows * values + self.action_ids[:, index]).unique()
        pairs = pairs[pairs % values >= FIRST_LABEL]
        return pairs // values, pairs % values

    def _sum_matches(self) -> list[torch.Tensor]:
        """Counts, visits, sums and age of the matches of each customer and action, each of shape `(B, A, ...)`."""
        (batch, length), count = self.ages.shape, self.count
        owners, events, actions = self.matches.T
        cells, weights = owners * count + actions, self.weights[owners, events]

        def sum_over(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            """log(1 + sum) over each customer and action, of shape `(B, A, D)`."""
            zeros = values.new_zeros(batch * count, values.shape[-1])
            return zeros.index_add(0, indices, values).view(batch, count, -1).clamp(min=0).log1p()

        keys, visit_of = (cells * length + self.visits[owners, events]).unique(return_inverse=True)
        once = weights.new_zeros(len(keys), weights.shape[-1])
        once = once.scatter_reduce(0, visit_of[:, None].expand_as(weights), weights, "amax")
        numbers = [sum_over(weights, cells), sum_over(once, keys // length)]
        if self.event_values is not None:
            values = self.event_values[owners, events]
            numbers += [
                sum_over(weights * values[:, [index]], cells) for index in range(len(self.config.summed_features))
            ]
        if self.config.action_history_feature is not None:
            kind = self.config.features.index(self.config.action_history_feature)
            kinds = torch.zeros(count, self.config.vocabulary_sizes[kind], dtype=torch.bool, device=cells.device)
            kinds[self.rows, self.action_ids[:, kind]] = True
            same = kinds[actions, self.input_ids[owners, events, kind]]
            numbers.append(sum_over(weights[same], cells[same]))
        last = self.ages.new_full((batch * count,), LONGEST_DAYS).scatter_reduce(
            0, cells, self.ages[owners, events], "amin"
        )
        return [*numbers, last.view(batch, count, 1).clamp(min=0).log1p()]


class ActionHead(nn.Module):
    """Computes the log-odds of each outcome from the customer, the action and numeric features of both.

        q_a = Q e_a;  r_a = sum_i softmax_i(q_a . h_i) h_i                                  (equation 2 for actions)
        logit_o(a) = bias_o + g_o . preferences(a) + mean_n (d_no . [x, c] + w_no . f_n(r_a, e_a, r_a * e_a, x))

    x is the standardised vector of numeric features and customer state, c the piecewise-linear codes of the features
    ([`piecewise_linear`]), and f_n a network with one hidden layer. Few customers take an offer. So the N networks are
    small, dropout on their inputs is strong, each is trained on its own, and the score is the mean of their log-odds.
    d and w start at 0 and all g are equal, so that fine-tuning starts from MCM's own ranking.
    """

    def __init__(self, config: MCMConfig):
        super().__init__()
        hidden, outcomes, tasks = config.hidden_size, len(config.action_outcomes), len(config.tasks)
        self.coded = 2 * tasks + sum(map(len, count_names(config)))  # number of the numeric features
        numbers = self.coded + config.embedding_size
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.standardised = Standardised(numbers)
        self.dense = nn.Linear(3 * hidden + numbers, NETWORKS * HIDDEN_UNITS)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(HEAD_DROPOUT)
        self.output = nn.Parameter(torch.empty(NETWORKS, HIDDEN_UNITS, outcomes))
        self.bias = nn.Parameter(torch.empty(outcomes))
        self.direct = nn.Parameter(torch.empty(NETWORKS, numbers + self.coded * (len(KNOTS) - 1), outcomes))
        self.preference_weight = nn.Parameter(torch.empty(outcomes, tasks))

    def reset_parameters(self):
        """Initialises the weights so that the first scores rank actions as MCM does without fine-tuning."""
        init.eye_(self.query.weight)
        init.zeros_(self.output)
        init.zeros_(self.bias)
        init.zeros_(self.direct)
        init.constant_(self.preference_weight, 1 / self.preference_weight.shape[1])

    def forward(self, hidden, unit_mask, states, actions, offered, preferences, numbers):
        """Computes the log-odds of every network.

        Args:
            hidden (`torch.FloatTensor` of shape `(B, U, H)`): Hidden vector h of each unit.
            unit_mask (`torch.BoolTensor` of shape `(B, U)`): True where a unit is real.
            states (`torch.FloatTensor` of shape `(B, S)`): Customer states.
            actions (`torch.FloatTensor` of shape `(A, H)`): Embedding e_a of each action.
            offered (`torch.LongTensor` of shape `(B, K)`): Index of the action of each offer; negative where a
                customer has fewer offers.
            preferences (`torch.FloatTensor` of shape `(B, K, T)`): MCM's own scores of each offer.
            numbers (`torch.FloatTensor` of shape `(B, K, X)`): Numeric features of each offer.

        Returns:
            `torch.FloatTensor` of shape `(N, B, K, O)`.
        """
        real, vectors = offered >= 0, actions[offered.clamp(min=0)]
        weights = (self.query(vectors) @ hidden.transpose(1, 2)).masked_fill(~unit_mask[:, None], float("-inf"))
        readout = weights.softmax(-1) @ hidden  # r: (B, K, H)
        numbers = torch.cat([numbers.to(readout.dtype), states[:, None].expand(-1, readout.shape[1], -1)], -1)
        if self.training:
            self.standardised.update(numbers[real])
        numbers = self.standardised(numbers).to(readout.dtype) * real[..., None]
        codes = self.dropout(piecewise_linear(numbers[..., : self.coded]))
        numbers = self.dropout(numbers)
        vectors = self.dropout(torch.cat([readout, vectors, readout * vectors], -1))
        units = self.activation(self.dense(torch.cat([vectors, numbers], -1))).unflatten(-1, (NETWORKS, HIDDEN_UNITS))
        units = self.dropout(units)
        scores = torch.einsum("bknu,nuo->nbko", units, self.output) + torch.einsum(
            "bkx,nxo->nbko", torch.cat([numbers, codes], -1), self.direct
        )
        return scores + self.bias + preferences @ self.preference_weight.T


@auto_docstring(custom_intro="MCM fine-tuned to offers: it predicts the log-odds of every outcome of every offer.")
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

    def freeze_encoder(self):
        """Freezes all parameters but those of the head."""
        self.requires_grad_(False)
        self.action_head.requires_grad_(True)

    def action_embeddings(self, input_ids, rows, weights, number: int) -> torch.Tensor:
        """Embedding e_a of each action: the weighted mean of its rows' embeddings, of shape `(A, H)`."""
        embedded = self.model.embeddings.events(input_ids)
        embedded = embedded * weights[:, None].to(embedded.dtype)
        return embedded.new_zeros(number, embedded.shape[-1]).index_add(0, rows, embedded)

    def list_known(
        self, logits: Mapping[str, torch.Tensor], counts: ActionCounts, offered: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Preferences `(B, K, T)` and numeric features `(B, K, X)` of the offers: the preferences, for each task log(1
        + number of the action's labels), and the numbers of `count_names`. `logits` are MCM's own scores by task, each
        `(B, V)`; `offered` `(B, K)` is negative where a customer has fewer offers."""
        batch, actions_of_offers = torch.arange(len(offered), device=offered.device)[:, None], offered.clamp(min=0)
        number = counts.count
        preferences, sizes = [], []
        for index, task in zip(self.task_features, self.config.tasks, strict=True):
            actions, labels = counts.find_labels(index)
            size = torch.bincount(actions, minlength=number)
            chances = logits[task].softmax(-1)[:, labels]
            total = chances.new_zeros(len(chances), number).index_add(1, actions, chances).clamp(1e-9, 1)
            preferences.append(torch.where(size > 0, total.log(), 0.0)[batch, actions_of_offers])
            sizes.append(size.to(total.dtype).log1p()[actions_of_offers])
        own = torch.stack(preferences, -1)
        of_offers = counts.count_offers()[batch, actions_of_offers]
        of_customers = counts.count_customers()[:, None].expand(-1, offered.shape[1], -1)
        return own, torch.cat([own, torch.stack(sizes, -1), of_offers, of_customers], -1)

    @can_return_tuple
    @auto_docstring(custom_intro="Computes log-odds of offers from histories and actions, and the loss.\n")
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
        offered_actions: torch.LongTensor | None = None,
        labels: torch.FloatTensor | None = None,
        event_values: torch.FloatTensor | None = None,
        as_of: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MCMActionOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_features)`):
            Feature ids of each event before the offers, oldest event first, padded on the right with 0. The first row
            is the start row.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 where an event is real, 0 on padding. Default: 1 where any feature is present.
        visit_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Visit of each event, counted from 0 for each customer. Required if `config.encoder_unit` is "visit".
        event_times (`torch.FloatTensor` of shape `(batch_size, sequence_length)`):
            Days from the customer's first event to each event, in ascending order.
        action_input_ids (`torch.LongTensor` of shape `(rows, num_features)`):
            Feature ids of each action row.
        action_rows (`torch.LongTensor` of shape `(rows,)`):
            Index of each row's action.
        action_weights (`torch.FloatTensor` of shape `(rows,)`):
            Weight of each row in its action; the weights of an action sum to 1.
        action_matches (`torch.LongTensor` of shape `(matches, 3)`):
            Index of customer, event and action of each event that did what the action asks for.
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
            raise ValueError("There are no offers, or no times of the events: OfferCollator gives both.")
        if attention_mask is None:
            attention_mask = (input_ids != 0).any(-1).long()
        count = int(offered_actions.max()) + 1
        time = event_times.amax(1) if as_of is None else as_of  # padding has time 0
        ages = time[:, None] - event_times
        happened = attention_mask.bool() & (torch.arange(ages.shape[1], device=ages.device) > 0)  # not the start row
        timing = {"event_times": event_times, "event_values": event_values, "as_of": time}
        outputs = self.model(input_ids, attention_mask=attention_mask, visit_ids=visit_ids, **timing, **kwargs)
        # MCM's own scores are inputs without gradient: training the readout would cost most, and labels are few.
        with torch.no_grad():
            inputs = (input_ids, attention_mask, visit_ids, event_times)
            scores = super().forward(*inputs, encoder_outputs=outputs).logits
            happened_at = ages.masked_fill(~happened, torch.inf)
            offers: Any = action_input_ids, action_rows, action_matches, count
            counts = ActionCounts(self.config, input_ids, visit_ids, happened_at, event_values, *offers)
            own, numbers = self.list_known(scores, counts, offered_actions)
        actions = self.action_embeddings(action_input_ids, action_rows, action_weights, count)
        units = (outputs.last_hidden_state, outputs.unit_mask.bool(), outputs.pooler_output)
        own = own.to(actions.dtype)
        each = self.action_head(*units, actions, offered_actions, own, numbers)
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
    """Binary cross-entropy of offers: the sum over outcomes and observed offers, the mean over customers. A first axis
    of networks, as in log-odds of shape `(N, B, K, O)`, is averaged too; labels below 0 are not observed."""
    observed, labels = labels >= 0, labels.clamp(min=0).expand_as(logits)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses * observed).sum() / logits[..., 0, 0].numel()
