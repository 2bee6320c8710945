# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Adds the events of a day to a model: what it counts goes to their end, and what it has learned stays.

    mcm refresh --model runs/current --events log/2024-05-06.parquet --output_dir runs/2024-05-07

Labels that are new are known from then on. The counts are those of the whole log, to the bit. The folder is written
whole or not at all, with the prepared log beside the model, and is what the next day is added to. Events may be older
than the log's latest. They are refused if the log has them already, or half of those until its end; a few equal ones
count as `on_duplicate` says.
"""

from dataclasses import dataclass

from modeling_mcm.frames import read_events
from modeling_mcm.option import REQUIRED, option
from modeling_mcm.refresh import refresh

from .arguments import MEMORY_LIMIT, command


@dataclass
class RefreshOptions:
    """Which model is refreshed by which events, and where it is written to."""

    model: str = option("Folder of the model.", REQUIRED)
    events: list[str] = option("New events: .parquet, .csv or .tsv files with the columns of the log.", REQUIRED)
    output_dir: str = option("New folder of the refreshed model.", REQUIRED)
    data: str | None = option("Prepared data set of the model's log. By default what the model's folder names.")
    known: str | None = option("More rows of the table of `mcm pretrain --known`.")
    memory_limit: str = option(MEMORY_LIMIT, "1GB")


@command(__doc__, RefreshOptions)
def main(options: RefreshOptions) -> None:
    """Refreshes the model, and prints what its counts are of."""
    events, described = read_events(options.model, options.events)
    counted = refresh(
        options.model, events, options.output_dir, options.data, described, options.memory_limit, options.known
    )
    print(
        f"{options.output_dir} counts {counted['events']:,} events of {counted['customers']:,} customers of "
        f"{counted['log']}, until {counted['until']}."
    )
