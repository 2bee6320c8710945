# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Labels are chosen from candidates as one would filter by hand, at every entrance; bad tables are refused."""

import copy
from collections import Counter

import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from corner_shop import find_customer
from fitted import fill_scorer
from serving_client import as_requests, assert_same_list, make_client, make_service
from transformers import pipeline

from modeling_mcm import LiveCustomer
from modeling_mcm.candidates_mcm import CandidateSet, choose_labels
from modeling_mcm.configuration_mcm import FIRST_LABEL
from modeling_mcm.live.similar import similar, together
from modeling_mcm.predictor_mcm import Predictor, Questions
from modeling_mcm.scorer_mcm import WITHIN

TASK = "items"  # whose column is "item"
STOCK = {"item": [f"item {number:02}" for number in range(20)], "aisle": [f"aisle {n % 4}" for n in range(20)]}


@pytest.fixture
def model(tiny_model):
    return fill_scorer(tiny_model(extended=True, scorer=True, kind_feature="type"))


@pytest.fixture
def customer(event_log):
    return find_customer(event_log, "c03") | {"customer_id": "c03"}


@pytest.fixture
def live(model, extractor, customer):
    """The customer, with the events of `c03`."""
    live = LiveCustomer(model, extractor, customer["profile"], "c03")
    live.add(customer["events"])
    return live


def by_hand(scores, k, stock=None, exclude=(), group_of=None, most=None):
    """Filters a list of all labels with their probabilities: `{"label", "score"}`, best first."""
    allowed = [e for e in scores if (stock is None or e["label"] in stock) and e["label"] not in exclude]
    total = sum(each["score"] for each in allowed)
    kept, counts = [], Counter()
    for each in allowed:
        group = group_of[each["label"]] if group_of else each["label"]
        counts[group] += 1
        if counts[group] <= (most or 1):
            kept.append({"label": each["label"], "score": each["score"] / total})
    return kept[:k]


GROUPS = dict(zip(STOCK["item"], STOCK["aisle"], strict=True))


def test_choice_equals_a_loop_over_sorted_labels():
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        scores = torch.randint(0, 6, (4, 40), generator=generator).float()  # with many ties
        allowed = torch.rand(4, 40, generator=generator) < 0.5
        groups, most, k = torch.randint(0, 5, (40,), generator=generator), 2, 7
        found = choose_labels(scores, k, allowed, groups, most)
        for row in range(4):
            ids = [label for label in range(2, 40) if allowed[row, label]]
            chances = scores[row, ids].softmax(0).tolist()
            kept = []
            for label, chance in sorted(zip(ids, chances, strict=True), key=lambda pair: (-pair[1], pair[0])):
                if sum(groups[label] == groups[other] for other, _ in kept) < most:
                    kept.append((label, chance))
            kept = kept[:k] + [(0, 0.0)] * (k - len(kept))
            assert found.labels[row].tolist() == [label for label, _ in kept]
            assert found.scores[row].tolist() == pytest.approx([chance for _, chance in kept])


def test_a_table_of_any_form_and_a_set_choose_as_filtering_by_hand(model, extractor, live):
    every, events = live.scores(tasks=[TASK], k=100)[TASK], {event.get("item") for event in live.events}
    expected = by_hand(every, 8, set(STOCK["item"]), events, GROUPS, 2)
    assert len(expected) > 3
    options = {"exclude": "seen", "per_group": ("aisle", 2)}
    for table in (STOCK, pa.table(STOCK), pa.table(STOCK).to_pylist()):
        assert_same_list(live.scores(tasks=[TASK], k=8, candidates=table, **options)[TASK], expected)
    kept = CandidateSet(model, extractor, [TASK], STOCK, **options)
    assert_same_list(live.scores(tasks=[TASK], k=8, candidates=kept)[TASK], expected)


def test_predictions_of_another_stock_are_not_continued(save, prepared, command, tmp_path):
    words = ["--model", save(), "--data", prepared, "--output_dir", tmp_path / "out", "--tasks", TASK]
    words += ["--candidates", tmp_path / "stock.csv"]
    for number, message in ((5, None), (3, "holds predictions of another")):
        pd.DataFrame(STOCK).head(number).to_csv(tmp_path / "stock.csv", index=False)
        command("run_predict", *words, fails=message)


