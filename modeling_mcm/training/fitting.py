# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is fitted outside of the Trainer's steps: the labels' usual values before them; after them the statistics of
the customer state, of what customers had done at times of the training period, and of the shop. None of it is trained,
and nothing after the validation cutoff is read.

Shapes: B customers, M times of a customer, R = B M.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature
from transformers.utils import logging

from modeling_mcm.configuration_mcm import FIRST_LABEL, MCMConfig
from modeling_mcm.data import PreparedData
from modeling_mcm.data.cases import deciding_tasks, load_columns
from modeling_mcm.data.collator import PreparedRows
from modeling_mcm.evaluation.cases import read_history
from modeling_mcm.events_mcm import SECONDS_PER_DAY, Row, select_events
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.forecaster_mcm import LONGEST_RATIO, VisitForecaster, Visits
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation, MCMModel
from modeling_mcm.state_mcm import GAPS, LARGEST_Z, MIN_STD, CustomerState

from .forecaster.shop import load_weights, set_shop

logger = logging.get_logger(__name__)
SHOP_CUSTOMERS, READ_AT_ONCE = 2**15, 128  # customers whose visits describe the shop, and of whom so many are padded
SHOP_EVENTS = 2_000  # latest events of each of them: more than are read otherwise, or the period would be too short
EARLIEST = 1e-3  # share of the visits before the window, which begins there: a wrong date must not stretch it
DECIDED = 0.9  # a label determines a feature if this share of events has the label's most frequent value
TIMES = 4  # of a customer; the last one is the end of the training period
MOST_CUSTOMERS, MOST_NUMBERS, AT_ONCE = 2**13, 2**26, 32  # of the sample; of all its counts; counted at a time
HISTORY = "input_ids", "attention_mask", "visit_ids", "event_times", "event_values"  # model inputs that are counted
MOST_LAST = 2**15  # customers whose counts at the end of the training period give the components


@torch.enable_grad()
def minimize(function: Callable[..., Tensor], start: Sequence[Tensor], **options: Any) -> list[Tensor]:
    """Parameters of a function that minimise it, by L-BFGS."""
    parameters = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe", **options)

    def closure() -> float:
        optimizer.zero_grad()
        loss = function(*parameters)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return [value.detach() for value in parameters]


