#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares, on offers, fine-tuned MCM with LightGBM and with MCM without pre-training; writes the page of results.

    python benchmarks/run_offers.py --data data/offers/prepared --offers data/offers/raw --seeds 0 1 2
    bash benchmarks/runs/offers.sh                                   the same, from nothing

For every seed a model is pre-trained by a recipe, and fine-tuned by another: whole, its encoder frozen, with low-rank
updates, from random weights, and on shares of the labels. LightGBM is tuned on the validation offers; MCM's recipe was
(docs/log.md). All are fitted on the training and validation offers and measured on the test offers.

--jobs 2 trains two models side by side, each with its share of the cores.
Finished steps with the same options are kept, so it may be interrupted and run again. A change of the code is not
noticed: remove the output folder then.
"""

import json
import logging
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from measuring import ROOT, is_finished, write_record
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
from modeling_mcm.extras import needs
from modeling_mcm.files_mcm import file_digest, write_json
from modeling_mcm.option import option
from offers_gbdt import LightGBMOffers, OfferTable, offer_features
from offers_report import FINE_TUNED, GBDT, METRICS, RANDOM, ZERO_SHOT, write_page

logger = logging.getLogger("run_offers")
OUTCOME, WHOLE_HISTORY = "conversion", 10**6
FACTS = ("seconds", "steps", "trained_parameters")
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
    jobs: int = option(1, "Number of models that are trained at the same time.")
    trials: int = option(20, "Number of settings that the search for LightGBM tries.")
    options: list[str] = option([], "More options of both trainings, as name=value: use_cpu=true.")
    output_dir: str = option("runs/offers_comparison", "Folder for the runs and results.json.")
    report: str = option("docs/results_offers.md", "Markdown file of the page to write.")


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
        subprocess.run([sys.executable, str(ROOT / "training" / f"{name}.py"), *words], check=True)
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

    def lightgbm(self) -> tuple[dict[tuple[float, int], dict[str, NDArray]], dict[str, Any]]:
        """Scores by share of the labels and seed, and what the search chose, with the names of the features."""
        shares, folder = [*self.options.shares, 1.0], self.folder / "lightgbm"

        def make() -> dict[str, NDArray]:
            everything, test = self.table(self.learned), self.table(self.test)
            train, valid = (self.offers.groups([name]) for name in (TRAIN, VALIDATION))
            tables = [everything.of(np.searchsorted(self.learned, groups)) for groups in (train, valid)]
            model = LightGBMOffers(self.options.trials)
            model.search(tables[0], self.truth(train), tables[1], self.truth(valid))
            all_scores: dict[str, NDArray] = {}
            for share in shares:
                for seed in self.options.seeds:
                    model.seed, count = seed, round(share * len(self.learned))
                    subset = np.sort(np.random.default_rng(seed).permutation(len(self.learned))[:count])
                    model.fit(everything.of(subset), self.truth(self.learned[subset]))
                    offers, groups = model.scores(test)
                    all_scores |= {f"offers {share} {seed}": offers, f"groups {share} {seed}": groups}
            facts = {
                "chosen": model.settings,
                "group_features": everything.group_names,
                "offer_features": everything.offer_names,
            }
            write_json(folder / "chosen.json", facts)
            return all_scores

        facts = {"seeds": self.options.seeds, "shares": shares, "trials": self.options.trials}
        scores = self.stored(folder, facts, make)
        by_run = {
            (share, seed): {kind: scores[f"{kind} {share} {seed}"] for kind in ("offers", "groups")}
            for share in shares
            for seed in self.options.seeds
        }
        return by_run, json.loads((folder / "chosen.json").read_text(encoding="utf-8"))


def make_side_by_side(options: OfferComparison) -> None:
    """Leaves the files of all steps, several at a time, for `compare` to read."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))  # of the new processes
    tuned = [(name, seed, 1.0) for name in VARIANTS for seed in options.seeds]
    tuned += [(n, seed, share) for share in options.shares for n in (FINE_TUNED, RANDOM) for seed in options.seeds]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        first = [pool.submit(_make, options, "lightgbm")]
        first += [pool.submit(_make, options, "zero_shot", seed) for seed in options.seeds]
        for step in first:
            step.result()
        for step in [pool.submit(_make, options, "finetuned", *arguments) for arguments in tuned]:
            step.result()


