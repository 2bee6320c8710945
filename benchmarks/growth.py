#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""How seconds and memory grow: with customers (preparing, scoring), with length and with labels (a training step).

    python benchmarks/growth.py --report_file benchmarks/README.md --picture docs/pictures/growth.png

Every point is a process of its own. The exponent is that of the last doubling: 1 is linear. Models have the shape of
--config and random weights; logs come from the synthetic shop.
"""

import json
import math
import platform
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import torch

from floor import Shape, floor
from measuring import KIBI, ROOT, measure_alone, random_model, shape_of, show
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.option import option
from modeling_mcm.training.memory import keep_freed_memory

GIGA = 1e9
STEPS = 5
TIMES_THE_FLOOR = "times the floor"


@dataclass
class GrowthOptions:
    """Which sizes grow, and where they begin."""

    config: str = option("configuration/mcm-tiny", "Folder with a config.json.")
    customers: int = option(500, "Number of customers of the smallest log.")
    units: int = option(64, "Number of units of the shortest histories.")
    labels: int = option(1000, "Number of labels of the smallest task.")
    batch_size: int = option(16, "Number of customers in one training step.")
    doublings: int = option(3, "Number of times that each of these sizes is doubled.")
    report_file: str | None = option(None, "Markdown file to write the table to, as `mcm evaluate` does.")
    picture: str | None = option(None, "PNG file for the plot; needs matplotlib.")
    only: str = option("", "Measure one point in this process and print its figures as JSON.")


def peak() -> int:
    """The largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBI


def training_step(options: GrowthOptions, units: int, labels: int) -> dict[str, float]:
    """Measures seconds and gigabytes of a training step on random histories with one event in each visit."""
    torch.manual_seed(0)
    model, batch = random_model(options.config, labels, options.batch_size, units)
    before, seconds = psutil.Process().memory_info().rss, []
    for _ in range(STEPS):
        start = time.perf_counter()
        model(**batch).loss.backward()
        seconds.append(time.perf_counter() - start)
    took = {"seconds": median(seconds[1:]), "gigabytes": (peak() - before) / GIGA}
    floor_of = Shape(label_sizes=[labels + 2], features=2, batch_size=options.batch_size, events=units, units=units)
    return took | {
        TIMES_THE_FLOOR: 1e3 * took["seconds"] / floor(floor_of, shape_of(options.config))["training step"]["floor_ms"]
    }


def everyone(options: GrowthOptions, customers: int) -> dict[str, float]:
    """Measures seconds of preparing a log and of scoring its customers, and gigabytes of scoring."""
    import pyarrow.parquet as pq

    from modeling_mcm import MCMConfig, MCMForMultiTaskRecommendation
    from modeling_mcm.commands import predict
    from modeling_mcm.commands.arguments import EngineOptions
    from modeling_mcm.data import EventSchema, PreparedData
    from modeling_mcm.preparation import prepare
    from synthetic import make_click_log

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pq.write_table(make_click_log(customers).events, folder / "log.parquet")
        start = time.perf_counter()
        schema = EventSchema.from_yaml(ROOT / "configuration" / "schemas" / "clickstream.yaml")
        prepare(folder / "log.parquet", schema, folder / "data")
        prepared = time.perf_counter() - start
        extractor = PreparedData(folder / "data").extractor
        fields = {"features": extractor.feature_names, "tasks": extractor.tasks}
        fields |= {"vocabulary_sizes": extractor.vocabulary_sizes}
        config = MCMConfig(**shape_of(options.config) | fields)
        MCMForMultiTaskRecommendation(config).save_pretrained(folder / "model")
        extractor.save_pretrained(folder / "model")
        before = psutil.Process().memory_info().rss
        start = time.perf_counter()
        paths = {"model": str(folder / "model"), "data": str(folder / "data"), "output_dir": str(folder / "scores")}
        predict.run(predict.PredictionOptions(**paths), EngineOptions())
        scored = time.perf_counter() - start
    return {"preparing": prepared, "scoring": scored, "gigabytes": (peak() - before) / GIGA}


def measure(options: GrowthOptions) -> dict[str, dict[int, dict[str, float]]]:
    """Measures all points, by what grows and its size."""
    starts = {"customers": options.customers, "units": options.units, "labels": options.labels}
    results: dict[str, dict[int, dict[str, float]]] = {}
    for what, start in starts.items():
        for size in (start * 2**doubling for doubling in range(options.doublings + 1)):
            only = {"only": f"{what} {size}", "report_file": None, "picture": None}
            results.setdefault(what, {})[size] = measure_alone(__file__, options, **only)
            print(what, size, results[what][size], flush=True)
    return results


def table(results: dict[str, dict[int, dict[str, float]]]) -> list[list[str]]:
    """Makes rows of text: what grows, what is measured, its value at each size, and the last doubling's exponent."""
    sizes = len(next(iter(results.values())))
    rows = [["what grows", "figure", *(f"{2**doubling}x" for doubling in range(sizes)), "exponent at the end"]]
    for what, points in results.items():
        for name in next(iter(points.values())):
            values = [point[name] for point in points.values()]
            exponent = math.log2(values[-1] / values[-2]) if min(values[-2:]) > 0 else math.nan
            rows.append([f"{what} from {min(points)}", name, *(f"{v:.3g}" for v in values), f"{exponent:.2f}"])
    return rows


def plot(results: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Draws a panel for each thing that grows, with logarithmic axes and figures relative to those of the smallest
    size.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.5), layout="constrained")
    for axes, (what, points) in zip(figure.subplots(1, len(results)), results.items(), strict=True):
        sizes = list(points)
        for name in next(iter(points.values())):
            if name == TIMES_THE_FLOOR:
                continue
            first = max(points[sizes[0]][name], 1e-9)
            axes.plot(sizes, [points[size][name] / first for size in sizes], marker="o", label=name)
        axes.plot(sizes, [size / sizes[0] for size in sizes], color="grey", linestyle=":", label="linear")
        axes.set(xlabel=what, ylabel="times the smallest")
        for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            scale("log", base=2)
            axis.set_major_formatter("{x:g}")
        axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Reads the options, measures, and writes the files that the options name."""
    (options,) = parse_options(GrowthOptions, description=__doc__)
    if options.only:
        keep_freed_memory()
        what, size = options.only.split()
        if what == "customers":
            values = everyone(options, int(size))
        else:
            sizes = {"units": options.units, "labels": options.labels, what: int(size)}
            values = training_step(options, sizes["units"], sizes["labels"])
        print(json.dumps(values))
        return
    results = measure(options)
    rows = table(results)
    machine = f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"
    caption = f"Seconds, and gigabytes above what was there before; {options.config}, {machine}."
    show(rows, caption, options.report_file)
    if options.picture:
        plot(results, Path(options.picture))


if __name__ == "__main__":
    main()
