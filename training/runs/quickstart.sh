#!/usr/bin/env bash
# From nothing to a trained, evaluated MCM on real data. Safe to interrupt and to run again: each step goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/../.."

python training/prepare_data.py --demo complete_journey --output_dir data/complete_journey/prepared --reuse
accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    training/run_pretrain.py configuration/recipes/quickstart.yaml
python training/run_evaluate.py --model runs/quickstart --data data/complete_journey/prepared \
    --tasks product_type product_category --output_file runs/quickstart/evaluation.json \
    --report_file "${REPORT:-runs/quickstart/results.md}"
