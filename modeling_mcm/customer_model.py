# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""One call on a data frame: a model of a shop's customers in a notebook.

    model = CustomerModel.fit(events)
    model.recommend(customers=["7"], k=10)
    model.save("my-shop")                     # a checkpoint that from_pretrained loads

A thin face over schema, preparation, pre-training and pipelines; each of them has more options.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from transformers import pipeline
from transformers.utils import logging

from modeling_mcm.data.guessing import guess_schema
from modeling_mcm.data.schema import EventSchema
from modeling_mcm.events_mcm import check_columns, naming, read_times, read_zone, to_ids, to_text
from modeling_mcm.live import LiveCustomer
from modeling_mcm.live.explanations import Explanation
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.processing_mcm import MCMFeatureExtractor

logger = logging.get_logger(__name__)


class CustomerModel:
    """A trained model with the events of the customers that it is asked about.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): The model.
        feature_extractor ([`MCMFeatureExtractor`]): Its feature extractor.
        events (`pd.DataFrame` or `pa.Table`): The customers' events.

    Attributes:
        as_of (`datetime`, *optional*): Time of the latest of these events, from which answers count unless another
            `as_of` is given: a customer who has been away until then has been away. None in a log without times.
    """

    def __init__(self, model: MCMForMultiTaskRecommendation, feature_extractor: MCMFeatureExtractor, events: Any):
        self.model, self.feature_extractor = model.eval(), feature_extractor
        events, schema = _frame(events), feature_extractor.schema
        customer = schema.customer
        check_columns(list(events), schema.event_columns, "The events have")
        with naming(f"column {customer!r} of the events"):
            ids = np.array(to_ids(events[customer]), object)
        self.as_of = None
        if schema.time is not None:
            with naming(f"column {schema.time!r} of the events"):
                times = read_times(events[schema.time], read_zone(feature_extractor.time_zone))
            self.as_of = datetime.fromtimestamp(int(times.max()), UTC)
        columns = [name for name in events if name in schema.event_columns]
        self._histories: dict[Any, pd.DataFrame] = dict(iter(events[columns].groupby(ids, sort=False)))

    @classmethod
    def fit(
        cls,
        events: Any,
        schema: EventSchema | Mapping[str, Any] | None = None,
        encoder: bool = False,
        folder: str | Path | None = None,
        seed: int = 42,
        **training: Any,
    ) -> "CustomerModel":
        """Prepares a log and trains a model on it.

        Args:
            events (`pd.DataFrame` or `pa.Table`): The log, one row an event.
            schema (`EventSchema` or `Mapping`, *optional*): What the columns mean, or some keys of it. What is missing
                is guessed, and the log shows it.
            encoder (`bool`): Whether to train the encoder too, which takes longer: docs/how_it_works.md.
            folder (`str`, *optional*): New folder for the prepared data and the run. Default: a temporary one.
            seed (`int`): Seed of the training.
            training: options of `PretrainingArguments`, such as `num_train_epochs=3`.

        Raises:
            ValueError: If the schema can't be guessed, or the log is too small. The message says what to give.
            FileExistsError: If the folder holds something already.
        """
        from modeling_mcm.preparation import prepare  # the extra `data`

        table = _frame(events)
        if folder is not None and Path(folder).exists() and any(Path(folder).iterdir()):
            raise FileExistsError(
                f"{folder} holds files already: give another folder, or read its model, as in "
                f"CustomerModel.load({str(Path(folder, 'run'))!r}, events)."
            )
        if not isinstance(schema, EventSchema):
            schema = guess_schema(table, schema)
            logger.warning(
                f"The columns are read so; give keys of it as `schema` to change it.\n{_write_yaml(schema)}"
            )
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(folder or temporary)
            prepare(table, schema, place / "data")
            _pretrain(place, encoder, {"seed": seed, "report_to": "none"} | training)
            if schema.on_null == "drop":
                table = table.dropna(subset=[schema.customer, *([schema.time] if schema.time else [])])
            return cls.load(place / "run", table)

    @classmethod
    def load(cls, folder: str | Path, events: Any) -> "CustomerModel":
        """Loads what `save` or `mcm pretrain` wrote, for the events of some customers."""
        model = MCMForMultiTaskRecommendation.from_pretrained(str(folder))
        return cls(model, MCMFeatureExtractor.from_pretrained(str(folder)), events)

    def save(self, folder: str | Path) -> None:
        """Saves model and feature extractor, without the events. `from_pretrained` and `load` read the folder."""
        self.model.save_pretrained(str(folder))
        self.feature_extractor.save_pretrained(str(folder))

    @property
    def customers(self) -> list[str]:
        """`list[str]`: ids of the customers, as text."""
        return list(self._histories)

    def recommend(self, customers: Iterable[Any] | None = None, k: int = 10, **options: Any) -> pd.DataFrame:
        """The labels of each task with the highest scores, one row each: customer, task, label, score, chance.

        Args:
            customers (`Iterable`, *optional*): Ids of customers. Default: all.
            k (`int`): Number of labels of each task.
            options: other options of [`PreferenceScoresPipeline`], such as `tasks` and `candidates`.
        """
        rows = [
            {"customer": customer, "task": task, **label}
            for customer, found in self._ask("preference-scores", customers, top_k=k, **options)
            for task, labels in found.items()
            for label in labels
        ]
        return pd.DataFrame(rows)

    def embed(self, customers: Iterable[Any] | None = None, **options: Any) -> pd.DataFrame:
        """Customer embeddings, a row each: the index is the customer, the columns are the names of the state's
        numbers. Options are those of [`CustomerEmbeddingPipeline`]."""
        found = dict(self._ask("customer-embedding", customers, **options))
        state = self.model.model.state
        columns = None if state is None else state.names
        return pd.DataFrame(np.stack(list(found.values())), pd.Index(found, name="customer"), columns)

    def forecast(
        self, customers: Iterable[Any] | None = None, days: Sequence[float] | None = None, **options: Any
    ) -> pd.DataFrame:
        """Forecasts, a row for each customer: the index is the customer. Options are those of
        [`CustomerForecastPipeline`].

        Args:
            customers (`Iterable`, *optional*): Ids of customers. Default: all.
            days (`Sequence[float]`, *optional*): Horizons, up to twice the training period. Default: those of the
                config.
        """
        found = dict(self._ask("customer-forecast", customers, days=days, **options))
        return pd.DataFrame.from_dict(found, orient="index").rename_axis("customer")

    def explain(self, customer: Any, label: Any = None, task: str | None = None, as_of: Any = None) -> Explanation:
        """Explains the score of a label for a customer; see [`LiveCustomer.explain`]. The default task is the first
        one that knows the label."""
        live = LiveCustomer(self.model, self.feature_extractor, customer_id=customer)
        live.add(self._history(customer))
        tasks = self.model.config.tasks
        vocabularies = self.feature_extractor.vocabularies
        known = [each for each in tasks if label is None or to_text(label) in vocabularies[each]]
        if task is None and not known:
            raise ValueError(f"No task of {list(tasks)} has the label {label!r}: give one that the log has.")
        return live.explain(task or known[0], label, self.as_of if as_of is None else as_of)

    def _history(self, customer: Any) -> pd.DataFrame:
        """Events of a customer."""
        (name,) = to_ids([customer])
        if name not in self._histories:
            raise ValueError(f"No customer {name!r} among the events; they have {len(self._histories)} customers.")
        return self._histories[name]

    def _ask(self, task: str, customers: Iterable[Any] | None, **options: Any) -> list[tuple[str, Any]]:
        """What a pipeline says of each customer."""
        if isinstance(customers, str) or not isinstance(customers, Iterable | None):
            raise ValueError(f"`customers` is {customers!r}, expected a list of ids: write [{customers!r}].")
        names = self.customers if customers is None else list(dict.fromkeys(to_ids([*customers])))
        if not names:
            raise ValueError("`customers` is empty: give ids, or leave it out for all customers.")
        given = [{"customer_id": name, "events": self._history(name)} for name in names]
        make: Any = pipeline  # its overloads know transformers' own tasks
        model = self.model if task == "preference-scores" else self.model.model
        ask = make(task, model=model, feature_extractor=self.feature_extractor)
        if options.get("as_of") is None:
            options["as_of"] = self.as_of
        return list(zip(names, ask(given, batch_size=64, **options), strict=True))


