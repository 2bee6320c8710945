# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCMConfig: all settings of an MCM model, and the checks that they fit together."""

from contextlib import suppress
from dataclasses import field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import auto_docstring

# First ids of every feature, and so of the labels of every task: missing, unknown (too rare, or new), first value.
MISSING_ID, UNKNOWN_ID, FIRST_VALUE_ID = 0, 1, 2
FIRST_LABEL = FIRST_VALUE_ID  # the name for the same id where values are predicted
# Largest vocabulary that the customer state counts at every half-life, and largest that it counts at all.
FEW_VALUES, MOST_COUNTED = 64, 2**14
MOST_TASTES = 4096  # largest number of labels, in all, of the tasks that a customer state counts besides these
MOST_FREQUENT = 1024  # number of labels of each other task that its principal components read
# Least and largest value of sizes: what is outside is a mistake, which would fill the memory or fail far from here.
LIMITS = {
    "hidden_size": (1, 2**16),
    "num_hidden_layers": (0, 2**10),
    "num_attention_heads": (1, 2**10),
    "intermediate_size": (1, 2**20),
    "state_size": (0, 2**16),
    "max_position_embeddings": (0, 2**24),
    "max_events": (2, 2**24),  # the start row and an event
    "attention_window": (1, 2**24),
    "hidden_dropout_prob": (0, 0.999),
    "attention_probs_dropout_prob": (0, 0.999),
    "event_dropout_prob": (0, 0.999),
    "layer_norm_eps": (1e-20, 1),  # transformers' own tests have 1
    "forecast_window": (0, 2**24),
}
FEATURE_FIELDS = (  # fields with names of features
    "tasks",
    "input_features",
    "label_features",
    "state_features",
    "summed_features",
    "target_features",
    "target_types",
)
MOST_IDS = 10_000_002  # of a feature
# The paper's features. It does not give sizes; these vocabularies have about 30K values, ids 0 and 1 included.
PAPER_FEATURES = {"token_type": 8, "product_line": 42, "category": 502, "subcategory": 4002, "brand": 25002}


class CountedFeatures(NamedTuple):
    """What a customer state counts: by feature the number of its ids that are counted, the first ones.

    Attributes:
        few (`dict[str, int]`): Features of few values, which are counted at every half-life.
        many (`dict[str, int]`): Features of more values, which are counted at one half-life and undecayed: the
            smallest tasks of more than 64 labels, while they have at most 4,096 labels in all; at least one, unless it
            has more than 16,384.
        frequent (`dict[str, int]`): Features that only the principal components in the state read, undecayed: up to
            1,024 ids, the most frequent ones, of each other task of more than 64 labels.
    """

    few: dict[str, int]
    many: dict[str, int]
    frequent: dict[str, int]


