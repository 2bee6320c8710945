# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is fitted outside of the Trainer's steps: the labels' usual values before them, the customer state after."""

from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_LABEL, FIRST_VALUE_ID, MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import arrow_batches, deciding_tasks, flat_values, locate_events
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.data.dataset import POPULARITY_FILE
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.forecaster_mcm import LONGEST_RATIO, VisitForecaster
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation, MCMModel
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.training.forecaster import load_weights, pad_visits, set_shop
from modeling_mcm.training.state import fit_state, latest_events

logger = logging.get_logger(__name__)
SHOP_CUSTOMERS, READ_AT_ONCE = 2**15, 512  # customers whose visits describe the shop, and of whom so many are padded
EARLIEST = 1e-3  # share of the visits before the window, which begins there: a wrong date must not stretch it
DECIDED = 0.9  # a label determines a feature if this share of events has the label's most frequent value


def trainable(ends: NDArray) -> NDArray[np.int64]:
    """The customers with at least two events before the validation cutoff. Raises `ValueError` if there is none."""
    several = np.flatnonzero(ends > 1)
    if not len(several):
        raise ValueError(
            f"None of the {len(ends)} customers has two events before the validation cutoff, so there is nothing to "
            "train on: move the cutoff dates of the event schema."
        )
    return several


def popularity(data: PreparedData, config: MCMConfig) -> dict[str, torch.Tensor]:
    """Reads how often each label was a target in the training period, by task of shape `(labels,)`."""
    table = pq.read_table(data.folder / POPULARITY_FILE).to_pandas()
    counts = {}
    for task, size in config.label_sizes.items():
        task_rows = table[table["feature"] == task]
        counts[task] = torch.zeros(size)
        counts[task][torch.as_tensor(task_rows["id"].to_numpy().copy())] = torch.as_tensor(
            task_rows["target_count"].to_numpy().copy(), dtype=torch.float32
        )
    return counts


@torch.no_grad()
def fill_label_values(model: MCMForMultiTaskRecommendation, rows: Any) -> dict[str, list[str]]:
    """Determines each label's most frequent value of `label_features` in the training period. It does so for the
    features that a task's labels determine: those where at least nine in ten events, over all labels, have their
    label's most frequent value. Other features stay out of the labels' embeddings. Returns `dict[str, list[str]]`: by
    task the features that its labels determine."""
    config = model.config
    decided: dict[str, list[str]] = {task: [] for task in config.tasks}
    for index, task in enumerate(config.tasks):
        for column, name in enumerate(config.label_features):
            if name == task:
                continue
            counts = _count_values(rows, task, name)
            usual = counts.sort_values(["events", "value"], ascending=[False, True]).drop_duplicates("label")
            if len(usual) and usual["events"].sum() >= DECIDED * counts["events"].sum():
                decided[task].append(name)
                values = model.label_values(index)[:, column]
                values.zero_()
                values[torch.tensor(usual["label"].to_numpy())] = torch.tensor(usual["value"].to_numpy()).int()
    return decided


def _count_values(rows: Any, task: str, feature: str) -> pd.DataFrame:
    """Numbers of `events` of the training period by `label` of a task and `value` of a feature."""
    parts = []
    columns = {"label": f"task_{task}", "value": f"feature_{feature}"}
    for table in arrow_batches(rows, ["visits", *columns.values(), "validation_end"]):
        row, index = locate_events(table)
        events = pd.DataFrame({name: flat_values(table, column) for name, column in columns.items()})
        is_trained = index < flat_values(table, "validation_end")[row]
        parts.append(events[is_trained & (events >= FIRST_LABEL).all(axis=1)].value_counts())
    return pd.concat(parts).groupby(level=["label", "value"]).sum().rename("events").reset_index()


