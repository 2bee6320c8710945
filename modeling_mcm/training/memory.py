# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""On Linux, training and scoring keep freed memory for the next step, which makes them faster.

glibc returns a large block of memory as soon as it is freed. A training step frees and allocates dozens of blocks of
some megabytes. The system then provides each block page by page again, which can take longer than the computation
(docs/log.md has the figures). Blocks above `LARGE`, such as a table of a whole log, are still returned at once, and
all that is free between two parts of the work. Arrow's own allocator returns memory, too, and is left out.
"""

import ctypes
import gc
import sys
from contextlib import suppress

import pyarrow as pa

# Names and numbers of options as in glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
NEVER_TRIM, PAD, LARGE = 2**31 - 1, 2**26, 2**24


def keep_freed_memory() -> None:
    """Sets glibc's malloc to keep freed memory in the process, and Arrow to use it; does nothing with another C
    library."""
    if sys.platform.startswith("linux"):
        with suppress(AttributeError, OSError):  # musl has none
            mallopt = ctypes.CDLL(None).mallopt
            for name, value in {M_MMAP_THRESHOLD: LARGE, M_TRIM_THRESHOLD: NEVER_TRIM, M_TOP_PAD: PAD}.items():
                mallopt(name, value)
            pa.set_memory_pool(pa.system_memory_pool())


def return_freed_memory() -> None:
    """Returns what is free to the system, after a part of the work whose memory the next one does not need."""
    gc.collect()
    if sys.platform.startswith("linux"):
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
