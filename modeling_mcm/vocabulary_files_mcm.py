# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The files of a feature extractor: its settings in preprocessor_config.json, its values in vocabularies.json."""

import copy
import json
import os
from pathlib import Path
from typing import Any, cast

from transformers import FeatureExtractionMixin
from transformers.utils.hub import cached_file

from .files_mcm import VOCABULARIES_NAME, write_json


class VocabularyFiles(FeatureExtractionMixin):
    """Mixin of [`MCMFeatureExtractor`]: reads and writes the files of a feature extractor."""

    vocabularies: dict[str, list[str]]
    bins: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        """The settings of the feature extractor for preprocessor_config.json; vocabularies and bins, which have a file
        of their own, are left out."""
        left_out = ("vocabularies", "bins", "model_input_names")
        settings = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in left_out}
        return copy.deepcopy(settings) | {"feature_extractor_type": type(self).__name__}

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes preprocessor_config.json and vocabularies.json.

        Args:
            save_directory (`str` or `os.PathLike`): folder of the checkpoint.
            push_to_hub (`bool`): whether to upload the folder to the Hub.
            kwargs: options of the upload, such as `repo_id`.

        Returns:
            `list[str]`: paths of the files.

        Raises:
            ValueError: if features that share the values of a column no longer have the same vocabulary.
        """
        cast(Any, self).schema.check_shared(self.vocabularies)
        folder = Path(save_directory)
        saved = super().save_pretrained(folder)
        path = folder / VOCABULARIES_NAME
        write_json(path, {"vocabularies": self.vocabularies, "bins": self.bins}, indent=1, allow_nan=False)
        if push_to_hub:  # not in the base class, which would upload before the vocabularies are written
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [*saved, str(path)]

    @classmethod
    def get_feature_extractor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads preprocessor_config.json and vocabularies.json; arguments and result are those of the base class.

        Raises `OSError` if a file is missing, and `ValueError` if vocabularies.json is damaged.
        """
        source = str(pretrained_model_name_or_path)
        names = ("cache_dir", "force_download", "proxies", "subfolder", "token", "local_files_only", "revision")
        options = {key: kwargs[key] for key in names if kwargs.get(key) is not None}
        values, unused = super().get_feature_extractor_dict(source, **kwargs)
        folder = os.path.dirname(source) or "." if os.path.isfile(source) else source
        fix = "save the feature extractor again, or copy the file from the original checkpoint"
        try:
            path = str(cached_file(folder, VOCABULARIES_NAME, **options))
        except OSError as error:
            raise OSError(f"{source} has no {VOCABULARIES_NAME}, which holds the feature values; {fix}.") from error
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return values | {key: dict(content[key]) for key in ("vocabularies", "bins")}, unused
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {fix}.") from error


__all__ = ["VocabularyFiles"]
