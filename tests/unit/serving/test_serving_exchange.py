# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A service goes on with another checkpoint: from then on every answer is the other one's, and before it none is."""

import gc
import multiprocessing
import os
import shutil
import signal
import threading
import time
import weakref

import forked_runs
import psutil
import pytest
import torch
from choices import STATE, perturb
from fitted import fill_forecaster, fill_scorer
from folders import content
from serving_client import as_requests, forget_cutoff, make_client, make_service

from modeling_mcm import (
    CustomerModel,
    MCMFeatureExtractor,
    MCMForActionRecommendation,
    MCMForCustomerPrediction,
    MCMForMultiTaskRecommendation,
)
from modeling_mcm.commands.serve import follow_folder, look
from modeling_mcm.serving.store import Transaction
from modeling_mcm.training.checkpoints import checkpoint_digest, open_checkpoint, save_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*httpx")
HEADS = {
    "labels": MCMForMultiTaskRecommendation,
    "prediction": MCMForCustomerPrediction,
    "offers": MCMForActionRecommendation,
}
CUSTOMER, GROUP = "/customers/c03", {"customers": ["c03", "c05"]}
ACTIONS = [{"action_id": "a", "action": "buy", "item": "item 01"}, {"action_id": "b", "item": "item 02"}]
# Of every endpoint that reads a customer, or labels, what is asked
QUESTIONS = {
    ("post", "/scores"): {"json": GROUP},
    ("get", CUSTOMER + "/scores"): {"params": {"k": 5, "exclude": ["seen", "item 02"], "horizon_days": 30}},
    ("get", CUSTOMER + "/embedding"): {},
    ("get", CUSTOMER + "/forecast"): {},
    ("get", CUSTOMER + "/prediction"): {},
    ("get", CUSTOMER + "/explain"): {"params": {"task": "items"}},
    ("post", "/offers"): {"json": {**GROUP, "actions": ACTIONS}},
    ("post", "/totals"): {"json": {**GROUP, "days": 25}},
    ("get", "/labels/similar"): {"params": {"task": "items", "label": "item 01"}},
    ("get", "/labels/together"): {"params": {"task": "items", "label": ["item 01", "item 02"]}},
}
# Endpoints that change the store
CHANGES = {("post", "/events"), ("delete", CUSTOMER), ("delete", CUSTOMER + "/events/e1")}


@pytest.fixture(params=HEADS)
def checkpoints(request, tiny_model, stored_extractor, tmp_path):
    """Folders of two checkpoints of one log with a head: other weights, and their labels in another order."""
    folders = [tmp_path / name for name in ("old", "new")]
    for seed, folder in enumerate(folders):
        extractor = MCMFeatureExtractor.from_pretrained(str(stored_extractor))
        if seed:
            extractor.vocabularies["items"].reverse()
        choices = STATE | {"values_digest": extractor.values_digest}
        model = fill_forecaster(fill_scorer(tiny_model(extended=True, scorer=True, **choices)))
        torch.manual_seed(seed)
        if seed:
            fill_scorer(perturb(model))
        save_checkpoint(folder, model, extractor)
        if (head := HEADS[request.param]) is not MCMForMultiTaskRecommendation:
            labels = {"id2label": {0: "stays", 1: "leaves"}} if head is MCMForCustomerPrediction else {}
            save_checkpoint(folder, perturb(head.from_pretrained(folder, **labels)), extractor)
    return folders


of_labels = pytest.mark.parametrize("checkpoints", ["labels"], indirect=True)


@pytest.fixture
def start(tmp_path, event_log, request, monkeypatch):
    """A function that gives a client of a checkpoint's service, whose store has the events of two customers."""
    forget_cutoff(monkeypatch)
    events, clients = as_requests(event_log, GROUP["customers"]), []

    def run(checkpoint, **options):
        head = HEADS[request.node.callspec.params["checkpoints"]]
        place = tmp_path / f"{len(clients)}.db"
        service = make_service(*open_checkpoint(head, str(checkpoint)), place, data="of no model", **options)
        clients.append(make_client(service))
        assert clients[-1].post("/events", json={"events": events}).status_code == 200
        return clients[-1]

    yield run
    for client in clients:
        client.app.state.service.close()


