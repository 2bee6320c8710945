# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A pretended second device, for tests of what a GPU would refuse, on a machine without one.

    with other_device() as device:
        model.to(device)
        model(**batch)  # RuntimeError, as on a GPU: the batch is on the CPU
        model(**{name: value.to(device) for name, value in batch.items()})

Its name is "meta", so that torch needs no build for it, but its tensors have values: they are computed on the CPU, by
the same kernels, so results are equal to the bit. What is refused is what torch refuses between a GPU and the CPU: an
operation on tensors of both devices, a draw with a generator of the CPU, and NumPy. Allowed are copies, indices on the
CPU, and numbers of the CPU (tensors without dimensions) in operations element by element.
"""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")
aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_, aten.copy}
INDEXED = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
NUMBERS = {aten.masked_fill, aten.masked_fill_, aten.fill_, aten.fill, aten.index_fill, aten.index_fill_}  # as values
INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
MAKERS = {torch.tensor, torch.as_tensor, torch.asarray}  # would make a tensor of "meta" without values


class OtherTensor(torch.Tensor):
    """A tensor of the pretended device, with its values in `held`, a tensor of the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OtherTensor":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        wrapped = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **layout)
        wrapped.held = held
        return wrapped

    def __repr__(self, **_: Any) -> str:
        return f"OtherTensor({self.held})"

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert a tensor of the other device to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _check(func: Any, tensors: list[torch.Tensor], inputs: list[Any]) -> None:
    """Raises `RuntimeError` where a GPU would."""
    operation, on_cpu = func.overloadpacket, [each for each in tensors if not isinstance(each, OtherTensor)]
    if operation in COPIES or len(on_cpu) == len(tensors):
        return
    if any(isinstance(each, torch.Generator) and each.device != DEVICE for each in inputs):
        raise RuntimeError(f"{func}: expected a generator of the other device but found one of the CPU")
    if operation in INDEXED and isinstance(tensors[0], OtherTensor):
        values = tensors[-1:] if "put" in str(operation) else []
        on_cpu = [each for each in values if not isinstance(each, OtherTensor)]
    is_written = func._schema.is_mutable and not isinstance(tensors[0], OtherTensor)
    takes_numbers = torch.Tag.pointwise in func.tags or operation in NUMBERS | INDEXED
    if is_written or any(each.dim() or not takes_numbers for each in on_cpu):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found the other one and cpu")


def _run(func: Any, args: Any, kwargs: dict) -> Any:
    """Computes an operation on the CPU, and says that its result is of the other device if its inputs are."""
    flat, structure = tree_flatten((args, kwargs))
    tensors = [each for each in flat if isinstance(each, torch.Tensor)]
    _check(func, tensors, flat)
    by_held = {id(each.held): each for each in tensors if isinstance(each, OtherTensor)}
    plain = [each.held if isinstance(each, OtherTensor) else each for each in flat]
    # A device stands among the arguments where a tensor is made or moved; else a result is where its input is
    is_other = bool(by_held)
    if func.overloadpacket in {aten.copy_, aten.copy}:
        is_other = isinstance(tensors[0], OtherTensor)
    for place, value in enumerate(plain):
        if isinstance(value, torch.device):
            is_other, plain[place] = value == DEVICE, torch.device("cpu")
    args, kwargs = tree_unflatten(plain, structure)
    result = func(*args, **kwargs)

    def wrap(value: Any) -> Any:
        if not is_other or not isinstance(value, torch.Tensor):
            return value
        changed = by_held.get(id(value))  # in place
        return OtherTensor(value) if changed is None else changed

    if func.overloadpacket is aten._to_copy and any(result is each for each in plain):
        result = result.clone()
    return tree_map(wrap, result)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _to_indices(index: Any) -> Any:
    """Makes tensors of lists and arrays among indices: torch would make them of "meta"."""
    if isinstance(index, tuple):
        return tuple(map(_to_indices, index))
    return torch.as_tensor(index) if isinstance(index, list | np.ndarray) else index


class _Makers(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in MAKERS and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": None}).to(kwargs["device"])
        if func is torch.Tensor.new_tensor and isinstance(args[0], OtherTensor):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype} | kwargs).to(kwargs.get("device", DEVICE))
        if func in INDEXING and isinstance(args[0], OtherTensor):
            args = (args[0], _to_indices(args[1]), *args[2:])
        return func(*args, **kwargs)


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Makes the device "meta" one whose tensors have values, also in the threads of a pool."""
    submit = ThreadPoolExecutor.submit

    def submit_with_device(pool: ThreadPoolExecutor, function: Callable, *args: Any, **kwargs: Any) -> Any:
        def call() -> Any:
            with _Makers(), _Dispatch():
                return function(*args, **kwargs)

        return submit(pool, call)

    with warnings.catch_warnings(), mock.patch.object(ThreadPoolExecutor, "submit", submit_with_device):
        warnings.filterwarnings("ignore", message=".*non-meta parameter.*")  # it is copied here
        with _Makers(), _Dispatch():
            yield DEVICE
