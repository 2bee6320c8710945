# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Compares predictions with those of an earlier run, and with what happened since.

    mcm monitor --predictions scores/tuesday --before scores/monday
    mcm monitor --predictions scores/monday --data data/prepared --since 2024-05-06

With --before the command prints for each task the share of the customers whose first label changed, the mean
probability of the first label in both runs, and the distance between the distributions of the first labels (total
variation: 0 means the same, 1 nothing in common).

With --data it compares predictions with what happened: --data is a data set that was updated after the predictions
were made. For each customer's first visit with a target from --since on, it prints the share of the visit that the
predicted labels had, beside their predicted probability. If scores are calibrated, the two are about equal.
`--report_file` writes the figures as JSON, for alarms.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_mcm.commands.arguments import exits, parse_options
from modeling_mcm.evaluation.reports import text_table
from modeling_mcm.files_mcm import write_json
from modeling_mcm.option import option
from modeling_mcm.scoring.monitor import calibration, check_predictions, score_drift


@dataclass
class MonitorOptions:
    """Which predictions are compared with which earlier predictions or data."""

    predictions: str = option(help="Folder of predictions that `mcm predict` wrote.")
    before: str | None = option(None, "Folder of predictions of an earlier run, to measure how much they changed.")
    data: str | None = option(
        None, "Folder of a prepared data set with later visits, to measure calibration; needs --since."
    )
    since: str | None = option(
        None, "Time up to which the predictions knew the histories, such as 2024-05-06; needs --data."
    )
    report_file: str | None = option(None, "JSON file to write the figures to.")

    def __post_init__(self) -> None:
        if not self.before and not self.data:
            raise ValueError("Give --before, --data, or both, to say what the predictions are compared with.")
        if bool(self.data) != bool(self.since):
            raise ValueError("--data and --since belong together: give both, the later visits and where they begin.")


def _report_text(drift: dict[str, Any] | None, calibrated: dict[str, list[dict[str, float]]] | None) -> str:
    """Writes what [`score_drift`] and [`calibration`] returned as tables for a terminal."""
    lines = []
    if drift:
        lines.append(f"{drift['customers']:,} customers in both, {drift['new']:,} new, {drift['gone']:,} gone\n")
        rows = [["task", "first label moved", "first score", "before", "distance"]]
        for task, values in drift.items():
            if isinstance(values, dict):
                scores = [f"{values[name]:.4f}" for name in ("first_score", "first_score_before", "distance")]
                rows.append([task, f"{values['moved']:.2%}", *scores])
        lines.append(text_table(rows))
    if calibrated:
        rows = [["task", "probability", "labels", "predicted", "happened"]]
        for task, bins in calibrated.items():
            for part in bins:
                span = f"{part['from']:g} to {part['to']:g}"
                rows.append([task, span, f"{part['labels']:,}", f"{part['predicted']:.4f}", f"{part['happened']:.4f}"])
        lines.append(text_table(rows))
    return "\n".join(lines)


def main() -> None:
    """Reads the options, compares the predictions, and prints the figures."""
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
    sys.stdout.write(_report_text(drift, calibrated) + "\n")


if __name__ == "__main__":
    main()
