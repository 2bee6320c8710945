# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The one place where a model is asked about customers: encoded rows in, named columns out.

    predictor = Predictor(model, feature_extractor)
    predictor.ask([feature_extractor.encode(customer)], tasks=["item"], k=5, embedding=True)

Pipelines, live customers, the service, batch prediction, evaluation and explanations call it. Only what a question
reads is computed.

Shapes: B customers, S size of the customer embedding, V labels of a task, K offered actions.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.utils import logging

from .action_inputs_mcm import EncodedActions
from .candidates_mcm import CandidateSet
from .events_mcm import Row, check_keys, naming, to_number, to_text, to_values
from .feature_extraction_mcm import MISSING_LABEL, MCMFeatureExtractor
from .forecaster_mcm import CHANCE, MissingForecastsError
from .inputs_mcm import Customers, before, is_past
from .modeling_mcm import MCMPreTrainedModel
from .scorer_mcm import HORIZON_DAYS

logger = logging.get_logger(__name__)
EMBEDDING, LABEL_COLUMNS = "embedding", "label_columns"
PREDICTED = "predicted_"  # begins the column of a class or number that the model was fine-tuned to
SCORES, CHANCES = "_scores", "_chances"  # end the columns TASK_scores and TASK_chances
# Names of the classes of models with a head; those of remote code are other classes of the same names.
RANKING, PREDICTING, OFFERING = HEADS = (
    "MCMForMultiTaskRecommendation",
    "MCMForCustomerPrediction",
    "MCMForActionRecommendation",
)
Rows = Sequence[Row]  # of customers
Columns = dict[str, Tensor]


class RankedLabel(TypedDict):
    """A label with its probability among the candidates, and the chance that it comes, where the model has chances."""

    label: str
    score: float
    chance: NotRequired[float]


class MissingHeadError(ValueError):
    """The checkpoint has no head for the question: it ranks tasks, or was fine-tuned to a label or to offers."""


