# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The one place where a model is asked about customers: histories and questions in, named columns out.

    predictor = Predictor(model, feature_extractor)
    predictor.ask(Customers.encode(feature_extractor, events), Questions(tasks=["item"], k=5, embedding=True))

Pipelines, live customers, data frames, the service, batch prediction, evaluation and explanations call it. Questions
are checked here, whoever asks them, and only what they read is computed.

Shapes: B customers, S size of the customer embedding, V labels of a task, K offered actions.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging

from .action_inputs_mcm import EncodedActions
from .calendar_mcm import CLOSED, Known, join_known
from .candidates_mcm import CandidateSet, ChosenLabels, check_number
from .configuration_mcm import FIRST_LABEL
from .events_mcm import (
    SECONDS_PER_DAY,
    Row,
    Time,
    check_keys,
    naming,
    read_days,
    to_iso,
    to_number,
    to_text,
    to_values,
)
from .feature_extraction_mcm import MISSING_LABEL, MCMFeatureExtractor
from .features_mcm import LabelHistory
from .forecaster_mcm import CHANCE, MissingForecastsError
from .inputs_mcm import Customers, check_ids, is_past, measure_days, select_read
from .modeling_mcm import MCMPreTrainedModel, MCMRecommendationOutput
from .scorer_mcm import HORIZON_DAYS, NEXT_VISIT, WITHIN, check_horizon

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


class LaterCountsError(ValueError):
    """Raised where an answer about a time of the past would come from counts that hold later events."""


class MissingHeadError(ValueError):
    """The checkpoint has no head for the question: it ranks tasks, or was fine-tuned to a label or to offers."""


@dataclass(frozen=True)
class Questions:
    """What is asked about customers. [`Predictor.check`] says of every part whether it can be answered.

    Args:
        as_of: Time of the answers: text or a datetime as the log writes its times, or seconds since 1970-01-01. Later
            events are left out with a warning; for a label and offers those at this time, too, as in fine-tuning.
            Default: the time of each customer's last event, or right after it.
        tasks (`Sequence[str]`, *optional*): Tasks whose labels are ranked; none by default, all with None.
        k (`int`): Number of labels of each task.
        candidates, exclude, per_group (*optional*): Which labels may be chosen, see [`CandidateSet`]; `candidates` may
            be such a set. Default: all labels.
        horizon_days (`float`, *optional*): 30 ranks what comes within 30 days. Default: in the next visit.
        embedding, forecasts (`bool`): Whether they are asked for.
        days (`Sequence[float]`, *optional*): Horizons of the forecasts. Default: those of the config.
        known (*optional*): What is known of days beside `config.known`, as [`~data.read_known`] gives it; or a table
            as it takes, but for files, with days as ISO text or times.
        discount_rate (`float`, *optional*): Of a year. With .1 what comes in a year is worth 1 / 1.1 of what comes
            today, and `NAME_discounted` says what the expected visits, events and amounts are worth.
        later_counts (`bool`): Whether an answer may be given about a time of the past by counts that hold later
            events, with a warning: where no log is at hand to count again. It must not say how good an answer was.
        label (`bool`): Whether the label is asked for that an [`MCMForCustomerPrediction`] was fine-tuned to.
        offers (*optional*): Actions that an [`MCMForActionRecommendation`] scores: dicts with `action_id` and columns
            of the log, or [`EncodedActions`].
    """

    as_of: Time = None
    tasks: Sequence[str] | None = ()
    k: int = 10
    candidates: object = None
    exclude: object = None
    per_group: tuple[str, int] | str | None = None
    horizon_days: float | None = None
    embedding: bool = False
    forecasts: bool = False
    days: Sequence[float] | None = None
    known: object = None
    discount_rate: float | None = None
    later_counts: bool = False
    label: bool = False
    offers: object = None

    def at_end(self, seconds: float) -> "Questions":
        """The questions at the end of a log whose last event is at a time, in seconds, and is read."""
        return replace(self, as_of=seconds + (self.label or self.offers is not None))


