# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What a person chooses: model shapes, event schemas, recipes.

In a checkout, `from configuration import MCMConfig` works.
"""

from modeling_mcm import MCMConfig

__all__ = ["MCMConfig"]
