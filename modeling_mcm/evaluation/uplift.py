# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What an offer changes: customers who got it beside customers like them who did not.

Offers need not have been drawn by lot: the propensity, the probability of an offer, is estimated from what was known
of a customer, and each outcome is compared with what models of both groups expect (doubly robust scores: right if
either the propensity or the models are). Whatever judges a customer was learned from other customers (`cross_fit`), so
intervals hold though the models are fitted. Rows of one customer depend on each other: models are fitted to their
mean, and the errors of means are clustered by customer. A reason to offer that is neither in the log nor in the table
can't be seen.

Shapes: N rows of customers at a time, C customers, M customers that are asked about, F features, G folds.
"""

import math
from collections.abc import Callable
from itertools import combinations_with_replacement
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
FEWEST = 100  # customers who were offered, and customers who were not
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


def read_offered(table: pd.DataFrame, offered: str) -> NDArray[np.bool_]:
    """Which rows of a table were offered something, `(N,)`. Raises `ValueError` if the column is missing, or holds
    anything but true and false."""
    check_columns(table.columns, [offered], "The rows have", "Name yours as `offered`.")
    was_offered = table[offered].astype(str).str.lower().map(BOOLEANS)  # of a CSV file all is text
    if was_offered.isna().any():
        raise ValueError(f"Column {offered!r} holds {table[offered].unique()[:3].tolist()}; expected true and false.")
    return was_offered.to_numpy(bool)


class Experiment(NamedTuple):
    """Rows of customers at a time, some of which were offered something.

    Attributes:
        features (`NDArray` of shape `(N, F)`): What was known before, standardised.
        offered (`NDArray[bool]` of shape `(N,)`): Whether there was an offer.
        outcomes (`NDArray` of shape `(N,)`): What came of it.
        owner, fold (`NDArray[int64]` of shape `(N,)`): Index of each row's customer, and that customer's fold.
    """

    features: NDArray
    offered: NDArray
    outcomes: NDArray
    owner: NDArray
    fold: NDArray

    def fit(self, model: Any, targets: NDArray, chosen: NDArray) -> Any:
        """Fits a linear model to targets `(N,)` of chosen rows `(N,)`: to the mean of each customer's, which is one
        observation however many rows there are."""
        table = pd.DataFrame(np.column_stack([self.features, targets])[chosen])
        means = table.groupby(self.owner[chosen]).mean().to_numpy()  # (C, F + 1)
        return model.fit(means[:, :-1], means[:, -1])


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
        customers (`ArrayLike`, `(N,)`): Whose rows these are.
        asked (`NDArray`, `(M, F)`): The same features of customers who may get the offer now.
        cost (`float`): Of one offer, in the unit of the outcome.
        budget (`float`, *optional*): The most that offers to those who are asked about may cost together.

    Raises:
        ValueError: If there are too few customers of a kind, or most rows have no overlap.
    """
    with needs("gbdt"):
        from sklearn.preprocessing import StandardScaler

    if not np.isfinite(cost):
        raise ValueError(f"The cost of an offer is {cost}: give a number.")
    if budget is not None and not (cost > 0 <= budget):
        raise ValueError(f"The budget is {budget:g} and the cost of an offer {cost:g}: give a cost of more than 0.")
    scaler = StandardScaler().fit(features)
    features, asked = (scaler.transform(values).clip(-3, 3) for values in (features, asked))
    names, owner = np.unique(np.asarray(customers), return_inverse=True)
    fold = (np.random.default_rng(0).permutation(len(names)) % FOLDS)[owner]
    rows = Experiment(features, np.asarray(offered, bool), np.asarray(outcomes, np.float64), owner, fold)
    _check_arms(rows)
    propensity, asked_propensity = estimate_propensity(rows, asked)
    is_like, is_asked_like = (
        (values >= OVERLAP[0]) & (values <= OVERLAP[1]) for values in (_of_own(propensity, fold), asked_propensity)
    )
    no_overlap = 1 - float(is_like.mean())
    where = f"of {no_overlap:.0%} of the rows: of customers like these (nearly) all were offered, or none"
    if no_overlap > 0.5:
        raise ValueError(
            f"Nothing says what an offer changes {where}. Leave some customers out of the next campaign, drawn by lot."
        )
    if no_overlap:
        logger.warning(f"Nothing says what an offer changes {where}. Policies are of the others.")
        rows, propensity = Experiment(*(column[is_like] for column in rows)), propensity[:, is_like]
        _check_arms(rows)
    scores = score_rows(rows, propensity)
    effects = predict_effects(rows, scores[-1])
    after, without, differences = (_of_own(values, rows.fold) for values in scores)
    table = _ask_effects(rows, differences, asked)
    table[~is_asked_like] = np.nan
    table["propensity"] = asked_propensity
    most = candidates = int(is_asked_like.sum())
    if budget is not None:
        most = min(math.floor(budget / cost * (1 + 1e-12)), candidates)  # .3 / .1 is less than 3
    table["offer"] = _choose(np.where(is_asked_like, table["effect"], -np.inf), most, cost)
    share = most / max(candidates, 1)
    policies = compare_policies(rows, after, effects, without, differences - cost, cost, share)
    return Uplift(table, policies, no_overlap)


def _check_arms(rows: Experiment) -> None:
    with_offer, without = (len(np.unique(rows.owner[rows.offered == arm])) for arm in (True, False))
    if min(with_offer, without) < FEWEST:
        raise ValueError(
            f"Found {with_offer} customers with an offer and {without} without; expected {FEWEST} or more of each: "
            "the difference is one between customers who were offered and others like them who were not."
        )


