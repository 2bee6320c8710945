# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The service's store: what is kept, what two services on it see of each other, and stores at fault."""

import multiprocessing
import os
import shutil
import sqlite3
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from postgres_server import Postgres
from serving_client import as_requests, assert_same, make_client, make_service

from modeling_mcm.live.customer import LiveCustomer
from modeling_mcm.predictor_mcm import Questions, describe_labels
from modeling_mcm.serving import EventStore, Incoming, ServiceError


@pytest.fixture
def model(tiny_model):
    return tiny_model(extended=True)


@pytest.fixture
def events(event_log):
    return [Incoming(**each) for each in as_requests(event_log, ["c03"])]


@pytest.fixture
def start(model, extractor, tmp_path):
    """A function that starts a service on a store, by default on one file; all are closed at the end."""
    started = []

    def run(place=None, **options):
        started.append(make_service(options.pop("model", model), extractor, place or tmp_path / "state.db", **options))
        return started[-1]

    yield run
    for service in started:
        service.store.close()


def scores(service, customer="c03"):
    return describe_labels(*service.ask(service.read([customer]), Questions(tasks=None)))


def never_had(model, extractor, events):
    """The scores of a customer with these events and no service."""
    live = LiveCustomer(model, extractor, customer_id="c03")
    live.add([dict(each.event) for each in events])
    return live.scores()


@pytest.fixture(scope="module")
def postgres():
    # Not pytest's folder, which is root's alone.
    with tempfile.TemporaryDirectory(prefix="mcm-postgres-") as folder, Postgres(Path(folder)) as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request, tmp_path_factory):
    """A function that gives an empty store of each kind."""
    if request.param == "sqlite":
        return lambda: tmp_path_factory.mktemp("store") / "state.db"
    return request.getfixturevalue("postgres").empty


def test_two_services_on_one_store_see_each_other_s_events(start, database, events, model, extractor):
    place = database()
    services = [start(place), start(place)]
    for number, event in enumerate(events):
        assert services[number % 2].add([event, *events[max(0, number - 2) : number]])["added"] == 1
    for service in services:
        assert_same(scores(service), never_had(model, extractor, events))
    services[0].store.delete_event("c03", events[0].event_id)
    assert_same(scores(services[1]), never_had(model, extractor, events[1:]))
    services[1].store.delete_customer("c03")
    for service in services:
        with pytest.raises(ServiceError, match="No customer 'c03' is known"):
            scores(service)
    services[0].add(events[:4])
    assert_same(scores(services[1]), never_had(model, extractor, events[:4]))
    with pytest.raises(ServiceError, match="is known with other contents"):
        services[1].add([events[1].model_copy(update={"event_id": events[0].event_id})])


def test_what_a_store_has_lost_is_answered_by_no_service(start, database, events, model, extractor):
    """As after a restored backup: what memory had counts no longer, and may be sent again in another order."""
    place = database()
    service = start(place)
    service.add(events)
    for kept, again in ((9, []), (6, events[8:5:-1])):
        with service.store.transaction(writing=True) as store:
            store.run("DELETE FROM mcm_events WHERE sequence > :kept", {"kept": kept})
        assert_same(scores(service), never_had(model, extractor, events[:kept]))
        if again:
            start(place).add(again)
        assert_same(scores(service), never_had(model, extractor, [*events[:kept], *again]))
    assert service.add(events)["added"] == len(events) - 9


def test_what_is_acknowledged_is_on_the_disk_whatever_the_default_of_the_database(start, database):
    service = start(database())
    setting = "PRAGMA synchronous" if service.store.is_sqlite else "SHOW synchronous_commit"
    with service.store.transaction(writing=True) as store:
        assert store.run(setting).scalar_one() in (2, "on")


BROKEN = {
    "no events": ("DROP TABLE mcm_events",) * 2,
    "no customers": ("DROP TABLE mcm_customers",) * 2,
    "read-only": (
        "CREATE TRIGGER t BEFORE INSERT ON mcm_events BEGIN SELECT RAISE(ABORT, 'read-only'); END",
        "ALTER DATABASE postgres SET default_transaction_read_only = on",
    ),
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN.keys())
def test_a_service_that_can_t_write_is_not_ready(start, database, events, changes):
    service = start(database())
    service.add(events)
    service.check()
    assert service.store.count() == 1  # what the check writes is not kept
    with service.store.transaction(writing=True) as store:
        store.run(changes[not service.store.is_sqlite])
    service.store.engine.dispose()
    with pytest.raises(ServiceError, match="can't be (used|written)"):
        service.check()


def test_a_database_that_is_down_is_said_and_used_again_when_it_is_back(start, postgres, events, model, extractor):
    service = start(postgres.empty())
    service.add(events[:5])
    postgres.stop()
    try:
        for act in (
            lambda: service.add(events[5:]),
            lambda: scores(service),
            service.check,
            lambda: start(postgres.url),
        ):
            with pytest.raises(ServiceError, match="can't be used now .*: nothing of this request was kept") as caught:
                act()
            assert caught.value.status == 503
    finally:
        postgres.start()
    assert_same(scores(service), never_had(model, extractor, events[:5]))
    service.add(events)
    service.check()
    assert_same(scores(service), never_had(model, extractor, events))


