# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The card says what the files say."""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard

from modeling_mcm import MCMForActionRecommendation
from modeling_mcm.hub import Exposure, model_card, write_upload_folder
from modeling_mcm.hub.card import scrub_command

TRAINING = {
    "seconds": 131.5,
    "customers": 34,
    "steps": 306,
    "parameters": 1527118,
    "batch_size": 16,
    "seed": 42,
    "command": "run_pretrain.py configuration/recipes/quickstart.yaml --data /mnt/logs/prepared",
    "data": "corner_shop",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "machine": {"cores": 2, "threads": 2, "processes": 1, "architecture": "x86_64", "device": "cpu"},
}


def chances(mean):
    return {"mean": mean, "low": mean - 0.0123, "high": mean + 0.0123, "customers": 33}


METRICS = ("next_visit_ndcg@3", "next_visit_ndcg@10", "next_visit_recall@10", "next_event_ndcg@10")
EVALUATION = {
    "data": "corner_shop",
    "cutoff": "test",
    "cases": 30,
    "results": {
        method: {task: {name: chances(better + place / 100) for place, name in enumerate(METRICS)} for task in tasks}
        for method, better in (("most_popular", 0.1), ("MCM", 0.3))
        for tasks in (("items", "aisle"),)
    },
}
OFFERS = {
    "results": {
        method: {each: {"average_precision": chances(0.4), "ndcg@5": chances(0.5)} for each in ("click", "conversion")}
        for method in ("MCM without fine-tuning", "MCM fine-tuned")
    }
}
HEADINGS = ["Use", "Intended use", "Schema", "Data and training", "Results", "Limits", "Bias and privacy"]
HEADINGS += ["Licence and citation"]


@pytest.fixture
def publish(tiny_model, extractor, tmp_path):
    """A function that writes an upload folder, of a model with or without the head for offers, and what training and
    evaluation leave in the checkpoint; gives both folders."""

    def write(training=None, evaluation=None, offers=False):
        model, checkpoint = tiny_model(extended=True), tmp_path / "checkpoint"
        if offers:
            model = MCMForActionRecommendation(model.config)
            torch.nn.init.normal_(model.action_head.numbers.weight)  # as if it was trained
        model.save_pretrained(checkpoint)
        extractor.save_pretrained(checkpoint)
        record = "finetuning.json" if offers else "pretraining.json"
        for name, facts in ((record, training), ("evaluation.json", evaluation)):
            if facts is not None:
                (checkpoint / name).write_text(json.dumps(facts))
        write_upload_folder(checkpoint, tmp_path / "published")
        return tmp_path / "published", checkpoint

    return write


def render(folders, repo_id, exposure=None):
    """A card's metadata and text; it has all headings, no hole, and tables whose rows are of one length."""
    text = str(model_card(folders[0], repo_id, folders[1], exposure))
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == HEADINGS
    assert "None" not in text and "{{" not in text.replace("{{MCM}", "")
    for line, below in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        if line.startswith("| ") and below.startswith("| "):
            assert line.count("|") == below.count("|"), line
    metadata = ModelCard(text).data
    assert (metadata.license, metadata.library_name, metadata.tags[0]) == ("apache-2.0", "transformers", "mcm")
    return metadata, text


def test_the_card_of_a_pretrained_checkpoint(publish):
    exposure = Exposure(8, {"items": 7, "aisle": 2}, hidden=False)
    metadata, text = render(publish(TRAINING, EVALUATION), "org/mcm-corner-shop", exposure)
    assert metadata.model_name == "mcm-corner-shop"
    for line in (
        'score = pipeline("preference-scores", model="org/mcm-corner-shop", trust_remote_code=True)',
        "- Data: the event log corner_shop, 34 customers. Vocabularies",
        "- Command: `run_pretrain.py configuration/recipes/quickstart.yaml --data ...`",
        "- Time: 132 seconds on cpu, 1 process(es) with 2 thread(s), x86_64.",
        "- 306 steps of 16 customers, 1,527,118 trained parameters, seed 42.",
        "| items | categorical | 24 values | event | yes | 7 |",
        "| a.b | numeric | 4 bins | event |  |  |",
        "| weekday | weekday | calendar | event |  |  |",
        "30 test cases of corner_shop; everything is ranked",
        "| items | MCM | 0.310 ±0.012 | 0.320 ±0.012 | 0.330 ±0.012 |",
        "- 9 values belong to fewer than 8 customers",
    ):
        assert f"\n{line}" in text
    found = {(each.dataset_config, each.metric_name): each for each in metadata.eval_results}
    assert len(found) == len(metadata.eval_results) == 6  # two tasks, three headlines, of the longest list alone
    one = found["aisle", "next visit ndcg @10"]
    assert (one.task_name, one.metric_value) == ("next aisle", 0.31)
    assert one.metric_args == {"confidence": 0.95, "low": 0.2977, "high": 0.3223, "customers": 33, "k": 10}


def test_the_card_of_a_checkpoint_for_offers(publish):
    facts = {"seconds": 8000.0, "groups": 60, "steps": 8, "seed": 1, "command": "run_finetune.py --offers data"}
    exposure = Exposure(8, {"items": 7}, hidden=True, pairs=7)
    metadata, text = render(publish(facts, OFFERS, offers=True), "shop/offers", exposure)
    assert 'offer = pipeline("action-scores", model="shop/offers"' in text and "60 groups of offers" in text
    assert "published as placeholders" in text and "- 7 weights of pairs of labels" in text
    assert "| click | MCM fine-tuned | 0.400 ±0.012 | 0.500 ±0.012 |" in text
    assert {each.task_name for each in metadata.eval_results} == {"offers: click", "offers: conversion"}


def test_the_card_of_a_checkpoint_of_which_nothing_is_known(publish):
    metadata, text = render(publish(), "org/mcm-silent")
    for line in ("says nothing of its training", "No evaluation was given", "share each value was not counted"):
        assert line in " ".join(text.split())
    assert metadata.eval_results is None


@pytest.mark.parametrize("offers", [False, True], ids=["tasks", "offers"])
def test_the_example_of_a_card_runs(offers, publish, capsys):
    folder, _ = publish(offers=offers)
    code = re.search(r"```python\n(.*?)```", str(model_card(folder, "org/mcm")), flags=re.DOTALL)[1]
    exec(code.replace('"org/mcm"', repr(str(folder))), {})
    shape, *answers = capsys.readouterr().out.splitlines()
    assert f"print(embed(customer).shape)  # {shape}\n" in code and len(answers) == 1 + offers


COMMANDS = r"""
run_pretrain.py --data data/acme --seed 3       -> run_pretrain.py --data ... --seed 3
run_pretrain.py configuration/recipes/a.yaml    -> run_pretrain.py configuration/recipes/a.yaml
x.py --data=/home/ann/log --lr=2e-3             -> x.py --data=... --lr=2e-3
x.py --data /home/ann smith/log                 -> x.py --data ... ...
x.py --data C:\ann\log ~/a ../b                 -> x.py --data ... ... ...
x.py configuration/../../ann/a.yaml             -> x.py ...
x.py --hub_token hf_abc def --seed 3            -> x.py --hub_token=... --seed 3
x.py --hub_token=hf_abc --push_to_hub           -> x.py --hub_token=... --push_to_hub
""".strip().splitlines()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_told_without_paths_and_secrets(line):
    command, expected = line.split(" -> ")
    assert scrub_command(command.strip()) == expected