def test_service_chooses_as_filtering_by_hand(model, extractor, customer, live, tmp_path):
    pytest.importorskip("fastapi", reason="FastAPI not installed")
    stock = tmp_path / "stock.csv"
    pd.DataFrame(STOCK).to_csv(stock, index=False)
    service = make_service(model, extractor, tmp_path / "state.db", candidates=str(stock))
    client = make_client(service)
    assert client.post("/events", json={"events": as_requests(customer["events"], ["c03"])}).status_code == 200
    every = LiveCustomer(model, extractor)  # the service was told no profile
    every.add(live.events)
    every = every.scores(tasks=[TASK], k=100)[TASK]

    def ask(status=200, **options):
        answer = client.get("/customers/c03/scores", params={"task": TASK, "k": 8, **options})
        assert answer.status_code == status, answer.text
        return answer.json()["tasks"][TASK] if status == 200 else answer.json()["detail"]

    assert_same_list(ask(per_group="aisle=2"), by_hand(every, 8, set(STOCK["item"]), (), GROUPS, 2))
    few = STOCK["item"][:5]
    assert_same_list(ask(candidate=few, exclude=few[:2]), by_hand(every, 8, few[2:]))
    assert "no label that the checkpoint knows" in ask(422, candidate="nothing")
    for name, find, labels in (("together", together, few[:2]), ("similar", similar, few[0])):
        answer = client.get(f"/labels/{name}", params={"task": TASK, "label": labels, "k": 3})
        assert answer.json()["labels"] == find(model, extractor, TASK, labels, 3)
    service.store.close()


def test_labels_are_excluded_for_each_customer(model, extractor, customer):
    pipe = pipeline("preference-scores", model=model, feature_extractor=extractor)
    every = pipe(customer, tasks=[TASK], top_k=100)[TASK]
    best = every[0]["label"]
    for name in ("who", "customer_id"):  # as the log and as predictions call it
        exclude = {name: ["c03", "c04"], "item": [best, every[1]["label"]]}
        found = pipe(customer, tasks=[TASK], top_k=5, exclude=exclude)
        assert_same_list(found[TASK], by_hand(every, 5, exclude=[best]))
    with pytest.raises(ValueError, match="customer_id"):
        nameless = {"events": customer["events"].drop(columns="who")}
        pipe(nameless, tasks=[TASK], exclude={"who": ["c03"], "item": [best]})
    live = LiveCustomer(model, extractor, customer_id="c03")
    few = {"candidates": [best], "exclude": {"who": ["c03"], "item": [best]}}  # which one of two customers may get
    assert live.scores(tasks=[TASK], **few) == {TASK: []}
    lists = pipe([customer, {"customer_id": "c04", "events": []}], tasks=[TASK], **few)
    assert [len(of_customer[TASK]) for of_customer in lists] == [0, 1]


@pytest.mark.parametrize("kind", [list, tuple, pd.Series])
def test_seen_among_labels_excludes_both_and_a_label_of_its_name_by_a_table(model, extractor, live, kind):
    every, events = live.scores(tasks=[TASK], k=100)[TASK], {event.get("item") for event in live.events}
    best = next(each["label"] for each in every if each["label"] not in events)
    found = live.scores(tasks=[TASK], k=100, exclude=kind(["seen", best]))[TASK]
    assert_same_list(found, by_hand(every, 100, exclude={best, *events}))
    both = CandidateSet(model, extractor, exclude=kind(["seen"]))
    assert both.excludes_seen and both.tasks == extractor.tasks
    extractor._encoding.ids[TASK]["seen"] = FIRST_LABEL
    table = CandidateSet(model, extractor, [TASK], exclude={"item": ["seen"]})
    assert not table.needs_seen and table.choose(TASK, torch.zeros(1, 26), 1).labels.tolist() == [[FIRST_LABEL + 1]]


def test_a_set_serves_another_model_of_the_same_values_alone(model, extractor, live, tiny_model):
    kept, other = CandidateSet(model, extractor, [TASK]), tiny_model(extended=True, scorer=True, kind_feature="type")
    fill_scorer(other).scorer.chance[:] = 0.5
    live = LiveCustomer.from_bytes(live.to_bytes(), other, extractor)
    assert live.scores(tasks=[TASK], candidates=kept) == live.scores(tasks=[TASK])
    renamed = copy.deepcopy(extractor)
    renamed.vocabularies[TASK].reverse()
    with pytest.raises(ValueError, match="other values: make another"):
        Predictor(other, renamed).check(Questions(tasks=[TASK], candidates=kept))
    with pytest.raises(ValueError, match="where it is made"):
        Predictor(other, extractor).check(Questions(tasks=[TASK], candidates=kept, exclude="seen"))


@pytest.mark.parametrize("aisles", [4, 1])
def test_a_new_label_has_the_average_of_labels_that_share_its_features(model, extractor, live, caplog, aisles):
    known = extractor.vocabularies[TASK]
    table = {
        "item": [*known, "new", "odd"],
        "aisle": [*(f"aisle {n % aisles}" for n in range(len(known))), "aisle 0", None],
    }
    table = {name: [*values, values[0]] for name, values in table.items()}
    found = CandidateSet(model, extractor, [TASK], table)
    assert "'odd': no known label has their value of aisle" in caplog.text
    scores = torch.randn(3, len(known) + 2)
    scores[:, :2] = torch.finfo(scores.dtype).min / 2
    chosen = found.choose(TASK, scores, k=len(known) + 1)
    alike = [2 + n for n in range(0, len(known), aisles)]
    for row in range(3):
        chances = scores[row].softmax(0)
        new = chances[alike].mean()
        by_label = dict(zip(found.decode(TASK, chosen.labels[row].tolist()), chosen.scores[row].tolist(), strict=True))
        assert by_label["new"] == pytest.approx((new / (1 + new)).item(), rel=1e-4)
        assert sum(by_label.values()) == pytest.approx(1, rel=1e-4)
    every, others = (live.scores(tasks=[TASK], k=100, candidates=table, exclude=seen)[TASK] for seen in (None, "seen"))
    assert_same_list(others, by_hand(every, 100, exclude={event.get("item") for event in live.events}))


