#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares, on offers, fine-tuned MCM with LightGBM and with MCM without pre-training.

    python benchmarks/run_offers.py --data data/offers/prepared --offers data/offers/raw --seeds 0 1 2

For every seed a model is pre-trained by a recipe, and fine-tuned by another: whole, its encoder frozen, with low-rank
updates, from random weights, and on shares of the labels. LightGBM is tuned on the validation offers; MCM's recipe was
(docs/log.md). All are fitted on the training and validation offers and measured on the test offers.

Finished steps with the same options are kept, so it may be interrupted and run again. A change of the code is not
noticed: remove the output folder then.
"""

import json
import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from measuring import RESULTS, ROOT, is_finished, run_training_script, write_record, write_table
from modeling_mcm import MCMConfig, MCMFeatureExtractor, MCMForActionRecommendation
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.data import PreparedData
from modeling_mcm.data.dataset import MANIFEST_FILE
from modeling_mcm.data.offer_collator import OfferCollator, OfferGroups
from modeling_mcm.data.offers import OFFERS_FILE, TEST, TRAIN, VALIDATION, Offers, load_offers
from modeling_mcm.evaluation.offers import (
    OfferTruth,
    expected_takes,
    interval,
    offer_metrics,
    resample_customers,
    score_offers,
)
from modeling_mcm.evaluation.reports import with_half_interval, with_interval
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import file_digest
from modeling_mcm.option import option
from offers_gbdt import LightGBMOffers, OfferTable, offer_features

logger = logging.getLogger("run_offers")
OUTCOME, WHOLE_HISTORY = "conversion", 10**6
FACTS = ("seconds", "steps", "trained_parameters")
METRICS = {
    "average_precision": "who: average precision",
    "roc_auc": "who: ROC AUC",
    "ndcg@10": "which: NDCG@10",
    "recall@10": "which: recall@10",
}
ZERO_SHOT, FINE_TUNED, RANDOM = "MCM without fine-tuning", "MCM fine-tuned", "MCM from random weights"
GBDT = "LightGBM"
VARIANTS: dict[str, list[str]] = {
    FINE_TUNED: [],
    RANDOM: ["--from_scratch"],
    "MCM, frozen encoder": ["--freeze_encoder"],
    "MCM, low-rank updates": ["--lora", "8"],
}


@dataclass
class OfferComparison:
    """What is compared, and where it is written."""

    data: str | None = option(None, "Folder of a prepared data set.")
    offers: str | None = option(None, "Folder with offers.parquet and actions.parquet.")
    pretraining: str = option("configuration/recipes/quickstart.yaml", "Recipe of the pre-training, a YAML file.")
    finetuning: str = option("configuration/recipes/offers.yaml", "Recipe of the fine-tuning, a YAML file.")
    seeds: list[int] = option([0, 1, 2], "Seeds; every model is trained once for each.")
    shares: list[float] = option([0.1], "Shares of the training groups at which the learning curve is measured.")
    trials: int = option(20, "Number of settings that the search for LightGBM tries.")
    options: list[str] = option([], "More options of both trainings, as name=value: use_cpu=true.")
    output_dir: str = option("runs/offers_comparison", "Folder for the runs.")
    results: str = option(RESULTS, "Folder of the tables.")


class Comparison:
    """All steps; each leaves its scores of the test offers in a file, with a record of the options that made them."""

    def __init__(self, options: OfferComparison):
        self.options, self.folder = options, Path(options.output_dir)
        self.data = PreparedData(str(options.data))
        schema = self.data.schema
        self.offers: Offers = load_offers(str(options.offers), [OUTCOME], schema.time_zone)
        self.test, self.learned = self.offers.groups([TEST]), self.offers.groups([TRAIN, VALIDATION])
        self.offers.check_times(schema.cutoff_seconds("validation"), [], self.test)
        self.identity = {
            "data": file_digest(self.data.folder / MANIFEST_FILE),
            "offers": file_digest(Path(str(options.offers)) / OFFERS_FILE),
            "recipes": [
                (ROOT / recipe).read_text(encoding="utf-8") for recipe in (options.pretraining, options.finetuning)
            ],
            "options": options.options,
        }

    def script(self, name: str, folder: Path, recipe: str, *flags: Any) -> None:
        """Runs a training script in a process of its own, unless it has run with the same options."""
        more = [word for option in self.options.options for word in (f"--{option}".replace("=", " ", 1)).split(" ", 1)]
        words = [str(ROOT / recipe), *map(str, flags), "--output_dir", str(folder), *more]
        words += ["--save_strategy", "no", "--report_to", "none"]
        record, identity = folder / "finished.json", self.identity | {"words": words}
        existed = record.exists()
        if is_finished(record, identity):
            return
        if existed:  # of other options or data: a training would leave it alone
            shutil.rmtree(folder)
        logger.info("%s %s", name, shlex.join(words))
        run_training_script(name, *words)
        write_record(record, identity)

    def stored(
        self, folder: Path, facts: Mapping[str, Any], make: Callable[[], dict[str, NDArray]]
    ) -> dict[str, NDArray]:
        """Scores from their file, made first if they are not there."""
        record = folder / "scored.json"
        path, identity = folder / "scores.safetensors", json.loads(json.dumps(self.identity | dict(facts)))
        if not is_finished(record, identity):
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: np.ascontiguousarray(value) for name, value in make().items()}, path)
            write_record(record, identity)
        return load_file(path)

    def pretrained(self, seed: int) -> Path:
        """Folder of the pre-trained model."""
        folder = self.folder / f"pretrained-seed{seed}"
        self.script("run_pretrain", folder, self.options.pretraining, "--data", self.data.folder, "--seed", seed)
        return folder

    def folder_of(self, name: str, seed: int, share: float = 1.0) -> Path:
        """Folder of a fine-tuned variant."""
        return self.folder / f"{name.lower().replace(',', '').replace(' ', '-')}-{share:g}-seed{seed}"

    def finetuned(self, name: str, seed: int, share: float = 1.0) -> dict[str, NDArray]:
        """Scores of a fine-tuned variant."""
        folder = self.folder_of(name, seed, share)
        flags = ["--model", self.pretrained(seed), "--data", self.data.folder, "--offers", self.options.offers]
        flags += ["--seed", seed, "--label_share", share, "--outcomes", OUTCOME, *VARIANTS[name]]
        self.script("run_finetune", folder, self.options.finetuning, *flags)
        return self.stored(folder, {"words": list(map(str, flags))}, lambda: self.scored(folder)[1])

    def zero_shot(self, seed: int) -> dict[str, NDArray]:
        """Scores of the pre-trained model."""
        folder = self.pretrained(seed)
        return self.stored(folder, {"seed": seed}, lambda: self.scored(folder)[0])

    def scored(self, folder: Path) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
        """MCM's own scores and those of its head, of the test offers and groups."""
        model = MCMForActionRecommendation.from_pretrained(folder, action_outcomes=[OUTCOME])
        extractor = MCMFeatureExtractor.from_pretrained(str(folder))
        collator = OfferCollator(extractor, model.config, self.offers, self.test)
        logits, own = score_offers(model, collator, OfferGroups(self.data.rows, self.offers, self.test))
        offsets = self.truth(self.test).offsets
        return tuple(  # type: ignore[return-value]
            {"offers": scores, "groups": expected_takes(offsets, scores)} for scores in (own, logits[:, 0])
        )

    def truth(self, groups: NDArray[np.int64]) -> OfferTruth:
        """What came of the offers of some groups."""
        return OfferTruth.of(self.offers, groups, OUTCOME)

    def table(self, groups: NDArray[np.int64]) -> OfferTable:
        """LightGBM's features of some groups."""
        extractor = self.data.extractor
        config = MCMConfig(
            features=extractor.feature_names,
            vocabulary_sizes=extractor.vocabulary_sizes,
            tasks=extractor.tasks,
            action_outcomes=[OUTCOME],
        )
        collator = OfferCollator(extractor, config, self.offers, groups, WHOLE_HISTORY)
        return offer_features(extractor, collator, OfferGroups(self.data.rows, self.offers, groups))

    def lightgbm(self) -> dict[tuple[float, int], dict[str, NDArray]]:
        """Scores by share of the labels and seed, with the parameters that the search chose."""
        shares, seeds = [*self.options.shares, 1.0], self.options.seeds

        def make() -> dict[str, NDArray]:
            everything, test = self.table(self.learned), self.table(self.test)
            train, valid = (self.offers.groups([name]) for name in (TRAIN, VALIDATION))
            tables = [everything.of(np.searchsorted(self.learned, groups)) for groups in (train, valid)]
            model = LightGBMOffers(self.options.trials)
            model.search(tables[0], self.truth(train), tables[1], self.truth(valid))
            logger.info("LightGBM: %s", model.settings)
            scores: dict[str, NDArray] = {}
            for share in shares:
                for seed in seeds:
                    model.seed, count = seed, round(share * len(self.learned))
                    subset = np.sort(np.random.default_rng(seed).permutation(len(self.learned))[:count])
                    model.fit(everything.of(subset), self.truth(self.learned[subset]))
                    offers, groups = model.scores(test)
                    scores |= {f"offers {share} {seed}": offers, f"groups {share} {seed}": groups}
            return scores

        facts = {"seeds": seeds, "shares": shares, "trials": self.options.trials}
        scores = self.stored(self.folder / "lightgbm", facts, make)
        return {
            (share, seed): {kind: scores[f"{kind} {share} {seed}"] for kind in ("offers", "groups")}
            for share in shares
            for seed in seeds
        }


