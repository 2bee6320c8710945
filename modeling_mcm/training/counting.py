# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts a log for a model: what is learned stays, and what is counted is that of another time.

A model has three kinds of numbers. **Weights** are learned once: the networks, and how sure they are. **Counts** are
of a log until a time: the tables of the scorer, the statistics of the state, and what the forecaster is told of the
shop. **Vocabularies** say which values the log had until then. A model is judged with the counts of its cutoff, and
used with those of the log's end.
"""

import copy
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from modeling_mcm.calendar_mcm import Known, join_known
from modeling_mcm.configuration_mcm import FIRST_LABEL, MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import load_columns
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.dataset import END
from modeling_mcm.embeddings_mcm import HeterogeneousEmbedding
from modeling_mcm.events_mcm import to_iso
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.forecaster_mcm import LONGEST_RATIO
from modeling_mcm.modeling_mcm import MCMPreTrainedModel
from modeling_mcm.scorer_mcm import LabelScorer

from .forecaster.describe import describe_shop
from .labels import categorical_features, fill_label_values, find_usual_values, popularity
from .memory import return_freed_memory
from .scorer.counts import ShopNumbers, count_labels
from .scorer.shipped import SHIPPED, load_network
from .state import fit_state

logger = logging.get_logger(__name__)
HEADS = ("prediction_head.labels.weight", "action_head.labels.weight")  # (C, V): a column for each label of each task


def count_customers(
    model: MCMPreTrainedModel, data: PreparedData, seed: int = 0, state: bool = True, forecasts: bool = True
) -> None:
    """Fits the customer state, and describes the shop to the forecaster, or one of them. Both read customers with any
    event before the validation cutoff: of those who came once, most do not come again."""
    known = np.flatnonzero(load_columns(data.rows, ["validation_end"]).column("validation_end") > 0)
    cutoff = None if isinstance(data.schema.cutoffs, str) else float(data.schema.cutoff_seconds("validation"))
    prepared = PreparedRows(data.rows, known)
    if state:
        fit_state(model.base_model, data.extractor, prepared, cutoff, seed)
    if forecasts:
        describe_shop(model.base_model, data.extractor, prepared, cutoff)


@dataclass(frozen=True)
class Counts:
    """All that is counted of a log until a time: the tables of the scorer, popularity, the shop with its calendar, and
    the scale of the state. No learned number is among them.

        counts = Counts.of(data, END)
        model, extractor = counts.give(model, extractor)    # the weights of a model, with these counts
        counts.add(events, folder)                          # of the log with one day more
        counts.drop(["c7"])                                 # as if the customer had never been there

    Args:
        data ([`PreparedData`]): The log, as it was known at that time.
    """

    data: PreparedData

    @classmethod
    def of(cls, data: PreparedData, until: str | int) -> "Counts":
        """Counts a log until a time, as [`PreparedData`] takes it."""
        return cls(data.at(until))

    @property
    def until(self) -> int | None:
        """The time in seconds since 1970-01-01 before which all counted events lie; None in a log without times, or
        that leaves out each customer's last visits."""
        schema = self.data.schema
        return None if isinstance(schema.cutoffs, str) else schema.cutoff_seconds("validation")

    def describe(self) -> dict[str, str | int]:
        """Which log is counted, and until when: the events before `until`, as ISO text, or all but each customer's
        last visits."""
        data = self.data
        ends = load_columns(data.rows, ["validation_end"]).column("validation_end")
        facts: dict[str, str | int] = {"log": data.schema.name, "customers": int((ends > 0).sum())}
        facts["events"] = int(ends.sum())
        if self.until is not None:
            facts["until"] = to_iso(self.until)
        elif data.until != END and data.schema.leaves_one_out:
            facts["until"] = f"the {data.until} visit of each customer"
        else:
            facts["until"] = "the end of the log"
        return facts

    def add(self, events: Any, folder: Path, **options: Any) -> "Counts":
        """The counts of the log with further events, such as those of a day; they are those of counting the whole log
        at once. The longer log is written to a new folder. Arguments and errors are those of
        [`~preparation.refresh.add_events`]."""
        from modeling_mcm.preparation.refresh import add_events

        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            add_events(self.data, events, folder, Path(scratch), **options)
        return Counts(PreparedData(folder, END, self.data.left_out))

    def drop(self, customers: Collection[str]) -> "Counts":
        """The counts without some customers: those of a log that never had them, with the same vocabularies."""
        return Counts(self.data.at(self.data.until, customers))

    @torch.no_grad()
    def give(
        self,
        model: Any,
        extractor: MCMFeatureExtractor,
        state: bool = True,
        forecasts: bool | None = None,
        seed: int = 0,
        known: Known | None = None,
    ) -> tuple[Any, MCMFeatureExtractor]:
        """Makes a model with the learned weights of another, and these counts.

        Args:
            model ([`MCMPreTrainedModel`]): The model, with or without a head; it stays as it is.
            extractor ([`MCMFeatureExtractor`]): Its feature extractor.
            state (`bool`): Whether the state is counted, too. A head reads the one that it was fitted to.
            forecasts (`bool`, *optional*): Whether there are forecasts. Default: if the model has them.
            seed (`int`): Of the sample of customers whose state is counted.
            known (`dict`, *optional*): What is known of days, beside what the model knows.

        Returns:
            `tuple`: the model, and the feature extractor with the values that were known then.
        """
        data, facts = self.data, self.describe()
        counted, config = data.extractor, copy.deepcopy(model.config)
        config.known = join_known(config.known, known or {})
        config.learned_sizes = [*map(min, config.learned_sizes or config.vocabulary_sizes, counted.vocabulary_sizes)]
        config.vocabulary_sizes, config.values_digest = counted.vocabulary_sizes, counted.values_digest
        is_same = counted.values_digest == extractor.values_digest
        if is_same and not known and model.config.counted == facts:
            return model, extractor
        result = type(model)(config).to(model.device).eval()
        copy_weights(model, result)
        start_new_values(result, data)
        if getattr(result, "scorer", None) is not None:
            scorer, shops = cast(LabelScorer, result.scorer), list[ShopNumbers]()
            for counts in count_labels(data, config, np.zeros(len(data.rows), np.int64)):  # all in one fold
                scorer.tables[len(shops)].load_state_dict(counts.make_tables().state_dict())
                shops.append(counts.shop)
            if config.learned == SHIPPED:
                load_network(scorer, shops)
        return_freed_memory()
        has_state = result.base_model.state is not None
        if has_state:  # one of other sizes, as where nothing was learned, means nothing here
            state |= result.base_model.state.mean.shape != model.base_model.state.mean.shape
        has_forecasts = model.base_model.forecaster is not None if forecasts is None else forecasts
        count_customers(result, data, seed, has_state and state, has_state and has_forecasts)
        missed = {*model.config.forecast_days}.difference(result.config.forecast_days)
        if window := result.config.forecast_window * (data.until == END and bool(missed)):
            logger.warning(
                f"There are no forecasts for {', '.join(f'{day:g}' for day in sorted(missed))} days: the longest "
                f"horizon is {LONGEST_RATIO:g} times the {window:.1f} days of the log. Give a longer log."
            )
        result.config.counted = facts
        result.name_or_path = model.name_or_path
        return result, counted

    @torch.no_grad()
    def give_shop(self, model: Any) -> Any:
        """A copy of a model that is asked for forecasts alone: only what they read is counted until then."""
        result = copy.deepcopy(model)
        count_customers(result, self.data, state=False)
        result.config.counted = self.describe()
        return result