def describe_customers(model: MCMForMultiTaskRecommendation, data: PreparedData, seed: int) -> None:
    """Fits the customer state, and describes the shop to the forecaster. Both read customers with any event before the
    validation cutoff: of those who came once, most do not come again."""
    ends = np.asarray(data.rows["validation_end"])
    several = np.flatnonzero(ends > 0)
    cutoff = None if data.schema.leaves_one_out else float(data.schema.cutoff_seconds("validation"))
    prepared = PreparedRows(data.rows, several, ends[several])
    fit_state(model.model, data.extractor, prepared, cutoff, seed)
    requested = sorted(model.config.forecast_days)
    window = describe_shop(model.model, data.extractor, prepared, cutoff)
    for name in ("forecast_days", "forecast_window", "target_features", "target_types"):
        setattr(model.config, name, getattr(model.model.config, name))
    missed = ", ".join(f"{day:g}" for day in requested if day not in model.config.forecast_days)
    if data.extractor.order is not None:
        logger.warning("There are no forecasts, because the log has no times: name its `time` in the event schema.")
    elif not model.config.forecast_window:
        logger.warning(
            f"There are no forecasts, because the training period has {24 * window:.1f} hours, no whole day."
        )
    elif missed:
        logger.warning(
            f"There are no forecasts for {missed} days: the longest horizon is {LONGEST_RATIO:g} times the training "
            f"period of {window:.1f} days. Choose a later validation cutoff."
        )


@torch.no_grad()
def describe_shop(model: MCMModel, extractor: MCMFeatureExtractor, rows: Any, cutoff: float | None) -> float:
    """Makes the forecaster, with the shipped weights and the statistics of the shop in the training period: those of
    all customers, or of `SHOP_CUSTOMERS` of them. A log without times, or with less than a day of visits, has no
    forecaster. Horizons that are too long are left out of the config.

    Args:
        rows ([`PreparedRows`]): The customers with an event in the training period.
        cutoff (`float`, *optional*): Its end, in seconds since 1970. `None`: each customer's last visits are held out.

    Returns:
        `float`: Days of the training period.
    """
    config, token = model.config, extractor.token_type_feature
    config.target_features = deciding_tasks(config.tasks, token)
    known = extractor.vocabularies[token]
    named = [known.index(name) + FIRST_VALUE_ID for name in extractor.target_token_types if name in known]
    config.target_types = {token: named} if named else {}
    config.forecast_window = 1.0  # so that there is a forecaster, which reads visits; its length follows
    model.make_forecaster()
    forecaster = cast(VisitForecaster, model.forecaster)
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:SHOP_CUSTOMERS])
    customers, times, amounts = [], [], []
    for start in range(0, len(chosen), READ_AT_ONCE):
        read = [
            latest_events(row, extractor.max_events - 1)
            for row in rows.__getitems__(chosen[start:][:READ_AT_ONCE].tolist())
        ]
        batch = extractor.pad([extractor.readable(history, config.input_features) for history in read])
        is_event = batch["attention_mask"].bool()
        is_event[:, 0] = False
        inputs = (batch.get(name) for name in ("visit_ids", "event_times", "event_values"))
        visits = forecaster.read(batch["input_ids"], is_event, *inputs)  # type: ignore[arg-type]
        starts = torch.tensor([float(history["times"][0]) / SECONDS_PER_DAY for history in read], dtype=torch.float64)
        customers.append(start + visits.is_visit.nonzero()[:, 0])
        times.append((visits.times.double() + starts[:, None])[visits.is_visit])
        amounts.append(visits.amounts[visits.is_visit])
    customer, days = torch.cat(customers), torch.cat(times)
    window = 0.0
    if len(days) and extractor.order is None:
        end = float(days.max()) if cutoff is None else cutoff / SECONDS_PER_DAY
        window = end - float(days.sort().values[int(EARLIEST * len(days))])
    if window < 1:
        config.forecast_window, config.forecast_days = 0.0, []
        model.make_forecaster()
        return window
    load_weights(forecaster)
    visits = pad_visits(customer.numpy(), (days - end).float().numpy(), torch.cat(amounts).numpy(), len(chosen))
    set_shop(forecaster, visits, torch.zeros(len(chosen)), window)
    config.forecast_window = window
    config.forecast_days = model.customer_forecasts.days
    return window
