# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Prepares an event log for training.

    mcm prepare --demo complete_journey --output_dir data/prepared
    mcm prepare --demo complete_journey --offers ...        also writes the demo's offers (docs/fine_tuning.md)
    mcm prepare --events log.parquet --schema schema.yaml --output_dir data/prepared
    mcm prepare --model runs/mine --events log.parquet --output_dir data/today      what runs/mine can score
    mcm prepare --engine spark --spark_master local[2] ...      on Spark (docs/production.md)
    mcm prepare prepare.yaml --overwrite        # options as keys of one YAML file; flags win

docs/event_schema.md explains the schema. With --model the vocabularies and bins are those of a checkpoint, and the
command says how many events have a value that it does not know. Its schema is used unless --schema is given, and
nothing is held out unless --schema or --cutoffs says so.

If the output folder holds a complete data set, --overwrite replaces it, and --reuse leaves it as it is if the same
files, schema and options made it; otherwise the command ends with an error.
"""

from dataclasses import dataclass
from pathlib import Path

from modeling_mcm.checkpoint_mcm import check_files
from modeling_mcm.data import EventSchema, PreparedManifest, read_schema
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.option import REQUIRED, option

from .arguments import MEMORY_LIMIT, EngineOptions, command

DEMO = "complete_journey"


@dataclass
class PrepareOptions:
    """Which log is prepared by which schema, and where to."""

    output_dir: str = option("Folder to write. It must not exist, except with --overwrite or --reuse.", REQUIRED)
    events: list[str] = option(
        "Event log: .parquet, .csv or .tsv files, folders of them or of Delta Lake, addresses (gs://...), or "
        "a table of a database (postgresql://user@host/database#TABLE, duckdb://FILE#TABLE).",
        [],
    )
    profile: str | None = option("Profile table, with one row a customer. Needed if the schema has `profile`.")
    schema: str | None = option("Event schema, a YAML file such as configuration/schemas/clickstream.yaml.")
    model: str | None = option(
        "Checkpoint that is to read the data: its vocabularies and bins, and by default its schema, are used."
    )
    cutoffs: list[str] = option("Two dates, of the validation and the test cutoff, in the place of the schema's.", [])
    demo: str | None = option(
        "Make this demo log first, in the folder raw/ beside --output_dir, and use its schema.", choices=[DEMO]
    )
    offers: bool = option(
        "Also write the demo's offers.parquet and actions.parquet into raw/ (docs/fine_tuning.md).", False
    )
    rows_per_shard: int = option("Largest number of customers in one shard, a Parquet file.", 1024)
    memory_limit: str = option(MEMORY_LIMIT, "1GB")
    overwrite: bool = option("Replace a data set that is in --output_dir.", False)
    reuse: bool = option(
        "Leave a data set in --output_dir as it is if the same files, schema and options made it.", False
    )

    def __post_init__(self) -> None:
        if self.demo is not None and (self.events or self.profile):
            raise ValueError("--demo brings its own --events and --profile; leave these out.")
        if self.demo is None and self.offers:
            raise ValueError(
                f"--offers writes the offers of a demo: add --demo {DEMO}, or make your own tables "
                "(docs/fine_tuning.md)."
            )
        if self.demo is None and not (self.events and (self.schema or self.model)):
            raise ValueError("Give --events, and --schema or --model; or give --demo.")
        if len(self.cutoffs) not in (0, 2):
            raise ValueError(f"--cutoffs has {len(self.cutoffs)} dates; give two, validation and test.")


def _summary(manifest: PreparedManifest, output_dir: str) -> str:
    """Writes a few lines on what was read, what was left out, and what the data set holds."""
    counts = manifest.counts
    unknown, missing = (
        ", ".join(f"{name} {count:,}" for name, count in counts[kind].items() if count) or "no value"
        for kind in ("unknown", "missing")
    )
    return "\n".join(
        [
            f"Data set    {output_dir}: {len(manifest.shards)} shards",
            f"Read        {counts['rows']:,} rows; dropped {counts['dropped_null']:,} without customer or time and "
            f"{counts['dropped_duplicates']:,} of {counts['duplicates']:,} duplicates",
            f"Bad rows    {counts.get('dropped_bad', 0):,} left out by `on_bad_row`",
            f"Too long    {counts.get('customers_with_excess', 0):,} customers, who lost "
            f"{counts.get('dropped_excess', 0):,} events to `max_events_per_customer`",
            f"Customers   {counts['customers']:,}, profiles {counts.get('profiles', 0):,}",
            f"Events      {counts['events']:,}, of them {counts['target_events']:,} targets; "
            f"{counts['ends_of_visit']:,} ends of visit added",
            f"Periods     {counts['training_events']:,} training, {counts['validation_events']:,} validation, "
            f"{counts['test_events']:,} test",
            f"Cases       {counts['validation_cases']:,} validation, {counts['test_cases']:,} test",
            f"Unknown     {unknown}",
            f"Missing     {missing}",
        ]
    )


@command(__doc__, PrepareOptions, EngineOptions)
def main(options: PrepareOptions, engine: EngineOptions) -> None:
    """Prepares the data set and prints what it holds."""
    from modeling_mcm.preparation import prepare

    events, profile, schema, extractor = options.events, options.profile, options.schema, None
    if options.demo:
        from modeling_mcm.preparation.demos import SCHEMA, build_complete_journey

        *events, profile = build_complete_journey(Path(options.output_dir).parent / "raw", options.offers)
        schema = schema or str(SCHEMA)
    if options.model:
        check_files(options.model)
        extractor = MCMFeatureExtractor.from_pretrained(options.model)
    event_schema = EventSchema.from_yaml(str(schema)) if schema or extractor is None else read_schema(extractor)
    if options.cutoffs:
        cutoffs = dict(zip(("validation", "test"), options.cutoffs, strict=True))
        event_schema = EventSchema.from_dict(event_schema.to_dict() | {"cutoffs": cutoffs})
    manifest = prepare(
        events,
        event_schema,
        options.output_dir,
        profile=profile,
        feature_extractor=extractor,
        engine=engine.engine,
        spark_config=engine.spark,
        overwrite=options.overwrite,
        reuse=options.reuse,
        memory_limit=options.memory_limit,
        rows_per_shard=options.rows_per_shard,
    )
    print(_summary(manifest, options.output_dir))
