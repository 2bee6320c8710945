# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels of the readout for an NVIDIA GPU that need not be there; run by test_readout_triton.py.

Prints as JSON, for each kernel and type of numbers, whether it multiplies with tensor cores.
"""

import json
import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from modeling_mcm import readout_triton_mcm as readout

KERNELS = ["_whole_forward", "_whole_backward", "_running_forward", "_running_backward"]
FIXED = {"mask": "*i8", "partitions": "*fp32", "rows": "*i32", "starts": "*fp32"}
SIZES = {"SIZE": 256, "UNITS": readout.UNIT_TILE, "LABELS": readout.LABEL_TILE, "STEP": readout.HIDDEN_TILE}
OF_INPUTS = ("hidden", "vectors", "scores", "gradients", "out")

found = {}
for name in KERNELS:
    for dtype in ("fp32", "bf16"):
        kernel = getattr(readout, name)
        types = FIXED | {argument: f"*{dtype}" for argument in OF_INPUTS}
        if name.startswith("_whole"):
            types["scores"] = "*fp32"
        constants = SIZES | {"PRECISION": "ieee"}
        signature = {
            argument: "constexpr" if argument in constants else types.get(argument, "i32")
            for argument in kernel.arg_names
        }
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 80, 32))
        found[f"{name} {dtype}"] = bool(re.search(r"\bmma\.", compiled.asm["ptx"]))
print(json.dumps(found))
