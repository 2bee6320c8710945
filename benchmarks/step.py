#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What a training step of a recipe is made of: seconds, waiting for data, padding, and how far it is from the floor.

    python benchmarks/step.py configuration/recipes/quickstart.yaml --max_steps 40

It trains as training/run_pretrain.py does, all of whose options it takes, and keeps nothing. Waiting is the time
between asking for a batch and having it, the first batches aside, which start the workers. Padding is the share of
what is computed that is no customer's. Processor seconds are of all threads of this process; with one thread
(OMP_NUM_THREADS=1, no workers) they tell two versions apart on a machine that does something else too.
"""

import sys
import tempfile
import time
from statistics import mean
from typing import Any

import torch

from floor import Shape, floor
from modeling_mcm.commands import pretrain
from modeling_mcm.training import pretraining
from modeling_mcm.training.trainer import MCMTrainer

STARTING = 3  # batches that are not counted


class MeasuredTrainer(MCMTrainer):
    """Records how long each batch was waited for, and its numbers of customers, events and units, with and without
    padding.
    """

    last: "MeasuredTrainer"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.waits: list[float] = []
        self.worked: list[float] = []
        self.sizes: list[tuple[int, ...]] = []
        MeasuredTrainer.last = self

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Measures how long the batches of a step were waited for."""
        self.worked.append(time.process_time())
        start = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self.waits.append(time.perf_counter() - start)
        return samples

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """Computes the loss, and records the sizes of the batch."""
        mask = inputs["attention_mask"]
        by_visit = self.train_collator.config.encoder_unit == "visit"
        units = inputs["visit_ids"].amax(1) + 1 if by_visit else mask.sum(1)
        sizes = (len(mask), mask.numel(), int(mask.sum()), len(mask) * int(units.max()), int(units.sum()))
        self.sizes.append(sizes)
        return super().compute_loss(model, inputs, *args, **kwargs)


def main() -> None:
    """Trains for some steps and prints how their time is spent."""
    if {"-h", "--help"} & set(sys.argv):
        sys.stdout.write(f"{__doc__}\n")
    pretraining.MCMTrainer = MeasuredTrainer  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        sys.argv += ["--output_dir", folder, "--save_strategy", "no", "--report_to", "none"]
        pretrain.main()
    trainer = MeasuredTrainer.last
    config: Any = trainer.train_collator.config
    customers, events, real_events, units, real_units = (
        mean(column) for column in zip(*trainer.sizes[STARTING:], strict=True)
    )
    whole = trainer.clock.seconds / len(trainer.waits)
    shape = Shape(
        label_sizes=list(config.label_sizes.values()),
        features=len(config.features),
        batch_size=round(customers),
        events=round(real_events / customers),
        units=round(real_units / customers),
    )
    least = floor(shape, config.to_dict())["training step"]["floor_ms"] / 1e3
    batch = f"{shape.batch_size} customers of {shape.events} events and {shape.units} {config.encoder_unit}s"
    print(f"{len(trainer.waits)} steps, {batch} on average, {torch.get_num_threads()} threads")
    print(f"seconds a step      {whole:.3f}, the floor is {least / whole:.0%} of it")
    worked = trainer.worked[STARTING:]
    print(f"processor seconds   {(worked[-1] - worked[0]) / (len(worked) - 1):.3f}")
    print(f"waiting for data    {mean(trainer.waits[STARTING:]) / whole:.1%}")
    print(f"padding, embedding  0.0%: {1 - real_events / events:.1%} of a batch, which it passes over")
    print(f"padding, encoder    {1 - real_units / units:.1%}")
    if config.augmentation == "all_prefixes":
        print("padding, scores     0.0%: units are packed")


if __name__ == "__main__":
    main()