# Arguments of a set of candidates, and what is said of them
WRONG = r"""
{candidates: {itm: [item 01]}}                   -> no column 'item'.*'itm' meant
{candidates: {item: [item 01, null]}}            -> column 'item': null in 1 of 2 rows
{candidates: [item 01], exclude: [item 01]}      -> No candidate of 'items' is left: column 'items'
{candidates: []}                                 -> No candidate of 'items' is left
{candidates: [item 01], per_group: [aisle, 1]}   -> columns 'items' and 'aisle'
{per_group: [aisle, 1]}                          -> columns 'items' and 'aisle'
{per_group: [aisle, 0]}                          -> at least 1
{per_group: aisle=0}                             -> at least 1
{per_group: aisle=x}                             -> at least 1
{per_group: aisle}                               -> at least 1
{per_group: 2}                                   -> at least 1
{candidates: {item: [item 01], aisle: [null]}, per_group: [aisle, 1]} -> 'aisle'.*has null
{candidates: {item: [item 01, item 01], aisle: [a, b]}, per_group: [aisle, 1]} -> 'a' and 'b'.*one value
{exclude: {who: [null], item: [item 01]}}        -> column 'who': null in 1 of 1 rows
{exclude: {user: [c03], item: [item 01]}}        -> `exclude`: .* unknown 'user'.*item.*who, customer_id
{candidates: {who: [c03], item: [item 01]}}      -> for all customers: unknown 'who'
{exclude: sene}                                  -> `exclude`: found 'sene'
{tasks: [items, aisle], candidates: [item 01]}   -> ask for one task
{tasks: [items, aisle], candidates: {item: [item 01]}, per_group: [items, 1]} -> items a label of 'aisle' has
""".strip().splitlines()


@pytest.mark.parametrize("line", WRONG)
def test_bad_arguments_name_the_column_and_the_fix(model, extractor, line):
    options, message = line.split(" -> ")
    with pytest.raises(ValueError, match=message):
        CandidateSet(model, extractor, **{"tasks": [TASK]} | yaml.safe_load(options))


def test_similar_and_together_read_the_counts(model, extractor):
    tables = model.scorer.get_tables(model.config.tasks.index(TASK))
    first, second, third = extractor.label_ids(TASK, ["item 01", "item 02", "item 03"])
    tables.weights.zero_()
    for label in (first, second):  # the same labels come after both
        tables.weights[0, label, :2] = torch.tensor([1.0, 2.0]).half()
        tables.neighbours[0, label, :2] = torch.tensor([third, third + 1]).int()
    tables.weights[2, first, 0], tables.neighbours[2, first, 0] = 1, int(third)
    tables.attributes.zero_()
    assert similar(model, extractor, TASK, "item 01", 3) == [{"label": "item 02", "score": pytest.approx(1)}]
    tables.attributes[[first, third], 0] = 1
    found = similar(model, extractor, TASK, "item 01", 3)
    assert {each["label"]: each["score"] for each in found} == pytest.approx({"item 02": 0.5, "item 03": 0.5})
    kinds = model.scorer.get_tables(model.config.tasks.index("type"))
    kinds.weights.fill_(1), kinds.neighbours.copy_(torch.arange(kinds.neighbours.shape[-1]))
    assert [each["label"] for each in similar(model, extractor, "type", "buy")] == ["click"]  # no end_of_visit
    assert [each["label"] for each in together(model, extractor, TASK, ["item 01"], 3)] == ["item 03"]
    with pytest.raises(ValueError, match="is 'item 01' meant"):
        similar(model, extractor, TASK, "items 01")
    with pytest.raises(ValueError, match="at least one label"):
        together(model, extractor, TASK, [])


def test_a_horizon_has_scores_and_chances_where_it_was_fitted(model, live, monkeypatch):
    model.scorer.chance[:, WITHIN] = torch.tensor([0.5, 0.9, -0.2])
    assert "chance" in live.scores(tasks=[TASK], horizon_days=30)[TASK][0]
    for other in (7, -1, 1e9, "30"):
        with pytest.raises(ValueError, match="labels are ranked for 30 days"):
            live.scores(horizon_days=other)
    monkeypatch.setattr(live.feature_extractor, "order", "rows")
    with pytest.raises(ValueError, match="`horizon_days` needs times"):
        live.scores(horizon_days=30)
