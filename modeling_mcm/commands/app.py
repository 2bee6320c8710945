# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Shows a page of all customers in a browser: what MCM expects of each, what really came, and which visits decided.

    make app                                         after make quickstart; only this machine can open the page
    mcm app --model runs/mine --data data/prepared --events log.csv --profile profile.csv
    mcm app ... --tuned runs/churn runs/offers --actions coupons.csv      the list has their predictions too
    mcm app ... --uplift coupons.csv                 what to send is what changes most, as `mcm uplift` says

The first start scores all customers at the test cutoff, while the list fills, and stores the scores in --data. The
page loads nothing from other machines.
"""

import signal
from dataclasses import dataclass
from pathlib import Path

from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.option import REQUIRED, option
from modeling_mcm.page.app import build_page, launch_page
from modeling_mcm.page.histories import Histories
from modeling_mcm.training.checkpoints import find_head, open_checkpoint

from .arguments import command


@dataclass
class AppOptions:
    """Which checkpoint and whose customers the page shows."""

    model: str = option("Checkpoint folder, or name on the Hub.", REQUIRED)
    data: str = option("Folder of a prepared data set, whose customers are shown.", REQUIRED)
    events: str = option(
        "Raw log that it was prepared from: a .parquet, .csv or .tsv file, or a folder of them.", REQUIRED
    )
    profile: str | None = option("Profile table of the raw log, with one row a customer.")
    tuned: list[str] = option("Checkpoints of `mcm finetune`, whose predictions of all customers the list shows.", [])
    actions: str | None = option("Table of actions, .parquet or .csv, that a checkpoint for offers scores.")
    uplift: list[str] = option("Files of `mcm uplift --output`, named like their offers: what to send.", [])
    host: str = option("Network address to listen on.", "127.0.0.1")
    port: int | None = option("Port to listen on. By default a free one from 7860.")


def show(options: AppOptions) -> None:
    """Shows the page until the process gets a signal to stop."""
    model, extractor = open_checkpoint(MCMForMultiTaskRecommendation, options.model)
    tuned = {Path(folder).name: open_checkpoint(find_head(folder), folder) for folder in options.tuned}
    if len(tuned) < len(options.tuned):
        raise ValueError(f"Two folders of --tuned have one name: {', '.join(options.tuned)}. Rename one of them.")
    histories = Histories(
        model, extractor, options.data, options.events, options.profile, tuned, options.actions, options.uplift
    )
    blocks = build_page(histories)
    _, address, _ = launch_page(blocks, server_name=options.host, server_port=options.port)
    print(f"The page is at {address}", flush=True)
    blocks.block_thread()


@command(__doc__, AppOptions)
def main(options: AppOptions) -> None:
    """Shows the page."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was exported is removed at the end
    show(options)
