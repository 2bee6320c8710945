# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of the readout against plain torch and float64: on a GPU, or interpreted where there is none.

The interpreter runs a kernel's lines one by one in numpy. It says whether they are right, not whether a GPU can run
them: a compiler of its own checks them in another test.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_mcm import readout_mcm, readout_triton_mcm
from modeling_mcm.readout_mcm import PackedUnits, attentional_readout
from modeling_mcm.readout_triton_mcm import can_fuse, fused_readout

needs_triton = pytest.mark.skipif(readout_triton_mcm.triton is None, reason="Triton is not installed")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not interpreted, reason="Triton's interpreter is off")),
    pytest.param("cuda", marks=pytest.mark.skipif(interpreted or not torch.cuda.is_available(), reason="no GPU")),
]
# Three tiles of units, two of labels, two steps along the hidden vectors, none of them full.
BATCH, UNITS, HIDDEN, LABELS = 2, 33, 20, 17
LENGTHS = [33, 18]
MODES = ["whole", "ends", "packed"]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """Small tiles and products of bfloat16 where Triton is interpreted."""
    monkeypatch.setattr(readout_mcm, "FUSED_ON", request.param)
    if request.param == "cpu":
        for name in ("UNIT_TILE", "LABEL_TILE", "HIDDEN_TILE"):
            monkeypatch.setattr(readout_triton_mcm, name, 16)
        widen_products(monkeypatch)
    return request.param