def mean_metrics(
    truth: OfferTruth, scores: Sequence[Mapping[str, NDArray]], weights: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Metrics on the data and each resample, the mean over seeds; and one row a seed on the data, `seeds <metric>`."""
    metrics = [offer_metrics(truth, run["offers"], run["groups"], weights) for run in scores]
    mean = {metric: np.mean([run[metric] for run in metrics], axis=0) for metric in METRICS}
    return mean | {f"seeds {metric}": np.array([run[metric][0] for run in metrics]) for metric in METRICS}


def compare(options: OfferComparison) -> None:
    """Makes what is missing, and writes the tables."""
    comparison = Comparison(options)
    gbdt, seeds = comparison.lightgbm(), options.seeds
    truth = comparison.truth(comparison.test)
    weights, customers = resample_customers(truth.customer_ids), len(set(truth.customer_ids))

    def measured(scores: Sequence[Mapping[str, NDArray]]) -> dict[str, NDArray[np.float64]]:
        return mean_metrics(truth, scores, weights)

    def tuned(name: str, share: float = 1.0) -> dict[str, NDArray[np.float64]]:
        return measured([comparison.finetuned(name, seed, share) for seed in seeds])

    def trees(share: float = 1.0) -> dict[str, NDArray[np.float64]]:
        return measured([gbdt[share, seed] for seed in seeds])

    methods = {ZERO_SHOT: measured([comparison.zero_shot(seed) for seed in seeds]), GBDT: trees()}
    methods |= {name: tuned(name) for name in VARIANTS}
    curve = {
        f"{share:.0%}": {FINE_TUNED: tuned(FINE_TUNED, share), RANDOM: tuned(RANDOM, share), GBDT: trees(share)}
        for share in options.shares
    }
    curve["100%"] = {name: methods[name] for name in (FINE_TUNED, RANDOM, GBDT)}

    def mean_texts(metrics: Mapping[str, NDArray], names: Sequence[str] = tuple(METRICS)) -> list[str]:
        return [with_half_interval(interval(metrics[metric], customers)) for metric in names]

    def gain_texts(ours: Mapping[str, NDArray], theirs: Mapping[str, NDArray]) -> list[str]:
        with np.errstate(invalid="ignore"):
            gains = [interval(ours[metric] / theirs[metric] - 1, customers) for metric in METRICS]
        return [with_interval(gain, "+.1%") for gain in gains]

    caption = (
        f"{comparison.data.schema.name}: {len(comparison.test):,} test groups of {customers:,} customers, of which "
        f"{int(truth.responds.sum())} take an offer; {len(comparison.learned):,} groups are for training."
    )
    rows = [
        [name, *mean_texts(metrics), " ".join(f"{value:.3f}" for value in metrics["seeds ndcg@10"])]
        for name, metrics in methods.items()
    ]
    titles = list(METRICS.values())
    write_table(options.results, "offers", caption, [["method", *titles, "NDCG@10 by seed"], *rows])
    ours = methods[FINE_TUNED]
    rows = [[name, *gain_texts(ours, theirs)] for name, theirs in methods.items() if name != FINE_TUNED]
    write_table(options.results, "offers_over", caption, [["over", *titles], *rows])
    rows = [
        [METRICS[metric], share, *(mean_texts(metrics, [metric])[0] for metrics in by_method.values())]
        for metric in ("average_precision", "ndcg@10")
        for share, by_method in curve.items()
    ]
    write_table(
        options.results, "offers_fewer_labels", caption, [["metric", "labels", FINE_TUNED, RANDOM, GBDT], *rows]
    )
    rows = [
        [share, name, *gain_texts(by_method[FINE_TUNED], by_method[name])]
        for share, by_method in curve.items()
        for name in (RANDOM, GBDT)
    ]
    write_table(options.results, "offers_fewer_over", caption, [["labels", "over", *titles], *rows])
    rows = []
    for name in VARIANTS:
        files = [comparison.folder_of(name, seed) / "finetuning.json" for seed in seeds]
        facts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        rows.append([name, *(f"{np.mean([fact[key] for fact in facts]):,.0f}" for key in FACTS)])
    write_table(options.results, "offers_cost", "", [["model", *(key.replace("_", " ") for key in FACTS)], *rows])


def main() -> None:
    """Reads the options, makes what is missing, and writes the tables."""
    (options,) = parse_options(OfferComparison, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.data is None or options.offers is None:
        raise SystemExit("--data and --offers are needed: see --help.")
    try:
        with needs("evaluation"):  # before the hours of training
            import scipy.sparse  # noqa: F401
        compare(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"run_offers: {error}")


if __name__ == "__main__":
    main()
