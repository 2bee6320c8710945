# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Says how much of a new event log a checkpoint can still read, and which values it should learn.

    mcm drift --model runs/mine --events new.parquet
    mcm drift --model runs/mine --events new.parquet --report_file drift.json

The new log needs the columns of the log that the checkpoint was trained on. The table has one line for each feature:
`unknown` is the share of values that are not in the vocabulary; the checkpoint can't tell these values apart. Where
the schema has a `min_count`, some values are unknown by design. `below` and `above` are the shares of numbers under
the first and over the last inner edge of the feature's bins; in brackets stands the share that training had there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_mcm.commands.arguments import MEMORY_LIMIT, exits, parse_options
from modeling_mcm.data.features import CATEGORICAL
from modeling_mcm.files_mcm import write_json
from modeling_mcm.option import option
from modeling_mcm.processing_mcm import MCMFeatureExtractor

if TYPE_CHECKING:
    from modeling_mcm.preparation.drift import DriftReport, FeatureDrift

HEADINGS = ("feature", "column", "rows", "unknown", "missing", "below", "above")


@dataclass
class DriftOptions:
    """Which new log is compared with which checkpoint."""

    model: str = option(help="Checkpoint folder, or name on the Hub. Only its feature extractor is read, no weights.")
    events: str = option(help="Log of new events: a .parquet, .csv or .tsv file, or a folder of Parquet files.")
    profile: str | None = option(
        None, "Table of new profiles, one row a customer. Without it profile features are left out."
    )
    report_file: str | None = option(None, "JSON file to write all counts to. By default none is written.")
    memory_limit: str = option("1GB", MEMORY_LIMIT)


def _table(report: DriftReport) -> str:
    """Writes the report as text: a table of features, then unknown values and how to add them."""
    rows = [HEADINGS, *(_cells(drift) for drift in report.features)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    left_out = f"{report.left_out:,} without customer or time were left out"
    lines = [f"{report.events:,} events from {report.first} to {report.last}; {left_out}"]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for drift in report.features:
        if drift.unknown:
            frequent = ", ".join(f"{value!r} {count:,}" for value, count in drift.most_frequent_unknown)
            lines += ["", f"{drift.feature}: {drift.unknown_values:,} unknown values, the most frequent {frequent}"]
        if drift.addable:
            lines.append(
                f"  to add: model.resize_feature_vocabulary({drift.feature!r}, {drift.addable!r}, feature_extractor)"
            )
    if report.not_read:
        lines += ["", f"Not looked at without --profile: {', '.join(report.not_read)}"]
    return "\n".join(lines)


def _cells(drift: FeatureDrift) -> tuple[str, ...]:
    unknown = f"{drift.unknown_share:.2%}" if drift.kind == CATEGORICAL else "-"
    outside = [
        "-" if share is None else f"{share:.2%} ({drift.expected_outside:.2%})" for share in (drift.below, drift.above)
    ]
    return (drift.feature, drift.column, f"{drift.rows:,}", unknown, f"{drift.missing_share:.2%}", *outside)


def main() -> None:
    """Reads the options, compares the log with the checkpoint's vocabularies and bins, and prints the report."""
    (options,) = parse_options(DriftOptions, description=__doc__)
    with exits(ValueError, OSError, ImportError):
        from modeling_mcm.preparation.drift import feature_drift

        extractor = MCMFeatureExtractor.from_pretrained(options.model)
        report = feature_drift(options.events, extractor, options.profile, options.memory_limit)
        if options.report_file:
            path = Path(options.report_file)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, report.to_dict(), indent=1)
    sys.stdout.write(_table(report) + "\n")


if __name__ == "__main__":
    main()
