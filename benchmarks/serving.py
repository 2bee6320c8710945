#!/usr/bin/env python
# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Requests a second of the service, and how long they take, under load from Locust on this machine alone.

    python benchmarks/serving.py --model runs/quickstart \
        --events data/complete_journey/raw/events.parquet --report_file docs/service.md

Starts `mcm serve` with a store in a folder that is removed at the end, and sends it the histories of some
customers but for their last events. Then users send the rest one by one (each is on the disk when it is answered) and
ask for scores after each, now and then for an embedding. A load ends after --seconds or --requests, as comes first.
The service has one process and one thread of torch for a request; Locust runs beside it on the same cores.
"""

import csv
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LAST_EVENTS = 60  # of a customer, sent one by one
TOKEN = "only-for-this-benchmark"
WORK = "MCM_SERVING_LOAD"  # for the users: what is sent, and how much of it
ADD, SCORES, EMBEDDING = "POST /events", "GET scores", "GET embedding"
STARTING = 300  # seconds for a start

if "locust" in sys.modules:  # this file is read by Locust
    from locust import HttpUser, constant, events, task

    LOAD = json.loads(Path(os.environ[WORK]).read_text()) if WORK in os.environ else {}
    SENT = {"requests": 0}

    @events.request.add_listener
    def count(**_: Any) -> None:
        """Ends the load after a number of requests."""
        SENT["requests"] += 1
        if SENT["requests"] >= LOAD["requests"]:
            LOAD["environment"].runner.quit()

    @events.init.add_listener
    def keep(environment: Any, **_: Any) -> None:
        """Keeps what can end the load."""
        LOAD["environment"] = environment

    class Shop(HttpUser):
        """A user that sends an event of a customer and then asks for scores."""

        wait_time = constant(0)

        def on_start(self) -> None:
            """Knows the token."""
            self.client.headers["Authorization"] = f"Bearer {TOKEN}"

        @task(10)
        def buy(self) -> None:
            """Sends the next event of a customer and asks for the scores."""
            if not LOAD["waiting"]:
                return self.environment.runner.quit()
            event = LOAD["waiting"].pop()
            self.client.post("/events", json={"events": [event]}, name=ADD)
            self.client.get(f"/customers/{event['customer_id']}/scores", params={"k": 10}, name=SCORES)

        @task(1)
        def look(self) -> None:
            """Asks for an embedding."""
            self.client.get(f"/customers/{random.choice(LOAD['customers'])}/embedding", name=EMBEDDING)


@dataclass
class Options:
    """Which checkpoint is served, and which loads are measured."""

    model: str = field(metadata={"help": "Checkpoint folder."})
    events: str = field(metadata={"help": "Parquet file of the raw log."})
    customers: int = field(default=50, metadata={"help": "Customers whose histories are sent first."})
    users: list[int] = field(
        default_factory=lambda: [1, 8],
        metadata={"help": "Numbers of users at the same time; each is measured as a load of its own."},
    )
    seconds: int = field(default=30, metadata={"help": "Longest duration of each load, in seconds."})
    requests: int = field(default=20_000, metadata={"help": "Largest number of requests of each load."})
    report_file: str | None = field(default=None, metadata={"help": "Markdown file to write the table to."})


def histories(options: Options) -> dict[str, list[dict[str, Any]]]:
    """Reads the events of some customers in the form of the service's requests, oldest first."""
    import pyarrow.parquet as pq

    from modeling_mcm import MCMFeatureExtractor

    extractor = MCMFeatureExtractor.from_pretrained(options.model)
    names = [name for name in extractor._known_columns if name in pq.read_schema(options.events).names]
    log = pq.read_table(options.events, columns=names).to_pandas()
    who = log[extractor.customer].astype(str)
    customers = random.Random(0).sample(sorted(who.unique()), options.customers)
    logs = {}
    for customer in customers:
        rows = log[who == customer].drop(columns=extractor.customer).sort_values(str(extractor.time))
        events = json.loads(rows.to_json(orient="records", date_format="iso"))
        times = rows[extractor.time].dt.strftime("%Y-%m-%dT%H:%M:%S")
        events = [event | {extractor.time: time} for event, time in zip(events, times, strict=True)]
        events = [{name: value for name, value in event.items() if value is not None} for event in events]
        logs[customer] = [
            {"event_id": f"{customer}-{index}", "customer_id": customer, "event": event}
            for index, event in enumerate(events)
        ]
    return logs