def _write_yaml(schema: EventSchema) -> str:
    """The schema file of a schema, without what has its default."""
    usual = {each.name: each.default for each in fields(EventSchema)}
    kept = {key: value for key, value in schema.to_dict().items() if value not in (None, [], usual[key])}
    kept["features"] = [
        {key: each[key] for key in ("name", "kind", "column", "factor", "min_count") if each.get(key) not in (None, 1)}
        for each in kept["features"]
    ]
    return yaml.safe_dump(kept, sort_keys=False, default_flow_style=None)


def _frame(events: Any) -> pd.DataFrame:
    """A table as a data frame. Raises `ValueError` if it is none, or has no row."""
    frame = events.to_pandas() if hasattr(events, "to_pandas") else events
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"Found {type(events).__name__}, expected a pandas data frame or an Arrow table of events.")
    if not len(frame):
        raise ValueError("The table of events has no row: give a log of several customers.")
    if twice := sorted({str(name) for name in frame.columns[frame.columns.duplicated()]}):
        raise ValueError(f"Two columns are named {twice[0]!r}: rename or leave out one of them.")
    return frame


def _pretrain(folder: Path, encoder: bool, values: Mapping[str, Any]) -> None:
    """Runs what `mcm pretrain` runs on `folder/data`, into `folder/run`."""
    from modeling_mcm.losses_mcm import Objective
    from modeling_mcm.training.options import AUTO, NONE, ModelOptions, PretrainingArguments
    from modeling_mcm.training.pretraining import chosen_recipe, pretrain

    given: dict[str, Any] = {"data": str(folder / "data"), "output_dir": str(folder / "run")} | dict(values)
    given["encoder"] = AUTO if encoder else NONE

    def make(kind: Any, values: Mapping[str, Any]) -> Any:
        return kind(**{each.name: values[each.name] for each in fields(kind) if each.name in values})

    kinds = (ModelOptions, Objective, PretrainingArguments)
    known = {each.name for kind in kinds for each in fields(kind)}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"Unknown options {unknown}; see `mcm pretrain --help`.")
    recipe = chosen_recipe(make(ModelOptions, given), set(values))
    options, objective, training = (make(kind, recipe.training | given) for kind in kinds)
    pretrain(options, objective, training, recipe)
