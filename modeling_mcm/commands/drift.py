# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Says how much of a new event log a checkpoint can still read, and which values it should learn.

    mcm drift --model runs/mine --events new.parquet
    mcm drift --model runs/mine --events new.parquet --report_file drift.json

Columns are those of the log that the checkpoint was trained on. Unknown: the value is not in the vocabulary, so the
checkpoint reads every one of them as the same. Below, above: the number lies under the first or over the last inner
edge of the bins; training had about the share in brackets in each. A part of the unknown is by design where the
schema had a `min_count`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_mcm.commands.arguments import exits, parse_options
from modeling_mcm.data.features import CATEGORICAL
from modeling_mcm.files_mcm import write_json
from modeling_mcm.processing_mcm import MCMFeatureExtractor

if TYPE_CHECKING:
    from modeling_mcm.preparation.drift import DriftReport, FeatureDrift

HEADINGS = ("feature", "column", "rows", "unknown", "missing", "below", "above")


@dataclass
class DriftOptions:
    """What is compared."""

    model: str = field(metadata={"help": "Checkpoint folder, or name on the Hub; its feature extractor is read."})
    events: str = field(metadata={"help": "New events: a .parquet, .csv or .tsv file, or a folder of Parquet files."})
    profile: str | None = field(
        default=None, metadata={"help": "New profiles, one row a customer; without it the profile is not looked at."}
    )
    report_file: str | None = field(default=None, metadata={"help": "JSON file for everything that was counted."})
    memory_limit: str = field(default="1GB", metadata={"help": "Memory DuckDB may use before it spills to disk."})


def table(report: DriftReport) -> str:
    """The report as a person reads it."""
    rows = [HEADINGS, *(_cells(drift) for drift in report.features)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADINGS))]
    left_out = f"{report.left_out:,} without customer or time were left out"
    lines = [f"{report.events:,} events from {report.first} to {report.last}; {left_out}"]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for drift in report.features:
        if drift.unknown:
            most = ", ".join(f"{value!r} {count:,}" for value, count in drift.most_frequent_unknown)
            lines += ["", f"{drift.feature}: {drift.unknown_values:,} unknown values, the most frequent {most}"]
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
    """Reads the options, counts, and says what was found."""
    (options,) = parse_options(DriftOptions, description=__doc__)
    with exits(ValueError, OSError, ImportError):
        from modeling_mcm.preparation.drift import feature_drift

        extractor = MCMFeatureExtractor.from_pretrained(options.model)
        report = feature_drift(options.events, extractor, options.profile, options.memory_limit)
        if options.report_file:
            path = Path(options.report_file)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, report.to_dict(), indent=1)
    sys.stdout.write(table(report) + "\n")


if __name__ == "__main__":
    main()