def ask(port: int, path: str, body: Any = None) -> Any:
    """Sends one request from this process."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)) as answer:
        return json.load(answer)


def serve(options: Options, folder: Path) -> tuple[subprocess.Popen, int]:
    """Starts a service and waits until it answers; yields its port."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "modeling_mcm.commands.main", "serve", "--model"]
    command += [str(Path(options.model).resolve()), "--store", str(folder / "state.db"), "--port", str(port)]
    environment = os.environ | {"MCM_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + STARTING
    while time.monotonic() < until and process.poll() is None:
        try:
            ask(port, "/healthz")
            return process, port
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"The service did not start (status {process.poll()}).")


def load(options: Options, port: int, users: int, work: dict[str, Any], folder: Path) -> list[list[str]]:
    """Runs one load, and makes its rows of the table."""
    path = folder / f"load-{users}.json"
    path.write_text(json.dumps(work | {"requests": options.requests}))
    command = [sys.executable, "-m", "locust", "-f", __file__, "--headless", "--only-summary", "-u", str(users)]
    command += ["-r", str(users), "-t", f"{options.seconds}s", "--host", f"http://127.0.0.1:{port}", "--skip-log"]
    command += ["--csv", str(folder / f"load-{users}")]
    subprocess.run(command, env=os.environ | {WORK: str(path)}, check=False, stdout=subprocess.DEVNULL)
    with open(folder / f"load-{users}_stats.csv", newline="") as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    lines = []
    for name in (ADD, SCORES, EMBEDDING, "Aggregated"):
        if name in rows:
            row = rows[name]
            times = [row[column] for column in ("50%", "95%", "99%")]
            shown = "all" if name == "Aggregated" else name
            lines.append([str(users), shown, f"{int(row['Request Count']):,}", row["Failure Count"]])
            lines[-1] += [f"{float(row['Requests/s']):.0f}", *times]
    return lines


def main() -> None:
    """Starts the service, loads it and writes the table."""
    from measuring import show
    from modeling_mcm.commands.arguments import parse_options

    (options,) = parse_options(Options, description=__doc__)
    logs = histories(options)
    number = sum(map(len, logs.values()))
    with tempfile.TemporaryDirectory(prefix="mcm-serving-") as name:
        folder = Path(name)
        process, port = serve(options, folder)
        try:
            for customer_events in logs.values():
                past = customer_events[:-LAST_EVENTS]
                for start in range(0, len(past), 500):
                    ask(port, "/events", {"events": past[start : start + 500]})
            waiting = [event for customer_events in logs.values() for event in customer_events[-LAST_EVENTS:]]
            waiting.sort(key=lambda event: (int(event["event_id"].rpartition("-")[2]), event["customer_id"]))
            table = [["users", "request", "requests", "failed", "a second", "p50 ms", "p95 ms", "p99 ms"]]
            share = -(-len(waiting) // len(options.users))
            for index, users in enumerate(options.users):
                part = waiting[index * share : (index + 1) * share]
                table += load(options, port, users, {"waiting": part[::-1], "customers": list(logs)}, folder)
        finally:
            process.terminate()
            process.wait(30)
        size = (folder / "state.db").stat().st_size
    caption = (
        f"{len(logs)} customers with {number:,} events, SQLite store of {size / 1e6:.0f} MB at the end, one process, "
        f"{os.cpu_count()} cores, shared with Locust."
    )
    show(table, caption, options.report_file)


if __name__ == "__main__":
    main()
