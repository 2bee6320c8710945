#!/usr/bin/env bash
# Fine-tuning to offers beside LightGBM, on real data, into docs/results_offers.md; an hour on two cores. Safe to
# interrupt and to run again. Options go to run_offers.py: --seeds 0
set -euo pipefail
cd "$(dirname "$0")/../.."

python training/prepare_data.py --demo complete_journey --offers --cutoffs 2017-10-30 2017-12-01 \
    --output_dir data/offers/prepared --reuse
python benchmarks/run_offers.py --data data/offers/prepared --offers data/offers/raw --jobs 2 \
    --options disable_tqdm=true "$@"
