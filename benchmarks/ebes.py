#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM on the ten public data sets of EBES (arXiv 2410.03399), which has the figures of nine other models.

    python benchmarks/ebes.py --names age taobao     downloads them from the Hub, and prints EBES' metric of each
    python benchmarks/ebes.py --data FOLDER          reads a copy of that repository

A file has a row for each sequence: its id, labels, and for each time and feature the list of the sequence's values.
MCM is fitted on the training sequences, fine-tuned to their label, and asked right after the last event of test ones.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from huggingface_hub import snapshot_download
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from modeling_mcm import CustomerModel

REPOSITORY = "On-Point-Rnd/ebes"
START = pd.Timestamp("2000-01-01")  # of clocks that only count


class Sequences(NamedTuple):
    """A data set of EBES: where it lies and what its columns mean."""

    folder: str
    customer: str
    time: str
    labels: tuple[str, ...]
    metric: str
    unit: str | None = None  # of a clock that counts; `None` where `time` holds times


BANK = ("bcard_target", "cred_target", "zp_target", "acquiring_target")
DATA_SETS = {
    "age": Sequences("age/preprocessed_all", "client_id", "trans_date", ("bins",), "accuracy", "D"),
    "arabic": Sequences("arabic/preprocessed", "seq_id", "time", ("target",), "accuracy", "s"),
    "bpi_17": Sequences("bpi_17/preprocessed", "OfferID", "time_timestamp", ("Accepted",), "auc"),
    "electric_devices": Sequences("electric_devices/preprocessed", "index", "time", ("class_vals",), "accuracy", "s"),
    "mbd": Sequences("mbd/preprocessed", "client_id", "event_time", BANK, "auc"),
    "mimic3": Sequences("mimic-3/preprocessed", "hadm_id", "hours_since_adm", ("hospital_expire_flag",), "auc", "h"),
    "pendulum_cls": Sequences("pendulum_cls/preprocessed", "id", "time", ("target",), "accuracy", "s"),
    "physionet2012": Sequences("physionet2012/preprocessed", "RecordID", "Time", ("In-hospital_death",), "auc", "h"),
    "taobao": Sequences("taobao/preprocessed", "user_id", "time", ("payment_next_7d",), "auc"),
    "x5": Sequences("x5-retail/preprocessed", "client_id", "transaction_datetime", ("age_clf",), "accuracy"),
}


@dataclass
class EbesOptions:
    """What is measured, and where the data sets are."""

    names: list[str] = HfArg(default_factory=lambda: [*DATA_SETS], help=f"Data sets, any of {', '.join(DATA_SETS)}.")
    data: str | None = HfArg(default=None, help="Copy of EBES' repository of data sets; by default that of the Hub.")
    seed: int = HfArg(default=0, help="Seed of the training.")

    def __post_init__(self) -> None:
        if unknown := [name for name in self.names if name not in DATA_SETS]:
            raise ValueError(f"No data sets {unknown}; there are {', '.join(DATA_SETS)}.")


def read_sequences(folder: Path, layout: Sequences) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads a folder of Parquet files: one row an event, and one row a sequence with its labels, which are asked for
    right after its last event."""
    rows = pd.read_parquet(folder)
    left_out = ("_seq_len", f"_last_{layout.time}")
    lists = [name for name in rows if name not in (layout.customer, *layout.labels, *left_out)]
    events = rows[[layout.customer, *lists]].explode(lists, ignore_index=True).infer_objects()
    if layout.unit is not None:
        events[layout.time] = START + pd.to_timedelta(events[layout.time].astype(float), layout.unit)
    last = events.groupby(layout.customer)[layout.time].max() + pd.Timedelta(seconds=1)
    labels = rows[[layout.customer, *layout.labels]].assign(as_of=rows[layout.customer].map(last))
    # Codes of values are numbers there; a number with a fraction is an amount
    codes = [name for name in lists if name != layout.time and pd.api.types.is_integer_dtype(events[name])]
    return events.astype(dict.fromkeys(codes, str)), labels


def measure(folder: Path, layout: Sequences, seed: int) -> float:
    """Fits MCM on the sequences in `train`, and returns the metric of those in `test`, a mean over the labels."""
    (events, labels), (asked, answers) = (read_sequences(folder / part, layout) for part in ("train", "test"))
    model = CustomerModel.fit(events, {"customer": layout.customer, "time": layout.time}, seed=seed)
    values = []
    for label in layout.labels:
        known, wanted = (table[[layout.customer, "as_of", label]].dropna() for table in (labels, answers))
        tuned = model.finetune(known.astype({label: str}), label, validation_share=0, seed=seed)
        test = CustomerModel(tuned.model, tuned.feature_extractor, asked, tuned.reader)
        values.append(test.evaluate(wanted.astype({label: str}), label)[layout.metric]["MCM"])
    return float(np.mean(values))


def main() -> None:
    """Reads the options, and prints a line for each data set."""
    (options,) = HfArgumentParser(EbesOptions, description=__doc__).parse_args_into_dataclasses()
    for name in options.names:
        layout = DATA_SETS[name]
        root = options.data or snapshot_download(
            REPOSITORY, repo_type="dataset", allow_patterns=f"{layout.folder}/*/*.parquet"
        )
        value = measure(Path(root, layout.folder), layout, options.seed)
        print(json.dumps({"data set": name, "metric": layout.metric, "MCM": round(value, 4)}), flush=True)


if __name__ == "__main__":
    main()