class CheckedQuestions(NamedTuple):
    """Questions that the model can answer; what [`Questions`] says otherwise is read: `as_of` in seconds, which labels
    may be chosen, and the encoded actions."""

    as_of: float | None
    tasks: list[str]
    k: int
    candidates: CandidateSet | None
    horizon_days: float | None
    embedding: bool
    forecasts: bool
    days: Sequence[float] | None
    known: Known | None
    discount_rate: float | None
    label: bool
    actions: EncodedActions | None


class Predictor:
    """Asks a model about customers.

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

    def check(self, asked: Questions) -> CheckedQuestions:
        """Checks and reads questions, once for any number of customers. Raises [`MissingHeadError`] or
        [`MissingForecastsError`] if the model can't answer one, and `ValueError` if an option is wrong."""
        as_of = self.extractor.read_as_of(asked.as_of)
        self._check_time(as_of, asked)
        tasks = [] if asked.tasks == () else self.tasks(asked.tasks)
        choice = asked.candidates, asked.exclude, asked.per_group
        if not tasks and (asked.horizon_days is not None or any(each is not None for each in choice)):
            raise ValueError(
                "`candidates`, `exclude`, `per_group` and `horizon_days` say which labels of tasks are ranked: give "
                "`tasks`, or leave them out."
            )
        check_number(asked.k)
        if asked.horizon_days is not None:
            if self.extractor.order is not None:
                raise ValueError("`horizon_days` needs times, and the log has `order` instead: leave it out.")
            check_horizon(asked.horizon_days, self.model.fitted_scorer)
        if asked.days is not None and not asked.forecasts:
            raise ValueError("`days` are horizons of forecasts: ask for forecasts, or leave it out.")
        if (rate := asked.discount_rate) is not None:
            if not asked.forecasts:
                raise ValueError("`discount_rate` is of forecasts: ask for forecasts, or leave it out.")
            with naming("`discount_rate`"):
                rate = to_number(rate)
            if not -1 < rate < math.inf:
                raise ValueError(f"`discount_rate` is {rate:g}; give a share of a year's value, such as .1.")
        forecasts = self.model.base_model.select_forecasts(asked.days)  # raises if a horizon is too long
        if asked.forecasts and not forecasts.are_trained:
            raise MissingForecastsError(self.model.name_or_path)
        if asked.label:
            self.check_head(PREDICTING)
        actions = None if asked.offers is None else self._check_actions(asked.offers, as_of)
        others = bool(tasks) or asked.embedding or asked.forecasts
        if (asked.label or actions is not None) and others:
            raise ValueError("A label, or offers, are asked for alone: they read the events before `as_of`.")
        candidates = self._check_candidates(tasks, *choice) if tasks else None
        return CheckedQuestions(
            as_of, tasks, asked.k, candidates, asked.horizon_days, asked.embedding, asked.forecasts, asked.days,
            self._check_known(asked), rate, asked.label, actions,
        )  # fmt: skip

    def knows_later(self, as_of: float | None) -> bool:
        """Whether the counts hold events after a time, in seconds since 1970-01-01."""
        until = self.model.config.counted_until
        return as_of is not None and until is not None and as_of + 1 < until

    def _check_time(self, as_of: float | None, asked: Questions) -> None:
        """Raises [`LaterCountsError`], or warns where the caller allows it, if the counts hold events after `as_of`. A
        head reads none of them."""
        if as_of is None or not self.knows_later(as_of) or asked.label or asked.offers is not None:
            return
        words = (
            f"`as_of` is {to_iso(as_of)}, and the counts hold events until {self.model.config.counted['until']}: what "
            "came after `as_of` is in the answer."
        )
        if not asked.later_counts:
            raise LaterCountsError(f"{words} Count again until then, as `CustomerModel.at` and `mcm evaluate` do.")
        logger.warning_once(f"{words} `CustomerModel` and `mcm evaluate` count again until then.")

    def _check_known(self, asked: Questions) -> Known | None:
        """What is known of days, with what the config knows."""
        if asked.known is None:
            return None
        own, new = self.model.config.known, read_days(asked.known)
        if not asked.forecasts:
            raise ValueError("`known` is of the days of forecasts: ask for forecasts, or leave it out.")
        if not self.model.config.calendar:
            raise ValueError("This checkpoint counts no days, so `known` has no effect: train it anew.")
        if unknown := sorted(new.keys() - own.keys() - {CLOSED}):
            raise ValueError(
                f"`known` names {unknown[0]!r}, whose effect this checkpoint has not learned, but those of {[*own]}: "
                "give its days of the past to `fit`, `refresh` or `mcm pretrain`."
            )
        return join_known(own, new)

    def _check_candidates(
        self, tasks: Sequence[str], candidates: object, exclude: object, per_group: tuple[str, int] | str | None
    ) -> CandidateSet:
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

    def _check_actions(self, actions: object, as_of: float | None) -> EncodedActions:
        self.check_head(OFFERING)
        if not isinstance(actions, EncodedActions):
            return EncodedActions(self.extractor, self.model.config, actions, as_of)
        self._check_values("actions", actions)
        return actions

    def _check_values(self, name: str, encoded: CandidateSet | EncodedActions) -> None:
        own = self.extractor
        if encoded.extractor is not own and encoded.extractor.values_digest != own.values_digest:
            raise ValueError(f"`{name}` was made for a checkpoint with other values: make another.")

    def tells(self, days: float) -> bool:
        """Whether there are forecasts of so many days."""
        forecasts = self.model.base_model.customer_forecasts
        return forecasts.forecaster is not None and forecasts.longest >= days

    @cached_property
    def tells_who_comes(self) -> bool:
        """Whether forecasts say who comes within `HORIZON_DAYS`."""
        return self.tells(HORIZON_DAYS)

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

    def _readable(self, rows: Rows) -> Customers:
        """Customers with the events that the model reads."""
        customers = Customers.of(rows)
        features = self.model.config.input_features or ()
        read = [name for name in features if f"feature_{name}" in customers.columns]
        return customers.readable(read) if read else customers

    def _as_of_days(self, rows: Rows, as_of: float | None) -> Tensor:
        """The time of the answers about each customer, in days since 1970-01-01, `(B,)`."""
        customers = self._readable(rows)
        seconds = np.full(len(customers), 0.0 if as_of is None else as_of)
        if as_of is None:
            np.maximum.at(seconds, customers.row, customers.column("times"))
        return torch.from_numpy(seconds / SECONDS_PER_DAY)

    def inputs(self, rows: Rows, as_of: float | NDArray | None = None) -> Columns:
        """The model inputs of customers at one time, or each at its own."""
        config, customers = self.model.config, self._readable(rows)
        times = None if as_of is None else np.broadcast_to(as_of, len(customers))
        mask_next = config.augmentation == "masked_lm"
        inputs = dict(self.extractor.pad(customers, mask_next=mask_next, as_of=times))
        if self.head == PREDICTING:
            given = customers.columns.get(LABEL_COLUMNS) or [None] * len(customers)
            inputs[LABEL_COLUMNS] = torch.from_numpy(
                np.array([_encode(config.label_columns, each or {}) for each in given])
            )
        return inputs

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor], model: Callable | None = None, **options: object) -> Any:
        """The outputs of the model, of its base or of a method, for model inputs, with further options."""
        device = self.model.device
        inputs = {name: value.to(device) for name, value in inputs.items()}
        return (model or self.model)(**inputs, **options)

    @torch.inference_mode()
    def ask(self, rows: Rows, questions: Questions | CheckedQuestions) -> Columns:
        """Answers questions about customers.

        Args:
            rows ([`Customers`], or a sequence of rows): Their histories.
            questions ([`Questions`]): What is asked. `check` makes those that are asked of several batches.

        Returns:
            `dict[str, torch.Tensor]`: by task, best first, `TASK` with ids of labels as [`ChosenLabels`] has them,
            `TASK_scores` and, where the checkpoint has them, `TASK_chances`, each `(B, k)`; `embedding` `(B, S)`;
            forecasts by name, each `(B,)`; of a label by class its probabilities, or by name the number, each `(B,)`;
            of offers by outcome the probabilities `(B, K)`. A chance within 30 days is that of a customer who comes,
            times the forecast probability of a visit in 30 days, if there are forecasts.

        A customer for whom no candidate is left has none, and a warning says so.

        Raises:
            ValueError: As `check` does.
        """
        asked = questions if isinstance(questions, CheckedQuestions) else self.check(questions)
        customers = Customers.of(rows)
        if asked.label:
            inputs = self.inputs(self._read_before(customers, asked.as_of), asked.as_of)
            _warn_of_empty(inputs["visit_ids"].amax(1) == 0, asked.as_of)
            return _finish(self.model.predictions(self.run(inputs).logits))
        if asked.actions is not None:
            return _finish(self._score_offers(customers, asked.actions, asked.as_of))
        return _finish(self._rank_and_forecast(customers, asked))

    def _rank_and_forecast(self, customers: Customers, asked: CheckedQuestions) -> Columns:
        """Ranked labels, embeddings and forecasts."""
        tasks, told = asked.tasks, self.model.base_model.select_forecasts(asked.days)
        may_stay_away = bool(tasks) and asked.horizon_days is not None and self.tells_who_comes
        own_days = told.days if asked.discount_rate is None else told.steps()
        told_days = own_days * asked.forecasts + [HORIZON_DAYS] * may_stay_away
        options: dict[str, object] = {"horizon_days": asked.horizon_days, "tasks": tasks} if tasks else {}
        options |= {"forecast_days": told_days} if told_days else {}
        parts = [EMBEDDING] * asked.embedding + ["forecasts"] * bool(told_days)
        features = self.find_features(tasks, asked.horizon_days, parts) if tasks else None
        outputs: Any
        if features is not None:
            outputs = self._count(customers, asked)
        else:
            inputs = self.inputs(customers, asked.as_of)
            if told_days and self.model.config.calendar:
                inputs["as_of_days"] = self._as_of_days(customers, asked.as_of)
                options["known"] = asked.known
            _warn_of_empty(inputs["visit_ids"].amax(1) == 0, asked.as_of)
            outputs = self.run(inputs, self.model if tasks else self.model.base_model, parts=parts, **options)
        columns: Columns = {EMBEDDING: outputs.pooler_output} if asked.embedding else {}
        columns |= {name: outputs.forecasts[name] for name in told.names()} if asked.forecasts else {}
        if asked.discount_rate is not None:
            columns |= told.discount(outputs.forecasts, asked.discount_rate)
        chosen = {task: self._choose(customers, asked, task, outputs.logits[task]) for task in tasks}
        log_p = {task: best.log_p for task, best in chosen.items()}
        chances = self.model.chances(log_p, asked.horizon_days) if tasks else {}
        for task, best in chosen.items():
            columns |= {task: best.labels, task + SCORES: best.scores}
            if task in chances:
                comes = outputs.forecasts[f"{CHANCE}_{HORIZON_DAYS:g}d"][:, None] if may_stay_away else 1
                columns[task + CHANCES] = chances[task] * comes  # (B, k)
        return columns

    def _count(self, customers: Customers, asked: CheckedQuestions) -> MCMRecommendationOutput:
        """What the model's `forward` gives of tasks that are scored from counts alone, without what only others read:
        inputs of all features, padding, and their checks."""
        model, config, sizes = self.model, self.model.config, self.extractor.layout.sizes
        names = [f"feature_{name}" for name in asked.tasks]
        kind = "times" if config.kind_feature is None else f"feature_{config.kind_feature}"
        as_of = None if asked.as_of is None else np.broadcast_to(asked.as_of, len(customers))
        batch, values = select_read(customers, [*names, kind, "visits"], self.extractor.layout, as_of)
        _warn_of_empty(batch.lengths == 0, asked.as_of)
        ids = [check_ids(task, values[name], sizes[task]) for task, name in zip(asked.tasks, names, strict=True)]
        kinds = 0 * values[kind] if config.kind_feature is None else np.maximum(values[kind] - FIRST_LABEL, 0)
        days, ends = measure_days(batch, as_of)
        events = (batch.row, np.stack(ids).astype(np.int64), values["visits"], days, kinds.astype(np.int64), ends)
        device = model.device  # which transformers looks up anew each time
        history = LabelHistory.from_events(*(torch.from_numpy(column).to(device) for column in events))
        question = NEXT_VISIT if asked.horizon_days is None else WITHIN
        places = [config.tasks.index(task) for task in asked.tasks]
        scores = model.scorer.score(places, history, question=question)
        return MCMRecommendationOutput(logits=dict(zip(asked.tasks, scores, strict=True)))

    def _choose(self, customers: Customers, asked: CheckedQuestions, task: str, scores: Tensor) -> ChosenLabels:
        """The best candidates of a task, of scores `(B, V)`."""
        candidates, seen, taken = cast(CandidateSet, asked.candidates), None, None
        if candidates.needs_seen:
            past = customers.column("times") <= (np.inf if asked.as_of is None else asked.as_of)  # (E,)
            known = customers.select(past)
            ends = known.lengths.cumsum()[:-1]
            seen, taken = (np.split(known.column(f"{kind}_{task}"), ends) for kind in ("feature", "task"))
        best = candidates.choose(task, scores, asked.k, seen, customers.columns.get("customer_id"), taken)
        if candidates is not self.all_labels and not bool(best.labels.any(1).all()):
            logger.warning_once(f"Some customers have no candidate of {task!r} left: their lists are empty.")
        return best

    def _score_offers(self, customers: Customers, actions: EncodedActions, as_of: float | None) -> Columns:
        """Probabilities `(B, K)` of each outcome of offers, by its name."""
        times = None if as_of is None else [as_of] * len(customers)
        offered = np.tile(actions.offered, (len(customers), 1))
        inputs = actions.batch(self._read_before(customers, as_of), offered, times)
        chances = self.run(inputs).logits.float().sigmoid().unbind(-1)
        return dict(zip(self.model.config.action_outcomes, chances, strict=True))

    def _read_before(self, customers: Customers, as_of: float | None) -> Customers:
        """The customers without events at or after a time; `is_past` warns of later ones."""
        if as_of is None:
            return customers
        times = [as_of] * len(customers)
        is_past(customers, times)
        return customers.before(times, self.extractor.layout)


