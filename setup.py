# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""For tools that look for this file; everything is in pyproject.toml."""

from setuptools import setup

setup()
