# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Watches new days: is the log as it was, and does what the model said come true?

    mcm watch --model runs/current --events log/2024-05-06.parquet && mcm refresh --model runs/current ...

It prints a row for each day and check, the least likely first, and ends with status 1 if one is an alarm, 2 on an
error. A check says what was observed on a day and what was expected before it, of the same weekday, of the last four
weeks or by the model: events and customers; missing and unknown values of each column; customers by label; chances of
a visit; who came, and which labels, by their chances; how many customers were outside of the 80% interval of 7 days.
Nothing is written.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from modeling_mcm.data import PreparedData, check_vocabularies
from modeling_mcm.data.dataset import END
from modeling_mcm.evaluation.comparison import text_table
from modeling_mcm.frames import read_events
from modeling_mcm.option import REQUIRED, option
from modeling_mcm.past import watch
from modeling_mcm.preparation.refresh import add_events
from modeling_mcm.refresh import find_log
from modeling_mcm.training.checkpoints import find_head, open_checkpoint

from .arguments import MEMORY_LIMIT, command


@dataclass
class WatchOptions:
    """Which days are compared with which model."""

    model: str = option("Folder of the model, before the days were added.", REQUIRED)
    events: list[str] = option("Events of whole new days, as for mcm refresh.", REQUIRED)
    data: str | None = option("Prepared data set of the model's log. By default what the model's folder names.")
    json: bool = option("Print JSON in the place of the table.", False)
    memory_limit: str = option(MEMORY_LIMIT, "1GB")


@command(__doc__, WatchOptions)
def run(options: WatchOptions) -> None:
    """Prints the checks. Raises `SystemExit` if there is an alarm."""
    log = PreparedData(options.data or find_log(Path(options.model)))
    model, extractor = open_checkpoint(find_head(options.model), options.model)
    check_vocabularies(log.folder, extractor)
    events, described = read_events(options.model, options.events)
    with tempfile.TemporaryDirectory(prefix=".watch-", dir=log.folder.parent) as folder:  # files are linked there
        target, scratch = Path(folder, "data"), Path(folder, "scratch")
        scratch.mkdir()
        add_events(log, events, target, scratch, options.memory_limit, described, model.config.counted)
        table = watch(model, extractor, PreparedData(target, END), log.manifest.counts["last"])
    if options.json:
        print(table.to_json(orient="records", date_format="iso"))
    else:
        shown = table.assign(day=table["day"].dt.date, alarm=table["alarm"].map({True: "ALARM", False: ""}))
        numbers = {name: shown[name].map("{:.4g}".format) for name in ("observed", "expected", "p")}
        shown = shown.drop(columns="trials").assign(**numbers).astype(str)
        print(text_table([[*shown], *shown.to_numpy().tolist()]))
    if table["alarm"].any():
        raise SystemExit(1)


def main() -> None:
    """Ends with 0, with 1 if there is an alarm, or with 2 and a message on an error."""
    try:
        run()
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        print(end.code, file=sys.stderr)
        raise SystemExit(2) from end