def cross_fit(predict: Callable[[NDArray], NDArray], fold: NDArray) -> NDArray:
    """Predictions `(G, N)` of each row, by models that learned from the rows neither of its own fold nor of fold g.
    What a model learns from those of fold g reads nothing of the rows that it then judges, those of g itself.

    Args:
        predict (`Callable`): Learns from some rows, `(N,)`, and predicts all of them, `(N,)`.
        fold (`NDArray` of shape `(N,)`): Fold of each row.
    """
    table = np.empty((FOLDS, len(fold)))
    for one, other in combinations_with_replacement(range(FOLDS), 2):
        values = predict((fold != one) & (fold != other))
        for judge, judged in ((one, fold == other), (other, fold == one)):
            table[judge, judged] = values[judged]
    return table


def _of_own(table: NDArray, fold: NDArray) -> NDArray:
    """What `(G, N)` of [`cross_fit`] says of each row by models that left its own fold alone out, `(N,)`."""
    return table[fold, np.arange(len(fold))]


def estimate_propensity(rows: Experiment, asked: NDArray) -> tuple[NDArray, NDArray]:
    """How likely an offer was, `(G, N)` of [`cross_fit`], and is for those who are asked about, `(M,)`: by the best of
    three models, by the log loss of other folds: the share of all, as of a lottery, a linear model, or trees."""
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_score

    features, offered = rows.features, rows.offered
    models = [
        DummyClassifier(),
        LogisticRegression(C=0.1, max_iter=500),
        HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8, random_state=0),
    ]
    split, metric = PredefinedSplit(rows.fold), "neg_log_loss"
    best = max(models, key=lambda each: cross_val_score(each, features, offered, cv=split, scoring=metric).mean())

    def predict(learned: NDArray, values: NDArray = features) -> NDArray:
        return best.fit(features[learned], offered[learned]).predict_proba(values)[:, 1]

    return cross_fit(predict, rows.fold), predict(np.ones(len(offered), bool), asked)


def score_rows(rows: Experiment, propensity: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """What models and outcomes say of rows with a propensity `(G, N)`, each `(G, N)` of [`cross_fit`]: the outcome
    after an offer that models expect; and doubly robust scores, of the outcome without one and of the difference."""
    from sklearn.linear_model import RidgeCV

    def predict_outcomes(arm: NDArray) -> NDArray:
        def predict(learned: NDArray) -> NDArray:
            return rows.fit(RidgeCV(PENALTIES), rows.outcomes, learned & arm).predict(rows.features)

        return cross_fit(predict, rows.fold)

    offered, propensity = rows.offered, propensity.clip(*OVERLAP)
    after, before = predict_outcomes(offered), predict_outcomes(~offered)
    without = before + ~offered * (rows.outcomes - before) / (1 - propensity)
    return after, without, after + offered * (rows.outcomes - after) / propensity - without


def predict_effects(rows: Experiment, differences: NDArray) -> NDArray:
    """The effect of an offer on each row, `(N,)`, by the scores `(G, N)` of rows of other folds."""
    from sklearn.linear_model import BayesianRidge

    effects = np.empty(len(rows.fold))
    for fold, targets in enumerate(differences):
        judged = rows.fold == fold
        effects[judged] = rows.fit(BayesianRidge(), targets, ~judged).predict(rows.features[judged])
    return effects


def _ask_effects(rows: Experiment, differences: NDArray, asked: NDArray) -> pd.DataFrame:
    """The effects of an offer on those who are asked about `(M, F)`, with their intervals."""
    from sklearn.linear_model import BayesianRidge

    final = rows.fit(BayesianRidge(), differences, np.ones(len(differences), bool))
    effect, customers = final.predict(asked), len(np.unique(rows.owner))
    # The noise of a customer is not of the mean; that of the intercept is
    spread = np.sqrt(np.einsum("mf,fg,mg->m", asked, final.sigma_, asked) + 1 / (final.alpha_ * customers))
    return pd.DataFrame({"effect": effect, "low": effect - Z * spread, "high": effect + Z * spread})


def compare_policies(
    rows: Experiment, after: NDArray, effects: NDArray, without: NDArray, gains: NDArray, cost: float, most: float
) -> pd.DataFrame:
    """What rows bring under each of the policies of [`Uplift`], by scores `(N,)` of the outcome without an offer, and
    of what one gains. Policies offer to at most a share `most` of a fold, and go by the outcome that is expected
    `after` an offer, or by its effect, both `(N,)`."""
    policies = ("nobody", "everybody", "by_outcome", "by_effect")
    chosen = {name: np.full(len(effects), name == "everybody") for name in policies}
    for fold in range(FOLDS):
        judged = np.flatnonzero(rows.fold == fold)
        by_effect = _choose(effects[judged], round(len(judged) * most), cost)
        chosen["by_effect"][judged] = by_effect
        chosen["by_outcome"][judged] = _choose(after[judged], int(by_effect.sum()))
    table = {}
    for name, is_chosen in chosen.items():
        row = {"offered": is_chosen.mean()}
        for column, values in (("value", without + is_chosen * gains), ("gain", is_chosen * gains)):
            mean, width = values.mean(), Z * _standard_error(values, rows.owner)
            row |= {column: mean, f"{column}_low": mean - width, f"{column}_high": mean + width}
        table[name] = row
    return pd.DataFrame.from_dict(table, "index").rename_axis("policy")


def _choose(scores: NDArray, most: int, least: float = -np.inf) -> NDArray[np.bool_]:
    """Which scores are the highest ones that are more than the least."""
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind="stable")[:most]] = True
    return chosen & (scores > least)


def _standard_error(scores: NDArray, owner: NDArray) -> float:
    """Standard error of the mean of scores (N,), of which those of one customer depend on each other."""
    sums = np.bincount(owner, scores - scores.mean())
    return float(np.sqrt((sums**2).sum()) / len(scores))
