# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Why does a customer get this score? Which of their visits spoke for it.

    python examples/5_explain_a_preference.py runs/mine log.parquet c07 item

The attentional readout scores a label by an average over the customer's visits (events, in the paper's model), and the
weights of that average, a_{w,i} of equation 2, say which of them spoke most. They are not the whole score: where a
checkpoint has a label bias and a repeat memory, these speak beside it.
"""

import sys

import pandas as pd

from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation

LABELS, UNITS = 3, 2  # how many are shown


def main(checkpoint, events, customer, task):
    """Prints the customer's best labels of a task, and the visits that spoke most for each."""
    model = MCMForMultiTaskRecommendation.from_pretrained(checkpoint).eval()
    extractor = MCMFeatureExtractor.from_pretrained(checkpoint)
    log = pd.read_parquet(events)
    inputs = extractor({"events": log[log[extractor.customer].astype(str) == customer]})
    found = model.preferences(task, k=LABELS, return_weights=True, **inputs)

    unit_of_event = inputs["visit_ids"][0]
    if model.config.encoder_unit == "event":
        unit_of_event = inputs["attention_mask"][0].cumsum(0) - 1
    days = inputs["event_times"][0]
    values = inputs["input_ids"][0, :, extractor.feature_names.index(task)]
    labels = extractor.decode_labels(task, found["labels"][0])
    for label, score, weights in zip(labels, found["scores"][0], found["weights"][0], strict=True):
        print(f"{label} {score:.1%}")
        for weight, unit in zip(*weights.topk(min(UNITS, len(weights))), strict=True):
            events_of_unit = (unit_of_event == unit) & (inputs["attention_mask"][0] == 1)
            met = extractor.decode_labels(task, values[events_of_unit].unique())
            day = days[events_of_unit].max()
            print(f"  {weight:.0%} of the weight: unit {unit} on day {day:.0f} with {', '.join(sorted(met))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
