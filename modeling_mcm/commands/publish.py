# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Publishes a checkpoint on the Hugging Face Hub, with its code and a model card that this command writes.

    mcm publish --model runs/quickstart --repo_id org/mcm-base --dry_run --output_dir published
    mcm publish --model runs/quickstart --repo_id org/mcm-base --data data/prepared
    ... --min_customers 5       hides values and pairs of labels that fewer than 5 customers have (needs --data)
    mcm publish --data data/prepared --dataset_card data/prepared/README.md     writes a card of the data set

Weights (safetensors), config, feature extractor and code are sent, and nothing else of the checkpoint folder. The card
takes the training command and its seconds from pretraining.json or finetuning.json, and results from the evaluation. A
repository that exists gets one new commit, or none if nothing changed; its README.md is replaced. The token is that of
`hf auth login` or HF_TOKEN. With --data the command counts how many customers have each value; the data set itself is
never sent. `bash training/runs/model_cards.sh` writes the cards in model_cards/.

Prefer this command to `Trainer.push_to_hub`, which also sends a pickle of the training arguments.
"""

import tempfile
from dataclasses import dataclass, replace
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
from modeling_mcm.option import option
from modeling_mcm.processing_mcm import MCMFeatureExtractor

RARE_BELOW = 5  # customers: a value of fewer is rare in the card, if --min_customers does not say otherwise
TRAINING_FILES = ("finetuning.json", "pretraining.json")


@dataclass
class PublishingOptions:
    """Which checkpoint is published under which name, and what its card is written from."""

    model: str | None = option(None, "Folder of the checkpoint to publish.")
    repo_id: str | None = option(None, "Name of the repository on the Hub, such as org/mcm-base.")
    evaluation: str | None = option(
        None,
        "JSON file that `mcm evaluate --output_file` wrote, for the card's results. By default "
        "evaluation.json in the checkpoint folder, if it is there.",
    )
    data: str | None = option(
        None, "Folder of the prepared data set of the training, to count how many customers have each value."
    )
    min_customers: int | None = option(
        None,
        "Hide values and pairs of labels that fewer customers than this have; needs --data. By default "
        "none are hidden.",
    )
    private: bool = option(False, "Make the repository private. It is an error if it exists and is public.")
    create_only: bool = option(False, "Publish only to a new repository: it is an error if it exists.")
    dry_run: bool = option(False, "Show what would be sent, and send nothing.")
    output_dir: str | None = option(
        None, "New folder to write the files to. By default a temporary one, which is deleted after."
    )
    card: str | None = option(
        None,
        "File, ending in .md, to write the model card to as well. The facts that it is written from go to "
        "a .json file of the same name.",
    )
    dataset_card: str | None = option(None, "File to write a card of the data set --data to. It is not sent.")
    watts: float = option(65.0, "Assumed power of the machine in training, in watts, for the card.")
    grams_per_kwh: float = option(
        450.0, "Assumed carbon dioxide of the power grid, in grams a kilowatt-hour, for the card."
    )

    def __post_init__(self) -> None:
        if not self.dataset_card and not (self.model and self.repo_id):
            raise ValueError("Give --model and --repo_id, or --data and --dataset_card.")
        if bool(self.model) != bool(self.repo_id):
            raise ValueError("--model and --repo_id go together: give both, the checkpoint and its name on the Hub.")
        if (self.min_customers is not None or self.dataset_card) and not self.data:
            raise ValueError("--min_customers and --dataset_card need --data, the prepared data set.")
        if self.card and (Path(self.card).suffix != ".md" or not self.model):
            raise ValueError(f"--card is {self.card!r}; give a name that ends in .md, and --model.")
        for name, folder in (("model", self.model), ("data", self.data)):
            if folder and not Path(folder).is_dir():  # transformers would look for a repository of this name
                raise ValueError(f"--{name} is {folder!r}, which is no folder on this machine: check the path.")
        if self.repo_id:
            try:
                check_name(self.repo_id)
            except PublishingError as error:
                raise ValueError(f"--repo_id: {error}") from error
        if self.min_customers is not None and self.min_customers < 2:
            raise ValueError(f"--min_customers is {self.min_customers}; every value has 1 customer, give 2 or more.")


def _count_rare(options: PublishingOptions, extractor: MCMFeatureExtractor) -> tuple[dict[str, list[str]], Exposure]:
    """Finds the rare values of each feature in the data set `options.data`, and their numbers for the card.

    Raises `ValueError` if the folder is no prepared data set, or has other vocabularies.
    """
    from modeling_mcm.data import PreparedData, check_vocabularies

    data = PreparedData(str(options.data))
    check_vocabularies(data.folder, extractor)
    least = options.min_customers or RARE_BELOW
    rare = rare_values(customers_per_value(data.rows, extractor), extractor, least)
    counted = {name: len(values) for name, values in rare.items()}
    return rare, Exposure(least, counted, hidden=options.min_customers is not None)


def _stored(path: Path, needed: bool) -> dict[str, Any] | None:
    """Reads a JSON file of the checkpoint; None if it does not exist and is not needed.

    Raises `ValueError` if the file is damaged, and `FileNotFoundError` if it is needed and does not exist.
    """
    if not needed and not path.is_file():
        return None
    return read_json(path, "which --evaluation names")


def _write_dataset_card(options: PublishingOptions) -> None:
    """Writes a card of the prepared data set `options.data` to the file `options.dataset_card`."""
    from modeling_mcm.data import PreparedData

    data = PreparedData(str(options.data))
    _, exposure = _count_rare(options, data.extractor)
    card = dataset_card(data.manifest, exposure)
    write_text(str(options.dataset_card), f"{card}\n")
    print(f"{options.dataset_card}: the card of {options.data}; the data set stays where it is")


def _fill_folder(options: PublishingOptions, folder: Path) -> None:
    """Writes all files that are sent to the Hub into a new folder, with the card.

    Raises `ValueError` if the checkpoint, the evaluation or the data set can't be read.
    """
    checkpoint = Path(str(options.model))
    hidden, shared, exposure = None, None, None
    if options.data:
        rare, exposure = _count_rare(options, MCMFeatureExtractor.from_pretrained(str(checkpoint)))
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
    evaluation = _stored(Path(options.evaluation or checkpoint / "evaluation.json"), needed=bool(options.evaluation))
    training = [record for name in TRAINING_FILES if (record := _stored(checkpoint / name, needed=False))]
    try:
        result_rows(evaluation)
    except ValueError as error:
        raise ValueError(f"{options.evaluation or checkpoint / 'evaluation.json'}: {error}") from error
    facts = CardFacts.gather(
        folder,
        str(options.repo_id),
        training[0] if training else None,
        evaluation,
        exposure,
        Footprint(options.watts, options.grams_per_kwh),
    )
    write_results(facts, folder)
    for path in (folder / "README.md", *([Path(options.card)] if options.card else [])):
        write_text(path, f"{model_card(facts)}\n")
    if options.card:
        facts.save(Path(options.card).with_suffix(".json"))


def main() -> None:
    """Reads the options, writes the folder, prints its files and sends it."""
    (options,) = parse_options(PublishingOptions, description=__doc__)
    with exits(PublishingError, ValueError, OSError, ImportError):
        if options.dataset_card:
            _write_dataset_card(options)
        if options.model is None:
            return
        with tempfile.TemporaryDirectory(prefix="mcm-publish-") as scratch:
            folder = Path(options.output_dir or Path(scratch, "folder"))
            _fill_folder(options, folder)
            files = files_to_publish(folder)
            for path in files:
                print(f"{path.stat().st_size:>14,} bytes  {path.relative_to(folder)}")
            if options.dry_run:
                print(f"Nothing was sent. {len(files)} files would go to {options.repo_id}.")
                return
            result = publish(folder, options.repo_id, private=options.private, create_only=options.create_only)
    change = "new repository" if result.created else "new commit" if result.changed else "nothing had changed"
    print(f"{result.url} ({change}, commit {result.commit})")


if __name__ == "__main__":
    main()
