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
"""The head for any label of a customer at a moment: whether they will leave, whether they have kids, what they spend.

It reads the customer state and nothing else of the model, so the encoder does not run: a step costs a few
milliseconds, and a few hundred labels are enough to learn from.

Shapes: B customers, L events, J features, N summed features, C classes (1 for a number), S the size of the state.
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

NUMBER, CLASSES = "regression", "single_label_classification"  # transformers' names of the two kinds of labels
IGNORED = -100  # a class that is not known
PENALTY = 50.0  # of a label, on the squared weights that the head starts with


@auto_docstring(custom_intro="What [`MCMForCustomerPrediction`] returns.")
@dataclass
class MCMPredictionOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` is given):
        Cross-entropy of classes; of a number the mean squared error, in units of the training labels'
        standard deviation.
    logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
        Log-odds of the classes before the softmax; of a number the number itself, in its own units.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, state_size)`):
        The customer state at `now`, as it is after fine-tuning.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None


class PredictionHead(nn.Module):
    """Linear in the customer state: W dropout((s - mean) / spread) + b. W starts at 0, so that the first prediction is
    the same for everybody; mean and spread are those of the training customers' states once it is told them.

    Args:
        config: the model's.
    """

    def __init__(self, config: MCMConfig):
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(config.state_size))
        self.spread = nn.Buffer(torch.ones(config.state_size))
        # Of a number, among its training labels: the second is the unit of the loss. 0 and 1 for classes.
        self.label_mean = nn.Buffer(torch.zeros(()))
        self.label_std = nn.Buffer(torch.ones(()))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.output = nn.Linear(config.state_size, int(config.num_labels or 1))

    def reset_parameters(self) -> None:
        """Everybody alike."""
        init.zeros_(self.mean)
        init.ones_(self.spread)
        init.zeros_(self.label_mean)
        init.ones_(self.label_std)
        init.zeros_(self.output.weight)
        init.zeros_(self.output.bias)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Of shape `(B, C)`, from states `(B, S)`."""
        return self.output(self.dropout((state - self.mean) / self.spread))


