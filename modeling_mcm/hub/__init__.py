# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Publishing on the Hugging Face Hub: the folder with the model's code, the cards, and the upload."""

from modeling_mcm.hub.card import CardFacts, Exposure, Footprint, dataset_card, model_card, write_results
from modeling_mcm.hub.folder import UploadFolder, write_upload_folder
from modeling_mcm.hub.privacy import HiddenPairs, customers_per_value, rare_values, shared_pairs
from modeling_mcm.hub.publish import Published, PublishingError, check_name, files_to_publish, publish

__all__ = [
    "CardFacts",
    "Exposure",
    "Footprint",
    "HiddenPairs",
    "Published",
    "PublishingError",
    "UploadFolder",
    "check_name",
    "customers_per_value",
    "dataset_card",
    "files_to_publish",
    "model_card",
    "publish",
    "rare_values",
    "shared_pairs",
    "write_results",
    "write_upload_folder",
]
