# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Watches predictions: how far they moved since another run, and whether what happened then bears them out.

    mcm monitor --predictions scores/tuesday --before scores/monday
    mcm monitor --predictions scores/monday --data data/prepared --since 2024-05-06

With --before: per task the share of the customers whose first label is another one, the mean probability of the first
label in both, and the distance of the first labels' distributions (total variation: 0 the same, 1 nothing in common).
With --data, updated since the predictions were made: of each customer's first visit with a target from --since on, the
share that each predicted label has of it, beside the probability that it was given. Both are alike where scores are
calibrated. `--report_file` keeps the figures as JSON, for alarms.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_mcm.commands.arguments import exits, parse_options
from modeling_mcm.evaluation.reports import text_table
from modeling_mcm.files_mcm import write_json
from modeling_mcm.scoring.monitor import calibration, check_predictions, score_drift


@dataclass
class MonitorOptions:
    """What is compared with what."""

    predictions: str = field(metadata={"help": "Folder of run_predict.py."})
    before: str | None = field(default=None, metadata={"help": "Folder of an earlier run, for the drift."})
    data: str | None = field(
        default=None, metadata={"help": "Prepared data with what happened since, for calibration."}
    )
    since: str | None = field(
        default=None, metadata={"help": "Last moment that the predictions knew of, such as 2024-05-06; with --data."}
    )
    report_file: str | None = field(default=None, metadata={"help": "JSON file for the figures."})

    def __post_init__(self) -> None:
        if not self.before and not self.data:
            raise ValueError("Give --before, --data, or both: what the predictions are compared with.")
        if bool(self.data) != bool(self.since):
            raise ValueError("--data and --since belong together: what happened from when on.")


def said(drift: dict[str, Any] | None, calibrated: dict[str, list[dict[str, float]]] | None) -> str:
    """The figures as a person reads them."""
    lines = []
    if drift:
        lines.append(f"{drift['customers']:,} customers in both, {drift['new']:,} new, {drift['gone']:,} gone\n")
        rows = [["task", "first label moved", "first score", "before", "distance"]]
        for task, each in drift.items():
            if isinstance(each, dict):
                scores = [f"{each[name]:.4f}" for name in ("first_score", "first_score_before", "distance")]
                rows.append([task, f"{each['moved']:.2%}", *scores])
        lines.append(text_table(rows))
    if calibrated:
        rows = [["task", "probability", "labels", "predicted", "happened"]]
        for task, bins in calibrated.items():
            for each in bins:
                span = f"{each['from']:g} to {each['to']:g}"
                rows.append([task, span, f"{each['labels']:,}", f"{each['predicted']:.4f}", f"{each['happened']:.4f}"])
        lines.append(text_table(rows))
    return "\n".join(lines)


def main() -> None:
    """Reads the options, compares, and says what was found."""
    (options,) = parse_options(MonitorOptions, description=__doc__)
    with exits(ValueError, OSError, ImportError):
        check_predictions(options.predictions, options.since)
        if options.before:
            check_predictions(options.before)
        drift = score_drift(options.predictions, options.before) if options.before else None
        calibrated = calibration(options.predictions, options.data, options.since) if options.data else None
        if options.report_file:
            path = Path(options.report_file)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"drift": drift, "calibration": calibrated}, indent=1)
    sys.stdout.write(said(drift, calibrated) + "\n")


if __name__ == "__main__":
    main()