def widen_products(monkeypatch):
    """The interpreter keeps bfloat16 as the upper half of a float32's bits, and multiplies these as whole numbers."""
    np, tl = pytest.importorskip("numpy"), pytest.importorskip("triton.language")
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain = InterpreterBuilder.create_dot

    def widened(value):
        if value.dtype.scalar != tl.bfloat16:
            return value
        return TensorHandle((value.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(builder, one, other, *rest):
        return plain(builder, widened(one), widened(other), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def make_inputs(device, dtype=torch.float32, size=1.0):
    """h, e and a mask; z has a deviation of 4.5 `size`."""
    torch.manual_seed(0)
    mask = torch.arange(UNITS) < torch.tensor(LENGTHS)[:, None]
    hidden, vectors = size * torch.randn(BATCH, UNITS, HIDDEN), torch.randn(LABELS, HIDDEN)
    return *(value.to(device, dtype).requires_grad_() for value in (hidden, vectors)), mask.to(device)


def make_ends(mode, mask):
    if mode == "packed":
        return PackedUnits.of(mask)
    if mode == "asked":
        return PackedUnits.of(mask, mask & (torch.arange(UNITS, device=mask.device) % 3 == 1))
    return torch.tensor([[32, 0, 7, 7, 16], [17, 3, 0, 15, 1]], device=mask.device) if mode == "ends" else None


def gradients(scores, weight, *inputs):
    return torch.autograd.grad((scores * weight).sum(), inputs)


def error(found, expected):
    """The largest difference beside the largest number."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


# of exp(z) float32 knows the fewer digits the larger z is; bfloat16, of 8 bits, is rounded at the end alone
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.015)], ids=["float32", "bf16"])
@pytest.mark.parametrize("size", [1.0, 20.0], ids=["narrow", "wide"])
@pytest.mark.parametrize("mode", [*MODES, "asked"])
@needs_triton
def test_kernels_give_the_scores_and_gradients_of_plain_torch_and_of_float64(device, mode, size, dtype, tolerance):
    hidden, vectors, mask = make_inputs(device, dtype, size)
    ends = make_ends(mode, mask)
    found = attentional_readout(hidden, vectors, mask, ends)
    assert "Fused" in found.grad_fn.name() or mode == "ends"  # of which some are picked out
    assert found.dtype == dtype
    weight = torch.randn(found.shape, device=device)
    found = found, *gradients(found, weight, hidden, vectors)
    assert all(value.isfinite().all() for value in found)
    for exact in (torch.float64, torch.float32):
        plain = [value.detach().to(exact).requires_grad_() for value in (hidden, vectors)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(readout_mcm, "FUSED_ON", "nowhere")
            scores = attentional_readout(*plain, mask, ends)
        assert (scores.max() - scores.min() > 4 * readout_mcm.WIDEST) == (size > 1)
        expected = scores, *gradients(scores, weight, *plain)
        assert max(map(error, found, expected)) < (size if dtype == torch.float32 else 1) * tolerance


@needs_triton
def test_gradients_in_bfloat16_are_nearer_to_float64_than_those_of_plain_torch(device, monkeypatch):
    hidden, vectors, mask = make_inputs(device, torch.bfloat16, 5.0)
    exact = [value.detach().double().requires_grad_() for value in (hidden, vectors)]
    expected = gradients(attentional_readout(*exact, mask), 1, *exact)
    errors = []
    for place in (device, "nowhere"):
        monkeypatch.setattr(readout_mcm, "FUSED_ON", place)
        found = gradients(attentional_readout(hidden, vectors, mask), 1, hidden, vectors)
        errors.append(list(map(error, found, expected)))
    assert all(ours < plain / 2 for ours, plain in zip(*errors, strict=True)), errors


@pytest.mark.parametrize("mode", MODES)
@needs_triton
def test_what_stands_on_padding_changes_no_bit(device, mode):
    hidden, vectors, mask = make_inputs(device)
    ends = make_ends(mode, mask)
    changed = torch.where(mask[..., None], hidden, float("nan")).detach().requires_grad_()
    scores = [fused_readout(value, vectors, mask, ends) for value in (hidden, changed)]
    assert torch.equal(*scores)
    of_hidden, of_changed = (gradients(s, 1, value)[0] for s, value in zip(scores, (hidden, changed), strict=True))
    assert torch.equal(of_hidden, of_changed) and not of_changed[~mask].any()


@pytest.mark.parametrize("mode", MODES)
@needs_triton
def test_a_label_s_score_is_the_same_bits_however_many_labels_there_are(device, mode):
    hidden, vectors, mask = make_inputs(device)
    ends = make_ends(mode, mask)
    with torch.no_grad():
        every = attentional_readout(hidden, vectors, mask, ends)
        for count in (1, 16):
            assert torch.equal(attentional_readout(hidden, vectors[:count], mask, ends), every[..., :count])


@pytest.mark.parametrize("mode", ["whole", "packed"])
@needs_triton
def test_gradients_in_chunks_of_labels_are_the_same(device, mode, monkeypatch):
    hidden, vectors, mask = make_inputs(device)
    scores = fused_readout(hidden, vectors, mask, make_ends(mode, mask))
    weight = torch.randn(scores.shape, device=device)
    run = torch.autograd.grad, (scores * weight).sum(), (hidden, vectors)
    at_once = run[0](*run[1:], retain_graph=True)
    monkeypatch.setattr(readout_triton_mcm, "CHUNK_ELEMENTS", 5 * BATCH * UNITS)
    for found, expected in zip(run[0](*run[1:]), at_once, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@needs_triton
def test_one_gradient_can_be_asked_for_alone(device):
    hidden, vectors, mask = make_inputs(device)
    both = gradients(fused_readout(hidden, vectors, mask), 1, hidden, vectors)
    assert torch.equal(gradients(fused_readout(hidden.detach(), vectors, mask), 1, vectors)[0], both[1])
    assert torch.equal(gradients(fused_readout(hidden, vectors.detach(), mask), 1, hidden)[0], both[0])


@needs_triton
def test_autocast_decides_what_is_computed_in(device):
    hidden, vectors, mask = make_inputs(device)
    with torch.autocast(device, torch.bfloat16):
        assert can_fuse(hidden, vectors)
        scores = attentional_readout(hidden, vectors, mask)
    assert scores.dtype == torch.bfloat16
    assert [value.dtype for value in gradients(scores, 1, hidden, vectors)] == [torch.float32] * 2
    rounded = fused_readout(hidden.bfloat16(), vectors.bfloat16(), mask)
    assert torch.equal(scores, rounded)


@needs_triton
def test_a_model_trains_the_same(device, tiny_model, extractor, event_log, monkeypatch):
    model = tiny_model(extended=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).to(device).train()
    histories = [event_log[event_log["who"] == who].head(count) for who, count in (("c00", 9), ("c02", 24))]
    batch = dict(extractor([{"events": events.to_dict("list")} for events in histories]))
    batch["prefix_ends"] = (batch["attention_mask"].sum(1, keepdim=True) - 1) * torch.ones(20, dtype=torch.long)
    batch["labels"] = torch.stack([torch.randint(2, size, (2, 3)) for size in model.config.label_sizes.values()], -1)
    batch["label_prefixes"] = torch.zeros(2, 3, dtype=torch.long)
    batch = {name: value.to(device) for name, value in batch.items()}
    seen = []
    monkeypatch.setattr(readout_triton_mcm, "fused_readout", lambda *given: seen.append(1) or fused_readout(*given))
    found = []
    for place in (device, "nowhere"):
        monkeypatch.setattr(readout_mcm, "FUSED_ON", place)
        loss = model(**batch).loss
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert seen
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-3)


@needs_triton
def test_kernels_take_only_what_they_know(monkeypatch):
    values = torch.ones(2, 3), torch.ones(4, 3)
    assert can_fuse(*values)
    assert not can_fuse(*(value.double() for value in values))
    assert not can_fuse(values[0].bfloat16(), values[1])  # torch refuses that
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not can_fuse(*values)


def test_the_file_loads_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("without_triton", readout_triton_mcm.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.can_fuse(torch.ones(2, 3), torch.ones(4, 3))


@pytest.mark.slow
@needs_triton
def test_a_compiler_takes_the_kernels(tmp_path):
    script = Path(__file__).resolve().parents[1] / "helpers" / "compile_readout.py"
    known = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(script)], env=known, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = json.loads(done.stdout.splitlines()[-1])
    assert len(compiled) == 8
    # bfloat16 is multiplied by the units made for it; float32 is not rounded to fewer digits for them
    for name, units in compiled.items():
        assert units == ("bf16" in name), name
