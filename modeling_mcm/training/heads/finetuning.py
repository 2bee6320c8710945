# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What fine-tuning to a label of customers and to offers share: options, and a linear head that is fitted at once.

Shapes: N examples, D numbers, V labels of all tasks, O outputs of the head.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import softmax
from torch import Tensor

from modeling_mcm.data import NO_CUTOFFS, PreparedData, check_vocabularies
from modeling_mcm.data.dataset import END, MANIFEST_FILE
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.files_mcm import read_json, write_json
from modeling_mcm.folders import file_digest
from modeling_mcm.option import REQUIRED, option

from ..checkpoints import checkpoint_digest, save_checkpoint
from ..counting import Counts
from ..descent import minimize
from ..resuming import FINE_TUNING, Facts, begin_run, command_line, is_finished, name_log, output_folder_lock

FOLDS, MANY = 5, 5_000  # folds of cross-validation; number of examples from which one of them is held out
LEAST_SHARE = 1e-3  # of a fit, below which it is no part of an average


@dataclass
class FineTuningOptions:
    """Which checkpoint is fine-tuned on which data, and where it is written to."""

    model: str = option("Pre-trained checkpoint: a folder, or a name on the Hub.", REQUIRED)
    data: str = option("Folder of the prepared data set that the checkpoint was pre-trained on.", REQUIRED)
    output_dir: str | None = option("Folder of the fine-tuned model. By default runs/labels or runs/offers.")
    seed: int = option("Seed of what is drawn: customers that are held out, and offers that were not taken.", 42)


class HeadInputs(NamedTuple):
    """What a head reads of examples.

    Attributes:
        numbers (`torch.FloatTensor` of shape `(N, D)`): Dense numbers, such as the customer state.
        labels (`csr_array` of shape `(N, V)`): Those of `label_counts`; no columns if the head reads none.
    """

    numbers: Tensor
    labels: csr_array

    def of(self, chosen: NDArray | slice) -> "HeadInputs":
        """Selects some examples."""
        return HeadInputs(self.numbers[chosen], self.labels[chosen])


Loss = Callable[[Tensor, Tensor], Tensor]  # of scores `(N, O)` and of `y`


