# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores every customer: a folder of Parquet files with customer embeddings and the best labels of every task.

    mcm predict --model runs/mine --data data/prepared --output_dir scores
    mcm predict --model runs/mine --events log.parquet --output_dir scores      scores the customers of a raw log
    mcm predict ... --candidates stock.parquet --exclude seen --per_group product_category=2     what to recommend
    mcm predict ... --total visits amount --forecast_days 30     prints totals, and how wrong they were before
    mcm predict --engine spark ...                           scores as a Spark job (docs/production.md)
    accelerate launch --multi_gpu --num_processes 2 training/run_predict.py ...        two processes, on CPUs too

The files have one row a customer: `customer_id`, `embedding`, columns for each forecast, that is its mean
(`visits_30d`), its median (`visits_30d_median`) and the ends of its intervals (`visits_30d_low80`), and for each task
its labels, best first (`TASK`), with their probabilities among the candidates (`TASK_scores`) and the chances that
they come in the next visit, or within --horizon_days 30 (`TASK_chances`). A checkpoint that was fine-tuned to a label
writes `predicted_CLASS`, the probability of each class, or the number alone. One that was fine-tuned to offers ranks
the actions of --actions, as labels of a task: `OUTCOME` has the actions, likeliest first, and `OUTCOME_scores` the
probabilities of an offer at --as_of. `pandas.read_parquet(output_dir)` reads all files.

