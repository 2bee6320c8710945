# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The code and the outputs that README.md and docs/ show: they run, and say what the page says."""

import importlib
import re
import runpy
from calendar import month_name

import pytest
import torch
from strange_frames import make_purchases
from tutorial import DUMMY, EXAMPLE, PAGE, README, ROOT, example_code, excerpt, frame_code, run_tutorial

from modeling_mcm import MCMFeatureExtractor, MCMForMultiTaskRecommendation


def test_the_readme_shows_an_example_and_what_it_prints(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(EXAMPLE))
    code = f"```python\n{example_code()}```\n```\n{capsys.readouterr().out}```\n"
    assert code in README.read_text(encoding="utf-8")


def test_the_readme_goes_from_a_frame_to_forecasts(tmp_path, monkeypatch, capsys):
    names = ["customer_id", "date", "number_of_cds", "dollar_value"]
    text = make_purchases().set_axis(names, axis=1).to_csv(sep=" ", index=False)
    (tmp_path / "CDNOW_master.txt").write_text(text)  # a made log, of the same form
    monkeypatch.chdir(tmp_path)
    exec(frame_code(), {})
    shown = README.read_text(encoding="utf-8").partition(f"{frame_code()}```\n```\n")[2].partition("```")[0]
    assert shown and masked(capsys.readouterr().out) == masked(shown)


def customer(extractor, visits):
    """Inputs of a customer who buys two of the toy shop's products in turns, every five days."""
    products = list(extractor.vocabularies["product_category"])
    events = [
        {
            "time": f"2017-{1 + 5 * visit // 28:02}-{1 + 5 * visit % 28:02} 10:0{place}",
            "basket_id": visit,
            "token_type": "purchase",
            "product_category": products[(visit + place) % 5],
            "amount": 1.5 + place,
        }
        for visit in range(visits)
        for place in range(1 + visit % 2)
    ]
    return extractor({"events": events, "profile": {"age": "25-34"}}, as_of="2017-12-24")


@pytest.mark.parametrize("count", [4, 66])  # the second is longer than the attention window
@pytest.mark.parametrize("task", ["product_category", "department"])
@torch.no_grad()
def test_the_example_computes_the_forward_pass(task, count):
    example = importlib.import_module("6_forward_pass")
    model = MCMForMultiTaskRecommendation.from_pretrained(DUMMY).eval()
    inputs = customer(MCMFeatureExtractor.from_pretrained(DUMMY), count)
    ids, visits, days, values, as_of = (
        inputs[name][0] for name in ("input_ids", "visit_ids", "event_times", "event_values", "as_of")
    )
    assert len(visits.unique()) == count + 1
    expected = model(**inputs)
    scores = example.compute_scores(model, task, ids, visits, days, as_of)
    torch.testing.assert_close(scores, expected.logits[task][0], atol=1e-5, rtol=1e-5)
    state = example.compute_state(model, ids, visits, days, values, as_of)
    torch.testing.assert_close(state, expected.pooler_output[0], atol=1e-5, rtol=1e-5)


def masked(text):
    """A text without its numbers, products and months, which depend on the log and the machine that trained."""
    names = "|".join([*re.findall(r'"([A-Z ]{4,})"', PAGE.read_text(encoding="utf-8")), *month_name[1:]])
    return [re.sub(rf"[-\d.,]+|{names}", "#", line).split() for line in text.splitlines() if set(line) - set("- ")]


@pytest.mark.slow
def test_the_first_hour_runs_and_prints_what_it_shows(tmp_path):
    outputs = [(shown, said) for _, shown, said in run_tutorial(tmp_path) if shown is not None]
    assert outputs
    for shown, said in outputs:
        assert masked(excerpt(said)) == masked(shown)
