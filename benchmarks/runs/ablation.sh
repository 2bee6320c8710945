#!/usr/bin/env bash
# The paper's ablation and ours at equal compute, on real data, into docs/results.md: seven runs a seed, three and a half
# hours with the defaults. Safe to interrupt and to run again. Options go to run_ablation.py: --max_seconds 60 --seeds 0
set -euo pipefail
cd "$(dirname "$0")/../.."

python training/prepare_data.py --demo complete_journey --output_dir data/complete_journey/prepared --reuse
python benchmarks/run_ablation.py --data data/complete_journey/prepared "$@"
