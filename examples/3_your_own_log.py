# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Your own event log in ten minutes: prepare it, train on it, ask what a customer will do next.

    python examples/3_your_own_log.py log.parquet schema.yaml runs/mine
    python examples/3_your_own_log.py log.csv schema.yaml runs/mine profile.csv --network shipped

The schema says what the columns mean (docs/event_schema.md; configuration/schemas/ has some to start from); if it has
a profile, its table follows the folder. Options after that go to `mcm start`. Run again, it goes on where it was.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd
from transformers import pipeline

import modeling_mcm  # noqa: F401  registers the pipelines
from modeling_mcm.data import EventSchema
from modeling_mcm.preparation import prepare


def main(events, schema_file, folder, *options):
    """Prepares, trains, and prints the best labels of every task for the customer whose id is the last one."""
    schema = EventSchema.from_yaml(schema_file)
    profile = options[0] if schema.profile else None
    counts = prepare(events, schema, f"{folder}/data", profile, reuse=True).counts
    print(f"{counts['customers']} customers, {counts['events']} events, {counts['test_cases']} test cases")

    command = ["mcm", "start", "--data", f"{folder}/data", "--output_dir", folder]
    subprocess.run([*command, *options[bool(profile) :]], check=True)

    log = pd.read_csv(events) if Path(events).suffix == ".csv" else pd.read_parquet(events)
    last = log[log[schema.customer] == log[schema.customer].max()]
    best = pipeline("preference-scores", model=folder)({"events": last[schema.event_columns]}, top_k=3)
    for task, labels in best.items():
        print(f"{task}: " + ", ".join(f"{each['label']} {each['score']:.1%}" for each in labels))


if __name__ == "__main__":
    main(*sys.argv[1:])
