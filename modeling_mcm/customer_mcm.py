# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The head for a label of a customer at a time, such as whether they will leave, have children, or what they spend.

It is a linear model of the customer state, of further columns of the table of labels and of which labels of the tasks
the customer had, so the encoder does not run, and a hundred examples are enough.

Shapes: B customers, L events, J features, N summed features, C classes (1 for a number), S size of the state, K
numbers of further columns, V labels of all tasks.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput, auto_docstring
from transformers.utils.generic import can_return_tuple

from .configuration_mcm import FIRST_LABEL, MCMConfig
from .modeling_mcm import MCMModel, MCMPreTrainedModel
from .state_mcm import Exact, ZeroLinear, sum_by_value

# transformers' names of the two kinds of labels
REGRESSION, CLASSIFYING = "regression", "single_label_classification"


@auto_docstring(custom_intro="Output of [`MCMForCustomerPrediction`].")
@dataclass
class MCMPredictionOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` is given):
        For classes the cross-entropy; for a number the mean squared error.
    logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
        For classes the scores before the softmax; for a number the predicted number.
    pooler_output (`torch.FloatTensor` of shape `(batch_size, state_size)`):
        Customer state at `as_of`.
    numbers (`torch.FloatTensor` of shape `(batch_size, state_size + num_numbers + num_kinds)`):
        The state, the numbers of further columns, and the silences by kind of event ([`measure_silences`]), which the
        head reads.
    label_counts (`torch.FloatTensor` of shape `(batch_size, num_all_labels)`):
        Logarithms of 1 plus the number of events with each label of each task until `as_of`, as a vector of length 1,
        which the head reads.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    pooler_output: Tensor | None = None
    numbers: Tensor | None = None
    label_counts: Tensor | None = None


class PredictionHead(Exact):
    """A linear model W s + U x + b of s, the state, further columns and silences, and of x, the label counts, as
    [`MCMPredictionOutput`] has them.

    Args:
        numbers, labels, classes (`int`): S + K + E, V and C.
    """

    def __init__(self, numbers: int, labels: int, classes: int):
        super().__init__()
        self.state = ZeroLinear(numbers, classes)
        self.labels = ZeroLinear(labels, classes, bias=False)

    def forward(self, numbers: Tensor, counts: Tensor) -> Tensor:
        """Scores `(B, C)` from numbers `(B, S + K + E)` and counts `(B, V)`, as [`MCMPredictionOutput`] has them."""
        return self.state(numbers) + self.labels(counts)


@auto_docstring(
    custom_intro="""
    MCM fine-tuned to one label of a customer at a time: two classes, several classes or a number.

    The kind of label is set in the config by transformers' own fields: `num_labels`, `id2label` and `problem_type`,
    which is `"single_label_classification"` or `"regression"` and follows from `num_labels` by default. The checkpoint
    contains the whole [`MCMModel`], so that it still embeds customers; the head alone is fitted
    (`modeling_mcm.training.heads.customer`).
    """
)
class MCMForCustomerPrediction(MCMPreTrainedModel):
    # Parameters of the other heads, in a checkpoint that was saved with them.
    _keys_to_ignore_on_load_unexpected = [r"^(readout_|scorer\.|label_values_|action_head\.)"]

    def __init__(self, config: MCMConfig):
        super().__init__(config)
        if not config.state_size:
            raise ValueError(
                "This checkpoint has no customer state (state_size is 0), which predictions are made from: pre-train "
                "one with a state."
            )
        self.num_labels = int(config.num_labels or 0)
        self.problem_type = config.problem_type or (REGRESSION if self.num_labels == 1 else CLASSIFYING)
        numbers = {REGRESSION: self.num_labels == 1, CLASSIFYING: self.num_labels > 1}
        if not numbers.get(self.problem_type):
            raise ValueError(
                f"Found problem_type {self.problem_type!r} with {self.num_labels} labels; expected {REGRESSION!r} "
                f"with 1, or {CLASSIFYING!r} with 2 or more. Several labels of a customer are several models."
            )
        self.model = MCMModel(config)
        sizes = dict(zip(config.features, config.vocabulary_sizes, strict=True))
        self.num_kinds = sizes.get(config.kind_feature or "", 0)
        size = config.state_size + sum(map(len, config.label_columns.values())) + self.num_kinds
        self.prediction_head = PredictionHead(size, sum(config.label_sizes.values()), self.num_labels)
        self.post_init()

    def predictions(self, logits: Tensor) -> dict[str, Tensor]:
        """Names the predictions `(B,)` of `logits` `(B, C)`: the probability of each class, or the number."""
        values = logits.float() if self.problem_type == REGRESSION else logits.float().softmax(-1)
        names = cast(dict[int, str], self.config.id2label)
        return {names[index]: values[:, index] for index in range(self.num_labels)}

    @torch.no_grad()
    def terms(self, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The terms `(B, S + K + E + V, C)` that the scores are sums of, besides the bias: of each number of the
        state, each further column, each silence, then each label of each task. With them the scores `(B, C)`. The
        arguments are those of `forward`."""
        outputs, head = self(**inputs), self.prediction_head
        read = torch.cat([outputs.numbers, outputs.label_counts], 1)
        return read[..., None] * torch.cat([head.state.weight, head.labels.weight], 1).T, outputs.logits

    def measure_silences(self, kinds: Tensor, times: Tensor, is_counted: Tensor, as_of: Tensor | None) -> Tensor:
        """log(1 + days) `(B, E)` from the last event of each kind until `as_of` `(B,)`, of those that are counted,
        all `(B, L)`. Of a kind that a customer never had it is the time since the first event: whose salary goes
        elsewhere is leaving. A long silence counts as in the state."""
        first = times.masked_fill(~is_counted, torch.inf).amin(1, keepdim=True)  # (B, 1)
        times = times.masked_fill(~is_counted, -torch.inf)
        latest = times.amax(1, keepdim=True)  # (B, 1)
        longest = latest + cast(Tensor, self.model.state.longest_silence)
        end = latest if as_of is None else torch.minimum(as_of[:, None], longest)
        last = times.new_full((times.shape[0], self.num_kinds), -torch.inf).scatter_reduce(1, kinds, times, "amax")
        days = end - torch.where(last.isfinite(), last, first)
        return days.nan_to_num(0.0, 0.0, 0.0).clamp(min=0).log1p()

    def compute_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Computes the mean loss of scores `(B, C)` and labels `(B,)`."""
        if self.problem_type == REGRESSION:
            return F.mse_loss(scores[:, 0], labels.to(scores.dtype))
        return F.cross_entropy(scores, labels)

    @can_return_tuple
    @auto_docstring(custom_intro="Predicts the label of each customer at `as_of`, and computes the loss.\n")
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visit_ids: Tensor | None = None,
        event_times: Tensor | None = None,
        event_values: Tensor | None = None,
        as_of: Tensor | None = None,
        label_columns: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> MCMPredictionOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_features)`):
            Feature ids of each event before `as_of`, oldest event first, padded on the right with 0. The first row
            is the start row.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 where an event is real, 0 on padding. Default: 1 where any feature is present.
        visit_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Visit of each event, counted from 0 for each customer.
        event_times (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Days from the customer's first event to each event, in ascending order.
        event_values (`torch.FloatTensor` of shape `(batch_size, sequence_length, num_values)`, *optional*):
            Values of `config.summed_features` of each event, 0 where one is missing.
        as_of (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            Time of the label, in days on the clock of `event_times`. Default: the time of the last event.
        label_columns (`torch.FloatTensor` of shape `(batch_size, num_numbers)`, *optional*):
            Values of `config.label_columns` less their means. Default: the means.
        labels (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            Class ids, -100 where a class is unknown; or numbers.
        Returns:
            [`MCMPredictionOutput`].

        Raises:
            ValueError: If an input that the state needs is missing.
        """
        history = (input_ids, attention_mask, visit_ids, event_times, event_values, as_of)
        state = self.model(*history, parts=("embedding",)).pooler_output
        times = cast(Tensor, event_times)
        is_counted = (cast(Tensor, visit_ids) > 0) & (times <= (torch.inf if as_of is None else as_of[:, None]))
        counts = []
        for task, size in self.config.label_sizes.items():
            ids = input_ids[..., self.config.features.index(task)]
            counts.append(sum_by_value(ids, (is_counted & (ids >= FIRST_LABEL)).float(), size))
        had, head = F.normalize(torch.cat(counts, 1).log1p()), self.prediction_head
        if label_columns is None:
            label_columns = state.new_zeros(state.shape[0], head.state.in_features - state.shape[1] - self.num_kinds)
        numbers = torch.cat([state, label_columns], 1)
        if self.num_kinds:
            kinds = input_ids[..., self.config.features.index(cast(str, self.config.kind_feature))]
            silences = self.measure_silences(kinds, times, is_counted & (kinds > 0), as_of)
            numbers = torch.cat([numbers, silences], 1)
        scores = head(numbers, had)
        loss = None if labels is None else self.compute_loss(scores, labels)
        return MCMPredictionOutput(loss, scores, state, numbers, had)
