# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A churn list, and look-alikes of the best customers, from stored states.

    python training/run_predict.py --model runs/mine --data data/prepared --as_of 2017-11-01 --output_dir scores
    python examples/4_stored_states.py scores churn.csv

Reads what run_predict.py wrote: an embedding and forecasts for every customer, no model. Writes the customers who used
to come and are least likely to come within the month, those of whom most was to be expected first; and prints whom
the customers with the highest expected number of visits are like.
"""

import sys

import numpy as np
import pandas as pd

LISTED, BEST, NEAREST = 50, 3, 5


def churn_list(scores):
    """The customers with the lowest chance of a visit in 30 days, of those with a chance under a half."""
    unlikely = scores[scores["visit_probability_30d"] < 0.5]
    columns = ["customer_id", "visit_probability_30d", "visits_90d", "days_to_next_visit"]
    return unlikely.sort_values("visits_90d", ascending=False)[columns].head(LISTED)


def alike(scores, customer):
    """The customers whose states are nearest to one customer's, by the cosine of standardised states."""
    states = np.stack(scores["embedding"])
    states = (states - states.mean(0)) / (states.std(0) + 1e-6)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    cosines = states @ states[scores["customer_id"].tolist().index(customer)]
    nearest = np.argsort(-cosines)[1 : NEAREST + 1]
    return [(scores["customer_id"].iloc[place], cosines[place]) for place in nearest]


def main(folder, output_file):
    """Writes the list and prints the look-alikes."""
    scores = pd.read_parquet(folder)
    listed = churn_list(scores)
    listed.to_csv(output_file, index=False)
    print(f"{len(listed)} customers with a chance of a visit under a half are in {output_file}")
    for name in scores.nlargest(BEST, "visits_30d")["customer_id"]:
        print(f"{name} is like " + ", ".join(f"{other} {cosine:.2f}" for other, cosine in alike(scores, name)))


if __name__ == "__main__":
    main(*sys.argv[1:])
