# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Publishes a checkpoint on the Hugging Face Hub, with its code and a model card that this command writes.

    mcm publish --model runs/quickstart --repo_id org/mcm-base --dry_run --output_dir published
    mcm publish --model runs/quickstart --repo_id org/mcm-base --data data/prepared
    ... --min_customers 5       hides values, and pairs of labels, that fewer than 5 customers have (needs --data)

Weights (safetensors), config, feature extractor and code are sent, and nothing else of the checkpoint folder. The card
takes the training command and its seconds from the folder's pretraining.json or finetuning.json, and results from its
evaluation.json, which `mcm evaluate --output_file` writes. A repository that exists gets one new commit, or none if
nothing changed; its README.md is replaced. The token is that of `hf auth login` or HF_TOKEN. With --data the command
counts how many customers have each value; the data set itself is never sent. `training/runs/model_cards.sh` writes
the cards in model_cards/.
Prefer this command to `Trainer.push_to_hub`, which also sends a pickle of the training arguments.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from modeling_mcm.hub import check_name, files_to_publish, model_card, publish, write_upload_folder
from modeling_mcm.hub.folder import CARD_NAME
from modeling_mcm.option import REQUIRED, option

from .arguments import command


@dataclass
class PublishingOptions:
    """Which checkpoint is published under which name, and what its card is written from."""

    model: str = option("Folder of the checkpoint to publish.", REQUIRED)
    repo_id: str = option("Name of the repository on the Hub, such as org/mcm-base.", REQUIRED)
    data: str | None = option("Folder of the prepared data set of the training, to count the customers of each value.")
    min_customers: int | None = option(
        "Hide values and pairs of labels that fewer customers than this have; needs --data."
    )
    private: bool = option("Make a private repository; refused if a public one exists.", False)
    dry_run: bool = option("Show what would be sent, and send nothing.", False)
    output_dir: str | None = option("New folder to write the files to. By default a temporary one.")

    def __post_init__(self) -> None:
        if self.min_customers is not None and not self.data:
            raise ValueError("--min_customers needs --data, the prepared data set.")
        for name, folder in (("model", self.model), ("data", self.data)):
            if folder and not Path(folder).is_dir():  # transformers would look for a repository of this name
                raise ValueError(f"--{name} is {folder!r}, which is no folder on this machine: check the path.")
        check_name(self.repo_id)
        if self.min_customers is not None and self.min_customers < 2:
            raise ValueError(f"--min_customers is {self.min_customers}; every value has 1 customer, give 2 or more.")


@command(__doc__, PublishingOptions)
def main(options: PublishingOptions) -> None:
    """Writes the folder, prints its files and sends it."""
    with tempfile.TemporaryDirectory(prefix="mcm-publish-") as scratch:
        folder = Path(options.output_dir or Path(scratch, "folder"))
        exposure = write_upload_folder(options.model, folder, options.data, options.min_customers)
        if exposure and exposure.hidden:
            print(
                f"Of fewer than {exposure.min_customers} customers: {sum(exposure.rare.values()):,} values are hidden,"
                f" and {exposure.pairs:,} weights of pairs of labels"
            )
        model_card(folder, options.repo_id, options.model, exposure).save(folder / CARD_NAME)
        files = files_to_publish(folder)
        for path in files:
            print(f"{path.stat().st_size:>14,} bytes  {path.name}")
        if options.dry_run:
            print(f"Nothing was sent. {len(files)} files would go to {options.repo_id}.")
            return
        result = publish(folder, options.repo_id, private=options.private)
    change = "new repository" if result.created else "new commit" if result.changed else "nothing had changed"
    print(f"{result.url} ({change}, commit {result.commit})")
