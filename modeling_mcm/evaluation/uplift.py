# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What an offer changes: customers who got it beside customers like them who did not.

Who was offered need not have been drawn by lot: the propensity, the probability of an offer, is estimated from what
was known of a customer, and each outcome is compared with what models of both groups expect (doubly robust scores:
right if either the propensity or the models are). Whatever judges a customer was learned from other customers, so
intervals hold though the models are fitted. What they can't see is a reason to offer that is neither in the log nor
in the table.

Shapes: N rows of customers at a time, M customers that are asked about, F features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from transformers.utils import logging

from modeling_mcm.events_mcm import check_columns
from modeling_mcm.extras import needs

logger = logging.get_logger(__name__)
FOLDS = 5
OVERLAP = (0.02, 0.98)  # propensities of customers like whom some were offered and some were not
FEWEST = 100  # rows that were offered, and rows that were not
Z = 1.96  # of intervals of 95%
BOOLEANS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
PENALTIES = np.logspace(0, 5, 11)


class Uplift(NamedTuple):
    """What an offer changes.

    Attributes:
        customers (`pd.DataFrame`): A row for each customer that is asked about: `effect`, the difference that an offer
            makes to the mean outcome of customers like this one, not a number where there is no overlap, with an
            interval from `low` to `high`, the posterior's 95% (in made shops 83% to 92%); `propensity`, how likely
            customers like this one were to be offered; and `offer`, whether to.
        policies (`pd.DataFrame`): What the mean customer of the experiment brings if nobody is offered, everybody, or
            `by_effect` whom `offer` would choose, beside as many `by_outcome` of those with the highest outcome after
            an offer: the share `offered`, the `value` less costs, and the `gain` over nobody, with their intervals.
        no_overlap (`float`): Share of the rows like which (nearly) all were offered, or none; policies leave them out.
    """

    customers: pd.DataFrame
    policies: pd.DataFrame
    no_overlap: float


def read_rows(table: pd.DataFrame, keys: Sequence[str], outcome: str, offered: str) -> tuple[NDArray, NDArray]:
    """Which rows of a table were offered and what came of them, each `(N,)`. Raises `ValueError` if a column is
    missing or holds something else."""
    check_columns(table.columns, (*keys, offered, outcome), "The rows have", "Name yours as `offered` and `outcome`.")
    for name in (*keys, offered, outcome):
        if missing := int(table[name].isna().sum()):
            raise ValueError(f"Column {name!r} is null in {missing} of {len(table)} rows: fill it, or leave them out.")
    was_offered = table[offered].astype(str).str.lower().map(BOOLEANS)  # of a CSV file all is text
    if was_offered.isna().any():
        raise ValueError(f"Column {offered!r} holds {table[offered].unique()[:3].tolist()}; expected true and false.")
    numbers = pd.to_numeric(table[outcome], errors="coerce").to_numpy(np.float64)
    if not np.isfinite(numbers).all():
        wrong = table[outcome].iloc[np.isfinite(numbers).argmin()]
        raise ValueError(f"Column {outcome!r} holds {wrong!r}; expected finite numbers.")
    return was_offered.to_numpy(bool), numbers


