# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What is learned stays, and what is counted goes to the log's end: at the end of training, and by `mcm refresh`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from corner_shop import SCHEMA, TEST, find_customer, make_log, make_profile
from filelock import FileLock
from serving_client import as_requests, assert_same_list, make_client, make_service

from modeling_mcm import CustomerModel, LiveCustomer, MCMForMultiTaskRecommendation
from modeling_mcm.commands import main
from modeling_mcm.commands.serve import follow_folder, look
from modeling_mcm.data import EventSchema, PreparedData
from modeling_mcm.data.dataset import END
from modeling_mcm.folders import RunError, file_digest
from modeling_mcm.preparation import prepare
from modeling_mcm.preparation.refresh import add_events
from modeling_mcm.refresh import refresh
from modeling_mcm.training.checkpoints import checkpoint_digest, open_checkpoint
from modeling_mcm.training.counting import Counts
from modeling_mcm.training.encoder.recipe import Recipe
from modeling_mcm.training.options import ModelOptions
from modeling_mcm.training.pretraining import read_config

DAYS = [pd.Timestamp("2017-12-24") + pd.Timedelta(days=day) for day in range(4)]
CHOICES = ["hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=16", "scorer=false"]
VISIT_KINDS = [{}, {"visit": None}, {"cutoffs": "leave_one_out"}, {"on_duplicate": "drop", "end_of_visit": None}]


def make_long_log():
    """The corner shop's log, of which the last days have a new customer, a new item, and a basket over midnight."""
    log = make_log()
    new = pd.DataFrame(
        [
            ("c99", DAYS[1] + pd.Timedelta(hours=9), "99-0", "buy", "item 99", 3, "aisle 0"),
            ("c01", DAYS[1] - pd.Timedelta(minutes=1), "01-99", "buy", "item 01", 3, "aisle 0"),
            ("c01", DAYS[1] + pd.Timedelta(minutes=1), "01-99", "buy", "item 99", 4, "aisle 0"),
            ("c00", DAYS[3], None, "click", "item 02", None, None),
        ],
        columns=log.columns,
    )
    return pd.concat([log, new], ignore_index=True)


LOG = make_long_log()
PROFILE = make_profile(LOG)


def split(log):
    """The log before the days, and the events of each day."""
    parts = np.searchsorted(np.array(DAYS), log["when"].to_numpy(), side="right")
    return [log[parts == part].sample(frac=1, random_state=part) for part in range(len(DAYS) + 1)]


def schema_with(**changes):
    return EventSchema.from_dict(SCHEMA | changes)


@pytest.fixture(scope="module")
def current(tmp_path_factory):
    """A model of the log before the days, and files of the days."""
    folder = tmp_path_factory.mktemp("current")
    first, *days = split(LOG)
    prepare(first, schema_with(), folder / "data", profile=PROFILE)
    options = {"data": folder / "data", "output_dir": folder / "run", "encoder": "none", "report_to": "none"}
    run_mcm("pretrain", **options)
    for number, day in enumerate(days):
        day.to_parquet(folder / f"day-{number}.parquet")
    return folder


