# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What training and scoring do with freed memory on Linux: they keep it.

glibc gives a large block back to the system as soon as it is freed. A training step frees and asks for dozens of
blocks of some megabytes, and the system hands each out anew a page at a time, which costs more than much of the work
inside them (`benchmarks/readout.py --keep_freed_memory false`; docs/log.md).
"""

import ctypes
import sys

# glibc's names and numbers of malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST, PAD = 2**31 - 1, 2**26


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed; does nothing, and says so, with another C library."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    chosen = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: LARGEST, M_TOP_PAD: PAD}
    return all([mallopt(name, value) for name, value in chosen.items()])
