# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Predictions over time: how far they moved since another run, and whether they fit what happened afterwards."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_mcm.data import PreparedData
from modeling_mcm.extras import needs
from modeling_mcm.scoring import SCORES
from modeling_mcm.scoring.folder import IDENTITY_FILE, UNTIL

EDGES = np.array([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])


def _tasks_of(folder: str) -> list[str]:
    """Names the tasks that a folder of predictions ranks; raises `ValueError` if it holds none with scores."""
    files = sorted(Path(folder).glob("*.parquet"))
    names = pq.read_schema(files[0]).names if files else []
    if not (tasks := [name for name in names if name + SCORES in names]):
        raise ValueError(f"{folder} holds no predictions with scores: give a folder of mcm predict with --top_k > 0.")
    return tasks


def check_predictions(folder: str, since: str | None = None) -> None:
    """Checks that predictions are complete and hold finite numbers, and know nothing of what they are compared with.

    Args:
        folder (`str`): folder that `mcm predict` wrote. Where the folder does not say what it holds, only its files
            are checked.
        since (`str`, *optional*): moment from which on events are compared with the predictions, as in `--since`.

    Raises:
        ValueError: if a file is missing, a score is missing or not finite, the number of customers is wrong, or the
            predictions know events of `since` or later.
    """
    files = sorted(Path(folder).glob("*.parquet"))
    numbered = [re.fullmatch(r"(.+)-(\d+)-of-(\d+)\.parquet", path.name) for path in files]
    if all(numbered) and (absent := int(numbered[0][3]) - len(files) if numbered else 0):  # type: ignore[index]
        raise ValueError(f"{absent} of the files of {folder} are missing: run mcm predict again, which adds them.")
    rows = 0
    for path in files:
        for name in [task + SCORES for task in _tasks_of(folder)]:
            column = pq.read_table(path, columns=[name])[name]
            is_whole = not column.null_count and np.isfinite(pc.list_flatten(column).to_numpy()).all()
            if not is_whole:
                raise ValueError(
                    f"{path} has NaN, infinite or missing numbers in {name!r}: no figure would mean anything. Score "
                    "again with a checkpoint whose weights are whole."
                )
        rows += len(column)
    if not (path := Path(folder, IDENTITY_FILE)).is_file():
        return
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        expected, until = facts["customers"], facts.get(UNTIL)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} can't be read ({error}): score again into another folder.") from error
    if rows != expected:
        raise ValueError(
            f"{folder} holds {rows:,} customers and says it has {expected:,}: run mcm predict again, or score into "
            "another folder."
        )
    if since is not None and until is not None and _seconds_of(since) <= until:
        known = datetime.fromtimestamp(until, UTC).replace(tzinfo=None)
        raise ValueError(
            f"--since is {since}, and the predictions of {folder} know events until {known}: what they are compared "
            "with must be later. Give the moment at which they were made."
        )


def _seconds_of(moment: str) -> int:
    """The moment of `--since`, such as "2024-05-06", in seconds since 1970; raises `ValueError` if it is none."""
    with needs("data"):
        from modeling_mcm.preparation.times import epoch_seconds
    try:
        return epoch_seconds(datetime.fromisoformat(moment))
    except ValueError:
        raise ValueError(f"--since is {moment!r}; give a moment such as 2024-05-06.") from None


