#!/usr/bin/env bash
# From nothing to a trained, evaluated MCM on real data. Safe to interrupt and to run again: each step goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/../.."

python training/prepare_data.py --demo complete_journey --output_dir data/complete_journey/prepared --reuse
# accelerate gives a process one thread unless it is told how many.
accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    --num_cpu_threads_per_process "$(python -c 'import os; print(os.cpu_count())')" \
    training/run_pretrain.py configuration/recipes/quickstart.yaml
python training/run_evaluate.py --model runs/quickstart --data data/complete_journey/prepared \
    --tasks product_type product_category --output_file runs/quickstart/evaluation.json \
    --report_file "${REPORT:-runs/quickstart/results.md}"