def test_a_user_who_may_only_read_is_refused_at_the_start_and_answers_later(start, postgres, events, model, extractor):
    start(postgres.empty()).add(events[:5])
    postgres.run("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN SUPERUSER")
    url = postgres.url.replace("mcm@", "reader@")
    service = start(url)
    rights = "USAGE ON SCHEMA public TO reader; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"
    postgres.run(f"ALTER ROLE reader NOSUPERUSER; GRANT {rights}")
    service.store.engine.dispose()  # as when the connection was lost
    assert_same(scores(service), never_had(model, extractor, events[:5]))
    for act in (lambda: service.add(events), service.check, lambda: start(url)):
        with pytest.raises(ServiceError, match="can't be written .*permission denied.*check the path and the rights"):
            act()
    postgres.run("DROP OWNED BY reader; DROP ROLE reader")
    assert_same(scores(start(postgres.url)), never_had(model, extractor, events[:5]))


def write_on(url, events, known):
    """Stores events one by one, and writes the id of each that is stored."""
    store = EventStore(url)
    for number, event in enumerate(events):
        with store.transaction(writing=True) as transaction:
            transaction.customer("c03", locked=True)
            transaction.append("c03", number, {event.event_id: event.event})
        os.write(known, f"{event.event_id}\n".encode())


FOREIGN = {
    "a table": "CREATE TABLE {name} (customer_id TEXT, day DATE)",
    "a view": "CREATE VIEW {name} AS SELECT 1 AS customer_id",
    "with our columns": "CREATE TABLE {name} (customer_id TEXT, sequence BIGINT, event_id TEXT, event TEXT)",
}


@pytest.mark.parametrize("name", ["mcm_events", "mcm_customers"])
@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_a_table_of_another_program_is_named_and_not_touched(start, postgres, make, name):
    url = postgres.empty()
    postgres.run(f"CREATE TABLE photos (day DATE); {make.format(name=name)}")
    with pytest.raises(ServiceError, match=rf"is a database of something else .tables {name}.: give another --store"):
        start(url)
    postgres.run(f"DROP {make.split()[1]} {name}")
    start(url)  # beside tables of other programs


def test_a_name_that_no_store_can_hold_is_refused_before_it_is_asked(database, model, extractor):
    """PostgreSQL knows no text with the character 0."""
    client = make_client(make_service(model, extractor, database()))
    for method, path in (
        ("GET", "c%00/scores"),
        ("DELETE", "c%00"),
        ("DELETE", "c03/events/%00"),
        ("GET", "%00/explain"),
    ):
        answer = client.request(method, f"/customers/{path}", params={"task": "items"})
        assert answer.status_code == 422 and "should match pattern" in answer.json()["detail"]
    for path, body in (("/scores", {}), ("/totals", {})):
        assert client.post(path, json={"customers": ["c\0"], **body}).status_code == 422


@pytest.mark.parametrize("killed", ["service", "database"])
def test_what_a_database_acknowledged_is_there_after_kills_of_both_sides(
    start, postgres, events, model, extractor, killed
):
    url, (reading, known) = postgres.empty(), os.pipe()
    many = [event.model_copy(update={"event_id": f"{n}-{event.event_id}"}) for n in range(200) for event in events]
    writer = multiprocessing.get_context("fork").Process(target=write_on, args=(url, many, known))
    writer.start()
    os.close(known)
    with open(reading) as acknowledged:
        first = [next(acknowledged).strip() for _ in range(20)]
        postgres.kill() if killed == "database" else writer.kill()
        writer.join(30)  # of a lost database it fails
        first += acknowledged.read().split()
    if killed == "service":
        postgres.kill()
    postgres.start()
    assert writer.exitcode not in (0, None) and 20 <= len(first) < len(many)
    service = start(url)
    with service.store.transaction() as store:
        found = [row.event_id for row in store.events("c03", 0)]
    assert found[: len(first)] == first and len(found) <= len(first) + 1  # one may have been stored unsaid
    assert service.add(many[: len(found) + 1])["added"] == 1
    assert_same(scores(service), never_had(model, extractor, many[: len(found) + 1]))


@pytest.mark.parametrize("stop", ["closed", "killed"])
def test_a_service_starts_on_a_full_disk_answers_and_refuses_events(
    start, events, model, extractor, small_disk, stop, tmp_path
):
    folder = small_disk("400k")
    service = start(folder / "state.db")
    service.add(events[:3])
    if stop == "killed":
        shutil.copytree(folder, tmp_path / "copy")
    service.store.close()
    if stop == "killed":
        shutil.copytree(tmp_path / "copy", folder, dirs_exist_ok=True)
    with pytest.raises(OSError, match="No space left"), open(folder / "full", "wb", 0) as file:
        while True:
            file.write(bytes(512))
    service = start(folder / "state.db")
    assert_same(scores(service), never_had(model, extractor, events[:3]))
    with pytest.raises(ServiceError, match="has no room left .*: nothing of this request was kept") as caught:
        service.add([event.model_copy(update={"event": event.event | {"item": "x" * 3000}}) for event in events[3:9]])
    assert caught.value.status == 507
    assert_same(scores(service), never_had(model, extractor, events[:3]))
    (folder / "full").unlink()
    assert service.add(events)["added"] == len(events) - 3


