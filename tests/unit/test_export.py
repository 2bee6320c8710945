# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The customer state, predictions of labels and forecasts leave Python by `torch.export`, and the first two by ONNX,
for any number of customers and events."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from modeling_mcm import MCMFeatureExtractor, MCMForCustomerPrediction, MCMModel

CHECKPOINT = "tests/fixtures/mcm-dummy"


class Exported(nn.Module):
    """A part of a model as positional inputs and outputs, as exporters need it."""

    def __init__(self, part):
        super().__init__()
        kind = MCMForCustomerPrediction if part == "prediction" else MCMModel
        self.part, self.model = part, kind.from_pretrained(CHECKPOINT, num_labels=2).eval()
        if part == "prediction":
            torch.manual_seed(0)
            for weights in self.model.prediction_head.parameters():
                nn.init.normal_(weights)

    def forward(self, input_ids, attention_mask, visit_ids, event_times, event_values, as_of):
        options = {} if self.part == "prediction" else {"parts": (self.part,)}
        told = self.model(input_ids, attention_mask, visit_ids, event_times, event_values, as_of, **options)
        return {
            "prediction": lambda: (told.logits,),
            "embedding": lambda: (told.pooler_output,),
            "forecasts": lambda: tuple(told.forecasts.values()),
        }[self.part]()


def make_inputs(event_log, customers, events):
    names = {"who": "household_id", "when": "time", "basket": "basket_id", "item": "product_category"}
    log = event_log.rename(columns=names | {"action": "token_type", "aisle": "department", "price": "amount"})
    log["token_type"], log["household_id"] = "purchase", log["household_id"].astype(str)
    log["product_category"] = np.resize(["CAT FOOD", "EGGS", "FLUID MILK PRODUCTS"], len(log))
    rows = [rows.head(events - number % 2) for number, (_, rows) in enumerate(log.groupby("household_id"))]
    extractor = MCMFeatureExtractor.from_pretrained(CHECKPOINT)
    return dict(extractor([{"events": each} for each in rows[:customers]], as_of="2018-01-05"))


@pytest.mark.parametrize("part", ["embedding", "prediction", "forecasts"])
@torch.no_grad()
def test_parts_of_models_are_exported(part, event_log, tmp_path):
    model, inputs, any_size = Exported(part), make_inputs(event_log, 7, 13), torch.export.Dim.DYNAMIC
    sizes = {name: dict.fromkeys(range(min(value.dim(), 2)), any_size) for name, value in inputs.items()}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=sizes, strict=False)
    others = [make_inputs(event_log, customers, events) for customers, events in ((1, 2), (3, 5), (9, 20))]
    wanted = [model(**other) for other in others]
    assert wanted[2][0].std(0).max() > 0
    for other, told in zip(others, wanted, strict=True):
        torch.testing.assert_close(exported.module()(**other), told, rtol=0, atol=0)
    if part == "forecasts":
        return  # of which ONNX lacks an operation
    torch.onnx.export(exported, f=tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for other, told in zip(others, wanted, strict=True):
        read = {each.name: other[each.name].numpy() for each in session.get_inputs()}
        np.testing.assert_allclose(session.run(None, read)[0], told[0], atol=1e-5, rtol=1e-5)
