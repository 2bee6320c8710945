# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The customers of the page: visits before a cutoff, purchases after it, embeddings and similar customers."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID
from modeling_mcm.data.collator import PreparedRows, batches_by_length
from modeling_mcm.data.dataset import PreparedData
from modeling_mcm.events_mcm import check_columns, select_events
from modeling_mcm.files_mcm import atomic_write
from modeling_mcm.live.customer import LiveCustomer
from modeling_mcm.live.storage import checkpoint_digest
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.times_mcm import SECONDS_PER_DAY

NEXT_DAYS = 30
BATCH = 64
KEPT_CUSTOMERS = 64  # in memory
CACHE_FILE = "page_embeddings.safetensors"


@dataclass(frozen=True)
class Visit:
    """A visit in the page's timeline.

    Args:
        time (`str`): Time of its first event, in ISO 8601.
        kind (`str`): Its most frequent token type.
        events (`int`): Number of its events.
        values (`list[str]`): Values of its events, of the task with the most labels.
        is_past (`bool`): Whether it is before the cutoff, so that the model knows it.
    """

    time: str
    kind: str
    events: int
    values: list[str]
    is_past: bool


@dataclass(frozen=True)
class Household:
    """A customer that the page shows.

    Args:
        live ([`LiveCustomer`]): The customer with the events before the cutoff.
        visits (`list[Visit]`): All visits, oldest first.
        bought (`dict[str, dict[str, str]]`): By task and label, when the customer really chose it: "next visit", or
            within the next 30 days.
    """

    live: LiveCustomer
    visits: list[Visit]
    bought: dict[str, dict[str, str]]


