# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""One call on a data frame: a model of a shop's customers in a notebook.

    model = CustomerModel.fit(events)
    print(model.reader)                       # how the columns were read
    model.recommend(customers=["7"], k=10)
    model.table(where="visit_probability_30d < .3 and amount_90d > 100", since_days=7)
    model.save("my-shop")                     # a checkpoint that from_pretrained loads

A thin face over schema, preparation, training and the [`Predictor`]; each of them has more options.
"""

import copy
import re
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import HfArgumentParser
from transformers.utils import logging

from .data import NO_CUTOFFS, EventSchema, PreparedData, read_known, read_schema
from .data.collator import batches_by_length
from .data.dataset import END
from .data.guess_times import warn_of_late_event
from .data.guessing import READER_FILE, FrameReader
from .events_mcm import EPOCH, SECONDS_PER_DAY, IntArray, Row, Time, check_columns, naming, to_ids, to_iso, to_text
from .feature_extraction_mcm import MCMFeatureExtractor
from .files_mcm import read_json, write_json
from .frames import read_frame, read_reader, select_rows
from .inputs_mcm import Customers
from .live.explanations import Explanation, explain
from .live.similar import similar, together
from .modeling_mcm import MCMPreTrainedModel
from .predictor_mcm import (
    EMBEDDING,
    LABEL_COLUMNS,
    PREDICTED,
    PREDICTING,
    RANKING,
    CheckedQuestions,
    Columns,
    Predictor,
    Questions,
    describe_labels,
)

if TYPE_CHECKING:
    from .evaluation.uplift import Uplift
    from .training.counting import Counts

logger = logging.get_logger(__name__)
EVENTS_FILE = "events.parquet"  # in the folder of `fit`
AT_ONCE = 64  # customers
KEPT = 8  # times of the past whose counts stay in memory
Values = Mapping[str, Any]  # of further columns of a table of labels, by name


class CustomerModel:
    """A trained model with the events of the customers that it is asked about.

    Args:
        model ([`MCMForMultiTaskRecommendation`] or [`MCMForCustomerPrediction`]): The model.
        feature_extractor ([`MCMFeatureExtractor`]): Its feature extractor.
        events: The customers' events, as `fit` takes them.
        reader ([`FrameReader`], *optional*): How columns are read before. Default: they are as the schema says.

    Attributes:
        as_of (`datetime`, *optional*): Time of the latest of these events, from which answers count unless another
            `as_of` is given: a customer who has been away until then has been away. None in a log without times.
        reader ([`FrameReader`], *optional*): What `fit` guessed: printed, it is five lines.
    """

    def __init__(
        self,
        model: MCMPreTrainedModel,
        feature_extractor: MCMFeatureExtractor,
        events: object,
        reader: FrameReader | None = None,
    ):
        self.model, self.feature_extractor, self.reader = model.eval(), feature_extractor, reader
        self._predictor = self._ranker = Predictor(self.model, feature_extractor)
        self._yardstick: list | None = None  # weights of `fit_yardstick`
        self._past: dict[tuple, CustomerModel] = {}  # of times of the past
        feature_extractor.check_fits(model)
        log, schema = read_frame(events, reader.schema if reader else None), feature_extractor.schema
        log = reader.read(log) if reader else log
        check_columns(list(log), schema.event_columns, "The events have", "Give the columns that `fit` was given.")
        self._events = log[[name for name in log if name in schema.event_columns]]
        with naming("The events"):
            customers = Customers.encode(feature_extractor, self._events)
        self._customers = replace(customers, read=None)  # nothing is added, so what was read need not stay
        self._places = {name: place for place, name in enumerate(self.customers)}
        self.as_of = None
        if schema.time is not None:
            times, ids = self._customers.column("times"), np.array(self.customers, object)
            warn_of_late_event(ids[self._customers.row].tolist(), times)
            self.as_of = EPOCH + timedelta(seconds=int(times.max()))  # on the log's clock

    @classmethod
    def fit(
        cls,
        events: object,
        schema: EventSchema | Mapping | None = None,
        encoder: bool = False,
        folder: str | Path | None = None,
        seed: int = 42,
        learn: bool = True,
        known: object = None,
        **training: object,
    ) -> "CustomerModel":
        """Prepares a log and trains a model on it.

        Args:
            events: The log, one row an event: a data frame of pandas or polars, an Arrow table, or anything else with
                the Arrow interface; a Parquet or CSV file, a folder of them, or a list of any of these.
            schema (`EventSchema` or `Mapping`, *optional*): What the columns mean, or some keys of it. What is missing
                is guessed, and the log shows it.
            encoder (`bool`): Whether to train the encoder too, which takes longer: docs/how_it_works.md.
            folder (`str`, *optional*): New folder for the events as they were read, the prepared data and the run,
                which `mcm app` shows. Default: a temporary one.
            seed (`int`): Seed of the training.
            learn (`bool`): With False nothing is fitted to the log: it is counted, and its counts are scored by the
                network that ships with the package, in seconds.
            known (*optional*): What is known of days beforehand, also of days to come: campaigns, prices, closed days.
                Forecasts learn its effects. A table as [`~data.read_known`] reads it.
            training: options of `PretrainingArguments`, such as `num_train_epochs=3`.

        Raises:
            ValueError: If the schema can't be guessed, or the log is too small. The message says what to give.
            FileExistsError: If the folder holds something already.
        """
        from .preparation import prepare  # the extra `data`

        table = read_frame(events, schema)
        if folder is not None and Path(folder).exists() and any(Path(folder).iterdir()):
            raise FileExistsError(
                f"{folder} holds files already: give another folder, or read its model, as in "
                f"CustomerModel.load({str(Path(folder, 'run'))!r}, events)."
            )
        if isinstance(schema, EventSchema):
            reader = FrameReader(schema)
        else:
            reader = FrameReader.guess(table, schema)
            if learn and reader.schema.cutoffs == NO_CUTOFFS:
                raise ValueError(
                    "The log is too short to learn from: no customer has events at three times, or all events are at "
                    "one or two. Give a longer log, or learn=False, which counts it."
                )
            logger.warning(f"{reader}\nTo change it, give keys of the schema, as in schema={{'time': 'COLUMN'}}.")
        if encoder and not reader.schema.has_labels:
            raise ValueError("The log has no labels, such as items, that an encoder could learn: leave `encoder` out.")
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(folder or temporary)
            table = reader.read(table)
            prepare(table, reader.schema, place / "data")
            given = {"seed": seed, "report_to": "none"} | ({} if learn else {"network": "shipped"})
            _pretrain(place, encoder, given | {"known": read_known(known)} | training)
            if folder:
                table.to_parquet(place / EVENTS_FILE, index=False)
            write_json(place / "run" / READER_FILE, reader.to_dict())
            return cls.load(place / "run", table)

    @classmethod
    def load(cls, folder: str | Path, events: object) -> "CustomerModel":
        """Loads what `save`, `finetune`, `mcm pretrain` or `mcm finetune --labels` wrote, for the events of some
        customers."""
        from .training.checkpoints import find_head, open_checkpoint
        from .training.resuming import FINE_TUNING

        model = cls(*open_checkpoint(find_head(str(folder)), str(folder)), events, read_reader(folder))
        if (record := Path(folder, FINE_TUNING)).is_file():
            model._yardstick = read_json(record).get("yardstick_weights")
        return model

    def save(self, folder: str | Path) -> None:
        """Saves model and feature extractor, without the events. `from_pretrained` and `load` read the folder. Raises
        `FileExistsError` if it is a file."""
        from .training.checkpoints import save_checkpoint

        if Path(folder).is_file():
            raise FileExistsError(f"{folder} is a file: give the name of a folder.")
        save_checkpoint(folder, self.model, self.feature_extractor)
        if self.reader is not None:
            write_json(Path(folder, READER_FILE), self.reader.to_dict())

    def refresh(self, events: object, known: object = None) -> "CustomerModel":
        """A model that knows new events, too, given as in `fit`: what it counts goes to their end, their customers and
        labels are known, and what it has learned stays. `known` are more rows of that of `fit`. Raises `ValueError` if
        there are no events."""
        with tempfile.TemporaryDirectory() as folder:
            counts, new = self._add(events, folder)
            model, extractor = counts.give(self.model, self.feature_extractor, state=False, known=read_known(known))
        result = CustomerModel(model, extractor, pd.concat([self._events, new], ignore_index=True), self.reader)
        result._yardstick = self._yardstick
        return result

    def watch(self, events: object) -> pd.DataFrame:
        """Compares new days with those before and with what the model said of them, see [`~past.watch`]: a row for
        each day and check, and whether it is an alarm. `events` are of whole days, given as in `fit`."""
        from .past import watch

        if (since := self._seconds(None)) is None:
            raise ValueError("The log has no times, so there is no day to watch.")
        with tempfile.TemporaryDirectory() as folder:
            return watch(self.model, self.feature_extractor, self._add(events, folder)[0].data, int(since))

    def at(self, as_of: Time) -> "CustomerModel":
        """The model at a time of the past: the same weights, with the counts of the events until then, which are all
        that it knows. What is asked about a time before the log's end, as in `recommend(as_of=)`, is asked of it.

        Raises:
            ValueError: If the log has no times, or the events are not those of the model's counts.
        """
        if (seconds := self._seconds(as_of)) is None:
            raise ValueError("The log has no times, so nothing was known at one.")
        if not self._is_counted:
            raise ValueError(
                f"These are not the events that the model counts ({self.model.config.counted}): give those that `fit` "
                "had, or ask at the log's end."
            )
        return self._at(seconds, self._predictor, state=self._predictor.head == RANKING)

    def _then(self, as_of: Time, questions: Questions) -> "CustomerModel":
        """Who answers questions at a time: this model, or that of a time of the past, where the counts hold later
        events. A head reads none of them."""
        predictor, seconds = self._predictor_of(questions), self._seconds(as_of)
        is_of_head = questions.label or questions.offers is not None or questions.later_counts
        if seconds is None or is_of_head or not predictor.knows_later(seconds) or not self._is_counted:
            return self
        shop_alone = questions.tasks == () and not questions.embedding
        return self._at(seconds, predictor, questions.embedding and predictor.head == RANKING, shop_alone)

    def _at(self, seconds: float, predictor: Predictor, state: bool, shop_alone: bool = False) -> "CustomerModel":
        """The model at a time, with the counts that [`~past.Past`] makes."""
        from .past import Past

        if not (self._first_times <= seconds).any():
            raise ValueError(f"No customer has an event until {to_iso(seconds)}: give a later `as_of`.")
        key = int(seconds), id(predictor), state, shop_alone
        if key not in self._past:
            then = Past(predictor.model, predictor.extractor, self._log).at(int(seconds), state, shop_alone)
            rows = self._customers.before([seconds + 1e-3] * len(self._customers), predictor.extractor.layout)
            result = copy.copy(self)
            result.model, result.feature_extractor, result._past = then.model, then.extractor, {}
            result._predictor = result._ranker = then
            result._first_times, result.as_of = self._first_times, EPOCH + timedelta(seconds=seconds)
            result._customers = rows.known(then.extractor.layout.sizes)
            self._past = {**dict([*self._past.items()][-KEPT:]), key: result}
        return self._past[key]

    @cached_property
    def _log(self) -> PreparedData:
        """The events as a prepared data set of this checkpoint, in a folder that goes with it."""
        from .preparation import prepare  # the extra `data`

        schema = self.reader.schema if self.reader else read_schema(self.feature_extractor)
        nothing = dict.fromkeys(schema.profile_columns) | {schema.customer: self.customers}  # as in `_row`
        profile = pd.DataFrame(nothing) if schema.profile else None
        folder = tempfile.TemporaryDirectory()
        prepare(self._events, schema, folder.name, profile, self.feature_extractor, overwrite=True)
        data = PreparedData(folder.name)
        weakref.finalize(data, folder.cleanup)
        return data

    @cached_property
    def _is_counted(self) -> bool:
        """Whether the events are those of the model's counts."""
        counted, times = self.model.config.counted, self._customers.column("times")
        is_same = self.model.config.counted_until == times.max() + 1
        return is_same and counted.get("customers") == len(self.customers)

    def _add(self, events: object, folder: str) -> tuple["Counts", pd.DataFrame]:
        """The counts of the log with new events, which is written into a folder, and these as they were read."""
        from .training.counting import Counts

        new = read_frame(events, self.reader.schema if self.reader else None)
        new = self.reader.read(new) if self.reader else new
        return Counts.of(self._log, END).add(new, Path(folder, "data")), new

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self.customers):,} customers\n{self.model.describe()}"

    def __sklearn_clone__(self) -> "CustomerModel":  # a parameter of estimators, and not to be copied
        return self

    @property
    def customers(self) -> list[str]:
        """`list[str]`: ids of the customers, as text."""
        return self._customers.columns["customer_id"]

    # ------------------------------------------------------------------------------------------------------- what next

    def recommend(
        self,
        customers: Iterable | None = None,
        k: int = 10,
        tasks: Sequence[str] | None = None,
        candidates: object = None,
        exclude: object = None,
        per_group: tuple[str, int] | None = None,
        horizon_days: float | None = None,
        as_of: Time = None,
    ) -> pd.DataFrame:
        """The labels of each task with the highest scores, one row each: customer, task, label, score, chance. A
        customer for whom no candidate is left has no row, and a warning says so.

        Args:
            customers (`Iterable`, *optional*): Ids of customers. Default: all.
            k (`int`): Number of labels of each task.
            tasks (`Sequence[str]`, *optional*): Names of the tasks. Default: all.
            candidates, exclude, per_group, horizon_days, as_of: as in [`PreferenceScoresPipeline`].
        """
        self._check_labels()
        questions = Questions(None, tasks, k, candidates, exclude, per_group, horizon_days)
        ids, columns, asked = self._ask(customers, as_of, questions)
        rows = [
            {"customer": customer, "task": name, **label}
            for index, customer in enumerate(ids)
            for name, labels in describe_labels(columns, asked, index).items()
            for label in labels
        ]
        return pd.DataFrame(rows, columns=None if rows else ["customer", "task", "label", "score"])

    def similar(self, label: object, task: str | None = None, k: int = 10) -> pd.DataFrame:
        """The labels that are most alike, best first, as [`~live.similar.similar`] finds them: label and score.
        The default task is the first one that knows the label."""
        return pd.DataFrame(similar(self._ranker.model, self.feature_extractor, self._task_of(label, task), label, k))

    def together(self, labels: Sequence, task: str | None = None, k: int = 10) -> pd.DataFrame:
        """The labels that go with some labels, such as those of a basket: label and score, as `similar`."""
        name = self._task_of(labels[0], task) if isinstance(labels, list | tuple) and labels else task
        return pd.DataFrame(together(self._ranker.model, self.feature_extractor, name or "", labels, k))

    def explain(
        self, customer: object, label: object = None, task: str | None = None, as_of: Time = None
    ) -> Explanation:
        """Explains the score of a label for a customer; see [`explain`]. The default task is the first
        one that knows the label."""
        name, seconds = self._task_of(label, task), self._seconds(as_of)
        then = self._then(as_of, Questions(tasks=[name]))
        return explain(then._ranker.model, then.feature_extractor, then._row(customer), name, label, seconds)

    # --------------------------------------------------------------------------------------------------- who they are

    def embed(self, customers: Iterable | None = None, as_of: Time = None) -> pd.DataFrame:
        """Customer embeddings, a row each: the index is the customer, the columns are the names of the state's
        numbers. These are standardised logarithms: 0 is usual in the log, and `days_since_last` holds no days."""
        ids, columns, _ = self._ask(customers, as_of, Questions(embedding=True))
        names = getattr(self.model.base_model.state, "names", None)
        return pd.DataFrame(columns[EMBEDDING].numpy(), pd.Index(ids, name="customer"), names)

    def forecast(
        self,
        customers: Iterable | None = None,
        days: Sequence[float] | None = None,
        as_of: Time = None,
        known: object = None,
        discount_rate: float | None = None,
    ) -> pd.DataFrame:
        """Forecasts, a row for each customer, whose columns are those of [`CustomerForecastPipeline`]: the index is
        the customer.

        Args:
            customers (`Iterable`, *optional*): Ids of customers. Default: all.
            days (`Sequence[float]`, *optional*): Horizons, up to twice the training period. Default: those of the
                config.
            known (*optional*): More rows of what `fit` got as `known`, such as those of a campaign to come.
            discount_rate (`float`, *optional*): Of a year. With .1 what comes in a year is worth 1 / 1.1 of what comes
                today, and the columns `NAME_discounted` say what the expected visits, events and amounts are worth.
        """
        questions = Questions(forecasts=True, days=days, known=read_known(known), discount_rate=discount_rate)
        ids, columns, _ = self._ask(customers, as_of, questions)
        return make_table(ids, columns)

    def cohorts(
        self, days: float = 30, weeks: int = 4, as_of: Time = None, known: object = None, discount_rate: float = 0
    ) -> pd.DataFrame:
        """Newcomers by the week of their first visit: a row for each whole week of the log, and for those to come.

        Args:
            days (`float`): From each customer's first visit on: `NAME_30d` is expected of the week's newcomers within
                these days, the first visit included; `NAME` is what came of it so far.
            weeks (`int`): Number of weeks to come. `newcomers` are expected then, 80% of such weeks are from
                `newcomers_low80` to `newcomers_high80`, and each newcomer is worth as much as those of the last 4.
            known, discount_rate (*optional*): as in `forecast`; what comes is worth less than at the first visit.

        Raises:
            ValueError: If the log has less than 4 weeks, `weeks` is no number of weeks, or as in `forecast`.
        """
        from .evaluation.cohorts import forecast_cohorts

        if (then := self._then(as_of, Questions(forecasts=True))) is not self:
            return then.cohorts(days, weeks, None, known, discount_rate)
        asked = self._check(Questions(forecasts=True, days=[days], discount_rate=discount_rate), as_of)
        told, rate = self.model.base_model.select_forecasts([days]), float(asked.discount_rate or 0)
        return forecast_cohorts(
            self._customers, self.feature_extractor, told.quantities, float(asked.as_of or 0), told.days[0], weeks,
            rate,
            partial(self.forecast, as_of=as_of, known=known, discount_rate=rate),
        )  # fmt: skip

    def table(
        self,
        where: str | None = None,
        since_days: float | None = None,
        customers: Iterable | None = None,
        days: Sequence[float] | None = None,
        as_of: Time = None,
        known: object = None,
    ) -> pd.DataFrame:
        """All that is known of each customer: forecasts and, of a model that was fine-tuned to a label, predictions.

        Args:
            where (`str`, *optional*): Conditions on the columns, as `DataFrame.query` reads them, without calls and
                attributes, such as `"visit_probability_30d < .3 and amount_90d > 100"`.
            since_days (`float`, *optional*): What changed in so many days: each column also as `NAME_change`, from a
                table of that time, which reads no later event. Not a number for a customer who was not there yet.
            customers, days, as_of, known: as in `forecast`.
        """
        table = self._describe(customers, days, as_of, known)
        if since_days is not None:
            if (now := self._seconds(as_of)) is None:
                raise ValueError("The log has no times, so nothing says what changed: leave `since_days` out.")
            if not isinstance(since_days, Real) or not 0 < since_days < np.inf:
                raise ValueError(f"`since_days` is {since_days!r}: give a number of days, such as 7.")
            before = now - float(since_days) * SECONDS_PER_DAY
            there = [name for name in table.index if self._first_times[self._places[name]] <= before]
            past = self._describe(there, days, before, known) if there else table.head(0)
            table = table.join((table - past).add_suffix("_change"))
        return table if where is None else select_rows(table, where)

    # ------------------------------------------------------------------------------------------------ labels of others

    def finetune(
        self, labels: object, label: str | None = None, folder: str | Path | None = None, **options: Any
    ) -> "CustomerModel":
        """Fits a head to a label of customers, and returns the model with it, for `predict`, `reasons`, `evaluate` and
        `table`. It takes seconds. `recommend` asks the model without the head, which `save` leaves out.

        Args:
            labels (`pd.DataFrame`): Columns of the customer, named as in the log or `customer`; of the time `as_of`,
                before which events are read (without it: now); and of the label: two classes, several, or a number.
                Further columns are features: numbers, text or booleans.
            label (`str`, *optional*): Column of the label. Default: the one column that is left.
            folder (`str`, *optional*): Folder for the fine-tuned checkpoint. Default: a temporary one.
            options: options of `mcm finetune --labels`, such as `validation_share=0` or `seed=1`.

        Raises:
            ValueError: If the table does not fit the log. The message names the customer, the column or the value.
        """
        from .training.heads.customer import LabelOptions, train_to_labels
        from .training.heads.finetuning import FineTuningOptions

        with tempfile.TemporaryDirectory() as temporary:
            model, file, tuned = (str(Path(temporary, name)) for name in ("model", "labels.parquet", "tuned"))
            table, columns = self._read_labels(labels, label)
            table.to_parquet(file, index=False)
            self.save(model)
            output = str(folder or tuned)
            training = FineTuningOptions(model, str(self._log.folder), output, seed=options.pop("seed", 42))
            train_to_labels(training, LabelOptions(labels=file, **columns, **options))
            if self.reader is not None:
                write_json(Path(output, READER_FILE), self.reader.to_dict())
            result = CustomerModel.load(output, self._events)
            result._ranker = self._ranker  # a head's checkpoint has no scorer
            return result

    def predict(
        self, customers: Iterable | None = None, as_of: Time = None, columns: Mapping[str, Values] | None = None
    ) -> pd.DataFrame:
        """What the model was fine-tuned to, a row for each customer: a column `predicted_CLASS` for the probability of
        each class, or `predicted_LABEL` for the number.

        Args:
            customers (`Iterable`, *optional*): Ids of customers, or a table of customers and times as `finetune` takes
                it, with further columns; rows are then of `as_of` and customer. Default: all.
            columns (`Mapping`, *optional*): By customer, by name, what further columns hold. Default: what they hold
                on average.
        """
        self._predictor.check_head(PREDICTING)
        if isinstance(customers, pd.DataFrame):
            table, names = self._read_labels(customers, "")
            if (unknown := table[names["time_column"]].isna()).any():
                raise ValueError(f"Column {names['time_column']!r} is null in {unknown.sum()} rows: give their times.")
            known = [name for name in table if name in self.model.config.label_columns]
            ids, time = to_ids(table[names["customer_column"]]), names["time_column"]
            turn = table.groupby([ids, time]).cumcount().to_numpy()  # of rows of one customer and time
            groups = table.set_axis(ids).groupby([time, turn])
            parts = {key: self.predict(rows.index, key[0], rows[known].to_dict("index")) for key, rows in groups}
            return pd.concat(parts, names=["as_of", "turn"]).droplevel("turn")

        given = dict(zip(to_ids([*columns]), columns.values(), strict=True)) if columns else {}
        self._find(given)  # raises if there is no such customer
        ids, found, _ = self._ask(customers, as_of, Questions(label=True), given)
        return make_table(ids, found).add_prefix(PREDICTED)

    def uplift(
        self,
        rows: object,
        outcome: str = "outcome",
        offered: str = "offered",
        cost: float = 0.0,
        budget: float | None = None,
        customers: Iterable | None = None,
        as_of: Time = None,
    ) -> "Uplift":
        """What an offer changes, by customers who got it and customers like them who did not, and whom to offer it
        within a budget; see [`~evaluation.uplift.Uplift`]. Needs the extra `gbdt`.

        Args:
            rows (`pd.DataFrame`): Those who were offered and those who were not: columns of the customer and the time
                as in `finetune`, `offered` (true or false) and `outcome` (a number such as what they spent afterwards,
                or 0 and 1). What decided who was offered must be in the log, if it was not a lottery.
            outcome, offered (`str`): Names of these columns.
            cost (`float`): Of one offer, in the unit of the outcome.
            budget (`float`, *optional*): The most that offers may cost together. Default: all that pay.
            customers (`Iterable`, *optional*): Who may be offered now. Default: all.

        Raises:
            ValueError: If a column is missing or wrong, or hardly anybody has others like them who were treated
                differently. The message gives their share.
        """
        from .data.labels import NUMBER, make_labels
        from .evaluation.uplift import estimate_uplift, read_offered

        table, names = self._read_labels(rows, outcome)
        was_offered, zone = read_offered(table, offered), self.feature_extractor.time_zone
        name, customer, time = names.values()
        given = make_labels(table, name, customer, time, NUMBER, zone)
        owners = given.customer_ids.tolist()
        features = self._embed_before(owners, None if self.as_of is None else given.times)
        # As the features, on the scale of today
        ids, columns, _ = self._ask(customers, as_of, Questions(embedding=True, later_counts=True))
        asked = columns[EMBEDDING].numpy()
        result = estimate_uplift(features, was_offered, given.values, owners, asked, cost, budget)
        return result._replace(customers=result.customers.set_index(pd.Index(ids, name="customer")))

    def reasons(
        self,
        customer: object,
        k: int = 10,
        label: str | None = None,
        as_of: Time = None,
        columns: Values | None = None,
    ) -> pd.DataFrame:
        """Why a customer gets a prediction: the largest terms of the label's linear model, as reason and effect on the
        score (of two classes that of the second, in log odds), beside a customer with average numbers.

        Args:
            label (`str`, *optional*): A class. Default: of two the second, of several the likeliest.
            columns (`Mapping`, *optional*): By name, what further columns hold.
        """
        self._predictor.check_head(PREDICTING)
        seconds = self._check(Questions(label=True), as_of).as_of
        row = Customers.of([{**self._row(customer), LABEL_COLUMNS: columns}])
        row = row if seconds is None else row.before([seconds], self.feature_extractor.layout)
        terms, logits = self._predictor.run(self._predictor.inputs(row, seconds), self._predictor.model.terms)
        classes = list(self.model.config.id2label.values())
        if label is not None and label not in classes:
            raise ValueError(f"No class {label!r}: this model predicts {classes}.")
        chosen = classes.index(label) if label is not None else int(logits[0].argmax()) if len(classes) > 2 else -1
        effects = terms[0, :, chosen] - (terms[0, :, 1 - chosen % 2] if len(classes) == 2 else 0)
        # The state's counts are of the past, and forecasts have such names, too
        names = [re.sub(r"^(?=.*_(\d+|inf)d$)", "past_", name) for name in self.model.base_model.state.names]
        for column, values in self.model.config.label_columns.items():
            names += [f"{column}: {value}" if value else column for value in values]
        kinds = ["", "", *self.feature_extractor.vocabularies.get(self.feature_extractor.token_type_feature, [])]
        names += [f"days_since_{kind}" for kind in kinds[: self.model.num_kinds]]
        for task, size in self.model.config.label_sizes.items():
            names += [f"{task}: {text}" for text in self.feature_extractor.decode_labels(task, range(size))]
        order = effects.abs().argsort(descending=True, stable=True)[:k].tolist()
        return pd.DataFrame({"reason": [names[index] for index in order], "effect": effects[order].tolist()})

    def evaluate(self, labels: object = None, label: str | None = None) -> pd.DataFrame:
        """How good the model is, beside counting baselines, on each customer's visits after the test cutoff, which
        training did not read: next-visit NDCG@10 of each task, a row for each method; `attrs["protocol"]` says how
        cases were split, and which labels are ranked. Of a model that was fine-tuned to a label: the metrics of a
        table of labels, as `finetune` takes it, beside those of a linear model of counts (days since the last event
        and the first, events, visits, distinct values, sums) that learned from the same labels, unless `save` wrote
        the model. They are too good of labels that were learned: give others."""
        if self._predictor.head == PREDICTING:
            return self._evaluate_labels(labels, label)
        self._check_labels()
        if self.reader is None or self.reader.schema.cutoffs == NO_CUTOFFS:
            raise ValueError("Nothing says what training did not read: evaluate what `fit` returned.")
        from .evaluation.comparison import compare_with_counting, mean_values
        from .training.counting import Counts

        counts = Counts.of(self._log, "test")
        judged, extractor = counts.give(self.model, self.feature_extractor, state=False)
        results = compare_with_counting(judged, extractor, counts.data, "test")
        table = mean_values(results, "next_visit_ndcg@10").rename_axis("method")
        table.attrs, table.columns.name = results.attrs, f"NDCG@10, {results.attrs['cases']:,} test cases"
        return table

    def _evaluate_labels(self, labels: object, label: str | None) -> pd.DataFrame:
        from .data.labels import CLASSES, NUMBER, LabelledCustomers, make_labels
        from .evaluation.metrics import measure_labels
        from .training.heads.customer import predict, read_inputs

        if labels is None:
            raise ValueError("`labels` is missing: give a table of customer, `as_of` and label.")
        table, columns = self._read_labels(labels, label)
        name, customer, time = columns.values()
        kind = NUMBER if self.model.num_labels == 1 else CLASSES
        given = make_labels(table, name, customer, time, kind, self.feature_extractor.time_zone)
        if given.classes and given.classes != tuple(self.model.config.id2label.values()):
            raise ValueError(f"The labels are {given.classes}, the model's {self.model.config.id2label}: give both.")
        customers = LabelledCustomers(self._log.at(END).rows, given, whole=self.as_of is None)
        inputs, counts = read_inputs(self.model, self.feature_extractor, customers)
        scores = {"MCM": predict(self.model, inputs)}
        if self._yardstick is not None:
            weight, bias = map(torch.tensor, self._yardstick)
            scores["counts"] = counts @ weight.T + bias
        found = {name: measure_labels(each.numpy(), given.values, kind == NUMBER) for name, each in scores.items()}
        return pd.DataFrame.from_dict(found, "index").rename_axis("method")

    # --------------------------------------------------------------------------------------------------------- helpers

    def _check_labels(self) -> None:
        """Raises `ValueError` in a log without labels."""
        if not self.feature_extractor.schema.has_labels:
            raise ValueError("The log has no labels, such as items or categories, so there is nothing to rank.")

    def _task_of(self, label: object, task: str | None) -> str:
        """The task, or the first one that knows a label."""
        self._check_labels()
        vocabularies, tasks = self.feature_extractor.vocabularies, self._ranker.tasks()
        known = (name for name in tasks if label is None or to_text(label) in vocabularies[name])
        if not (found := task or next(known, None)):
            raise ValueError(f"No task of {tasks} has the label {label!r}: give one that the log has.")
        return found

    def _read_labels(self, labels: object, label: str | None) -> tuple[pd.DataFrame, dict]:
        """A table of labels, and what its columns are."""
        table, schema = read_frame(labels), self.feature_extractor.schema
        customer = next((name for name in (schema.customer, "customer", "customer_id") if name in table), "customer")
        time = next((name for name in ("as_of", "time", schema.time) if name in table), None)
        if time is None:
            time = "as_of"
            table = table.assign(as_of=pd.Timestamp(self.as_of or EPOCH) + pd.Timedelta(seconds=1))
        left = [name for name in table if name not in (customer, time)]
        if label is None and len(left) != 1:
            raise ValueError(f"The labels have the columns {left} besides customer and time: name one as `label`.")
        return table, {"label": label or [*left, ""][0], "customer_column": customer, "time_column": time}

    def _embed_before(self, customers: Sequence[str], times: NDArray | None) -> NDArray[np.float32]:
        """Embeddings `(N, S)` of customers, each a second before a time of its own `(N,)`; without times, of whole
        histories."""
        places, last, parts = self._find(customers), None if times is None else np.ceil(times) - 1, []
        batches = batches_by_length(self._customers.lengths[places], AT_ONCE)
        for part in batches:
            batch, as_of = self._customers.take(places[part]), None if last is None else last[part]
            if as_of is not None:
                batch = batch.before(as_of + 1e-3, self.feature_extractor.layout)
            inputs = self._predictor.inputs(batch, as_of)
            parts.append(self._predictor.run(inputs, self.model.base_model, parts=[EMBEDDING]).pooler_output)
        return torch.cat(parts).numpy(force=True)[np.concatenate(batches).argsort()]

    def _find(self, names: Iterable) -> IntArray:
        """Indices of customers by their ids."""
        ids = to_ids([*names])
        if unknown := [name for name in ids if name not in self._places]:
            raise ValueError(f"No customer {unknown[0]!r} among the events; they have {len(self._places)} customers.")
        return np.array([self._places[name] for name in ids], np.int64)

    def _row(self, customer: object) -> Row:
        """A customer's encoded events."""
        return self._customers[self._find([customer])[0]]

    @cached_property
    def _first_times(self) -> IntArray:
        """Time of the first event of each customer, in seconds since 1970-01-01."""
        return self._customers.column("times")[self._customers.starts]

    def _seconds(self, as_of: Time) -> float | None:
        """A time on the clock of rows, as a float: whole numbers are times of the log. By default the last event's."""
        if as_of is None:
            as_of = self.as_of
        elif self.reader and isinstance(as_of, Integral):
            as_of = self.reader.read_time(as_of)
        seconds = None if as_of is None else self.feature_extractor.read_as_of(as_of)
        return None if seconds is None else float(seconds)

    def _check(self, questions: Questions, as_of: Time) -> CheckedQuestions:
        """Questions at a time, by default at the end of the log."""
        seconds, predictor = self._seconds(as_of), self._predictor_of(questions)
        questions = replace(questions, later_counts=questions.later_counts or not self._is_counted)
        if as_of is None and seconds is not None:
            return predictor.check(questions.at_end(seconds))
        return predictor.check(replace(questions, as_of=seconds))

    def _predictor_of(self, questions: Questions) -> Predictor:
        """Who answers: of a model that was fine-tuned here, the one before ranks labels."""
        return self._predictor if questions.tasks == () else self._ranker

    def _describe(
        self, customers: Iterable | None, days: Sequence[float] | None, as_of: Time, known: object
    ) -> pd.DataFrame:
        """Forecasts and, of a model that was fine-tuned to a label, predictions."""
        table = self.forecast(customers, days, as_of, known)
        if self._predictor.head != PREDICTING:
            return table
        return table.join(self.predict(customers, as_of))

    def _ask(
        self, customers: Iterable | None, as_of: Time, questions: Questions, given: Mapping[str, Values] | None = None
    ) -> tuple[list[str], Columns, CheckedQuestions]:
        """The ids of customers, by default of all with an event by then, what the [`Predictor`] says of them, and what
        was asked. `given` are further columns by customer."""
        if isinstance(customers, str) or not isinstance(customers, Iterable | None):
            raise ValueError(f"`customers` is {customers!r}, expected a list of ids: write [{customers!r}].")
        if (then := self._then(as_of, questions)) is not self:
            return then._ask(customers, None, questions, given)
        asked, predictor, parts = self._check(questions, as_of), self._predictor_of(questions), []
        places = np.arange(len(self.customers)) if customers is None else self._find(customers)
        if repeated := len(places) - len(unique := [*dict.fromkeys(places.tolist())]):
            logger.warning(f"`customers` names {repeated} ids again: each customer has one row.")
            places = np.array(unique)
        if not len(places):
            raise ValueError("`customers` is empty: give ids, or leave it out for all customers.")
        if customers is None and asked.as_of is not None:
            places = places[self._first_times[places] <= asked.as_of]
            if not len(places):
                raise ValueError(f"No customer has an event until {as_of}: give a later `as_of`.")
        batches = batches_by_length(self._customers.lengths[places], AT_ONCE)
        for part in batches:
            batch = self._customers.take(places[part])
            if asked.as_of is not None:  # before the predictor, which warns of later events
                batch = batch.before([asked.as_of + 1e-3] * len(part), self.feature_extractor.layout)
            if given:
                batch.columns[LABEL_COLUMNS] = [given.get(name) for name in batch.columns["customer_id"]]
            parts.append(predictor.ask(batch, asked))
        order = np.concatenate(batches).argsort()
        columns = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
        return [self.customers[place] for place in places], columns, asked


