# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Options of commands that do not fit are answered with one sentence, and nothing is written or sent."""

import sys

import pandas as pd
import pytest
from serving_client import TOKEN

# Words in capitals stand for the folders that the test makes.
GIVEN = {
    "predict": "--model MODEL --data DATA --output_dir OUT",
    "evaluate": "--model MODEL --data DATA --output_file OUT",
    "pretrain": "--output_dir OUT",
    "finetune": "--model MODEL --data DATA --output_dir OUT",
    "serve": "--model MODEL --store OUT --port 1",
    "publish": "--model MODEL --repo_id org/mcm-base",
    "forget": "--customers IDS",
    "prepare": "--events LOG --profile PROFILE --output_dir OUT",
}
# A command and its options, then words of the answer
REFUSED = """
predict --events LOG | Give --data, a prepared data set, or --events
predict --profile PROFILE | --profile and --schema belong to --events
predict --top_k 0 --embeddings false | leaves nothing to write
predict --top_k 0 --tasks items | --top_k 0 writes none
predict --batch_size 0 | --batch_size and --rows_per_file at least 1
predict --spark_master local[2] | --spark_master and --spark_config are for --engine spark
predict --engine spark --spark_config spark.cores | has 'spark.cores'; write KEY=VALUE
predict --tasks brand | No tasks ['brand']: this checkpoint predicts ['items', 'aisle', 'type']
predict --exclude sen | sen does not exist: check the path
predict --actions LOG | is an MCMForMultiTaskRecommendation: it scores no offers
predict --label_columns LOG | reads no --label_columns: leave them out
evaluate --horizon_days 0 | --horizon_days is 0; give a positive number of days
evaluate --k 0 | --k and --batch_size must be at least 1
evaluate --offers somewhere --only_new true --values_file OUT | --only_new, --values_file is not read with --offers
evaluate --offers somewhere --cutoff validation | Offers of validation are trained on, too
evaluate --offers OUT | this needs an MCMForActionRecommendation
evaluate --horizon_days 0.00001 | take a longer horizon
evaluate --data OTHER | holds no manifest.json
evaluate --model runs/absent/checkpoint-5 | checkpoint-5 is no folder
evaluate --model runs/absent | runs/absent is no folder, and no model of the Hugging Face Hub
evaluate --baselines lightgbm | lightgbm is not installed, which comes with an extra: pip install
pretrain | required: --data
pretrain --data DATA --steps_max 3 | unknown option '--steps_max'
pretrain --data DATA --config_overrides hidden=3 | 'hidden=3' is not name=value with a field of MCMConfig
pretrain --data DATA --resume_from_checkpoint runs | is not read: a run goes on by itself
pretrain --data DATA --data_seed 3 | --data_seed is not read: a run goes on by itself
pretrain --data DATA --max_events 0 | `max_events` is 0: expected 2 to
pretrain --data DATA --max_events 1 | `max_events` is 1: expected 2 to
pretrain --data DATA --early_stopping_patience 2 --eval_strategy no | early_stopping_patience 2 with eval_strategy
finetune --offers OTHER --labels labels.csv | One of --offers and --labels is needed
finetune --offers OTHER --label churned | --label is not read with --offers: leave it out
finetune --labels LABELS --outcomes click | --outcomes is not read with --labels: leave it out
finetune --labels LABELS --validation_share 0.001 | in all 0 validation labels: nothing can be learned
serve --threads 0 | `--threads` is 0; give a whole number of at least 1
serve --port 70000 | and at most 65,535
serve --store LOG | is damaged or no SQLite file
publish --min_customers 5 | needs --data
publish --data docs --min_customers 1 | every value has 1 customer
publish --model runs/nowhere | --model is 'runs/nowhere', which is no folder
publish --privat | did you mean '--private'
forget --events LOG | Give --data or --predictions
forget --data DATA | Give --data and --events together
forget --predictions LOG --profile PROFILE | and --profile with them
forget --predictions LOG | has no column 'customer_id'
prepare --cutoffs 2017-09-01 --schema schema.yaml | --cutoffs has 1 dates; give two
prepare --schema configuration/schemas/clickstream.yaml | go together: give both
""".strip().splitlines()


@pytest.fixture
def places(save, prepared, raw, tmp_path):
    """What the words in capitals stand for."""
    who = pd.read_parquet(raw / "profile.parquet")["who"]
    labels = {"customer_id": who, "time": pd.Timestamp("2017-10-05"), "label": who.index % 2}
    pd.DataFrame(labels).to_parquet(tmp_path / "labels.parquet")
    (tmp_path / "ids.txt").write_text("c05")
    names = {"LOG": raw / "events.parquet", "PROFILE": raw / "profile.parquet", "LABELS": tmp_path / "labels.parquet"}
    names |= {"IDS": tmp_path / "ids.txt", "OUT": tmp_path / "out", "OTHER": tmp_path, "DATA": prepared}
    return names | {"MODEL": save(extended=True)}


@pytest.mark.parametrize("line", REFUSED)
def test_options_that_do_not_fit_are_refused(line, places, command, monkeypatch):
    monkeypatch.setenv("MCM_TOKEN", TOKEN)
    if "lightgbm" in line:
        monkeypatch.setitem(sys.modules, "lightgbm", None)
    asked, message = line.split(" | ")
    name, *options = asked.split()
    words = [places.get(word, word) for word in GIVEN[name].split() + options]
    assert "Traceback" not in command(f"modeling_mcm.commands.{name}", *words, fails=message)
    assert not places["OUT"].exists()
