#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Deletes customers, and proves that they are gone: the command `mcm forget`.

python training/forget_customers.py --customers ids.txt --data data/prepared --events log
"""

from modeling_mcm.commands.forget import main

if __name__ == "__main__":
    main()
