# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The readout on a GPU: Triton kernels compute z tile by tile, and z is never stored as a whole.

Shapes: B customers, U encoder units, R scored prefixes of all customers, H hidden size, V labels. A tile is a block of
units of one customer by labels; its z = h e^T stays in the GPU's registers, in float32 for every input type.

Forward of one prefix is a softmax that runs over tiles of units. Forward of all prefixes is a scan along the units.
The scan keeps two numbers for a run of consecutive units: c, the log-sum-exp of z, and s, the average of z under the
softmax. Two runs that follow each other are joined by

    c = log(exp(c_1) + exp(c_2)),    s = s_1 + sigmoid(c_2 - c_1) (s_2 - s_1),

where no exponent is ever positive, for z of any range. Backward computes z again. For all prefixes it starts from c
and s before each tile, which is all that forward stores. With g_t the gradient of s_t,
dz_i = exp(z_i - c_i) ((1 + z_i) G_i - R_i),

    G_i = g_i + exp(c_i - c_{i+1}) G_{i+1},    R_i = g_i s_i + exp(c_i - c_{i+1}) R_{i+1}.

dz is written once, for `CHUNK_ELEMENTS` at a time, and torch multiplies it with e and with h.

Triton is optional: `attentional_readout` calls [`can_fuse`], which says whether the kernels can run. Tile sizes are
fixed, not tuned, so that a label's score has the same bits for every number of labels.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

try:
    import triton
    import triton.language as tl
except ImportError:  # the kernels below are plain functions then, and nothing calls them
    triton = tl = None

# Tile sizes. Triton's matrix product requires powers of 2 from 16 on.
UNIT_TILE, LABEL_TILE, HIDDEN_TILE = 32, 64, 32
# Elements of dz (B * U * labels) that are held at a time: 64M are 256 MB in float32.
CHUNK_ELEMENTS = 2**26
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Compute capability of the first GPUs with matrix products in bfloat16.
CAPABILITY = (8, 0)


def _kernel(function):
    return function if triton is None else triton.jit(function)


