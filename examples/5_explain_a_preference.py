# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Why does a customer get this score? Which of their visits it comes from.

    python examples/5_explain_a_preference.py runs/mine log.parquet c07 item

The model reads the history without a visit, and is asked again: the chance that the label has then says how much the
visit matters.
"""

import sys

import pandas as pd

from modeling_mcm import LiveCustomer, MCMFeatureExtractor, MCMForMultiTaskRecommendation

LABELS, VISITS = 3, 2  # how many are shown


def main(checkpoint, events, customer, task):
    """Prints the customer's best labels of a task, and the visits that matter most to each."""
    model = MCMForMultiTaskRecommendation.from_pretrained(checkpoint).eval()
    extractor = MCMFeatureExtractor.from_pretrained(checkpoint)
    log = pd.read_parquet(events)
    live = LiveCustomer(model, extractor, customer_id=customer)
    live.add(log[log[extractor.customer].astype(str) == customer])

    for best in live.scores(tasks=[task], k=LABELS)[task]:
        why = live.explain(task, best["label"])
        print(f"{why.label} {why.chance:.1%}: {why.words}")
        for visit in why.visits[:VISITS]:
            met = sorted({event[task] for event in visit.events if task in event})
            print(f"  {visit.without:.1%} without the visit of {visit.time[:10]} with {', '.join(met) or 'no label'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
