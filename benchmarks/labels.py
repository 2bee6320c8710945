# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Labels of customers that are learned from 100, 1,000 or half of the customers, and predicted of the others.

Labels are of the test cutoff: who the customer is, and who leaves: labels.parquet says it, or it is no visit in 30
days after one in the 90 days before. `MCM` is `CustomerModel.finetune`, without encoder. Beside it: `counts` by hand
with a logistic model; the `sparse` counts of all labels (tf-idf) with a logistic model; LightGBM, which reads counts
and components of `probe.py`; and a GRU over the latest events, trained on the label. Penalties are chosen by
cross-validation. A value is the AUC (of classes the mean, each against the rest), the mean of both halves and, of 100
customers, five draws.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightgbm import LGBMClassifier
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch.nn.functional import cross_entropy

from logs import Log, RawLog, read_raw
from methods.mcm import WITHOUT, train
from modeling_mcm import CustomerModel
from modeling_mcm.data import EventSchema, PreparedData
from probe import DAYS, FEWEST, SETTINGS, SMALL_TREES, components, make_counts, metric

LOGS, SIZES, THERE = ("ta_feng", "complete_journey", "bank"), (100, 1000), 90  # days
DRAWN = 500  # customers of a half that are drawn in all, in draws of a size
PREDICTED = 4000  # customers of the other half that are predicted where a half is not learned whole
COUNTS, SPARSE, TREES, RECURRENT, MCM = METHODS = ("counts", "sparse", "LightGBM", "GRU", "MCM")
LATEST = 100  # events that the GRU reads


class Recurrent(torch.nn.Module):
    """A GRU over events `(customers, LATEST, tasks + 1)`: the sum of the vectors of their labels, which are numbered
    from 1 on over all tasks, and the logarithm of the days until the cutoff. A tenth of the customers says when to
    stop. Labels that training never saw are left out."""

    def fit(self, x: NDArray, classes: NDArray) -> "Recurrent":
        torch.manual_seed(0)
        self.vectors = torch.nn.Embedding(int(x[..., :-1].max()) + 1, 32, padding_idx=0)
        self.gru, self.head = torch.nn.GRU(33, 64, batch_first=True), torch.nn.Linear(64, classes.max() + 1)
        few, held_out = train_test_split(np.arange(len(x)), test_size=0.1, random_state=0)
        events, targets = torch.from_numpy(x), torch.from_numpy(classes)
        optimizer, best, since = torch.optim.Adam(self.parameters(), 2e-3, weight_decay=1e-4), np.inf, 0
        while since < 3:
            for batch in torch.from_numpy(few)[torch.randperm(len(few))].split(32):
                optimizer.zero_grad()
                cross_entropy(self(events[batch]), targets[batch]).backward()
                optimizer.step()
            with torch.no_grad():
                loss = cross_entropy(self(events[held_out]), targets[held_out]).item()
            since += 1
            if loss < best:
                best, since, kept = loss, 0, {name: value.clone() for name, value in self.state_dict().items()}
        self.load_state_dict(kept)
        return self

    def forward(self, events: torch.Tensor) -> torch.Tensor:
        """Logits `(customers, classes)`."""
        ids = events[..., :-1].long()
        inputs = self.vectors(torch.where(ids < self.vectors.num_embeddings, ids, 0)).sum(2)
        return self.head(self.gru(torch.cat([inputs, events[..., -1:]], 2))[1][0])

    @torch.no_grad()
    def predict_proba(self, x: NDArray) -> NDArray:
        return torch.cat([self(part).softmax(1) for part in torch.from_numpy(x).split(512)]).numpy()


def read_labels(data: PreparedData, raw: RawLog, customers: pd.Index, cutoff: pd.Timestamp) -> pd.DataFrame:
    """A column for each label, missing where it is not known; the index is the customer."""
    schema, folder = data.schema, data.folder.with_name("raw")
    if (folder / "labels.parquet").is_file():
        return pd.read_parquet(folder / "labels.parquet").set_index(schema.customer).reindex(customers)
    days, visits = (raw.visits["time"] - cutoff) / pd.Timedelta(days=1), raw.visits["customer"]
    leaves = pd.Series(~customers.isin(visits[days.between(0, DAYS)]), customers)
    leaves = leaves.where(customers.isin(visits[days.between(-THERE, 0, inclusive="left")]))
    profile = pd.read_parquet(folder / "profile.parquet").astype({schema.customer: str}).set_index(schema.customer)
    known = profile[SETTINGS[schema.name][1] or [spec.column for spec in schema.profile]]
    return leaves.to_frame("leaves").join(known)


