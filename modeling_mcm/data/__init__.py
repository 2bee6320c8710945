# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The event schema and the prepared data set: its rows, offers and labels of its customers, and batches of them.

This room needs the base install alone. What makes a data set out of an event log is in `modeling_mcm.preparation`.
"""

from modeling_mcm.schema_mcm import FeatureSpec

from .dataset import PreparedData, PreparedManifest, check_vocabularies, load_prepared
from .known import read_known
from .schema import NO_CUTOFFS, EventSchema, read_schema

__all__ = [
    "NO_CUTOFFS",
    "EventSchema",
    "FeatureSpec",
    "PreparedData",
    "PreparedManifest",
    "check_vocabularies",
    "load_prepared",
    "read_known",
    "read_schema",
]
