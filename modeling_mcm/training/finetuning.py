# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What fine-tuning to a label of customers and to offers share: options, and a linear head that is fitted at once.

Shapes: N examples, D numbers, V labels of all tasks, O outputs of the head.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from modeling_mcm.data import PreparedData, check_vocabularies
from modeling_mcm.data.dataset import MANIFEST_FILE
from modeling_mcm.files_mcm import file_digest, write_json
from modeling_mcm.option import option
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.training.resuming import FINE_TUNING, check_folder, output_folder_lock

FOLDS, MANY = 5, 5_000  # folds of cross-validation; number of examples from which one of them is held out


@dataclass
class FineTuningOptions:
    """Which checkpoint is fine-tuned on which data, and where it is written to."""

    model: str | None = option(None, "Pre-trained checkpoint: a folder, or a name on the Hub. Required.")
    data: str | None = option(
        None, "Folder of the prepared data set that the checkpoint was pre-trained on. Required."
    )
    output_dir: str | None = option(None, "Folder of the fine-tuned model. By default runs/labels or runs/offers.")
    max_events: int | None = option(
        None,
        "Largest number of events that are read of a history, the start row included. By default the checkpoint's.",
    )
    seed: int = option(42, "Seed of what is drawn: customers that are held out, and offers that were not taken.")


class HeadInputs(NamedTuple):
    """What a head reads of examples.

    Attributes:
        numbers (`torch.FloatTensor` of shape `(N, D)`): Dense numbers, such as the customer state.
        labels (`csr_array` of shape `(N, V)`): Those of `label_counts`; no columns if the head reads none.
    """

    numbers: torch.Tensor
    labels: csr_array

    def of(self, chosen: NDArray) -> "HeadInputs":
        """Selects some examples."""
        return HeadInputs(self.numbers[chosen], self.labels[chosen])


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of scores `(N, O)` and of `y`


def fit_linear(
    inputs: HeadInputs,
    y: torch.Tensor,
    outputs: int,
    compute_loss: Loss,
    folds: NDArray[np.int64],
    penalties: Sequence[float],
) -> tuple[float, list[torch.Tensor]]:
    """Fits a linear head of `outputs` scores with the penalty of the lowest loss in cross-validation.

    Args:
        y (`torch.Tensor` of shape `(N, ...)`): What `compute_loss`, a mean over the examples, compares scores with.
        folds (`np.ndarray` of shape `(N,)`): Fold of each example, numbered from 0.
        penalties (sequence of `float`): Factors on the squared weights beside the sum of the losses, the largest
            first: each fit starts from the last.

    Returns:
        `tuple`: The penalty, and weights `(D, O)`, weights `(V, O)` and biases `(O,)`.
    """
    losses = np.zeros(len(penalties))
    for fold in range(FOLDS if len(y) < MANY else 1):
        held_out = folds == fold
        if 0 < held_out.sum() < len(y):
            left = inputs.of(held_out)
            fits = _fit_path(inputs.of(~held_out), y[~held_out], outputs, compute_loss, penalties)
            for index, parameters in enumerate(fits):
                losses[index] += compute_loss(_score(left, parameters), y[held_out]).item() * int(held_out.sum())
    best = int(losses.argmin())
    return penalties[best], _fit_path(inputs, y, outputs, compute_loss, penalties[: best + 1])[-1]


@torch.enable_grad()
def _fit_path(
    inputs: HeadInputs, y: torch.Tensor, outputs: int, compute_loss: Loss, penalties: Sequence[float]
) -> list[list[torch.Tensor]]:
    """Fits weights and biases for each penalty."""
    sizes = inputs.numbers.shape[1], inputs.labels.shape[1]
    fitted, fits = [torch.zeros(size, outputs) for size in sizes] + [torch.zeros(outputs)], []
    for penalty in penalties:
        parameters = [value.clone().requires_grad_() for value in fitted]
        optimizer = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

        def closure(parameters: Any = parameters, penalty: float = penalty, optimizer: Any = optimizer) -> float:
            optimizer.zero_grad()
            squares = parameters[0].square().sum() + parameters[1].square().sum()
            loss = compute_loss(_score(inputs, parameters), y) + penalty / len(y) * squares
            loss.backward()
            return loss.item()

        optimizer.step(closure)
        fitted = [value.detach() for value in parameters]
        fits.append(fitted)
    return fits


def _score(inputs: HeadInputs, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Scores `(N, O)` by weights `(D, O)` and `(V, O)`, and biases `(O,)`."""
    weight, of_labels, bias = parameters
    return inputs.numbers @ weight + SparseProduct.apply(inputs.labels, of_labels) + bias


class SparseProduct(torch.autograd.Function):
    """A sparse matrix, as scipy has it, times weights. torch's own product has a slow gradient."""

    @staticmethod
    def forward(context: Any, matrix: csr_array, weight: torch.Tensor) -> torch.Tensor:
        """Gives matrix @ weight."""
        context.matrix = matrix
        return torch.from_numpy(matrix @ weight.detach().numpy())

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:  # type: ignore[override]
        """Gives the gradient of the weight."""
        return None, torch.from_numpy(context.matrix.T @ gradient.numpy())


def draw_folds(customer_ids: NDArray, seed: int) -> NDArray[np.int64]:
    """Draws the fold of each example `(N,)`: all of a customer's are in one."""
    owner = np.unique(customer_ids.astype(str), return_inverse=True)[1]
    return np.random.default_rng(seed).permutation(np.arange(owner.max() + 1) % FOLDS)[owner]


def open_extractor(model: str, data: PreparedData, max_events: int | None) -> MCMFeatureExtractor:
    """Opens the feature extractor of a checkpoint that is fine-tuned on a data set; `max_events` is saved with it."""
    extractor = MCMFeatureExtractor.from_pretrained(model)
    check_vocabularies(data.folder, extractor)
    extractor.max_events = max_events or extractor.max_events
    return extractor


def describe_run(model: str, data: PreparedData, options: Mapping[str, Any], **digests: str) -> dict[str, Any]:
    """What a fine-tuning is, for [`check_folder`]."""
    weights = compute_digest(model, ("*.safetensors", "config.json"))
    digests = {"data": file_digest(data.folder / MANIFEST_FILE), "pre-trained model": weights} | digests
    return {**digests, "options": options}


def compute_digest(folder: str | Path, patterns: Sequence[str]) -> str:
    """Computes one SHA-256 digest of a folder's files."""
    files = [path for pattern in patterns for path in sorted(Path(folder).glob(pattern))]
    return hashlib.sha256(" ".join(map(file_digest, files)).encode()).hexdigest()


@contextmanager
def fitted_once(
    output_dir: str, run: Mapping[str, Any], model: Any, extractor: MCMFeatureExtractor
) -> Iterator[dict[str, Any]]:
    """A context that fills in the record of a run. It is empty where the head has to be fitted, which is saved in the
    end with the feature extractor and the record; otherwise it is that of the finished run in the folder. Raises
    `RunError` if the folder holds something else."""
    output, start = Path(output_dir), time.monotonic()
    with output_folder_lock(output):
        is_finished = check_folder(output, FINE_TUNING, run).is_finished
        facts = json.loads((output / FINE_TUNING).read_text(encoding="utf-8")) if is_finished else {}
        yield facts
        if not is_finished:
            model.save_pretrained(output)
            extractor.save_pretrained(output)
            command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
            write_json(output / FINE_TUNING, facts | {"seconds": time.monotonic() - start, "command": command})
