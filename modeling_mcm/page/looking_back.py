# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What was said at an earlier time beside what came since: who comes less than forecast, errors of totals, and how
often labels come that are asked for by name.

Shapes: a table of customers has a row each; one of their likely labels has a row for each of these.
"""

import numpy as np
import pandas as pd

from modeling_mcm.configuration_mcm import FIRST_VALUE_ID
from modeling_mcm.data.cases import find_targets
from modeling_mcm.events_mcm import SECONDS_PER_DAY
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.predictor_mcm import CHANCES
from modeling_mcm.scoring.scorer import BatchScorer

MONTH = 30  # days: a label is bought again after a month or more
SINCE, GAP, CAME = "_since", "_gap", "_came"  # end columns with a list beside that of the likely labels
PAST = "past_"  # begins columns with the likely labels of the earlier time
CASES = 30  # by which the share of a label is drawn to that of all: chosen on months before the cutoff


class Visits:
    """The visits of some customers that have a target event.

    Attributes:
        table (`pd.DataFrame`): a row for each, by customer and time: `row`, `visit`, `time` of its first target event,
            `visits`, which is 1, and the sums of amounts.
        labels (`pd.DataFrame`): each label of a task in each visit: `row`, `label` as an id, `visit` and `time`.
    """

    def __init__(self, rows: Customers, extractor: MCMFeatureExtractor, task: str, sums: list[str]):
        columns = {"row": rows.row, "visit": rows.column("visits"), "time": rows.column("times")}
        columns |= {"label": rows.column(f"task_{task}")} | {name: rows.column(f"value_{name}") for name in sums}
        events, keys = pd.DataFrame(columns), ["row", "visit"]
        targets = events[find_targets(rows, extractor.tasks, extractor.token_type_feature)]
        first = targets.groupby(keys)["time"].min()
        self.table = events.groupby(keys)[sums].sum().reindex(first.index).assign(time=first, visits=1).reset_index()
        named = targets.loc[targets["label"] >= FIRST_VALUE_ID, [*keys, "label"]].drop_duplicates()
        self.labels = named.join(first, on=keys)

    def find_rhythms(self, likely: pd.Series, time: float) -> pd.DataFrame:
        """Days since each customer last had a likely label, and usual days from one to the next; NaN where there are
        too few. `likely` has ids of labels, and as its index the customers' rows."""
        known = self.labels[self.labels["time"] < time]
        days = known.assign(day=known["time"] // SECONDS_PER_DAY).drop_duplicates(["row", "label", "day"])
        stated = days.groupby(["row", "label"]).agg(
            first=("day", "min"), last=("day", "max"), days=("day", "size"), time=("time", "max")
        )
        found = stated.reindex(pd.MultiIndex.from_arrays([likely.index, likely]))
        gap = (found["last"] - found["first"]) / (found["days"] - 1).where(found["days"] > 1)
        return pd.DataFrame({SINCE: (time - found["time"]) / SECONDS_PER_DAY, GAP: gap}).set_axis(likely.index)

    def find_came(self, likely: pd.Series, time: float) -> pd.Series:
        """Whether each likely label came in the customer's next visit from a time on; NaN without one."""
        following = self.table[self.table["time"] >= time].groupby("row")["visit"].first()
        bought = self.labels[self.labels["visit"] == self.labels["row"].map(following)]
        pairs = pd.MultiIndex.from_arrays([likely.index, likely])
        came = pd.Series(pairs.isin(pd.MultiIndex.from_frame(bought[["row", "label"]])), likely.index, float)
        return came.where(likely.index.isin(following.index))


def list_rhythms(
    table: pd.DataFrame, visits: Visits, task: str, ids: dict[str, int], time: float, came: bool = False
) -> pd.DataFrame:
    """Lists of `SINCE` and `GAP` beside the likely labels of a table, and of `CAME` from the time on, if asked for."""
    likely = table[task].explode().map(ids)
    found = visits.find_rhythms(likely, time)
    if came:
        found[CAME] = visits.find_came(likely, time)
    return found.groupby(level=0).agg(list).add_prefix(task)


def look_back(
    rows: Customers, visits: Visits, scorer: BatchScorer, days: float, sums: list[str], ids: dict[str, int]
) -> pd.DataFrame:
    """What was forecast `days` before the cutoff, as `NAME_7d_ago`, and what came in these days, as `visits_in_7d`;
    NaN for customers who were not there yet. If the scorer ranks a task, lists of its labels, too (`PAST`)."""
    start, (task, *_) = scorer.job.as_of or 0, (*scorer.job.tasks, "")
    layout = scorer.extractor.layout
    before = rows.before([start] * len(rows), layout).known(layout.sizes)
    told, is_known = scorer.score(before).to_pandas(), before.lengths > 0
    names = [name for name in scorer.job.forecasts if "_median" not in name and "_high" not in name]
    since = visits.table[visits.table["time"] >= start].groupby("row")[["visits", *sums]].sum()
    came = since.reindex(range(len(rows)), fill_value=0).add_suffix(f"_in_{days:g}d")
    table = told[names].add_suffix(f"_{days:g}d_ago").join(came.astype(float)).loc[is_known].reindex(told.index)
    if task:
        lists = told[[task, *(name for name in [task + CHANCES] if name in told)]]
        table = table.join(lists.join(list_rhythms(told, visits, task, ids, start, True)).add_prefix(PAST))
    return table


def explode(table: pd.DataFrame, task: str, ends: tuple[str, ...]) -> pd.DataFrame:
    """The lists of a table, a row for each likely label: `label`, and the columns with these ends."""
    columns = [task, *(task + end for end in ends)]
    likely = table[columns].set_axis(["label", *ends], axis=1).explode(["label", *ends])
    return likely.astype(dict.fromkeys(ends, float))


def say_state(since: pd.Series) -> pd.Series:
    """Whether a customer never had a label, had it within a month, or before."""
    return pd.cut(since, [-np.inf, MONTH, np.inf], labels=["within", "before"]).astype(object).fillna("never")


def calibrate(likely: pd.DataFrame, past: pd.DataFrame) -> pd.Series:
    """The chances of likely labels as often as they came a month ago, of those who came, in the same state
    ([`say_state`]), and for the same label. Whose chance is asked for by name was chosen by what is there: chances are
    right on average over all labels, not of each one.

    Args:
        likely, past (`pd.DataFrame`): `label`, `CHANCES` and `SINCE`, now and a month ago; then with `CAME`.
    """
    past = past[past[CAME].notna()]
    state = say_state(past[SINCE])
    sums = past[[CHANCES, CAME]].groupby(state).sum() + 1
    of_state = sums[CAME] / sums[CHANCES]
    said = past[CHANCES] * state.map(of_state)
    sums = pd.DataFrame({"label": past["label"], "said": said, "came": past[CAME]}).groupby("label").sum() + CASES
    factors = say_state(likely[SINCE]).map(of_state).fillna(1) * likely["label"].map(
        sums["came"] / sums["said"]
    ).fillna(1)
    return (likely[CHANCES] * factors).clip(upper=0.99)
