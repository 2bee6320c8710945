# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Offers: which actions were offered to which customers, when, and what their outcomes were.

An offer is an action (a coupon, an incentive) that a customer can take from a time on. Offers that are made together
are a group and are ranked together. An action is an event that has not happened yet, so it has the features of an
event. An action that covers several values (any of twenty products) has several rows.

    offers.parquet    customer_id, time, action_id, outcomes (0, 1, or null where not observed); group_id, split
    actions.parquet   action_id, columns of the event log; time (from which on the row holds)

`docs/fine_tuning.md` explains each column with a worked example.

Shapes: G groups, N offers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from transformers.utils import logging

from modeling_mcm.action_inputs_mcm import NOT_OFFERED, EncodedActions, RawActions, read_actions, write_day
from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.events_mcm import (
    IntArray,
    check_columns,
    naming,
    number_groups,
    pad_groups,
    read_times,
    to_ids,
)
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor

from .cases import check_reached, load_columns
from .collator import PreparedRows, batches_by_length
from .tables import read_table_file

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
OUTCOMES = ("click", "conversion")


@dataclass(frozen=True)
class Offers:
    """Offers in groups, and what is known of the actions.

    Attributes:
        table (`pd.DataFrame`): An offer a row, in the order of `group_id` and `action_id`, numbered from 0. Columns
            are these two; `customer_id`; `time`, from which on the offer can be taken, in seconds since 1970-01-01;
            `split`, one of `SPLITS`; `version` of the action; and the outcomes as 1.0, 0.0, or NaN where one was not
            observed.
        outcomes (`list[str]`): Names of the outcomes.
        actions ([`RawActions`]): Versions of actions.
    """

    table: pd.DataFrame
    outcomes: list[str]
    actions: RawActions

    def of(self, splits: Sequence[str]) -> "Offers":
        """Selects the offers of some splits."""
        return replace(self, table=self.table[self.table["split"].isin(splits)].reset_index(drop=True))

    @property
    def groups(self) -> pd.DataFrame:
        """The first offer of each group; the index has its number."""
        return self.table.drop_duplicates("group_id")

    @property
    def offsets(self) -> IntArray:
        """Where groups begin, and the last one ends, `(G + 1,)`."""
        return np.append(self.groups.index, len(self.table))

    def check_trainable(self) -> None:
        """Checks that each outcome is 0 in some offers and 1 in others, so that there is something to learn. Raises
        `ValueError` if all observed values of an outcome are the same."""
        for name in self.outcomes:
            observed = self.table[name].dropna()
            if observed.nunique() < 2:
                raise ValueError(
                    f"Outcome {name!r} is {observed[:1].tolist() or 'nowhere observed'} in all {len(observed)} "
                    "observed training offers; a model needs offers with 0 and with 1. Check the column, or leave it "
                    "out."
                )

    def check_before(self, evaluated: "Offers") -> None:
        """Checks that training, which reads these offers, sees nothing of the time in which the model is evaluated.
        Raises `ValueError` if one of them is not before all offers to evaluate on."""
        first = evaluated.table["time"].min()  # NaN, of no offers, is not later
        late = self.table[self.table["time"] >= first].to_dict("records")
        if late:
            raise ValueError(
                f"Group {late[0]['group_id']!r} is trained on and starts on {write_day(late[0]['time'])}, when offers "
                f"to evaluate on run already (since {write_day(first)}); train on offers made before all of those."
            )


def check_unseen(evaluated: Offers, training_end: int) -> None:
    """Checks that pre-training, on events before a time in seconds since 1970, saw nothing of what came of offers to
    evaluate on. Raises `ValueError` if one of them was made before."""
    first = evaluated.table["time"].min()
    if first < training_end:  # NaN, of no offers, is not less
        raise ValueError(
            f"Offers to evaluate on start on {write_day(first)}, but the model was pre-trained on events before "
            f"{write_day(training_end)}: it has seen what came of them. Prepare the data with an earlier validation "
            "cutoff (--cutoffs) and pre-train again, or evaluate on later offers."
        )


def load_offers(folder: str | Path, outcomes: Sequence[str] | None = None, time_zone: str = "UTC") -> Offers:
    """Reads and checks `offers.parquet` and `actions.parquet` in a folder, with the other arguments and errors of
    [`make_offers`]. Raises `FileNotFoundError` if a file is missing."""
    offers, actions = (read_table_file(Path(folder) / name) for name in ("offers.parquet", "actions.parquet"))
    return make_offers(offers, actions, outcomes, time_zone)


def load_actions(
    path: str | Path, extractor: MCMFeatureExtractor, config: MCMConfig, as_of: float | None = None
) -> EncodedActions:
    """Reads a table of actions, Parquet or CSV with the columns of actions.parquet, to offer each of them to anybody
    at a time; see [`EncodedActions`]."""
    with naming(str(path)):
        return EncodedActions(extractor, config, read_table_file(path), as_of)