@auto_docstring(
    custom_intro="""
    Configuration of [`MCMModel`] and [`MCMForMultiTaskRecommendation`]. The defaults are the shipped model mcm-base:
    the choices of `modeling_mcm.training.encoder.recipe` for a log of visits in which customers repeat themselves. The
    paper's models (Luo and Wang, *MCM: A Multi-task Pre-trained Customer Model for Personalization*, RecSys 2023) are
    in `configuration/ablations/`.

    A value of the wrong type, or two values that contradict each other, raise a
    `huggingface_hub.errors.StrictDataclassError` that names them and what to do.
    """
)
@strict
class MCMConfig(PreTrainedConfig):
    r"""
    features (`list[str]`, *optional*):
        Names of the J features of an event, in the order of the last axis of `input_ids`.
    vocabulary_sizes (`list[int]`, *optional*):
        Number of ids of each feature, including id 0 (missing or padding) and id 1 (unknown); as long as `features`.
    input_features (`list[str]`, *optional*):
        Features that the event embedding averages. Default: all features. A single feature gives BERT4Rec's sequence
        of items.
    tasks (`list[str]`, *optional*):
        Features whose next value is predicted; the labels of a task are the ids of its feature. Default: all features
        but `token_type`. A single task is the paper's MCM_Single.
    max_position_embeddings (`int`, *optional*):
        Length of the longest sequence that the encoder reads, in encoder units (see `encoder_unit`); each position has
        an embedding. `None` or 0: no position embeddings and no limit; only features such as the days since the last
        visit express time and order.
    max_events (`int`):
        Number of a customer's latest events that the encoder reads, the start row included. All else reads all events.
    event_dropout_prob (`float`):
        Probability that training hides an event of a visit from the encoder. A visit never loses all of its events, so
        the field changes nothing where units are events (see `encoder_unit`).
    attention_window (`int`, *optional*):
        Number of latest units that a unit attends to, itself included, beside the start row. Only the counts know
        earlier units. Only for a causal encoder. `None`: a unit attends to all units.
    encoder_unit (`str`):
        `"visit"`: one encoder position for each visit, the sum of its events' embeddings divided by the square root of
        their number; the target is the set of labels of the next visit. A visit is a set, so the order inside it
        can't be learned, and a year of shopping is a short sequence. `"event"` (the paper): one position for each
        event; the target is the next event.
    readout (`str`):
        `"attentional"` (equations 2 and 3) or `"last"` (the last hidden vector, as BERT4Rec).
    readout_bias (`bool`):
        Whether to learn a bias for each label and a factor on z = e_w . h_i for each task. A bias starts at the log of
        the label's share in the training period. The paper has neither.
    label_features (`list[str]`, *optional*):
        Features that are determined by a label, such as the category of an item: e_w is then the average over the
        embeddings of the label and of its most frequent values. Default: the label's own embedding alone.
    scorer (`bool`):
        Whether a small network scores the labels from counts and, where there is an encoder, from its readout. Until
        it is fitted, at the end of pre-training, scores are the readout's. See [`~scorer_mcm.LabelScorer`].
    scorer_networks (`int`):
        Number of networks of counts whose scores are averaged: several where few examples were there to fit them.
    kind_feature (`str`, *optional*):
        Feature by whose most frequent values the scorer tells events apart, the token type. Default: all are alike.
    state_size (`int`):
        Size of the customer state, which is the customer embedding. 0 (the paper): no state; the customer embedding is
        computed from the encoder's hidden vectors. See [`~state_mcm.CustomerState`].
    state_features (`list[str]`, *optional*):
        Features whose values the state counts at every half-life. Default: features of up to 64 ids. Pre-training
        leaves out those of the profile, which no event has. What else it counts follows (`counted_features`).
    summed_features (`list[str]`, *optional*):
        Numeric features that the state and the forecasts sum, such as what was paid, in the order of `event_values`.
    forecast_days (`list[float]`, *optional*):
        Horizons of the forecasts, in days. See [`~forecaster_mcm.CustomerForecasts`].
    forecast_window (`float`):
        Number of days that the forecaster reads before `as_of`: the length of the training period. 0: there is no
        forecaster. See [`~forecaster_mcm.VisitForecaster`].
    calendar (`list[int]`):
        First day, since 1970-01-01, and number of days of the log that the calendar of the forecaster counts. Empty:
        forecasts know no calendar. See [`~calendar_mcm.Calendar`].
    known (`dict[str, list[list]]`):
        What is known of days beforehand: by name rows of the first day, the last day and the value.
    target_features (`list[str]`, *optional*):
        Features of whose values an event of a visit that the forecaster counts must have one. Default: the tasks.
    target_types (`dict[str, list[int]]`, *optional*):
        By feature, here the token type, the ids of which such an event must have one. Default: any.
    augmentation (`str`):
        Prefixes of a history that training uses, which also decides how the encoder attends. `"all_prefixes"`: all
        prefixes in one pass of a causal encoder. The others have a bidirectional encoder: `"random_prefix"` (the
        paper), `"last_prefix"` (no augmentation: the whole history), and `"masked_lm"` (BERT4Rec's masked events;
        needs the `"last"` readout).
    learned_sizes (`list[int]`, *optional*):
        Number of ids of each feature that the weights were trained with; labels that came later are only counted.
        Default: `vocabulary_sizes`.
    counted (`dict[str, str | int]`):
        Which log the counts are of: `log`, its name, `until`, `customers` and `events`.
    learned (`dict[str, str | int]`):
        The same of the period that the weights were trained on.
    values_digest (`str`, *optional*):
        Digest of the vocabularies and bins that the weights were trained with (`MCMFeatureExtractor.values_digest`).
        `None`: unknown.
    label_columns (`dict[str, dict[str, float]]`, *optional*):
        Further columns of the table of labels that [`MCMForCustomerPrediction`] reads: by value the share of labels
        that had it, and by "" the mean of numbers.
    action_outcomes (`list[str]`, *optional*):
        Possible outcomes of an offer; each is an output of [`MCMForActionRecommendation`]. Default: click and
        conversion.
    """

    model_type = "mcm"

    features: list[str] = field(default_factory=list)
    vocabulary_sizes: list[int] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    input_features: list[str] | None = None
    hidden_size: int = 256
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.0
    event_dropout_prob: float | int = 0.2
    max_position_embeddings: int | None = None
    max_events: int = 300
    attention_window: int | None = 64
    encoder_unit: Literal["event", "visit"] = "visit"
    readout: Literal["attentional", "last"] = "attentional"
    readout_bias: bool = True
    label_features: list[str] = field(default_factory=list)
    scorer: bool = True
    scorer_networks: int = 1
    kind_feature: str | None = None
    state_size: int = 112
    state_features: list[str] | None = None
    summed_features: list[str] = field(default_factory=list)
    forecast_days: list[float | int] = field(default_factory=lambda: [7.0, 30.0, 90.0])
    forecast_window: float | int = 0.0
    calendar: list[int] = field(default_factory=list)
    known: dict[str, list[list[str | float | int]]] = field(default_factory=dict)
    target_features: list[str] = field(default_factory=list)
    target_types: dict[str, list[int]] = field(default_factory=dict)
    augmentation: Literal["random_prefix", "last_prefix", "all_prefixes", "masked_lm"] = "all_prefixes"
    values_digest: str | None = None
    learned_sizes: list[int] | None = None
    counted: dict[str, str | int] = field(default_factory=dict)
    learned: dict[str, str | int] = field(default_factory=dict)
    label_columns: dict[str, dict[str, float | int]] = field(default_factory=dict)
    action_outcomes: list[str] = field(default_factory=lambda: ["click", "conversion"])

    # Constants that transformers' BERT layers read. Nobody has to choose them, so they are no fields.
    hidden_act = "gelu"
    initializer_range = 0.02  # of the encoder; feature embeddings start with 1 / sqrt(hidden_size)
    layer_norm_eps = 1e-12
    is_decoder = False
    add_cross_attention = False
    pad_token_id = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if not self.features:
            self.features = list(PAPER_FEATURES)
            self.vocabulary_sizes = self.vocabulary_sizes or list(PAPER_FEATURES.values())
        self.tasks = self.tasks or [name for name in self.features if name != "token_type"]
        dtype = getattr(torch, self.dtype, "") if isinstance(self.dtype, str) else self.dtype
        if not isinstance(dtype, torch.dtype | None):
            raise ValueError(f"`dtype` is {self.dtype!r}, no type of torch: expected one such as float32.")
        super().__post_init__(**kwargs)

    @property
    def counted_until(self) -> float | None:
        """The time before which all counted events lie, in seconds since 1970-01-01; None where it is not known."""
        with suppress(ValueError):
            until = datetime.fromisoformat(str(self.counted.get("until")))
            return until.replace(tzinfo=UTC).timestamp()
        return None

    @property
    def encoder_attention(self) -> str:
        """How units attend: `"causal"` (one pass scores all prefixes) or `"bidirectional"` (the paper)."""
        return "causal" if self.augmentation == "all_prefixes" else "bidirectional"

    @property
    def target(self) -> str:
        """What is predicted: `"next_visit"` (its set of labels, at the end of the visit before) or `"next_event"`
        (paper)."""
        return "next_visit" if self.encoder_unit == "visit" else "next_event"

    @property
    def label_sizes(self) -> dict[str, int]:
        """Number of label ids by task, ids 0 and 1 included."""
        sizes = self._sizes()
        return {task: sizes[task] for task in self.tasks}

    @property
    def no_targets(self) -> list[list[int]]:
        """By task the label ids that are never a target: of the token type, kinds that are not predicted."""
        kinds = {name: {*ids} for name, ids in self.target_types.items()}
        return [
            [label for label in range(FIRST_LABEL, size) if task in kinds and label not in kinds[task]]
            for task, size in self.label_sizes.items()
        ]

    @property
    def counted_features(self) -> CountedFeatures:
        """What the customer state counts."""
        sizes, few = self._sizes(self.learned_sizes), self.state_features
        if few is None:
            few = [name for name, size in sizes.items() if size <= FEW_VALUES]
        large = {task: sizes[task] for task in self.tasks if sizes[task] > FEW_VALUES and task not in few}
        many, total = set[str](), 0
        # The smallest tasks: the counts of a very large one outnumber all others and teach the state little
        for task in sorted(large, key=large.__getitem__):
            total += large[task]
            if large[task] <= MOST_COUNTED and (total <= MOST_TASTES or not many):
                many.add(task)
        return CountedFeatures(
            {name: sizes[name] for name in few},
            {task: size for task, size in large.items() if task in many},
            {task: min(size, MOST_FREQUENT) for task, size in large.items() if task not in many},
        )

    def _sizes(self, sizes: list[int] | None = None) -> dict[str, int]:
        """Number of ids by feature, by default all."""
        return dict(zip(self.features, sizes or self.vocabulary_sizes, strict=False))  # checked by `validate_features`

    @property
    def embedding_size(self) -> int:
        """Size of the customer embedding."""
        return self.state_size or self.hidden_size

    def validate_features(self) -> None:
        """Checks that features, vocabulary sizes and tasks fit together; raises a `ValueError` if not."""
        if len(set(self.features)) != len(self.features):
            raise ValueError(f"`features` must be unique, got {self.features}: rename the repeated ones.")
        if len(self.vocabulary_sizes) != len(self.features):
            raise ValueError(
                f"`vocabulary_sizes` has {len(self.vocabulary_sizes)} entries for {len(self.features)} features: give "
                "one size a feature, in the same order (MCMFeatureExtractor.vocabulary_sizes)."
            )
        if wrong := {name: size for name, size in self._sizes().items() if not 3 <= size <= MOST_IDS}:
            raise ValueError(
                f"`vocabulary_sizes` has {wrong}: expected 3 (padding, unknown and a value) to {MOST_IDS:,}; leave "
                "out features that have no value."
            )
        named = {name: getattr(self, name) or () for name in FEATURE_FIELDS}
        named["kind_feature"] = () if self.kind_feature is None else [self.kind_feature]
        for field_name, features in named.items():
            if missing := [feature for feature in features if feature not in self.features]:
                raise ValueError(f"`{field_name}` names {missing}, which are not among the features {self.features}.")

    def validate_choices(self) -> None:
        """Checks that choices do not contradict; raises a `ValueError` if not."""
        if self.augmentation == "masked_lm" and (self.readout != "last" or self.encoder_unit != "event"):
            raise ValueError(
                "augmentation='masked_lm' reads the hidden vector of the masked event: set readout='last' and "
                "encoder_unit='event'."
            )
        if not self.action_outcomes:
            raise ValueError("`action_outcomes` is empty: expected at least one outcome of an offer.")

    def validate_sizes(self) -> None:
        """Checks that sizes and horizons are in range; raises a `ValueError` if not."""
        for name, (least, most) in LIMITS.items():
            if (size := getattr(self, name)) is not None and not least <= size <= most:
                raise ValueError(f"`{name}` is {size}: expected {least:,} to {most:,}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        if any(not 0 < days < float("inf") for days in self.forecast_days):
            raise ValueError(f"`forecast_days` must be positive numbers of days, got {self.forecast_days}.")
        if self.attention_window is not None and self.encoder_attention != "causal":
            raise ValueError(
                f"`attention_window` is {self.attention_window}, and must be of a causal encoder "
                f"(augmentation='all_prefixes', got {self.augmentation!r}): None attends to all units."
            )


# Fields that may be edited in config.json: the weights are the same whatever they are.
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "event_dropout_prob")
FREE = (*RATES, "counted", "learned", "forecast_days", "known", "max_events")
DECIDING = tuple(sorted({*MCMConfig.__annotations__}.difference(FREE)))  # what the weights mean
