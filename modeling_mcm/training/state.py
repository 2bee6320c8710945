# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The statistics of the customer state, of what customers had done at times of the training period. None of it is
trained, and nothing after the validation cutoff is read.

Shapes: B customers, M times of a customer, R = B M.
"""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor
from transformers import BatchFeature
from transformers.utils import logging

from modeling_mcm.data.cases import load_columns
from modeling_mcm.data.collator import PreparedRows, batches_by_length
from modeling_mcm.events_mcm import SECONDS_PER_DAY, Row, select_events
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.modeling_mcm import MCMModel
from modeling_mcm.state_mcm import ANY_SILENCE, GAPS, LARGEST_Z, MIN_STD, CustomerState

logger = logging.get_logger(__name__)
TIMES = 4  # of a customer; the last one is the end of the training period
MOST_CUSTOMERS, MOST_NUMBERS, AT_ONCE = 2**13, 2**26, 32  # of the sample; of all its counts; counted at a time
HISTORY = "input_ids", "attention_mask", "visit_ids", "event_times", "event_values"  # model inputs that are counted
MOST_LAST = 2**15  # customers whose counts at the end of the training period give the components


def pad_past(
    extractor: MCMFeatureExtractor, rows: Sequence[Row], read: Sequence[str] | None
) -> tuple[list[NDArray], BatchFeature]:
    """Model inputs of the events of prepared rows before the validation cutoff, and the times of these events: inputs
    count days from the first of them. `read` are the names of the features that the model reads; of a customer without
    an event that has any, the times are those of the unread events."""
    past = [select_events(row, slice(row["validation_end"])) for row in rows]
    histories = [extractor.readable(history, read) for history in past]
    times = [(one if len(one["times"]) else other)["times"] for one, other in zip(histories, past, strict=True)]
    return times, extractor.pad(histories)


def count_at_times(
    state: CustomerState,
    extractor: MCMFeatureExtractor,
    rows: Sequence[Row],
    read: Sequence[str] | None,
    cutoff: float | None,
    shares: NDArray,
) -> Tensor:
    """Counts `(B, M, numbers)` of customers at times between their first event and the end of the training period,
    which comes last; all but one of the others lie in the second half of that time.

    Args:
        rows (sequence of `dict`): Prepared rows, each with an event before its `validation_end`.
        read (sequence of `str`): Names of the features that the model reads.
        cutoff (`float`, *optional*): End of the training period, in seconds since 1970. `None`: the customer's last
            event of it.
        shares (`NDArray` of shape `(B, M - 1)`): Where in that time the others lie, from 0 to 1.
    """
    times, batch = pad_past(extractor, rows, read)
    spans = [(events.min(), events.max(), events[0]) for events in times]
    first, last, zero = np.array(spans, np.float64).T[..., None]  # each (B, 1)
    end = np.maximum(last if cutoff is None else cutoff, first + 1)
    starts = np.where(np.arange(shares.shape[1]) == 0, first, (first + end) / 2)
    drawn = np.concatenate([starts + (end - starts) * shares, end], 1)  # (B, M)
    as_of = torch.from_numpy(((drawn - zero) / SECONDS_PER_DAY).astype(np.float32))
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
    state.longest_silence.fill_(ANY_SILENCE)  # not that of an earlier count
    most = min(MOST_CUSTOMERS, len(rows), max(MOST_NUMBERS // (TIMES * len(state.mean)), 1))
    chosen = generator.permutation(len(rows))[:MOST_LAST]
    counts, shares = torch.empty(most, TIMES, len(state.mean)), generator.random((most, TIMES - 1))
    ends = load_columns(rows.rows, ["validation_end"]).column("validation_end")[rows.indices[chosen]]
    several, once = batches_by_length(ends[:most], AT_ONCE), batches_by_length(ends[most:], AT_ONCE)
    batches, last = [*several, *(most + batch for batch in once)], []
    for batch in logging.tqdm(batches, desc="Customer state", unit="batch"):
        sample, is_several = rows.__getitems__(chosen[batch].tolist()), batch[0] < most
        drawn = shares[batch] if is_several else np.empty((len(batch), 0))
        read_counts = count_at_times(state, extractor, sample, read, cutoff, drawn)
        last.append(csr_array(read_counts[:, -1, state.undecayed].numpy()))
        if is_several:
            counts[batch] = read_counts
    flat = counts.flatten(0, 1)
    state.mean.copy_(flat.mean(0))
    state.std.copy_(flat.std(0, correction=0))
    state.longest_silence.fill_(math.expm1(flat[:, state.num_few - len(GAPS)].max().item()))
    find_components(state, csr_array(vstack(last))[np.concatenate(batches).argsort()])
    for part in flat.split(AT_ONCE**2):  # in place: there may be many
        part.copy_(state.standardised(part))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state.find_directions(flat)
    state.to(device)