def estimate_uplift(
    features: NDArray,
    offered: NDArray,
    outcomes: NDArray,
    customers: ArrayLike,
    asked: NDArray,
    cost: float = 0.0,
    budget: float | None = None,
) -> Uplift:
    """Estimates what an offer changes.

    Args:
        features (`NDArray`, `(N, F)`): What was known before an offer was or was not made.
        offered (`NDArray`, `(N,)`): Whether it was.
        outcomes (`NDArray`, `(N,)`): What came of it: a number, or 0 and 1.
        customers (`ArrayLike`, `(N,)`): Whose rows these are; rows of one customer depend on each other.
        asked (`NDArray`, `(M, F)`): The same features of customers who may get the offer now.
        cost (`float`): Of one offer, in the unit of the outcome.
        budget (`float`, *optional*): The most that offers to those who are asked about may cost together.

    Raises:
        ValueError: If there are too few rows of a kind, outcomes are all the same, or most rows have no overlap.
    """
    with needs("gbdt"):
        from sklearn.linear_model import BayesianRidge, RidgeCV
        from sklearn.preprocessing import StandardScaler

    offered, outcomes = np.asarray(offered, bool), np.asarray(outcomes, np.float64)
    with_offer, without = int(offered.sum()), int((~offered).sum())
    if min(with_offer, without) < FEWEST:
        raise ValueError(
            f"Found {with_offer} rows with an offer and {without} without; expected {FEWEST} or more of each: the "
            "difference is one between customers who were offered and others who were not."
        )
    if np.ptp(outcomes) == 0:
        raise ValueError(f"All {len(outcomes)} outcomes are {outcomes[0]:g}: there is nothing that an offer changes.")
    if not np.isfinite(cost):
        raise ValueError(f"The cost of an offer is {cost}: give a number.")
    if budget is not None and not (cost > 0 <= budget):
        raise ValueError(f"The budget is {budget:g} and the cost of an offer {cost:g}: give a cost of more than 0.")
    scaler = StandardScaler().fit(features)
    features, asked = (scaler.transform(values).clip(-3, 3) for values in (features, asked))
    names, owner = np.unique(np.asarray(customers), return_inverse=True)
    folds = (np.random.default_rng(0).permutation(len(names)) % FOLDS)[owner]

    propensity, asked_propensity = _estimate_propensity(features, offered, folds, asked)
    overlap, asked_overlap = (
        (values >= OVERLAP[0]) & (values <= OVERLAP[1]) for values in (propensity, asked_propensity)
    )
    no_overlap = 1 - float(overlap.mean())
    where = f"of {no_overlap:.0%} of the rows: of customers like these (nearly) all were offered, or none"
    if no_overlap > 0.5:
        raise ValueError(
            f"Nothing says what an offer changes {where}. Leave some customers out of the next campaign, drawn by lot."
        )
    if no_overlap:
        logger.warning(f"Nothing says what an offer changes {where}. Policies are of the others.")
    features, offered, outcomes, owner, folds, propensity = (
        values[overlap] for values in (features, offered, outcomes, owner, folds, propensity)
    )

    def cross_fit(model: Any, targets: NDArray, rows: NDArray) -> NDArray:
        """Predictions (N,) of models that learned from some rows of other folds."""
        values = np.zeros(len(targets))
        for fold in range(FOLDS):
            learned, judged = rows & (folds != fold), folds == fold
            values[judged] = model.fit(features[learned], targets[learned]).predict(features[judged])
        return values

    after, before = (cross_fit(RidgeCV(PENALTIES), outcomes, rows) for rows in (offered, ~offered))
    without_offer = before + ~offered * (outcomes - before) / (1 - propensity)  # doubly robust scores (N,)
    differences = after + offered * (outcomes - after) / propensity - without_offer
    effects = cross_fit(BayesianRidge(), differences, np.ones(len(folds), bool))

    final = BayesianRidge().fit(features, differences)
    effect = final.predict(asked)
    # The noise of a row is not of the mean; that of the intercept is
    spread = np.sqrt(np.einsum("mf,fg,mg->m", asked, final.sigma_, asked) + 1 / (final.alpha_ * len(features)))
    table = pd.DataFrame({"effect": effect, "low": effect - Z * spread, "high": effect + Z * spread})
    table[~asked_overlap] = np.nan
    table["propensity"] = asked_propensity
    candidates = int(asked_overlap.sum())
    most = candidates if budget is None else min(int(budget / cost), candidates)
    table["offer"] = _choose(np.where(asked_overlap, effect, -np.inf), most, cost)

    policies = ("nobody", "everybody", "by_outcome", "by_effect")
    chosen = {name: np.full(len(folds), name == "everybody") for name in policies}
    for fold in range(FOLDS):
        judged = np.flatnonzero(folds == fold)
        by_effect = _choose(effects[judged], round(len(judged) * most / max(candidates, 1)), cost)
        chosen["by_effect"][judged] = by_effect
        chosen["by_outcome"][judged] = _choose(after[judged], int(by_effect.sum()))
    rows = {}
    for name, is_chosen in chosen.items():
        gains = is_chosen * (differences - cost)
        row = {"offered": is_chosen.mean()}
        for column, scores in (("value", without_offer + gains), ("gain", gains)):
            mean, width = scores.mean(), Z * _standard_error(scores, owner)
            row |= {column: mean, f"{column}_low": mean - width, f"{column}_high": mean + width}
        rows[name] = row
    return Uplift(table, pd.DataFrame.from_dict(rows, "index").rename_axis("policy"), no_overlap)


def _choose(scores: NDArray, most: int, least: float = -np.inf) -> NDArray[np.bool_]:
    """Which scores are the highest ones that are more than the least."""
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind="stable")[:most]] = True
    return chosen & (scores > least)


def _standard_error(scores: NDArray, owner: NDArray) -> float:
    """Standard error of the mean of scores (N,), of which those of one customer depend on each other."""
    sums = np.bincount(owner, scores - scores.mean())
    return float(np.sqrt((sums**2).sum()) / len(scores))


def _estimate_propensity(
    features: NDArray, offered: NDArray, folds: NDArray, asked: NDArray
) -> tuple[NDArray, NDArray]:
    """How likely an offer was for each row, by models that learned from other folds, and is for those who are asked
    about. The share of all, as of a lottery, a linear model and trees are compared on the other folds."""
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    models = [
        DummyClassifier(),
        LogisticRegression(C=0.1, max_iter=500),
        HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8, random_state=0),
    ]
    found = []
    for model in models:
        rows, others = np.zeros(len(folds)), np.zeros(len(asked))
        for fold in range(FOLDS):
            judged = folds == fold
            model.fit(features[~judged], offered[~judged])
            rows[judged] = model.predict_proba(features[judged])[:, 1]
            others += model.predict_proba(asked)[:, 1] / FOLDS
        found.append((log_loss(offered, rows), rows, others))
    return min(found, key=lambda each: each[0])[1:]
