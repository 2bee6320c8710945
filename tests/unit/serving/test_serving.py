# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP service: every endpoint, events sent twice, deletion, limits, the token, and what bad requests are told."""

import json
import re
import threading

import numpy as np
import pytest
from faults import expected
from serving_client import HEADERS, as_requests, assert_same, make_client, make_service

from modeling_mcm.live.customer import LiveCustomer
from modeling_mcm.serving import create_api

pytest.importorskip("fastapi", reason="FastAPI not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*httpx")


@pytest.fixture
def model(tiny_model):
    return tiny_model(extended=True)


@pytest.fixture
def service(model, extractor, tmp_path):
    found = make_service(model, extractor, tmp_path / "state.db")
    yield found
    found.store.close()


@pytest.fixture
def client(service):
    return make_client(service)


@pytest.fixture
def events(event_log):
    return as_requests(event_log, ["c03"])


@pytest.fixture
def live(model, extractor, events):
    """The customer that the service should know."""
    live = LiveCustomer(model, extractor, customer_id="c03")
    live.add([each["event"] for each in events])
    return live


def post(client, events, status=200):
    answer = client.post("/events", json={"events": events})
    assert answer.status_code == status, answer.text
    return answer.json()


def scores(client, customer="c03", **options):
    answer = client.get(f"/customers/{customer}/scores", params=options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_question_is_answered_as_the_model_answers_it(client, events, live):
    assert post(client, events) == {"added": len(events), "known": 0, "late": [], "customers": {"c03": len(events)}}
    answer = scores(client, k=4)
    assert (answer["customer_id"], answer["events"]) == ("c03", len(events))
    assert answer["now"] == max(each["event"]["when"] for each in events).removesuffix(".000")
    assert_same(answer["tasks"], live.scores(k=4))
    one = scores(client, task="aisle", k=1, now="2018-01-01")
    assert_same(one["tasks"], live.scores(now="2018-01-01", tasks=["aisle"], k=1))
    found = client.get("/customers/c03/embedding").json()["embedding"]
    np.testing.assert_allclose(found, live.embedding(), atol=1e-5)
    explained = client.get("/customers/c03/explain", params={"task": "items", "visits": 2}).json()["explanation"]
    wanted = live.explain("items").to_dict()
    assert (explained["label"], len(explained["visits"])) == (wanted["label"], 2)
    assert explained["visits"][0]["share"] == pytest.approx(wanted["visits"][0]["share"], abs=1e-5)


def test_events_that_are_sent_again_change_nothing_and_other_contents_are_refused(client, events):
    post(client, events)
    before = scores(client)
    assert post(client, events[3:9] + events[5:6]) == {
        "added": 0, "known": 7, "late": [], "customers": {"c03": len(events)},
    }  # fmt: skip
    changed = events[4] | {"event": events[4]["event"] | {"item": "item 00", "aisle": "other"}}
    said = post(client, [changed], 409)["detail"]
    assert f"Event '{events[4]['event_id']}' of customer 'c03' is known with other contents" in said
    assert scores(client) == before


def test_a_body_is_kept_as_a_whole_or_not_at_all(client, events, service):
    bad = events[1] | {"event": {name: value for name, value in events[1]["event"].items() if name != "when"}}
    other = events[0] | {"customer_id": "someone"}
    post(client, [other, events[0], bad], 422)
    assert service.store.count() == 0
    assert post(client, [other, *events[:2]])["added"] == 3


def test_events_in_any_order_and_any_cut_give_the_same_answers(client, events, live):
    order = np.random.default_rng(0).permutation(len(events)).tolist()
    late = []
    for start in range(0, len(order), 5):
        late += post(client, [events[place] for place in order[start : start + 5]])["late"]
    assert late and set(late) == {"c03"}  # it is said that an event came late
    assert_same(scores(client)["tasks"], live.scores())


def test_a_service_that_starts_again_knows_every_customer(client, events, service, live, model, extractor, tmp_path):
    for start in range(0, len(events), 7):
        post(client, events[start : start + 7])
    service.store.close()
    again = make_service(model, extractor, tmp_path / "state.db", keep_every=4)
    assert_same(scores(make_client(again))["tasks"], live.scores())
    assert again.counts["states_read"] == 1 and not again.counts["states_made"]  # and the events since were added
    again.store.close()


def test_deletion_is_as_if_it_had_never_been(client, events, model, extractor, tmp_path):
    post(client, events)
    gone = events.pop(6)
    assert client.delete(f"/customers/c03/events/{gone['event_id']}").json() == {"customer_id": "c03", "events": 1}
    never = LiveCustomer(model, extractor, customer_id="c03")
    never.add([each["event"] for each in events])
    assert_same(scores(client)["tasks"], never.scores())
    assert client.delete("/customers/c03").json() == {"customer_id": "c03", "events": len(events)}
    assert client.get("/customers/c03/scores").status_code == 404
    for path in tmp_path.glob("state.db*"):  # nor do the bytes of the file tell of it
        assert b"c03" not in path.read_bytes() and b'"basket":"3-' not in path.read_bytes()
    post(client, events)
    assert_same(scores(client)["tasks"], never.scores())


def test_a_profile_counts_from_the_moment_it_is_sent(client, events, model, extractor):
    post(client, events[:5])
    before = scores(client)["tasks"]
    post(client, [events[5] | {"profile": {"age": "old"}}])
    with_age = LiveCustomer(model, extractor, {"age": "old"})
    with_age.add([each["event"] for each in events[:6]])
    found = scores(client)["tasks"]
    assert_same(found, with_age.scores())
    assert found != before


def test_the_column_of_the_customer_may_be_there(client, events):
    named = [each | {"event": each["event"] | {"who": "c03"}} for each in events]
    post(client, named[:5])
    assert post(client, events)["known"] == 5


def test_customers_may_have_any_name(client, events):
    for name in ("a/b", "ä ö", "x/scores", "a?b#c", ".."):
        post(client, [event | {"customer_id": name} for event in events[:3]])
        path = "".join(f"%{byte:02X}" for byte in name.encode())
        answer = client.get(f"/customers/{path}/scores").json()
        assert answer.get("customer_id") == name, (path, answer)


def test_many_threads_lose_nothing(client, event_log, model, extractor):
    requests = as_requests(event_log, ["c01", "c02"])

    def send(place):
        for event in requests[place::4]:
            post(client, [event])

    threads = [threading.Thread(target=send, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for who in ("c01", "c02"):
        whole = LiveCustomer(model, extractor)
        whole.add([each["event"] for each in requests if each["customer_id"] == who])
        answer = scores(client, who)
        assert answer["events"] == len(whole.events)
        assert_same(answer["tasks"], whole.scores())


def test_prometheus_hears_of_requests_by_route(client, events):
    post(client, events)
    scores(client)
    client.get("/customers/nobody/scores")
    text = client.get("/metrics").text
    route = 'method="GET",route="/customers/{customer_id:path}/scores"'
    assert f'mcm_requests_total{{{route},status="200"}} 1.0' in text
    assert f'mcm_requests_total{{{route},status="404"}} 1.0' in text
    assert f"mcm_events_added_total {float(len(events))}" in text
    assert "nobody" not in text


def test_the_examples_of_the_openapi_page_are_real(client):
    page = client.get("/openapi.json").json()
    body = page["components"]["schemas"]["Events"]["examples"][0]
    paths = page["paths"]

    def example(path, method):
        return paths[path][method]["responses"]["200"]["content"]["application/json"]["example"]

    assert client.post("/events", json=body).json() == example("/events", "post")
    customer = "/customers/{customer_id}"
    wanted = example(f"{customer}/scores", "get")
    (task,) = wanted["tasks"]
    assert scores(client, wanted["customer_id"], task=task, k=3) == wanted
    assert client.delete(f"/customers/{wanted['customer_id']}").json() == example(customer, "delete")


def test_the_openapi_page_asks_no_other_machine(client):
    assert "http" not in client.get("/docs").text.replace("http-equiv", "")


def test_only_who_knows_the_token_gets_further(client, events):
    refused = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": HEADERS["Authorization"] + "x"}]
    refused += [{"Authorization": "Basic !"}, {"Authorization": "Basic ZTp3cm9uZw=="}, {"Authorization": "Bearer"}]
    routes = [("GET", path) for path in ("/metrics", "/docs", "/openapi.json", "/customers/c/scores", "/nowhere")]
    for header in refused:
        for method, path in [*routes, ("POST", "/events"), ("DELETE", "/customers/c")]:
            client.headers.pop("Authorization", None)
            answer = client.request(method, path, headers=header)
            assert answer.status_code == 401 and "send `Authorization: Bearer TOKEN`" in answer.json()["detail"]
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/metrics", auth=("", "a token of the tests")).status_code == 200  # as a browser asks


def test_a_short_token_is_refused(service):
    with pytest.raises(ValueError, match="The token has 5 characters; give at least 16"):
        create_api(service, "short")


def test_a_large_body_is_refused_before_it_is_read(service):
    client = make_client(service, body_bytes=10_000)
    pieces = []

    def endless():
        for _ in range(10_000):
            pieces.append(1)
            yield b"x" * 10_000

    answer = client.post("/events", content=endless())
    assert answer.status_code == 413 and "more than 10,000 bytes" in answer.json()["detail"]
    answer = client.post("/events", content=b"{}", headers={"Content-Length": "100000000"})
    assert answer.status_code == 413


def test_more_requests_than_the_rate_are_told_to_wait(service):
    client = make_client(service, rate=0.5, burst=3)
    answers = [client.get("/metrics") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 2
    assert answers[-1].headers["Retry-After"] in ("1", "2") and "requests a second" in answers[-1].json()["detail"]
    assert client.get("/healthz").status_code == 200


def without(name):
    return lambda event: event["event"].pop(name)


def put(**values):
    return lambda event: event["event"].update(values)


EVENTS = {
    "no time": without("when"),
    "a time that is none": put(when="yesterday"),
    "the future": put(when="2018-01-01T00:02:00"),
    "another time zone": put(when="2018-01-01T00:30:00-01:00"),
    "an unknown column": put(itme="item 01"),
    "no number": put(price="cheap"),
    "NaN": put(price=float("nan")),
    "a list": put(item=["item 01"]),
    "a reserved token type": put(action="history_start"),
    "another customer": put(who="c04"),
    "no id": lambda event: event.pop("event_id"),
    "an empty id": lambda event: event.update(event_id=""),
    "a long id": lambda event: event.update(customer_id="c" * 257),
    "a null byte": lambda event: event.update(customer_id="c\0"),
    "half a character": lambda event: event.update(customer_id="\ud800"),
    "another key": lambda event: event.update(evnt={}),
    "an unknown column of the profile": lambda event: event.update(profile={"shoe": 44}),
}


@pytest.mark.parametrize("change, words", expected("Events that the service is sent", EVENTS))
def test_bad_events_are_refused_and_nothing_of_the_body_is_kept(client, events, service, change, words):
    bad = json.loads(json.dumps(events[1]))
    change(bad)
    body = json.dumps({"events": [events[0], bad]}).encode()
    answer = client.post("/events", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert re.search(words, answer.json()["detail"])
    assert service.store.count() == 0


QUESTIONS = {
    "an unknown customer": (404, "/customers/nobody/scores"),
    "an unknown task": (422, "/customers/c03/scores?task=nope"),
    "no label": (422, "/customers/c03/scores?k=0"),
    "a million labels": (422, "/customers/c03/scores?k=1000000"),
    "a clock that went back": (422, "/customers/c03/scores?now=2017-01-01"),
    "a time that is none": (422, "/customers/c03/embedding?now=soon"),
    "an unknown label": (422, "/customers/c03/explain?task=items&label=nope"),
    "no forecasts": (501, "/customers/c03/forecast"),
    "another path": (404, "/customer/c03"),
}


@pytest.mark.parametrize("question, words", expected("Questions that the service is asked", QUESTIONS))
def test_bad_questions_are_told_what_is_wrong(client, events, question, words):
    post(client, events)
    status, path = question
    answer = client.get(path)
    assert answer.status_code == status
    assert re.search(words, answer.json()["detail"])


BODIES = {
    "no JSON": b"hello",
    "a cut one": b'{"events": [{"event_id": "1"',
    "a list": b"[]",
    "no events": b'{"events": []}',
    "too many events": json.dumps({"events": [{}] * 1001}).encode(),
    "too deep": b'{"events": ' + b"[" * 100_000,
    "nothing": b"",
}


@pytest.mark.parametrize("body, words", expected("Bodies that are no events", BODIES))
def test_bodies_that_are_no_events_are_refused(client, body, words):
    answer = client.post("/events", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert re.search(words, answer.json()["detail"])
