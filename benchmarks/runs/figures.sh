#!/usr/bin/env bash
# Measures everything that docs/results.md shows, and makes the page: a day on two cores. Safe to interrupt and to run
# again. TOYS=toys.parquet adds the data set Toys and Games (benchmarks/recipe.py says where it comes from).
set -euo pipefail
cd "$(dirname "$0")/../.."
data=data/complete_journey/prepared
seeds=(0 1 2)

python training/prepare_data.py --demo complete_journey --output_dir "$data" --reuse
for seed in "${seeds[@]}"; do
    python training/run_pretrain.py configuration/recipes/quickstart.yaml --seed "$seed" --output_dir "runs/seed$seed"
done
python benchmarks/recipe.py --seeds "${seeds[@]}" ${TOYS:+--toys "$TOYS"}
python benchmarks/run_ablation.py --data "$data" --seeds "${seeds[@]}"
python training/prepare_data.py --demo complete_journey --offers --cutoffs 2017-10-30 2017-12-01 \
    --output_dir data/offers/prepared --reuse
python benchmarks/run_offers.py --data data/offers/prepared --offers data/offers/raw --seeds "${seeds[@]}" \
    --options disable_tqdm=true
python benchmarks/run_probe.py --models "${seeds[@]/#/runs/seed}" --data "$data" --repeats 1
python benchmarks/few_labels.py --model runs/seed0 --data "$data"
python benchmarks/compare.py --data "$data"
python benchmarks/scale.py --events 5e6 2e7 1e8
python benchmarks/results.py --seeds "${seeds[*]}"