class Histories:
    """The customers of a prepared data set, with the raw log that it was made from.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): The model, in evaluation mode.
        extractor ([`MCMFeatureExtractor`]): The feature extractor of the same checkpoint.
        data (`str`): Folder of the prepared data set.
        events (`str`): The raw log, a Parquet file.
        profile (`str`, *optional*): The raw profile table, a Parquet file.
        cache (`str`, *optional*): Folder to store the embeddings of all customers in.

    Raises:
        ValueError: If the log has no times or no test period.
    """

    def __init__(
        self,
        model: Any,
        extractor: MCMFeatureExtractor,
        data: str,
        events: str,
        profile: str | None = None,
        cache: str | None = None,
    ):
        if extractor.time is None:
            raise ValueError(f"The log {extractor.name} has no times, and the page draws them.")
        self.model, self.extractor = model, extractor
        prepared = PreparedData(data)
        cutoff = prepared.manifest.schema.get("cutoffs", {})
        if not isinstance(cutoff, Mapping) or "test" not in cutoff:
            raise ValueError(f"{data} has no test period: prepare it with `cutoffs`, two dates.")
        self.cutoff = str(np.datetime64(str(cutoff["test"]), "s"))
        self._read_log(events)
        self.profiles = self._read_profiles(profile)
        rows = PreparedRows(prepared.rows)
        self.ids, self.embeddings = self._embeddings(rows, Path(cache or data) / CACHE_FILE)
        self.indices = {customer_id: index for index, customer_id in enumerate(self.ids)}
        spread = self.embeddings - self.embeddings.mean(0)
        spread /= np.maximum(spread.std(0), 1e-6)
        self.directions = spread / np.maximum(np.linalg.norm(spread, axis=1, keepdims=True), 1e-6)
        self.map = _two_axes(spread)
        self.main_task = max(extractor.tasks, key=lambda task: self._variety(task))
        self.household = functools.lru_cache(KEPT_CUSTOMERS)(self._household)

    def _variety(self, task: str) -> int:
        """Labels of a task; those that are numbers to people count little."""
        values = self.extractor.vocabularies[task]
        return len(values) if not all(value.isdigit() for value in values[:20]) else 1

    def _read_log(self, path: str) -> None:
        extractor = self.extractor
        schema = pq.read_schema(path)
        columns = [name for name in extractor._known_columns if name in schema.names]
        texts = [name for name in columns if pa.types.is_string(schema.field(name).type)]
        self.log = pq.read_table(path, columns=columns, read_dictionary=texts)
        who = pc.cast(self.log[extractor.customer].combine_chunks(), pa.string()).dictionary_encode()
        codes = who.indices.to_numpy(zero_copy_only=False)
        self._order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[self._order], np.arange(len(who.dictionary) + 1))
        self._slices = dict(zip(who.dictionary.to_pylist(), zip(bounds[:-1], bounds[1:], strict=True), strict=True))

    def _read_profiles(self, path: str | None) -> dict[str, dict[str, Any]]:
        if path is None:
            return {}
        names = pq.read_schema(path).names
        check_columns(names, [self.extractor.customer], f"{path} has", "Give the profiles of this log (--profile).")
        columns = [name for name in names if name in self.extractor._known_profile]
        rows = pq.read_table(path, columns=columns).to_pylist()
        names = [str(row.pop(self.extractor.customer)) for row in rows]
        known = [{key: value for key, value in row.items() if value is not None} for row in rows]
        return dict(zip(names, known, strict=True))

    def _embeddings(self, rows: PreparedRows, path: Path) -> tuple[list[str], NDArray[np.float32]]:
        """Ids and embeddings of all customers at the cutoff, from the file of an earlier start where it fits."""
        ids = rows.rows.data.column("customer_id").to_pylist()
        about = {"checkpoint": checkpoint_digest(self.model, self.extractor), "cutoff": self.cutoff}
        about["customers"] = str(len(ids))
        try:
            with safe_open(path, "np") as file:
                if file.metadata() == about:
                    return ids, file.get_tensor("embeddings")
        except (OSError, SafetensorError):
            pass
        ordered: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(ids)
        moment = int(np.datetime64(self.cutoff, "s").astype(int))
        lengths = rows.rows.data.column("test_end").to_numpy()
        for indices in batches_by_length(lengths, BATCH):
            batch = [self._cut(row) for row in rows.__getitems__(indices.tolist())]
            inputs = self.extractor.pad(batch, now=[moment] * len(batch))
            with torch.inference_mode():
                pooled = self.model.model(**inputs).pooler_output.float().numpy()
            for index, embedding in zip(indices.tolist(), pooled, strict=True):
                ordered[index] = embedding
        embeddings = np.stack(ordered)
        # A place that can't be written: they are computed at the next start too.
        with contextlib.suppress(OSError), atomic_write(path) as partial:
            save_file({"embeddings": embeddings}, partial, about)
        return ids, embeddings

    def _cut(self, row: Mapping[str, Any]) -> dict[str, Any]:
        cut = select_events(row, slice(row["test_end"]))
        return self.extractor.readable(cut, self.model.config.input_features)

    # ------------------------------------------------------------------------------------------------- one customer

    def events(self, customer_id: str) -> list[dict[str, Any]]:
        """Reads the raw events of a customer, oldest first.

        Args:
            customer_id (`str`): Id of the customer.

        Raises:
            ValueError: If the log has no such customer.
        """
        if customer_id not in self._slices:
            raise ValueError(f"The log has no customer {customer_id!r}: choose one of the list.")
        start, end = self._slices[customer_id]
        rows = self.log.take(np.sort(self._order[start:end])).to_pylist()
        time = str(self.extractor.time)
        for row in rows:
            row.pop(self.extractor.customer)
        events = [{name: value for name, value in row.items() if value is not None} for row in rows]
        return sorted(events, key=lambda event: event[time])

    def _household(self, customer_id: str) -> Household:
        events, time = self.events(customer_id), str(self.extractor.time)
        for event in events:
            event[time] = str(np.datetime64(event[time], "s"))
        past = [event for event in events if event[time] < self.cutoff]
        live = LiveCustomer(self.model, self.extractor, self.profiles.get(customer_id), customer_id)
        live.add(past)
        visits = self._visits(events)
        return Household(live, visits, self._bought([event for event in events if event[time] >= self.cutoff]))

    def _visits(self, events: list[dict[str, Any]]) -> list[Visit]:
        """Events by visit, in the order of time, as the feature extractor makes visits of them."""
        row = self.extractor.encode({"events": events})
        token, task = self.extractor.token_type_feature, self.main_task
        kinds, values = row[f"feature_{token}"], row[f"feature_{task}"]
        visits = []
        for visit in range(int(row["visits"][-1]) + 1 if len(row["visits"]) else 0):
            indices = np.flatnonzero(row["visits"] == visit)
            kind = Counter(self._texts(token, kinds[indices])).most_common(2)
            names = [name for name, _ in kind if name != self.extractor.end_of_visit]
            first = str(np.datetime64(int(row["times"][indices[0]]), "s"))
            texts = list(dict.fromkeys(self._texts(task, values[indices])))
            closed = self.extractor.end_of_visit in dict(kind)
            number = len(indices) - int(closed or kinds[indices[-1]] == self._closing)
            visits.append(Visit(first, names[0] if names else "", number, texts, first < self.cutoff))
        return visits

    @property
    def _closing(self) -> int:
        token, name = self.extractor.token_type_feature, self.extractor.end_of_visit
        return FIRST_VALUE_ID + self.extractor.vocabularies[token].index(name) if name else -1

    def _texts(self, feature: str, ids: NDArray[Any]) -> list[str]:
        words = self.extractor.vocabularies[feature]
        return [words[label - FIRST_VALUE_ID] for label in ids.tolist() if label >= FIRST_VALUE_ID]

    def _bought(self, future: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
        tasks: dict[str, dict[str, str]] = {task: {} for task in self.extractor.tasks}
        if not future:
            return tasks
        row = self.extractor.encode({"events": future})
        until = int(np.datetime64(self.cutoff, "s").astype(int)) + NEXT_DAYS * SECONDS_PER_DAY
        labels = {task: row[f"task_{task}"] for task in tasks}
        is_target = np.any([ids >= FIRST_VALUE_ID for ids in labels.values()], axis=0)
        following = row["visits"][np.argmax(is_target)] if is_target.any() else -1
        for task, ids in labels.items():
            within = is_target & (row["times"] < until)
            tasks[task] = dict.fromkeys(self._texts(task, ids[within]), f"within {NEXT_DAYS} days")
            tasks[task] |= dict.fromkeys(
                self._texts(task, ids[is_target & (row["visits"] == following)]), "next visit"
            )
        return tasks

    def alike(self, customer_id: str, number: int = 6) -> list[tuple[str, float]]:
        """Finds the customers with the closest embeddings.

        Args:
            customer_id (`str`): Id of the customer.
            number (`int`): Number of other customers.

        Returns:
            The ids and their cosines, closest first.
        """
        index = self.indices[customer_id]
        likeness = self.directions @ self.directions[index]
        likeness[index] = -2
        return [(self.ids[other], float(likeness[other])) for other in np.argsort(-likeness)[:number]]

    def template(self, task: str, label: str) -> dict[str, Any]:
        """Finds the latest event of the log with a label, without its customer, time and visit, as a model for a new
        event.

        Args:
            task (`str`): Name of the task.
            label (`str`): The label.
        """
        extractor = self.extractor
        feature = next(feature for feature in extractor.features if feature["name"] == task)
        column = feature.get("column") or feature["name"]
        texts = pc.cast(self.log[column], pa.string())
        fits = pc.equal(texts, label)
        if extractor.target_token_types and extractor.token_type:
            kinds = pc.cast(self.log[extractor.token_type], pa.string())
            fits = pc.and_(fits, pc.is_in(kinds, pa.array(extractor.target_token_types)))
        indices = np.flatnonzero(pc.fill_null(fits, False).to_numpy())
        if not len(indices):
            return {column: label}
        (row,) = self.log.take([indices[-1]]).to_pylist()
        left_out = {extractor.customer, extractor.time, extractor.visit}
        return {name: value for name, value in row.items() if value is not None and name not in left_out}

    def what_if(self, customer_id: str, event: Mapping[str, Any], moment: str) -> LiveCustomer:
        """Makes the customer as if an event had happened at a moment.

        Args:
            customer_id (`str`): Id of the customer.
            event (`dict`): Raw values of the event.
            moment: Time of the event.
        """
        before = self.household(customer_id).live
        after = LiveCustomer(self.model, self.extractor, before.profile, customer_id)
        time, visit = str(self.extractor.time), self.extractor.visit
        own = {visit: "what if"} if visit else {}
        after.add([*before.events, {**event, **own, time: moment}])
        return after


def _two_axes(spread: NDArray[np.float32]) -> NDArray[np.float32]:
    """Places on a map, the two directions in which customers differ most, `(customers, 2)`, within -1 and 1."""
    _, axes = np.linalg.eigh(spread.T @ spread)
    points = spread @ axes[:, :-3:-1]
    return points / np.maximum(np.quantile(np.abs(points), 0.995, axis=0), 1e-6).clip(1e-6)
