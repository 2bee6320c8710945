# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""causalml's meta-learners, and its Qini coefficients and areas under the uplift curve.

`python benchmarks/peers/causalml_learners.py '{"rows": ...}'` reads Parquet files: `rows`, with whether each row
`learns`, was `offered`, and its `outcome`; `scores` of the rows that don't learn, a column a method; and features of
all rows, by a name for each kind. Learners are of trees of LightGBM, by its defaults, and linear.
"""

import json
import sys

import pandas as pd
from causalml.inference.meta import BaseDRRegressor, BaseSRegressor, BaseTRegressor, BaseXRegressor
from causalml.metrics import auuc_score, qini_score
from lightgbm import LGBMRegressor
from sklearn.linear_model import LinearRegression

LEARNERS = {"S": BaseSRegressor, "T": BaseTRegressor, "X": BaseXRegressor, "DR": BaseDRRegressor}


def main() -> None:
    """Fits each learner on half of the rows, and prints figures of all methods on the others."""
    task = json.loads(sys.argv[1])
    rows, scores = pd.read_parquet(task["rows"]), pd.read_parquet(task["scores"])
    learns, offered = rows["learns"].to_numpy(), rows["offered"].to_numpy(int)
    outcomes, lottery = rows["outcome"].to_numpy(float), pd.Series(offered[learns].mean(), rows.index).to_numpy()
    for kind, path in task["features"].items():
        features = pd.read_parquet(path).to_numpy(float)
        for name, learner in LEARNERS.items():
            for base in (LGBMRegressor(n_jobs=1, verbose=-1), LinearRegression()):
                if name == "S" and isinstance(base, LinearRegression):
                    continue  # one effect for all
                model = learner(learner=base)
                shares = {"p": lottery[learns]} if name in ("X", "DR") else {}
                model.fit(features[learns], offered[learns], outcomes[learns], **shares)
                shares = {"p": lottery[~learns]} if name == "X" else {}
                found = model.predict(features[~learns], **shares)[:, 0]
                scores[f"causalml {name}, {type(base).__name__}, {kind}"] = found
    scores = scores.assign(y=outcomes[~learns], w=offered[~learns])
    figures = {"qini": qini_score(scores, "y", "w"), "auuc": auuc_score(scores, "y", "w")}
    print(json.dumps({name: values.to_dict() for name, values in figures.items()}))


if __name__ == "__main__":
    main()