class Predictor:
    """Asks a model about customers, which are rows of `MCMFeatureExtractor.encode` or of a prepared data set.

    `as_of` is the time of all answers, in seconds on the clock of the rows; later events are left out with a warning.
    By default it is the time of each customer's last event.

    Args:
        model: A model of any class of MCM, in evaluation mode.
        feature_extractor ([`MCMFeatureExtractor`]): Feature extractor of the same checkpoint.
    """

    def __init__(self, model: MCMPreTrainedModel, feature_extractor: MCMFeatureExtractor):
        self.model: Any = model  # which head it has is seen by name
        self.extractor = feature_extractor

    @property
    def head(self) -> str | None:
        """Name of the class of the head that the model was trained with, of `HEADS`. A model for offers has the layers
        that rank tasks, but its encoder was trained without them."""
        return next((kind.__name__ for kind in type(self.model).__mro__ if kind.__name__ in HEADS), None)

    def check_head(self, head: str) -> None:
        """Raises [`MissingHeadError`] unless the model was trained with a head."""
        if self.head != head:
            raise MissingHeadError(
                f"{self.model.name_or_path or 'The model'} is an {type(self.model).__name__}, and this question needs "
                f"an {head}: give such a checkpoint."
            )

    def tasks(self, tasks: Sequence[str] | None = None) -> list[str]:
        """The names of the tasks that are ranked, by default all. Raises `ValueError` if `tasks` is no list of some of
        them."""
        self.check_head(RANKING)
        known = self.model.config.tasks
        if tasks is not None and (isinstance(tasks, str) or not isinstance(tasks, Sequence) or not tasks):
            raise ValueError(
                f"`tasks` is {tasks!r}; give a list of names such as {known[:1]}, or leave it out for all."
            )
        if wrong := [task for task in tasks or () if task not in known]:
            raise ValueError(f"No tasks {wrong}: this checkpoint predicts {known}.")
        return list(known if tasks is None else tasks)

    @cached_property
    def all_labels(self) -> CandidateSet:
        """All labels of all tasks."""
        return CandidateSet(self.model, self.extractor)

    def candidates(
        self, tasks: Sequence[str], candidates: object, exclude: object, per_group: tuple[str, int] | str | None
    ) -> CandidateSet:
        """The labels that may be chosen, see [`CandidateSet`], which `candidates` may be already. Raises `ValueError`
        as the class does, or if the set was made for other tasks or values, or has to be changed."""
        if not isinstance(candidates, CandidateSet):
            if candidates is None and exclude is None and per_group is None:
                return self.all_labels
            return CandidateSet(self.model, self.extractor, tasks, candidates, exclude, per_group)
        if exclude is not None or per_group is not None:
            raise ValueError("`candidates` is a CandidateSet: give `exclude` and `per_group` where it is made.")
        if missing := [task for task in tasks if task not in candidates.tasks]:
            raise ValueError(
                f"`candidates` was made for the tasks {candidates.tasks}, not for {missing}: make another."
            )
        self._check_values("candidates", candidates)
        return candidates

    def _check_values(self, name: str, encoded: CandidateSet | EncodedActions) -> None:
        own = self.extractor
        if encoded.extractor is not own and encoded.extractor.values_digest != own.values_digest:
            raise ValueError(f"`{name}` was made for a checkpoint with other values: make another.")

    @cached_property
    def tells_who_comes(self) -> bool:
        """Whether forecasts say who comes within `HORIZON_DAYS`."""
        forecasts = self.model.base_model.customer_forecasts
        return forecasts.forecaster is not None and forecasts.longest >= HORIZON_DAYS

    def find_features(
        self, tasks: Sequence[str], horizon_days: float | None, parts: Collection[str]
    ) -> set[str] | None:
        """Features that answers read: those of tasks that are scored from counts alone, and the kind of events. None:
        all."""
        config = self.model.config
        if parts or config.input_features or self.model.tasks_with_encoder(tasks, horizon_days):
            return None
        if horizon_days is not None and self.tells_who_comes:
            return None
        return {*tasks, config.kind_feature} - {None}

    def inputs(
        self, rows: Rows, as_of: float | NDArray | None = None, features: Collection[str] | None = None
    ) -> Columns:
        """The model inputs of rows at one time, or each at its own; of some features, by default all."""
        config = self.model.config
        if config.input_features:
            rows = [self.extractor.readable(row, config.input_features) for row in rows]
        times = None if as_of is None else np.broadcast_to(as_of, len(rows))
        mask_next = config.augmentation == "masked_lm"
        inputs = dict(self.extractor.pad(rows, mask_next=mask_next, as_of=times, features=features))
        if self.head == PREDICTING:
            encoded = [_encode(config.label_columns, row.get(LABEL_COLUMNS) or {}) for row in rows]
            inputs[LABEL_COLUMNS] = torch.from_numpy(np.array(encoded))
        return inputs

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor], model: nn.Module | None = None, **options: object) -> Any:
        """The outputs of the model, or of its base, for model inputs; `options` are those of its `forward`."""
        device = self.model.device
        inputs = {name: value.to(device) for name, value in inputs.items()}
        return (model or self.model)(**inputs, **options)

    @torch.inference_mode()
    def ask(
        self,
        rows: Rows,
        as_of: float | None = None,
        tasks: Sequence[str] = (),
        k: int = 10,
        candidates: CandidateSet | None = None,
        horizon_days: float | None = None,
        embedding: bool = False,
        forecasts: bool = False,
        days: Sequence[float] | None = None,
    ) -> Columns:
        """Ranks the labels of tasks, embeds, and forecasts.

        Args:
            tasks (`Sequence[str]`): Tasks whose labels are ranked.
            k (`int`): Number of labels of each task.
            candidates ([`CandidateSet`], *optional*): Which labels may be chosen. Default: all.
            horizon_days (`float`, *optional*): 30 ranks what comes within 30 days. Default: in the next visit.
            embedding, forecasts (`bool`): Whether they are asked for.
            days (`Sequence[float]`, *optional*): Horizons of the forecasts.

        Returns:
            `dict[str, torch.Tensor]`: by task, best first, `TASK` with ids of labels as [`ChosenLabels`] has them,
            `TASK_scores` and, where the checkpoint has them, `TASK_chances`, each `(B, k)`; `embedding` `(B, S)`; and
            forecasts by name, each `(B,)`. A chance within 30 days is that of a customer who comes, times the forecast
            probability of a visit in 30 days, if there are forecasts.

        A customer for whom no candidate is left has none, and a warning says so.

        Raises:
            MissingHeadError, MissingForecastsError: If the model has no head for a question.
        """
        if tasks:
            self.check_head(RANKING)
        if horizon_days is not None and self.extractor.order is not None:
            raise ValueError("`horizon_days` needs times, and the log has `order` instead: leave it out.")
        told = self.model.base_model.select_forecasts(days)
        if forecasts and not told.are_trained:
            raise MissingForecastsError(self.model.name_or_path)
        may_stay_away = bool(tasks) and horizon_days is not None and self.tells_who_comes
        told_days = [*told.days] * forecasts + [HORIZON_DAYS] * may_stay_away
        options: dict[str, object] = {"horizon_days": horizon_days, "tasks": tasks} if tasks else {}
        options |= {"forecast_days": told_days} if told_days else {}
        parts = [EMBEDDING] * embedding + ["forecasts"] * bool(told_days)
        features = self.find_features(tasks, horizon_days, parts) if tasks else None
        model = self.model if tasks else self.model.base_model
        inputs = self.inputs(rows, as_of, features)
        _warn_of_empty(inputs, as_of)
        outputs = self.run(inputs, model, parts=parts, **options)
        columns: Columns = {EMBEDDING: outputs.pooler_output} if embedding else {}
        columns |= {name: outputs.forecasts[name] for name in told.names()} if forecasts else {}
        customers = [row.get("customer_id") for row in rows]
        for task in tasks:
            candidates, seen, taken = candidates or self.all_labels, None, None
            if candidates.needs_seen:
                past = [row["times"] <= (np.inf if as_of is None else as_of) for row in rows]
                seen, taken = (
                    [row[f"{kind}_{task}"][known] for row, known in zip(rows, past, strict=True)]
                    for kind in ("feature", "task")
                )
            best = candidates.choose(task, outputs.logits[task], k, seen, customers, taken)
            chances = self.model.chances(task, best.log_p, horizon_days)
            if chances is not None and may_stay_away:
                chances = chances * outputs.forecasts[f"{CHANCE}_{HORIZON_DAYS:g}d"][:, None]
            if candidates is not self.all_labels and not bool(best.labels.any(1).all()):
                logger.warning_once(f"Some customers have no candidate of {task!r} left: their lists are empty.")
            columns |= {task: best.labels, task + SCORES: best.scores}
            columns |= {} if chances is None else {task + CHANCES: chances}
        return _finish(columns)

    @torch.inference_mode()
    def predict(self, rows: Rows, as_of: float | None = None) -> Columns:
        """What an [`MCMForCustomerPrediction`] was fine-tuned to: by class its probabilities, or by name the number,
        each `(B,)`. As in training, events at `as_of` are not read."""
        self.check_head(PREDICTING)
        inputs = self.inputs(self._read_before(rows, as_of), as_of)
        _warn_of_empty(inputs, as_of)
        return _finish(self.model.predictions(self.run(inputs).logits))

    @torch.inference_mode()
    def score_offers(
        self,
        rows: Rows,
        actions: EncodedActions,
        as_of: float | None = None,
    ) -> Columns:
        """Probabilities `(B, K)` of each outcome, by its name, of offers that are made at `as_of`, by default right
        after the last event, by an [`MCMForActionRecommendation`]. As in training, events at `as_of` are not
        read."""
        self.check_head(OFFERING)
        self._check_values("actions", actions)
        times = None if as_of is None else [as_of] * len(rows)
        inputs = actions.batch(self._read_before(rows, as_of), np.tile(actions.offered, (len(rows), 1)), times)
        chances = self.run(inputs).logits.float().sigmoid().unbind(-1)
        return _finish(dict(zip(self.model.config.action_outcomes, chances, strict=True)))

    def _read_before(self, rows: Rows, as_of: float | None) -> Rows:
        """The rows without events at or after a time; `is_past` warns of later ones."""
        if as_of is None:
            return rows
        batch, times = Customers.of(rows), [as_of] * len(rows)
        is_past(batch, times)
        return before(batch, times, self.extractor.layout)


