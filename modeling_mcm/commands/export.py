# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Exports a checkpoint for serving: ONNX, a torch.export program, or a checkpoint with int8 weights.

    mcm export --model runs/mine --output_dir runs/mine-onnx
    mcm export --model runs/mine --output_dir runs/mine-onnx --what embeddings
    mcm export --model runs/mine --output_dir runs/mine-pt2 --format torch
    mcm export --model runs/mine --output_dir runs/mine-int8 --format int8 --data data/prepared

onnx and torch go through transformers' exporters and write `model.onnx` (its weights beside it) or `model.pt2`, the
config and the feature extractor. Batch and length are dynamic. Inputs are what the feature extractor gives, with `now`
where the checkpoint has a customer state; outputs are `logits.<task>` of every task, `pooler_output`, the customer
embedding, and `forecasts.<name>` of a checkpoint with forecasts; with `--what embeddings` no logits. The result is run
on batches of other shapes than the example's and must equal the model to 1e-5. A .pt2 file is unpickled when it is
loaded: load only your own.

int8 keeps the weights of the encoder's linear layers as 8-bit numbers, one scale a row, and computes as before. Value
embeddings, which are the label vectors too, are no linear layers and stay; with large vocabularies they are most of
the size. Load the folder with `from_pretrained` (needs torchao). With --data it says what that costs in NDCG@10 on the
validation cases of the prepared data set.
"""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

from modeling_mcm.commands.arguments import exits, parse_options
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
    """What is exported, and where to."""

    model: str = field(metadata={"help": "Checkpoint folder, or name on the Hub."})
    output_dir: str = field(metadata={"help": "Folder to write: a new one, an empty one or an earlier export."})
    format: str = field(default=ONNX, metadata={"help": "What is written.", "choices": FORMATS})
    what: str = field(default=SCORES, metadata={"help": "Preference scores, or embeddings.", "choices": CONTENTS})
    data: str | None = field(
        default=None, metadata={"help": "Prepared data set, to say what int8 costs in NDCG; for scores only."}
    )
    report_file: str | None = field(
        default=None, metadata={"help": "Markdown file for the table of that, as run_evaluate.py's."}
    )

    def __post_init__(self) -> None:
        if self.data and (self.format, self.what) != (INT8, SCORES):
            raise ValueError("--data says what --format int8 costs the scores: leave it out, or export those.")
        if self.report_file and not self.data:
            raise ValueError("--report_file needs --data, the prepared data set that int8 is evaluated on.")
        if Path(self.output_dir).resolve() == Path(self.model).resolve():
            raise ValueError(f"--output_dir is the checkpoint {self.model} itself; choose another folder.")
        if absent := [name for name in NEEDS[self.format] if importlib.util.find_spec(name) is None]:
            raise ValueError(f"--format {self.format} needs {', '.join(absent)}: pip install 'modeling-mcm[export]'.")


def run(options: ExportOptions) -> str:
    """Exports, checks and writes; returns what to say."""
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
            said = "the encoder's linear layers in 8 bits, everything else as it was"
            if options.data:
                said += _said_of_cost(options, folder)
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
            said = f"equal to the model to {difference:.1e}"
    return f"{options.output_dir}: {options.what} as {options.format}, {said}"


def _said_of_cost(options: ExportOptions, folder: Path) -> str:
    from modeling_mcm.evaluation.reports import text_table, write_report

    table, caption = cost_in_ndcg(options.model, str(folder), str(options.data))
    if options.report_file:
        write_report(table, caption, Path(options.report_file))
    return f"\n\n{caption}\n\n{text_table(table)}"


def main() -> None:
    """Reads the options, exports and says what came of it."""
    (options,) = parse_options(ExportOptions, description=__doc__)
    with exits(ValueError, OSError, ImportError):
        said = run(options)
    sys.stdout.write(said + "\n")


if __name__ == "__main__":
    main()
