# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Publishes a checkpoint on the Hugging Face Hub, with remote code and a model card that this command fills.

    mcm publish --model runs/quickstart --repo_id org/mcm-base --dry_run --output_dir published
    mcm publish --model runs/quickstart --repo_id org/mcm-base --data data/prepared
    ... --min_customers 5       values of fewer customers become placeholders, pairs of labels go (needs --data)
    bash training/runs/model_cards.sh           the cards in model_cards/
    mcm publish --data data/prepared --dataset_card data/prepared/README.md

Weights (safetensors), config, feature extractor and code are sent, nothing else of the checkpoint folder; the card
takes training command and seconds from pretraining.json or finetuning.json, and results from the evaluation. A
repository that exists gets one new commit, or none if nothing changed; README.md is replaced. The token is that of
`hf auth login` or HF_TOKEN. With --data the customers of each value are counted; the data set itself is never sent.
`Trainer.push_to_hub` and `model.push_to_hub` choose less: the first sends a pickle of the training arguments.
"""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from modeling_mcm.commands.arguments import exits, parse_options
from modeling_mcm.data.dataset import FOLLOWERS_FILE
from modeling_mcm.files_mcm import write_text
from modeling_mcm.hub import (
    CardFacts,
    Exposure,
    Footprint,
    PublishingError,
    check_name,
    customers_per_value,
    dataset_card,
    files_to_publish,
    model_card,
    publish,
    rare_values,
    shared_pairs,
    write_results,
    write_upload_folder,
)
from modeling_mcm.hub.card import result_rows
from modeling_mcm.hub.folder import read_json
from modeling_mcm.processing_mcm import MCMFeatureExtractor

COUNTED = 5  # customers; below it the card calls a value rare, if the options don't say otherwise
TRAINING_FILES = ("finetuning.json", "pretraining.json")


@dataclass
class PublishingOptions:
    """What is published, where, and what the card says."""

    model: str | None = field(default=None, metadata={"help": "Checkpoint folder."})
    repo_id: str | None = field(default=None, metadata={"help": "Name on the Hub, such as org/mcm-base."})
    evaluation: str | None = field(
        default=None,
        metadata={"help": "What run_evaluate.py --output_file wrote; evaluation.json of the checkpoint by default."},
    )
    data: str | None = field(
        default=None, metadata={"help": "Prepared data set of the training, to count the customers of each value."}
    )
    min_customers: int | None = field(
        default=None, metadata={"help": "Hide values and pairs of labels that fewer customers have; needs --data."}
    )
    private: bool = field(default=False, metadata={"help": "Make the repository private; it must not be public yet."})
    create_only: bool = field(default=False, metadata={"help": "Refuse a repository that exists."})
    dry_run: bool = field(default=False, metadata={"help": "Show what would be sent and send nothing."})
    output_dir: str | None = field(default=None, metadata={"help": "New folder to keep what is sent in."})
    card: str | None = field(
        default=None,
        metadata={
            "help": "Write the card to this .md file too, and what it says of the checkpoint to a .json beside."
        },
    )
    dataset_card: str | None = field(
        default=None, metadata={"help": "Write the card of --data to this file; it is not sent."}
    )
    watts: float = field(default=65.0, metadata={"help": "Assumed power of the machine in training."})
    grams_per_kwh: float = field(default=450.0, metadata={"help": "Assumed carbon dioxide of the grid."})

    def __post_init__(self) -> None:
        if not self.dataset_card and not (self.model and self.repo_id):
            raise ValueError("Give --model and --repo_id, or --data and --dataset_card.")
        if bool(self.model) != bool(self.repo_id):
            raise ValueError("--model and --repo_id go together: what is published, and where.")
        if (self.min_customers is not None or self.dataset_card) and not self.data:
            raise ValueError("--min_customers and --dataset_card need --data, the prepared data set.")
        if self.card and (Path(self.card).suffix != ".md" or not self.model):
            raise ValueError(f"--card is {self.card!r}; give a name that ends in .md, and --model.")
        for option, folder in (("model", self.model), ("data", self.data)):
            if folder and not Path(folder).is_dir():  # transformers would take the name for one on the Hub, and ask
                raise ValueError(f"--{option} is {folder!r}, which is no folder here.")
        if self.repo_id:
            try:
                check_name(self.repo_id)
            except PublishingError as error:
                raise ValueError(f"--repo_id: {error}") from error
        if self.min_customers is not None and self.min_customers < 2:
            raise ValueError(f"--min_customers is {self.min_customers}; every value has 1 customer, give 2 or more.")


def count_rare(options: PublishingOptions, extractor: MCMFeatureExtractor) -> tuple[dict[str, list[str]], Exposure]:
    """The rare values of each feature by the data set of the options, and what the card says of them."""
    from modeling_mcm.data import PreparedManifest, check_vocabularies, load_prepared

    PreparedManifest.load(str(options.data))  # says what is wrong with a folder that is no data set
    check_vocabularies(str(options.data), extractor)
    least = options.min_customers or COUNTED
    rare = rare_values(customers_per_value(load_prepared(str(options.data)), extractor), extractor, least)
    counted = {name: len(values) for name, values in rare.items()}
    return rare, Exposure(least, counted, hidden=options.min_customers is not None)


def stored(path: Path, needed: bool) -> dict[str, Any] | None:
    """What a JSON file holds; None where an optional one is missing. A `ValueError` names one that is damaged."""
    if not needed and not path.is_file():
        return None
    return read_json(path, "which --evaluation names")


def write_dataset_card(options: PublishingOptions) -> None:
    """Writes the card of the prepared data set."""
    from modeling_mcm.data import PreparedManifest
    from modeling_mcm.data.dataset import FEATURE_EXTRACTOR_FOLDER

    extractor = MCMFeatureExtractor.from_pretrained(str(Path(str(options.data), FEATURE_EXTRACTOR_FOLDER)))
    _, exposure = count_rare(options, extractor)
    card = dataset_card(PreparedManifest.load(str(options.data)), exposure)
    write_text(str(options.dataset_card), f"{card}\n")
    print(f"{options.dataset_card}: the card of {options.data}; the data set stays where it is")


def fill_folder(options: PublishingOptions, folder: Path) -> None:
    """Writes all that is sent."""
    checkpoint = Path(str(options.model))
    hidden, shared, exposure = None, None, None
    if options.data:
        rare, exposure = count_rare(options, MCMFeatureExtractor.from_pretrained(str(checkpoint)))
        if exposure.hidden:
            hidden, counted = rare, Path(options.data, FOLLOWERS_FILE)
            shared = shared_pairs(pq.read_table(counted), exposure.min_customers) if counted.is_file() else None
    pairs = write_upload_folder(checkpoint, folder, hidden, shared).hidden_pairs
    if exposure and exposure.hidden:
        exposure = replace(exposure, pairs=pairs.followers)
        print(
            f"Of fewer than {exposure.min_customers} customers: {sum(exposure.rare.values()):,} values are hidden, "
            f"{pairs.followers:,} pairs of labels, and {pairs.related:,} weights from or to hidden values"
        )
    evaluation = stored(Path(options.evaluation or checkpoint / "evaluation.json"), needed=bool(options.evaluation))
    training = [facts for name in TRAINING_FILES if (facts := stored(checkpoint / name, needed=False))]
    try:
        result_rows(evaluation)
    except ValueError as error:
        raise ValueError(f"{options.evaluation or checkpoint / 'evaluation.json'}: {error}") from error
    told = CardFacts.gather(
        folder,
        str(options.repo_id),
        training[0] if training else None,
        evaluation,
        exposure,
        Footprint(options.watts, options.grams_per_kwh),
    )
    write_results(told, folder)
    for path in (folder / "README.md", *([Path(options.card)] if options.card else [])):
        write_text(path, f"{model_card(told)}\n")
    if options.card:
        told.save(Path(options.card).with_suffix(".json"))


def main() -> None:
    """Reads the options, writes the folder and sends it."""
    (options,) = parse_options(PublishingOptions, description=__doc__)
    with exits(PublishingError, ValueError, OSError, ImportError):
        if options.dataset_card:
            write_dataset_card(options)
        if options.model is None:
            return
        with tempfile.TemporaryDirectory(prefix="mcm-publish-") as scratch:
            folder = Path(options.output_dir or Path(scratch, "folder"))
            fill_folder(options, folder)
            files = files_to_publish(folder)
            for path in files:
                print(f"{path.stat().st_size:>14,} bytes  {path.relative_to(folder)}")
            if options.dry_run:
                print(f"Nothing was sent. {len(files)} files would go to {options.repo_id}.")
                return
            done = publish(folder, options.repo_id, private=options.private, create_only=options.create_only)
    what = "new repository" if done.created else "new commit" if done.changed else "nothing had changed"
    print(f"{done.url} ({what}, commit {done.commit})")


if __name__ == "__main__":
    main()
