# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure what they say: the same loss in every way, and no less arithmetic than there is."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from launched_runs import ONE_PROCESS, run
from torch.utils.flop_counter import FlopCounterMode

import compare
import floor
import measuring
import parts as parts_benchmark
import readout
import recipe_tables
import sampling
from modeling_mcm import MCMConfig, MCMModel
from modeling_mcm.evaluation.cases import EvaluationCases, TargetEvents
from modeling_mcm.losses_mcm import Objective

SMALL = "--batch_size 3 --units 7 --labels 40 --hidden_size 8 --threads 1 --runs 1".split()


@pytest.mark.parametrize("most", [1, 10**9], ids=["one by one", "all at once"])
def test_every_way_of_the_readout_gives_the_same_loss_and_gradients(monkeypatch, most):
    monkeypatch.setattr(readout, "PART_ELEMENTS", (most, most))
    inputs = readout.Inputs(readout.Options(batch_size=3, units=7, labels=40, hidden_size=8))
    for every in (False, True):
        ways = [way for way, all_prefixes in readout.WAYS.values() if all_prefixes == every]
        losses = [way(inputs, every) for way in ways]
        gradients = [torch.autograd.grad(loss, (inputs.hidden, inputs.vectors)) for loss in losses]
        for loss, found in zip(losses[1:], gradients[1:], strict=True):
            torch.testing.assert_close(loss, losses[0], atol=1e-5, rtol=1e-5)
            for ours, theirs in zip(found, gradients[0], strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_floor_counts_the_arithmetic_of_the_encoder():
    config = MCMConfig(
        features=["token_type", "item"],
        vocabulary_sizes=[5, 50],
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        encoder_unit="event",
        state_size=0,
    )
    config._attn_implementation = "eager"
    model = MCMModel(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(1, 11, 2, dtype=torch.long))
    assert counter.get_total_flops() == floor.encoder_flops(2, 16, 24, 11)


def test_the_rates_of_the_floor_are_those_of_all_threads(monkeypatch):
    timer, seen = floor.Timer, []

    def noted(statement, globals, **options):
        names = globals | {"seen": seen, "torch": torch}
        return timer(f"seen.append(torch.get_num_threads()); {statement}", globals=names, **options)

    threads = torch.get_num_threads()
    monkeypatch.setattr(floor, "Timer", noted)
    try:
        torch.set_num_threads(2)
        assert floor.matmul_rate(16, 4, 8) > 0 and floor.copy_rate(64) > 0
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {2}


def test_a_sample_that_is_all_labels_has_no_error():
    model, batch = sampling.untrained(sampling.SamplingOptions(labels=90, units=3, batch_size=2))
    model.objective = Objective(ranking_loss_weight=0.0)
    found = sampling.errors(model, batch, [8, 90], draws=4)
    assert found[90] == pytest.approx([0.0] * 4, abs=1e-6)
    assert found[8][1] > 1e-5 and found[8][3] > 1e-3
    model.objective = Objective(ranking_loss_weight=1.0)  # beside every pair of labels; as it is it asks some
    assert sampling.errors(model, batch, [None], draws=2)[None][3] > 1e-5


def test_a_page_is_printed_or_written(tmp_path, capsys):
    measuring.print_or_write("# Page\n", str(tmp_path / "page.md"))
    assert (tmp_path / "page.md").read_text() == "# Page\n" and not capsys.readouterr().out
    measuring.print_or_write("# Page\n", None)
    assert capsys.readouterr().out == "# Page\n\n"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "options", "lines"),
    [
        slow("readout", SMALL, ["floor: ", "one prefix, in parts", "all prefixes, whole"]),
        slow("readout", [*SMALL, "--bf16", "true"], ["floor: ", "one prefix, whole", "all prefixes, in parts"]),
        pytest.param(
            "readout",
            [*SMALL, "--device", "cuda"],
            ["floor: ", "one prefix, in parts", "one prefix, without kernels", "all prefixes, without kernels"],
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
        ),
        slow("readout", [*SMALL, "--memory", "true"], ["one prefix, literal", "all prefixes, in parts"]),
        slow(
            "growth",
            "--customers 40 --units 4 --labels 20 --batch_size 2 --doublings 1".split(),
            ["customers from 40  preparing", "units from 4       seconds", "labels from 20     times the floor"],
        ),
        slow("scale", ["--events", "20000"], ["events      ", "10,000,000,000, projected"]),
        slow(
            "sampling",
            ["--model", "", *"--labels 90 --units 3 --batch_size 2 --draws 2 --drawn 8 85".split()],
            ["scores  loss", "random  equation 4  90 "],
        ),
        slow(
            ["--customers", "30", "--doublings", "1", "--rows_per_shard", "8"],
            ["Memory above the start", "streamed    31", "streamed    59", "Arrow copy  31", "Arrow copy  59"],
        ),
        slow("run_floor", ["--batch_size", "1", "--threads", "1"], ["training step", "scoring a customer", "machine"]),
    ],
)
def test_a_benchmark_prints_its_table(name, options, lines):
    done = run(ONE_PROCESS, name, *options, folder="benchmarks")
    for line in lines:
        assert sum(each.startswith(line) for each in done.stdout.splitlines()) == 1, done.stdout