def make_table(ids: Sequence[str], columns: Columns) -> pd.DataFrame:
    """A table of named numbers, a row for each customer."""
    values = {name: numbers.double().numpy() for name, numbers in columns.items()}
    return pd.DataFrame(values, pd.Index(ids, name="customer"))


def _pretrain(folder: Path, encoder: bool, values: Mapping[str, object]) -> None:
    """Runs what `mcm pretrain` runs on `folder/data`, into `folder/run`."""
    from .training.options import AUTO, NONE, ModelOptions, PretrainingArguments
    from .training.pretraining import chosen_recipe, pretrain

    kinds: list = [ModelOptions, PretrainingArguments]
    parser = HfArgumentParser(kinds)
    given = {"data": str(folder / "data"), "output_dir": str(folder / "run")} | dict(values)
    given["encoder"] = AUTO if encoder else NONE
    if unknown := sorted(given.keys() - {action.dest for action in parser._actions}):
        raise ValueError(f"Unknown options {unknown}; see `mcm pretrain --help`.")
    (chosen,) = HfArgumentParser(kinds[:1]).parse_dict(given, allow_extra_keys=True)
    recipe = chosen_recipe(chosen, set(values))
    options, training = parser.parse_dict(recipe.training | given)
    pretrain(options, training, recipe)
