#!/usr/bin/env bash
# The paper's ablation and ours, each until validation stops, on real data, into docs/results.md: seven runs a seed of
# up to an hour each. Safe to interrupt and to run again. Options go to run_ablation.py: --max_seconds 900 --seeds 0
set -euo pipefail
cd "$(dirname "$0")/../.."

python training/prepare_data.py --demo complete_journey --output_dir data/complete_journey/prepared --reuse
python benchmarks/run_ablation.py --data data/complete_journey/prepared "$@"