def make_offers(
    offers: pd.DataFrame, actions: pd.DataFrame, outcomes: Sequence[str] | None = None, time_zone: str = "UTC"
) -> Offers:
    """Checks both tables, and joins each offer with its action as it was at the time of the offer.

    Args:
        offers (`pandas.DataFrame`): One row per offer. Columns are `customer_id`, `time` and `action_id`; the
            outcomes; `group_id`, by default the offers of one customer and day; and `split`, by default "train".
        actions (`pandas.DataFrame`): The actions; see [`read_actions`].
        outcomes (`Sequence[str]`, *optional*): Names of the columns of outcomes. Default: "click" and "conversion",
            each if one of its values is known.
        time_zone (`str`): Time zone to which times with a zone are converted, as in the event schema.

    Raises:
        ValueError: If a column is missing or holds a wrong value, a group has several customers, times or splits or
            offers an action twice, or an action has no row at the time of an offer. The message names the column, the
            group, the action and what to do.
    """
    if outcomes is None:
        outcomes = [name for name in OUTCOMES if name in offers.columns and offers[name].notna().any()]
    check_columns(offers.columns, ("customer_id", "time", "action_id", *outcomes), "The offers have")
    if not len(offers) or not len(outcomes):
        raise ValueError(f"Found {len(offers)} offers with outcomes {list(outcomes)}; expected at least one of each.")

    def read_texts(column: Sequence, name: str) -> list[str]:
        with naming(f"column {name!r}"):
            return to_ids(column)

    table = pd.DataFrame({name: read_texts(offers[name], name) for name in ("customer_id", "action_id")})
    with naming("column 'time'"):
        table["time"] = read_times(offers["time"], time_zone)
    usual = table["customer_id"] + " " + table["time"].map(write_day)
    table["group_id"] = read_texts(offers.get("group_id", usual), "group_id")
    table["split"] = read_texts(offers.get("split", [TRAIN] * len(table)), "split")
    if wrong := sorted(set(table["split"]) - set(SPLITS)):
        raise ValueError(f"Column 'split' holds {wrong}; expected {', '.join(SPLITS)}.")
    for name in outcomes:
        observed = offers[name].dropna()
        if len(bad := observed[~observed.isin([0, 1])]):
            raise ValueError(f"Outcome {name!r} is {bad.iloc[0]} in row {bad.index[0]}; expected 0, 1 or null.")
        table[name] = pd.to_numeric(offers[name]).to_numpy(np.float32, na_value=np.nan)
    table = table.sort_values(["group_id", "action_id"], kind="stable", ignore_index=True)
    groups = table.groupby("group_id")
    for name in ("customer_id", "time", "split"):
        if (several := groups[name].nunique() > 1).any():
            raise ValueError(
                f"Group {several.idxmax()!r} has several values of {name!r}; offers of a group are made together."
            )
    if (twice := table.duplicated(["group_id", "action_id"])).any():
        group, action = table.loc[twice.idxmax(), ["group_id", "action_id"]]
        raise ValueError(f"Group {group!r} offers action {action!r} twice; keep one row.")
    raw = read_actions(actions, time_zone)
    table["version"] = raw.find(table["action_id"].to_numpy(object), table["time"].to_numpy())
    return Offers(table, [*dict.fromkeys(outcomes)], raw)


class OfferReader:
    """Reads groups of offers in batches, each with its customer's history **before** the offers were made.

    Raises:
        ValueError: If a customer is not in the prepared data set, a time is more than a day after the last event of
            the log, or where [`EncodedActions`] raises one. A customer without events before the offers is no error:
            the model then reads the profile and the start row alone.
    """

    def __init__(self, rows: datasets.Dataset, offers: Offers, extractor: MCMFeatureExtractor, config: MCMConfig):
        self.offers, groups = offers, offers.groups
        places = pd.Index(rows["customer_id"][:]).get_indexer(groups["customer_id"])
        if missing := sorted({*groups["customer_id"][places < 0]}):
            raise ValueError(
                f"{len(missing)} customers of the offers are not in the prepared data set, such as {missing[0]!r}; "
                "prepare the log with their events, or leave their offers out."
            )
        self.times = groups["time"].to_numpy()
        check_reached(load_columns(rows, ["times"]).column("times"), self.times, "groups of offers")
        self.rows, self.lengths = PreparedRows(rows, places), np.asarray(rows["test_end"])[places]
        self.actions = EncodedActions(extractor, config, offers.actions)

    def read(self, groups: IntArray) -> tuple[IntArray, dict[str, torch.Tensor]]:
        """Reads some groups: the rows of their offers in the table, and the model inputs, in which the offers of a
        group stand in the same order."""
        first = self.offers.offsets
        sizes, times = np.diff(first)[groups], self.times[groups]
        table_rows = number_groups(sizes, first[groups])[1]
        offered = pad_groups(self.offers.table["version"].to_numpy()[table_rows], sizes, NOT_OFFERED)
        histories = self.rows.__getitems__(groups.tolist()).before(times, self.actions.extractor.layout)
        return table_rows, self.actions.batch(histories, offered, times)

    def batches(self, device: torch.device, size: int = 32) -> Iterator[tuple[IntArray, dict[str, torch.Tensor]]]:
        """Reads all groups, those of customers with a similar number of events together, onto a device."""
        for groups in logging.tqdm(batches_by_length(self.lengths, size), desc="Offers", unit="batch"):
            rows, inputs = self.read(groups)
            yield rows, {name: value.to(device) for name, value in inputs.items()}