A file holds --rows_per_file customers and appears when it is complete. After an interruption the same command writes
only the files that are missing, in any number of processes, and the result has the same bytes. Memory holds the
histories of one file and the scores of one batch, for any number of customers.
"""

import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.utils import logging

from modeling_mcm.action_mcm import MCMForActionRecommendation
from modeling_mcm.customer_mcm import MCMForCustomerPrediction
from modeling_mcm.data import NO_CUTOFFS, EventSchema, PreparedData, check_vocabularies, read_known, read_schema
from modeling_mcm.data.dataset import END, MANIFEST_FILE
from modeling_mcm.extras import needs
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.folders import file_digest, lock_output
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation, MCMModel, MCMPreTrainedModel
from modeling_mcm.option import REQUIRED, option
from modeling_mcm.predictor_mcm import OFFERING, PREDICTING, Predictor, Questions
from modeling_mcm.scoring import BatchScorer, ScoringJob, forecast_total, score_on_spark
from modeling_mcm.scoring.scorer import HISTORIES, check_folder, claim, digest_tables, is_sealed
from modeling_mcm.training.checkpoints import checkpoint_digest, find_head, open_checkpoint
from modeling_mcm.training.counting import Counts
from modeling_mcm.training.memory import keep_freed_memory

from .arguments import MEMORY_LIMIT, EngineOptions, command

MONTH = 30  # days: the horizon of totals


@dataclass
class PredictionOptions:
    """Which customers are scored by which checkpoint, and what the files hold."""

    model: str = option("Checkpoint folder, or name on the Hub.", REQUIRED)
    output_dir: str = option("Folder to write the Parquet files to.", REQUIRED)
    data: str | None = option("Folder of a prepared data set, whose customers are scored.")
    events: str | None = option(
        "Raw log, in the place of --data: a .parquet, .csv or .tsv file, or a folder of Parquet files."
    )
    profile: str | None = option("Profile table of the raw log, with one row a customer; needs --events.")
    schema: str | None = option(
        "Event schema of the raw log, a YAML file, whose on_null and on_bad_row are used. By default that of "
        "the checkpoint."
    )
    tasks: list[str] = option("Tasks whose best labels are written. By default all tasks.", [])
    top_k: int = option("Number of labels to write for each task; 0 to write embeddings alone.", 10)
    embeddings: bool = option("Write the customer embeddings.", True)
    forecasts: bool = option(
        "Write the checkpoint's forecasts, such as visits_30d, each in a column of its own.", True
    )
    forecast_days: list[float] = option(
        "Horizons of the forecasts, such as 180 365, up to twice the training period. By default the checkpoint's.", []
    )
    total: list[str] = option(
        "Quantities, such as visits amount, whose totals over all customers are printed, with the errors of the same "
        "forecast in the log's past, for --forecast_days, by default 30. All histories are read into memory.",
        [],
    )
    known: str | None = option(
        "Table of more rows of what `mcm pretrain` got as --known, such as those of a campaign to come."
    )
    discount_rate: float | None = option(
        "Of a year: with .1, columns such as amount_365d_discounted say what forecasts are worth now, if what comes "
        "in a year is worth 1 / 1.1 of it."
    )
    as_of: str | None = option(
        "Time to score at, such as 2017-11-01: events up to it are read, and embeddings, forecasts and "
        "scores are those of this time. By default the time of the log's last event."
    )
    candidates: str | None = option(
        "Table of the labels that may be written, .parquet or .csv, with a column for each task that it restricts. "
        "Columns of other features score labels that training never saw. By default all labels."
    )
    exclude: str | None = option(
        "Labels that are not written: seen, those of all events of the customer, targets or not, or a table of "
        "labels, for each customer if it has the customer column."
    )
    per_group: str | None = option(
        "Largest number of labels of each value of a feature, as product_category=2; the candidates name it."
    )
    horizon_days: float | None = option(
        "30 ranks the labels that come within 30 days. By default those of the next visit."
    )
    actions: str | None = option(
        "Table of the actions that a checkpoint for offers scores, .parquet or .csv: action_id, columns of the log."
    )
    label_columns: str | None = option(
        "Table of the further columns that a checkpoint was fine-tuned to a label with, .parquet or .csv, beside "
        "customer_id. By default their means."
    )
    batch_size: int = option("Number of customers in one batch of the model.", 64)
    rows_per_file: int = option("Number of customers in one file.", 2048)
    memory_limit: str = option(MEMORY_LIMIT, "1GB")

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.events):
            raise ValueError("Give --data, a prepared data set, or --events, a raw log.")
        if self.data and (self.profile or self.schema):
            raise ValueError("--profile and --schema belong to --events; leave them out, because --data has both.")
        if self.total and (not self.data or self.as_of):
            raise ValueError("--total forecasts from the end of a prepared log: give --data, and leave out --as_of.")
        if self.top_k < 0 or self.batch_size < 1 or self.rows_per_file < 1:
            raise ValueError("--top_k must be at least 0, --batch_size and --rows_per_file at least 1.")
        if not self.top_k and not self.embeddings:
            raise ValueError("--top_k 0 without --embeddings leaves nothing to write: change one of them.")
        if not self.top_k and self.chooses:
            raise ValueError(
                "--tasks, --candidates, --exclude, --per_group and --horizon_days choose labels, but --top_k 0 writes "
                "none: leave one of them out."
            )

    @property
    def chooses(self) -> bool:
        """Whether an option chooses labels."""
        return any((self.tasks, self.candidates, self.exclude, self.per_group, self.horizon_days))

    def check_head(self, head: type[PreTrainedModel]) -> "PredictionOptions":
        """The options for a checkpoint of a class. Raises `ValueError` if they ask for what it does not have."""
        scores_offers = head is MCMForActionRecommendation
        if scores_offers != (self.actions is not None):
            raise ValueError(
                f"{self.model} is an {head.__name__}: "
                + (
                    "name the table of the actions that it scores with --actions."
                    if scores_offers
                    else "it scores no offers; leave --actions out, or give a checkpoint of `mcm finetune --offers`."
                )
            )
        if scores_offers and not self.top_k:
            raise ValueError("--top_k 0 leaves no action to write: give at least 1, or leave it out.")
        if self.label_columns and head is not MCMForCustomerPrediction:
            raise ValueError(f"{self.model} is an {head.__name__} and reads no --label_columns: leave them out.")
        if head is MCMForMultiTaskRecommendation:
            return self
        if self.chooses:
            raise ValueError(
                f"{self.model} is an {head.__name__} and ranks no tasks: leave --tasks, --candidates, --exclude, "
                "--per_group and --horizon_days out, or give the checkpoint that it was fine-tuned from."
            )
        return self if head is MCMModel else replace(self, embeddings=False, forecasts=False)


def _prepare_log(options: PredictionOptions, extractor: MCMFeatureExtractor, engine: EngineOptions) -> None:
    """Prepares the raw log `options.events` with the checkpoint's vocabularies, in a folder inside `output_dir`."""
    from modeling_mcm.preparation import prepare

    schema = read_schema(extractor)
    if options.schema:
        schema = replace(EventSchema.from_yaml(options.schema), cutoffs=NO_CUTOFFS)
    prepare(
        str(options.events),
        schema,
        Path(options.output_dir, HISTORIES),
        profile=options.profile,
        feature_extractor=extractor,
        engine=engine.engine,
        spark_config=engine.spark,
        memory_limit=options.memory_limit,
        overwrite=True,
        reuse=True,
        keep=False,
    )


def _totals(options: PredictionOptions, model: MCMPreTrainedModel) -> list[str]:
    """A line for each quantity and horizon of --total."""
    lines, data = [], PreparedData(str(options.data))
    known = read_known(options.known)
    for quantity in options.total:
        for days in options.forecast_days or [MONTH]:
            found = forecast_total(model, data, quantity, days, batch_size=options.batch_size, known=known)
            errors = ", ".join(
                f"{f'{past.error:+.0%}' if past.actual else 'nothing came'} from {past.as_of:%Y-%m-%d}"
                for past in found.past
            )
            words = f"{quantity} in {days:g} days from {found.as_of:%Y-%m-%d}: {found.expected:,.0f}"
            lines.append(f"{words}; errors of the same forecast before: {errors}")
    return lines