def run_mcm(command, **options):
    words = [command, *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mcm", *words])
        main.main()


def load(folder):
    return open_checkpoint(MCMForMultiTaskRecommendation, str(folder))


def check_same_model(one, other):
    """Two models are the same to the bit."""
    assert one[1].vocabularies == other[1].vocabularies
    weights, others = (each[0].state_dict() for each in (one, other))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("changes", VISIT_KINDS)
def test_rows_are_those_of_the_whole_log(tmp_path, changes, monkeypatch):
    if not changes:  # on another disk
        monkeypatch.setattr(os, "link", lambda *_: open(tmp_path / "other disk"))
    first, *days = split(LOG)
    days[0] = pd.concat([days[0], first.head(2)])  # twice
    schema = schema_with(**changes)
    prepare(first, schema, tmp_path / "data-0", profile=PROFILE, rows_per_shard=10)
    for number in (1, 0, 3):  # an older day comes late
        scratch = tmp_path / f"scratch-{number}"
        scratch.mkdir()
        last = max(tmp_path.glob("data-*"), key=lambda path: int(path.name[5:]))
        add_events(PreparedData(last), days[number], tmp_path / f"data-{int(last.name[5:]) + 1}", scratch)
    refreshed = PreparedData(tmp_path / "data-3", END)
    assert "item 99" in refreshed.extractor.vocabularies["items"]
    prepare(pd.concat([first, *days]), schema, tmp_path / "whole", PROFILE, refreshed.extractor, rows_per_shard=10)
    whole = PreparedData(tmp_path / "whole", END)
    assert refreshed.rows.to_list() == whole.rows.to_list()
    assert refreshed.manifest.counts == whole.manifest.counts
    assert refreshed.manifest.measures == whole.manifest.measures


def test_counts_without_a_customer_are_those_of_a_log_without_her(current, tmp_path):
    model, extractor = load(current / "run")
    log, gone = split(LOG)[0], "c03"
    assert gone in set(log["who"])
    for name, events in (("whole", log), ("without", log[log["who"] != gone])):
        prepare(events, schema_with(), tmp_path / name, PROFILE, extractor)
    whole, without = (Counts.of(PreparedData(tmp_path / name), END) for name in ("whole", "without"))
    check_same_model(*(counts.give(model, extractor) for counts in (whole.drop([gone]), without)))
    assert whole.drop([gone]).until == without.until and whole.drop([gone]).describe() == without.describe()
    assert whole.describe()["customers"] == without.describe()["customers"] + 1


def test_a_day_adds_to_counts_and_leaves_what_is_learned(current, tmp_path):
    before = load(current / "run")
    for number in range(2):
        run_mcm(
            "refresh",
            model=tmp_path / f"run-{number}" if number else current / "run",
            events=current / f"day-{number}.parquet",
            output_dir=tmp_path / f"run-{number + 1}",
        )
    after = load(tmp_path / "run-2")
    whole = pd.concat(split(LOG)[:3])
    prepare(whole, schema_with(), tmp_path / "whole", PROFILE, after[1])
    counted = Counts(PreparedData(tmp_path / "whole", END)).give(*before, state=False)
    check_same_model(after, counted)
    assert after[0].config.counted == counted[0].config.counted
    assert after[0].config.counted["until"] < "2017-12-26" and after[0].config.counted["events"] > 0
    weights, learned = before[0].state_dict(), after[0].state_dict()
    kept = [name for name in weights if ".tables." not in name and not name.startswith("model.forecaster")]
    kept = [name for name in kept if weights[name].shape == learned[name].shape]
    assert any(name.startswith("model.state") for name in kept) and any("of_counts" in name for name in kept)
    for name in kept:
        torch.testing.assert_close(weights[name], learned[name], rtol=0, atol=0, msg=name)
    assert int(after[0].scorer.tables[0].counts[0].sum()) > int(before[0].scorer.tables[0].counts[0].sum())


def test_a_frame_is_refreshed_as_a_folder_is(current, tmp_path):
    first, *days = split(LOG)
    model = CustomerModel.load(current / "run", first)
    refreshed = model.refresh(days[0]).refresh(days[1])
    assert "c99" in refreshed.customers and "c99" not in model.customers
    run_mcm("refresh", model=current / "run", events=current / "day-0.parquet", output_dir=tmp_path / "one")
    records = {"pretraining.json": (current / "run" / "pretraining.json").read_text(), "evaluation.json": "{}"}
    records["finetuning.json"] = '{"yardstick_weights": [[1], [2]]}'
    for name, text in records.items():
        (tmp_path / "one" / name).write_text(text)
    run_mcm("refresh", model=tmp_path / "one", events=current / "day-1.parquet", output_dir=tmp_path / "two")
    assert {name: (tmp_path / "two" / name).read_text() for name in records} == records
    loaded = CustomerModel.load(tmp_path / "two", pd.concat([first, *days[:2]]))
    pd.testing.assert_frame_equal(refreshed.recommend(["c99", "c01"]), loaded.recommend(["c99", "c01"]))
    assert "item 99" in set(refreshed.recommend(["c99"], k=40, tasks=["items"])["label"])
    with pytest.raises(ValueError, match="no row"):
        model.refresh(days[0].head(0))


def test_an_earlier_model_reads_a_refreshed_log_as_it_knows_it(current, tmp_path, capsys):
    for number in range(2):
        model = tmp_path / str(number - 1) if number else current / "run"
        refresh(model, str(current / f"day-{number}.parquet"), tmp_path / str(number))
    options = {"data": tmp_path / "1" / "data", "total": "visits", "forecast_days": 20}
    for name, model in {"earlier": current / "run", "own": tmp_path / "1"}.items():
        run_mcm("predict", model=model, output_dir=tmp_path / name, **options)
    assert capsys.readouterr().out.count("visits in 20 days from 2017-12-25") == 2
    earlier, extractor = load(current / "run")[1], PreparedData(options["data"], END).extractor
    assert max(map(len, extractor.vocabularies.values())) > max(map(len, earlier.vocabularies.values()))


def test_a_log_that_ends_before_the_models_counts_is_refused(current, tmp_path):
    refresh(current / "run", str(current / "day-0.parquet"), tmp_path / "one")
    with pytest.raises(ValueError, match="data has .* events until .*, and the model counts .* would be lost"):
        refresh(tmp_path / "one", str(current / "day-1.parquet"), tmp_path / "two", data=current / "data")
    refresh(tmp_path / "one", str(current / "day-1.parquet"), tmp_path / "two", data=tmp_path / "one" / "data")
    refresh(current / "run", str(current / "day-1.parquet"), tmp_path / "ahead", data=tmp_path / "one" / "data")
    assert load(tmp_path / "ahead")[0].config.counted == load(tmp_path / "two")[0].config.counted


def test_what_is_judged_knows_nothing_after_its_cutoff(tmp_path):
    changed = LOG.copy()
    late = changed["when"] >= TEST
    assert late.sum() > 30
    changed.loc[late, "item"] = "item 77"
    changed.loc[late, "aisle"] = "aisle new"
    judged, used = [], []
    for name, log in {"a": LOG, "b": changed}.items():
        prepare(log, schema_with(), tmp_path / name, profile=PROFILE)
        run_mcm(
            "pretrain", data=tmp_path / name, output_dir=tmp_path / f"run-{name}", encoder="none", report_to="none"
        )
        model, extractor = load(tmp_path / f"run-{name}")
        used.append(extractor.vocabularies["items"])
        for cutoff in ("validation", "test"):
            judged.append(Counts(PreparedData(tmp_path / name, cutoff)).give(model, extractor))
    assert "item 77" in used[1] and "item 77" not in used[0]
    for one, other in zip(judged[:2], judged[2:], strict=True):
        check_same_model(one, other)
    data, folder = tmp_path / "b", tmp_path / "run-b"
    run_mcm("predict", model=folder, data=data, output_dir=tmp_path / "scores", total="visits", forecast_days=20)
    predicted = pd.read_parquet(tmp_path / "scores").set_index("customer_id")["items"]
    named = {label for labels in predicted for label in labels}
    assert "item 77" in named
    for cutoff in ("validation", "test"):
        run_mcm("evaluate", model=folder, data=data, cutoff=cutoff, baselines="most_popular")
    sizes = [int(each[0].scorer.tables[0].counts[0].sum()) for each in judged[:2]]
    assert sizes[0] < sizes[1] < int(load(tmp_path / "run-a")[0].scorer.tables[0].counts[0].sum())


def test_what_can_not_be_added_is_refused(current, tmp_path, caplog):
    run, day = current / "run", current / "day-0.parquet"
    refresh(run, str(day), tmp_path / "next")
    with pytest.raises(ValueError, match="a part of .* already"):
        refresh(tmp_path / "next", str(day), tmp_path / "again")
    with pytest.raises(FileExistsError, match="holds something"):
        refresh(run, str(day), tmp_path / "next")
    with pytest.raises(ValueError, match="'item'"):
        refresh(run, split(LOG)[1].drop(columns="item"), tmp_path / "bad")
    with FileLock(tmp_path / ".other.lock"), pytest.raises(RunError, match="Another run"):
        refresh(run, str(day), tmp_path / "other")
    late = split(LOG)[1].assign(when=pd.Timestamp("2018-02-01"))
    refresh(run, late, tmp_path / "late")
    assert "if a day between is missing" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["late", "next"]
    os.rename(current / "data", current / "away")
    try:
        with pytest.raises(ValueError, match="--data"):
            refresh(run, str(day), tmp_path / "lost")
        refresh(run, str(day), tmp_path / "found", data=current / "away")
    finally:
        os.rename(current / "away", current / "data")


def test_a_kill_loses_nothing(current, tmp_path):
    before = {path: file_digest(path) for path in current.rglob("*") if path.is_file()}
    words = [
        f"--model={current / 'run'}",
        f"--events={current / 'day-0.parquet'}",
        f"--output_dir={tmp_path / 'next'}",
    ]
    process = subprocess.Popen([sys.executable, "-m", "modeling_mcm.commands.main", "refresh", *words])
    while process.poll() is None and not list(tmp_path.glob(".next*/data/data/log")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "next").exists()
    assert {path: file_digest(path) for path in current.rglob("*") if path.is_file()} == before
    refresh(current / "run", str(current / "day-0.parquet"), tmp_path / "next")
    assert json.loads((tmp_path / "next" / "log.json").read_text()) == {"data": "data"}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["next"]


def test_a_service_and_live_customers_go_on_with_a_refreshed_model(current, tmp_path):
    refresh(current / "run", str(current / "day-0.parquet"), tmp_path / "one")
    refresh(tmp_path / "one", str(current / "day-1.parquet"), tmp_path / "two")
    old, new = load(current / "run"), load(tmp_path / "two")
    link = tmp_path / "serving"
    link.symlink_to(current / "run")
    service = make_service(*old, tmp_path / "state.db")
    client = make_client(service)
    events = as_requests(LOG[LOG["when"] < DAYS[2]], {"c01", "c99"})
    assert client.post("/events", json={"events": events}).status_code == 200
    live = LiveCustomer(*old, customer_id="c99")
    live.add([event["event"] for event in events if event["customer_id"] == "c99"])

    def ask(customer):
        return client.get(f"/customers/{customer}/scores", params={"task": "items", "k": 30})

    before = ask("c99")
    assert before.headers["MCM-Checkpoint"] == service.digest[:12]
    assert "item 99" not in {label["label"] for label in before.json()["tasks"]["items"]}
    stop, codes = threading.Event(), []

    def ask_all_along():
        while not stop.is_set():
            codes.append(ask("c01").status_code)

    asking = threading.Thread(target=ask_all_along)
    asking.start()
    threading.Thread(target=follow_folder, args=(client.app, str(link), look(link), 0.05), daemon=True).start()
    time.sleep(0.2)
    other = tmp_path / "other"
    other.symlink_to(tmp_path / "two")
    os.replace(other, link)  # at once
    while client.app.state.service is service:
        time.sleep(0.02)
    stop.set()
    asking.join()
    assert len(codes) > 3 and {*codes} == {200}
    after = ask("c99")
    assert after.headers["MCM-Checkpoint"] == checkpoint_digest(*new)[:12] != before.headers["MCM-Checkpoint"]
    live.refresh(*new)
    found = after.json()["tasks"]["items"]
    assert_same_list(found, live.scores(tasks=["items"], k=30)["items"])
    assert "item 99" in {label["label"] for label in found}
    with pytest.raises(ValueError, match="other columns"):
        service.with_checkpoint(str(other_log(tmp_path)))
    assert ask("c99").json() == after.json()


def other_log(folder):
    """A checkpoint of another log."""
    CustomerModel.fit(LOG[["who", "when", "item"]], folder=folder / "shop", disable_tqdm=True)
    return folder / "shop" / "run"


def test_a_new_label_of_an_encoder_starts_at_its_attributes(tmp_path):
    schema = schema_with(profile=[], tasks=["items", "aisle"], target_token_types=[])
    new = pd.DataFrame([("c01", DAYS[0], "new", "buy", "item 99", 3, "aisle 2")], columns=LOG.columns)
    first = split(LOG)[0]
    prepare(first, schema, tmp_path / "data")
    data = PreparedData(tmp_path / "data")
    (tmp_path / "scratch").mkdir()
    add_events(data, new, tmp_path / "next", tmp_path / "scratch")
    config = read_config(ModelOptions(str(tmp_path / "data"), config_overrides=CHOICES), data.extractor, Recipe())
    model = MCMForMultiTaskRecommendation(config).eval()
    grown, extractor = Counts(PreparedData(tmp_path / "next", END)).give(model, data.extractor)
    ids = extractor.label_ids("items", [f"item {number}" for number in range(12, 18)])  # those of aisle 2
    known = ids[ids > 1]
    place = int(extractor.label_ids("items", ["item 99"])[0])
    assert len(known) > 2 and place > ids.max()
    vectors = grown.model.embeddings.events.feature_tables[1].weight
    torch.testing.assert_close(vectors[place], vectors[known].mean(0))
    assert grown.config.learned_sizes == model.config.vocabulary_sizes
    assert bool((grown.readout_bias[0][place] < grown.readout_bias[0][known]).all())
    inputs = extractor([find_customer(pd.concat([first, new]), "c01") | {"profile": {}}])
    assert grown(**inputs).logits["items"].shape[1] == place + 1


def test_a_customer_is_forgotten_in_a_refreshed_data_set(current, tmp_path):
    first, day, *_ = split(LOG)
    log, run = tmp_path / "log", tmp_path / "run"
    log.mkdir()
    first.to_parquet(log / "first.parquet")
    prepare(str(log), schema_with(), tmp_path / "data", profile=PROFILE)
    day.to_parquet(log / "day.parquet")
    refresh(current / "run", str(log / "day.parquet"), run, data=tmp_path / "data")
    names = tmp_path / "names.txt"
    names.write_text("c01")
    PROFILE.to_parquet(tmp_path / "profile.parquet")
    run_mcm("forget", customers=names, data=run / "data", events=log, profile=tmp_path / "profile.parquet")
    day = split(LOG)[2]
    counted = refresh(run, day[day["who"] != "c01"], tmp_path / "next")  # the model counts more than is left
    assert counted["events"] < load(run)[0].config.counted["events"]
    left = PreparedData(run / "data", END)
    assert "c01" not in left.rows["customer_id"] and len(left.rows) > 20
    for path in (run / "data" / "log").iterdir():
        assert "c01" not in set(pd.read_parquet(path)["customer_id"])


def test_where_nothing_was_learned_the_state_is_that_of_the_cutoff(tmp_path):
    late = LOG["when"] >= TEST
    changed = LOG.assign(item=LOG["item"].where(~late, "item 77"))  # one label more than at the cutoff
    prepare(changed, schema_with(), tmp_path / "data", profile=PROFILE)
    options = {"network": "shipped", "output_dir": tmp_path / "run", "report_to": "none"}
    run_mcm("start", data=tmp_path / "data", **options)
    model, extractor = load(tmp_path / "run")
    data = PreparedData(tmp_path / "data", "test")
    judged, whole = (Counts(data).give(model, extractor, state=state)[0] for state in (False, True))
    assert judged.model.state.mean.shape != model.model.state.mean.shape
    torch.testing.assert_close(judged.model.state.state_dict(), whole.model.state.state_dict(), rtol=0, atol=0)
