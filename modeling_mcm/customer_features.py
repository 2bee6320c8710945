# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM as estimators of scikit-learn. Their input is a list of ids of customers, or a table whose first column has ids
and whose second one, if there is one, the time `as_of` of each row: events from it on are not read. Without it, the
time is that of the model's last event.

    pipeline = make_pipeline(CustomerFeatures(model), StandardScaler(), LogisticRegression())
    pipeline.fit(labels[["customer", "as_of"]], labels["churned"])

    X, y = labels[["customer", "as_of", "age"]], labels["churned"]  # age is a further feature
    cross_val_score(MCMClassifier(model), X, y, groups=X["customer"], cv=GroupKFold(), scoring="roc_auc")
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from .customer_model import CustomerModel, make_table
from .events_mcm import to_ids
from .extras import needs
from .predictor_mcm import EMBEDDING, Questions

with needs("gbdt"):
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted

CUSTOMER, AS_OF, LABEL = "customer", "as_of", "label"


class CustomerFeatures(TransformerMixin, BaseEstimator):
    """Embedding and forecasts of customers, as a transformer of scikit-learn. Nothing is fitted.

    Args:
        model ([`CustomerModel`]): The model, with the customers' events.
        days (`Sequence[float]`, *optional*): Horizons of the forecasts. Default: those of the config.
    """

    def __init__(self, model: CustomerModel, days: Sequence[float] | None = None):
        self.model, self.days = model, days

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: object, y: object = None) -> Self:
        """Fits nothing."""
        return self

    def transform(self, X: pd.DataFrame | Sequence) -> NDArray[np.float32]:
        """Features of shape `(rows, columns)`, named by `get_feature_names_out`."""
        table = _read_table(X)
        if AS_OF not in table:
            return self._describe(table[CUSTOMER], None).to_numpy(np.float32)
        parts = []
        for as_of, rows in table.groupby(AS_OF, sort=False):
            seconds = self.model._seconds(as_of)
            if seconds is None:
                raise ValueError("The log has no times, so a table of times can't be asked: give ids alone.")
            parts.append(self._describe(rows[CUSTOMER], math.ceil(seconds) - 1.0).set_axis(rows.index))
        return pd.concat(parts).loc[table.index].to_numpy(np.float32)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Names of the columns."""
        return self._describe(self.model.customers[:1], None).columns.to_numpy(object)

    def _describe(self, customers: Iterable, as_of: float | None) -> pd.DataFrame:
        # All times share the scale of the state and the shop that is told: a linear model needs one scale
        questions = Questions(embedding=True, forecasts=True, days=self.days, later_counts=True)
        ids, columns, _ = self.model._ask(customers, as_of, questions)
        names, index = self.model.model.base_model.state.names, pd.Index(ids, name=CUSTOMER)
        embeddings = pd.DataFrame(columns.pop(EMBEDDING).numpy(), index, names)
        # Some names of forecasts are those of past numbers in the embedding
        forecasts = make_table(ids, columns).add_prefix("forecast_")
        return embeddings.join(forecasts).loc[to_ids([*customers])]


class _FineTuned(BaseEstimator):
    kind: str  # of the label

    def __init__(self, model: CustomerModel, seed: int = 42):
        self.model, self.seed = model, seed

    def fit(self, X: pd.DataFrame | Sequence, y: ArrayLike) -> Self:
        """Fits a head to labels `(rows,)`; all of them are learned from."""
        labels = _read_table(X)
        labels.insert(labels.shape[1], LABEL, np.asarray(y))
        options: dict[str, Any] = {"label_kind": self.kind, "validation_share": 0.0, "seed": self.seed}
        self.model_ = self.model.finetune(labels, LABEL, **options)
        return self

    def _predict(self, X: pd.DataFrame | Sequence) -> NDArray:
        """Predictions `(rows, classes)` or `(rows, 1)`."""
        check_is_fitted(self, "model_")
        table = _read_table(X)
        if AS_OF not in table:
            return self.model_.predict(table[CUSTOMER]).loc[to_ids(table[CUSTOMER])].to_numpy()
        asked = pd.MultiIndex.from_arrays([table[AS_OF], to_ids(table[CUSTOMER])])
        return self.model_.predict(table[~asked.duplicated()]).loc[asked].to_numpy()


class MCMClassifier(ClassifierMixin, _FineTuned):
    """A label of customers, of two classes or several, as [`CustomerModel.finetune`] learns it. Columns of the input
    after the time are further features.

    Args:
        model ([`CustomerModel`]): The model, with the customers' events.
        seed (`int`): Of the folds that choose penalties.

    Attributes:
        model_ ([`CustomerModel`]): The fine-tuned model, for `reasons`, `table` and `save`.
    """

    kind = "classes"

    def fit(self, X: pd.DataFrame | Sequence, y: ArrayLike) -> Self:
        """Fits a head to classes `(rows,)`; all of them are learned from."""
        super().fit(X, y)
        self.classes_ = np.unique(np.asarray(y))  # in the order of the model's
        return self

    def predict_proba(self, X: pd.DataFrame | Sequence) -> NDArray:
        """Probabilities `(rows, classes)`, in the order of `classes_`."""
        return self._predict(X)

    def predict(self, X: pd.DataFrame | Sequence) -> NDArray:
        """The likeliest class of each row."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]


class MCMRegressor(RegressorMixin, _FineTuned):
    """A number of customers; all else is as in [`MCMClassifier`]."""

    kind = "number"

    def predict(self, X: pd.DataFrame | Sequence) -> NDArray:
        """The number of each row."""
        return self._predict(X)[:, 0]


def _read_table(X: pd.DataFrame | Sequence) -> pd.DataFrame:
    """The rows that are asked about, with known names for customer and time."""
    table = pd.DataFrame(X).reset_index(drop=True)
    table.columns = [CUSTOMER, AS_OF, *table.columns[2:]][: table.shape[1]]
    if AS_OF in table and (missing := table[AS_OF].isna()).any():
        raise ValueError(f"Column {AS_OF!r} is null in {missing.sum()} rows: give their times.")
    return table
