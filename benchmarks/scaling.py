#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What more customers and more parameters bring, and what 40 million customers would cost.

    python benchmarks/scaling.py --data data/complete_journey/prepared --report_file docs/scaling.md \
        --picture docs/pictures/scaling.png

The study trains on an eighth, a quarter, half and all of the customers, at one, two and four times the width, each
with the recipe in a process of its own, and evaluates all of them on the same validation cases. Through the losses
goes the curve of Hoffmann et al. (2022), L = E + A / N^a + B / D^b, N parameters and D customers.

The cost model is arithmetic: products of matrices of a training step (benchmarks/floor.py) times customers and epochs,
at the GPU's peak and at the share of the floor that a step reaches on this machine; bytes of the prepared data and of
the gradients' all-reduce; and how many customers a second one core makes batches of, here.
"""

import json
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from floor import FORWARD_AND_BACKWARD, encoder_flops, matmul_rate, readout_flops
from measuring import measure_alone
from modeling_mcm.commands import pretrain
from modeling_mcm.commands.arguments import parse_options
from modeling_mcm.evaluation.reports import markdown_table, text_table, write_report
from modeling_mcm.option import option
from modeling_mcm.training import pretraining
from modeling_mcm.training.trainer import MCMTrainer

FLOAT, LONG, INT = 4, 8, 4


@dataclass
class ScalingOptions:
    """The measured runs, and the business that costs are computed for."""

    data: str = option("data/complete_journey/prepared", "Folder of the prepared data set of the study.")
    recipe: str = option("configuration/recipes/quickstart.yaml", "Recipe of every run, a YAML file.")
    max_events: int = option(256, "Largest number of events that are read of a history in the study.")
    shares: list[float] = option([0.125, 0.25, 0.5, 1.0], "Shares of the customers to train on.")
    widths: list[int] = option([1, 2, 4], "Widths of the encoders, as multiples of --hidden.")
    hidden: int = option(64, "Width of the smallest encoder.")
    customers: float = option(40e6, "Number of customers of the business that costs are computed for.")
    events: float = option(10e9, "Number of events of that business.")
    events_a_visit: float = option(10.0, "Number of events in one visit of that business; the encoder reads visits.")
    labels: list[int] = option([30_000, 2_000, 300, 30], "Number of labels of each task of that business.")
    config: str = option(
        "configuration/mcm-base", "Config of the model for that business, a folder with a config.json."
    )
    epochs: float = option(2.0, "Number of passes over the customers of that business.")
    gpus: int = option(8, "Number of GPUs.")
    teraflops: float = option(989.0, "Peak speed of one GPU in bf16, in teraflops. By default that of an H100.")
    gigabytes_a_second: float = option(
        450.0, "Speed between two GPUs in one direction, in GB a second. By default NVLink of an H100."
    )
    batch_size: int = option(512, "Number of customers in one step of one GPU.")
    dollars: float = option(3.0, "Price of one GPU for one hour, in dollars.")
    report_file: str = option("", "Markdown file to write the tables to.")
    picture: str = option("", "PNG file for the plot; needs matplotlib.")
    only: str = option("", "Train one model, of a share and a width, and print its figures as JSON.")


class LastTrainer(MCMTrainer):
    """A Trainer that stays available after training."""

    last: "LastTrainer"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        LastTrainer.last = self


def one_run(options: ScalingOptions, share: float, times: int) -> dict[str, float]:
    """Trains on a share of the customers with a multiple of the width, in this process."""
    read = pretraining.read_rows

    def some(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        rows, evaluated = read(*args, **kwargs)
        order = np.random.default_rng(0).permutation(len(rows))[: round(share * len(rows))]
        rows.indices, rows.lengths = rows.indices[np.sort(order)], rows.lengths[np.sort(order)]
        return rows, evaluated

    pretraining.read_rows, pretraining.MCMTrainer = some, LastTrainer  # type: ignore[misc]
    hidden = options.hidden * times
    with tempfile.TemporaryDirectory() as folder:
        sizes = [f"hidden_size={hidden}", f"intermediate_size={4 * hidden}"]
        flags = {"data": options.data, "max_events": options.max_events, "output_dir": folder, "save_strategy": "no"}
        flags |= {"eval_strategy": "epoch", "report_to": "none", "disable_tqdm": "true"}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        sys.argv = ["run_pretrain.py", options.recipe, *words, "--config_overrides", *sizes]
        pretrain.main()
    trainer = LastTrainer.last
    trained: Any = trainer.optimizer  # a table of a feature that is not read is no parameter
    metrics = [line for line in trainer.state.log_history if "eval_loss" in line][-1]
    ndcg = [value for name, value in metrics.items() if name.endswith("next_visit_ndcg@10")]
    rows: Any = trainer.train_dataset
    start = time.perf_counter()
    trainer.train_collator(rows.__getitems__(list(range(min(64, len(rows))))))
    collated = min(64, len(rows)) / (time.perf_counter() - start)
    config: Any = trainer.train_collator.config
    label_sizes, units = config.label_sizes.values(), round(float(np.mean(rows.lengths)))
    flops_a_customer = encoder_flops(config.num_hidden_layers, hidden, 4 * hidden, units)
    flops_a_customer += readout_flops(hidden, units, sum(label_sizes))
    flops = flops_a_customer * len(rows) * trainer.args.num_train_epochs
    least = FORWARD_AND_BACKWARD * flops / matmul_rate(1024, hidden, max(label_sizes))
    return {
        "customers": len(rows),
        "parameters": sum(parameter.numel() for parameter in trained.state),
        "seconds": trainer.clock.seconds,
        "loss": metrics["eval_loss"],
        "ndcg": float(np.mean(ndcg)),
        "of_floor": least / trainer.clock.seconds,
        "collated": collated,
    }


def curve(sizes: Any, floor: float, a: float, alpha: float, b: float, beta: float) -> Any:
    """E + A / N^a + B / D^b, both sizes relative to the smallest."""
    parameters, customers = sizes
    return floor + a * parameters**-alpha + b * customers**-beta


def fitted(runs: list[dict[str, float]]) -> list[float]:
    """Fits E, A, a, B and b to the losses of the runs."""
    from scipy.optimize import curve_fit

    sizes = np.array([[run["parameters"] for run in runs], [run["customers"] for run in runs]])
    losses = np.array([run["loss"] for run in runs])
    start = [losses.min(), 0.1, 0.3, losses.max() - losses.min(), 0.3]
    bounds = ([0, 0, 0, 0, 0], [np.inf, np.inf, 3, np.inf, 3])
    values, _ = curve_fit(curve, sizes / sizes.min(1, keepdims=True), losses, start, bounds=bounds, maxfev=20_000)
    return values.tolist()


def cost_model(options: ScalingOptions, share: float, collated: float) -> list[list[str]]:
    """Makes rows of text: each cost with its value and how it is computed."""
    config = json.loads(Path(options.config, "config.json").read_text(encoding="utf-8"))
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    units = options.events / options.customers / options.events_a_visit
    encoder = encoder_flops(layers, hidden, config["intermediate_size"], round(units))
    readout = readout_flops(hidden, round(units), sum(options.labels))
    whole = FORWARD_AND_BACKWARD * (encoder + readout) * options.customers * options.epochs
    peak = options.gpus * options.teraflops * 1e12
    parameters = layers * (4 * hidden**2 + 2 * hidden * config["intermediate_size"]) + sum(options.labels) * hidden
    steps = options.customers * options.epochs / (options.batch_size * options.gpus)
    reduced = 2 * FLOAT * parameters * steps / (options.gigabytes_a_second * 1e9)
    rate = options.customers * options.epochs / (whole / peak / share)
    dollars = whole / peak / share / 3600 * options.gpus * options.dollars
    bytes_an_event = 17 * INT + LONG + INT

    def hours(seconds: float) -> str:
        return f"{seconds / 3600:,.3g} h"

    return [
        ["what", "how much", "how it comes about"],
        ["a customer", f"{units:.0f} visits of {options.events_a_visit:g} events", "events / customers"],
        ["FLOPs, encoder", f"{encoder / 1e9:,.3g} GFLOP a customer, forward", "benchmarks/floor.py"],
        ["FLOPs, readout", f"{readout / 1e9:,.3g} GFLOP a customer, forward", f"{sum(options.labels):,} labels"],
        ["FLOPs, all", f"{whole / 1e18:,.3g} EFLOP", f"3 times forward, {options.epochs:g} epochs"],
        ["hours at the peak", hours(whole / peak), f"{options.gpus} GPUs of {options.teraflops:g} TFLOP/s"],
        ["hours at this machine's share", hours(whole / peak / share), f"{share:.0%} of the floor, as here"],
        ["dollars", f"{dollars:,.2f}", f"{options.dollars:g} a GPU and hour"],
        ["all-reduce", hours(reduced), f"{parameters / 1e6:.0f} M parameters in float32, {steps:,.0f} steps"],
        ["prepared data", f"{options.events * bytes_an_event / 1e12:,.3g} TB decoded", "17 features, time, visit"],
        ["optimizer, a GPU", f"{4 * FLOAT * parameters / 1e9:,.3g} GB", "weights, gradients, two averages"],
        ["customers a second", f"{rate:,.0f}", "at this machine's share"],
        [
            "cores that make batches",
            f"{rate / collated:,.0f}",
            f"one makes {collated:,.0f} customers a second, as here",
        ],
    ]


def plot(runs: list[dict[str, float]], values: list[float], path: Path) -> None:
    """Draws the losses over the number of customers, with a line of the curve for each size of the model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    least = [min(run[name] for run in runs) for name in ("parameters", "customers")]
    for parameters in sorted({run["parameters"] for run in runs}):
        own = sorted((run["customers"], run["loss"]) for run in runs if run["parameters"] == parameters)
        x = np.geomspace(own[0][0], 4 * own[-1][0], 50)
        line = axes.plot(x, curve((parameters / least[0], x / least[1]), *values), linewidth=1)[0]
        label = f"{parameters / 1e6:.2f} M parameters"
        axes.scatter(*zip(*own, strict=True), color=line.get_color(), label=label)
    axes.set(xscale="log", xlabel="customers", ylabel="validation loss, sum of the tasks")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Reads the options, trains, fits, and writes the files that the options name."""
    (options,) = parse_options(ScalingOptions, description=__doc__)
    if options.only:
        share, times = options.only.split()
        print(json.dumps(one_run(options, float(share), int(times))))
        return
    runs = []
    for times in options.widths:
        for share in options.shares:
            only = {"only": f"{share} {times}", "report_file": None, "picture": None}
            runs.append(measure_alone(__file__, options, **only))
            print({name: round(value, 4) for name, value in runs[-1].items()}, flush=True)
    table = [["customers", "parameters", "seconds", "validation loss", "mean NDCG@10"]]
    for point in runs:
        cells = (f"{point['customers']:,}", f"{point['parameters']:,}", f"{point['seconds']:.0f}")
        table.append([*cells, f"{point['loss']:.3f}", f"{point['ndcg']:.4f}"])
    values = fitted(runs)
    names = ("E", "A", "a", "B", "b")
    fit = ", ".join(f"{name} = {value:.3g}" for name, value in zip(names, values, strict=True))
    least = {name: min(point[name] for point in runs) for name in ("parameters", "customers")}
    errors = [point["loss"] - curve([point[name] / least[name] for name in least], *values) for point in runs]
    caption = (
        f"{options.recipe} with a window of {options.max_events} events, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}. The curve, sizes relative to the smallest: {fit}; it "
        f"misses the losses by {np.abs(errors).max():.3f} at most."
    )
    costs = cost_model(
        options, *(float(np.median([point[name] for point in runs])) for name in ("of_floor", "collated"))
    )
    print(f"\n{caption}\n\n{text_table(table)}\n\n{text_table(costs)}")
    if options.report_file:
        caption = "\n".join(markdown_table(costs)) + "\n\n" + caption
        write_report(table, caption, Path(options.report_file))
    if options.picture:
        plot(runs, values, Path(options.picture))


if __name__ == "__main__":
    main()
