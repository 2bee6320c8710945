# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The head for a label of a customer at a time, such as whether they will leave, have children, or what they spend.

It reads only the customer state, so the encoder does not run: a training step takes a few milliseconds, and a few
hundred labels are enough.

Shapes: B customers, L events, J features, N summed features, C classes (1 for a number), S size of the state.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, auto_docstring
from transformers.utils.generic import can_return_tuple

from .configuration_mcm import MCMConfig
from .modeling_mcm import MCMModel, MCMPreTrainedModel

# transformers' names of the two kinds of labels
REGRESSION, CLASSIFYING = "regression", "single_label_classification"
HEAD_PENALTY = 50.0  # weight of the squared weights when the head is initialised, divided by the number of labels


@auto_docstring(custom_intro="Output of [`MCMForCustomerPrediction`].")
@dataclass
class MCMPredictionOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` is given):
        For classes the cross-entropy; for a number the mean squared error of labels that are divided by the standard
        deviation of the training labels.
    logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
        For classes the scores before the softmax; for a number the predicted number.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, state_size)`):
        Customer state at `as_of`, computed with the fine-tuned weights.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None


class PredictionHead(nn.Module):
    """Linear layer on the standardised customer state: W dropout((s - mean) / std) + b. W starts at 0, so that the
    first prediction is the same for all customers. Mean and standard deviation are those of the training customers'
    states, which [`MCMForCustomerPrediction.start_from`] sets."""

    def __init__(self, config: MCMConfig):
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(config.state_size))
        self.std = nn.Buffer(torch.ones(config.state_size))
        # Mean and standard deviation of the training labels if the label is a number; 0 and 1 for classes.
        self.label_mean = nn.Buffer(torch.zeros(()))
        self.label_std = nn.Buffer(torch.ones(()))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.output = nn.Linear(config.state_size, int(config.num_labels or 1))

    def reset_parameters(self) -> None:
        """Initialises the head so that all customers get the same prediction."""
        init.zeros_(self.mean)
        init.ones_(self.std)
        init.zeros_(self.label_mean)
        init.ones_(self.label_std)
        init.zeros_(self.output.weight)
        init.zeros_(self.output.bias)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Computes scores of shape `(B, C)` from customer states of shape `(B, S)`."""
        return self.output(self.dropout((state - self.mean) / self.std))


@auto_docstring(
    custom_intro="""
    MCM fine-tuned to one label of a customer at a time: two classes, several classes or a number.

    The kind of label is set in the config by transformers' own fields: `num_labels`, `id2label` and `problem_type`,
    which is `"single_label_classification"` or `"regression"` and follows from `num_labels` by default. The checkpoint
    contains the whole [`MCMModel`], so that it still embeds customers; the encoder is not used for the prediction and
    not trained.
    """
)
class MCMForCustomerPrediction(MCMPreTrainedModel):
    # Parameters of the other heads, in a checkpoint that was saved with one.
    _keys_to_ignore_on_load_unexpected = [
        *(MCMModel._keys_to_ignore_on_load_unexpected or []),
        r"^action_head\.",
        r"^action_vectors\.",
    ]

    def __init__(self, config: MCMConfig):
        super().__init__(config)
        if not config.state_size:
            raise ValueError(
                "This checkpoint has no customer state (state_size is 0), which predictions are made from: pre-train "
                "one with a state."
            )
        self.num_labels = int(config.num_labels or 0)
        self.problem_type = config.problem_type or (REGRESSION if self.num_labels == 1 else CLASSIFYING)
        least = 1 + (self.problem_type == CLASSIFYING)
        if self.problem_type not in (REGRESSION, CLASSIFYING) or self.num_labels < least:
            raise ValueError(
                f"Found problem_type {self.problem_type!r} with {self.num_labels} labels; expected {REGRESSION!r}, or "
                f"{CLASSIFYING!r} with 2 or more. Several labels of a customer are several models."
            )
        if self.problem_type == REGRESSION and self.num_labels != 1:
            raise ValueError(f"Found {REGRESSION!r} with num_labels {self.num_labels}; a model predicts 1 number.")
        self.model = MCMModel(config)
        for unused in (self.model.embeddings, self.model.encoder):
            unused.requires_grad_(False)
        self.prediction_head = PredictionHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PredictionHead):
            module.reset_parameters()

    def predictions(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Names the predictions `(B,)` of `logits` `(B, C)`: the probability of each class, or the number."""
        values = logits.float() if self.problem_type == REGRESSION else logits.float().softmax(-1)
        names = cast(dict[int, str], self.config.id2label)
        return {names[index]: values[:, index] for index in range(self.num_labels)}

    def freeze_state(self) -> None:
        """Freezes all parameters but those of the head, which is then a linear model of the pre-trained state."""
        self.model.requires_grad_(False)
        self.model.eval()

    def train(self, mode: bool = True):
        """Sets the mode as in torch; a frozen customer state stays in evaluation mode, without dropout."""
        super().train(mode)
        if not self._trains_state:
            self.model.eval()
        return self

    @property
    def _trains_state(self) -> bool:
        return any(value.requires_grad for value in self.model.state.parameters())

    @torch.no_grad()
    def start_from(self, labels: torch.Tensor, states: torch.Tensor | None = None) -> None:
        """Initialises the head from the training labels, before fine-tuning.

        The bias becomes the log of the classes' shares, or the mean of the number, whose standard deviation becomes
        the unit of the loss. With `states` the weights are fitted as a penalised linear model of the states. A head
        that is trained from 0 together with the state would memorise the training customers.

        Args:
            labels (`torch.Tensor` of shape `(n,)`): Labels of the training customers, as in `forward`.
            states (`torch.FloatTensor` of shape `(n, S)`, *optional*): Customer states of the same customers.
        """
        head = self.prediction_head
        head.output.weight.zero_()
        head.output.bias.zero_()
        if self.problem_type == REGRESSION:
            head.label_mean.fill_(labels.double().mean())
            head.label_std.fill_(float(labels.double().std()) or 1.0)
        else:
            counts = torch.bincount(labels[labels >= 0], minlength=self.num_labels) + 1.0
            head.output.bias.copy_((counts / counts.sum()).log())
        if states is not None:
            head.mean.copy_(states.mean(0))
            head.std.copy_(states.std(0).clamp(min=1e-3))
            self._fit_head(labels, (states.detach() - head.mean) / head.std)

    @torch.enable_grad()
    def _fit_head(self, labels: torch.Tensor, states: torch.Tensor) -> None:
        """Fits the head as a linear model of standardised states with an L2 penalty."""
        layer = self.prediction_head.output
        optimizer = torch.optim.LBFGS([layer.weight, layer.bias], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = self._loss(layer(states), labels) + HEAD_PENALTY / len(labels) * (layer.weight**2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.zero_grad()

    def _loss(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.problem_type == REGRESSION:
            head = self.prediction_head
            numbers = (labels.to(scores.dtype) - head.label_mean) / head.label_std
            return F.mse_loss(scores[:, 0], numbers)
        return F.cross_entropy(scores, labels)  # without labels of -100, which are not known

    @can_return_tuple
    @auto_docstring(custom_intro="Predicts the label of each customer at `as_of`, and computes the loss.\n")
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        visit_ids: torch.LongTensor | None = None,
        event_times: torch.FloatTensor | None = None,
        event_values: torch.FloatTensor | None = None,
        as_of: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        counts: torch.FloatTensor | None = None,
        **kwargs,
    ) -> MCMPredictionOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_features)`, *optional*):
            Feature ids of each event before `as_of`, oldest event first, padded on the right with 0. The first row
            is the start row. Required without `counts`.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 where an event is real, 0 on padding. Default: 1 where any feature is present.
        visit_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Visit of each event, counted from 0 for each customer. Default: each event is a visit.
        event_times (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Days from the customer's first event to each event, in ascending order. Required without `counts`.
        event_values (`torch.FloatTensor` of shape `(batch_size, sequence_length, num_values)`, *optional*):
            Values of `config.summed_features` of each event, 0 where one is missing.
        as_of (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            Time of the label, in days on the clock of `event_times`. Default: the time of the last event.
        labels (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            Class ids, -100 where a class is unknown; or numbers.
        counts (`torch.FloatTensor` of shape `(batch_size, numbers)`, *optional*):
            Result of `MCMModel.state_counts`, which replaces the histories. It depends on no weights, so training can
            compute it once for all epochs.

        Returns:
            [`MCMPredictionOutput`].

        Raises:
            ValueError: If there are neither histories nor `counts`, or an input that they require is missing.
        """
        if counts is None:
            if input_ids is None:
                raise ValueError("There is no `input_ids`, and no `counts` in its place: give one of them.")
            computed = self.model.state_counts(input_ids, attention_mask, visit_ids, event_times, event_values, as_of)
            counts = cast(torch.FloatTensor, computed)
        state = self.model.state(counts)
        scores = self.prediction_head(state)
        loss = None if labels is None else self._loss(scores, labels)
        if self.problem_type == REGRESSION:
            scores = scores * self.prediction_head.label_std + self.prediction_head.label_mean
        return MCMPredictionOutput(loss=loss, logits=scores, pooler_output=state)