def score_drift(folder: str, before: str) -> dict[str, Any]:
    """Computes how far the predictions moved for the customers that are in two folders.

    Args:
        folder (`str`): folder of the new predictions.
        before (`str`): folder of the earlier predictions.

    Returns:
        `dict`: `customers` (number in both folders), `new` and `gone` (numbers in one folder alone), and for each task
        that both rank: `moved` (share of customers whose first label changed), `first_score` and `first_score_before`
        (mean score of the first label), and `distance` (half the sum of the absolute differences of the shares of
        first labels, from 0 to 1).

    Raises:
        ValueError: if the folders have no customer in common.
    """
    with needs("data"):
        import duckdb  # noqa: F401  by the name that Ibis connects to
        import ibis
    tasks = [task for task in _tasks_of(folder) if task in _tasks_of(before)]
    connection = ibis.duckdb.connect()
    new, old = (connection.read_parquet(f"{path}/*.parquet") for path in (folder, before))
    both = new.inner_join(old, "customer_id", rname="{name}_before")
    number = both.count().to_pyarrow().as_py()
    if not number:
        raise ValueError(f"{folder} and {before} have no customer in common.")
    result: dict[str, Any] = {"customers": number, "new": new.count().to_pyarrow().as_py() - number}
    result["gone"] = old.count().to_pyarrow().as_py() - number
    for task in tasks:
        first, was = both[task][0], both[f"{task}_before"][0]
        means = both.aggregate(
            moved=(first != was).mean(),
            first_score=both[task + SCORES][0].mean(),
            first_score_before=both[f"{task}{SCORES}_before"][0].mean(),
        )
        counts = [both.group_by(label=label).agg(n=lambda t: t.count()) for label in (first, was)]
        joined = counts[0].outer_join(counts[1], "label", rname="{name}_before")
        apart = (joined.n.fill_null(0) - joined.n_before.fill_null(0)).abs().sum()
        distance = joined.aggregate(apart=apart).to_pyarrow()["apart"][0].as_py() / (2 * number)
        result[task] = means.to_pyarrow().to_pylist()[0] | {"distance": distance}
    return result


def _what_happened(data: str, since: int, tasks: list[str]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yields customer, task and by label its share of the targets of the first visit with a target.

    Only events from the moment `since` on count, in seconds since 1970-01-01.
    """
    prepared = PreparedData(data)
    columns = ["customer_id", "times", "visits", *(f"task_{task}" for task in tasks)]
    for shard in prepared.manifest.shards:
        for row in pq.read_table(prepared.folder / shard["file"], columns=columns).to_pylist():
            if max(row["times"]) < since:
                continue
            later, visits = np.array(row["times"]) >= since, np.array(row["visits"])
            for task in tasks:
                labels = np.array(row[f"task_{task}"])
                targets = later & (labels > 0)
                if targets.any():
                    labels = labels[targets & (visits == visits[targets.argmax()])]
                    names, counts = np.unique(prepared.extractor.decode_labels(task, labels), return_counts=True)
                    shares = zip(names.tolist(), (counts / counts.sum()).tolist(), strict=True)
                    yield row["customer_id"], task, dict(shares)


def calibration(folder: str, data: str, since: str) -> dict[str, list[dict[str, float]]]:
    """Compares predicted probabilities with what happened, by task and range of the probability.

    Args:
        folder (`str`): folder of predictions.
        data (`str`): folder of a prepared data set that has the later events.
        since (`str`): moment from which on events count, such as "2024-05-06".

    Returns:
        `dict[str, list[dict]]`: by task one dict per range that occurs: `from` and `to` (limits of the range),
        `labels` (number of predicted labels in it), `predicted` (their mean probability), and `happened` (their mean
        share of the targets of the customer's next visit with a target).

    Raises:
        ValueError: if the data set has no target event from `since` on.
    """
    tasks = _tasks_of(folder)
    happened: dict[str, dict[str, dict[str, float]]] = {task: {} for task in tasks}
    for customer, task, shares in _what_happened(data, _seconds_of(since), tasks):
        happened[task][customer] = shares
    if not any(happened.values()):
        raise ValueError(f"{data} holds no target event from {since} on: update it first (mcm update).")
    sums = {task: np.zeros((3, len(EDGES) - 1)) for task in tasks}
    for path in sorted(Path(folder).glob("*.parquet")):
        rows = pq.read_table(path, columns=["customer_id", *tasks, *(task + SCORES for task in tasks)]).to_pylist()
        for row in rows:
            for task in tasks:
                if shares := happened[task].get(row["customer_id"], {}):
                    scores = np.array(row[task + SCORES])
                    outcomes = np.array([shares.get(label, 0.0) for label in row[task]])
                    bins = np.searchsorted(EDGES[1:-1], scores, side="right")
                    for task_sums, values in zip(sums[task], (np.ones_like(scores), scores, outcomes), strict=True):
                        np.add.at(task_sums, bins, values)
    return {
        task: [
            {"from": low, "to": high, "labels": int(n), "predicted": p / n, "happened": h / n}
            for low, high, n, p, h in zip(EDGES.tolist(), EDGES[1:].tolist(), *task_sums.tolist(), strict=False)
            if n
        ]
        for task, task_sums in sums.items()
    }
