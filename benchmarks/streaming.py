#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The memory that reading an epoch takes as it goes on, streamed from the shards and from the Arrow copy.

    python benchmarks/streaming.py --report_file docs/training_at_scale.md --picture docs/pictures/streaming.png

Batches are made and thrown away; no model runs. Every line is a process of its own, on the first shards of one log of
the synthetic shop. Memory is what the process holds above what it held before the first batch; of the Arrow copy it
counts the pages that were touched, which the system may take back.
"""

import json
import platform
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from measuring import ROOT, measure_alone, show
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.option import option
from modeling_mcm.training.memory import keep_freed_memory

MEGA = 1e6
SAMPLES = 200
WAYS = ("streamed", "Arrow copy")


@dataclass
class StreamingOptions:
    """How many customers are read, and how."""

    customers: int = option(2000, "Number of customers of the smallest data set.")
    doublings: int = option(3, "Number of times that the number of customers is doubled.")
    rows_per_shard: int = option(128, "Number of customers in one shard.")
    window: int = option(4, "Number of shards whose customers are mixed at a time.")
    batch_size: int = option(16, "Number of customers in one batch.")
    config: str = option("configuration/mcm-tiny", "Folder with a config.json.")
    report_file: str | None = option(None, "Markdown file to write the table to, as `mcm evaluate` does.")
    picture: str | None = option(None, "PNG file for the plot; needs matplotlib.")
    data: str = option("", "Folder of a prepared data set to measure in this process; prints figures as JSON.")
    way: str = option(WAYS[0], "Way of reading that is measured with --data.", choices=list(WAYS))


def prepare_all(options: StreamingOptions, folder: Path) -> list[Path]:
    """Makes data sets of 1, 2, 4 ... times the customers. The smaller ones are the first shards of the largest."""
    import pyarrow.parquet as pq

    from modeling_mcm.data import EventSchema, PreparedManifest
    from modeling_mcm.data.dataset import FEATURE_EXTRACTOR_FOLDER
    from modeling_mcm.preparation import prepare
    from synthetic import make_click_log

    pq.write_table(make_click_log(options.customers * 2**options.doublings).events, folder / "log.parquet")
    schema = EventSchema.from_yaml(ROOT / "configuration" / "schemas" / "clickstream.yaml")
    prepare(folder / "log.parquet", schema, folder / "all", rows_per_shard=options.rows_per_shard)
    manifest = PreparedManifest.load(folder / "all")
    parts = []
    for doubling in range(options.doublings + 1):
        number = -(-len(manifest.shards) // 2 ** (options.doublings - doubling))
        part = folder / f"part-{doubling}"
        part.mkdir()
        for name in (FEATURE_EXTRACTOR_FOLDER, *(shard["file"] for shard in manifest.shards[:number])):
            (part / name).symlink_to(folder / "all" / name)
        PreparedManifest(**{**asdict(manifest), "shards": manifest.shards[:number]}).save(part)
        parts.append(part)
    return parts


def read_epoch(options: StreamingOptions) -> dict[str, Any]:
    """Reads an epoch, and records its customers and the megabytes beyond those before the first batch."""
    from torch.utils.data import BatchSampler

    from modeling_mcm.data import PreparedData
    from modeling_mcm.data.collator import LengthGroupedSampler, MCMCollator
    from modeling_mcm.data.streaming import StreamedOrder
    from modeling_mcm.training.options import ModelOptions
    from modeling_mcm.training.pretraining import read_config, read_rows

    data = PreparedData(options.data)
    streaming = options.way == WAYS[0]
    model_options = ModelOptions(data=options.data, config=str(ROOT / options.config), streaming=streaming)
    config = read_config(model_options, data.extractor)
    collator = MCMCollator(data.extractor, config)
    rows, _ = read_rows(model_options, data, config, False)
    if streaming:
        rows.held_shards = options.window + 2
        order: Any = StreamedOrder(rows, options.batch_size, 1, 1, options.window, 0, collator.epoch)
    else:
        order = LengthGroupedSampler(rows.lengths, options.batch_size, 0, collator.epoch)
    batches = BatchSampler(order, options.batch_size, False)
    process, every = psutil.Process(), max(1, len(batches) // SAMPLES)
    before, megabytes = process.memory_info().rss, []
    for number, batch in enumerate(batches):
        collator(rows.__getitems__(batch))
        if number % every == 0:
            megabytes.append((process.memory_info().rss - before) / MEGA)
    return {"customers": len(rows), "megabytes": megabytes}


def measure(options: StreamingOptions) -> dict[str, list[dict[str, Any]]]:
    """Measures each way of reading for each size."""
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        for data in prepare_all(options, Path(scratch)):
            for way in WAYS:
                only = {"data": data, "way": way, "report_file": None, "picture": None}
                results[way].append(measure_alone(__file__, options, **only))
    return results


def table(results: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Makes rows of text, one for each way and size."""
    rows = [["read", "customers", "MB in the middle", "MB at most"]]
    for way, points in results.items():
        for point in points:
            size = np.asarray(point["megabytes"])
            cells = [f"{point['customers']:,}", f"{size[len(size) // 2]:.0f}", f"{size.max():.0f}"]
            rows.append([way, *cells])
    return rows


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draws memory over the epoch, in one panel for each way and with one line for each size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (way, points) in zip(figure.subplots(1, len(results), sharey=True), results.items(), strict=True):
        for point in points:
            progress = np.linspace(0, 1, len(point["megabytes"]))
            axes.plot(progress, point["megabytes"], label=f"{point['customers']:,} customers")
        axes.set(title=way, xlabel="share of the epoch", ylabel="MB above the start", ylim=(0, None))
        axes.legend(loc="center right")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Reads the options, measures, and writes the files that the options name."""
    (options,) = parse_options(StreamingOptions, description=__doc__)
    torch.set_num_threads(1)
    if options.data:
        keep_freed_memory()
        print(json.dumps(read_epoch(options)))
        return
    results = measure(options)
    rows = table(results)
    machine = f"one process, {platform.machine()}, torch {torch.__version__}"
    caption = (
        f"Memory above the start while an epoch is read, shards of {options.rows_per_shard} customers, a window of "
        f"{options.window}; {machine}."
    )
    show(rows, caption, options.report_file)
    if options.picture:
        plot(results, Path(options.picture))


if __name__ == "__main__":
    main()