def make_descent(
    network: nn.Module, learning_rate: float, weight_decay: float, steps: int, warm_up: float
) -> Callable[[Tensor], None]:
    """Makes a function that lowers a loss by a step of AdamW. In so many steps the learning rate rises, in the share
    `warm_up` of them, and falls."""
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=warm_up)

    def descend(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    return descend


def popularity(data: PreparedData, config: MCMConfig) -> dict[str, Tensor]:
    """Counts how often each label was a target in the training period, by task of shape `(labels,)`."""
    return {
        task: torch.from_numpy(np.bincount(read_history(data.rows, task).label, minlength=size))
        for task, size in config.label_sizes.items()
    }


def categorical_features(extractor: MCMFeatureExtractor) -> list[str]:
    """The categorical features of events, without the token type: labels may determine them."""
    own = {*extractor.layout.profile, extractor.token_type_feature}
    return [name for name in extractor.feature_names if name in extractor.vocabularies and name not in own]


def find_usual_values(rows: Dataset, config: MCMConfig, task: str, features: Sequence[str]) -> dict[str, NDArray]:
    """Finds the features that a task's labels determine: those where at least nine in ten events of the training
    period, over all labels, have their label's most frequent value. Returns by feature these values `(V,)`, 0 for a
    label without any."""
    sizes = dict(zip(config.features, config.vocabulary_sizes, strict=True))
    columns = {name: f"feature_{name}" for name in features if name != task}
    batch = load_columns(rows, ["validation_end", f"task_{task}", *columns.values()])
    labels, values = batch.column(f"task_{task}"), dict[str, NDArray]()
    is_labelled = (batch.places < batch.column("validation_end")[batch.row]) & (labels >= FIRST_LABEL)
    for name, column in columns.items():
        own = np.flatnonzero(is_labelled & (batch.column(column) >= FIRST_LABEL))
        pairs = labels[own], batch.column(column)[own]
        counts = csr_array((np.ones(len(own)), pairs), shape=(sizes[task], sizes[name]))
        if counts.nnz and counts.max(axis=1).sum() >= DECIDED * counts.sum():
            values[name] = counts.argmax(axis=1)  # of equally frequent values the first one
    return values


@torch.no_grad()
def fill_label_values(model: MCMForMultiTaskRecommendation, rows: Dataset) -> dict[str, list[str]]:
    """Sets each label's values of `label_features`, see [`find_usual_values`]. Other features stay out of the labels'
    embeddings. Returns `dict[str, list[str]]`: by task the features that its labels determine."""
    config, decided = model.config, dict[str, list[str]]()
    for index, task in enumerate(config.tasks):
        usual = find_usual_values(rows, config, task, config.label_features)
        for name, values in usual.items():
            model.label_values(index)[:, config.label_features.index(name)] = torch.from_numpy(values).int()
        decided[task] = [*usual]
    return decided


def describe_customers(model: MCMForMultiTaskRecommendation, data: PreparedData, seed: int) -> None:
    """Fits the customer state, and describes the shop to the forecaster. Both read customers with any event before the
    validation cutoff: of those who came once, most do not come again."""
    known = np.flatnonzero(np.asarray(data.rows["validation_end"]) > 0)
    cutoff = None if data.schema.leaves_one_out else float(data.schema.cutoff_seconds("validation"))
    prepared = PreparedRows(data.rows, known)
    fit_state(model.model, data.extractor, prepared, cutoff, seed)
    describe_shop(model.model, data.extractor, prepared, cutoff)


@torch.no_grad()
def describe_shop(model: MCMModel, extractor: MCMFeatureExtractor, rows: PreparedRows, cutoff: float | None) -> None:
    """Makes the forecaster, with the shipped weights and the statistics of the shop in the training period: those of
    all customers, or of `SHOP_CUSTOMERS` of them. A log without times, or with less than a day of visits, has no
    forecaster. Horizons that are too long are left out of the config. The log says what there is not, and why.

    Args:
        rows ([`PreparedRows`]): The customers with an event in the training period.
        cutoff (`float`, *optional*): Its end, in seconds since 1970. `None`: each customer's last visits are held out.
    """
    config, token = model.config, extractor.token_type_feature
    config.target_features = deciding_tasks(config.tasks, token)
    config.target_types = {token: sorted(extractor.layout.targets)}
    config.forecast_window = 1.0  # so that there is a forecaster, which reads visits; its length follows
    model.make_forecaster()
    forecaster = cast(VisitForecaster, model.forecaster)
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:SHOP_CUSTOMERS])
    whole = copy.copy(extractor)
    whole.max_events = max(SHOP_EVENTS, extractor.max_events)
    kept = []  # of each customer
    for start in range(0, len(chosen), READ_AT_ONCE):
        sample = rows.__getitems__(chosen[start : start + READ_AT_ONCE].tolist())
        histories, batch = pad_latest(whole, sample, config.input_features)
        visits = forecaster.read(*(batch.get(name) for name in HISTORY))  # type: ignore[arg-type]
        starts = torch.from_numpy(np.array([history["times"][0] for history in histories]) / SECONDS_PER_DAY)
        visits = visits._replace(times=visits.times + starts[:, None])
        kept += [Visits(*(column[row, visits.is_visit[row]] for column in visits)) for row in range(len(sample))]
    visits = Visits(*(pad_sequence([*column], batch_first=True) for column in zip(*kept, strict=True)))
    days, window = visits.times[visits.is_visit], 0.0
    if len(days) and extractor.order is None:
        end = float(days.max()) if cutoff is None else cutoff / SECONDS_PER_DAY
        window = end - float(days.sort().values[int(EARLIEST * len(days))])
    if window < 1:
        config.forecast_window, config.forecast_days = 0.0, []
        model.make_forecaster()
        reason = f"the training period has {24 * window:.1f} hours, no whole day"
        if extractor.order is not None:
            reason = "the log has no times: name its `time` in the event schema"
        logger.warning(f"There are no forecasts, because {reason}.")
        return
    load_weights(forecaster)
    visits = visits._replace(times=(visits.times - end).float())
    set_shop(forecaster, visits, torch.zeros(len(chosen)), window)
    config.forecast_window, requested = window, sorted(config.forecast_days)
    config.forecast_days = model.customer_forecasts.days
    if missed := [f"{day:g}" for day in requested if day not in config.forecast_days]:
        logger.warning(
            f"There are no forecasts for {', '.join(missed)} days: the longest horizon is {LONGEST_RATIO:g} times the "
            f"training period of {window:.1f} days. Choose a later validation cutoff."
        )


def pad_latest(
    extractor: MCMFeatureExtractor, rows: Sequence[Row], read: Sequence[str] | None
) -> tuple[list[dict], BatchFeature]:
    """The latest events of prepared rows before the validation cutoff, as many as are read, and model inputs of them.
    `read` are the names of the features that the model reads."""
    longest = extractor.max_events - 1  # the start row takes one position
    latest = [select_events(select_events(row, slice(row["validation_end"])), slice(-longest, None)) for row in rows]
    return latest, extractor.pad([extractor.readable(history, read) for history in latest])


