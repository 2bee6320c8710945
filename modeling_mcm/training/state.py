# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The statistics of the customer state: of what customers had done at times of the training period. Nothing is
trained, and nothing after the validation cutoff is read.

Shapes: B customers, M times of a customer, R = B M.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from scipy.sparse.linalg import LinearOperator, svds
from transformers.utils import logging

from modeling_mcm.events_mcm import SECONDS_PER_DAY, select_events
from modeling_mcm.modeling_mcm import MCMModel
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.state_mcm import GAPS, LARGEST_Z, MIN_STD, CustomerState

TIMES = 4  # of a customer; the last one is the end of the training period
MOST_CUSTOMERS, MOST_NUMBERS, AT_ONCE = 2**13, 2**26, 32  # of the sample; of all its counts; counted at a time
MOST_LAST = 2**15  # customers whose counts at the end of the training period give the components


def latest_events(row: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """Takes the latest events before the validation cutoff, at most `longest`."""
    latest = slice(max(0, row["validation_end"] - longest), row["validation_end"])
    return select_events(row, latest)


def count_at_times(
    state: CustomerState,
    extractor: MCMFeatureExtractor,
    rows: Sequence[Mapping[str, Any]],
    read: Sequence[str] | None,
    cutoff: float | None,
    generator: np.random.Generator,
    number: int = TIMES,
) -> torch.Tensor:
    """Counts `(B, M, numbers)` of customers at times between their first event and the end of the training period,
    which comes last; all but one of the others lie in the second half of that time.

    Args:
        rows (sequence of `dict`): Prepared rows, each with an event before its `validation_end`.
        read (sequence of `str`): Names of the features that the model reads.
        cutoff (`float`, *optional*): End of the training period, in seconds since 1970. `None`: the customer's last
            event of it.
        number (`int`): M.
    """
    histories = [latest_events(row, extractor.max_events - 1) for row in rows]  # the start row takes one position
    first = np.array([[float(history["times"].min())] for history in histories])
    last = np.array([[float(history["times"].max())] for history in histories])
    end = np.maximum(last if cutoff is None else cutoff, first + 1)
    starts = np.where(np.arange(number - 1) == 0, first, (first + end) / 2)
    times = np.concatenate([generator.uniform(starts, end), end], 1)
    zero = np.array([[history["times"][0]] for history in histories])
    batch = extractor.pad([extractor.readable(history, read) for history in histories])
    as_of = torch.from_numpy(((times - zero) / SECONDS_PER_DAY).astype(np.float32))
    names = "input_ids", "attention_mask", "visit_ids", "event_times", "event_values"
    return state.counts(**{name: batch.get(name) for name in names}, as_of=as_of)  # type: ignore[arg-type]


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
def fit_state(model: MCMModel, extractor: MCMFeatureExtractor, rows: Any, cutoff: float | None, seed: int = 0) -> None:
    """Sets means, standard deviations, the longest silence and the directions of a model's customer state.

    Args:
        rows ([`PreparedRows`]): The customers with an event in the training period, of whom a sample is read.
        cutoff (`float`, *optional*): End of the training period of all customers, in seconds since 1970. `None` if
            each customer's last visits are held out.
    """
    state, read, generator = model.state, model.config.input_features, np.random.default_rng(seed)
    if state is None:
        raise ValueError("The model has no customer state: its config has the state_size 0.")
    device = state.mean.device
    state.cpu()  # counting takes many small steps, which a GPU would not make faster
    most = min(MOST_CUSTOMERS, max(MOST_NUMBERS // (TIMES * len(state.mean)), 1))
    most, chosen = min(most, len(rows)), generator.permutation(len(rows))[:MOST_LAST]
    counts = torch.empty(most, TIMES, len(state.mean))
    last: list[csr_array] = []
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
