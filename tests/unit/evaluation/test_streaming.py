# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Ranks taken from logits on the fly are those of numpy, in bounded memory, for the Trainer and for `evaluate`."""

from pathlib import Path
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import modeling_mcm.evaluation
from modeling_mcm.evaluation import customer_metrics, distinct_targets, tie_ranks
from modeling_mcm.evaluation.streaming import StreamingMetrics, ranks_from_logits

CUSTOMERS, LABELS, TARGETS = 12, 40, 30


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randint(0, 9, (CUSTOMERS, LABELS), generator=torch.Generator().manual_seed(0)).float() / 8


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(0, LABELS, (CUSTOMERS, TARGETS), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_elements", [1, 3 * LABELS, 2**24])
def test_ranks_are_those_of_numpy(
    logits: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype, max_elements: int
) -> None:
    greater, ties = ranks_from_logits(logits.to(dtype), labels, max_elements)
    expected = tie_ranks(logits.numpy(), labels.numpy())
    np.testing.assert_array_equal(greater.numpy(), expected[0])
    np.testing.assert_array_equal(ties.numpy(), expected[1])


def test_one_label_a_customer_and_padding_of_any_kind(logits: torch.Tensor, labels: torch.Tensor) -> None:
    greater, ties = ranks_from_logits(logits, labels[:, 0])
    assert greater.shape == ties.shape == (CUSTOMERS,)
    torch.testing.assert_close(greater, ranks_from_logits(logits, labels)[0][:, 0])
    padding = torch.full_like(labels, -100)
    torch.testing.assert_close(ranks_from_logits(logits, padding), ranks_from_logits(logits, torch.zeros_like(labels)))


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_nothing_larger_than_the_logits_is_held(logits: torch.Tensor, labels: torch.Tensor) -> None:
    with LargestTensor() as largest:
        ranks_from_logits(logits, labels)
    assert largest.elements <= logits.numel()


def test_ranks_refuse_nan_and_shapes_that_do_not_fit(logits: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="NaN"):
        ranks_from_logits(logits.clone().fill_(torch.nan), labels)
    with pytest.raises(ValueError, match=r"expected \(B, V\) and \(B, N\)"):
        ranks_from_logits(logits, labels[:-1])


def expected_means(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    events = [row[row > 0] for row in labels.numpy()]
    distinct, counts = distinct_targets(np.cumsum([0, *map(len, events)]), np.concatenate(events))
    values = customer_metrics(*tie_ranks(logits.numpy(), distinct), counts)
    return {name: float(np.nanmean(value)) for name, value in values.items()}


def test_streamed_batches_give_the_metrics_of_the_whole(logits: torch.Tensor, labels: torch.Tensor) -> None:
    metrics = StreamingMetrics()
    for _ in range(2):  # the second round shows that the first left nothing behind
        for start in range(0, CUSTOMERS, 5):
            batch = slice(start, start + 5)
            ranks = {"brand": ranks_from_logits(logits[batch], labels[batch])}
            # What accelerate does when it gathers batches of unlike width.
            padded = {"brand": torch.nn.functional.pad(labels[batch], (0, 2), value=-100)}
            ranks = {"brand": tuple(torch.nn.functional.pad(rank, (0, 2), value=-100) for rank in ranks["brand"])}
            last = start + 5 >= CUSTOMERS
            result = metrics(SimpleNamespace(predictions=ranks, label_ids=padded), compute_result=last)
            assert last or result == {}
        expected = {f"brand_{name}": value for name, value in expected_means(logits, labels).items()}
        assert result == pytest.approx(expected)


def test_evaluate_loads_the_module_offline_and_agrees(
    logits: torch.Tensor, labels: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    module = Path(modeling_mcm.evaluation.__file__).parent / "modules" / "next_visit_metrics"
    metric = evaluate.load(str(module), cache_dir=str(tmp_path / "cache"))
    events = [np.unique(row[row > 0], return_counts=True) for row in labels.numpy()]
    for row, (targets, counts) in zip(logits.numpy(), events, strict=True):
        metric.add(prediction=np.stack(tie_ranks(row, targets), axis=1).tolist(), reference=counts.tolist())
    assert metric.compute(k=10) == pytest.approx(expected_means(logits, labels))
