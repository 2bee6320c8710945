# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores and metrics of offers: who responds, and which offers they take.

**Who responds** ranks all groups by the number of offers that they are expected to take: average precision and ROC AUC
of "takes any of its offers". **Which offer** ranks the offers of each group that takes one: NDCG@k and recall@k, as
the mean over such groups; equal scores count as their expected rank. The groups of all campaigns are evaluated
together, because most campaigns have too few responses for metrics of their own. Intervals come from resamples of the
customers, each with all of its groups.

Shapes: G groups, N offers, S resamples.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from modeling_mcm.action_mcm import MCMForActionRecommendation
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.data.offers import OfferReader, Offers
from modeling_mcm.events_mcm import pad_groups

from .metrics import LIST_METRICS, RESAMPLES, TAILS, Interval, ratio, tie_ranks, weighted_ranking


@torch.inference_mode()
def score_offers(model: MCMForActionRecommendation, reader: OfferReader, batch_size: int = 32) -> NDArray:
    """Scores offers with an `MCMForActionRecommendation`: the log-odds of each outcome, and last the scores without
    the head, which are sums over tasks of the model's `preferences`, of shape `(N, outcomes + 1)`."""
    scores = np.zeros((len(reader.offers.table), len(model.config.action_outcomes) + 1), np.float32)
    for rows, inputs in reader.batches(model.device, batch_size):
        outputs = model(**inputs)
        both = torch.cat([outputs.logits, outputs.preferences.sum(-1, keepdim=True)], -1)
        scores[rows] = both[inputs["offered_actions"] >= 0].float().cpu()
    return scores


def offer_metrics(offers: Offers, outcome: str, scores: NDArray, k: int = 10) -> dict[str, Interval]:
    """Computes `average_precision`, `roc_auc`, `ndcg@k` and `recall@k` with their intervals, from the log-odds of an
    outcome of each offer, `(N,)`. A resample in which no group takes an offer has no say. Raises
    `ValueError` if no group or every group takes an offer."""
    taken, offsets, owners = offers.table[outcome].to_numpy(), offers.offsets, offers.groups["customer_id"]
    responds = np.add.reduceat(np.nan_to_num(taken), offsets[:-1]) > 0
    if responds.all() or not responds.any():
        raise ValueError(
            f"{int(responds.sum())} of {len(responds)} groups take an offer; expected some that do and some that "
            "don't. Evaluate on more offers."
        )
    customers, owner = np.unique(owners.to_numpy(str), return_inverse=True)
    shares = np.full(len(customers), 1 / len(customers))
    weights = np.random.default_rng(0).multinomial(len(customers), shares, size=RESAMPLES)[:, owner]
    weights = np.concatenate([np.ones((1, len(owner)), np.int64), weights])  # first the data as they are
    values = weighted_ranking(responds, np.add.reduceat(expit(scores.astype(np.float64)), offsets[:-1]), weights)
    # Offers stand for the labels of a task, whose ids begin with FIRST_LABEL. One that was not observed is not ranked.
    sizes, before = np.diff(offsets), ((0, 0), (FIRST_LABEL, 0))
    ranked = np.pad(pad_groups(np.where(np.isnan(taken), -np.inf, scores), sizes, -np.inf), before)
    relevant = np.pad(pad_groups(taken == 1, sizes), before)
    greater, ties = tie_ranks(ranked, relevant * np.arange(relevant.shape[1]))
    taking = weights[:, responds]
    for name, metric in LIST_METRICS.items():
        values[f"{name}@{k}"] = ratio(taking @ metric(greater, ties, relevant, k)[responds], taking.sum(1))
    intervals = {}
    for name, metric_values in values.items():
        low, high = np.nanquantile(metric_values[1:], TAILS)
        intervals[name] = Interval(float(metric_values[0]), float(low), float(high), len(customers))
    return intervals