def exchange(client, folder):
    client.app.state.service = client.app.state.service.with_checkpoint(str(folder))


def ask(client, question):
    """An answer with its status, and the checkpoint that it names."""
    method, path = question
    answer = client.request(method, path, **QUESTIONS[question])
    return answer.status_code, answer.headers.get("MCM-Checkpoint"), answer.json()


def ask_all(client):
    return {question: ask(client, question) for question in QUESTIONS}


def test_after_an_exchange_every_answer_is_that_of_a_new_service(checkpoints, start, event_log):
    old, new = checkpoints
    client, fresh = start(old), start(new)
    paths = client.get("http://testserver/openapi.json").json()["paths"]
    names = {path: path.removeprefix("/v1").format(customer_id="c03", event_id="e1") for path in paths}
    routes = {(method, name) for path, name in names.items() for method in paths[path] if path.startswith("/v1/")}
    assert routes == QUESTIONS.keys() | CHANGES  # a new endpoint is asked, too
    before = ask_all(client)
    exchange(client, new)
    found, wanted = ask_all(client), ask_all(fresh)
    assert found == wanted
    answered = [question for question, (status, *_) in found.items() if status == 200]
    assert len(answered) > 1 and all(before[question] != found[question] for question in answered)
    more = as_requests(event_log, ["c07"])
    more[0]["event"]["item"] = "unknown"
    posted = [each.post("/events", json={"events": more}) for each in (client, fresh)]
    assert posted[0].json() == posted[1].json() and posted[0].headers == posted[1].headers
    assert client.get("http://testserver/openapi.json").json() == fresh.get("http://testserver/openapi.json").json()


def test_an_exchange_during_a_request_does_not_touch_it(checkpoints, start, monkeypatch):
    """The ids of rows that the one read mean other labels to the other."""
    old, new = checkpoints
    client = start(old)
    first, plain, wanted = client.app.state.service, Transaction.customer, ask_all(client)
    second = first.with_checkpoint(str(new))
    later = ask_all(start(new))

    def exchange_and_read(store, *names):
        client.app.state.service = second
        return plain(store, *names)

    monkeypatch.setattr(Transaction, "customer", exchange_and_read)
    for question in QUESTIONS:
        client.app.state.service = first
        assert ask(client, question) == wanted[question], question
        if client.app.state.service is second:  # a customer was read
            assert ask(client, question) == later[question], question


@of_labels
def test_a_model_that_is_no_longer_used_is_freed(checkpoints, start):
    client = start(checkpoints[0])
    ask_all(client)
    service = client.app.state.service
    gone = [weakref.ref(each) for each in (service, service.model, service.extractor)]
    del service
    exchange(client, checkpoints[1])
    ask_all(client)  # also of the threads that answered before
    gc.collect()
    assert [each() for each in gone] == [None] * 3


