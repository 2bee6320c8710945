# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What models compute leaves Python by `torch.export`, and all but forecasts by ONNX, for any number of customers and
events."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnxscript import opset18 as op
from torch import nn

from modeling_mcm import MCMFeatureExtractor, MCMForCustomerPrediction, MCMForMultiTaskRecommendation, MCMModel

CHECKPOINT = "tests/fixtures/mcm-dummy"
MOST = 16  # events that the encoder reads: fewer than some have, and more than those with whom a model is exported
HEADS = {"prediction": MCMForCustomerPrediction, "scores": MCMForMultiTaskRecommendation}


def sort_stable(values, stable=None, dim=-1, descending=False):
    """A sort in ONNX, whose `TopK` is stable, too."""
    return op.TopK(values, op.Shape(values, start=dim, end=dim + 1 or None), axis=dim, largest=int(descending))


class Exported(nn.Module):
    """A part of a model as positional inputs and outputs, as exporters need it."""

    def __init__(self, part):
        super().__init__()
        options = {"num_labels": 2, "max_events": MOST}
        self.part, self.model = part, HEADS.get(part, MCMModel).from_pretrained(CHECKPOINT, **options).eval()
        if part == "prediction":
            torch.manual_seed(0)
            for weights in self.model.prediction_head.parameters():
                nn.init.normal_(weights)
        if part == "scores":
            self.model.scorer.reads[0] = True  # the first task's read the encoder, too

    def forward(self, input_ids, attention_mask, visit_ids, event_times, event_values, as_of):
        options = {"event_values": event_values, "as_of": as_of}
        if self.part != "prediction":
            options["parts"] = () if self.part in HEADS else (self.part,)
        told = self.model(input_ids, attention_mask, visit_ids, event_times, **options)
        return {
            "prediction": lambda: (told.logits,),
            "embedding": lambda: (told.pooler_output,),
            "forecasts": lambda: tuple(told.forecasts.values()),
            "encoder": lambda: (told.last_hidden_state, told.unit_mask, told.unit_mask.sum(1)),
            "scores": lambda: tuple(told.logits.values()),
        }[self.part]()


def make_inputs(event_log, customers, events):
    names = {"who": "household_id", "when": "time", "basket": "basket_id", "item": "product_category"}
    log = event_log.rename(columns=names | {"action": "token_type", "aisle": "department", "price": "amount"})
    log["token_type"], log["household_id"] = "purchase", log["household_id"].astype(str)
    log["product_category"] = np.resize(["CAT FOOD", "EGGS", "FLUID MILK PRODUCTS"], len(log))
    rows = [rows.head(events - number % 2) for number, (_, rows) in enumerate(log.groupby("household_id"))]
    extractor = MCMFeatureExtractor.from_pretrained(CHECKPOINT)
    return dict(extractor([{"events": each} for each in rows[:customers]], as_of="2018-01-05"))


@pytest.mark.parametrize("part", ["embedding", "prediction", "forecasts", "encoder", "scores"])
@torch.no_grad()
def test_parts_of_models_are_exported(part, event_log, tmp_path):
    model, inputs, any_size = Exported(part), make_inputs(event_log, 7, 13), torch.export.Dim.DYNAMIC
    sizes = {name: dict.fromkeys(range(min(value.dim(), 2)), any_size) for name, value in inputs.items()}
    sizes_of_others = ((1, 2), (3, 5), (9, MOST + 4), (1, 1))
    others = [make_inputs(event_log, customers, events) for customers, events in sizes_of_others]
    others.append(others[1] | {"as_of": others[1]["as_of"] - 1e4})  # before the first event
    others.append({name: value[:, :1] if value.dim() > 1 else value for name, value in others[1].items()})  # no event
    wanted = [model(**other) for other in others]  # before the export, in which counts are constant
    assert wanted[2][0].std(0).max() > 0
    exported = torch.export.export(model, (), inputs, dynamic_shapes=sizes, strict=False)
    reads_units = part in ("encoder", "scores")  # of which an export has more, that are masked
    for other, told in zip(others, wanted, strict=True):
        found = cut(exported.module()(**other), told)
        torch.testing.assert_close(found, told, rtol=0, atol=1e-5 if reads_units else 0)
    if part == "forecasts":
        return  # of which ONNX lacks an operation
    table = {torch.ops.aten.sort.stable: sort_stable}
    file = tmp_path / "model.onnx"
    torch.onnx.export(exported, f=file, dynamo=True, verbose=False, optimize=False, custom_translation_table=table)
    session = onnxruntime.InferenceSession(file)
    for other, told in zip(others, wanted, strict=True):
        read = {each.name: other[each.name].numpy() for each in session.get_inputs()}
        for answer, answer_wanted in zip(cut(session.run(None, read), told), told, strict=True):
            np.testing.assert_allclose(answer, answer_wanted, atol=1e-5, rtol=1e-5)


def cut(answers, wanted):
    """Answers without the units that only an export has."""
    return tuple(answer[tuple(map(slice, each.shape))] for answer, each in zip(answers, wanted, strict=True))


def test_scores_are_asked_once_before_their_export(event_log):
    with pytest.raises(ValueError, match="call the model once"):
        torch.export.export(Exported("scores"), (), make_inputs(event_log, 3, 5), strict=False)
