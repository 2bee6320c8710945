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

from .action_inputs_mcm import EncodedActions
from .forecaster_mcm import MissingForecastsError
from .modeling_mcm import MCMPreTrainedModel
from .predictor_mcm import EMBEDDING, Columns, Predictor, RankedLabel, Rows, describe_labels, describe_offers

Parameters = tuple[dict, dict, dict]  # of preprocess, forward, postprocess


class _CustomerPipeline(Pipeline):
    """Base class of the pipelines: encodes customers one by one and pads batches, whose size does not change
    results."""

    _load_processor = _load_image_processor = _load_video_processor = _load_tokenizer = False  # type: ignore[assignment]
    _load_feature_extractor = True  # type: ignore[assignment]
    NAME: str = ""  # of the task, for messages
    OPTIONS: tuple[str, ...] = ("as_of",)
    QUESTION: dict = {}
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

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the result of one customer, or a list of results for a list, tuple or generator of customers; see
        [`MCMFeatureExtractor.encode`]. `kwargs` are `num_workers` and `batch_size`, as in transformers, and options of
        the pipeline. Raises `ValueError` if a customer can't be encoded, or an option is unknown or invalid."""
        if isinstance(inputs, str) or inputs is None:
            raise ValueError(f"Found {inputs!r}, expected a customer (a dict with `events`) or a list of customers.")
        if isinstance(inputs, list | tuple | Iterator):
            customers = (pair for pair in enumerate(inputs))  # error messages name the index
            is_lazy = isinstance(inputs, Iterator) or not inputs  # transformers takes no empty list
            inputs = customers if is_lazy else list(customers)
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(self, input_: Any, **preprocess_parameters: object) -> dict[str, Any]:
        """Encodes one customer; the row stands in the result under the key `rows`."""
        if not isinstance(input_, tuple):
            return {"rows": self.feature_extractor.encode(input_, "The customer")}
        index, customer = input_
        return {"rows": self.feature_extractor.encode(customer, f"Customer {index} of the list")}

    def _forward(self, input_tensors: dict, **forward_parameters: object) -> Any:
        rows = input_tensors["rows"]
        return self.ask(rows if isinstance(rows, list) else [rows], **forward_parameters)

    def ask(self, rows: Rows, **options: Any) -> Columns:
        """What the predictor says of encoded customers."""
        return self.predictor.ask(rows, **self.QUESTION, **options)

    def _sanitize_parameters(self, **options: Any) -> Parameters:
        if unknown := sorted(options.keys() - set(self.OPTIONS)):
            known = ", ".join(f"`{name}`" for name in self.OPTIONS)
            raise ValueError(f"Unknown options {unknown}: {self.NAME} has {known}.")
        given = {name: value for name, value in options.items() if value is not None}
        if "as_of" in given:
            given["as_of"] = self.feature_extractor.read_as_of(given["as_of"])
        return {}, given, {}

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

    def postprocess(self, model_outputs: Columns, **postprocess_parameters: object) -> NDArray[np.float32]:
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
    """

    NAME, OPTIONS, QUESTION = "customer-forecast", ("as_of", "days"), {"forecasts": True}

    def check_model(self) -> None:
        """Raises [`MissingForecastsError`] if the checkpoint has no trained forecasts."""
        if not self.model.base_model.customer_forecasts.are_trained:
            raise MissingForecastsError(self.model.name_or_path)

    def postprocess(self, model_outputs: Columns, **postprocess_parameters: object) -> dict[str, float]:
        """Converts the forecasts to numbers."""
        return {name: value[0].item() for name, value in model_outputs.items()}


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

    NAME = "preference-scores"
    OPTIONS = ("tasks", "top_k", "as_of", "candidates", "exclude", "per_group", "horizon_days")

    def _sanitize_parameters(self, **options: Any) -> Parameters:
        _, questions, _ = super()._sanitize_parameters(**options)
        choice = [questions.pop(name, None) for name in ("candidates", "exclude", "per_group")]
        labels: dict = {}
        if "tasks" in questions:
            labels["tasks"] = self.predictor.tasks(questions["tasks"])
        if any(each is not None for each in choice):  # tables do not compare
            labels["candidates"] = self.predictor.candidates(self.predictor.tasks(labels.get("tasks")), *choice)
        if "top_k" in questions:
            questions["k"] = questions.pop("top_k")
        return {}, questions | labels, labels

    def ask(self, rows: Rows, **options: Any) -> Columns:
        """The best labels of customers."""
        return self.predictor.ask(rows, **{"tasks": self.predictor.tasks(), **options})

    def postprocess(self, model_outputs: Columns, **postprocess_parameters: Any) -> dict[str, list[RankedLabel]]:
        """Converts label ids to values."""
        tasks = postprocess_parameters.get("tasks") or self.predictor.tasks()
        candidates = postprocess_parameters.get("candidates") or self.predictor.all_labels
        return describe_labels(model_outputs, tasks, candidates)


class CustomerPredictionPipeline(_CustomerPipeline):
    """Predicts the label that a checkpoint was fine-tuned to: `pipeline("customer-prediction", ...)(customer)`.

    The result of a customer is `{class: probability}`, or the predicted number.

    Options:
        as_of (text or datetime, *optional*): Time of the label, written as the log writes its times; events at or
            after it are not read, as in fine-tuning. Default: right after the last event.
    """

    NAME, HEAD = "customer-prediction", "prediction_head.state"

    def ask(self, rows: Rows, **options: Any) -> Columns:
        """What is predicted of customers."""
        return self.predictor.predict(rows, **options)

    def postprocess(self, model_outputs: Columns, **postprocess_parameters: object) -> dict[str, float] | float:
        """Converts the prediction to numbers."""
        values = {name: value[0].item() for name, value in model_outputs.items()}
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

    NAME, OPTIONS, HEAD = "action-scores", ("actions", "as_of"), "action_head.numbers"

    def _sanitize_parameters(self, **options: Any) -> Parameters:
        _, given, _ = super()._sanitize_parameters(**options)
        if "actions" not in given:
            return {}, {}, {}
        actions = EncodedActions(self.feature_extractor, self.model.config, given["actions"], given.get("as_of"))
        return {}, given | {"actions": actions}, {"names": actions.action_ids}

    def ask(self, rows: Rows, **options: Any) -> Columns:
        """The probabilities of the outcomes of offers to customers."""
        if not options:
            raise ValueError("There are no `actions`: give a list of dicts with `action_id` and columns of the log.")
        return self.predictor.score_offers(rows, **options)

    def postprocess(self, model_outputs: Columns, **postprocess_parameters: Any) -> list[dict[str, str | float]]:
        """Pairs the probabilities with the names of actions and outcomes."""
        return describe_offers(model_outputs, postprocess_parameters["names"])
