# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Why does a customer get this score? What it is a sum of, and which of their visits it comes from.

    python examples/5_explain_a_preference.py runs/mine log.parquet c07 item

A visit's share says by how much it makes the label more likely, as a logarithm: the model reads the history without
the visit and is asked again. The shares add up to the score less that of a customer without history.
"""

import sys

import pandas as pd

from modeling_mcm import LiveCustomer, MCMFeatureExtractor, MCMForMultiTaskRecommendation

LABELS, VISITS = 3, 2  # how many are shown


def main(checkpoint, events, customer, task):
    """Prints the customer's best labels of a task, and the visits that speak most for each."""
    model = MCMForMultiTaskRecommendation.from_pretrained(checkpoint).eval()
    extractor = MCMFeatureExtractor.from_pretrained(checkpoint)
    log = pd.read_parquet(events)
    live = LiveCustomer(model, extractor, customer_id=customer)
    live.add(log[log[extractor.customer].astype(str) == customer])

    for best in live.scores(tasks=[task], k=LABELS)[task]:
        why = live.explain(task, best["label"])
        print(f"{why.label} {why.probability:.1%}: {why.words}")
        print("  " + ", ".join(f"{part} {value:+.2f}" for part, value in why.parts.items() if value))
        for visit in why.visits[:VISITS]:
            met = sorted({event.values[task] for event in visit.events if task in event.values})
            print(f"  {visit.share:+.2f} by the visit of {visit.time[:10]} with {', '.join(met) or 'no label'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
