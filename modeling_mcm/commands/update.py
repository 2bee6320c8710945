# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Brings a prepared data set up to its log: only visits that new files change, and later ones, are prepared again.

    mcm update --data data/prepared --events log
    mcm update --data data/prepared --events log --grow_vocabularies 20
    mcm update --data data/prepared --events log --corrected old/2024-03-07.parquet

The log is a folder of Parquet files, such as one a day; those that the data set has not seen are found by name and
digest. The result has the rows of a full preparation with the same vocabularies and cutoffs. Late events need nothing
special: they are in a new file. A file that was written again, or removed, needs its earlier version (--corrected).
docs/preparation.md says what an update costs, and when to prepare everything instead.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modeling_mcm.commands.arguments import exits, parse_options

if TYPE_CHECKING:
    from modeling_mcm.preparation.update import Update


@dataclass
class UpdateOptions:
    """What is brought up to what."""

    data: str = field(metadata={"help": "Folder of the prepared data set; replaced when all went well."})
    events: str = field(
        metadata={"help": "Folder of the whole log: the Parquet files that are known and the new ones."}
    )
    profile: str | None = field(
        default=None,
        metadata={"help": "Table with one row a customer, as it is now; needed if the schema has `profile`."},
    )
    corrected: list[str] = field(
        default_factory=list,
        metadata={"help": "Earlier versions of files that changed or are gone, or folders with them; any names."},
    )
    grow_vocabularies: int = field(
        default=0,
        metadata={"help": "Values with so many new events join the vocabularies; 0 leaves these as they are."},
    )
    memory_limit: str = field(default="1GB", metadata={"help": "Memory DuckDB may use before it spills to disk."})

    def __post_init__(self) -> None:
        if self.grow_vocabularies < 0:
            raise ValueError(f"--grow_vocabularies is {self.grow_vocabularies}; give 0 or more.")


def summary(done: Update, options: UpdateOptions) -> str:
    """What was done, in a few lines."""
    shards = done.manifest.shards
    held = " and ".join(f"{done.manifest.counts[name]:,} {name}" for name in ("customers", "events"))
    lines = [
        f"Data set    {options.data}: {held} in {len(shards)} shards",
        f"Files       {len(done.files)} new, changed or gone{': ' if done.files else ''}{', '.join(done.files[:5])}",
        f"Prepared    {done.events:,} events of {done.customers:,} customers, {done.shards} shards written",
    ]
    lines += [f"Added       {name}: {len(values):,}, such as {values[0]!r}" for name, values in done.added.items()]
    return "\n".join(lines)


def main() -> None:
    """Reads the options, updates the data set and says what was done."""
    (options,) = parse_options(UpdateOptions, description=__doc__)
    with exits(ValueError, OSError, ImportError):
        from modeling_mcm.preparation.update import update

        done = update(
            options.data,
            options.events,
            profile=options.profile,
            corrected=options.corrected,
            grow_vocabularies=options.grow_vocabularies,
            memory_limit=options.memory_limit,
        )
    sys.stdout.write(summary(done, options) + "\n")


if __name__ == "__main__":
    main()
