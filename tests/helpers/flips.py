# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A disk that changes what was written: one bit of a file after the other."""

import random


def flipped_bits(path, number=25):
    """Flips one bit of a file at each of some places, yields the place, and puts the file right again."""
    whole = path.read_bytes()
    for place in random.Random(path.name).sample(range(8 * len(whole)), number):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        yield place
    path.write_bytes(whole)