@pytest.mark.slow
def test_a_step_is_measured_and_a_plain_bert_is_beside_mcm(prepared):
    config = ["--config", "configuration/mcm-tiny", "--data", str(prepared)]
    small = ["--config_overrides", "hidden_size=16", "--per_device_train_batch_size", "4", "--max_steps", "6"]
    done = run(ONE_PROCESS, "step", *config, *small, folder="benchmarks")
    for line in ("6 steps", "seconds a step", "waiting for data", "padding, encoder", "padding, scores"):
        assert sum(each.startswith(line) for each in done.stdout.splitlines()) == 1, done.stdout

    peers = ["--methods", "BERT of transformers", "MCM", "--reference", "BERT of transformers", "--hidden", "16"]
    short = ["--rounds", "1", "--seconds", "1", "--reference_seconds", "1", "--steps_up", "1", "--length", "20"]
    options = ["--data", prepared, "--task", "items", *peers, *short]
    done = run(ONE_PROCESS, "compare", *options, folder="benchmarks")
    names = ("BERT of transformers ", "MCM ")
    rows = [re.split("  +", line) for line in done.stdout.splitlines() if line.startswith(names) and "{" not in line]
    assert [row[0] for row in rows] == ["BERT of transformers", "MCM"] * 2
    for row in rows[:2]:
        assert float(row[1].replace(",", "")) > 0 and float(row[5].replace(",", "")) > 0, row
    assert rows[0][3] == rows[0][4] == "-", rows[0]  # no floor is known of another's model
    assert 0 <= float(rows[1][3].rstrip("%")) <= 100 and float(rows[1][4].replace(",", "")) > 0, rows[1]


@pytest.mark.slow
def test_a_plan_and_a_study_of_scaling(prepared, tmp_path):
    (tmp_path / "recipe.yaml").write_text("config: configuration/mcm-tiny\nnum_train_epochs: 1\n")
    small = ["--hidden", 8, "--shares", 0.25, 0.5, 1, "--widths", 1, 2]
    options = ["--data", prepared, "--recipe", tmp_path / "recipe.yaml", *small, "--report_file", tmp_path / "page.md"]
    done = run(ONE_PROCESS, "scaling", *options, folder="benchmarks")
    runs = [json.loads(line.replace("'", '"')) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each["customers"] for each in runs[:3]] == [each["customers"] for each in runs[3:]]
    assert runs[0]["customers"] < runs[1]["customers"] < runs[2]["customers"]
    assert runs[3]["parameters"] > 1.5 * runs[0]["parameters"]
    page = (tmp_path / "page.md").read_text()
    assert "| a customer | 25 visits of 10 events |" in page and "E = " in page
    flops = [
        float(re.search(rf"FLOPs, {part} \| ([\d.,]+)", page)[1].replace(",", "")) for part in ("encoder", "readout")
    ]
    whole = float(re.search(r"FLOPs, all \| ([\d.,]+)", page)[1])
    assert whole == pytest.approx(3 * sum(flops) * 40e6 * 2 / 1e9, rel=0.02)  # in EFLOP, of two epochs


