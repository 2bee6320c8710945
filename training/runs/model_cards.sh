#!/usr/bin/env bash
# The cards in model_cards/: trains, evaluates and describes mcm-tiny and mcm-base on Complete Journey; sends nothing.
# Ten minutes on two cores. Safe to interrupt and to run again.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=data/complete_journey/prepared

python training/prepare_data.py --demo complete_journey --output_dir "$data" --reuse
for name in mcm-tiny mcm-base; do
    accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
        --num_cpu_threads_per_process "$(python -c 'import os; print(os.cpu_count())')" \
        training/run_pretrain.py configuration/recipes/quickstart.yaml --config "configuration/$name" \
        --output_dir "runs/$name"
    python training/run_evaluate.py --model "runs/$name" --data "$data" --output_file "runs/$name/evaluation.json"
    rm -rf "runs/$name/published"
    python training/push_to_hub.py --model "runs/$name" --repo_id "org/$name" --data "$data" --dry_run \
        --output_dir "runs/$name/published"
    cp "runs/$name/published/README.md" "model_cards/$name.md"
done
