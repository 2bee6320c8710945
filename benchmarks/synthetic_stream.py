# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Event logs of any size for trying scale: written block by block, so that memory does not grow with the log.

`configuration/schemas/clickstream.yaml` reads the log as it is:

    write_event_log("log", customers=400_000)    # 100 million events in 24 Parquet files, one a stretch of time

Items follow a Zipf law, lengths of histories a power law: most customers have few events, a few have thousands. Events
come in sessions, and sessions at some hours, weekdays and times of the year more than at others. Some events return
to an item of the same customer. Where the true preferences matter, `synthetic.py` has a shop that knows them.

Shapes: C customers of a block, N events of it, V items.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_mcm.files_mcm import atomic_folder
from synthetic import names_of, seconds_of

CUSTOMERS_A_BLOCK = 4096
LEAST_GAP, MOST_GAP = 5, 300  # seconds between two events of a session
HOUR = 3600
TOKEN_TYPES, SHARES = ("click", "cart", "purchase"), (0.8, 0.1, 0.1)


@dataclass(frozen=True)
class StreamSettings:
    """Settings of a log. A size or a share that is not possible is a ValueError."""

    items: int = 200_000
    categories: int = 500
    popularity_exponent: float = 1.0  # of the items' Zipf distribution
    length_scale: float = 135.0  # a history is longer than 1 + s with P = (1 + s / length_scale) ** -length_exponent
    length_exponent: float = 1.5  # with a smaller one few customers have more of the events
    max_events: int = 20_000  # of the longest history
    events_a_session: float = 5.0  # on average
    return_rate: float = 0.4  # share of the events that return to an item of the customer's earlier events
    yearly: float = 0.5  # how many more sessions at the peak of the year (1 December), as a share of the mean
    start: str = "2022-05-01"  # sessions begin between these times, in ISO 8601
    end: str = "2024-05-01"

    def __post_init__(self) -> None:
        if min(self.items, self.categories, self.max_events) < 1 or self.events_a_session < 1:
            raise ValueError("Expected items, categories, max_events and events_a_session of at least 1.")
        if self.length_scale <= 0 or self.length_exponent <= 1:
            raise ValueError("Expected a length_scale above 0 and a length_exponent above 1, else there is no mean.")
        if not 0 <= self.return_rate <= 1 or not 0 <= self.yearly <= 1:
            raise ValueError("return_rate and yearly are shares: give numbers from 0 to 1.")
        if seconds_of(self.end) - seconds_of(self.start) < HOUR:
            raise ValueError(f"From {self.start} to {self.end} is too short: give an hour at least.")

    @property
    def mean_events(self) -> float:
        """The approximate mean length of a history."""
        power = self.length_exponent - 1
        return 0.5 + self.length_scale / power * (1 - (1 + self.max_events / self.length_scale) ** -power)


@dataclass(frozen=True)
class Catalogue:
    """What all blocks have in common: the items, the most popular first, and when sessions begin."""

    steps: np.ndarray  # (V,), cumulated popularity
    names: pa.Array
    category: pa.Array  # name of each item's category
    price: np.ndarray
    hours: np.ndarray  # cumulated share of the sessions by hour from the start