def _make_job(
    options: PredictionOptions, head: type[PreTrainedModel], model: Any, extractor: MCMFeatureExtractor
) -> ScoringJob:
    """What is scored. Raises `ValueError` if the options and the checkpoint do not fit together."""
    tasks = model.config.action_outcomes if options.actions else []
    if head is MCMForMultiTaskRecommendation and options.top_k:
        tasks = Predictor(model, extractor).tasks(options.tasks or None)
    as_of = extractor.read_as_of(options.as_of)
    known = model.base_model.select_forecasts(options.forecast_days or None)
    forecasts = known.names() if options.forecasts and known.are_trained else []
    asked = options.forecast_days or options.known or options.discount_rate is not None
    if asked and not forecasts:
        raise ValueError(
            "--forecast_days, --known and --discount_rate ask for forecasts, and none are written: see --forecasts "
            "and the checkpoint."
        )
    same = "top_k embeddings batch_size rows_per_file candidates exclude per_group horizon_days actions label_columns"
    return ScoringJob(
        options.model,
        options.data or str(Path(options.output_dir, HISTORIES)),
        options.output_dir,
        tuple(tasks),
        forecasts=tuple(forecasts),
        forecast_days=tuple(options.forecast_days) or None,
        as_of=None if as_of is None else int(as_of),
        known=options.known,
        discount_rate=options.discount_rate,
        **{name: getattr(options, name) for name in same.split()},
    )


def _count_then(
    model: Any, extractor: MCMFeatureExtractor, job: ScoringJob, data: PreparedData, is_spark: bool
) -> tuple[Any, MCMFeatureExtractor, ScoringJob]:
    """The model for a job about the past: with the counts of then, if the data are the log that it counts; else it is
    allowed to answer by later ones, with a warning. On Spark workers load it as it is."""
    predictor = Predictor(model, extractor)
    if not predictor.knows_later(job.as_of) or predictor.head in (PREDICTING, OFFERING):  # which read no counts
        return model, extractor, job
    if is_spark or Counts.of(data, END).describe() != model.config.counted:
        return model, extractor, replace(job, later_counts=True)
    return *Counts.of(data, cast(int, job.as_of) + 1).give(model, extractor, state=False), job


def run(options: PredictionOptions, engine: EngineOptions) -> str:
    """Scores the customers of the missing files; of several processes each takes its share of the files. Returns how
    many customers there are and how many files were written. A `ValueError` is raised if the options, the checkpoint
    and the data do not fit together."""
    state, folder = PartialState(cpu=not torch.cuda.is_available()), Path(options.output_dir)
    opening: Any = nullcontext()
    if engine.engine == "spark":
        if state.num_processes > 1:
            raise ValueError(
                "--engine spark divides the work by itself: start one process, without accelerate launch."
            )
        with needs("spark"):
            from modeling_mcm.preparation.engine import spark_session
        opening = spark_session(engine.spark)
    head = find_head(options.model)
    options = options.check_head(head)
    model, extractor = open_checkpoint(head, options.model)
    job = _make_job(options, head, model, extractor)
    totals = _totals(options, model) if options.total and state.is_main_process else []
    digest, tables = checkpoint_digest(model, extractor), digest_tables(job)
    check_folder(folder)
    with lock_output(folder) if state.is_main_process else nullcontext(), opening as session:
        with state.main_process_first():
            if options.events:
                _prepare_log(options, extractor, engine)
            check_vocabularies(job.data, extractor)
            prepared = PreparedData(job.data)
            if state.is_main_process:  # before a shard is read
                prepared.check()
            if options.as_of is None and extractor.order is None:
                asked = Questions(label=head is MCMForCustomerPrediction, offers=options.actions)
                job = replace(job, as_of=cast(int, asked.at_end(prepared.manifest.counts["last"]).as_of))
            model, extractor, job = _count_then(model, extractor, job, prepared, engine.engine == "spark")
            customers = prepared.manifest.counts["customers"]
            if state.is_main_process:
                data = file_digest(Path(job.data) / MANIFEST_FILE)
                claim(job, {"model": digest, "data": data, "tables": tables}, customers)
        missing = [part for part in job.parts(customers) if not is_sealed(part[0])]
        state.wait_for_everyone()  # no process writes before all have made the same list of missing files
        if session is not None:
            score_on_spark(session, job, digest, missing)
        else:
            own = missing[state.process_index :: state.num_processes]
            scorer, total = BatchScorer(model.to(state.device), extractor, job), sum(len(rows) for _, rows in own)
            with logging.tqdm(total=total, desc="Scoring", unit="customer", disable=not state.is_main_process) as bar:
                scorer.progress = bar.update
                for path, rows in own:
                    scorer.write(path, rows)
    state.wait_for_everyone()
    if state.is_main_process and options.events:
        shutil.rmtree(folder / HISTORIES)
    there = len(job.parts(customers)) - len(missing)
    summary = f"{folder}: {customers:,} customers, {len(missing)} files written" + f", {there} were there" * bool(
        there
    )
    return "\n".join([*totals, summary])


@command(__doc__, PredictionOptions, EngineOptions)
def main(options: PredictionOptions, engine: EngineOptions) -> None:
    """Scores the customers and prints what was written."""
    keep_freed_memory()
    summary = run(options, engine)
    if PartialState().is_main_process:
        print(summary)
    PartialState().destroy_process_group()  # its threads sometimes abort the process at its end