def read_inputs(
    events: pd.DataFrame, schema: EventSchema, counts: pd.DataFrame, cutoff: pd.Timestamp
) -> dict[str, Any]:
    """What the other methods read of customers, a row each, as `counts` has them."""
    tasks, blocks, first = [schema.specs[task].column for task in schema.tasks], [], 1
    events = events.sort_values(schema.time, kind="stable")
    rows = counts.index.get_indexer(events[schema.customer])
    place = LATEST - 1 - events.groupby(schema.customer).cumcount(ascending=False).to_numpy()
    late = (rows >= 0) & (place >= 0)
    sequences = np.zeros((len(counts), LATEST, len(tasks) + 1), np.float32)
    days = (cutoff - events[schema.time]) / pd.Timedelta(days=1)
    sequences[rows[late], place[late], -1] = np.log1p(days[late])
    for index, column in enumerate(tasks):
        ids, values = pd.factorize(events[column])
        known = (rows >= 0) & (ids >= 0)
        blocks.append(csr_array((np.ones(known.sum()), (rows[known], ids[known])), (len(counts), len(values))))
        sequences[rows[late], place[late], index] = np.where(ids < 0, 0, first + ids)[late]
        first += len(values)
    label_components = components(events, schema.customer, SETTINGS.get(schema.name, (tasks,))[0]).loc[counts.index]
    return {
        COUNTS: counts.to_numpy(),
        SPARSE: hstack(blocks).tocsr(),
        TREES: np.concatenate([counts, label_components], 1),
        RECURRENT: sequences,
    }


def make_classifier(method: str, fewest: int) -> Pipeline | Recurrent:
    """One of the other methods, for labels whose rarest class has `fewest` customers."""
    logs = FunctionTransformer(lambda values: np.sign(values) * np.log1p(np.abs(values)))  # counts have long tails
    if method == RECURRENT:
        return Recurrent()
    if method == TREES:
        return make_pipeline(logs, LGBMClassifier(**SMALL_TREES))
    folds = StratifiedKFold(max(2, min(5, fewest)), shuffle=True, random_state=0)
    choices = np.logspace(-2, 2, 5) if method == SPARSE else np.logspace(-4, 0, 5)
    linear = LogisticRegressionCV(Cs=choices, cv=folds, scoring="neg_log_loss", max_iter=300)
    steps = [TfidfTransformer(sublinear_tf=True)] if method == SPARSE else [logs, StandardScaler()]
    return make_pipeline(*steps, linear)


def draw_customers(classes: NDArray, size: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Yields who is learned from, `size` customers of a half, and who is predicted, of the other half."""
    for half, others in StratifiedKFold(2, shuffle=True, random_state=0).split(classes, classes):
        for draw in range(max(1, DRAWN // size)):
            few, rest = half, others
            if size < len(half):
                few = train_test_split(half, train_size=size, stratify=classes[half], random_state=draw)[0]
                rest = np.random.default_rng(draw).permutation(others)[:PREDICTED]
            yield few, rest


def compare(
    model: CustomerModel, cutoff: pd.Timestamp, ids: pd.Index, classes: NDArray, inputs: dict[str, Any], size: int
) -> dict[str, float]:
    """The AUC of each method that learns from `size` customers of a half."""
    aucs: dict[str, list[float]] = {method: [] for method in METHODS}
    for few, others in draw_customers(classes, size):
        known, learned = np.unique(classes[few], return_inverse=True)
        for method in METHODS:
            if method == MCM:
                table = pd.DataFrame({"customer": ids[few], "as_of": cutoff, "label": [f"{of:02}" for of in learned]})
                tuned = model.finetune(table, validation_share=0)
                found = tuned.predict(ids[others], as_of=cutoff).to_numpy()
            else:
                learner = make_classifier(method, np.bincount(learned).min()).fit(inputs[method][few], learned)
                found = learner.predict_proba(inputs[method][others])
            chances = np.zeros((len(others), classes.max() + 1))  # 0 for a class that nobody had
            chances[:, known] = found
            weights = np.ones((1, len(others)))
            aucs[method] += metric(classes[others], chances, np.arange(chances.shape[1]), weights).tolist()
    return {method: float(np.mean(half_aucs)) for method, half_aucs in aucs.items()}


def measure(log: Log, data: PreparedData, runs: Path) -> dict[str, Any] | None:
    """A row for each label and number of customers, with the AUC of each method; None for a log without labels."""
    if log.name not in LOGS:
        return None
    schema, raw, rows = data.schema, read_raw(data), []
    cutoff, events = pd.Timestamp(schema.cutoff("test")), raw.events.astype({schema.customer: str})
    events = events[events[schema.time] < cutoff]
    counts = make_counts(events, schema, cutoff)
    counts = counts[counts["events inf"] >= schema.min_history]
    inputs, labels = read_inputs(events, schema, counts, cutoff), read_labels(data, raw, counts.index, cutoff)
    folder = train(WITHOUT, data, 0, runs / log.name / f"{WITHOUT.replace(' ', '_')}.0")
    for name, column in labels.items():
        number = column.value_counts()
        known = column.isin(number.index[number >= FEWEST]).to_numpy()
        ids, (classes, values) = column.index[known], pd.factorize(column[known], sort=True)
        if len(values) < 2:
            continue
        model = CustomerModel.load(folder, events[events[schema.customer].isin(ids)])
        known_inputs = {method: table[known] for method, table in inputs.items()}
        for size in (*(size for size in SIZES if size < len(ids) / 2), len(ids)):  # the last is all of a half
            found = compare(model, cutoff, ids, classes, known_inputs, size)
            rows.append({"label": name, "customers": len(ids), "learned from": min(size, len(ids) // 2)} | found)
            print(log.name, rows[-1], flush=True)
    return {"log": log.name, "rows": rows}