@auto_docstring(
    custom_intro="""
    MCM fine-tuned to one label of a customer at a moment: two classes, several classes or a number.

    Which of them the config says in transformers' own words: `num_labels`, `id2label` and `problem_type`, which is
    `"single_label_classification"` or `"regression"` and follows from `num_labels` if it is not given. The whole
    [`MCMModel`] travels along, so that the checkpoint still embeds customers; the encoder has no part in the
    prediction and is not trained.
    """
)
class MCMForCustomerPrediction(MCMPreTrainedModel):
    # Parameters of the other heads, in a checkpoint that was saved with one.
    _keys_to_ignore_on_load_unexpected = [
        *(MCMModel._keys_to_ignore_on_load_unexpected or []),
        r"^action_head\.",
        r"^action_vectors\.",
    ]

    # Of checkpoints of classes before the head kept them, which need neither.
    _keys_to_ignore_on_load_missing = [
        *(MCMPreTrainedModel._keys_to_ignore_on_load_missing or []),
        r"^prediction_head\.label_(mean|std)$",
    ]

    def __init__(self, config: MCMConfig):
        super().__init__(config)
        if not config.state_size:
            raise ValueError(
                "This checkpoint has no customer state (state_size is 0), which predictions are made from: pre-train "
                "one with a state."
            )
        self.num_labels = int(config.num_labels or 0)
        self.problem_type = config.problem_type or (NUMBER if self.num_labels == 1 else CLASSES)
        if self.problem_type not in (NUMBER, CLASSES) or self.num_labels < 1 + (self.problem_type == CLASSES):
            raise ValueError(
                f"Found problem_type {self.problem_type!r} with {self.num_labels} labels; expected {NUMBER!r}, or "
                f"{CLASSES!r} with 2 or more. Several labels of a customer are several models."
            )
        if self.problem_type == NUMBER and self.num_labels != 1:
            raise ValueError(f"Found {NUMBER!r} with num_labels {self.num_labels}; a model predicts 1 number.")
        self.model = MCMModel(config)
        for unused in (self.model.embeddings, self.model.encoder, self.model.forecasts):
            if unused is not None:
                unused.requires_grad_(False)
        self.prediction_head = PredictionHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PredictionHead):
            module.reset_parameters()

    def freeze_state(self) -> None:
        """Leaves only the head to training: a linear model of the state as pre-training left it."""
        self.model.requires_grad_(False)
        self.model.eval()

    def train(self, mode: bool = True):
        """As in torch; a state that is not trained is not disturbed by dropout either."""
        super().train(mode)
        if not self._trains_state:
            self.model.eval()
        return self

    @property
    def _trains_state(self) -> bool:
        return any(value.requires_grad for value in self.model.state.parameters())

    @torch.no_grad()
    def _forget_forecasts(self) -> None:
        """The forecasts are linear in the state as pre-training left it, and untrained ones are all 0."""
        for value in self.model.forecasts.parameters() if self.model.forecasts is not None else ():
            value.zero_()

    @torch.no_grad()
    def start_from(self, labels: torch.Tensor, states: torch.Tensor | None = None) -> None:
        """Starts the head where training need not find it: at the shares of the classes, or the mean of the number,
        whose spread becomes the unit of the loss. With states it starts as the linear model of them, with a penalty
        that suits some hundred labels: what is trained together from nothing knows the training customers by heart.

        Args:
            labels (`(labels,)`): of the training customers, as `forward` takes them.
            states (`(labels, S)`, *optional*): their customer states.
        """
        head = self.prediction_head
        head.output.weight.zero_()
        head.output.bias.zero_()
        if self.problem_type == NUMBER:
            head.label_mean.fill_(labels.double().mean())
            head.label_std.fill_(float(labels.double().std()) or 1.0)
        else:
            counts = torch.bincount(labels[labels >= 0], minlength=self.num_labels) + 1.0
            head.output.bias.copy_((counts / counts.sum()).log())
        if states is not None:
            head.mean.copy_(states.mean(0))
            head.spread.copy_(states.std(0).clamp(min=1e-3))
            self._fit_head(labels, (states.detach() - head.mean) / head.spread)

    @torch.enable_grad()
    def _fit_head(self, labels: torch.Tensor, states: torch.Tensor) -> None:
        """The penalised linear model of standardised states."""
        layer = self.prediction_head.output
        optimizer = torch.optim.LBFGS([layer.weight, layer.bias], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = self._loss(layer(states), labels) + PENALTY / len(labels) * (layer.weight**2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.zero_grad()

    def _loss(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.problem_type == NUMBER:
            head = self.prediction_head
            numbers = (labels.to(scores.dtype) - head.label_mean) / head.label_std
            return F.mse_loss(scores[:, 0], numbers)
        return F.cross_entropy(scores, labels, ignore_index=IGNORED)

    def counts(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        visit_ids: torch.Tensor | None = None,
        event_times: torch.Tensor | None = None,
        event_values: torch.Tensor | None = None,
        now: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the state is made of, of shape `(B, numbers)`. No training changes it, so it can be taken once and
        given to `forward` as `counts` again and again.

        Args:
            input_ids: as in `forward`.
            attention_mask: as in `forward`.
            visit_ids: as in `forward`.
            event_times: as in `forward`.
            event_values: as in `forward`.
            now: as in `forward`.

        Raises:
            ValueError: if there are no `event_times`.
        """
        return self.model.state_counts(input_ids, attention_mask, visit_ids, event_times, event_values, now)

    @can_return_tuple
    @auto_docstring(custom_intro="From histories to the label at `now`, and to the loss.\n")
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        visit_ids: torch.LongTensor | None = None,
        event_times: torch.FloatTensor | None = None,
        event_values: torch.FloatTensor | None = None,
        now: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        counts: torch.FloatTensor | None = None,
        **kwargs,
    ) -> MCMPredictionOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_features)`, *optional*):
            As in [`MCMModel.forward`]: the history before the moment. Left out where `counts` are given.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            As in [`MCMModel.forward`].
        visit_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            As in [`MCMModel.forward`].
        event_times (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            As in [`MCMModel.forward`].
        event_values (`torch.FloatTensor` of shape `(batch_size, sequence_length, num_values)`, *optional*):
            As in [`MCMModel.forward`].
        now (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            The moment that the label is of, as in [`MCMModel.forward`].
        labels (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            Ids of classes, -100 where one is not known, or numbers.
        counts (`torch.FloatTensor` of shape `(batch_size, numbers)`, *optional*):
            What `MCMForCustomerPrediction.counts` gave of the histories, in their place.

        Returns:
            [`MCMPredictionOutput`].
        """
        if counts is None:
            if input_ids is None:
                raise ValueError("There is no `input_ids`, and no `counts` in its place: give one of them.")
            found = self.counts(input_ids, attention_mask, visit_ids, event_times, event_values, now)
            counts = cast(torch.FloatTensor, found)
        if self.training and self._trains_state:
            self._forget_forecasts()
        state = self.model.state(counts)
        scores = self.prediction_head(state)
        loss = None if labels is None else self._loss(scores, labels)
        if self.problem_type == NUMBER:
            scores = scores * self.prediction_head.label_std + self.prediction_head.label_mean
        return MCMPredictionOutput(loss=loss, logits=scores, pooler_output=state)


__all__ = ["MCMForCustomerPrediction"]