def fit_linear(
    inputs: HeadInputs,
    y: Tensor,
    outputs: int,
    compute_loss: Loss,
    folds: NDArray,
    penalties: Sequence[float],
    scales: Sequence[tuple[Tensor, float, float]],
) -> tuple[NDArray, list[Tensor]]:
    """Fits a linear head of `outputs` scores for each of some scales and penalties, and averages these by what
    cross-validation says of them: shares are proportional to the weight of the scale and the likelihood of what was
    held out. Few examples tell them hardly apart, and the best of many is then one by luck.

    Args:
        y (`Tensor` of shape `(N, ...)`): What `compute_loss`, a mean over the examples, compares scores with.
        folds (`np.ndarray` of shape `(N,)`): Fold of each example, numbered from 0.
        penalties (sequence of `float`): Factors on the squared weights beside the sum of the losses, the largest
            first: each fit starts from the last.
        scales (sequence of tuples): What the numbers, less their means, are multiplied by, `(D,)`, what the labels,
            and the weight.

    Returns:
        `tuple`: The share that each of the scales and penalties has in the head, `(scales, penalties)`; and weights
        `(O, D)` of the numbers, weights `(O, V)` of the labels and biases `(O,)`.
    """
    mean, losses, number = inputs.numbers.mean(0), np.zeros((len(scales), len(penalties))), 0

    def scaled(factors: Tensor, label_factor: float) -> HeadInputs:
        return HeadInputs((inputs.numbers - mean) * factors, inputs.labels * np.float32(label_factor))

    for scale, path_losses in zip(scales, losses, strict=True):
        z = scaled(*scale[:2])
        for fold in range(FOLDS if len(y) < MANY else 1):
            held_out = folds == fold
            if 0 < held_out.sum() < len(y):
                left, count = z.of(held_out), int(held_out.sum())
                number += count
                fits = _fit_path(z.of(~held_out), y[~held_out], outputs, compute_loss, penalties)
                for index, parameters in enumerate(fits):
                    path_losses[index] += compute_loss(_score(left, parameters), y[held_out]).item() * count
    if y.is_floating_point() and y.ndim == 1:  # squares of what a number lacks, normal with their mean as variance
        number = max(number // len(scales), 1)
        losses = number / 2 * np.log(losses.clip(min=1e-12) / number)
    shares = softmax(np.log([scale[2] for scale in scales])[:, None] - losses)
    shares[shares < LEAST_SHARE] = 0.0
    shares /= shares.sum()
    total = [torch.zeros(outputs, inputs.numbers.shape[1]), torch.zeros(outputs, inputs.labels.shape[1])]
    total.append(torch.zeros(outputs))
    for scale, path_shares in zip(scales, shares, strict=True):
        read = 1 + max(np.flatnonzero(path_shares).tolist(), default=-1)
        fits = _fit_path(scaled(*scale[:2]), y, outputs, compute_loss, penalties[:read])
        for share, (weight, label_weight, bias) in zip(path_shares, fits, strict=False):
            weight = weight.T * scale[0]
            for sums, value in zip(total, (weight, label_weight.T * scale[1], bias - weight @ mean), strict=True):
                sums += float(share) * value
    return shares, total


def _fit_path(
    inputs: HeadInputs, y: Tensor, outputs: int, compute_loss: Loss, penalties: Sequence[float]
) -> list[list[Tensor]]:
    """Fits weights and biases for each penalty."""
    sizes = inputs.numbers.shape[1], inputs.labels.shape[1]
    fits = [[torch.zeros(size, outputs) for size in sizes] + [torch.zeros(outputs)]]
    for penalty in penalties:

        def loss(*parameters: Tensor, penalty: float = penalty) -> Tensor:
            squares = parameters[0].square().sum() + parameters[1].square().sum()
            return compute_loss(_score(inputs, parameters), y) + penalty / len(y) * squares

        fits.append(minimize(loss, fits[-1], max_iter=100))
    return fits[1:]


def _score(inputs: HeadInputs, parameters: Sequence[Tensor]) -> Tensor:
    """Scores `(N, O)` by weights `(D, O)` and `(V, O)`, and biases `(O,)`."""
    weight, label_weight, bias = parameters
    return inputs.numbers @ weight + SparseProduct.apply(inputs.labels, label_weight) + bias


class SparseProduct(torch.autograd.Function):
    """A sparse matrix, as scipy has it, times weights. torch's own product has a slow gradient."""

    @staticmethod
    def forward(context: Any, matrix: csr_array, weight: Tensor) -> Tensor:
        """Gives matrix @ weight."""
        context.matrix = matrix
        return torch.from_numpy(matrix @ weight.detach().numpy())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        """Gives the gradient of the weight."""
        return None, torch.from_numpy(context.matrix.T @ gradient.numpy())


def draw_folds(customer_ids: NDArray, seed: int) -> NDArray:
    """Draws the fold of each example `(N,)`: all of a customer's are in one."""
    owner = pd.factorize(customer_ids, sort=True)[0]
    return np.random.default_rng(seed).permutation(np.arange(owner.max() + 1) % FOLDS)[owner]


def fine_tune(
    options: FineTuningOptions,
    data: PreparedData,
    kind: str,
    digest: str,
    own: Facts,
    read: Callable[[str], Any],
    fit: Callable[[Any, MCMFeatureExtractor], Facts],
) -> Facts:
    """Fits a head to a checkpoint, and saves both with the feature extractor and the record of the run, which is
    returned; that of a finished run is read.

    Args:
        kind, digest (`str`): What the head is fitted to, "labels" or "offers", and a digest of its file.
        own (`dict`): Further options that decide the weights.
        read (`Callable`): Reads the checkpoint, with a new head.
        fit (`Callable`): Fits the head of a model, and says what the record holds.

    Raises:
        ValueError: If the checkpoint was trained on other data.
        CheckpointError: If the checkpoint can't be read.
        RunError: If the output folder holds something else.
    """
    start, extractor = time.monotonic(), MCMFeatureExtractor.from_pretrained(options.model)
    check_vocabularies(data.folder, extractor)
    pretrained = read(options.model).eval()
    run = {
        "data": file_digest(data.folder / MANIFEST_FILE),
        "pre-trained model": checkpoint_digest(pretrained, extractor),
        kind: digest,
        "options": {**own, "seed": options.seed},
    }
    output = Path(options.output_dir or f"runs/{kind}")
    with output_folder_lock(output):
        if is_finished(output, FINE_TUNING, run):
            return read_json(output / FINE_TUNING)
        # What is fitted knows nothing after the validation cutoff; what is used counts the log to its end
        has_cutoffs = data.schema.cutoffs != NO_CUTOFFS
        tuned, known = Counts(data).give(pretrained, extractor) if has_cutoffs else (pretrained, extractor)
        facts = fit(tuned, known) | {
            "seed": options.seed,
            "seconds": time.monotonic() - start,
            "command": command_line(),
        }
        if has_cutoffs:
            tuned, extractor = Counts.of(data, END).give(tuned, known, state=False)
        begin_run(output, FINE_TUNING, run)  # not before, so that a refused table leaves nothing
        save_checkpoint(output, tuned, extractor)
        name_log(output, data.folder)
        write_json(output / FINE_TUNING, facts)
        return facts