def make_catalogue(settings: StreamSettings, seed: int) -> Catalogue:
    """Draws the items. The same arguments give the same items."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    popularity = np.arange(1, settings.items + 1) ** -settings.popularity_exponent
    names = names_of("item", rng.permutation(settings.items))
    category = names_of("category", rng.integers(settings.categories, size=settings.items))
    start, end = seconds_of(settings.start), seconds_of(settings.end)
    hour = start // HOUR + np.arange((end - start) // HOUR)
    day = hour // 24
    daily = 1.05 - np.cos(2 * np.pi * (hour % 24 - 4) / 24)  # fewest at four in the night
    weekly = np.where((day + 3) % 7 >= 5, 1.3, 0.88)  # 1970 began on a Thursday
    yearly = 1 + settings.yearly * np.cos(2 * np.pi * (day - 334) / 365.25)
    weight = daily * weekly * yearly
    return Catalogue(
        steps=np.cumsum(popularity / popularity.sum()),
        names=pa.array(names, pa.string()),
        category=pa.array(category, pa.string()),
        price=np.round(rng.lognormal(3.0, 0.8, settings.items), 2),
        hours=np.cumsum(weight / weight.sum()),
    )


def make_block(block: int, customers: int, catalogue: Catalogue, settings: StreamSettings, seed: int) -> pa.Table:
    """Draws the events of one block's customers, sorted by time. They depend on settings, seed and customer alone.

    The block has the customers from `block * CUSTOMERS_A_BLOCK` on; the whole log ends at `customers`.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, block)))
    extra = settings.length_scale * ((1 - rng.random(CUSTOMERS_A_BLOCK)) ** (-1 / settings.length_exponent) - 1)
    length = np.minimum(1 + extra, settings.max_events).astype(np.int64)
    first = np.cumsum(length) - length
    number = int(length.sum())
    user, opens = np.repeat(np.arange(CUSTOMERS_A_BLOCK), length), rng.random(number) < 1 / settings.events_a_session
    opens[first] = True
    session = np.cumsum(opens) - 1
    # Sessions of a customer are drawn at any time and put in order.
    hours = np.searchsorted(catalogue.hours, rng.random(session[-1] + 1)).clip(max=len(catalogue.hours) - 1)
    begins = seconds_of(settings.start) + hours * HOUR + rng.integers(HOUR, size=len(hours))
    begins = begins[np.lexsort((begins, user[opens]))]
    passed = np.cumsum(np.where(opens, 0, rng.integers(LEAST_GAP, MOST_GAP, size=number)))
    second = begins[session] + passed - passed[opens][session]

    fresh = np.searchsorted(catalogue.steps, rng.random(number)).clip(max=settings.items - 1)
    back = rng.random(number) < settings.return_rate
    index = np.arange(number) - first[user]
    earlier = first[user] + (rng.random(number) * index).astype(np.int64)  # the first event of all is its own
    item = np.where(back, fresh[earlier], fresh)
    kind = np.searchsorted(np.cumsum(SHARES)[:-1], rng.random(number), side="right")

    events = int(length[: max(customers - block * CUSTOMERS_A_BLOCK, 0)].sum())
    order = np.argsort(second[:events], kind="stable")
    item = item[order]
    return pa.table(
        {
            "user_id": block * CUSTOMERS_A_BLOCK + user[order],
            "timestamp": pa.array(second[order]).cast(pa.timestamp("s")),
            "session_id": (block << 32) + session[order],
            "event_type": pa.array(TOKEN_TYPES).take(pa.array(kind[order])),
            "item_id": catalogue.names.take(pa.array(item)),
            "category_id": catalogue.category.take(pa.array(item)),
            "price": catalogue.price[item],
        }
    )


def write_event_log(
    folder: str | Path,
    customers: int,
    settings: StreamSettings | None = None,
    seed: int = 0,
    files: int = 24,
    progress: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> int:
    """Writes a log to a folder of Parquet files, each of the same length of time, and returns the number of events.

    The same arguments give the same bytes, and the first customers of a longer log are those of a shorter one. The
    folder appears when it is complete. Memory holds one block.

    Raises:
        ValueError: If there is less than one customer or one file.
        FileExistsError: If the folder exists.
    """
    if customers < 1 or files < 1:
        raise ValueError(f"Found {customers} customers and {files} files; expected one of each at least.")
    folder, settings = Path(folder), settings or StreamSettings()
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it or choose another folder.")
    catalogue, events = make_catalogue(settings, seed), 0
    edges = np.linspace(seconds_of(settings.start), seconds_of(settings.end), files + 1)[1:-1].astype(np.int64)
    writers: list[pq.ParquetWriter] = []
    with atomic_folder(folder) as (target, _):
        try:
            for block in progress(iter(range(-(-customers // CUSTOMERS_A_BLOCK)))):
                table = make_block(block, customers, catalogue, settings, seed)
                if not writers:
                    paths = (target / f"events-{k:05d}-of-{files:05d}.parquet" for k in range(files))
                    writers = [pq.ParquetWriter(path, table.schema, compression="zstd") for path in paths]
                seconds = table["timestamp"].cast(pa.int64()).to_numpy()
                bounds = [0, *np.searchsorted(seconds, edges), len(seconds)]
                for writer, start, end in zip(writers, bounds, bounds[1:], strict=False):
                    writer.write_table(table.slice(start, end - start))
                events += len(seconds)
        finally:
            for writer in writers:
                writer.close()
    return events
