#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is a pre-trained customer state worth where labels are few? Kids and churn with 100, 300 and 1,000 of them.

    python benchmarks/few_labels.py --model runs/quickstart --data data/complete_journey/prepared

Histories end at the validation cutoff, where pre-training ended. Of the labelled customers some are drawn, each class
in its share, and the others are predicted; that is repeated, with the same draws for every method:

- MCM fine-tuned, as `run_finetune.py --labels --eval_strategy no --validation_share 0` does by its defaults;
- the state as pre-training left it, with logistic regression;
- counts of the history (`HistoryFeatures`) with LightGBM, and with logistic regression.

Learners are those of run_probe.py. The figure is AUC, of several classes the mean of each against the rest.
Intervals resample the draws, in pairs for differences: they tell what luck with the drawn labels makes, on these
customers. The profile is hidden from all inputs. Needs the extra `gbdt`.
"""

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset, TensorDataset
from tqdm.auto import tqdm

from measuring import RESULTS, write_table
from modeling_mcm import MCMFeatureExtractor, MCMForCustomerPrediction
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.data import PreparedData, check_vocabularies
from modeling_mcm.evaluation.labels import mean_auc
from modeling_mcm.evaluation.metrics import bootstrap_interval
from modeling_mcm.evaluation.reports import with_half_interval, with_interval
from modeling_mcm.extras import needs
from modeling_mcm.option import option
from modeling_mcm.times_mcm import SECONDS_PER_DAY
from modeling_mcm.training.checkpoints import read_checkpoint
from modeling_mcm.training.finetuning import FineTuningArguments, FineTuningOptions
from modeling_mcm.training.labels import NEW, LabelTrainer, label_defaults
from probing import FEWEST, batches_at, make_learner

TUNED, FROZEN, TREES, LINEAR = METHODS = (
    "MCM fine-tuned",
    "frozen state, logistic regression",
    "counts, LightGBM",
    "counts, logistic regression",
)
LARGEST_SHARE = 0.75  # of the labelled customers that are drawn, so that some are left to predict


@dataclass
class FewLabelsOptions:
    """What is compared, on which labels, and where the results are written."""

    model: str | None = option(None, "Pre-trained checkpoint with a customer state.")
    data: str | None = option(None, "Folder of the prepared data set of the checkpoint.")
    profile: str = option("kids_count", "Feature of the profile to predict.")
    days: int = option(30, "Number of days after the cutoff; a customer without a visit in them has churned.")
    min_events: int = option(5, "Number of events that a customer needs before the cutoff.")
    sizes: list[int] = option([100, 300, 1000], "Numbers of labels to learn from.")
    draws: int = option(10, "Number of random draws of the labels of each size.")
    results: str = option(RESULTS, "Folder of the table.")


@dataclass(frozen=True)
class Customers:
    """The customers at the cutoff.

    Attributes:
        state_counts (`torch.Tensor`, shape `(customers, numbers)`): Counts that the customer state is computed from.
        counts (`numpy.ndarray`, shape `(customers, F)`): Hand-made counts.
        targets (`dict[str, numpy.ndarray]`): By name the ids of classes, of shape `(customers,)`; negative if unknown.
        caption (`str`): A description for the page.
    """

    state_counts: torch.Tensor
    counts: NDArray
    targets: dict[str, NDArray[np.int64]]
    caption: str


def read_customers(options: FewLabelsOptions, model: MCMForCustomerPrediction) -> Customers:
    """Reads the customers of a prepared data set as they were at its validation cutoff."""
    data = PreparedData(str(options.data))
    schema = data.schema
    extractor = MCMFeatureExtractor.from_pretrained(str(options.model))
    check_vocabularies(data.folder, extractor)
    profile = [feature["name"] for feature in extractor.features if feature.get("profile")]
    if options.profile not in profile:
        raise SystemExit(f"No feature {options.profile!r} in the profile; it has {', '.join(profile) or 'none'}.")
    cutoff = schema.cutoff_seconds("validation")
    tasks = [f"task_{task}" for task in extractor.tasks if task != extractor.token_type_feature]
    state_counts, counts, ids, churn = [], [], [], []
    for batch, blank, of_batch in batches_at(data, extractor, "validation", options.min_events):
        counts.append(of_batch)
        for row in batch:
            after = (row["times"] >= cutoff) & (row["times"] < cutoff + options.days * SECONDS_PER_DAY)
            churn.append(not (after & np.any([row[name] > 0 for name in tasks], axis=0)).any())
            ids.append(row[f"profile_{options.profile}"])
        readable = [extractor.readable(row, model.config.input_features) for row in blank]
        state_counts.append(model.model.state_counts(**extractor.pad(readable, now=[cutoff] * len(readable))))
    values = np.array(ids)
    often = [value for value in np.unique(values[values >= 2]) if (values == value).sum() >= FEWEST]
    classes = np.full(len(values), -1)
    for index, value in enumerate(often):
        classes[values == value] = index
    joined = np.nan_to_num(np.concatenate(counts), nan=-1.0)
    caption = (
        f"{len(ids):,} customers of {schema.name} with at least {options.min_events} events before "
        f"{schema.cutoff('validation'):%Y-%m-%d}, of whom {(classes >= 0).sum():,} have {options.profile} in "
        f"{len(often)} classes and {np.mean(churn):.1%} have no visit in the {options.days} days after; "
        f"{joined.shape[1]} counts, {model.config.state_size} numbers of state."
    )
    targets = {options.profile: classes, f"churn in {options.days} days": np.array(churn).astype(np.int64)}
    return Customers(torch.cat(state_counts), joined, targets, caption)


def fine_tuned(options: FewLabelsOptions, known: Customers, target: NDArray, indices: NDArray, seed: int) -> NDArray:
    """Fine-tunes the checkpoint to the labels of some customers, and computes log-odds of all, of shape `(customers,
    C)`.
    """
    names = {"id2label": {index: str(index) for index in range(target.max() + 1)}}
    with tempfile.TemporaryDirectory() as folder:
        options_of_labels = {name: value for name, value in label_defaults({"labels", "eval_strategy"}).items()}
        training = FineTuningArguments(
            **options_of_labels | {"output_dir": folder, "seed": seed, "report_to": "none", "disable_tqdm": True},
            save_strategy="no",
            logging_strategy="no",
        )
        torch.manual_seed(seed)
        model = read_checkpoint(MCMForCustomerPrediction, str(options.model), NEW, **names).eval()
        labels = torch.from_numpy(target)
        with torch.no_grad():
            states = model.model.state(known.state_counts[indices])
        model.start_from(labels[indices], states)
        trainer = LabelTrainer(
            model=model,
            args=training,
            data_collator=lambda items: (
                {"counts": torch.stack([i[0] for i in items])} | {"labels": torch.stack([i[1] for i in items])}
            ),
            train_dataset=Subset(TensorDataset(known.state_counts, labels), indices.tolist()),
            encoder_lr_factor=FineTuningOptions().encoder_lr_factor,
        )
        trainer.train()
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(counts=part).logits for part in known.state_counts.split(512)]).numpy()


def sample(target: NDArray, size: int, seed: int) -> NDArray[np.int64]:
    """Draws the indices of labelled customers, with each class in its share."""
    from sklearn.model_selection import train_test_split

    labelled = np.flatnonzero(target >= 0)
    return train_test_split(labelled, train_size=size, random_state=seed, stratify=target[labelled])[0]


def compare(options: FewLabelsOptions, known: Customers, states: NDArray) -> dict[str, Any]:
    """Computes the AUC of each draw, by target, size and method."""
    results: dict[str, Any] = {}
    inputs = {FROZEN: ("linear", states), TREES: ("LightGBM", known.counts), LINEAR: ("linear", known.counts)}
    for name, target in known.targets.items():
        labelled = np.flatnonzero(target >= 0)
        for size in sorted({min(size, int(LARGEST_SHARE * len(labelled))) for size in options.sizes}):
            values: dict[str, list[float]] = {method: [] for method in METHODS}
            for seed in tqdm(range(options.draws), desc=f"{name}, {size} labels", unit="draw"):
                indices = sample(target, size, seed)
                others = np.setdiff1d(labelled, indices)
                scores = {TUNED: fine_tuned(options, known, target, indices, seed)[others]}
                for method, (learner, features) in inputs.items():
                    fitted = make_learner(learner, "classes").fit(features[indices], target[indices])
                    chances = np.zeros((len(others), target.max() + 1))
                    chances[:, fitted.classes_] = fitted.predict_proba(features[others])
                    scores[method] = np.log(np.clip(chances, 1e-9, 1))
                for method in METHODS:
                    values[method].append(mean_auc(target[others], scores[method]))
            results.setdefault(name, {})[str(size)] = values | {"predicted": len(labelled) - size}
    return results


def result_table(results: dict[str, Any]) -> list[list[str]]:
    """Makes a row for each target and number of labels from the result of [`compare`]."""
    table = [["target", "labels", "predicted", *METHODS, "fine-tuned over counts, LightGBM"]]
    for target, sizes in results.items():
        for size, values in sizes.items():
            cells = [with_half_interval(bootstrap_interval(values[method])) for method in METHODS]
            gain = bootstrap_interval(np.subtract(values[TUNED], values[TREES]))
            table.append([target, f"{int(size):,}", f"{values['predicted']:,}", *cells, with_interval(gain, "+.3f")])
    return table


def main() -> None:
    """Reads the options, compares, and writes the table."""
    (options,) = parse_options(FewLabelsOptions, description=__doc__)
    if options.model is None or options.data is None:
        raise SystemExit("--model and --data are needed: see --help.")
    with needs("gbdt"):
        import lightgbm  # noqa: F401
        import sklearn  # noqa: F401
    model = read_checkpoint(MCMForCustomerPrediction, options.model, NEW).eval()
    known = read_customers(options, model)
    with torch.inference_mode():
        states = model.model.state(known.state_counts).numpy()
    write_table(options.results, "few_labels", known.caption, result_table(compare(options, known, states)))


if __name__ == "__main__":
    main()
