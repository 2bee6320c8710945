# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The feature extractor: encodes raw events as the ids that MCM reads, and decodes label ids to values.

`MCMFeatureExtractor` travels with a checkpoint: it knows the columns of the event log, the vocabulary of each
categorical feature and the bin edges of each numeric one, all fitted on the training period by the data preparation.
It gives the ids that preparation gives for the same events.

Shapes: B customers, L rows of the longest history (start row included), J features in the order of `features`, N
numeric features of events.
"""

import copy
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers import BatchFeature, FeatureExtractionMixin
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .checkpoint_mcm import EXTRACTOR_NAME, VOCABULARIES_NAME, CheckpointError, check_same, check_values, values_digest
from .configuration_mcm import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID
from .encoding_mcm import CALENDAR, Encoding
from .events_mcm import IntArray, as_column, is_missing, map_distinct, naming, read_as_of, read_columns, to_text
from .files_mcm import read_json, write_json
from .inputs_mcm import Customers, InputLayout, pad_rows
from .schema_mcm import HISTORY_START, ONE_TOKEN_TYPE, TOKEN_TYPE, FeatureSpec, LogSchema

logger = logging.get_logger(__name__)

SETTINGS = [entry for entry in fields(LogSchema) if entry.name not in ("features", "profile")]
# Settings that may be edited in preprocessor_config.json: ids mean the same whatever they are.
FREE = ("name", "max_events", "min_history", "on_duplicate", "currency")
DECIDING = ["features", *sorted({entry.name for entry in SETTINGS}.difference(FREE))]
MISSING_LABEL, UNKNOWN_LABEL = "[missing]", "[unknown]"


# trf-ignore: TRF057, auto_docstring knows processors but no feature extractors: it would drop the arguments.
class MCMFeatureExtractor(FeatureExtractionMixin):
    """Encodes customers with raw events as model inputs, and decodes label ids to values.

    In every feature, id 0 means missing or padding, id 1 a value that was not seen in training, and ids from 2 on are
    values or bins. The first event of every model input is the start row: token type `history_start` and the
    customer's profile.

    Args:
        features (`list[dict]`): One dict for each feature, in the model's order: `name`, `kind` (`categorical`,
            `numeric`, `hour`, `weekday` or `days_since_visit`), `column` (default: the name), `profile` (whether it
            describes the customer instead of the event). A feature may read a part of its column: with `item` (from 1)
            one of several values, ordered by their ids, of a text with a `separator` or of a list; with `level` and
            `separator` the first levels of a path. Other keys are stored. Default: `token_type` alone.
        vocabularies (`dict[str, list[str]]`): Values of each categorical feature; the first value has id 2.
        known (`dict[str, dict[str, int]]`, *optional*): By cutoff of the log and feature the number of ids that there
            were until then, where later values follow.
        bins (`dict[str, list[float]]`): Strictly increasing inner bin edges of each numeric and days_since_visit
            feature. A value on an edge belongs to the bin above it.
        customer, time, token_type, visit, time_zone, tasks, target_token_types, end_of_visit, max_events, min_history,
            name, order, on_duplicate, amount, currency: as [`LogSchema`] has them. `min_history` is kept for the
            record.

    Raises:
        ValueError: If features, vocabularies, bins and tasks do not fit together, or the time zone does not exist.
    """

    model_input_names = ["input_ids", "attention_mask", "visit_ids", "event_times"]
    # Settings, which are fields of `LogSchema`
    name: str
    customer: str
    time: str | None
    order: str | None
    token_type: str | None
    visit: str | None
    tasks: list[str]
    target_token_types: list[str]
    end_of_visit: str | None
    amount: str | None
    currency: str | None
    time_zone: str
    max_events: int
    min_history: int
    on_duplicate: str

    def __init__(
        self,
        features: Sequence[dict] = ({"name": TOKEN_TYPE},),  # transformers makes one without arguments
        vocabularies: Mapping[str, Sequence[str]] = MappingProxyType({TOKEN_TYPE: (HISTORY_START,)}),
        bins: Mapping[str, Sequence[float]] = MappingProxyType({}),
        known: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
        **kwargs: Any,
    ) -> None:
        own: dict = {"customer": "customer_id", "token_type": TOKEN_TYPE, "tasks": ()}
        own["time"] = None if kwargs.get("order") else "time"
        for entry in SETTINGS:
            setattr(self, entry.name, kwargs.pop(entry.name, own.get(entry.name, entry.default)))
        super().__init__(**kwargs)
        self.features = [dict(feature) for feature in features]
        self.vocabularies = {feature: list(values) for feature, values in vocabularies.items()}
        self.bins = {feature: [float(edge) for edge in edges] for feature, edges in bins.items()}
        self.known = {cutoff: dict(sizes) for cutoff, sizes in known.items()}
        self.tasks, self.target_token_types = list(self.tasks), list(self.target_token_types)

        schema = self.schema
        self._encoding = Encoding(schema, self.vocabularies, self.bins)
        if self.summed_features:
            self.model_input_names = [*type(self).model_input_names, "event_values"]
        fix = f"take preprocessor_config.json and {VOCABULARIES_NAME} from one and the same save"
        schema.check_values(self.vocabularies, self.bins, fix)
        self._layout = self._make_layout()

    @property
    def schema(self) -> LogSchema:
        """What the columns of the log mean."""
        specs: dict[bool, list[FeatureSpec]] = {False: [], True: []}
        for feature in self.features:
            specs[bool(feature.get("profile"))].append(FeatureSpec.from_saved(feature))
        values = {entry.name: getattr(self, entry.name) for entry in SETTINGS}
        values |= {key: tuple(values[key]) for key in ("tasks", "target_token_types")}
        return LogSchema(**values | {"features": tuple(specs[False]), "profile": tuple(specs[True])})

    @classmethod
    def from_schema(
        cls,
        schema: LogSchema,
        vocabularies: Mapping[str, Sequence[str]],
        bins: Mapping[str, Sequence[float]],
        known: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
    ) -> "MCMFeatureExtractor":
        """Makes the feature extractor that reads a log by a schema."""
        values = {entry.name: getattr(schema, entry.name) for entry in SETTINGS}
        features = [spec.to_saved(spec in schema.profile) for spec in (*schema.features, *schema.profile)]
        return cls(**values | {"features": features, "vocabularies": vocabularies, "bins": bins, "known": known})

    def until(self, sizes: Mapping[str, int]) -> "MCMFeatureExtractor":
        """The feature extractor as it was when it had so many ids, by feature; others have all."""
        ends = {name: sizes.get(name, FIRST_VALUE_ID + len(self.vocabularies[name])) for name in self.vocabularies}
        return self.with_values({name: self.vocabularies[name][: end - FIRST_VALUE_ID] for name, end in ends.items()})

    def with_values(
        self, vocabularies: Mapping[str, Sequence[str]], known: Mapping[str, Mapping[str, int]] = MappingProxyType({})
    ) -> "MCMFeatureExtractor":
        """The same feature extractor with other vocabularies."""
        settings = {name: getattr(self, name) for name in ("features", "bins", *(entry.name for entry in SETTINGS))}
        return type(self)(**settings | {"vocabularies": vocabularies, "known": known})

    # ---------------------------------------------------------------------------------------------- features, labels

    @property
    def feature_names(self) -> list[str]:
        """Names of the features, in the order of J."""
        return [feature["name"] for feature in self.features]

    @property
    def summed_features(self) -> list[str]:
        """Names of the event features whose values are model inputs beside their bins, in the order of N: the amount,
        if there is one."""
        return [self.amount] if self.amount else []

    @property
    def vocabulary_sizes(self) -> list[int]:
        """Number of ids of each feature, the missing and the unknown id included, in the order of J."""
        sizes = {feature: len(values) for feature, values in self.vocabularies.items()}
        sizes |= {feature: len(edges) + 1 for feature, edges in self.bins.items()}
        kinds = self._encoding.specs
        return [
            FIRST_VALUE_ID + (sizes[name] if name in sizes else CALENDAR[kinds[name].kind][-1])
            for name in self.feature_names
        ]

    @property
    def values_digest(self) -> str:
        """Digest of vocabularies and bins, which define the meaning of the ids; see `MCMConfig.values_digest`."""
        return values_digest({"vocabularies": self.vocabularies, "bins": self.bins})

    @property
    def token_type_feature(self) -> str:
        """Name of the feature that holds the token type."""
        return self._encoding.token_feature

    def check_fits(self, model: Any) -> None:
        """Checks that ids mean to a model what they mean here. Raises `CheckpointError`, a `ValueError`, if features,
        their sizes, tasks or values differ."""
        config, source = model.config, model.name_or_path or "The model"
        sizes = dict(zip(self.feature_names, self.vocabulary_sizes, strict=True))
        known = dict(zip(config.features, config.vocabulary_sizes, strict=True))
        if list(sizes.items()) != list(known.items()):
            raise CheckpointError(
                f"The feature extractor has the features and sizes {sizes}, and {source} was trained with {known}: "
                "take both from one and the same save."
            )
        if absent := [task for task in config.tasks if task not in self.tasks]:
            raise CheckpointError(
                f"The feature extractor has the tasks {self.tasks}, and {source} was trained with {absent} too: take "
                "both from one and the same save."
            )
        check_values(config.values_digest, self.values_digest, source)

    def label_ids(self, task: str, values: Sequence) -> IntArray:
        """Encodes raw values of a task's feature as label ids, int64 of shape `(len(values),)`: 0 for a missing value,
        1 for one not seen in training. Raises `ValueError` if there is no such task, or a value is of another type."""
        ids = self._encoding.ids[self._check_task(task)]
        with naming(f"Task {task!r}"):
            return map_distinct(as_column(values), lambda value: ids.get(to_text(value), UNKNOWN_ID), np.int64)

    def decode_labels(self, task: str, ids: ArrayLike) -> list[str]:
        """Decodes a flat sequence or tensor of label ids to values: "[missing]" for id 0, "[unknown]" for id 1. Raises
        `ValueError` if there is no such task or no such id."""
        labels = [MISSING_LABEL, UNKNOWN_LABEL, *self.vocabularies[self._check_task(task)]]
        flat = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids).reshape(-1).tolist()
        for label in flat:
            if not 0 <= label < len(labels):
                raise ValueError(f"Task {task!r} has no label id {label}; ids run from 0 to {len(labels) - 1}.")
        return [labels[label] for label in flat]

    def own_ids(self, feature: str) -> list[int]:
        """Ids of a categorical feature that are no values of the log: missing, unknown, MCM's own token types."""
        own = self._encoding.schema.reserved_token_types if feature == self.token_type_feature else []
        return [MISSING_ID, UNKNOWN_ID, *(self._encoding.ids[feature][name] for name in own)]

    def _check_task(self, task: str) -> str:
        if task not in self.tasks:
            raise ValueError(f"Found task {task!r}, expected one of {', '.join(self.tasks)}.")
        return task

    # -------------------------------------------------------------------------------------- raw events of one customer

    def encode(self, customer: Mapping, where: str = "Customer without id") -> dict:
        """Encodes the whole history of one customer as a row; `pad` adds the start row.

        Args:
            customer (`dict`): `events`, a list of dicts, a DataFrame or a dict of columns, in any order (the order
                matters only with `order="rows"`); optionally `profile`, a dict, `customer_id`, and `label_columns`, a
                dict of further columns that a label was learned with. An event's keys are columns of the log; an
                absent key, None or NaN is a missing value. Unknown columns of a DataFrame are ignored with a warning;
                elsewhere they are an error.

        Returns:
            `dict`: a row as in a prepared data set, with n events, oldest first, end-of-visit events included:
            `customer_id`, `label_columns`; `times` int64 `(n,)`, seconds since 1970-01-01; `visits` int32 `(n,)`,
            counted from 0; `feature_<name>` and `task_<name>` int32 `(n,)`, ids; `value_<name>` float32 `(n,)` by
            numeric feature, 0 where it has no finite value; `profile_<name>` int32 scalars.

        Raises:
            ValueError: If the customer can't be encoded; the message names the customer and the column.
        """
        if not isinstance(customer, Mapping):
            raise ValueError(f"{where}: found {type(customer).__name__}, expected a dict with `events`.")
        if not is_missing(customer.get("customer_id")):
            where = f"Customer {customer['customer_id']!r}"
        with naming(where):
            return Customers.encode_one(self, customer)[0]

    def encode_actions(self, actions: object) -> IntArray:
        """Encodes actions, such as offers: future events with the same features, of shape `(actions, J)`. Raises
        `ValueError` if a column is unknown or a value can't be encoded; the message names the column."""
        encoding, schema, token = self._encoding, self._encoding.schema, self.token_type_feature
        left_out = (schema.customer, schema.order_column, schema.visit_column)
        columns, count = read_columns(actions, [name for name in schema.event_columns if name not in left_out])
        given = [spec for spec in schema.features if spec.column in columns]
        values = encoding.reader.read_features(given, columns)
        ids = dict.fromkeys(self.feature_names, np.full(count, MISSING_ID))
        ids |= encoding.encode_features([spec.name for spec in given], values)
        if schema.token_type is None:
            ids[token] = np.full(count, encoding.ids[token][ONE_TOKEN_TYPE])
        if np.isin(ids[token], self.own_ids(token)[FIRST_VALUE_ID:]).any():
            own = schema.reserved_token_types
            raise ValueError(f"column {self.token_type!r}: found one of {own}, which MCM adds itself; no offer is one")
        return np.stack([*ids.values()], axis=1).astype(np.int64)

    # --------------------------------------------------------------------------------------------- rows -> model input

    def readable(self, row: Mapping, features: Sequence[str] | None) -> dict:
        """Removes the events of a row that have no value in any of `features`, which a model could not read."""
        names = [feature for feature in features or () if feature in self._encoding.event_features]
        return Customers.of([row]).readable(names)[0] if names else dict(row)

    def pad(
        self,
        rows: Sequence[Mapping],
        return_tensors: str | None = "pt",
        mask_next: bool = False,
        as_of: Sequence[float] | NDArray | None = None,
        features: Collection[str] | None = None,
    ) -> BatchFeature:
        """Builds model inputs from rows of `encode` or of a prepared data set.

        Args:
            rows (`Sequence[dict]`): Rows with `times`, `visits`, `feature_<name>`, `value_<name>` and
                `profile_<name>`; other keys are ignored.
            mask_next (`bool`): Whether to add a last event of unknown values, the masked next event of BERT4Rec.
            as_of (`Sequence[float]`, *optional*): Time of each row at which the customer is scored, in seconds on
                the clock of `times`. Later events are left out with a warning.
            features (`Collection[str]`, *optional*): Features that are filled beside the token type; ids of the others
                are 0. Default: all.

        Returns:
            `BatchFeature`: model inputs with the start row first, padded on the right with 0: `input_ids` int64
            `(B, L, J)`; `attention_mask` int64 `(B, L)`; `event_times` float32 `(B, L)`, days from the first event
            read to the latest event so far (visits may overlap), 0 in the start row; `visit_ids` int64 `(B, L)`, 0
            in the start row, then counted from 1. With an amount also `event_values` float32 `(B, L, N)`, 0 in
            the start row. With `as_of` also `as_of` float32 `(B,)`, in days on the clock of `event_times`, 0 for
            customers without events.

        Raises:
            ValueError: If there are no rows, a row lacks a column, ids do not fit the vocabularies, or `as_of` is not
                one finite number for each row.
        """
        return BatchFeature(pad_rows(rows, self.layout, mask_next, as_of, features), tensor_type=return_tensors)

    @property
    def layout(self) -> InputLayout:
        """What rows mean in a model input."""
        return self._layout

    def _make_layout(self) -> InputLayout:
        token = self.token_type_feature
        ids, own = self._encoding.ids[token], self.own_ids(token)[2:]
        targets = [ids[name] for name in self.target_token_types if name in ids]
        return InputLayout(
            dict(zip(self.feature_names, self.vocabulary_sizes, strict=True)),
            frozenset(self._encoding.profile_features),
            tuple(self.summed_features),
            (self.feature_names.index(token), ids[HISTORY_START]),
            ids.get(self.end_of_visit or "", -1),
            frozenset(targets if self.target_token_types else {MISSING_ID, UNKNOWN_ID, *ids.values()}.difference(own)),
        )

    # trf-ignore: TRF057, as above.
    def __call__(
        self,
        customers: Mapping | Sequence[Mapping],
        return_tensors: str | None = "pt",
        as_of: object = None,
    ) -> BatchFeature:
        """Makes the model inputs of one customer or of a list of customers.

        Args:
            customers (`dict` or `Sequence[dict]`): Customers with `events` and optionally `profile` and `customer_id`;
                see `encode`.
            as_of (*optional*): Time at which customers are scored: ISO 8601 text, a datetime or seconds since
                1970-01-01, read as the log's times are. Later events are left out with a warning. `pad` takes a time
                for each customer.

        Returns:
            `BatchFeature`: model inputs by name; see `pad`.

        Raises:
            ValueError: If a customer can't be encoded, `as_of` is no time, or the log has no times.
        """
        if isinstance(customers, Mapping):
            rows = [self.encode(customers)]
        elif not isinstance(customers, Sequence) or isinstance(customers, str | bytes):
            raise ValueError(f"Found {type(customers).__name__}, expected a customer (a dict) or a list of customers.")
        elif not customers:
            raise ValueError("The list of customers is empty: give at least one, or make no call.")
        else:
            rows = [self.encode(each, f"Customer {index} of the list") for index, each in enumerate(customers)]
        seconds = self.read_as_of(as_of)
        times = None if seconds is None else [seconds] * len(rows)
        return self.pad(rows, return_tensors=return_tensors, as_of=times)

    def read_as_of(self, as_of: object) -> float | None:
        """A time in seconds since 1970-01-01, on the clock of rows; None stays None. Raises `ValueError` if it is no
        time, or the log has no times."""
        if as_of is None:
            return None
        if self.order is not None:
            raise ValueError(f"Found `as_of` {as_of!r}, and the log has no times but `order`; leave it out.")
        with naming("`as_of`"):
            return read_as_of(as_of, self._encoding.reader.zone)

    # ------------------------------------------------------------------------------------------------------ files

    def to_dict(self) -> dict:
        """The settings for preprocessor_config.json, without vocabularies and bins, which have a file of their own."""
        left_out = ("vocabularies", "bins", "known", "model_input_names")
        settings = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in left_out}
        return copy.deepcopy(settings) | {"feature_extractor_type": type(self).__name__}

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes preprocessor_config.json and vocabularies.json, which has the settings that decide what ids mean, so
        that `from_pretrained` can compare them, and returns their paths. With `push_to_hub` the
        folder is uploaded with the options `kwargs`, such as `repo_id`. Raises `ValueError` if features that share the
        values of a column no longer have the same vocabulary."""
        self.schema.check_shared(self.vocabularies)
        folder = Path(save_directory)
        saved = super().save_pretrained(folder)
        path = folder / VOCABULARIES_NAME
        settings = {name: value for name, value in self.to_dict().items() if name in DECIDING}
        content = {"vocabularies": self.vocabularies, "bins": self.bins, "known": self.known, "settings": settings}
        write_json(path, content, indent=1, allow_nan=False)
        if push_to_hub:  # not in the base class, which would upload before the vocabularies are written
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [*saved, str(path)]

    @classmethod
    def get_feature_extractor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict, dict]:
        """Reads preprocessor_config.json and vocabularies.json; arguments and result are those of the base class.
        Raises `OSError` if a file is missing, and `ValueError` if one is damaged, or vocabularies.json was saved
        with other settings."""
        source = str(pretrained_model_name_or_path)
        values, unused = super().get_feature_extractor_dict(source, **kwargs)
        folder = os.path.dirname(source) or "." if os.path.isfile(source) else source
        fix = "save the feature extractor again, or copy the file from the original checkpoint"
        try:
            path = str(cached_file(folder, VOCABULARIES_NAME, **kwargs))
        except OSError as error:
            raise OSError(f"{source} has no {VOCABULARIES_NAME}, which holds the feature values; {fix}.") from error
        try:
            content = read_json(path)
            fitted = {key: dict(content[key]) for key in ("vocabularies", "bins")}
            fitted["known"] = dict(content.get("known", {}))
            saved = dict(content.get("settings", {}))  # of a file made by hand none
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {fix}.") from error
        if saved:
            check_same(saved, values, DECIDING, f"{EXTRACTOR_NAME} of {source}", VOCABULARIES_NAME)
        return values | fitted, unused