def copy_weights(model: MCMPreTrainedModel, result: MCMPreTrainedModel) -> None:
    """Copies the weights of a model to one with another number of labels: those of the labels that both have."""
    stored, sizes = model.state_dict(), [list(each.config.label_sizes.values()) for each in (model, result)]
    for name, value in result.state_dict().items():
        if name not in stored or ".tables." in name:
            continue
        pairs: list[tuple[Tensor, Tensor]] = [(value, stored[name])]
        if name in HEADS:
            value.zero_()
            pairs = list(zip(value.split(sizes[1], 1), stored[name].split(sizes[0], 1), strict=True))
        for new, old in pairs:
            part = tuple(slice(min(lengths)) for lengths in zip(new.shape, old.shape, strict=True))
            new[part] = old[part]


def start_new_values(model: Any, data: PreparedData) -> None:
    """Starts the vectors of an encoder for values that it has not learned: at the mean over the labels with the same
    attribute, the one with the most values, or over all. A bias starts at the label's share."""
    config: MCMConfig = model.config
    events = cast(HeterogeneousEmbedding, model.base_model.embeddings.events)
    learned, features = config.learned_sizes or config.vocabulary_sizes, categorical_features(data.extractor)
    has_encoder = config.num_hidden_layers > 0
    if config.label_features and hasattr(model, "readout_bias"):
        fill_label_values(model, data.rows)
    for index, (name, size) in enumerate(zip(config.features, learned, strict=True)):
        vectors = cast(Tensor, events.feature_tables[index].weight)  # (V, H)
        if len(vectors) == size:
            continue
        vectors[size:] = vectors[FIRST_LABEL:size].mean(0)
        usual = find_usual_values(data.rows, config, name, features) if has_encoder and name in config.tasks else {}
        for values in sorted(usual.values(), key=lambda values: values.max(), reverse=True)[:1]:  # (V,)
            for label in range(size, len(vectors)):
                alike = np.flatnonzero((values[:size] == values[label]) & (values[label] >= FIRST_LABEL))
                if len(alike):
                    vectors[label] = vectors[torch.from_numpy(alike)].mean(0)
    biases = getattr(model, "readout_bias", ())
    counts = popularity(data, config) if len(biases) else {}
    for task, bias in zip(config.tasks, biases, strict=False):
        size, shares = learned[config.features.index(task)], counts[task].float() + 1
        bias[size:] = torch.log(shares / shares[FIRST_LABEL:].sum())[size:]
