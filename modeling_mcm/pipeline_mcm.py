# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Pipelines: from raw events of customers to embeddings, forecasts, preference scores, predictions and offer scores.

A customer is a dict with `events` (list of dicts, dict of columns or DataFrame) and optionally `profile` and
`customer_id`; a list of customers is a batch. A customer may have no events: then only the profile is read.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import Pipeline
from transformers.dynamic_module_utils import custom_object_save

from .modeling_mcm import MCMPreTrainedModel
from .predictor_mcm import (
    EMBEDDING,
    CheckedQuestions,
    Columns,
    Predictor,
    Questions,
    RankedLabel,
    describe_labels,
    describe_numbers,
    describe_offers,
)

Parameters = tuple[dict, dict, dict]  # of preprocess, forward, postprocess
ASKED = "asked"  # the parameter that holds the checked questions of a call


class _CustomerPipeline(Pipeline):
    """Base class of the pipelines: encodes customers one by one and pads batches, whose size does not change
    results."""

    _load_processor = _load_image_processor = _load_video_processor = _load_tokenizer = False  # type: ignore[assignment]
    _load_feature_extractor = True  # type: ignore[assignment]
    NAME: str = ""  # of the task, for messages
    OPTIONS: dict[str, str] = {"as_of": "as_of"}  # by name the field of `Questions`
    QUESTION: dict[str, Any] = {}  # fields of `Questions` that the pipeline always asks
    HEAD: str = ""  # module of the model that is trained to what is asked
    model: MCMPreTrainedModel
    feature_extractor: Any  # an MCMFeatureExtractor; the base class knows those of audio

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.feature_extractor is None:
            source = self.model.name_or_path or "The model"
            raise ValueError(f"{source} came without a feature extractor: give `feature_extractor`.")
        self.feature_extractor.check_fits(self.model)
        self.check_model()
        self.check_options({})

    def check_model(self) -> None:
        """Raises `ValueError` if the model was not trained to what is asked."""
        head = dict(self.model.named_modules()).get(self.HEAD)
        if self.HEAD and (head is None or not head.weight.any()):  # untrained weights are 0
            raise ValueError(
                f"{self.model.name_or_path or 'The model'} has no trained head for {self.NAME}: chances would be made "
                "up. Fine-tune it first (mcm finetune, docs/fine_tuning.md)."
            )

    @functools.cached_property
    def predictor(self) -> Predictor:
        """What the model is asked through."""
        return Predictor(self.model, self.feature_extractor)

    def check_options(self, options: dict[str, Any]) -> CheckedQuestions:
        """What is asked with the options of a call, which go before those of the construction. Raises `ValueError` if
        one is unknown or wrong."""
        asked = {self.OPTIONS[name]: value for name, value in (self._options | self._known(options)).items()}
        return self.predictor.check(Questions(**self.QUESTION | asked, later_counts=True))

    def _known(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options that are given. Raises `ValueError` if one is unknown."""
        if unknown := sorted(options.keys() - self.OPTIONS.keys()):
            known = ", ".join(f"`{name}`" for name in self.OPTIONS)
            raise ValueError(f"Unknown options {unknown}: {self.NAME} has {known}.")
        return {name: value for name, value in options.items() if value is not None}

    def __call__(
        self, inputs: Any, *args: Any, num_workers: Any = None, batch_size: Any = None, **options: Any
    ) -> Any:
        """Computes the result of one customer, or a list of results for a list, tuple or generator of customers; see
        [`MCMFeatureExtractor.encode`]. `num_workers` and `batch_size` are as in transformers, `options` those of the
        pipeline. Raises `ValueError` if a customer can't be encoded, or an option is unknown or invalid."""
        if isinstance(inputs, str) or inputs is None:
            raise ValueError(f"Found {inputs!r}, expected a customer (a dict with `events`) or a list of customers.")
        if isinstance(inputs, list | tuple | Iterator):
            customers = (pair for pair in enumerate(inputs))  # error messages name the index
            is_lazy = isinstance(inputs, Iterator) or not inputs  # transformers takes no empty list
            inputs = customers if is_lazy else list(customers)
        how = {"num_workers": num_workers, "batch_size": batch_size, ASKED: self.check_options(options)}
        return super().__call__(inputs, **how)

    def preprocess(self, input_: Any, **preprocess_parameters: object) -> dict[str, Any]:
        """Encodes one customer; the row stands in the result under the key `rows`."""
        if not isinstance(input_, tuple):
            return {"rows": self.feature_extractor.encode(input_, "The customer")}
        index, customer = input_
        return {"rows": self.feature_extractor.encode(customer, f"Customer {index} of the list")}

    def _forward(self, input_tensors: dict, **asked: Any) -> Any:
        rows = input_tensors["rows"]
        return self.predictor.ask(rows if isinstance(rows, list) else [rows], asked[ASKED])

    def _sanitize_parameters(self, **options: Any) -> Parameters:
        if ASKED in options:  # what `__call__` has checked
            return {}, options, options
        self._options = self._known(options)
        return {}, {}, {}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves model and feature extractor, and the pipeline's code if the checkpoint uses remote code."""
        super().save_pretrained(save_directory, **kwargs)
        if getattr(self.model.config, "auto_map", None):
            custom_object_save(self, save_directory)


class CustomerEmbeddingPipeline(_CustomerPipeline):
    """Computes customer embeddings: `pipeline("customer-embedding", model=checkpoint)(customer)`.

    The result of a customer is a float32 array of shape `(S,)`, S being `config.embedding_size`.

    Options:
        as_of (text or datetime, *optional*): Time of the embedding, written as the log writes its times; later
            events are not read. Default: the time of each customer's last event.
    """

    NAME, QUESTION = "customer-embedding", {"embedding": True}

    def postprocess(self, model_outputs: Columns, **asked: Any) -> NDArray[np.float32]:
        """Converts the embedding to a float32 array."""
        return model_outputs[EMBEDDING][0].numpy()


class CustomerForecastPipeline(_CustomerPipeline):
    """Forecasts the future of customers: `pipeline("customer-forecast", model=checkpoint)(customer)`.

    The result of a customer is a dict. For each horizon, such as 7 days, `visits_7d`, `events_7d` and `amount_7d` (for
    the amount, by its name) are expected numbers and sums: means, which may be added up over customers.
    `visits_7d_median` is the median, which lies between `visits_7d_low80` and `visits_7d_high80`, the ends of an
    interval that holds 80% of such customers; and so on for 95% and the other quantities. `visit_probability_7d` is
    the probability of a visit, and `days_to_next_visit` the median number of days to the next one.

    Options:
        as_of (text or datetime, *optional*): Time from which the forecasts count, written as the log writes its
            times. Default: the time of each customer's last event.
        days (`list[float]`, *optional*): Horizons, such as `[180, 365]`, up to twice the training period. Default:
            those of the config.
        known (*optional*): What is known of days beside `config.known`, such as `[{"date": "2024-05-01", "name":
            "campaign", "value": 1.0}]`: a table as [`~data.read_known`] takes, or what it gives.
        discount_rate (`float`, *optional*): Of a year: with .1, `amount_365d_discounted` says what the expected amount
            is worth now, if what comes in a year is worth 1 / 1.1 of it.
    """

    NAME, QUESTION = "customer-forecast", {"forecasts": True}
    OPTIONS = {name: name for name in ("as_of", "days", "known", "discount_rate")}

    def postprocess(self, model_outputs: Columns, **asked: Any) -> dict[str, float]:
        """Converts the forecasts to numbers."""
        return describe_numbers(model_outputs)


class PreferenceScoresPipeline(_CustomerPipeline):
    """Ranks the labels that are likely to come next: `pipeline("preference-scores", model=checkpoint)(customer)`.

    The result of a customer has for each task a list of `{"label": value, "score": probability among the candidates,
    "chance": chance that the label comes}`, best first; an empty list where no candidate is left.

    Options:
        tasks (`list[str]`, *optional*): Names of the tasks. Default: all tasks.
        top_k (`int`, *optional*): Number of labels of each task. Default: 10.
        as_of (text or datetime, *optional*): Time of the scores, written as the log writes its times. Default: the
            time of each customer's last event.
        candidates, exclude, per_group (*optional*): Which labels may be chosen, see [`CandidateSet`]; `candidates` may
            be such a set. Default: all labels.
        horizon_days (`float`, *optional*): 30 ranks the labels that are likely to come within 30 days.
            Default: those of the next visit.
    """

    NAME, QUESTION = "preference-scores", {"tasks": None}
    OPTIONS = {"tasks": "tasks", "top_k": "k", "as_of": "as_of"} | {
        name: name for name in ("candidates", "exclude", "per_group", "horizon_days")
    }

    def postprocess(self, model_outputs: Columns, **asked: Any) -> dict[str, list[RankedLabel]]:
        """Converts label ids to values."""
        return describe_labels(model_outputs, asked[ASKED])


class CustomerPredictionPipeline(_CustomerPipeline):
    """Predicts the label that a checkpoint was fine-tuned to: `pipeline("customer-prediction", ...)(customer)`.

    The result of a customer is `{class: probability}`, or the predicted number.

    Options:
        as_of (text or datetime, *optional*): Time of the label, written as the log writes its times; events at or
            after it are not read, as in fine-tuning. Default: right after the last event.
    """

    NAME, HEAD, QUESTION = "customer-prediction", "prediction_head.state", {"label": True}

    def postprocess(self, model_outputs: Columns, **asked: Any) -> dict[str, float] | float:
        """Converts the prediction to numbers."""
        values = describe_numbers(model_outputs)
        return values if len(values) > 1 else next(iter(values.values()))


class ActionScoresPipeline(_CustomerPipeline):
    """Predicts the outcomes of offers: `pipeline("action-scores", model=checkpoint)(customer, actions=actions)`.

    The result of a customer is a list of `{"action_id": ..., outcome: probability, ...}`, in the order of the actions.

    Options:
        actions (`list[dict]`): Dicts with `action_id` and columns of the event log. An action that covers several
            kinds of events has several dicts with the same `action_id`.
        as_of (text or datetime, *optional*): Time of the offers, written as the log writes its times; events at or
            after it are not read, as in fine-tuning. Default: right after each customer's last event.
    """

    NAME, HEAD = "action-scores", "action_head.numbers"
    OPTIONS = {"actions": "offers", "as_of": "as_of"}

    def _forward(self, input_tensors: dict, **asked: Any) -> Any:
        if asked[ASKED].actions is None:  # neither at construction nor in the call
            raise ValueError("There are no `actions`: give a list of dicts with `action_id` and columns of the log.")
        return super()._forward(input_tensors, **asked)

    def postprocess(self, model_outputs: Columns, **asked: Any) -> list[dict[str, str | float]]:
        """Pairs the probabilities with the names of actions and outcomes."""
        return describe_offers(model_outputs, asked[ASKED])