def test_recommended_lists_get_the_ndcg_of_their_places(tmp_path):
    targets = TargetEvents(np.array([0, 2, 3, 5]), np.array([5, 7, 3, 4, 6]))  # labels, of three cases
    cases = EvaluationCases("validation", np.arange(3), ["a", "b", "c"], np.ones(3, int), {"item": targets})
    lists = {"b": [9, 1, 8], "a": [5, 3, 0]}  # items are labels less 2; nothing was recommended to c
    path = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"customer": list(lists), "items": list(lists.values())}), path)
    found = compare.accuracy(path, cases, "item", 12)
    assert float(found.split()[0]) == pytest.approx((1 + 1 / np.log2(3)) / 3, abs=0.0006)


@torch.no_grad()
def test_parts_that_are_left_out_say_nothing(tiny_model, extractor, event_log):
    model = tiny_model(extended=True, related_tasks=["items"])
    memory, place = model.counted_memory, model.config.tasks.index("items")
    for table in (memory.habit_tables[str(place)], memory.new_tables[str(place)]):
        table.related.random_(2, 26)
        table.weights.uniform_(0, 1)
    for gain in (memory.habit_gain, memory.new_gain):
        gain.fill_(0.5)
    inputs = extractor([{"events": events.to_dict("list")} for _, events in event_log.groupby("who")])
    parts, logits = model.score_parts(**inputs)["items"], model(**inputs).logits["items"]
    kinds = ["readout", "bias", "repeats", "habits", "new"]
    assert parts_benchmark.choices(parts) == {
        **{f"without {name}": {name} for name in kinds},
        "without habits and new": {"habits", "new"},
        "readout and bias alone": {"repeats", "habits", "new"},
    }

    def scores(*out):
        return model.joined_scores(place, parts_benchmark.left(parts, set(out)))

    torch.testing.assert_close(scores(), logits)
    for name in kinds:
        assert (scores(name) - logits)[:, 2:].std() > 0.01, f"{name} left out changes nothing"
    alone = parts["readout"] * model.score_scales[place, 0] + parts["bias"] * model.score_scales[place, 1]
    torch.testing.assert_close(scores("repeats", "habits", "new")[:, 2:], alone[:, 2:])
    memory.habit_gain[place] = 0
    torch.testing.assert_close(scores("habits")[:, 2:], model(**inputs).logits["items"][:, 2:])


def test_the_tables_of_the_recipe_are_means_of_seeds_in_pairs():
    counted = np.array([0.1, 0.3, 0.5, np.nan])
    seeds = [{"MCM": {"item": counted + more}, "popular": {"item": counted}} for more in (0.1, 0.3)]
    parts = [{"MCM": each["MCM"], "without readout": {"item": counted - 0.1}} for each in seeds]
    answers = recipe_tables.Answers(
        log="a_shop",
        question="next visit",
        tasks=("item",),
        seeds=seeds,
        parts=parts,
        groups={"1-2": np.array([True, True, False, True]), "more": np.array([False, False, True, False])},
        truth={"truth": {"item": np.array([1.0, 1.0, 1.0, np.nan])}},
        rivals={"BERT4Rec": {"item": counted + 0.4}},
    )
    _, popular, rival, ours = recipe_tables.method_table([answers])
    assert popular[3:6] == ["popular", "0.3000 ±0.2000", "+0.2000 [+0.2000, +0.2000]"]
    assert rival[5].startswith("-0.2000") and ours[3:6] == ["**MCM**", "0.5000 ±0.2000", "seeds: 0.4000, 0.6000"]
    assert recipe_tables.part_table([answers])[1][3:] == [
        "without readout (counting alone)",
        "0.2000 ±0.2000",
        "+0.3000 [+0.3000, +0.3000]",
    ]
    assert [row[4] for row in recipe_tables.history_table([answers])[1:]] == ["2", "1"]
    assert [row[3] for row in recipe_tables.truth_table([answers])[1:]] == ["the best ranking", "MCM", "popular"]
    assert recipe_tables.truth_table([answers])[2][5].startswith("50.0%")
    said = "a shop +0.300 [+0.300, +0.300] to 0.200 (item)."
    assert recipe_tables.encoder_sentence([answers]).endswith(said)
