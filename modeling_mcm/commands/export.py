# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Exports a checkpoint for serving: ONNX, a torch.export program, or a checkpoint with int8 weights.

    mcm export --model runs/mine --output_dir runs/mine-onnx
    mcm export --model runs/mine --output_dir runs/mine-onnx --what embeddings
    mcm export --model runs/mine --output_dir runs/mine-pt2 --format torch
    mcm export --model runs/mine --output_dir runs/mine-int8 --format int8 --data data/prepared

The formats onnx and torch use transformers' exporters. They write `model.onnx` (with its weights in a file beside it)
or `model.pt2`, the config and the feature extractor. The number of customers and the length of histories may vary.
Inputs are the tensors of the feature extractor, and `now` where the checkpoint has a customer state. Outputs are
`logits.<task>` of every task, `pooler_output`, which is the customer embedding, and `forecasts.<name>` of a checkpoint
with forecasts; `--what embeddings` leaves out the logits. The export is run on batches of several shapes and must
equal the model to 1e-5. A .pt2 file is unpickled when it is loaded, so load only files that you wrote yourself.

The format int8 stores the weights of the encoder's linear layers as 8-bit numbers, with one scale for each row of a
matrix; computation stays in floating point. Value embeddings, which are also the label vectors, stay as they are; with
large vocabularies they are most of the size. Load the folder with `from_pretrained`, which then needs torchao. With
--data the command says what int8 costs in NDCG@10 on the validation cases of the prepared data set.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from modeling_mcm.commands.arguments import exits, parse_options
from modeling_mcm.option import option
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.serving.export import (
    CONTENTS,
    FORMATS,
    INT8,
    NEEDS,
    ONNX,
    SCORES,
    TOLERANCE,
    cost_in_ndcg,
    export,
    largest_difference,
    load,
    save_int8,
)
from modeling_mcm.serving.export_folder import check_writable, export_folder
from modeling_mcm.training.checkpoints import check_files


@dataclass
class ExportOptions:
    """Which checkpoint is exported, in which format, and where to."""

    model: str = option(help="Checkpoint folder, or name on the Hub.")
    output_dir: str = option(help="Folder to write: a new one, an empty one, or an earlier export, which is replaced.")
    format: str = option(
        ONNX,
        "Format to write: an ONNX file, a torch.export program, or a checkpoint with 8-bit weights.",
        choices=FORMATS,
    )
    what: str = option(
        SCORES,
        "Outputs of the export: scores of all labels with embeddings, or customer embeddings alone.",
        choices=CONTENTS,
    )
    data: str | None = option(None, "Folder of a prepared data set, to measure what --format int8 costs in NDCG@10.")
    report_file: str | None = option(
        None, "Markdown file to write the table of that measurement to, as `mcm evaluate` does."
    )

    def __post_init__(self) -> None:
        if self.data and (self.format, self.what) != (INT8, SCORES):
            raise ValueError(
                "--data measures what --format int8 costs in scores: use it with --format int8 and --what scores only."
            )
        if self.report_file and not self.data:
            raise ValueError("--report_file needs --data, the prepared data set that int8 is evaluated on.")
        if Path(self.output_dir).resolve() == Path(self.model).resolve():
            raise ValueError(f"--output_dir is the checkpoint {self.model} itself; choose another folder.")
        if absent := [name for name in NEEDS[self.format] if importlib.util.find_spec(name) is None]:
            raise ValueError(f"--format {self.format} needs {', '.join(absent)}: pip install 'modeling-mcm[export]'.")


def run(options: ExportOptions) -> str:
    """Exports a checkpoint, checks that the export equals the model, and writes the folder.

    Returns a sentence on what was written; with `options.data` a table of what int8 costs follows. Raises `ValueError`
    if the export differs from the model, or the checkpoint or the data set can't be read.
    """
    check_files(options.model)
    extractor = MCMFeatureExtractor.from_pretrained(options.model)
    if options.data:
        from modeling_mcm.data import check_vocabularies

        check_vocabularies(options.data, extractor)
    if options.report_file:
        check_writable(Path(options.report_file))
    with export_folder(Path(options.output_dir).resolve(), format=options.format, what=options.what) as folder:
        if options.format == INT8:
            save_int8(options.model, options.what, str(folder))
            extractor.save_pretrained(folder)
            summary = "the encoder's linear layers in 8 bits, everything else as it was"
            if options.data:
                summary += _cost_report(options, folder)
        else:
            model = load(options.model, options.what, attn_implementation="eager")
            exported = export(model, options.what, options.format)
            difference = largest_difference(model, exported, options.what)
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"The export differs from the model by {difference:.1e}, expected at most {TOLERANCE:.0e}: "
                    "nothing was written; try another version of torch or onnxruntime."
                )
            exported.save_pretrained(folder)
            extractor.save_pretrained(folder)
            summary = f"equal to the model to {difference:.1e}"
    return f"{options.output_dir}: {options.what} as {options.format}, {summary}"


def _cost_report(options: ExportOptions, folder: Path) -> str:
    from modeling_mcm.evaluation.reports import text_table, write_report

    table, caption = cost_in_ndcg(options.model, str(folder), str(options.data))
    if options.report_file:
        write_report(table, caption, Path(options.report_file))
    return f"\n\n{caption}\n\n{text_table(table)}"


def main() -> None:
    """Reads the options, exports the checkpoint and prints what was written."""
    (options,) = parse_options(ExportOptions, description=__doc__)
    with exits(ValueError, OSError, ImportError):
        summary = run(options)
    sys.stdout.write(summary + "\n")


if __name__ == "__main__":
    main()
