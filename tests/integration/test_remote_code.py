# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A published folder answers as the package does where the package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from answers import flatten
from folders import read_json
from transformers import AutoModelForPreTraining, pipeline
from tutorial import DUMMY

from modeling_mcm import MCMForActionRecommendation, MCMForMultiTaskRecommendation, MCMModel
from modeling_mcm.hub import write_upload_folder

READER = Path(__file__).resolve().parents[1] / "helpers" / "remote_reader.py"
ACTIONS = [{"action_id": "a", "action": "buy", "item": "item 03"}, {"action_id": "b", "action": "click"}]


@pytest.fixture
def customers(event_log):
    log = event_log.astype({"when": str}).astype(object)
    log = log.where(log.notna(), None).drop(columns="who")
    histories = [log[event_log["who"] == who].to_dict("list") for who in ("c00", "c01")]
    return [{"events": events, "profile": {"age": "old"}} for events in histories] + [{"events": []}]


def answer_elsewhere(source, customers, folder):
    """The answers that remote_reader.py gets in a process without the package."""
    folder.mkdir()
    (folder / "customers.json").write_text(json.dumps([customers, ACTIONS]))
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, READER, source, folder / "customers.json", folder]
    done = subprocess.run(words, cwd=folder, env=known | {"HF_HOME": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_json(folder / "answers.json")


@pytest.mark.parametrize(
    ("choices", "kinds"),
    [
        pytest.param({}, ["preference-scores", "action-scores"], id="paper, offers"),
        pytest.param({"extended": True}, ["preference-scores", "action-scores"], id="offers", marks=pytest.mark.slow),
        pytest.param(None, ["preference-scores", "customer-forecast"], id="trained"),
    ],
)
def test_a_published_folder_gives_the_same_numbers_without_the_package(choices, kinds, save, customers, tmp_path):
    if choices is None:
        source, days = str(DUMMY), (2, 9, 20)
        events = [{"time": f"2017-09-{day:02}", "basket_id": day, "token_type": "purchase"} for day in days]
        long = [events[0] | {"time": f"2017-0{1 + line // 280}-{1 + line // 10 % 28:02}"} for line in range(2000)]
        customers = [{"events": events}, {"events": long}]  # of whom the encoder reads the latest 256 events
    else:
        source = save(**choices)
    if "action-scores" in kinds:
        torch.manual_seed(1)
        model = MCMForActionRecommendation.from_pretrained(source)
        torch.nn.init.normal_(model.action_head.numbers.weight)  # as if it was trained
        model.save_pretrained(source)
    write_upload_folder(source, tmp_path / "published")
    found = answer_elsewhere(tmp_path / "published", customers, tmp_path / "elsewhere")
    assert set(found) == {"customer-embedding", *kinds}
    for kind, answers in found.items():
        options = {"actions": ACTIONS} if kind == "action-scores" else {}
        expected = flatten(pipeline(kind, model=source)(customers, **options))
        for answer in answers:  # also after loading and saving
            assert flatten(answer) == pytest.approx(expected, abs=1e-6)


def test_where_the_package_is_installed_its_own_classes_read_the_folder(save, customers, tmp_path):
    source, folder = save(), tmp_path / "published"
    write_upload_folder(source, folder)
    head = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)
    assert type(head) is MCMForMultiTaskRecommendation
    scores = pipeline("preference-scores", model=str(folder), trust_remote_code=True)
    assert scores(customers) == pipeline("preference-scores", model=source)(customers)
    assert isinstance(MCMModel.from_pretrained(folder), MCMModel)