def describe_labels(columns: Columns, asked: CheckedQuestions, row: int = 0) -> dict[str, list[RankedLabel]]:
    """A customer's labels of each task, of columns of [`Predictor.ask`], best first: `{"label": value, "score":
    probability among the candidates, "chance": chance that the label comes}`; without the chance where the model has
    none. A task without a candidate has an empty list."""
    lists: dict[str, list[RankedLabel]] = {}
    for task in asked.tasks:
        values = cast(CandidateSet, asked.candidates).decode(
            task, [label for label in columns[task][row].tolist() if label]
        )
        scores = columns[task + SCORES][row].tolist()
        lists[task] = [{"label": value, "score": score} for value, score in zip(values, scores, strict=False)]
        if task + CHANCES in columns:
            for entry, chance in zip(lists[task], columns[task + CHANCES][row].tolist(), strict=False):
                entry["chance"] = chance
    return lists


def describe_offers(columns: Columns, asked: CheckedQuestions, row: int = 0) -> list[dict[str, str | float]]:
    """A customer's offers, of columns of [`Predictor.ask`]: a dict of `action_id` and the probability of
    each outcome, in the order of the actions."""
    chances = zip(*(values[row].tolist() for values in columns.values()), strict=True)
    return [
        {"action_id": name} | dict(zip(columns, outcomes, strict=True))
        for name, outcomes in zip(cast(EncodedActions, asked.actions).action_ids, chances, strict=True)
    ]


def describe_numbers(columns: Columns, row: int = 0) -> dict[str, float]:
    """A customer's forecasts, or what a label is predicted to be, by name, of columns of [`Predictor.ask`]."""
    return {name: values[row].item() for name, values in columns.items()}


def _warn_of_empty(is_empty: Tensor | NDArray, as_of: float | None) -> None:
    if as_of is not None and bool(is_empty.any()):
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
            if "" not in means and text not in means and name in given:
                logger.warning_once(
                    f"`{LABEL_COLUMNS}`: column {name!r} has {text!r}, which is rare or unseen in training, and is "
                    f"read as none of {', '.join(map(repr, means))}."
                )
            for value, mean in means.items():
                number = float(text == value) if value else to_number(given.get(name))
                numbers.append(number - mean if name in given else 0.0)
    return to_values(np.array(numbers))


def _finish(columns: Columns) -> Columns:
    return {name: (value.float() if value.is_floating_point() else value).cpu() for name, value in columns.items()}