@_kernel
def _products(
    hidden,
    vectors,
    unit,
    real,
    label,
    is_label,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """z of a tile; 0 on padding units and where the tile reaches beyond the labels."""
    z = tl.zeros([unit.shape[0], label.shape[0]], tl.float32)
    for start in range(0, SIZE, STEP):
        at = start + tl.arange(0, STEP)
        inside = at < SIZE
        h = tl.load(hidden + unit[:, None] * SIZE + at[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        e = tl.load(vectors + label[None, :] * SIZE + at[:, None], mask=is_label[None, :] & inside[:, None], other=0.0)
        z = tl.dot(h, e, z, input_precision=PRECISION)
    return z


@_kernel
def _join(c, s, c_next, s_next):
    """Joins two consecutive runs of units: c and s of both together."""
    apart = c_next - c
    small = tl.exp(-tl.abs(apart))
    share = tl.where(apart > 0, 1.0, small) / (1.0 + small)
    return tl.maximum(c, c_next) + tl.log(1.0 + small), s + share * (s_next - s)


@_kernel
def _join_gradients(c, g, r, c_before, g_before, r_before):
    """Joins two consecutive runs of units from the right, for the backward scan: G and R of both together."""
    decay = tl.exp(c_before - c)
    return c_before, g_before + decay * g, r_before + decay * r


@_kernel
def _row(values, unit, number):
    """The row of a tile that belongs to unit `number`."""
    return tl.sum(tl.where((unit == number)[:, None], values, 0.0), 0)


@_kernel
def _whole_forward(
    hidden,
    vectors,
    mask,
    scores,
    partitions,
    units,
    labels,
    SIZE: tl.constexpr,
    UNITS: tl.constexpr,
    LABELS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes s and the log-sum-exp of z, both `(B, V)`, for a tile of labels and one customer."""
    customer = tl.program_id(1).to(tl.int64)
    own = hidden + customer * units * SIZE
    label = tl.program_id(0).to(tl.int64) * LABELS + tl.arange(0, LABELS)
    is_label = label < labels
    top = tl.full([LABELS], -1e38, tl.float32)  # finite, so that a tile of padding gives no NaN
    n = tl.zeros([LABELS], tl.float32)
    total = tl.zeros([LABELS], tl.float32)
    for start in range(0, units, UNITS):
        unit = start + tl.arange(0, UNITS)
        real = tl.load(mask + customer * units + unit, mask=unit < units, other=0) != 0
        z = _products(own, vectors, unit, real, label, is_label, SIZE, STEP, PRECISION)
        attended = tl.where(real[:, None], z, float("-inf"))
        highest = tl.maximum(top, tl.max(attended, 0))
        weight = tl.exp(attended - highest[None, :])
        decay = tl.exp(top - highest)
        n = n * decay + tl.sum(weight, 0)
        total = total * decay + tl.sum(weight * z, 0)
        top = highest
    index = customer * labels + label
    tl.store(scores + index, total / n, mask=is_label)
    tl.store(partitions + index, top + tl.log(n), mask=is_label)


@_kernel
def _whole_backward(
    hidden,
    vectors,
    mask,
    scores,
    partitions,
    gradients,
    out,
    units,
    labels,
    first,
    width,
    SIZE: tl.constexpr,
    UNITS: tl.constexpr,
    LABELS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes dz of a tile into `out`, of shape `(B, U, width)`, which holds the labels from `first` on."""
    customer = tl.program_id(1).to(tl.int64)
    own = hidden + customer * units * SIZE
    column = tl.program_id(0) * LABELS + tl.arange(0, LABELS)
    label = column.to(tl.int64) + first
    is_label = column < width
    unit = tl.program_id(2) * UNITS + tl.arange(0, UNITS)
    inside = unit < units
    real = tl.load(mask + customer * units + unit, mask=inside, other=0) != 0
    z = _products(own, vectors, unit, real, label, is_label, SIZE, STEP, PRECISION)
    index = customer * labels + label
    s = tl.load(scores + index, mask=is_label, other=0.0)
    partition = tl.load(partitions + index, mask=is_label, other=0.0)
    gradient = tl.load(gradients + index, mask=is_label, other=0.0).to(tl.float32)
    weight = tl.where(real[:, None], tl.exp(z - partition[None, :]), 0.0)
    dz = gradient[None, :] * weight * (1.0 + z - s[None, :])
    to = out + (customer * units + unit[:, None]) * width + column[None, :]
    tl.store(to, dz.to(out.dtype.element_ty), mask=inside[:, None] & is_label[None, :])


@_kernel
def _running_forward(
    hidden,
    vectors,
    rows,
    scores,
    starts,
    units,
    labels,
    SIZE: tl.constexpr,
    UNITS: tl.constexpr,
    LABELS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes s of the scored units, `(R, V)`, and c and s before each tile, `(B, tiles, 2, V)`."""
    customer = tl.program_id(1).to(tl.int64)
    own = hidden + customer * units * SIZE
    label = tl.program_id(0).to(tl.int64) * LABELS + tl.arange(0, LABELS)
    is_label = label < labels
    c_before = tl.full([LABELS], float("-inf"), tl.float32)
    s_before = tl.zeros([LABELS], tl.float32)
    tiles = tl.cdiv(units, UNITS)
    for tile in range(0, tiles):
        to = starts + (customer * tiles + tile) * 2 * labels + label
        tl.store(to, c_before, mask=is_label)
        tl.store(to + labels, s_before, mask=is_label)
        unit = tile * UNITS + tl.arange(0, UNITS)
        row = tl.load(rows + customer * units + unit, mask=unit < units, other=-2)
        z = _products(own, vectors, unit, row > -2, label, is_label, SIZE, STEP, PRECISION)
        c, s = tl.associative_scan((z, z), 0, _join)
        c, s = _join(c_before[None, :], s_before[None, :], c, s)
        to = scores + row[:, None].to(tl.int64) * labels + label[None, :]
        tl.store(to, s.to(scores.dtype.element_ty), mask=(row >= 0)[:, None] & is_label[None, :])
        last = tile * UNITS + UNITS - 1
        c_before, s_before = _row(c, unit, last), _row(s, unit, last)


@_kernel
def _running_backward(
    hidden,
    vectors,
    rows,
    starts,
    gradients,
    out,
    units,
    labels,
    first,
    width,
    SIZE: tl.constexpr,
    UNITS: tl.constexpr,
    LABELS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes dz of a tile of labels and one customer into `out`, of shape `(B, U, width)`, which holds the labels
    from `first` on."""
    customer = tl.program_id(1).to(tl.int64)
    own = hidden + customer * units * SIZE
    column = tl.program_id(0) * LABELS + tl.arange(0, LABELS)
    label = column.to(tl.int64) + first
    is_label = column < width
    c_after = tl.full([LABELS], float("inf"), tl.float32)
    g_after = tl.zeros([LABELS], tl.float32)
    r_after = tl.zeros([LABELS], tl.float32)
    tiles = tl.cdiv(units, UNITS)
    for step in range(0, tiles):
        tile = tiles - 1 - step
        unit = tile * UNITS + tl.arange(0, UNITS)
        row = tl.load(rows + customer * units + unit, mask=unit < units, other=-2)
        z = _products(own, vectors, unit, row > -2, label, is_label, SIZE, STEP, PRECISION)
        at = starts + (customer * tiles + tile) * 2 * labels + label
        c_before = tl.load(at, mask=is_label, other=0.0)
        s_before = tl.load(at + labels, mask=is_label, other=0.0)
        c, s = tl.associative_scan((z, z), 0, _join)
        c, s = _join(c_before[None, :], s_before[None, :], c, s)
        at = gradients + row[:, None].to(tl.int64) * labels + label[None, :]
        gradient = tl.load(at, mask=(row >= 0)[:, None] & is_label[None, :], other=0.0).to(tl.float32)
        _, g, r = tl.associative_scan((c, gradient, gradient * s), 0, _join_gradients, reverse=True)
        _, g, r = _join_gradients(c_after[None, :], g_after[None, :], r_after[None, :], c, g, r)
        dz = tl.exp(z - c) * ((1.0 + z) * g - r)
        to = out + (customer * units + unit[:, None]) * width + column[None, :]
        tl.store(to, dz.to(out.dtype.element_ty), mask=(unit < units)[:, None] & is_label[None, :])
        left = tile * UNITS
        c_after, g_after, r_after = _row(c, unit, left), _row(g, unit, left), _row(r, unit, left)


def _launch(kernel, grid: tuple[int, ...], hidden: torch.Tensor, *arguments) -> None:
    """Runs a kernel on the GPU of `hidden`, with the tile sizes and the precision that all kernels share."""
    tf32 = hidden.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    with torch.cuda.device_of(hidden):
        kernel[grid](
            hidden,
            *arguments,
            SIZE=hidden.shape[-1],
            UNITS=UNIT_TILE,
            LABELS=LABEL_TILE,
            STEP=HIDDEN_TILE,
            PRECISION="tf32" if tf32 else "ieee",
        )


def _through_products(ctx, hidden: torch.Tensor, vectors: torch.Tensor, write) -> tuple[torch.Tensor | None, ...]:
    """Gradients of h and e from dz, for some labels at a time.

    `write(dz, first)` fills dz, of shape `(B, U, width)`, for `width` labels from label `first` on.
    """
    batch, units, _ = hidden.shape
    of_hidden = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
    of_vectors = torch.empty_like(vectors) if ctx.needs_input_grad[1] else None
    size = max(1, CHUNK_ELEMENTS // (batch * units))
    for first in range(0, len(vectors), size):
        part = vectors[first : first + size]
        dz = hidden.new_empty(batch, units, len(part))
        write(dz, first)
        if of_hidden is not None:
            of_hidden += dz @ part
        if of_vectors is not None:
            torch.mm(dz.flatten(0, 1).T, hidden.flatten(0, 1), out=of_vectors[first : first + size])
    return None if of_hidden is None else of_hidden.to(hidden.dtype), of_vectors


class FusedReadout(torch.autograd.Function):
    """[`MaskedReadout`] of z = h e^T as one kernel, without z in memory."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Computes scores s `(B, V)` from hidden vectors `(B, U, H)`, label vectors `(V, H)` and a mask `(B, U)`."""
        hidden, vectors, mask = hidden.contiguous(), vectors.contiguous(), mask.to(torch.int8).contiguous()
        batch, units, labels = *hidden.shape[:2], len(vectors)
        scores, partitions = hidden.new_empty(2, batch, labels, dtype=torch.float32)
        grid = (-(-labels // LABEL_TILE), batch)
        _launch(_whole_forward, grid, hidden, vectors, mask, scores, partitions, units, labels)
        ctx.save_for_backward(hidden, vectors, mask, scores, partitions)
        return scores.to(hidden.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Computes the gradients of hidden vectors and label vectors from that of s."""
        hidden, vectors, mask, scores, partitions = ctx.saved_tensors
        gradient = gradient.contiguous()

        def write(dz: torch.Tensor, first: int) -> None:
            batch, units, width = dz.shape
            grid = (-(-width // LABEL_TILE), batch, -(-units // UNIT_TILE))
            inputs = (vectors, mask, scores, partitions, gradient)
            _launch(_whole_backward, grid, hidden, *inputs, dz, units, len(vectors), first, width)

        return *_through_products(ctx, hidden, vectors, write), None


class FusedRunningReadout(torch.autograd.Function):
    """[`WideRunningReadout`] of z = h e^T as one kernel, without z in memory."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, vectors: torch.Tensor, rows: torch.Tensor, number: int) -> torch.Tensor:
        """Computes the scores of all scored units.

        Args:
            hidden (`torch.FloatTensor` of shape `(B, U, H)`): hidden vector h of each unit.
            vectors (`torch.FloatTensor` of shape `(V, H)`): label vectors e.
            rows (`torch.LongTensor` of shape `(B, U)`): row of each unit in the score matrix; -1 for a unit that is
                not scored, -2 for padding.
            number (`int`): R, the number of rows of the score matrix.

        Returns:
            `torch.FloatTensor` of shape `(R, V)`; rows that belong to no unit are not initialised.
        """
        hidden, vectors, rows = hidden.contiguous(), vectors.contiguous(), rows.int().contiguous()
        batch, units, labels = *hidden.shape[:2], len(vectors)
        scores = hidden.new_empty(number, labels)
        starts = hidden.new_empty(batch, -(-units // UNIT_TILE), 2, labels, dtype=torch.float32)
        _launch(
            _running_forward, (-(-labels // LABEL_TILE), batch), hidden, vectors, rows, scores, starts, units, labels
        )
        ctx.save_for_backward(hidden, vectors, rows, starts)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Computes the gradients of hidden vectors and label vectors from that of s."""
        hidden, vectors, rows, starts = ctx.saved_tensors
        gradient = gradient.contiguous()

        def write(dz: torch.Tensor, first: int) -> None:
            batch, units, width = dz.shape
            grid = (-(-width // LABEL_TILE), batch)
            inputs = (vectors, rows, starts, gradient)
            _launch(_running_backward, grid, hidden, *inputs, dz, units, len(vectors), first, width)

        return *_through_products(ctx, hidden, vectors, write), None, None


def _compute_dtype(hidden: torch.Tensor, vectors: torch.Tensor) -> torch.dtype | None:
    """Data type in which torch computes the product of two tensors; None for two types, which torch refuses."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (hidden.dtype, vectors.dtype):
        return torch.get_autocast_dtype(device)
    return hidden.dtype if hidden.dtype == vectors.dtype else None


def can_fuse(hidden: torch.Tensor, vectors: torch.Tensor) -> bool:
    """Whether [`fused_readout`] supports these inputs.

    It needs Triton, one of `DTYPES`, and a GPU of compute capability 8.0 or higher (or, in tests, a CPU).

    Args:
        hidden (`torch.FloatTensor` of shape `(B, U, H)`): hidden vector h of each unit.
        vectors (`torch.FloatTensor` of shape `(V, H)`): label vectors e.
    """
    if triton is None or torch.compiler.is_compiling() or _compute_dtype(hidden, vectors) not in DTYPES:
        return False
    return not hidden.is_cuda or torch.cuda.get_device_capability(hidden.device) >= CAPABILITY


def fused_readout(hidden: torch.Tensor, vectors: torch.Tensor, mask: torch.Tensor, ends=None) -> torch.Tensor:
    """`attentional_readout` as Triton kernels.

    Call it only where [`can_fuse`] allows it. On a CPU it needs Triton's interpreter (`TRITON_INTERPRET=1`), which
    tests use.

    Args:
        hidden (`torch.FloatTensor` of shape `(B, U, H)`): hidden vector h of each unit; padding is on the right.
        vectors (`torch.FloatTensor` of shape `(V, H)`): label vectors e, multiplied by the readout's scale.
        mask (`torch.BoolTensor` of shape `(B, U)`): True where a unit is real.
        ends (`torch.LongTensor` of shape `(B, P)`, or `PackedUnits`, *optional*): index of the last unit of each
            prefix, or the packed units of `mask`. Default: the whole sequence.

    Returns:
        `torch.FloatTensor`: scores s of shape `(B, V)`; `(B, P, V)` with prefix ends, `(A, V)` with packed units.
    """
    dtype = _compute_dtype(hidden, vectors)
    hidden, vectors, mask = hidden.to(dtype), vectors.to(dtype), mask.bool()
    if ends is None:
        return FusedReadout.apply(hidden, vectors, mask)
    not_scored = torch.where(mask, -1, -2)
    if not isinstance(ends, torch.Tensor):  # packed units
        number = len(ends.units) if ends.scored is None else len(ends.scored)
        rows = torch.where(ends.score_rows >= 0, ends.score_rows, not_scored)
        return FusedRunningReadout.apply(hidden, vectors, rows, number)
    is_end = torch.zeros_like(mask).scatter(1, ends, True)
    rows = torch.where(is_end, is_end.flatten().cumsum(0).view_as(is_end) - 1, not_scored)
    scores = FusedRunningReadout.apply(hidden, vectors, rows, ends.numel())
    return scores[rows.gather(1, ends)]  # several prefixes may end at one unit
