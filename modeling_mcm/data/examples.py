# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""An example of an event, of values that a checkpoint knows: for a model card, and for the pages of the service."""

from modeling_mcm.processing_mcm import MCMFeatureExtractor


def example_values(extractor: MCMFeatureExtractor, profile: bool = False) -> dict:
    """A value that the model knows for each column of an event, or of a customer's profile; without customer, time and
    visit."""
    schema = extractor.schema
    example: dict = {}
    for spec in schema.profile if profile else schema.features:
        is_kind = spec.column is not None and spec.column == schema.token_type
        values = schema.target_token_types if is_kind else extractor.vocabularies.get(spec.name, ())
        known = next((value for value in values if not value.startswith("[hidden ")), 1)
        example |= dict.fromkeys(spec.columns, known)
    return example
