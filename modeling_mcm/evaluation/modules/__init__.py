# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Metric modules for `evaluate.load`, one folder each, given by its path; a package so that the wheel has them."""
