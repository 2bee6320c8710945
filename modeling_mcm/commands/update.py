# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Updates a prepared data set with the new files of its log, without preparing the whole log again.

    mcm update --data data/prepared --events log
    mcm update --data data/prepared --events log --grow_vocabularies 20
    mcm update --data data/prepared --events log --corrected old/2024-03-07.parquet

The log is a folder of Parquet files, such as one a day. The result has the rows of a full preparation with the same
vocabularies and cutoffs. Events that arrive late may stand in any new file. For a file that was written again or
removed, give its earlier version with --corrected. docs/large_logs.md says what an update costs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modeling_mcm.commands.arguments import MEMORY_LIMIT, parse_options, report_errors
from modeling_mcm.option import option

if TYPE_CHECKING:
    from modeling_mcm.preparation.update import Update


@dataclass
class UpdateOptions:
    """Which data set is updated from which log."""

    data: str = option(help="Folder of the prepared data set. It is replaced once the update is complete.")
    events: str = option(
        help="Folder of the whole log: the Parquet files that the data set was made from and new ones."
    )
    profile: str | None = option(
        None, "Current profile table, with one row a customer. Needed if the schema has `profile`."
    )
    corrected: list[str] = option(
        [],
        "Earlier versions of the log's files that were changed or removed, or folders with them. Their "
        "names do not matter.",
    )
    grow_vocabularies: int = option(
        0,
        "Number of new events from which on an unknown value joins the vocabulary; 0 leaves the "
        "vocabularies as they are.",
    )
    memory_limit: str = option("1GB", MEMORY_LIMIT)

    def __post_init__(self) -> None:
        if self.grow_vocabularies < 0:
            raise ValueError(f"--grow_vocabularies is {self.grow_vocabularies}; give 0 or more.")


def _summary(done: "Update", options: UpdateOptions) -> str:
    """Writes a few lines on what was updated."""
    shards = done.manifest.shards
    contents = " and ".join(f"{done.manifest.counts[name]:,} {name}" for name in ("customers", "events"))
    lines = [
        f"Data set    {options.data}: {contents} in {len(shards)} shards",
        f"Files       {len(done.files)} new, changed or gone{': ' if done.files else ''}{', '.join(done.files[:5])}",
        f"Prepared    {done.events:,} events of {done.customers:,} customers, {done.shards} shards written",
    ]
    lines += [f"Added       {name}: {len(values):,}, such as {values[0]!r}" for name, values in done.added.items()]
    return "\n".join(lines)


def main() -> None:
    """Reads the options, updates the data set and prints what was done."""
    (options,) = parse_options(UpdateOptions, description=__doc__)
    with report_errors():
        from modeling_mcm.preparation.update import update

        done = update(
            options.data,
            options.events,
            profile=options.profile,
            corrected=options.corrected,
            grow_vocabularies=options.grow_vocabularies,
            memory_limit=options.memory_limit,
        )
    print(_summary(done, options))


if __name__ == "__main__":
    main()
