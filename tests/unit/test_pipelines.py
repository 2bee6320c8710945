# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From a folder to answers: the Auto classes and both pipelines, on customers as they come."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation, MCMModel
from modeling_mcm.events_mcm import select_events

CHOICES = {
    "paper": {},
    "extended": {"extended": True},
    "masked events": {"augmentation": "masked_lm", "readout": "last"},
}


@pytest.fixture(params=CHOICES.values(), ids=CHOICES.keys())
def checkpoint(request, save):
    return save(**request.param)


@pytest.fixture
def events(event_log):
    """A history of more events than the 40 that the encoder reads."""
    (name, number), *_ = event_log["who"].value_counts().items()
    assert number > 40
    return event_log[event_log["who"] == name]


def test_pipelines_give_what_the_model_says_of_the_latest_events_until_then(checkpoint, events):
    embed, score = (pipeline(task, model=checkpoint) for task in ("customer-embedding", "preference-scores"))
    model = MCMForMultiTaskRecommendation.from_pretrained(checkpoint).eval()
    extractor = MCMFeatureExtractor.from_pretrained(checkpoint)
    assert type(embed.model) is MCMModel and type(embed.feature_extractor) is MCMFeatureExtractor
    mask_next = model.config.augmentation == "masked_lm"
    customer, as_of = {"events": events, "profile": {"age": "young"}}, events["when"].iloc[-6]
    row = extractor.encode(customer | {"events": events[events["when"] <= as_of]})
    start = len(row["times"]) - (39 - mask_next)
    assert start > 0 and model.config.max_events == 40
    with torch.no_grad():
        output = model(**extractor.pad([select_events(row, slice(start, None))], mask_next=mask_next))
    np.testing.assert_allclose(embed(customer, as_of=as_of), output.pooler_output[0], atol=1e-5)
    assert np.abs(embed(customer) - embed(customer, as_of=as_of)).max() > 1e-3
    best = output.logits["items"][0].softmax(0).topk(10)
    found = score(customer, as_of=as_of)["items"]
    assert [entry["label"] for entry in found] == extractor.decode_labels("items", best.indices)
    assert [entry["score"] for entry in found] == pytest.approx(best.values.tolist(), abs=1e-5)
    for task, labels in score({"events": []}, top_k=1000).items():
        own = extractor.schema.reserved_token_types if task == "type" else []
        assert sorted([*own, *(entry["label"] for entry in labels)]) == sorted(extractor.vocabularies[task])
        assert sum(entry["score"] for entry in labels) == pytest.approx(1, abs=1e-5)
