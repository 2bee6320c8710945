# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Publishing on the Hugging Face Hub: the folder with the model's code, the card, and the upload."""

from .card import model_card
from .folder import Exposure, write_upload_folder
from .publish import Published, PublishingError, check_name, files_to_publish, publish

__all__ = [
    "Exposure",
    "Published",
    "PublishingError",
    "check_name",
    "files_to_publish",
    "model_card",
    "publish",
    "write_upload_folder",
]