def test_services_that_write_at_once_neither_lose_nor_double_an_event(start, database, events, model, extractor):
    place = database()
    services = [start(place), start(place)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda at: services[at % 2].add(events[at : at + 3]), range(len(events) - 2)))
    assert sum(answer["added"] for answer in answers) == len(events)
    for service in services:
        assert_same(scores(service), never_had(model, extractor, events))


def test_a_new_checkpoint_of_the_log_answers_from_the_same_store(start, events, tiny_model, extractor):
    first = start(log="shop, who, when")
    first.add(events[:9])
    other = tiny_model(extended=True, hidden_size=24)
    second = start(model=other, log="shop, who, when")
    second.add(events[9:])
    assert_same(scores(second), never_had(other, extractor, events))
    assert_same(scores(first), never_had(first.model, extractor, events))
    with pytest.raises(ServiceError, match="has events of the log shop, who, when, and this checkpoint reads toys, "):
        start(model=other, log="toys, user, day")


@pytest.mark.parametrize(
    "address", [":memory:", "", "sqlite://", "mysql://host/shop", "http://host", "postgresql://h:x/d"]
)
def test_an_address_of_no_store_is_refused(address):
    with pytest.raises(ServiceError, match="--store is "):
        EventStore(address)


def damage(path):
    """Overwrites the middle of a file."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(path.stat().st_size // 2 - 1))


def run_sql(text):
    def run(path):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(text)

    return run


def remake(fill):
    def run(path):
        for old in path.parent.glob("state.db*"):
            old.unlink()
        fill(path)

    return run


FAULTS = {
    "program": (remake(run_sql("CREATE TABLE photos (name TEXT)")), "of something else .tables photos.: give another"),
    "version": (
        run_sql("UPDATE mcm_store SET value = '99' WHERE name = 'format'"),
        "format 99, and this version reads 3",
    ),
    "no database": (remake(lambda path: path.write_bytes(b"name,price\n" * 1000)), "is damaged or no SQLite file"),
    "a damaged page": (damage, "it was not touched. Copy it aside, then restore a backup"),
    "a folder": (remake(Path.mkdir), "can't be written .unable to open database file.: check the path"),
    "no folder": (
        lambda path: path.parent.rename(path.parent.with_name("moved")),
        "The folder of .* is not there: make",
    ),
}


@pytest.mark.parametrize("change, words", FAULTS.values(), ids=FAULTS.keys())
def test_a_store_at_fault_is_refused_and_not_changed(start, events, tmp_path, change, words):
    folder = tmp_path / "stores"
    folder.mkdir()
    start(folder / "state.db").add(events)
    change(folder / "state.db")
    before = {path: path.read_bytes() for path in folder.glob("state.db") if path.is_file()}
    with pytest.raises(ServiceError, match=words):
        EventStore(str(folder / "state.db"))
    assert {path: path.read_bytes() for path in before} == before


def test_requests_that_write_to_a_file_wait_for_their_turn(start, events):
    """SQLite would sleep and try again, with no order."""
    service = start(timeout=0.2)
    with ThreadPoolExecutor(1) as pool, service.store.transaction(writing=True):
        with pytest.raises(ServiceError, match="is locked by another process .another request writes.") as caught:
            pool.submit(service.add, events).result()
    assert caught.value.status == 503 and service.add(events)["added"] == len(events)


def test_a_locked_store_is_reported_after_the_timeout(start, events, tmp_path):
    service = start(timeout=0.2)
    service.add(events[:3])
    before = scores(service)
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ServiceError, match="is locked by another process .*: nothing of this request was kept"):
            service.add(events[3:])
        assert_same(scores(service), before)  # readers are not stopped
        other.execute("ROLLBACK")
    assert service.add(events)["added"] == len(events) - 3


def test_a_full_disk_keeps_what_was_acknowledged_and_answers(start, events, model, extractor):
    service = start()
    service.add(events[:3])
    with service.store.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

    @sqlalchemy.event.listens_for(service.store.engine, "checkout")
    def no_more_pages(connection, record, proxy):
        connection.execute(f"PRAGMA max_page_count = {pages}")

    big = {"customer_id": "c03", "event": events[0].event | {"item": "x" * 3000}}
    wide = [Incoming(event_id=f"wide-{number}", **big) for number in range(9)]
    with pytest.raises(ServiceError, match="has no room left .*: nothing of this request was kept") as caught:
        service.add(wide)
    assert caught.value.status == 507
    assert_same(scores(service), never_had(model, extractor, events[:3]))
    sqlalchemy.event.remove(service.store.engine, "checkout", no_more_pages)
    service.store.engine.dispose()
    assert service.add([*wide, *events])["added"] == len(wide) + len(events) - 3
