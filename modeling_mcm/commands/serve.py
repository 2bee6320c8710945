# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Serves a checkpoint over HTTP. It takes events, and answers with scores, embeddings and explanations of customers.

    export MCM_TOKEN=$(openssl rand -hex 16)
    mcm serve --model runs/quickstart --store state.db
    mcm serve --model runs/quickstart --store postgresql://user@host/database --port 8001

    TOKEN="Authorization: Bearer $MCM_TOKEN"
    curl localhost:8000/v1/events -H "$TOKEN" -H "Content-Type: application/json" --data '{"events": [{"event_id": "1",
        "customer_id": "7", "event": {"time": "2017-09-02 17:30", "token_type": "purchase", "brand": "National"}}]}'
    curl -H "$TOKEN" "localhost:8000/v1/customers/7/scores?task=product_category&k=3"

The store keeps every event that was answered with status 200, also through kill -9 and loss of power. Several services
may share one SQLite file on one machine, or one PostgreSQL database. By default the service can be reached from this
machine only; before you open it to others, put a proxy in front of it, for TLS, limits of requests a second and of
slow clients. When the folder of --model, or what a link of this name points to, holds another checkpoint of the log,
the service goes on with that, without a pause; answers name theirs in the header MCM-Checkpoint.
"""

import math
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from modeling_mcm.data import check_vocabularies
from modeling_mcm.extras import needs
from modeling_mcm.option import REQUIRED, option
from modeling_mcm.past import read_cutoff
from modeling_mcm.schema_mcm import check_integer
from modeling_mcm.serving import CustomerService, EventStore, create_api
from modeling_mcm.training.checkpoints import find_head, open_checkpoint

from .arguments import command

with needs("serve"):
    import uvicorn
    from fastapi import FastAPI

logger = logging.get_logger(__name__)
TOKEN = "MCM_TOKEN"
EVERY = 5.0  # seconds between two looks at the checkpoint's folder
LATER = 5  # of these, after a look at one that can't be served


@dataclass
class ServeOptions:
    """Which checkpoint is served, with which store, and how."""

    model: str = option("Checkpoint folder, or name on the Hub.", REQUIRED)
    store: str = option(
        "Store of events: a SQLite file, new or of an earlier start, or the URL of a PostgreSQL database.", "state.db"
    )
    host: str = option("Network address to listen on.", "127.0.0.1")
    port: int = option("Port to listen on; 0 for any free port.", 8000)
    threads: int = option("Number of torch's threads for one request.", 1)
    limit: float = option("Requests a second that each token may send; more are answered with 429.", math.inf)
    log_requests: bool = option("Log each request on stderr, a line of JSON that names the customer.", False)
    data: str | None = option(
        "Folder of the prepared data set that the checkpoint was trained on. POST /v1/totals checks forecasts on what "
        "came after its validation cutoff; of the folder only the date is read."
    )
    candidates: str | None = option(
        "Table of the labels that may be answered, .parquet or .csv, with a column for each task that it restricts. "
        "It is read again when the file changes. By default all labels."
    )

    def __post_init__(self) -> None:
        for name, least, most in (("threads", 1, 1024), ("port", 0, 2**16 - 1)):
            check_integer(getattr(self, name), f"--{name}", least, most)
        if not self.limit > 0:
            raise ValueError(f"--limit is {self.limit}; give requests a second, above 0, or leave it out.")


def look(folder: str) -> tuple:
    """What a checkpoint's folder, or the one that a link names, holds now."""
    path = Path(folder).resolve()
    files = [(each, each.stat()) for each in path.glob("*") if each.suffix in (".json", ".safetensors")]
    return path, {(each, facts.st_ino, facts.st_size, facts.st_mtime_ns) for each, facts in files}


def follow_folder(api: FastAPI, folder: str, seen: tuple, seconds: float = EVERY) -> None:
    """Has an application go on with what a folder holds, each time that this is not what was seen. What can't be
    served, such as a folder that is being written, is tried again until it can."""
    while True:
        time.sleep(seconds)
        try:
            if (now := look(folder)) != seen:
                api.state.service = api.state.service.with_checkpoint(str(now[0]))
                seen = now
                logger.warning(f"The service answers by {now[0]} now, checkpoint {api.state.service.digest[:12]}.")
        except Exception as error:
            logger.error(f"{folder} changed and can't be served, so the service goes on with what it has: {error}")
            time.sleep(LATER * seconds)


def open_api(options: ServeOptions, token: str) -> FastAPI:
    """The application of a checkpoint and a store. It alone has the service: what it goes on without is freed."""
    model, extractor = open_checkpoint(find_head(options.model), options.model)
    schema = extractor.schema
    columns = (schema.name, schema.customer, schema.order_column, schema.visit, schema.token_type)
    store = EventStore(options.store, ", ".join(map(str, columns)))
    if options.data is not None:
        check_vocabularies(options.data, extractor)
        read_cutoff(options.data)
    service = CustomerService(
        model, extractor, store, candidates=options.candidates, data=options.data, folder=options.model
    )
    print(f"{options.model}: {store.count():,} customers in {store.name}", flush=True)
    return create_api(service, token, options.limit, options.log_requests)


@command(__doc__, ServeOptions)
def main(options: ServeOptions) -> None:
    """Serves until the process gets a signal to stop, and then ends when all requests are answered."""
    # uvicorn has the signal raised again when all is closed; to take Python down in order would last a second more
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    token = os.environ.get(TOKEN, "")
    if not token:
        raise ValueError(
            f"{TOKEN} is not set, and every request must carry its value: export {TOKEN}=$(openssl rand -hex 16)."
        )
    torch.set_num_threads(options.threads)
    seen = look(options.model)
    api = open_api(options, token)
    if Path(options.model).is_dir():  # not a name on the Hub
        threading.Thread(target=follow_folder, args=(api, options.model, seen), daemon=True).start()
    # The lines of requests are written as progress is.
    uvicorn.run(api, host=options.host, port=options.port, log_level="warning", server_header=False)
