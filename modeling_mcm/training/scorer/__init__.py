# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The scorer's fit, from table to table: examples -> features -> fit -> calibrate -> judge. A module is a step, and
`pretraining.fit_counts` and `fit_encoder` call them in this order; `counts` is what features are computed from."""