@of_labels
def test_a_process_of_slow_answers_ends_with_its_model_and_not_before(checkpoints, start, monkeypatch):
    """Neither does an explanation that waits for it fail, nor is one of the new model answered by it."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: forked_runs.CONTEXT)  # which starts at once
    old, new = checkpoints
    question = "get", CUSTOMER + "/explain"
    wanted = [ask(start(folder), question) for folder in checkpoints]
    others = {each.pid for each in multiprocessing.active_children()}
    client = start(old, folder=str(old))
    (first,) = {each.pid for each in multiprocessing.active_children()} - others
    assert ask(client, question) == wanted[0]
    os.kill(first, signal.SIGSTOP)
    answers = []
    asking = [threading.Thread(target=lambda: answers.append(ask(client, question))) for _ in range(3)]
    for each in asking:
        each.start()
    forked_runs.wait_for(lambda: client.app.state.service.worker._free._value == 1)
    exchange(client, new)
    assert ask(client, question) == wanted[1]
    os.kill(first, signal.SIGCONT)
    for each in asking:
        each.join()
    assert answers == [wanted[0]] * 3
    ask(client, question)
    gc.collect()
    forked_runs.wait_for(lambda: first not in psutil.pids())
    (second,) = {each.pid for each in multiprocessing.active_children()} - others
    os.kill(second, signal.SIGKILL)
    assert ask(client, question)[0] == 503
    assert ask(client, question) == wanted[1]  # of another process of the same model
    client.app.state.service.worker.close()
    client.app.state.service.worker = None  # it is closed once
    assert {each.pid for each in multiprocessing.active_children()} == others


def follow(client, folder):
    """Has the service follow a folder, and gives a function that waits until it answers by a checkpoint."""
    options = {"args": (client.app, str(folder), look(folder), 0.05), "daemon": True}
    threading.Thread(target=follow_folder, **options).start()

    def wait(digest):
        forked_runs.wait_for(lambda: client.app.state.service.digest == digest)

    return wait


@of_labels
@pytest.mark.parametrize("order", [1, -1])
def test_files_that_arrive_one_by_one_are_served_when_all_are_there(checkpoints, start, tmp_path, order, caplog):
    served, new = tmp_path / "served", checkpoints[1]
    shutil.copytree(checkpoints[0], served)
    client, wanted = start(served), start(new).app.state.service.digest
    old, wait = client.app.state.service.digest, follow(client, served)
    *files, last = sorted(new.iterdir(), key=lambda path: path.name)[::order]
    for path in files:
        whole = path.read_bytes()
        for part in (whole[: len(whole) // 2], whole):
            (served / path.name).write_bytes(part)
            time.sleep(0.1)
            assert client.app.state.service.digest == old
    shutil.copy(last, served / last.name)
    wait(wanted)
    assert "so the service goes on with what it has" in caplog.text


@of_labels
def test_an_exchange_that_failed_is_tried_again(checkpoints, start, tmp_path, monkeypatch):
    """Also if the folder does not change any more, as where the disk was busy, or a table was away."""
    served, failures = tmp_path / "served", [OSError("busy"), MemoryError(), None]
    shutil.copytree(checkpoints[0], served)
    client, wanted, plain = start(served), start(checkpoints[1]).app.state.service.digest, open_checkpoint

    def fail(*options):
        if failures and (error := failures.pop(0)):
            raise error
        return plain(*options)

    monkeypatch.setattr("modeling_mcm.serving.service.open_checkpoint", fail)
    wait = follow(client, served)
    save_checkpoint(served, *plain(MCMForMultiTaskRecommendation, str(checkpoints[1])))
    wait(wanted)
    assert not failures


@of_labels
def test_a_save_over_a_served_checkpoint_is_whole_or_nothing(checkpoints, event_log, monkeypatch):
    old, new = checkpoints
    before, (model, extractor) = content(old), open_checkpoint(MCMForMultiTaskRecommendation, str(new))
    digest = checkpoint_digest(model, extractor)
    plain = MCMFeatureExtractor.save_pretrained

    def fail(self, folder, **options):
        plain(self, folder, **options)
        assert content(old).items() >= before.items()  # beside what is being written
        raise OSError("no room")

    monkeypatch.setattr(MCMFeatureExtractor, "save_pretrained", fail)
    with pytest.raises(OSError, match="no room"):
        CustomerModel(model, extractor, event_log).save(old)
    assert content(old) == before
    monkeypatch.undo()
    CustomerModel(model, extractor, event_log).save(old)
    assert checkpoint_digest(*open_checkpoint(MCMForMultiTaskRecommendation, str(old))) == digest
