# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What MCM says of customers as columns of a scikit-learn `Pipeline`.

pipeline = make_pipeline(CustomerFeatures(model), StandardScaler(), LogisticRegression())
pipeline.fit(labels[["customer", "as_of"]], labels["churned"])
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .customer_model import CustomerModel
from .events_mcm import to_ids
from .extras import needs

with needs("gbdt"):
    from sklearn.base import BaseEstimator, TransformerMixin


class CustomerFeatures(TransformerMixin, BaseEstimator):
    """Embedding and forecasts of customers, as a transformer of scikit-learn. Nothing is fitted.

    The input is a list of ids, or a table whose first column has ids and whose second one, if there is one, the time
    `as_of` of each row: events from it on are not read. Without it, the time is that of the model's last event.

    Args:
        model ([`CustomerModel`]): The model, with the customers' events.
        days (`Sequence[float]`, *optional*): Horizons of the forecasts. Default: those of the config.
    """

    def __init__(self, model: CustomerModel, days: Sequence[float] | None = None):
        self.model, self.days = model, days

    def __sklearn_clone__(self) -> "CustomerFeatures":  # the model is no parameter to copy
        return CustomerFeatures(**self.get_params(deep=False))

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: object, y: object = None) -> "CustomerFeatures":
        """Fits nothing."""
        return self

    def transform(self, X: pd.DataFrame | Sequence) -> NDArray[np.float32]:
        """Features of shape `(rows, columns)`, named by `get_feature_names_out`."""
        table = pd.DataFrame(X).reset_index(drop=True)
        if table.shape[1] == 1:
            return self._describe(table.iloc[:, 0], None).to_numpy(np.float32)
        if (missing := table.iloc[:, 1].isna()).any():
            raise ValueError(f"Column {table.columns[1]!r} is null in {missing.sum()} rows: give their times.")
        parts = []
        for as_of, rows in table.groupby(table.columns[1], sort=False):
            seconds = self.model._seconds(as_of)
            if seconds is None:
                raise ValueError("The log has no times, so a table of times can't be asked: give ids alone.")
            parts.append(self._describe(rows.iloc[:, 0], math.ceil(seconds) - 1.0).set_axis(rows.index))
        return pd.concat(parts).loc[table.index].to_numpy(np.float32)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Names of the columns."""
        return self._describe(self.model.customers[:1], None).columns.to_numpy(object)

    def _describe(self, customers: Iterable, as_of: float | None) -> pd.DataFrame:
        # Some names of forecasts are those of past numbers in the embedding
        forecasts = self.model.forecast(customers, self.days, as_of).add_prefix("forecast_")
        return self.model.embed(customers, as_of).join(forecasts).loc[to_ids([*customers])]