def count_at_times(
    state: CustomerState,
    extractor: MCMFeatureExtractor,
    rows: Sequence[Row],
    read: Sequence[str] | None,
    cutoff: float | None,
    generator: np.random.Generator,
    number: int = TIMES,
) -> Tensor:
    """Counts `(B, M, numbers)` of customers at times between their first event and the end of the training period,
    which comes last; all but one of the others lie in the second half of that time.

    Args:
        rows (sequence of `dict`): Prepared rows, each with an event before its `validation_end`.
        read (sequence of `str`): Names of the features that the model reads.
        cutoff (`float`, *optional*): End of the training period, in seconds since 1970. `None`: the customer's last
            event of it.
        number (`int`): M.
    """
    histories, batch = pad_latest(extractor, rows, read)
    spans = [(history["times"].min(), history["times"].max(), history["times"][0]) for history in histories]
    first, last, zero = np.array(spans, np.float64).T[..., None]
    end = np.maximum(last if cutoff is None else cutoff, first + 1)
    starts = np.where(np.arange(number - 1) == 0, first, (first + end) / 2)
    times = np.concatenate([generator.uniform(starts, end), end], 1)
    as_of = torch.from_numpy(((times - zero) / SECONDS_PER_DAY).astype(np.float32))
    return state.counts(**{name: batch.get(name) for name in HISTORY}, as_of=as_of)  # type: ignore[arg-type]


def find_components(state: CustomerState, counts: csr_array) -> None:
    """Sets the first rows of D to the principal directions of standardised counts, scaled so that each component has
    variance 1, and these counts' means and standard deviations.

    Args:
        counts (`csr_array` of shape `(customers, undecayed)`): Undecayed counts of customers: sparse, because it takes
            many of them to say which of many rare values go together.
    """
    mean = counts.mean(0)
    std = np.sqrt((counts.multiply(counts).mean(0) - mean**2).clip(min=0))
    index = state.undecayed
    state.mean[index], state.std[index] = (torch.from_numpy(values).float() for values in (mean, std))
    std = std.clip(min=MIN_STD)
    shift, z = mean / std, csr_array(counts.multiply(1 / std))
    z.data = np.minimum(z.data, LARGEST_Z + shift[z.indices])
    number = min(state.components, *(size - 1 for size in z.shape))
    state.directions[: state.components] = 0.0
    if number < 1:
        return

    centred = LinearOperator(
        z.shape,
        matvec=lambda vector: z @ vector.ravel() - shift @ vector.ravel(),
        rmatvec=lambda vector: z.T @ vector.ravel() - shift * vector.sum(),
        dtype=np.float64,
    )
    _, sizes, directions = svds(centred, number, v0=np.ones(min(z.shape)))
    scaled = directions[::-1] * (z.shape[0] ** 0.5 / sizes[::-1].clip(min=1e-3 * sizes.max()))[:, None]
    state.directions[:number, index] = torch.from_numpy(scaled.copy()).float()


@torch.no_grad()
def fit_state(
    model: MCMModel, extractor: MCMFeatureExtractor, rows: PreparedRows, cutoff: float | None, seed: int = 0
) -> None:
    """Sets means, standard deviations, the longest silence and the directions of a model's customer state.

    Args:
        rows ([`PreparedRows`]): The customers with an event in the training period, of whom a sample is read.
        cutoff (`float`, *optional*): End of the training period of all customers, in seconds since 1970. `None` if
            each customer's last visits are held out.
    """
    state, read = cast(CustomerState, model.state), model.config.input_features
    generator, device = np.random.default_rng(seed), state.mean.device
    state.cpu()  # counting takes many small steps, which a GPU would not make faster
    most = min(MOST_CUSTOMERS, len(rows), max(MOST_NUMBERS // (TIMES * len(state.mean)), 1))
    chosen = generator.permutation(len(rows))[:MOST_LAST]
    counts = torch.empty(most, TIMES, len(state.mean))
    last = []
    for start in logging.tqdm(range(0, len(chosen), AT_ONCE), desc="Customer state", unit="batch"):
        sample, first = rows.__getitems__(chosen[start : start + AT_ONCE].tolist()), start >= most
        read_counts = count_at_times(state, extractor, sample, read, cutoff, generator, 1 if first else TIMES)
        last.append(csr_array(read_counts[:, -1, state.undecayed].numpy()))
        if not first:
            counts[start : start + AT_ONCE] = read_counts[: most - start]
    flat = counts.flatten(0, 1)
    state.mean.copy_(flat.mean(0))
    state.std.copy_(flat.std(0, correction=0))
    state.longest_silence.fill_(math.expm1(flat[:, state.num_few - len(GAPS)].max().item()))
    find_components(state, csr_array(vstack(last)))
    z = state.standardised(counts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state.find_directions(z.flatten(0, 1))
    state.to(device)
