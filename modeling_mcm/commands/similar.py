# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Names the labels that are most like one label, or those that go with several.

mcm similar --model runs/quickstart --task product_type --labels "PASTA SAUCE"
mcm similar --model runs/quickstart --task product_type --labels "PASTA SAUCE" "SPAGHETTI DRY" --together
"""

from dataclasses import dataclass

from modeling_mcm.live.similar import similar, together
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.option import REQUIRED, option
from modeling_mcm.training.checkpoints import open_checkpoint

from .arguments import command


@dataclass
class SimilarOptions:
    """Which labels are compared, by which checkpoint."""

    model: str = option("Checkpoint folder, or name on the Hub.", REQUIRED)
    task: str = option("Task whose labels are compared.", REQUIRED)
    labels: list[str] = option("The label, or with --together one or more labels.", [])
    together: bool = option("Name the labels that go with all of them, in the place of those that are alike.", False)
    k: int = option("Number of labels.", 10)

    def __post_init__(self) -> None:
        if not self.labels or (len(self.labels) > 1 and not self.together):
            raise ValueError(f"--labels has {len(self.labels)} labels; give one, or several with --together.")


@command(__doc__, SimilarOptions)
def main(options: SimilarOptions) -> None:
    """Prints a label and its score in each line."""
    checkpoint = open_checkpoint(MCMForMultiTaskRecommendation, options.model)
    if options.together:
        labels = together(*checkpoint, options.task, options.labels, options.k)
    else:
        labels = similar(*checkpoint, options.task, options.labels[0], options.k)
    for entry in labels:
        print(f"{entry['score']:8.3f}  {entry['label']}")
