# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The customers of the page: scores of all at a cutoff, visits before it, purchases after it."""

import contextlib
import functools
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike
from transformers.utils import logging

from modeling_mcm.action_mcm import MCMForActionRecommendation
from modeling_mcm.configuration_mcm import FIRST_VALUE_ID
from modeling_mcm.customer_mcm import MCMForCustomerPrediction
from modeling_mcm.data.cases import CUTOFFS, find_targets
from modeling_mcm.data.dataset import (
    MANIFEST_FILE,
    PAGE_FILE,
    PAGE_NOTE,
    PreparedData,
    check_vocabularies,
    write_table,
)
from modeling_mcm.data.schema import LEAVE_ONE_OUT, NO_CUTOFFS
from modeling_mcm.data.tables import FORMULA, read_table_file
from modeling_mcm.events_mcm import (
    SECONDS_PER_DAY,
    BoolArray,
    IntArray,
    RawEvent,
    Row,
    check_columns,
    is_missing,
    read_times,
    to_ids,
    to_iso,
    to_text,
    value_reader,
)
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.files_mcm import read_json, write_json
from modeling_mcm.folders import file_digest
from modeling_mcm.inputs_mcm import CUSTOMER, Customers
from modeling_mcm.live.customer import LiveCustomer
from modeling_mcm.live.explanations import visit_rhythm
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation, MCMPreTrainedModel
from modeling_mcm.past import Past
from modeling_mcm.predictor_mcm import PREDICTED
from modeling_mcm.scoring.scorer import SCORES, BatchScorer, ScoringJob
from modeling_mcm.training.checkpoints import checkpoint_digest
from modeling_mcm.training.counting import Counts

from .looking_back import MONTH, PAST, Visits, list_rhythms, look_back

logger = logging.get_logger(__name__)
NEXT_DAYS = 30
# Customers of a batch, and in memory, while all are scored; the first ones are few, so that the page appears at once
BATCH, ROWS_AT_ONCE = 64, 2048
LIKELIEST = 20  # labels of the main task that are kept of each customer
KEPT_CUSTOMERS = 64  # in memory
ACTION_COLUMNS = 12  # of predictions of fine-tuned checkpoints
RHYTHM = ("days_since_visit", "days_between_visits")  # columns beside those of `BatchScorer`
VALUE = "value_so_far"  # another one: the sum of the amount, or the number of visits of a log without one
EFFECT = {"effect": "difference", "low": "from", "high": "to"}  # columns of `mcm uplift`, as they are shown
YES = ("1", "1.0", "true", "yes")  # names of a class that say no more than the checkpoint's name


class TimelineVisit(NamedTuple):
    """A visit in the page's timeline: the time of its first event in ISO 8601, the number of its targets, their labels
    of the task with the most labels."""

    time: str
    events: int
    values: list[str]


class CustomerCase(NamedTuple):
    """A customer at the cutoff, with the events before it; all visits, oldest first; and by task and label when the
    customer really chose it: "next visit", or within the next 30 days."""

    live: LiveCustomer
    visits: list[TimelineVisit]
    bought: dict[str, dict[str, str]]


