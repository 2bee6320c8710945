# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP service: every endpoint, events sent twice, deletion, limits, the token, and answers to bad requests."""

import json
import logging
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from choices import STATE
from fitted import fill_forecaster, fill_scorer
from serving_client import HEADERS, HOST, TOKEN, as_requests, assert_same, forget_cutoff, make_client, make_service

from modeling_mcm.commands.serve import TOKEN as TOKEN_VARIABLE
from modeling_mcm.commands.serve import ServeOptions
from modeling_mcm.data import PreparedData
from modeling_mcm.live.customer import LiveCustomer
from modeling_mcm.scoring import forecast_total
from modeling_mcm.serving import EventStore, Incoming, ServiceError, create_api

MANIFEST = Path(__file__).resolve().parents[3] / "examples" / "kubernetes.yaml"
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
    return make_live(model, extractor, events)


def post(client, events, status=200):
    answer = client.post("/events", json={"events": events})
    assert answer.status_code == status, answer.text
    return answer.json()


def scores(client, customer="c03", **options):
    answer = client.get(f"/customers/{customer}/scores", params=options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def make_live(model, extractor, events, profile=None):
    """The customer that the service should know."""
    live = LiveCustomer(model, extractor, profile, "c03")
    live.add([each["event"] for each in events])
    return live


def test_what_was_sent_is_answered_and_the_best_label_explained(client, events, live):
    wanted = {"added": len(events), "known": 0, "late": [], "customers": {"c03": len(events)}, "unknown_values": {}}
    assert post(client, events) == wanted
    answer = scores(client, k=4, exclude="seen")
    assert (answer["customer_id"], answer["events"]) == ("c03", len(events))
    assert_same(answer["tasks"], live.scores(k=4, exclude="seen"))
    explained = client.get("/customers/c03/explain", params={"task": "items", "visits": 2}).json()["explanation"]
    wanted = asdict(live.explain("items"))
    assert explained == wanted | {"visits": wanted["visits"][:2]} and len(wanted["visits"]) > 2


@pytest.mark.parametrize("days", [9999, 0])
def test_a_horizon_of_no_forecast_is_refused(tiny_model, extractor, events, tmp_path, days):
    model = fill_forecaster(tiny_model(extended=True, **STATE))
    client = make_client(make_service(model, extractor, tmp_path / "forecasts.db"))
    post(client, events)
    refused = client.get("/customers/c03/forecast", params={"days": [days]})
    assert refused.status_code == 422 and f"No forecast for {days} days" in refused.json()["detail"]


def test_an_event_sent_again_changes_nothing_and_other_contents_are_refused(client, events):
    """Nor does the profile beside it: a late retry must not undo a newer one. (An event may name its customer.)"""
    events = [each | {"event": each["event"] | {"who": "c03"}} for each in events]
    first, *others = events
    post(client, [first | {"profile": {"age": "young"}}, others[0] | {"profile": {"age": "old"}}, *others[1:]])
    before = scores(client)
    again = post(client, [first | {"profile": {"age": "young"}}, *events[3:8], *events[5:6]])
    assert (again["added"], again["known"], again["customers"]) == (0, 7, {"c03": len(events)})
    changed = events[4] | {"event": events[4]["event"] | {"item": "item 00", "aisle": "other"}}
    said = post(client, [changed], 409)["detail"]
    assert f"Event '{events[4]['event_id']}' of customer 'c03' is known with other contents" in said
    assert scores(client) == before


def test_deletion_leaves_no_trace(client, events, model, extractor, tmp_path):
    post(client, events)
    gone = events.pop(6)
    assert client.delete(f"/customers/c03/events/{gone['event_id']}").json() == {"customer_id": "c03", "events": 1}
    never = make_live(model, extractor, events)
    assert_same(scores(client)["tasks"], never.scores())
    assert client.delete("/customers/c03").json() == {"customer_id": "c03", "events": len(events)}
    assert client.get("/customers/c03/scores").status_code == 404
    for path in tmp_path.glob("state.db*"):  # nor do the bytes of the file tell of it
        assert b"c03" not in path.read_bytes() and b'"basket":"3-' not in path.read_bytes()
    late = [post(client, events[start : start + 5])["late"] for start in range(0, len(events), 5)[::-1]]
    assert late == [[], *[["c03"]] * (len(late) - 1)]  # it is said that an event came late
    assert_same(scores(client)["tasks"], never.scores())


def hold(service):
    """Every raw event that the service has in memory, as text."""
    return json.dumps([[each.history.events, each.history.profile] for each in service._customers.values()])


@pytest.mark.parametrize("event_id", [None, "one"])
@pytest.mark.parametrize("moment", ["at rest", "while it is read", "while an event is added"])
def test_what_is_deleted_is_in_no_memory(service, events, moment, event_id, monkeypatch):
    secret = events[0]["event"] | {"item": "secret"}
    sent = [Incoming(**events[0] | {"event": secret, "event_id": "one"}), *(Incoming(**each) for each in events[1:5])]
    service.add(sent)
    assert "secret" in hold(service)
    plain = service._keep

    def delete_first(*options):
        monkeypatch.undo()
        service.delete("c03", event_id)  # of another request, when this one has read the customer
        plain(*options)

    if moment == "at rest":
        service.delete("c03", event_id)
    else:
        monkeypatch.setattr(service, "_keep", delete_first)
        service.add([Incoming(**events[5])]) if "added" in moment else service.read(["c03"])
    assert "secret" not in hold(service)
    with pytest.raises(ServiceError, match="is known" if event_id is None else "has no event"):
        service.delete("c03", event_id)


def test_a_customer_whom_another_service_deleted_is_in_no_memory_when_it_is_deleted_again(service, events):
    service.add([Incoming(**each) for each in events])
    service.store.delete_customer("c03")  # as another service does
    with pytest.raises(ServiceError, match="nothing to delete"):
        service.delete("c03")
    assert hold(service) == "[]"


def test_a_customer_whose_last_event_was_deleted_is_unknown(client, service, events):
    post(client, events[:1])
    assert client.delete(f"/customers/c03/events/{events[0]['event_id']}").status_code == 200
    service.data = "of no model"
    answers = [client.get(f"/customers/c03/{question}") for question in ("scores", "embedding", "explain?task=items")]
    for answer in [*answers, client.post("/totals", json={"customers": ["c03"]})]:
        assert answer.status_code == 404 and "No customer 'c03' is known" in answer.json()["detail"]


def test_values_that_training_has_not_seen_are_said(client, events):
    changed = events[0]["event"] | {"item": "itm 01", "aisle": "nowhere"}
    odd = events[0] | {"event": changed, "profile": {"age": "yung"}}
    unknown = {"item": ["itm 01"], "aisle": ["nowhere"], "age": ["yung"]}
    assert post(client, [odd, *events[1:]])["unknown_values"] == unknown
    assert post(client, [odd])["unknown_values"] == {}  # it is known already


@pytest.mark.parametrize(
    "damaged", ["events SET event = '{'", "events SET event = '[1]'", "customers SET profile = '[1]'"]
)
def test_a_damaged_customer_is_named_and_can_be_deleted(client, service, events, damaged):
    post(client, events[:3])
    with service.store.transaction(writing=True) as store:
        store.run(f"UPDATE mcm_{damaged}")
    service._customers.clear()
    answer = client.get("/customers/c03/scores")
    assert answer.status_code == 503 and "customer 'c03' that can't be read" in answer.json()["detail"]
    assert client.delete("/customers/c03").status_code == 200
    post(client, events[:3])


def test_a_new_profile_changes_the_scores(client, events, model, extractor):
    post(client, events[:5])
    before = scores(client)["tasks"]
    post(client, [events[5] | {"profile": {"age": "old"}}])
    found = scores(client)["tasks"]
    assert_same(found, make_live(model, extractor, events[:6], {"age": "old"}).scores())
    assert found != before
    post(client, [events[6] | {"profile": {}}])  # an empty profile replaces it, in the store too
    assert client.delete(f"/customers/c03/events/{events[6]['event_id']}").status_code == 200
    assert_same(scores(client)["tasks"], make_live(model, extractor, events[:6]).scores())


def test_ids_may_be_any_text(client, events):
    ids = ("a", "a/events/1", "a/b", "ä ö", "x/scores", "a?b#c", "..", "%2F", "a%2Fb")
    post(client, [events[place] | {"customer_id": who, "event_id": id} for who in ids for place, id in enumerate(ids)])
    quoted = {name: quote(name, safe="").replace(".", "%2E") for name in ids}
    for name, path in quoted.items():
        for question in ("scores", "embedding", "explain?task=items"):
            answer = client.get(f"/customers/{path}/{question}").json()
            assert (answer.get("customer_id"), answer.get("events")) == (name, len(ids)), (question, answer)
    for name, path in quoted.items():
        assert client.delete(f"/customers/{path}/events/{path}").json() == {"customer_id": name, "events": 1}
        assert client.delete(f"/customers/{path}").json() == {"customer_id": name, "events": len(ids) - 1}


def test_scores_of_many_customers_are_those_of_each_in_one_batch(client, event_log, model):
    post(client, as_requests(event_log, ["c01", "c02"]))
    batches = []
    model.register_forward_pre_hook(lambda module, args, inputs: batches.append(inputs["input_ids"]), with_kwargs=True)
    answer = client.post("/scores", params={"k": 3}, json={"customers": ["c02", "nobody", "c01", "c02"]}).json()
    assert answer["unknown"] == ["nobody"]
    assert [len(each) for each in batches] == [2]
    for found, name in zip(answer["customers"], ("c02", "c01"), strict=True):
        alone = scores(client, name, k=3)
        assert_same(found.pop("tasks"), alone.pop("tasks"))
        assert found == alone


def test_a_total_is_that_of_the_data_set(tiny_model, extractor, event_log, prepared, tmp_path):
    model = fill_forecaster(tiny_model(extended=True, **STATE))
    service, data = make_service(model, extractor, tmp_path / "totals.db"), PreparedData(prepared)
    client, names = make_client(service), sorted(event_log["who"].unique())[3:9]
    post(client, as_requests(event_log, names))
    body = {"customers": names, "quantity": "a.b", "days": 25}
    refused = client.post("/totals", json=body)
    assert refused.status_code == 501 and "without --data" in refused.json()["detail"]
    service.data = str(data.folder)
    end = event_log["when"].max().isoformat()
    found = client.post("/totals", json=body | {"as_of": end}).json()
    wanted = forecast_total(model, data, "a.b", 25, names)
    assert (found["customers"], found["as_of"], found["days"]) == (len(names), end, 25)
    assert found["expected"] == pytest.approx(wanted.expected, rel=1e-4) and len(found["past"]) == 3
    for each, past in zip(found["past"], wanted.past, strict=True):
        assert each.pop("as_of") == past.as_of.isoformat()
        assert each == pytest.approx({name: getattr(past, name) for name in each}, rel=1e-3)
    wrong = ({"days": 200}, {"days": 0.1}, {"quantity": "price"}, {"as_of": "2027-01-01"})
    for change, status in (({"customers": ["nobody"]}, 404), *((change, 422) for change in wrong)):
        assert client.post("/totals", json=body | change).status_code == status
    service.close()


def test_an_explanation_stops_nobody_else_of_the_same_customer(client, service, events, live):
    post(client, events[:-1])
    explained, go_on = threading.Event(), threading.Event()
    plain = service.worker

    def slow(*question):
        explained.set()
        assert go_on.wait(60)
        return plain(*question)

    service.worker = slow
    answers = []
    asking = threading.Thread(target=lambda: answers.append(client.get("/customers/c03/explain?task=items").json()))
    asking.start()
    assert explained.wait(60)
    post(client, events[-1:])
    assert_same(scores(client)["tasks"], live.scores())
    go_on.set()
    asking.join()
    assert answers[0]["events"] == len(events) - 1


def test_metrics_count_requests_by_route(client, service, events):
    post(client, events)
    scores(client)
    client.get("/customers/nobody/scores")
    text = client.get(f"{HOST}/metrics").text
    route = 'handler="/v1/customers/{customer_id:id}/scores",method="GET"'
    assert f'http_requests_total{{{route},status="200"}} 1.0' in text
    assert f'http_requests_total{{{route},status="404"}} 1.0' in text
    assert "nobody" not in text


@pytest.mark.parametrize("sent", [None, "Bearer", "Bearer wrong", "Basic wrong", HEADERS["Authorization"] + "x"])
def test_every_endpoint_but_healthz_needs_the_token(client, service, events, sent):
    paths = client.get(f"{HOST}/openapi.json").json()["paths"]
    for name in ("healthz", "readyz"):
        assert paths.pop(f"/{name}").keys() == {"get"}
    assert len(paths) == 14 and "http" not in client.get(f"{HOST}/docs").text.replace("http-equiv", "")
    del client.headers["Authorization"]
    for path, methods in paths.items():
        for method in methods:
            body = {"events": events} if method == "post" else None
            answer = client.request(method, HOST + path, json=body, headers=sent and {"Authorization": sent})
            assert answer.status_code == 401 and "Send `Authorization: Bearer TOKEN`" in answer.json()["detail"]
    assert service.store.count() == 0
    for name in ("healthz", "readyz"):
        assert client.get(f"{HOST}/{name}").json()["status"] == "ok"


def replace_file(path):
    path.rename(path.with_name("moved"))
    EventStore(str(path)).close()


@pytest.mark.parametrize(
    "remove",
    [Path.unlink, lambda path: path.with_name("state.db-wal").unlink(), replace_file],
    ids=["removed", "its log removed", "replaced"],
)
def test_a_service_whose_file_is_gone_acknowledges_nothing(client, service, events, remove):
    post(client, events[:1])
    remove(Path(service.store.name))
    answers = [client.get(f"{HOST}/readyz"), client.get("/customers/c03/scores")]
    answers.append(client.post("/events", json={"events": events[1:2]}))
    for answer in answers:
        assert answer.status_code == 503 and "removed or replaced while this service ran" in answer.json()["detail"]


def test_a_table_of_candidates_that_is_gone_is_said(model, extractor, events, tmp_path):
    stock = tmp_path / "stock.csv"
    stock.write_text("items\nitem 01\nitem 02\n")
    client = make_client(make_service(model, extractor, tmp_path / "state.db", candidates=str(stock)))
    post(client, events)
    assert {entry["label"] for entry in scores(client)["tasks"]["items"]} == {"item 01", "item 02"}
    stock.write_text("items\nitem 03\n")  # it is read again
    assert [entry["label"] for entry in scores(client)["tasks"]["items"]] == ["item 03"]
    stock.unlink()
    for path in (f"{HOST}/readyz", "/customers/c03/scores"):
        answer = client.get(path)
        assert answer.status_code == 503 and "The table of candidates can't be read" in answer.json()["detail"]


def test_each_of_several_tokens_opens_the_service_and_has_its_own_limit(service):
    other = "another token of the tests"
    both = f"{TOKEN},{other}"
    client = make_client(service, both, limit=0.001)
    for token, status in ((TOKEN, 404), (TOKEN, 429), (other, 404), (both, 401), ("", 401)):
        answer = client.get("/customers/nobody/scores", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == status, token
        assert ("Retry-After" in answer.headers) == (status == 429)


@pytest.mark.parametrize("token", ["short", "ä" * 16, "a token of the tests\n", f"{TOKEN},"])
def test_a_token_that_no_client_can_send_is_refused(service, token):
    with pytest.raises(ValueError, match="The token has [0-9]+ characters; give at least 16"):
        create_api(service, token)


def test_a_large_body_is_refused(client):
    answer = client.post("/events", content=b"x" * 1_000_001)
    assert answer.status_code == 413 and "more than 1,000,000 bytes" in answer.json()["detail"]
    assert client.post("/events", content=b"x" * 1_000_000).status_code == 422


# What is changed of an event and of what is sent with it, null where it is left out; then what is said.
BAD_EVENTS = r"""
{"event": {"when": null}} -> Customer 'c03': column 'when': found no time
{"event": {"when": "2018-01-01T00:02:00"}} -> has an event at 2018-01-01T00:02:00, which is after now
{"event": {"when": "2018-01-01T00:30:00-01:00"}} -> has an event at 2018-01-01T01:30:00, which is after now
{"event": {"price": NaN}} -> body.events.1.event: Value error, is no JSON (Out of range float
{"event": {"price": DIGITS}} -> expected a number; convert it
{"event": {"who": "c04"}} -> column 'who': found the customers c03, c04; give each
{"event_id": null} -> The request can't be read: body.events.1.event_id: Field required
{"event_id": ""} -> event_id: String should have at least 1 character
{"customer_id": "LONG"} -> customer_id: String should have at most 256
{"customer_id": "c\u0000"} -> customer_id: String should match pattern
{"customer_id": "\ud800"} -> customer_id: Input should be a valid str
{"event": {"item": "\ud800"}} -> body.events.1.event: Value error, is no JSON (
{"event": {"\ud800": 1}} -> body.events.1.event: Value error, is no JSON (
{"profile": {"age": "\ud800"}} -> body.events.1.profile: Value error, is no JSON (
{"\ud800": {}} -> body.events.1: Input should be a valid
{"evnt": {}} -> body.events.1.evnt: Extra inputs are not permitted
{"profile": {"shoe": 44}} -> profile: unknown 'shoe'; Known are
""".strip().splitlines()


def changed(values, changes):
    """Values with others, of which those that are None are left out."""
    return {name: value for name, value in (values | changes).items() if value is not None}


@pytest.mark.parametrize("line", BAD_EVENTS)
def test_bad_events_are_refused_logged_and_not_kept(client, events, service, line, caplog):
    caplog.set_level(logging.INFO)
    text, words = line.split(" -> ")
    changes = json.loads(text.replace("DIGITS", "1" * 401).replace("LONG", "c" * 257))
    bad = changed(events[1], changes | {"event": changed(events[1]["event"], changes.get("event", {}))})
    body = json.dumps({"events": [events[0], bad]}).encode()
    answer = client.post("/events", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]
    assert f"422: {json.dumps(answer.json()['detail'])}" in caplog.messages  # in one line
    assert service.store.count() == 0


def fail(*_, **__):
    raise ValueError("operands could not be broadcast together")


@pytest.mark.parametrize(
    "path",
    ["/events", "/scores", "/totals", "/labels/similar?task=items&label=item 01"]
    + [f"/customers/c03/{question}" for question in ("scores", "embedding", "forecast", "explain?task=items")],
)
def test_a_fault_of_the_service_is_no_fault_of_the_client(tiny_model, extractor, events, tmp_path, monkeypatch, path):
    model = fill_forecaster(fill_scorer(tiny_model(extended=True, scorer=True, **STATE)))
    service = make_service(model, extractor, tmp_path / "state.db")
    client, service.data = make_client(service), "of no model"
    forget_cutoff(monkeypatch)
    post(client, events[1:])
    for function in ("serving.store.Transaction.append", "predictor_mcm.Predictor.run", "live.similar.choose_labels"):
        monkeypatch.setattr(f"modeling_mcm.{function}", fail)
    body = {"events": events[:1]} if path == "/events" else {"customers": ["c03"]}
    asked = ("POST", path, {"json": body}) if path in ("/events", "/scores", "/totals") else ("GET", path, {})
    for is_raised, errors in ((False, nullcontext()), (True, pytest.raises(ValueError, match="operands could not"))):
        client._transport.raise_server_exceptions = is_raised  # the server gets it, and logs the traceback
        with errors:
            answer = client.request(*asked[:2], **asked[2])
            assert answer.status_code == 500 and "The service failed (ValueError)" in answer.json()["detail"]
    monkeypatch.undo()
    forget_cutoff(monkeypatch)
    assert client.request(*asked[:2], **asked[2]).status_code == 200


# The status of a request, its path and, where something is sent, its body; then what is said.
BAD_REQUESTS = """
404 /customers/nobody/scores -> No customer 'nobody' is known: send an event
422 /customers/c03/scores?task=nope -> No tasks ['nope']: this checkpoint predicts
422 /customers/c03/scores?topk=3 -> query.topk: Extra inputs are not permitted
422 /customers/c03/scores?k=1000000 -> query.k: Input should be less than or equal to 1000
422 /customers/c03/scores?as_of=2017-01-01 -> the clock went back, or the event lies in the future
422 /customers/c03/scores?horizon_days=1e-9 -> `horizon_days` is 
422 /customers/c03/scores?horizon_days=7 -> `horizon_days` is 
422 /customers/c03/scores?horizon_days=1e9 -> `horizon_days` is 
422 /customers/c03/scores?task=items&candidate=no -> No candidate of
422 /customers/c03/embedding?as_of=nan -> `as_of`: found 'nan', which is no time
501 /customers/c03/forecast -> has no trained forecasts: they would be made up.
422 /customers/c03/explain?task=items&visits=-1 -> query.visits: Input should be greater
404 /customer/c03 -> Not Found
422 /customers/c%00/scores -> path.customer_id: String should match pattern
422 /customers/LONG/embedding -> path.customer_id: String should have at most 256
422 /scores {"customers": ["c\\u0000"]} -> body.customers.0: String should match pattern
422 /scores {"customers": []} -> at least 1 item
422 /scores {"customers": [MANY"c"]} -> at most 100 items
422 /events hello -> The request can't be read: body.0: JSON decode error
422 /events {"events": []} -> body.events: List should have at least 1 item
422 /events {"events": [MANY{}]} -> List should have at most 1000 items
400 /events {"events": DEEP -> There was an error parsing the body
""".strip().splitlines()


@pytest.mark.parametrize("line", BAD_REQUESTS)
def test_bad_requests_are_answered_with_what_is_wrong(client, events, line):
    post(client, events)
    request, words = line.split(" -> ")
    status, path, *body = request.replace("LONG", "c" * 257).split(" ", 2)
    if body:
        content = body[0].replace("MANY", '"c", ' * 1000 if path == "/scores" else "{}, " * 1000)
        content = content.replace("DEEP", "[" * 100_000)
        answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    else:
        answer = client.get(path)
    assert answer.status_code == int(status) and words in answer.json()["detail"]


def test_openapi_has_short_names_and_a_task_that_the_service_knows(client, events):
    post(client, [each | {"customer_id": "7"} for each in events])
    paths = client.get(f"{HOST}/openapi.json").json()["paths"]
    names = [each["operationId"] for path in paths.values() for each in path.values()]
    assert len({*names}) == len(names) and {"post_events", "scores", "healthz", "metrics"} < {*names}
    for path in ("/v1/customers/{customer_id}/scores", "/v1/labels/similar", "/v1/labels/together"):
        given = {each["name"]: each["example"] for each in paths[path]["get"]["parameters"] if "example" in each}
        (task,) = given["task"] if path.endswith("scores") else [given["task"]]
        found = client.get("/customers/7/scores", params={"task": task}).json()
        assert found["tasks"].keys() == {task}
    assert "to POST /v1/events first" in client.get("/customers/nobody/scores").json()["detail"]


def test_the_manifest_of_kubernetes_asks_what_the_service_answers(client):
    deployment, service = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert client.get(HOST + asked["path"], headers={"Authorization": ""}).json()["status"] == "ok"
        assert asked["port"] in [port["name"] for port in container["ports"]]
    assert container["ports"][0]["containerPort"] == ServeOptions(model="any").port
    command, *options = container["args"]
    assert command == "serve" and {option[2:] for option in options[::2]} <= {
        each.name for each in fields(ServeOptions)
    }
    assert {each["name"] for each in container["env"]} == {TOKEN_VARIABLE, "MCM_STORE"}
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_openapi_says_what_is_answered_and_its_example_is_an_event(client):
    found = client.get(f"{HOST}/openapi.json").json()
    assert found["components"]["securitySchemes"] == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
    answers = found["paths"]["/v1/customers/{customer_id}/scores"]["get"]["responses"]
    schemas = {status: answer["content"]["application/json"]["schema"]["$ref"] for status, answer in answers.items()}
    assert schemas.pop("200").endswith("/Scores") and {"401", "404", "422", "503"} < schemas.keys()
    assert {*schemas.values()} == {"#/components/schemas/Problem"}
    body = found["paths"]["/v1/events"]["post"]["requestBody"]["content"]["application/json"]
    assert post(client, body["example"]["events"])["customers"] == {"7": 1}


def test_what_needs_no_token_tells_no_value_of_the_log(client, service):
    """But for the kinds of events, which the schema names."""
    values = {value for values in service.extractor.vocabularies.values() for value in values}
    values -= {*service.extractor.schema.target_token_types, "0", "1"}
    assert len(values) > 30
    for path in ("/openapi.json", "/docs", "/healthz", "/readyz"):
        text = client.get(HOST + path, headers={"Authorization": ""}).text
        assert not [value for value in values if f'"{value}"' in text], path


def test_whoever_asks_whether_the_service_is_ready_keeps_no_writer_waiting(client, service, monkeypatch):
    checks, plain = [], service.store.check
    monkeypatch.setattr(service.store, "check", lambda: checks.append(plain()))
    start = time.monotonic()
    for _ in range(50):
        assert client.get(f"{HOST}/readyz", headers={"Authorization": ""}).status_code == 200
    assert 1 <= len(checks) <= time.monotonic() - start + 2


def test_an_answer_about_the_past_says_that_counts_hold_later_events(tiny_model, extractor, events, tmp_path):
    model = fill_forecaster(fill_scorer(tiny_model(extended=True, scorer=True, **STATE)))
    client = make_client(make_service(model, extractor, tmp_path / "state.db"))
    post(client, events[:2])
    asked = "/customers/c03/forecast?as_of=2017-12-01"
    assert "warning" not in client.get(asked).json()
    for until, is_told in (("2017-12-01T00:00:01", False), ("2017-12-01T00:00:02", True)):
        model.config.counted = {"log": "shop", "customers": 1, "events": 1, "until": until}
        words = f"The counts hold events until {until}." if is_told else None
        assert client.get(asked).json().get("warning") == words