def _make(options: OfferComparison, step: str, *args: Any) -> None:
    getattr(Comparison(options), step)(*args)


def mean_metrics(
    truth: OfferTruth, scores: Sequence[Mapping[str, NDArray]], weights: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Metrics on the data and each resample, the mean over seeds; and one row a seed on the data, `seeds <metric>`."""
    metrics = [offer_metrics(truth, run["offers"], run["groups"], weights) for run in scores]
    mean = {metric: np.mean([run[metric] for run in metrics], axis=0) for metric in METRICS}
    return mean | {f"seeds {metric}": np.array([run[metric][0] for run in metrics]) for metric in METRICS}


def compare(options: OfferComparison) -> dict[str, Any]:
    """Makes what is missing, and every number of the page."""
    comparison = Comparison(options)
    if options.jobs > 1:
        make_side_by_side(options)
    gbdt, lightgbm = comparison.lightgbm()
    truth, seeds = comparison.truth(comparison.test), options.seeds
    weights = resample_customers(truth.customer_ids)
    customers = len(set(truth.customer_ids))
    methods = {ZERO_SHOT: mean_metrics(truth, [comparison.zero_shot(seed) for seed in seeds], weights)}
    methods[GBDT] = mean_metrics(truth, [gbdt[1.0, seed] for seed in seeds], weights)
    for name in VARIANTS:
        runs = [comparison.finetuned(name, seed) for seed in seeds]
        methods[name] = mean_metrics(truth, runs, weights)
    curve = {}
    for share in options.shares:
        curve[f"{share:g}"] = {
            FINE_TUNED: mean_metrics(truth, [comparison.finetuned(FINE_TUNED, s, share) for s in seeds], weights),
            RANDOM: mean_metrics(truth, [comparison.finetuned(RANDOM, s, share) for s in seeds], weights),
            GBDT: mean_metrics(truth, [gbdt[share, seed] for seed in seeds], weights),
        }
    curve["1"] = {name: methods[name] for name in (FINE_TUNED, RANDOM, GBDT)}

    def differences_of(ours: Mapping[str, NDArray], theirs: Mapping[str, NDArray]) -> dict[str, Any]:
        with np.errstate(invalid="ignore"):
            return {metric: interval(ours[metric] / theirs[metric] - 1, customers)._asdict() for metric in METRICS}

    def intervals(metrics: Mapping[str, NDArray]) -> dict[str, Any]:
        by_metric = {metric: interval(metrics[metric], customers)._asdict() for metric in METRICS}
        return by_metric | {"by_seed": {metric: metrics[f"seeds {metric}"].tolist() for metric in METRICS}}

    ours = methods[FINE_TUNED]
    differences = {name: differences_of(ours, theirs) for name, theirs in methods.items() if name != FINE_TUNED}
    with_fewer = {
        share: {name: differences_of(by_method[FINE_TUNED], by_method[name]) for name in (RANDOM, GBDT)}
        for share, by_method in curve.items()
    }
    took = {}
    for name in VARIANTS:
        files = [comparison.folder_of(name, seed) / "finetuning.json" for seed in seeds]
        facts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        took[name] = {key: float(np.mean([fact[key] for fact in facts])) for key in FACTS}
    return {
        "command": shlex.join(["python", "benchmarks/run_offers.py", *sys.argv[1:]]),
        "data": comparison.data.schema.name,
        "seeds": seeds,
        "groups": len(comparison.test),
        "customers": customers,
        "takers": int(truth.responds.sum()),
        "learned": len(comparison.learned),
        "methods": {name: intervals(metrics) for name, metrics in methods.items()},
        "differences": differences,
        "curve": {
            share: {name: intervals(metrics) for name, metrics in by_method.items()}
            for share, by_method in curve.items()
        },
        "with_fewer": with_fewer,
        "lightgbm": lightgbm,
        "took": took,
    }


def main() -> None:
    """Reads the options, makes what is missing, and writes the page."""
    (options,) = parse_options(OfferComparison, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.data is None or options.offers is None:
        raise SystemExit("--data and --offers are needed: see --help.")
    try:
        with needs("evaluation"):  # before the hours of training
            import scipy.sparse  # noqa: F401
        results = compare(options)
        write_json(Path(options.output_dir, "results.json"), results)
        write_page(results, Path(options.report))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"run_offers: {error}")
    logger.info("%s is written.", options.report)


if __name__ == "__main__":
    main()
