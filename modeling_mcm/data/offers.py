# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Offers: which actions were offered to which customers, when, and what their outcomes were.

An offer is an action (a coupon, an incentive) that a customer can take from a time on. Offers that are made together
are a group and are ranked together. An action is an event that has not happened yet, so it has the features of an
event. An action that covers several values (any of twenty products) has several rows, each with its share.

    offers.parquet    customer_id, time, action_id, outcomes (0, 1, or null where not observed); group_id, split
    actions.parquet   action_id, columns of the event log; time (from which on the row holds), weight

`docs/fine_tuning.md` explains each column with a worked example.

Shapes: G groups, N offers, V versions of actions, R rows of actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from modeling_mcm.action_inputs_mcm import EncodedActions
from modeling_mcm.data.tables import read_table_file
from modeling_mcm.events_mcm import as_column, check_columns, naming, read_times, read_zone, to_ids

OFFERS_FILE, ACTIONS_FILE = "offers.parquet", "actions.parquet"
TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
OUTCOMES = ("click", "conversion")


@dataclass(frozen=True)
class Offers:
    """Offers in groups, in the order of `group_id` and `action_id`, and what is known of the actions."""

    group_ids: NDArray  # (G,): id of each group
    customer_ids: NDArray  # (G,): id of the group's customer
    splits: NDArray  # (G,): "train", "validation" or "test"
    times: NDArray[np.int64]  # (G,): time from which on the group's offers can be taken, in seconds since 1970-01-01
    # (G + 1,): where groups begin: group g has the offers `offsets[g]` to `offsets[g + 1] - 1`
    offsets: NDArray[np.int64]
    actions: NDArray[np.int64]  # (N,): index of each offer's action among the V versions
    outcomes: dict[str, NDArray[np.float32]]  # each (N,): by outcome 1.0, 0.0, or NaN where it was not observed
    action_ids: NDArray  # (V,): id of each version's action. The versions of one action have the same id
    # (V + 1,): where versions begin: version v has the rows `row_offsets[v]` to `row_offsets[v + 1] - 1`
    row_offsets: NDArray[np.int64]
    weights: NDArray[np.float64]  # (R,): share of each row; the shares of a version sum to 1
    columns: dict[str, list[Any]]  # length R: by column of the event log the raw values

    def groups(self, splits: Sequence[str]) -> NDArray[np.int64]:
        """Finds the groups of some splits."""
        return np.flatnonzero(np.isin(self.splits, list(splits)))

    def indices(self, groups: ArrayLike) -> NDArray[np.int64]:
        """Finds the offers of some groups."""
        parts = [np.arange(self.offsets[g], self.offsets[g + 1]) for g in np.asarray(groups)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def check_trainable(self, groups: ArrayLike, outcomes: Sequence[str]) -> None:
        """Checks that each outcome is 0 in some offers and 1 in others, so that there is something to learn. Raises
        `ValueError` if the offers lack an outcome, or all observed values of an outcome are the same."""
        indices = self.indices(groups)
        for name in outcomes:
            if name not in self.outcomes:
                raise ValueError(f"No outcome {name!r} in the offers; they have {', '.join(self.outcomes)}.")
            observed = self.outcomes[name][indices]
            observed = observed[~np.isnan(observed)]
            if not 0 < observed.sum() < len(observed):
                raise ValueError(
                    f"Outcome {name!r} is {observed[:1].tolist() or 'nowhere observed'} in all {len(observed)} "
                    "observed training offers; a model needs offers with 0 and with 1. Check the column, or leave it "
                    "out."
                )

    def check_times(self, training_end: int, learned: ArrayLike, evaluated: ArrayLike) -> None:
        """Checks that training sees nothing of the time in which the model is evaluated. Raises `ValueError` if the
        pre-training data, or offers of the training, reach into the time of the evaluated offers."""
        learned, starts = np.asarray(learned, np.int64), self.times[np.asarray(evaluated, np.int64)]
        if not len(starts):
            return
        first = int(np.min(starts))
        if first < training_end:
            raise ValueError(
                f"Offers to evaluate on start on {_day(first)}, but the encoder was pre-trained on events before "
                f"{_day(training_end)}: it has seen what came of them. Prepare the data with an earlier validation "
                "cutoff (--cutoffs) and pre-train again, or evaluate on later offers."
            )
        late = learned[self.times[learned] >= first]
        if len(late):
            raise ValueError(
                f"Group {self.group_ids[late[0]]!r} is trained on and starts on {_day(self.times[late[0]])}, when "
                f"offers to evaluate on run already (since {_day(first)}); train on offers made before all of those."
            )


def _day(seconds: int) -> str:
    return str(np.datetime64(int(seconds), "s").astype("datetime64[D]"))


def load_offers(folder: str | Path, outcomes: Sequence[str] | None = None, time_zone: str = "UTC") -> Offers:
    """Reads and checks `offers.parquet` and `actions.parquet` in a folder, with the other arguments and errors of
    [`make_offers`]. Raises `FileNotFoundError` if a file is missing."""
    tables = {}
    for name in (OFFERS_FILE, ACTIONS_FILE):
        path = Path(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {name}; give the folder with {OFFERS_FILE} and {ACTIONS_FILE}.")
        tables[name] = pd.read_parquet(path, dtype_backend="numpy_nullable")
    return make_offers(tables[OFFERS_FILE], tables[ACTIONS_FILE], outcomes, time_zone)


def load_actions(
    path: str | Path, extractor: Any, config: Any, as_of: int | None = None
) -> tuple[EncodedActions, NDArray[np.int64]]:
    """Reads a table of actions, Parquet or CSV with the columns of actions.parquet, to offer each of them to anybody.

    Returns:
        `tuple`: The actions, encoded for a feature extractor and the config of its model; and, in the order of
        `action_id`, the index of the version of each that holds at `as_of`, in seconds since 1970-01-01 (default: the
        latest version).

    Raises:
        ValueError: If the table can't be read, an action has no value in any feature, or no row that holds then.
    """
    with naming(str(path)):
        table = read_table_file(path)
        check_columns(table.columns, ("action_id",), "The actions have")
        versions, weights, columns = _versions(table, extractor.time_zone)
        names = versions["action_id"].drop_duplicates().to_numpy(object)
        time = np.iinfo(np.int64).max if as_of is None else as_of
        offered = _at_that_time(pd.DataFrame({"action_id": names, "time": time}), versions)
        offsets = np.append(versions["start"].to_numpy(np.int64), len(weights))
        actions = EncodedActions(extractor, config, versions["action_id"].to_numpy(object), columns, offsets, weights)
        actions.check(offered)
    return actions, offered


def make_offers(
    offers: pd.DataFrame, actions: pd.DataFrame, outcomes: Sequence[str] | None = None, time_zone: str = "UTC"
) -> Offers:
    """Checks both tables, and joins each offer with its action as it was at the time of the offer.

    Args:
        offers (`pandas.DataFrame`): One row per offer. Columns are `customer_id`, `time` and `action_id`; the
            outcomes; `group_id`, by default the offers of one customer and day; and `split`, by default "train".
        actions (`pandas.DataFrame`): One row per action, version and combination of feature values. Columns are
            `action_id`; columns of the event log; `time`, from which on the version holds, by default always; and
            `weight`, by default the same for all rows of a version.
        outcomes (`Sequence[str]`, *optional*): Names of the columns of outcomes. Default: "click" and "conversion",
            each if one of its values is known.
        time_zone (`str`): Time zone to which times with a zone are converted, as in the event schema.

    Raises:
        ValueError: If a column is missing or holds a wrong value, a group has several customers, times or splits or
            offers an action twice, or an action has no row at the time of an offer. The message names the column, the
            group, the action and what to do.
    """
    check_columns(offers.columns, ("customer_id", "time", "action_id"), "The offers have")
    check_columns(actions.columns, ("action_id",), "The actions have")
    if outcomes is None:
        outcomes = [name for name in OUTCOMES if name in offers.columns and offers[name].notna().any()]
    check_columns(offers.columns, outcomes, "The offers have")
    if not len(offers) or not len(outcomes):
        raise ValueError(f"Found {len(offers)} offers with outcomes {list(outcomes)}; expected at least one of each.")

    frame = pd.DataFrame({name: _texts(offers[name], name) for name in ("customer_id", "action_id")})
    frame["time"] = _seconds(offers["time"], time_zone)
    group_ids = (
        offers["group_id"] if "group_id" in offers.columns else frame["customer_id"] + " " + frame["time"].map(_day)
    )
    frame["group_id"] = _texts(group_ids, "group_id")
    frame["split"] = _texts(offers["split"], "split") if "split" in offers.columns else TRAIN
    if wrong := sorted(set(frame["split"]) - set(SPLITS)):
        raise ValueError(f"Column 'split' holds {wrong}; expected {', '.join(SPLITS)}.")
    for name in outcomes:
        frame[name] = _zero_or_one(offers[name], name)
    frame = frame.sort_values(["group_id", "action_id"], kind="stable", ignore_index=True)
    starts = np.flatnonzero(np.append(True, frame["group_id"].to_numpy()[1:] != frame["group_id"].to_numpy()[:-1]))
    offsets = np.append(starts, len(frame))
    for name in ("customer_id", "time", "split"):
        first = np.repeat(frame[name].to_numpy()[starts], np.diff(offsets))
        if (differs := frame[name].to_numpy() != first).any():
            group = frame["group_id"][int(differs.argmax())]
            raise ValueError(f"Group {group!r} has several values of {name!r}; offers of a group are made together.")
    if (twice := frame.duplicated(["group_id", "action_id"]).to_numpy()).any():
        group, action = frame[["group_id", "action_id"]].iloc[int(twice.argmax())]
        raise ValueError(f"Group {group!r} offers action {action!r} twice; keep one row.")

    versions, weights, columns = _versions(actions, time_zone)
    heads = frame.iloc[starts]
    return Offers(
        group_ids=heads["group_id"].to_numpy(object),
        customer_ids=heads["customer_id"].to_numpy(object),
        splits=heads["split"].to_numpy(object),
        times=heads["time"].to_numpy(np.int64),
        offsets=offsets,
        actions=_at_that_time(frame, versions),
        outcomes={name: frame[name].to_numpy(np.float32) for name in outcomes},
        action_ids=versions["action_id"].to_numpy(object),
        row_offsets=np.append(versions["start"].to_numpy(np.int64), len(weights)),
        weights=weights,
        columns=columns,
    )


def _texts(column: pd.Series, name: str) -> NDArray:
    with naming(f"column {name!r}"):
        return np.array(to_ids(column), object)


def _seconds(column: pd.Series, time_zone: str) -> NDArray[np.int64]:
    with naming("column 'time'"):
        return read_times(as_column(column), read_zone(time_zone))


def _zero_or_one(column: pd.Series, name: str) -> NDArray[np.float32]:
    observed = column.dropna()
    wrong = observed[~observed.isin([0, 1])]
    if len(wrong):
        raise ValueError(f"Outcome {name!r} is {wrong.iloc[0]} in row {wrong.index[0]}; expected 0, 1 or null.")
    return column.astype("Float32").to_numpy(np.float32, na_value=np.nan)


def _versions(actions: pd.DataFrame, time_zone: str) -> tuple[pd.DataFrame, NDArray[np.float64], dict[str, list[Any]]]:
    """Reads the actions as versions."""
    names = [name for name in actions.columns if name not in ("action_id", "time", "weight")]
    rows = actions[names].copy()
    rows["action_id"] = _texts(actions["action_id"], "action_id")
    always = np.iinfo(np.int64).min
    rows["time"] = _seconds(actions["time"], time_zone) if "time" in actions.columns else always
    rows["weight"] = actions["weight"].to_numpy(np.float64) if "weight" in actions.columns else 1.0
    if not (rows["weight"] > 0).all():
        where = rows["action_id"][int((~(rows["weight"] > 0)).to_numpy().argmax())]
        raise ValueError(f"Action {where!r} has a weight that is not positive; give each row its share, above 0.")
    rows = rows.sort_values(["action_id", "time"], kind="stable", ignore_index=True)
    keys = ["action_id", "time"]
    versions = rows[~rows.duplicated(keys)][keys].rename_axis("start").reset_index()
    weights = (rows["weight"] / rows.groupby(keys)["weight"].transform("sum")).to_numpy()
    return versions, weights, {name: [None if pd.isna(v) else v for v in rows[name]] for name in names}


def _at_that_time(offers: pd.DataFrame, versions: pd.DataFrame) -> NDArray[np.int64]:
    """Index of the version that holds at each offer's time: the latest version that does not begin later."""
    pairs = offers[["action_id", "time"]].drop_duplicates().sort_values("time")
    matches = pd.merge_asof(
        pairs, versions.rename_axis("version").reset_index().sort_values("time"), on="time", by="action_id"
    )
    missing = matches[matches["version"].isna()]
    if len(missing):
        action, time = missing[["action_id", "time"]].iloc[0]
        raise ValueError(
            f"Action {action!r}, offered on {_day(time)}, has no row in the actions that holds then; add one with its "
            "features."
        )
    return offers.merge(matches, on=["action_id", "time"], how="left")["version"].to_numpy(np.int64)