class Histories:
    """The customers of a prepared data set, with the raw log that it was made from.

    All are scored in a thread, in parts; the first part is there from the start.

    Args:
        model ([`MCMForMultiTaskRecommendation`]): The model, in evaluation mode.
        extractor ([`MCMFeatureExtractor`]): The feature extractor of the same checkpoint.
        data (`str`): Folder of the prepared data set. The scores are stored there, for the next start.
        events (`str`): The raw log, Parquet or CSV files.
        profile (`str`, *optional*): The raw profile table.
        tuned (`dict[str, tuple]`): Fine-tuned models with their feature extractors, by a name for their predictions.
        actions (`str`, *optional*): The table of actions that those for offers score.
        uplift (`Sequence[str]`): What `mcm uplift` wrote of offers that are named like these files.

    Attributes:
        ids (`list[str]`): All customers.
        scored (`pd.DataFrame`): Those that are scored at the cutoff so far: a row each, with columns of
            [`BatchScorer`], of `looking_back`, `RHYTHM`, `VALUE` and those of fine-tuned models.
        has_labels (`bool`): Whether the log has labels that can be ranked.
        failure (`str`, *optional*): Why the scoring stopped before all were scored.
        predictions, offers (`list[str]`): Names of the columns that the fine-tuned models predict, and of those for
            offers among them.
        effects (`pd.DataFrame`): Which offer of `uplift` to make, by customer: `label`, and the `difference` that it
            makes, with its interval.

    Raises:
        ValueError: If the log has no times or no test period, or is not the log of the prepared data set; or if one
            of `tuned` is no fine-tuned model, or `actions` are missing or too many.
    """

    def __init__(
        self,
        model: MCMForMultiTaskRecommendation,
        extractor: MCMFeatureExtractor,
        data: str,
        events: str,
        profile: str | None = None,
        tuned: Mapping[str, tuple[MCMPreTrainedModel, MCMFeatureExtractor]] | None = None,
        actions: str | None = None,
        uplift: Sequence[str] = (),
    ):
        if extractor.time is None:
            raise ValueError(f"The log {extractor.name} has no times, and the page draws them.")
        prepared = PreparedData(data, CUTOFFS[1])
        if prepared.schema.cutoffs in (LEAVE_ONE_OUT, NO_CUTOFFS):
            raise ValueError(f"{data} has no test period: prepare it with `cutoffs`, two dates.")
        check_vocabularies(data, extractor)
        # The page marks what came true: what it shows counts the log up to the cutoff, as an evaluation does
        self.as_of = prepared.schema.cutoff_seconds("test")
        self._past = Past(*Counts(prepared).give(model, extractor, state=False), prepared)
        self.model, self.extractor = self._past.now.model, self._past.now.extractor
        self.cutoff = to_iso(self.as_of)
        # Labels that are numbers to people say little: their tasks come last.
        self.tasks = sorted(extractor.tasks, key=lambda task: self._variety(task) == 1)
        self.main_task = max(self.tasks, key=self._variety)
        self.has_labels = extractor.schema.has_labels and len(self.list_labels(self.main_task)) > 1
        self.log = self._read(events, "event", [extractor.customer, extractor.time], extractor.schema.event_columns)
        self._who = np.array(to_ids(self.log[extractor.customer]), object)
        self._rows = pd.Series(self._who).groupby(self._who).indices
        self.profiles = self._read_profiles(profile)
        files = [str(Path(data, shard["file"])) for shard in prepared.manifest.shards]
        self.ids: list[str] = pq.ParquetDataset(files).read([CUSTOMER])[CUSTOMER].to_pylist()
        if absent := [name for name in self.ids if name not in self._rows]:
            raise ValueError(
                f"{events} lacks {len(absent):,} of the {len(self.ids):,} customers of {data}, the first "
                f"{absent[0]!r}: give the log that was prepared."
            )
        self.effects = pd.concat([pd.DataFrame(), *map(self._read_effects, uplift)])
        self._scoring: threading.Thread | None = None
        self.failure: str | None = None
        scorers = {}
        for name, (head, known) in (tuned or {}).items():
            check_vocabularies(data, known)
            scorers[name] = self._tuned_scorer(*Counts(prepared).give(head, known, state=False), data, actions)
        self._score_all(data, scorers)
        columns = [*self.scored]
        self.predictions = columns[columns.index(VALUE) + 1 :]
        offer_models = tuple(name for name, scorer in scorers.items() if scorer.job.tasks)
        self.offers = [name for name in self.predictions if name.startswith(offer_models)]
        self.case = functools.lru_cache(KEPT_CUSTOMERS)(self._read_case)

    def _variety(self, task: str) -> int:
        """Labels of a task; those that are numbers to people count little."""
        values = self.extractor.vocabularies[task]
        return len(values) if not all(value.isdigit() for value in values[:20]) else 1

    def list_labels(self, task: str) -> list[str]:
        """Lists the labels of a task that an event can have."""
        extractor = self.extractor
        own = extractor.schema.reserved_token_types if task == extractor.token_type_feature else []
        return [label for label in extractor.vocabularies[task] if label not in own]

    def _read(self, path: str, what: str, needed: list[str], known: Collection[str]) -> pd.DataFrame:
        """The known columns of a Parquet or CSV file, without rows that lack one of the `needed` columns."""
        from modeling_mcm.preparation.sources import SourceTable  # the extra `data`

        table = SourceTable(path, what)
        check_columns(table.names, needed, f"{path} has", "Give the file that was prepared.")
        names = [name for name in table.names if name in known]
        blocks = [pa.Table.from_batches([block]) for block in table.blocks(names)]
        rows = pa.concat_tables(blocks, promote_options="default")  # a column may be empty in some of the files
        return rows.to_pandas(strings_to_categorical=True, integer_object_nulls=True).dropna(subset=needed)

    def _read_profiles(self, path: str | None) -> dict[str, RawEvent]:
        if path is None:
            return {}
        customer = self.extractor.customer
        table = self._read(path, "profile", [customer], self.extractor.schema.profile_columns)
        ids = to_ids(table.pop(customer))
        rows = table.set_axis(ids).to_dict("index")
        return {
            name: {key: value for key, value in row.items() if not is_missing(value)} for name, row in rows.items()
        }

    def _read_effects(self, path: str) -> pd.DataFrame:
        table = read_table_file(path, ["customer"])
        table["customer"] = table["customer"].str.replace("^'" + FORMULA, "", regex=True)
        check_columns(table, ("customer", *EFFECT, "offer"), f"{path} has", "Give what `mcm uplift --output` wrote.")
        if not table["customer"].isin(self.ids).any():
            raise ValueError(f"{path} has none of the page's customers: ask `mcm uplift` about the same log.")
        made = table[table["offer"]].set_index("customer")
        return made[[*EFFECT]].rename(columns=EFFECT).assign(label=Path(path).stem)

    def _tuned_scorer(
        self, model: MCMPreTrainedModel, extractor: MCMFeatureExtractor, data: str, actions: str | None
    ) -> BatchScorer:
        """The scorer of a fine-tuned model, which predicts as of the cutoff."""
        source = str(model.name_or_path)
        job = ScoringJob(source, data, "", (), ACTION_COLUMNS, False, BATCH, ROWS_AT_ONCE, as_of=self.as_of)
        if isinstance(model, MCMForCustomerPrediction):
            return BatchScorer(model, extractor, job)
        if not isinstance(model, MCMForActionRecommendation):
            raise ValueError(f"{source} is an {type(model).__name__}: the list adds predictions of `mcm finetune`.")
        if actions is None:
            raise ValueError(f"{source} is an {type(model).__name__}: name the table of the actions that it scores.")
        scorer = BatchScorer(
            model, extractor, replace(job, actions=actions, tasks=tuple(model.config.action_outcomes))
        )
        number, outcomes = len(scorer.actions), len(scorer.job.tasks)
        if number * outcomes > ACTION_COLUMNS:
            raise ValueError(
                f"{actions} has {number} actions with {outcomes} outcomes each, and the list has room "
                f"for {ACTION_COLUMNS} columns: give fewer actions, or use `mcm predict --actions`."
            )
        return scorer

    def wait(self) -> "Histories":
        """Returns when all customers are scored, or the scoring stopped."""
        if self._scoring is not None:
            self._scoring.join()
        return self

    def _score_all(self, data: str, tuned: Mapping[str, BatchScorer]) -> None:
        """Scores all customers at the cutoff, the first ones before it returns; or reads the file of an earlier start
        where it fits."""
        path, note = Path(data) / PAGE_FILE, Path(data) / PAGE_NOTE
        digest = checkpoint_digest(self.model, self.extractor) + file_digest(Path(data) / MANIFEST_FILE) + VALUE + PAST
        for name, scorer in tuned.items():
            digest += name + checkpoint_digest(scorer.model, scorer.extractor)
            digest += file_digest(scorer.job.actions) if scorer.job.actions else ""
        with contextlib.suppress(OSError, ValueError):
            if read_json(note) == {"made_of": digest, "sha256": file_digest(path)}:
                self.scored = pd.read_parquet(path)
                return
        scorers, number = self._make_scorers(data), len(self.ids)
        tables = [self._score(scorers, tuned, range(min(BATCH, number)))]
        self.scored = tables[0]

        def score_others() -> None:
            start = size = BATCH
            try:
                with logging.tqdm(total=number, initial=start, desc="Scoring", unit="customer") as bar:
                    scorers[0].progress = bar.update
                    while start < number:
                        size = min(2 * size, ROWS_AT_ONCE)
                        tables.append(self._score(scorers, tuned, range(start, min(start + size, number))))
                        self.scored, start = pd.concat(tables, ignore_index=True), start + size
            except Exception as error:  # nobody else hears of an error in this thread
                self.failure = f"{type(error).__name__}: {error}"
                logger.exception("The scoring of the page's customers stopped.")
                return
            # A place that can't be written: they are computed at the next start too.
            with contextlib.suppress(OSError):
                write_table(path, pa.Table.from_pandas(self.scored))
                write_json(note, {"made_of": digest, "sha256": file_digest(path)})

        self._scoring = threading.Thread(target=score_others, daemon=True)
        self._scoring.start()

    def _make_scorers(self, data: str) -> dict[float, BatchScorer]:
        """Scorers by how many days before the cutoff they score: 0, and as many as each forecast reaches."""
        forecasts = self.model.model.customer_forecasts
        days = forecasts.days if forecasts.are_trained else []
        month = min(days, key=lambda day: abs(day - MONTH), default=MONTH)  # when chances of labels are looked at
        scorers = {}
        for ago in sorted({0.0, *days, month * self.has_labels}):
            tasks = (self.main_task,) if self.has_labels and ago in (0, month) else ()
            as_of = int(self.as_of - ago * SECONDS_PER_DAY)
            then = self._past.at(as_of, shop_alone=not tasks)
            told = then.model.base_model.customer_forecasts
            job = ScoringJob(
                str(self.model.name_or_path), data, "", tasks, LIKELIEST, False, BATCH, ROWS_AT_ONCE,
                tuple(told.names()) if told.are_trained else (), as_of,
            )  # fmt: skip
            scorers[ago] = BatchScorer(then.model, then.extractor, job)
        return scorers

    def _score(
        self, scorers: Mapping[float, BatchScorer], tuned: Mapping[str, BatchScorer], part: range
    ) -> pd.DataFrame:
        """Scores some customers."""
        main, extractor, sums = self.main_task, self.extractor, [*self.model.config.summed_features]
        rows = Customers.of(scorers[0].read(part, extractor.tasks))
        rows = rows.select(rows.places < np.asarray(rows.column("test_end"))[rows.row])
        visits = Visits(rows, extractor, main, sums)
        ids = {text: place + FIRST_VALUE_ID for place, text in enumerate(extractor.vocabularies[main])}
        table = scorers[0].score(rows).to_pandas()
        if self.has_labels:
            table = table.join(list_rhythms(table, visits, main, ids, self.as_of))
        for days, scorer in scorers.items():
            table = table.join(look_back(rows, visits, scorer, days, sums, ids)) if days else table
        columns = pd.DataFrame(map(self._describe, rows), columns=[*RHYTHM, VALUE])
        for name, tuned_scorer in tuned.items():
            for column, values in _predictions(tuned_scorer, tuned_scorer.score(rows).to_pandas()).items():
                is_named = column.removesuffix(", %").lower() not in YES
                columns[f"{name}: {column}" if is_named else f"{name}, %"] = values
        return table.join(columns)

    def _describe(self, row: Row) -> list[float]:
        """Days since the last visit of a row, and mean days between its visits, NaN where there are too few; and its
        value so far."""
        visits, gap, last = visit_rhythm(row, self._is_target(row))
        values = [float(row[f"value_{name}"].sum()) for name in self.model.config.summed_features]
        return [(self.as_of - last) / SECONDS_PER_DAY, gap, *(values or [visits])[:1]]

    # ------------------------------------------------------------------------------------------------- one customer

    def _take(self, rows: IntArray) -> pd.DataFrame:
        """Raw events of the log, without their customer."""
        return self.log.iloc[rows].drop(columns=self.extractor.customer)

    def _read_case(self, customer_id: str) -> CustomerCase:
        events, extractor = self._take(self._rows[customer_id]), self.extractor
        times = read_times(events[extractor.time], extractor.time_zone)
        live = LiveCustomer(self.model, extractor, self.profiles.get(customer_id), customer_id)
        live.add(events[times < self.as_of])
        row, visits, bought = extractor.encode({"events": events}), [], {}
        is_target = self._is_target(row)
        for number in np.unique(row["visits"][is_target]):
            in_visit = row["visits"] == number
            first, size = to_iso(row["times"][in_visit][0]), int((in_visit & is_target).sum())
            labels = self._texts(row, in_visit, self.main_task) if self.has_labels else []
            visits.append(TimelineVisit(first, size, labels))
        comes = is_target & (row["times"] >= self.as_of)
        within = comes & (row["times"] < self.as_of + NEXT_DAYS * SECONDS_PER_DAY)
        following = comes & (row["visits"] == row["visits"][comes.argmax()])
        for task in self.tasks:
            bought[task] = dict.fromkeys(self._texts(row, within, task), f"within {NEXT_DAYS} days")
            bought[task] |= dict.fromkeys(self._texts(row, following, task), "next visit")
        return CustomerCase(live, visits, bought)

    def _is_target(self, row: Row) -> BoolArray:
        """Which events of a row are targets. Only visits with one count: a letter that the shop sent is no visit."""
        return find_targets(Customers.of([row]), self.extractor.tasks, self.extractor.token_type_feature)

    def _texts(self, row: Row, is_chosen: BoolArray, task: str) -> list[str]:
        """The labels of some events of a row, each once."""
        labels, values = row[f"task_{task}"][is_chosen].tolist(), self.extractor.vocabularies[task]
        return list(dict.fromkeys(values[label - FIRST_VALUE_ID] for label in labels if label >= FIRST_VALUE_ID))

    def _find_targets(self, task: str, label: str) -> tuple[str, IntArray]:
        """The column of a task, and the rows of the log in which it has a label of a target."""
        extractor = self.extractor
        spec = extractor.schema.specs[task]
        column, read = str(spec.column), value_reader(spec)
        codes, values = np.arange(len(self.log)), self.log[spec.column]
        with contextlib.suppress(TypeError):  # lists
            codes, values = pd.factorize(values)
        texts = map(read, [*values, None])  # the code of a missing value is -1
        fits = np.array([label in text if isinstance(text, frozenset) else label == text for text in texts])[codes]
        if extractor.target_token_types and extractor.token_type:
            fits &= self.log[extractor.token_type].map(to_text).isin(extractor.target_token_types).to_numpy()
        return column, np.flatnonzero(fits)

    def suppose_event(self, customer_id: str, task: str, label: str) -> LiveCustomer:
        """Makes the customer as if an event with a label had happened at the cutoff: the latest such event of the log,
        without its customer, time and visit. Which visit it then belongs to is what the schema says."""
        extractor, (column, rows) = self.extractor, self._find_targets(task, label)
        event = [*self._take(rows[-1:]).to_dict("records"), {column: label}][0]
        event[str(extractor.time)] = self.cutoff
        event.pop(extractor.visit, None)
        before = self.case(customer_id).live
        after = LiveCustomer(self.model, extractor, before.profile, customer_id)
        after.add([*before.events, event])
        return after


def _predictions(scorer: BatchScorer, table: pd.DataFrame) -> dict[str, ArrayLike]:
    """Columns of what a fine-tuned model predicts, by class or by action and outcome; probabilities in percent."""
    names = [name for name in table if name.startswith(PREDICTED)]
    if len(names) == 1:
        return {names[0].removeprefix(PREDICTED): table[names[0]]}
    columns = {}
    for name in names[len(names) == 2 :]:  # of two classes the second says all
        columns[f"{name.removeprefix(PREDICTED)}, %"] = 100 * table[name]
    for outcome in scorer.job.tasks:
        pair = [outcome, outcome + SCORES]
        chances = table.explode(pair).pivot(columns=outcome, values=pair[1])
        columns |= {f"{action} {outcome}, %": 100 * chances[action] for action in scorer.actions}
    return columns
