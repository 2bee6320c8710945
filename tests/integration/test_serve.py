# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The service as a process: its answers and its log, kills under load, and commands that can't start."""

import http.client
import json
import os
import random
import signal
import sqlite3
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import forked_runs
import pandas as pd
import psutil
import pytest
from choices import STATE
from serving_client import HEADERS, TOKEN, as_requests, assert_same

from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation
from modeling_mcm.live.customer import LiveCustomer

pytest.importorskip("fastapi", reason="FastAPI not installed")
PATIENCE = 300  # seconds for a start


def open_live(folder):
    """A customer of a checkpoint, without a service."""
    return LiveCustomer(
        *(each.from_pretrained(folder) for each in (MCMForMultiTaskRecommendation, MCMFeatureExtractor))
    )


class Server:
    """A process of `mcm serve`, forked from one that has imported everything."""

    def __init__(self, folder, store, *options, port=None):
        self.port = port or forked_runs.free_port()
        command = ["--model", folder, "--store", store, "--port", self.port, *options]
        log = Path(store).with_name(f"{self.port}.log")
        self.process = forked_runs.start(command, log, "modeling_mcm.commands.serve", MCM_TOKEN=TOKEN)

    def answers(self):
        try:
            return self.ask("/readyz")
        except OSError:
            return None

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = HEADERS | {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def stop(self, how=signal.SIGTERM):
        os.kill(self.process.pid, how)
        self.process.join(30)


@pytest.fixture
def serve():
    """A function that starts a service; what runs at the end is stopped."""
    servers = []

    def start(*args, **options):
        servers.append(Server(*args, **options))
        forked_runs.wait_for(servers[-1].answers, servers[-1].process, PATIENCE)
        return servers[-1]

    yield start
    for server in servers:
        if server.process.is_alive():
            server.stop(signal.SIGKILL)


def test_a_process_answers_as_a_live_customer_and_logs_requests(serve, save, event_log, tmp_path):
    folder = save(extended=True)
    server, live = serve(folder, tmp_path / "state.db", "--log_requests"), open_live(folder)
    requests = as_requests(event_log, ["c01"])
    server.ask("/v1/events", {"events": requests})
    live.add([each["event"] for each in requests])
    assert_same(server.ask("/v1/customers/c01/scores")["tasks"], live.scores())
    lines = [line for line in (tmp_path / f"{server.port}.log").read_text().split("\n") if line.startswith("{")]
    logged = next(line for line in map(json.loads, lines) if line["path"] == "/v1/customers/c01/scores")
    assert (logged["method"], logged["status"]) == ("GET", 200) and logged["milliseconds"] > 0
    assert abs(pd.Timestamp(logged["time"]) - pd.Timestamp.now("UTC")) < pd.Timedelta(hours=1)


def test_a_service_that_is_told_to_stop_ends_with_0_and_its_process_of_slow_answers(serve, save, tmp_path):
    server = serve(save(extended=True), tmp_path / "state.db")
    children = psutil.Process(server.process.pid).children()
    assert any("spawn_main" in " ".join(each.cmdline()) for each in children)  # it still imports
    server.stop()
    assert server.process.exitcode == 0 and not psutil.wait_procs(children, 10)[1]


@pytest.mark.slow
def test_slow_answers_come_from_another_process_that_ends_with_the_service(serve, save, prepared, event_log, tmp_path):
    server = serve(save(extended=True, **STATE), tmp_path / "state.db", "--data", prepared)
    server.ask("/v1/events", {"events": as_requests(event_log, ["c01"])})
    answer = server.ask("/v1/customers/c01/explain?task=aisle&visits=2")
    best = server.ask("/v1/customers/c01/scores?task=aisle&k=1")["tasks"]["aisle"][0]
    assert answer["explanation"]["label"] == best["label"] and len(answer["explanation"]["visits"]) == 2
    assert answer["explanation"]["chance"] == pytest.approx(best["score"], abs=1e-5)
    total = server.ask("/v1/totals", {"customers": ["c01"], "days": 25})
    assert total["expected"] > 0 and total["past"]
    (worker,) = (
        each for each in psutil.Process(server.process.pid).children() if "spawn_main" in " ".join(each.cmdline())
    )
    worker.kill()
    with pytest.raises(urllib.error.HTTPError, match="503"):
        server.ask("/v1/customers/c01/explain?task=aisle")
    assert server.ask("/v1/customers/c01/explain?task=aisle&visits=2") == answer  # of a new process
    children = psutil.Process(server.process.pid).children()
    server.stop(signal.SIGKILL)
    assert not psutil.wait_procs(children, 30)[1]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("state.db*")} == {0o600}


def test_a_body_of_100_mb_is_refused_and_leaves_no_trace(serve, save, tmp_path):
    server = serve(save(extended=True), tmp_path / "state.db")
    memory = psutil.Process(server.process.pid).memory_info
    before = memory().rss
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/v1/events")
    for name, value in {**HEADERS, "Transfer-Encoding": "chunked"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    sent, chunk = 0, b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    try:
        for _ in range(100):
            connection.send(chunk)
            sent += 1
    except OSError:  # it hung up
        pass
    assert sent < 100 or connection.getresponse().status == 413
    assert memory().rss < before + 2**26
    assert server.ask("/healthz")["status"] == "ok"


@pytest.mark.slow
def test_ten_kills_under_load_lose_no_acknowledged_event_and_double_none(serve, save, event_log, tmp_path):
    folder, store = save(extended=True), tmp_path / "state.db"
    events = as_requests(event_log, ["c01", "c02", "c03"])
    events += [each | {"event_id": f"again-{n}-{each['event_id']}"} for n in range(20) for each in events]
    servers = [serve(folder, store), serve(folder, store)]
    acknowledged, counts = set(), []

    def load(event):
        while event["event_id"] not in acknowledged:
            try:
                random.choice(servers).ask("/v1/events", {"events": [event]})
                acknowledged.add(event["event_id"])
            except (OSError, http.client.HTTPException):  # killed, or not there yet: nobody knows whether it arrived
                time.sleep(0.05)

    with ThreadPoolExecutor(4) as pool, closing(sqlite3.connect(store)) as connection:
        loading = pool.map(load, events)
        for number in range(10):
            time.sleep(random.Random(number).uniform(0.3, 1.5))
            killed, known = servers[number % 2], set(acknowledged)
            killed.stop(signal.SIGKILL)
            found = {row[0] for row in connection.execute("SELECT event_id FROM mcm_events")}
            assert known <= found  # what was acknowledged before the kill
            counts.append(len(known))
            servers[number % 2] = serve(folder, store, port=killed.port)
        list(loading)
        assert counts == sorted(counts) and counts[-1] > counts[0] > 0  # there was load between the kills
        rows = connection.execute("SELECT customer_id, event_id, event FROM mcm_events").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    times = Counter(event_id for _, event_id, _ in rows)
    assert acknowledged == times.keys() and max(times.values()) == 1
    for name in ("c01", "c02", "c03"):
        whole = open_live(folder)
        whole.add([json.loads(event) for customer, _, event in rows if customer == name])
        for server in servers:
            answer = server.ask(f"/v1/customers/{name}/scores?task=aisle")
            assert answer["events"] == len(whole.events)
            assert_same(answer["tasks"], whole.scores(tasks=["aisle"]))
