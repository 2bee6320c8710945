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
"""MCMConfig: everything that a person chooses about an MCM model, and the checks that the choices fit together."""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import auto_docstring

CHOICES = {
    "encoder_attention": ("bidirectional", "causal"),
    "encoder_unit": ("event", "visit"),
    "readout": ("attentional", "last"),
    "augmentation": ("random_prefix", "last_prefix", "all_prefixes", "masked_lm"),
    "target": ("next_event", "next_visit"),
    "action_embedding": ("features", "learned", "both"),
}
# Values of a feature that the customer state counts at every half-life, and of one that it counts at all, at most.
FEW_VALUES, MOST_VALUES = 64, 2**14
# The paper's features and, for want of its numbers, vocabularies that make about 30K values; ids 0 and 1 included.
PAPER_FEATURES = {"token_type": 8, "product_line": 42, "category": 502, "subcategory": 4002, "brand": 25002}


@auto_docstring(
    custom_intro="""
    Configuration of [`MCMModel`] and [`MCMForMultiTaskRecommendation`]. The defaults are the paper's model (Luo and
    Wang, *MCM: A Multi-task Pre-trained Customer Model for Personalization*, RecSys 2023); what goes beyond the paper
    is off unless asked for.

    A value of the wrong type, or two choices that contradict each other, raise a
    `huggingface_hub.errors.StrictDataclassError` that names them and the way out.
    """
)
@strict
class MCMConfig(PreTrainedConfig):
    r"""
    features (`list[str]`, *optional*):
        Names of the J features of an interaction, in the order of the last axis of `input_ids`.
    vocabulary_sizes (`list[int]`, *optional*):
        Number of ids of each feature, id 0 (missing or padding) and id 1 (unknown) included; as long as `features`.
    input_features (`list[str]`, *optional*):
        The features that the embedding averages, all by default: one name here is BERT4Rec's item sequence.
    tasks (`list[str]`, *optional*):
        The features whose next value is predicted, all but `token_type` by default. The labels of a task are the ids
        of its feature.
    trained_tasks (`list[str]`, *optional*):
        The tasks whose losses are summed (all of them when `None`): one name here is the paper's MCM_Single.
    max_position_embeddings (`int`):
        Longest sequence that the encoder reads, in encoder units (see `encoder_unit`).
    use_position_embeddings (`bool`):
        Add P to E. Without it only what the features say of time and order is known, and length has no limit.
    event_dropout_prob (`float`):
        Share of the events that the encoder does not get to see in a training pass.
    initializer_range (`float`):
        Standard deviation of the encoder's matrices and of the position embeddings.
    embedding_initializer_range (`float`, *optional*):
        Standard deviation of the feature embeddings. `None` is `1 / sqrt(hidden_size)`: at 0.02 every z = e_w . h_i
        is near 0, the readout stays uniform and learning does not start.
    embedding_layer_norm (`bool`):
        Layer norm and dropout after H = E + P, as BERT does. `False` is equation 1 to the letter.
    encoder_attention (`str`):
        `"bidirectional"` (the paper) or `"causal"`, under which one pass serves all prefixes.
    attention_window (`int`, *optional*):
        A unit attends to the latest so many units, itself among them, and to the start row. What a customer did before
        is in the memories alone, and a new visit costs the same after ten visits and after a thousand
        ([`LiveCustomer`]). Only for a causal encoder; `None`: to all units.
    encoder_unit (`str`):
        `"event"` (the paper): one position an interaction. `"visit"`: one position a visit, the sum of its
        interactions over the root of their number. A visit is a set, so its inner order can't be learned, and a year
        of shopping is short.
    readout (`str`):
        `"attentional"` (equations 2 and 3) or `"last"` (the last hidden vector, as BERT4Rec).
    readout_scale (`bool`):
        Learn one factor a task on z = e_w . h_i.
    readout_bias (`bool`):
        Learn one bias a label. Pre-training starts it at the log of the label's share in the training period.
    tie_label_embeddings (`bool`):
        e_w is the input embedding of the value (`True`) or a table of its own (`False`).
    repeat_half_lives_days (`list[float]`, *optional*):
        Half-lives in days at which the repeat memory starts, for it learns its own. See
        [`~repeat_memory_mcm.RepeatMemory`].
    repeat_half_lives_units (`list[float]`, *optional*):
        The same in encoder units. Both empty: no repeat memory.
    repeat_network_size (`int`):
        Hidden numbers of a network that reads, beside the memory's counts, how long ago and how regularly a label was
        met. 0: none.
    label_features (`list[str]`, *optional*):
        Features of an interaction that its label decides, such as an item's category: e_w is then the average of the
        label's own embedding and those of its usual values, as e of an interaction is. Empty: its own alone.
    follower_tasks (`list[str]`, *optional*):
        The tasks of whose labels the counted memory knows the followers, what came next. Empty: none. See
        [`~counted_memory_mcm.CountedMemory`].
    related_tasks (`list[str]`, *optional*):
        The tasks of whose labels the counted memory knows which go together. Empty: none.
    state_size (`int`):
        Numbers of the customer state, which is the customer embedding. 0 (the paper): none, and the embedding is the
        encoder's. See [`~state_mcm.CustomerState`].
    state_half_lives_days (`list[float]`, *optional*):
        How fast the counts of the state forget, in days, beside counts that never do.
    state_features (`list[str]`, *optional*):
        Features whose values the state counts at every half-life. Default: those of up to 64 values.
    taste_features (`list[str]`, *optional*):
        Features of many values that the state counts at one half-life and without forgetting. Default: tasks of 65 to
        16,384 labels.
    summed_features (`list[str]`, *optional*):
        Numeric features that the state and the forecasts sum, such as the price, in the order of `event_values`.
    forecast_days (`list[float]`, *optional*):
        Horizons of the forecasts. See [`~state_mcm.Forecasts`].
    augmentation (`str`):
        What a training row asks: `"random_prefix"` (the paper), `"last_prefix"` (no augmentation: the end of the
        history), `"all_prefixes"` (needs a causal encoder) or `"masked_lm"` (BERT4Rec; needs the `"last"` readout and
        a bidirectional encoder).
    target (`str`):
        `"next_event"` (the paper) or `"next_visit"`: the set of labels of the next visit, asked at the end of the
        visit before.
    target_half_life_days (`float`, *optional*):
        What a customer did this many days before their latest target weighs half as much in the loss, so that tastes
        and seasons that have passed don't outvote the present; after four times as many it is not asked. `None`: all
        the same. Only for `"all_prefixes"`.
    ranking_loss_weight (`float`):
        Weight of [`~losses_mcm.prefix_ranking_loss`], what the order of the best labels costs in NDCG, beside the
        cross-entropy of equation 4. 0 (the paper): none.
    sampled_labels (`int`, *optional*):
        Labels of a task that a training step scores beside those that the batch's customers met or that followed: a
        sample of the others, whose scores are corrected so that the partition function is that of all labels on
        average (see [`~sampling_mcm.TaskLabels`]). Tasks with no more others than that are scored whole, as is
        everything outside training. For tasks of very many labels; `None`: never.
    mask_probability (`float`):
        Share of the events that `"masked_lm"` hides.
    action_outcomes (`list[str]`, *optional*):
        What may come of an offer, one output of [`MCMForActionRecommendation`] each. Default: click and conversion.
    action_embedding (`str`):
        What an action is to that model: `"features"`, those of an interaction not yet taken, so that it may be an
        action never seen in training; `"learned"`, a vector of its own; or `"both"`, their sum.
    action_ids (`list[str]`, *optional*):
        The actions that have a vector of their own.
    action_half_lives_days (`list[float]`, *optional*):
        How fast what a customer did is forgotten where an action asks for the same; one count each.
    action_history_feature (`str`, *optional*):
        The feature whose every value is counted in the history too, such as the token type: how often, and how long
        ago, a customer redeemed coupons tells whether they will again.
    """

    model_type = "mcm"

    features: list[str] = field(default_factory=list)
    vocabulary_sizes: list[int] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    input_features: list[str] | None = None
    trained_tasks: list[str] | None = None
    hidden_size: int = 256
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    max_position_embeddings: int = 300
    use_position_embeddings: bool = True
    event_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    embedding_initializer_range: float | None = None
    embedding_layer_norm: bool = True
    encoder_attention: str = "bidirectional"
    attention_window: int | None = None
    encoder_unit: str = "event"
    readout: str = "attentional"
    readout_scale: bool = False
    readout_bias: bool = False
    tie_label_embeddings: bool = True
    repeat_half_lives_days: list[float | int] = field(default_factory=list)
    repeat_half_lives_units: list[float | int] = field(default_factory=list)
    repeat_network_size: int = 0
    label_features: list[str] = field(default_factory=list)
    follower_tasks: list[str] = field(default_factory=list)
    related_tasks: list[str] = field(default_factory=list)
    state_size: int = 0
    state_half_lives_days: list[float | int] = field(default_factory=lambda: [7.0, 30.0, 90.0])
    state_features: list[str] | None = None
    taste_features: list[str] | None = None
    summed_features: list[str] = field(default_factory=list)
    forecast_days: list[float | int] = field(default_factory=lambda: [7.0, 30.0, 90.0])
    augmentation: str = "random_prefix"
    target: str = "next_event"
    target_half_life_days: float | int | None = None
    ranking_loss_weight: float | int = 0.0
    sampled_labels: int | None = None
    mask_probability: float = 0.2
    action_outcomes: list[str] = field(default_factory=lambda: ["click", "conversion"])
    action_embedding: str = "features"
    action_ids: list[str] = field(default_factory=list)
    action_half_lives_days: list[float | int] = field(default_factory=lambda: [14.0, 60.0, 365.0])
    action_history_feature: str | None = None
    pad_token_id: int | None = 0
    # what transformers' BertLayer reads besides
    is_decoder: bool = False
    add_cross_attention: bool = False

    def __post_init__(self, **kwargs):
        if not self.features:
            self.features = list(PAPER_FEATURES)
            self.vocabulary_sizes = self.vocabulary_sizes or list(PAPER_FEATURES.values())
        self.tasks = self.tasks or [name for name in self.features if name != "token_type"]
        sizes = dict(zip(self.features, self.vocabulary_sizes, strict=False))  # the lengths are checked later
        if self.state_size and self.state_features is None:
            self.state_features = [name for name, size in sizes.items() if size <= FEW_VALUES]
        if self.state_size and self.taste_features is None:
            known = {name: sizes[name] for name in self.tasks if name in sizes}
            self.taste_features = [name for name, size in known.items() if FEW_VALUES < size <= MOST_VALUES]
        super().__post_init__(**kwargs)

    @property
    def label_sizes(self) -> dict[str, int]:
        """Number of label ids of each task."""
        sizes = dict(zip(self.features, self.vocabulary_sizes, strict=True))
        return {task: sizes[task] for task in self.tasks}

    @property
    def embedding_size(self) -> int:
        """Numbers of the customer embedding."""
        return self.state_size or self.hidden_size

    def validate_features(self):
        if len(set(self.features)) != len(self.features):
            raise ValueError(f"`features` must be unique, got {self.features}: rename the repeated ones.")
        if len(self.vocabulary_sizes) != len(self.features):
            raise ValueError(
                f"`vocabulary_sizes` has {len(self.vocabulary_sizes)} entries for {len(self.features)} features: give "
                "one size a feature, in the same order (MCMFeatureExtractor.vocabulary_sizes)."
            )
        if any(size < 3 for size in self.vocabulary_sizes):
            small = [f for f, size in zip(self.features, self.vocabulary_sizes, strict=True) if size < 3]
            raise ValueError(f"The features {small} have no value besides padding and unknown: leave them out.")
        if missing := [name for name in self.input_features or [] if name not in self.features]:
            raise ValueError(f"`input_features` names {missing}, which are not among the features {self.features}.")
        if missing := [task for task in self.tasks if task not in self.features]:
            raise ValueError(
                f"The tasks {missing} are no features; a task is the next value of one of {self.features}."
            )
        if missing := [name for name in self.label_features if name not in self.features]:
            raise ValueError(f"`label_features` names {missing}, which are not among the features {self.features}.")
        for name in ("state_features", "taste_features", "summed_features"):
            if missing := [feature for feature in getattr(self, name) or [] if feature not in self.features]:
                raise ValueError(f"`{name}` names {missing}, which are not among the features {self.features}.")
        if twice := sorted(set(self.state_features or []) & set(self.taste_features or [])):
            raise ValueError(f"`state_features` and `taste_features` both name {twice}: leave them out of one.")
        for name in ("follower_tasks", "related_tasks"):
            if missing := [task for task in getattr(self, name) if task not in self.tasks]:
                raise ValueError(f"`{name}` names {missing}, which are not among the tasks {self.tasks}.")
        if missing := [task for task in self.trained_tasks or [] if task not in self.tasks]:
            raise ValueError(f"`trained_tasks` names {missing}, which are not among the tasks {self.tasks}.")

    def validate_choices(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}.")
        half_lives = [*self.repeat_half_lives_days, *self.repeat_half_lives_units]
        if self.augmentation == "all_prefixes" and self.encoder_attention != "causal":
            raise ValueError(
                "augmentation='all_prefixes' with a bidirectional encoder would show each prefix its future: set "
                "encoder_attention='causal', or augmentation='random_prefix'."
            )
        if self.augmentation == "all_prefixes" and self.encoder_unit == "visit" and self.target == "next_event":
            raise ValueError(
                "encoder_unit='visit' reads a visit whole, so no prefix can end inside one: set target='next_visit'."
            )
        if self.augmentation == "masked_lm" and (
            self.readout != "last"
            or self.encoder_attention != "bidirectional"
            or self.encoder_unit != "event"
            or self.target != "next_event"
            or half_lives
        ):
            raise ValueError(
                "augmentation='masked_lm' reads the hidden vector of the masked event: set readout='last', "
                "encoder_attention='bidirectional', encoder_unit='event', target='next_event' and no "
                "repeat memory."
            )
        if self.target_half_life_days is not None and (
            self.augmentation != "all_prefixes" or self.target_half_life_days <= 0
        ):
            raise ValueError(
                f"target_half_life_days={self.target_half_life_days} must be positive and weighs the prefixes of one "
                f"pass against each other: set augmentation='all_prefixes' (found {self.augmentation!r}), or None."
            )
        if self.state_size < 0:
            raise ValueError(f"`state_size` must be 0 or more, got {self.state_size}: 0 is no customer state.")
        for name in ("state_half_lives_days", "forecast_days"):
            if any(not 0 < days < float("inf") for days in getattr(self, name)):
                raise ValueError(f"`{name}` must be positive numbers of days, got {getattr(self, name)}.")
        if self.state_size and not self.forecast_days:
            raise ValueError("`forecast_days` is empty, and the state is trained on what follows: name a horizon.")
        if self.ranking_loss_weight < 0:
            raise ValueError(f"`ranking_loss_weight` must be 0 or more, got {self.ranking_loss_weight}: 0 is none.")
        if self.attention_window is not None and (self.attention_window < 1 or self.encoder_attention != "causal"):
            raise ValueError(
                f"`attention_window` is {self.attention_window}, and must be at least 1 and of a causal encoder "
                f"(found encoder_attention={self.encoder_attention!r}): None attends to all units."
            )
        if self.sampled_labels is not None and self.sampled_labels < 1:
            raise ValueError(
                f"`sampled_labels` must be at least 1, got {self.sampled_labels}: None scores all labels in training."
            )
        if self.repeat_network_size and not half_lives:
            raise ValueError(
                f"repeat_network_size={self.repeat_network_size} is a part of the repeat memory, which is off: set "
                "repeat_half_lives_days or repeat_half_lives_units, or 0."
            )
        if any(half_life <= 0 for half_life in half_lives):
            raise ValueError(f"Half-lives of the repeat memory must be positive, got {half_lives}.")
        if self.action_history_feature not in (None, *self.features):
            raise ValueError(
                f"`action_history_feature` is {self.action_history_feature!r}, no feature: expected one of "
                f"{self.features}."
            )
        if any(half_life <= 0 for half_life in self.action_half_lives_days) or not self.action_outcomes:
            raise ValueError(
                f"Half-lives of actions must be positive, got {self.action_half_lives_days}, and there must be an "
                f"outcome of an offer, got {self.action_outcomes}."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )


__all__ = ["MCMConfig"]
