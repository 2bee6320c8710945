# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A published folder answers as the package does where the package is not installed."""

import json
import os
import subprocess
import sys

import pytest
import torch
from elsewhere import READER, assert_close, read_elsewhere
from transformers import AutoModelForPreTraining, pipeline
from tutorial import DUMMY

from modeling_mcm import MCMForActionRecommendation, MCMForMultiTaskRecommendation, MCMModel
from modeling_mcm.hub import write_upload_folder

ACTIONS = [{"action_id": "a", "action": "buy", "item": "item 03"}, {"action_id": "b", "action": "click"}]


@pytest.fixture
def customers(event_log):
    log = event_log.assign(when=event_log["when"].astype(str))
    histories = [log[log["who"] == who].to_dict("list") for who in ("c00", "c01")]
    for events in histories:
        del events["who"]
        events["price"] = [None if price != price else price for price in events["price"]]
        events["aisle"] = [aisle if isinstance(aisle, str) else None for aisle in events["aisle"]]
        events["basket"] = [basket if isinstance(basket, str) else None for basket in events["basket"]]
    return [{"events": events, "profile": {"age": "old"}} for events in histories] + [{"events": []}]


@pytest.mark.parametrize(
    ("extended", "actions"),
    [
        pytest.param(False, [], id="paper-preferences", marks=pytest.mark.slow),
        pytest.param(False, ACTIONS, id="paper-actions"),
        pytest.param(True, [], id="extended-preferences"),
        pytest.param(True, ACTIONS, id="extended-actions", marks=pytest.mark.slow),
    ],
)
def test_a_published_folder_gives_the_same_numbers_without_the_package(
    actions, extended, tiny_model, extractor, customers, tmp_path
):
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "published"
    model = tiny_model(extended=extended)
    if actions:
        torch.manual_seed(1)
        model = MCMForActionRecommendation(model.config).eval()
        torch.nn.init.normal_(model.action_head.numbers.weight)  # as if it was trained
    model.save_pretrained(checkpoint)
    extractor.save_pretrained(checkpoint)
    write_upload_folder(checkpoint, folder)

    expected = {}
    with torch.no_grad():
        inputs = extractor(customers)
        expected["embedding"] = model.model(
            **{name: value for name, value in inputs.items() if name != "event_times"}
        ).pooler_output.tolist()
        if not actions:
            expected["logits"] = {task: values.tolist() for task, values in model(**inputs).logits.items()}
    source = str(checkpoint)
    expected["pipeline embedding"] = [row.tolist() for row in pipeline("customer-embedding", model=source)(customers)]
    expected["preferences"] = pipeline("preference-scores", model=source)(customers)
    if actions:
        expected["actions"] = pipeline("action-scores", model=source)(customers, actions=actions)
    assert_close(read_elsewhere(folder, customers, actions, tmp_path / "elsewhere"), expected)


def test_a_published_folder_forecasts_without_the_package(tmp_path):
    write_upload_folder(DUMMY, tmp_path / "published")
    events = [{"time": f"2017-09-{day:02}", "basket_id": day, "token_type": "purchase"} for day in (2, 9, 20)]
    code = "import json, remote_reader\nfrom transformers import pipeline\n"  # which refuses the package
    code += (
        f"forecast = pipeline('customer-forecast', model={str(tmp_path / 'published')!r}, trust_remote_code=True)\n"
    )
    code += f"print(json.dumps(forecast({{'events': {events}}})))"
    known = os.environ | {"PYTHONPATH": str(READER.parent), "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = pipeline("customer-forecast", model=str(DUMMY))({"events": events})
    assert_close(json.loads(done.stdout.splitlines()[-1]), expected)


def test_where_the_package_is_installed_its_own_classes_read_the_folder(tiny_model, extractor, customers, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "checkpoint")
    extractor.save_pretrained(tmp_path / "checkpoint")
    write_upload_folder(tmp_path / "checkpoint", tmp_path / "published")
    head = AutoModelForPreTraining.from_pretrained(tmp_path / "published", trust_remote_code=True)
    assert type(head) is MCMForMultiTaskRecommendation
    scores = pipeline("preference-scores", model=str(tmp_path / "published"), trust_remote_code=True)
    expected = pipeline("preference-scores", model=str(tmp_path / "checkpoint"))
    assert scores(customers) == expected(customers)
    assert isinstance(MCMModel.from_pretrained(tmp_path / "published"), MCMModel)
