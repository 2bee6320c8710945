# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Event schema, preparation and the prepared data set."""

from modeling_mcm.data.dataset import PreparedManifest, check_vocabularies, load_prepared
from modeling_mcm.data.prepare import prepare
from modeling_mcm.data.schema import NO_CUTOFFS, EventSchema, FeatureSpec, schema_of

__all__ = [
    "NO_CUTOFFS",
    "EventSchema",
    "FeatureSpec",
    "PreparedManifest",
    "check_vocabularies",
    "load_prepared",
    "prepare",
    "schema_of",
]
