# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The scorer's fit: examples, features, fit, calibration, and the judgement of what the encoder adds."""
