# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Exports a checkpoint as ONNX, for programs without torch and transformers.

    mcm export --model runs/mine --output_dir runs/mine-onnx

Writes `model.onnx` (with its weights in a file beside it), the config and the feature extractor. The number of
customers and the length of histories may vary. Inputs are the tensors of the feature extractor, and `now` where the
checkpoint has a customer state. Outputs are `pooler_output`, which is the customer embedding, `logits.<task>` of every
task of a checkpoint with the head for all tasks, and `forecasts.<name>` of a checkpoint with forecasts. The export is
run on batches of several shapes and must equal the model to 1e-5.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from modeling_mcm.commands.arguments import exits, parse_options
from modeling_mcm.extras import needs
from modeling_mcm.option import option
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.serving.export import export, largest_difference, load
from modeling_mcm.training.checkpoints import check_files

TOLERANCE = 1e-5


@dataclass
class ExportOptions:
    """Which checkpoint is exported, and where to."""

    model: str = option(help="Checkpoint folder, or name on the Hub.")
    output_dir: str = option(help="Folder to write: a new or an empty one.")


def run(options: ExportOptions) -> str:
    """Exports a checkpoint, checks that the export equals the model, and writes the folder as a whole. Returns a
    sentence on what was written. Raises `ValueError` if the export differs from the model, the checkpoint can't be
    read or the folder is in use, and `OSError` if the folder can't be written."""
    with needs("export"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

    check_files(options.model)
    folder = Path(options.output_dir).resolve()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is a file or not empty: choose another --output_dir.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent)
    except OSError as error:
        raise OSError(f"{folder} can't be written ({error.strerror}): choose another --output_dir.") from error
    with partial:
        model = load(options.model)
        exported = export(model)
        difference = largest_difference(model, exported)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The export differs from the model by {difference:.1e}, expected at most {TOLERANCE:.0e}: nothing "
                "was written; try another version of torch or onnxruntime."
            )
        whole = Path(partial.name, folder.name)
        exported.save_pretrained(whole)
        MCMFeatureExtractor.from_pretrained(options.model).save_pretrained(whole)
        whole.replace(folder)
    return f"{options.output_dir}: a {type(model).__name__} as ONNX, equal to the model to {difference:.1e}"


def main() -> None:
    """Reads the options, exports the checkpoint and prints what was written."""
    (options,) = parse_options(ExportOptions, description=__doc__)
    with exits(ValueError, OSError, ImportError):
        summary = run(options)
    sys.stdout.write(summary + "\n")


if __name__ == "__main__":
    main()
