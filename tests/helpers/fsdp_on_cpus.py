# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""`run_pretrain.py` with FSDP2 on CPUs: accelerate shards a model among processes with GPUs only, and takes any other
for DDP. Here it is told that they have GPUs, so that what it does to the model can be tested without one.
"""

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from modeling_mcm.commands.pretrain import main

begin = PartialState.__init__


def begin_as_if_on_gpus(self, *arguments, **options):
    begin(self, *arguments, **options)
    if PartialState._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = begin_as_if_on_gpus
    main()
