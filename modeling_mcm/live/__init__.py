# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A customer whose events come one by one, and why a label has its score. Stays at home: it is not published."""

from .customer import LiveCustomer

__all__ = ["LiveCustomer"]