def describe_labels(
    columns: Columns, tasks: Sequence[str], candidates: CandidateSet, row: int = 0
) -> dict[str, list[RankedLabel]]:
    """A customer's labels of each task, of columns of [`Predictor`]'s `ask`, best first: `{"label": value, "score":
    probability among the candidates, "chance": chance that the label comes}`; without the chance where the model has
    none. A task without a candidate has an empty list."""
    lists: dict[str, list[RankedLabel]] = {}
    for task in tasks:
        values = candidates.decode(task, [label for label in columns[task][row].tolist() if label])
        scores = columns[task + SCORES][row].tolist()
        lists[task] = [{"label": value, "score": score} for value, score in zip(values, scores, strict=False)]
        if task + CHANCES in columns:
            for entry, chance in zip(lists[task], columns[task + CHANCES][row].tolist(), strict=False):
                entry["chance"] = chance
    return lists


def describe_offers(columns: Columns, action_ids: Iterable[str], row: int = 0) -> list[dict[str, str | float]]:
    """A customer's offers, of columns of [`Predictor`]'s `score_offers`: a dict of `action_id` and the probability of
    each outcome, in the order of the actions."""
    chances = zip(*(values[row].tolist() for values in columns.values()), strict=True)
    return [
        {"action_id": name} | dict(zip(columns, of_action, strict=True))
        for name, of_action in zip(action_ids, chances, strict=True)
    ]


def _warn_of_empty(inputs: Columns, as_of: float | None) -> None:
    if as_of is not None and bool((inputs["visit_ids"].amax(1) == 0).any()):
        logger.warning_once(
            "Some customers have no event until `as_of`: they are answered as one without a history. Leave them out "
            "of totals."
        )


def _encode(columns: Mapping[str, Mapping[str, float]], given: Mapping[str, Any]) -> NDArray[np.float32]:
    """The numbers of a customer's further columns less their means, 0 for what is not given. `columns` are those of
    the config."""
    check_keys(given, [*columns], f"`{LABEL_COLUMNS}`")
    numbers = []
    for name, means in columns.items():
        with naming(f"column {name!r}"):
            text = to_text(given.get(name)) or MISSING_LABEL
            for value, mean in means.items():
                number = float(text == value) if value else to_number(given.get(name))
                numbers.append(number - mean if name in given else 0.0)
    return to_values(np.array(numbers))


def _finish(columns: Columns) -> Columns:
    return {name: (value.float() if value.is_floating_point() else value).cpu() for name, value in columns.items()}
