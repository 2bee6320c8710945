# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The scorer of labels: its numbers, its folds, its probabilities, and when it reads the encoder."""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from choices import EXTENDED, TINY, from_data, perturb
from other_device import other_device
from synthetic_log import prepare_items

from modeling_mcm import MCMConfig, MCMForMultiTaskRecommendation, scorer_mcm
from modeling_mcm.data import PreparedData
from modeling_mcm.data.collator import MCMCollator, PreparedRows
from modeling_mcm.evaluation.cases import cases_at, read_history
from modeling_mcm.evaluation.comparison import COUNTING, counting_baselines, mean_values, rank_targets
from modeling_mcm.evaluation.metrics import measure
from modeling_mcm.features_mcm import COUNTED, FEATURES, PLACES, LabelHistory
from modeling_mcm.inputs_mcm import Customers
from modeling_mcm.predictor_mcm import Predictor, Questions
from modeling_mcm.scorer_mcm import (
    NEXT_VISIT,
    QUESTIONS,
    WITHIN,
    LabelScorer,
    LabelTables,
    Readout,
    ScoreNetwork,
    candidate_features,
    read_histories,
)
from modeling_mcm.training.counting import Counts
from modeling_mcm.training.descent import minimize
from modeling_mcm.training.pretraining import COUNTS_ALONE, fit_counts, fit_encoder, measure_encoder, read_rows
from modeling_mcm.training.scorer import judge
from modeling_mcm.training.scorer.counts import LabelCounts, count_log
from modeling_mcm.training.scorer.examples import (
    DRAWS,
    ExampleTable,
    draw_cutoffs,
    draw_examples,
    draw_training,
    draw_validation,
    find_later,
    hold_out,
    read_visit_starts,
)
from modeling_mcm.training.scorer.features import compute_features, read_batches
from modeling_mcm.training.scorer.fit import (
    SEARCH,
    ScoredCases,
    fit_weights,
    join_networks,
    rank_cases,
    ranking_loss,
)


@pytest.fixture(scope="module")
def data(prepared):
    return PreparedData(str(prepared))


CPU = torch.device("cpu")
KINDS = {"token_type": "kind", "features": [{"name": "kind"}, {"name": "item"}]}


def make_model(data, kind="kind", **choices):
    """A model that is not fitted, without an encoder unless the choices say so."""
    torch.manual_seed(0)
    choices = COUNTS_ALONE | {"kind_feature": kind, "state_size": 0} | choices
    return MCMForMultiTaskRecommendation(MCMConfig(**from_data(data.extractor) | choices)).eval()


@pytest.fixture(scope="module")
def model(data):
    """A model without an encoder, fitted on the corner shop."""
    fitted = make_model(data, "type")
    fit_counts(fitted, data)
    return fitted


@pytest.fixture(scope="module")
def batch(data, model):
    collator = MCMCollator(data.extractor, model.config, "evaluate", cutoff="test")
    inputs = collator(PreparedRows(data.rows, np.arange(12)).__getitems__(list(range(12))))
    return {name: value for name, value in inputs.items() if name != "labels"}


def test_a_question_needs_the_columns_of_its_task_alone(model, data):
    rows, predictor = PreparedRows(data.rows).__getitems__([*range(12)]), Predictor(model, data.extractor)
    needed = [{name: row[name] for name in ("times", "visits", "feature_type", "feature_items")} for row in rows]
    answers = predictor.ask(rows, Questions(tasks=None))
    for name, column in predictor.ask(needed, Questions(tasks=["items"])).items():
        assert torch.equal(column, answers[name])
    with pytest.raises(ValueError, match="A row has no 'feature_"):
        predictor.ask(needed, Questions(tasks=["items"], embedding=True))
    for name, value in {"days": [7.0], "known": {}, "discount_rate": 0.1}.items():
        with pytest.raises(ValueError, match=f"`{name}` .* of.* forecasts: ask for forecasts, or leave it out"):
            predictor.check(Questions(tasks=["items"], **{name: value}))


def test_a_history_without_events_gets_labels_that_were_seen(model, batch):
    nothing = {name: value[:1, :1] for name, value in batch.items()}
    for index, scores in enumerate(model(**nothing).logits.values()):
        counts = model.scorer.get_tables(index).counts[0]
        assert scores.isfinite().all() and counts[scores[0].argmax()] > 0
        assert scores[:, 2:].min() > scores[:, :2].max()  # every label has a score


def test_a_customer_without_events_gets_what_others_begin_with(tmp_path):
    items = [[0, *(1 + (user + place) % 5 for place in range(5))] for user in range(40)]  # all begin with item 0
    log = [
        (user, place, "buy", f"item {item}") for user, bought in enumerate(items) for place, item in enumerate(bought)
    ]
    columns = ["user", "place", "kind", "item"]
    data = prepare_items(tmp_path, log, columns, order="place", cutoffs="leave_one_out", **KINDS)
    model = make_model(data)
    fit_counts(model, data)
    first = data.extractor.vocabularies["item"].index("item 0") + 2
    again, _ = Counts(PreparedData(data.folder, "test")).give(model, data.extractor)  # all customers in one fold
    for each in (model, again):
        scores = each(**data.extractor([{"events": []}])).logits["item"][0]
        assert scores.argmax() == first
    counts = again.scorer.get_tables(model.config.tasks.index("item")).counts[0]
    assert counts[first] < counts[2:].sum() / 2


def test_a_fold_counts_the_other_customers_alone(data):
    size = dict(zip(data.extractor.feature_names, data.extractor.vocabulary_sizes, strict=True))["items"]
    events = read_history(data.rows, "items", kind="feature")
    folds = np.arange(len(data.rows)) % 5
    without = LabelCounts(events, size, folds).make_tables(0)
    others = LabelCounts(events.select(folds[events.customer] != 0), size, folds).make_tables()
    assert torch.equal(without.counts[:3], others.counts[:3])
    for index in range(2):
        assert torch.equal(without.weights[index].sum(1), others.weights[index].sum(1))


def test_an_example_knows_how_popular_labels_were_until_then(data, model):
    examples = draw_training(data, seed=0)
    example = examples.take(np.argsort(examples.day)[[len(examples.day) // 2]])
    log = count_log(data, model.config)

    def popularity(change, in_training):
        counts = []
        for task, size in model.config.label_sizes.items():
            events = read_history(data.rows, task, kind="feature")
            if change:
                events.label[(events.time >= example.day * 86_400) & (events.customer != example.row)] = 2
            counts.append(LabelCounts(events, size, log.folds))
        scorer = None if in_training else SimpleNamespace(get_tables=lambda task: counts[task].make_tables())
        asked = example if in_training else example._replace(day=np.full(1, np.nan))
        found = compute_features(log._replace(counts=counts), asked, torch.Generator(), CPU, scorer)[0]
        names = [each.name for each in FEATURES if each.group == "popularity" and each.name != "lift"]
        rows = found.features[:, [PLACES[name] for name in names]].tolist()
        return {label: row for label, row in zip(found.label.tolist(), rows, strict=True)}

    before, after = (popularity(change, True) for change in (False, True))
    shared = before.keys() & after.keys()
    assert len(shared) > 10 and all(before[label] == after[label] for label in shared)
    assert popularity(False, False) != popularity(True, False)  # a validation example does know


@pytest.mark.parametrize("cutoffs", ["by time", "leave_one_out"])
def test_the_targets_of_an_example_are_in_no_table_that_it_reads(event_log, prepare_log, cutoffs):
    """Whatever its customer does from the cutoff on: all that is known of its candidates stays."""
    data = PreparedData(prepare_log(event_log, **({} if cutoffs == "by time" else {"cutoffs": cutoffs})))
    config, examples = make_model(data, "type").config, draw_training(data, seed=0)
    log = count_log(data, config)

    def describe(example, change):
        counts = []
        for task, size in config.label_sizes.items():
            events = read_history(data.rows, task, kind="feature")
            if change:
                after = data.rows["times"][int(example.row[0])][int(example.end[0])]
                own = (events.customer == example.row) & (events.time >= after)
                assert own.any() or task != "type"
                events.label[own] = 2 + (events.label[own] + 1) % (size - 2)
            counts.append(LabelCounts(events, size, log.folds))
        found = compute_features(log._replace(counts=counts), example, torch.Generator(), CPU)
        return [(table.label, table.features) for table in found]

    for place in np.linspace(0, len(examples.row) - 1, 4).astype(int):
        example = examples.take(np.array([place]))
        torch.testing.assert_close(describe(example, True), describe(example, False), rtol=0, atol=0)


def test_leaving_one_out_counts_the_whole_period_as_in_use(event_log, prepare_log):
    data = PreparedData(prepare_log(event_log, cutoffs="leave_one_out"))
    log, examples = count_log(data, make_model(data, "type").config), draw_training(data, seed=0)
    examples = examples.take(log.folds[examples.row] == 0)
    tables = [each.make_tables(0) for each in log.counts]
    for table, found in zip(tables, compute_features(log, examples, torch.Generator(), CPU), strict=True):
        share = table.counts[0] / table.counts[0].sum()
        torch.testing.assert_close(found.features[:, PLACES["label_share"]], share[found.label].clamp(min=1e-7).log())


@pytest.mark.parametrize("cutoffs", ["by time", "leave_one_out"])
def test_examples_start_with_a_visit_of_the_training_period(event_log, prepare_log, cutoffs):
    """With its first event, here a click: what is seen on the way to a target is no history of it."""
    clicks = event_log.dropna(subset="basket").drop_duplicates("basket").assign(action="click", price=None, aisle=None)
    log = pd.concat([event_log, clicks.assign(when=clicks["when"] - pd.Timedelta(minutes=9))])
    data = PreparedData(prepare_log(log, **({} if cutoffs == "by time" else {"cutoffs": cutoffs})))
    row, end, stop, elapsed, day, left = draw_training(data, seed=0)
    ends, visits = np.asarray(data.rows["validation_end"]), data.rows["visits"]
    assert len(row) and ((end > 0) & (end < stop) & (stop <= ends[row])).all() and (elapsed >= 0).all()
    assert all(
        visits[customer][place] != visits[customer][place - 1] for customer, place in zip(row, end, strict=True)
    )
    times = [times[: ends[customer]] for customer, times in enumerate(data.rows["times"])]
    if cutoffs == "by time":
        np.testing.assert_allclose(day + left, np.max([max(events, default=0) for events in times]) / 86_400)
    else:
        assert np.isinf(left).all()


def test_what_comes_within_a_month_is_learned_where_the_period_has_that_month(data, model, caplog):
    log, examples = count_log(data, model.config), draw_training(data, seed=0)
    table = compute_features(log, examples, torch.Generator(), CPU)[0]
    assert (
        table.sees_horizon.tolist() == (examples.left >= 30).tolist() and 0.1 < table.sees_horizon.float().mean() < 1
    )
    caplog.set_level("INFO")
    short = draw_cutoffs(examples._replace(left=examples.left % 30), np.random.default_rng(0))
    assert np.isinf(short.left).all() and "what comes within 30 days is cut at its end" in caplog.text


@pytest.mark.parametrize("cutoffs", ["by time", "leave_one_out"])
def test_the_latest_visits_of_training_are_held_out_of_the_encoder(event_log, prepare_log, cutoffs):
    data = PreparedData(prepare_log(event_log, **({} if cutoffs == "by time" else {"cutoffs": cutoffs})))
    starts, (examples, ends) = read_visit_starts(data), hold_out(data, seed=0)
    held = {*zip(examples.row, examples.end, strict=True)}
    assert 0.15 * len(starts.row) < len(held) == len(examples.row) <= 0.2 * len(starts.row)
    kept = np.asarray(data.rows["validation_end"])
    assert all(ends[row] <= end < kept[row] for row, end in held)
    config = MCMConfig(**from_data(data.extractor) | EXTENDED | TINY)
    trained = read_rows(data, config, ends)
    rows = trained.__getitems__(list(range(len(trained))))
    assert rows.columns["validation_end"].tolist() == ends[trained.indices].tolist()
    untouched = np.setdiff1d(np.arange(len(ends)), [row for row, _ in held])
    assert (ends[untouched] == kept[untouched]).all()
    for row, end, day in zip(starts.row, starts.end, starts.day + starts.elapsed, strict=True):
        if (row, end) not in held:
            if cutoffs == "leave_one_out":
                assert end < ends[row] or row in untouched
            else:
                assert day <= min(examples.day + 60)


def test_cutoffs_at_any_moment_fall_into_long_gaps(tmp_path):
    """Customers who come back once, 20 to 60 days after a session of single events."""
    log = [(user, place, "2020-01-01") for user in range(40) for place in range(30)]
    log = [(user, pd.Timestamp(day) + pd.Timedelta(minutes=place), f"item {place}") for user, place, day in log]
    log += [(user, pd.Timestamp("2020-01-21") + pd.Timedelta(days=user), "item 7") for user in range(40)]
    log += [(0, pd.Timestamp(day), "item 7") for day in ("2020-04-02", "2020-05-02")]
    cutoffs = {"validation": "2020-04-01", "test": "2020-05-01"}
    known = {"time": "time", "features": [{"name": "item"}], "cutoffs": cutoffs}
    data = prepare_items(tmp_path, log, ["user", "time", "item"], **known)
    examples = draw_training(data, seed=0, most=100)
    assert len(examples.row) == 100 and len({*examples.row}) > 30
    assert (examples.end == 30).all() and ((examples.elapsed > 0) & (examples.elapsed < 60)).all()


def test_candidates_depend_on_no_batch_though_most_labels_tie():
    """Counts from 0 to 2, and neighbours of one weight: many more labels are equal than become candidates."""
    generator, tables = torch.Generator().manual_seed(0), [LabelTables(400), LabelTables(300, [11])]
    for table in tables:
        table.neighbours.copy_(torch.randint(2, table.counts.shape[1], table.neighbours.shape, generator=generator))
        table.weights.fill_(0.5)
        table.counts.copy_(torch.randint(0, 3, table.counts.shape, generator=generator))
    ids = torch.randint(2, 300, (12, 5, 2), generator=generator)
    days, readout = torch.arange(5).expand(12, 5), torch.randint(0, 3, (12, 400), generator=generator).float()

    def choose(customers):
        """Labels of the candidates by customer and task."""
        when = days[customers]
        history = LabelHistory.from_batch(ids[customers], when, when.float(), 0 * when)
        row, label, *_ = candidate_features(history, tables, [Readout(readout[customers], torch.ones(400, 4)), None])
        return [part.tolist() for part in label.split(torch.bincount(row, minlength=2 * len(customers)).tolist())]

    together = choose(torch.arange(12))
    assert ids[0, 0, 1] == 11 and not any(11 in own for own in together[1::2])  # it is never a target
    assert len(together) == 24 and 100 < min(map(len, together)) < 300
    for part in torch.randperm(12, generator=generator).split(5):
        expected = [together[2 * customer + task] for customer in part.tolist() for task in (0, 1)]
        assert choose(part) == expected
    nothing = torch.zeros(1, 0, dtype=torch.long)
    history = LabelHistory.from_batch(torch.zeros(1, 0, 2, dtype=torch.long), nothing, nothing.float(), nothing)
    row, label, *_ = candidate_features(history, tables)
    for task, (table, size) in enumerate(zip(tables, (400, 300), strict=True)):
        wanted = set()
        for counts, most in zip(table.counts[::3].tolist(), scorer_mcm.POPULAR, strict=True):
            wanted.update(sorted(range(2, size), key=lambda each: (-counts[each], each))[:most])
        assert label[row == task].tolist() == sorted(wanted.difference([11] * task))


def rank_validation(model, fit):
    """NDCG@10 of the next visit by counts alone, of the first task in each validation case."""
    scorer, without_repeats = model.scorer, fit.log.without_repeats
    tables = compute_features(fit.log, fit.examples.validation, fit.generator, CPU, scorer)
    return rank_cases(scorer.of_counts, tables, without_repeats)[0][NEXT_VISIT]


@pytest.mark.parametrize(("customers", "items"), [(3, 5), (30, 1)], ids=["three customers", "one label"])
def test_small_logs_are_fitted(tmp_path, customers, items):
    log = [(user, place, "buy", f"item {(user + place) % items}") for user in range(customers) for place in range(6)]
    columns = ["user", "place", "kind", "item"]
    data = prepare_items(tmp_path, log, columns, order="place", cutoffs="leave_one_out", **KINDS)
    model = make_model(data)
    assert rank_validation(model, fit_counts(model, data)).nanmean() > 0
    assert not model.scorer.of_counts.last.weight.any()  # three teach their own habits, and one label nothing
    level = LabelScorer.chances(model.scorer.chance[-1, NEXT_VISIT], torch.full((items,), 1 / items).log())
    assert level.sum() == pytest.approx(1, abs=0.5)  # a visit has one item


def test_networks_side_by_side_score_the_mean_of_theirs():
    members, joined = [ScoreNetwork(2, COUNTED).eval() for _ in range(3)], ScoreNetwork(2, COUNTED, 3).eval()
    for parameter in (each for member in members for each in member.parameters()):
        parameter.data.normal_(0, 0.3)
    join_networks(joined, members)
    task, features = torch.arange(40) % 2, torch.rand(40, COUNTED)
    expected = torch.stack([member(task, features) for member in members]).mean(0)
    torch.testing.assert_close(joined(task, features), expected)


def test_few_visits_are_fitted_several_times_and_saved_as_one(data, tmp_path, monkeypatch):
    examples = draw_examples(data, 0, False)
    days = [draw.day.tolist() for draw in (examples.training, *examples.further)]
    assert len({*map(tuple, days)}) == len(days) == DRAWS
    model = make_model(data, "type")
    fit_counts(model, data)
    model.save_pretrained(tmp_path)
    again = MCMForMultiTaskRecommendation.from_pretrained(tmp_path)
    assert again.config.scorer_networks == DRAWS and again.scorer.of_counts.last.weight.any()
    torch.testing.assert_close(again.scorer.state_dict(), model.scorer.state_dict())
    monkeypatch.setattr("modeling_mcm.training.scorer.examples.FEW", len(days[0]) - 1)
    assert not draw_examples(data, 0, False).further
    monkeypatch.undo()
    assert not draw_examples(data, 0, True).further  # an encoder is read beside one network of counts


def test_the_figure_of_counts_alone_is_that_of_evaluation(tmp_path):
    generator = np.random.default_rng(0)
    log = [(user, int(item)) for user in range(60) for item in generator.integers(0, 40, 6) ** 2 // 40]
    known = {"order": "rows", "features": [{"name": "item", "min_count": 9}], "cutoffs": "leave_one_out"}
    data = prepare_items(tmp_path, log, ["user", "item"], **known)
    model = make_model(data, "token_type")
    ndcg, cases = rank_validation(model, fit_counts(model, data)), cases_at(data, "validation")
    assert min(cases.targets["item"].labels) < 0
    values = rank_targets(model, data.extractor, data.rows, cases, ["item"])["item"].metrics((10,))
    assert ndcg.nanmean() == pytest.approx(np.nanmean(values["next_visit_ndcg@10"]), abs=1e-6)


def test_a_small_log_is_not_ranked_worse_than_by_counting(model, data):
    cases, tasks = cases_at(data, "test"), ["items", "aisle"]
    found = counting_baselines(data.rows, cases, model.config.label_sizes, COUNTING)
    found["MCM"] = rank_targets(model, data.extractor, data.rows, cases, tasks)
    results = measure(found)
    ndcg = mean_values(results, "next_visit_ndcg@10")
    for task in tasks:
        ours, best = (
            results[name, task, "next_visit_ndcg@10"] for name in ("MCM", ndcg.loc[[*COUNTING], task].idxmax())
        )
        assert (ours - best).mean() > -2 * (ours - best).sem(), ndcg


# --------------------------------------------------------------------------------------------------------- the encoder


@pytest.fixture(scope="module")
def encoded(data):
    """A model with an encoder that has learned nothing, and the fit of its scorer."""
    model = perturb(make_model(data, "type", **EXTENDED | TINY | {"scorer": True}))
    return model, fit_counts(model, data)


def test_the_best_labels_of_the_readout_are_candidates():
    ids, days = torch.tensor([[2, 3, 4], [2, 2, 2]]), torch.arange(3).expand(2, 3)
    history = LabelHistory.from_batch(ids[..., None], days, days.float(), 0 * ids)
    torch.manual_seed(0)
    tables, readout = [LabelTables(500)], torch.randn(2, 500)
    readout[0, 400], readout[1, 300] = 9, 9
    alone = candidate_features(history, tables)
    found = candidate_features(history, tables, [Readout(readout, torch.randn(500, 8))])
    assert not torch.isin(alone.label, torch.tensor([300, 400])).any() and not alone.features[:, COUNTED:].any()
    for customer, label in ((0, 400), (1, 300)):
        is_first = found.features[:, PLACES["readout_rank"]] == 0
        assert found.label[(found.row == customer) & is_first].tolist() == [label]


def test_an_encoder_that_no_task_reads_changes_no_score(encoded, batch):
    model, _ = encoded
    history, readout, tasks = read_histories(model.config, batch), model.readouts(batch), model.config.tasks
    labels = torch.full((len(batch["input_ids"]), 1, len(tasks)), 2)
    with torch.no_grad():
        logits, asked = (model(**given).logits for given in (batch, batch | {"labels": labels}))
        model.scorer.reads[:, WITHIN] = True  # each question is gated by itself
        within, again = (model(**batch, horizon_days=days).logits for days in (30.0, None))
    model.scorer.reads.zero_()
    scores = [model.scorer.score(range(len(tasks)), history, question=each) for each in (NEXT_VISIT, WITHIN)]
    for place, task in enumerate(tasks):
        assert torch.equal(readout[place].scores, asked[task])  # of the loss
        assert torch.equal(logits[task], scores[NEXT_VISIT][place]) and torch.equal(logits[task], again[task])
        assert not torch.equal(within[task], scores[WITHIN][place])


def test_tables_that_changed_are_read_again(model, batch):
    """A model keeps what its tables say of labels: written over, or other ones, as a refresh gives them."""
    scorer, tasks = copy.deepcopy(model.scorer), range(len(model.config.tasks))
    history = read_histories(model.config, batch)
    before = scorer.score(tasks, history)
    with torch.inference_mode():
        assert all(map(torch.equal, scorer.score(tasks, history), before))
    table = scorer.get_tables(0)
    other = table.counts.flip(1)
    for change in (lambda: table.counts.copy_(other), lambda: setattr(table, "counts", other + 3)):
        change()
        changed, scorer._columns = scorer.score(tasks, history), {}
        assert all(map(torch.equal, changed, scorer.score(tasks, history)))
        assert not torch.equal(changed[0], before[0])


def know(model, batch, knows):
    """Scores of a readout that knows the answers, or nothing."""
    result = [torch.randn(len(batch["labels"]), size) for size in model.config.label_sizes.values()]
    for scores, labels in zip(result, batch["labels"].unbind(-1), strict=True):
        scores.scatter_add_(1, labels.clamp(min=0), 9.0 * knows * (labels >= 2))
    return result


def test_an_encoder_is_measured_by_what_it_adds_to_counts(encoded, monkeypatch):
    model, fit = encoded
    forward, given = model.forward, [fit.log, fit.examples.validation, fit.scored]

    def measure(scores):
        def answer(parts=(), **batch):
            return SimpleNamespace(logits=dict(zip(model.config.tasks, scores(batch), strict=True)))

        monkeypatch.setattr(model, "forward", answer)
        return measure_encoder(model, *given)

    torch.manual_seed(0)
    nothing = measure(
        lambda batch: [torch.zeros(len(batch["labels"]), size) for size in model.config.label_sizes.values()]
    )
    assert measure(lambda batch: know(model, batch, False)) == pytest.approx(nothing, rel=0.02)
    assert measure(lambda batch: know(model, batch, True)) < 0.8 * nothing
    counted = measure(lambda batch: [*forward(**{k: v for k, v in batch.items() if k != "labels"}).logits.values()])
    assert counted == pytest.approx(nothing, rel=0.05)  # what counts know already
    given[-1] = [ScoredCases(*(column[:1] for column in fit.scored[0])), *fit.scored[1:]]
    assert np.isfinite(measure(lambda batch: know(model, batch, False)))  # with one candidate in all


def test_cases_that_chose_an_epoch_do_not_judge_the_encoder(data, monkeypatch):
    few, every = draw_examples(data, 0, True), draw_examples(data, 0, False).validation.row.tolist()
    assert sorted(few.judging.row) == few.validation.row.tolist() == every
    monkeypatch.setattr("modeling_mcm.training.scorer.examples.ENOUGH", 10)
    examples = draw_examples(data, 0, True)
    assert sorted([*examples.judging.row, *examples.validation.row]) == every
    assert abs(len(examples.judging.row) - len(examples.validation.row)) <= 1
    monkeypatch.setattr("modeling_mcm.training.scorer.examples.VALIDATION_EXAMPLES", 5)
    examples = draw_examples(data, 0, True)
    assert len(examples.validation.row) == 5 and len(examples.judging.row) == len(every) - 5


@pytest.mark.parametrize(
    "gain, error, asked, is_used",
    [(0.1, 0.1, 1, True), (-0.1, 0.1, 1, False), (0.01, 0.3, 3, False), (0.0, 0.0, 1, False)],
)
def test_more_cases_judge_the_encoder_where_the_first_do_not_decide(data, monkeypatch, gain, error, asked, is_used):
    examples, parts = draw_examples(data, 0, True), []
    monkeypatch.setattr(judge, "JUDGES", -(-len(examples.judging.row) // 3))

    def compare_networks(model, log, cases):
        parts.append(cases)
        return [gain + error * torch.tensor([1.0, -1.0]).repeat(2, len(cases.row))[:, : len(cases.row)]]

    monkeypatch.setattr(judge, "compare_networks", compare_networks)
    model = SimpleNamespace(config=SimpleNamespace(tasks=["items"]))
    pairs = judge.judge_encoder(model, None, examples._replace(questions=(NEXT_VISIT,)))
    assert pairs == [(0, NEXT_VISIT)] * is_used and len(parts) == asked
    rows = np.concatenate([part.row for part in parts])
    assert (rows == examples.judging.row[: len(rows)]).all()


def test_large_scores_have_a_finite_entropy():
    case, is_target = torch.tensor([0, 0, 1]), torch.tensor([True, False, True])
    scores = torch.tensor([500.0, 499.0, -500.0])
    weights, loss = fit_weights([ScoredCases(case, case, scores, is_target, torch.zeros(3, 1))])
    assert weights.isfinite().all() and 0 <= loss < 0.5


def test_a_log_with_few_visits_ends_without_the_encoder(tmp_path, caplog):
    log = [(user, place, "buy", f"item {place % 2}") for user in range(3) for place in range(4)]
    columns = ["user", "place", "kind", "item"]
    data = prepare_items(tmp_path, log, columns, order="place", cutoffs="leave_one_out", **KINDS)
    model = perturb(make_model(data, **EXTENDED | TINY | {"scorer": True, "state_size": 0}))
    counted = fit_counts(model, data)
    assert not len(counted.examples.held_out.row)
    fit_encoder(model, counted)
    assert not model.scorer.reads.any() and "0 visits were held out" in caplog.text


@pytest.mark.parametrize("knows", [True, False], ids=["knows the answers", "knows nothing"])
def test_an_encoder_is_used_where_it_adds_to_the_counts(encoded, monkeypatch, caplog, knows):
    model, fit = encoded
    torch.manual_seed(0)

    vectors = [labels.vectors for labels in model.task_labels(model.config.tasks)]
    monkeypatch.setattr(model, "readouts", lambda batch: list(map(Readout, know(model, batch, knows), vectors)))
    caplog.set_level("INFO")
    state = {name: value.clone() for name, value in model.scorer.state_dict().items()}
    fit_encoder(model, fit)
    used = model.scorer.reads.T.tolist()
    model.scorer.load_state_dict(state)
    assert used[NEXT_VISIT] == [knows, knows, False]  # of the types nothing is left to know
    assert used[WITHIN] == used[NEXT_VISIT] and WITHIN in fit.examples.questions
    assert caplog.text.count("so it is used") == 4 * knows


def test_a_model_on_a_gpu_is_fitted_as_on_the_cpu(data, monkeypatch):
    """From the counts to the judgement of the encoder, and the measure between, which decides the epoch."""
    monkeypatch.setattr(judge, "LEAST_ERRORS", -np.inf)  # all tasks read the encoder
    monkeypatch.setattr("modeling_mcm.training.scorer.fit.EPOCHS", 1)
    monkeypatch.setitem(SEARCH, "max_iter", 3)

    def fit(device):
        model = perturb(make_model(data, "type", **EXTENDED | TINY | {"scorer": True})).to(device)
        counted = fit_counts(model, data)
        measured = measure_encoder(model, counted.log, counted.examples.validation, counted.scored)
        fit_encoder(model, counted)
        assert {value.device for value in model.state_dict().values()} == {device} and model.scorer.reads.any()
        return measured, {name: value.cpu() for name, value in model.scorer.state_dict().items()}

    with other_device() as device:
        expected, found = fit(CPU), fit(device)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)


def test_until_the_scorer_is_fitted_scores_are_the_readouts(tiny_model, batch):
    model = tiny_model(extended=True, scorer=True)
    with torch.no_grad():
        logits = model(**batch).logits
    for scores, readout in zip(logits.values(), model.readouts(batch), strict=True):
        assert torch.equal(scores, readout.scores)


def test_later_labels_come_within_a_month_and_before_the_end_of_the_period():
    rows = Customers({"times": np.array([0, 1, 9, 32, 40, 41]) * 86_400}, np.array([6]))

    def later(stop, elapsed):
        row, end, stop, elapsed = (np.array([value]) for value in (0, 2, stop, elapsed))
        return find_later(rows, ExampleTable(row, end, stop, elapsed, elapsed, elapsed)).tolist()

    assert later(6, 2.0) == [2, 3]  # until day 33
    assert later(6, 9.0) == [2, 3, 4]
    assert later(2, 9.0) == []


def test_the_loss_wants_the_targets_of_each_question_first():
    mask, is_target = torch.ones(1, 4, dtype=torch.bool), torch.zeros(QUESTIONS, 1, 4, dtype=torch.bool)
    is_target[:, 0, 0] = is_target[WITHIN, 0, 1] = True
    scores = torch.zeros(QUESTIONS, 1, 4, requires_grad=True)
    ranking_loss(mask, scores, is_target, torch.zeros(1, 1, 4), torch.ones(QUESTIONS, 1)).backward()
    next_visit, within = -scores.grad[:, 0]
    assert next_visit[0] > 0 > next_visit[1:].max()
    assert within[:2].min() > 0 > within[2:].max()
    scores.grad = None  # and what an example does not know teaches nothing
    ranking_loss(mask, scores, is_target, torch.zeros(1, 1, 4), torch.tensor([[1.0], [0.0]])).backward()
    torch.testing.assert_close(-scores.grad[:, 0], torch.stack([next_visit, 0 * within]))


@torch.no_grad()
@pytest.mark.parametrize("question", [NEXT_VISIT, WITHIN])
def test_chances_are_those_of_the_question(model, data, question):
    """Over the validation cases that come, candidates do as often as the chances say: all, and the likely ones."""
    log, task = count_log(data, model.config), model.config.tasks.index("items")
    examples = draw_validation(data, seed=0)
    log_p = torch.zeros(len(examples.row), model.config.label_sizes["items"])
    for chosen, _, batch in read_batches(log, examples, np.arange(len(examples.row)), CPU):
        history = read_histories(model.config, batch, ["items"])
        log_p[chosen] = model.scorer.score([task], history, question=question)[0].log_softmax(1)
    tasks = compute_features(log, examples, torch.Generator(), CPU, model.scorer)
    found, comes = tasks[task], sum(of_task.num_targets[:, question] for of_task in tasks) > 0
    assert comes.all() == (question == NEXT_VISIT)
    log_p = log_p[found.example, found.label]
    chances = model.scorer.chances(model.scorer.chance[task, question], log_p)
    known = comes[found.example].float()
    for weights in (known, known * log_p.exp()):  # the conditions of the best a and c
        came = (weights * found.is_target[:, question]).sum().item()
        assert (weights * chances).sum().item() == pytest.approx(came, rel=0.02) and came > 0


def test_the_fit_of_chances_ends_at_the_minimum_though_most_labels_are_unlikely():
    """The derivative by c is tiny from the start, because p is."""
    generator = torch.Generator().manual_seed(0)
    log_p = -3 - 2.5 * torch.rand(100_000, generator=generator, dtype=torch.float64) ** 0.5
    comes = torch.rand(len(log_p), generator=generator) < LabelScorer.chances(torch.tensor([3.9, 1.3, -12.0]), log_p)

    def loss(chance):
        return F.binary_cross_entropy(LabelScorer.chances(chance, log_p), comes.double())

    (chance,) = minimize(loss, [torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)], **SEARCH)
    chances = LabelScorer.chances(chance, log_p)
    came = (log_p.exp() * comes).sum().item()
    assert (log_p.exp() * chances).sum().item() == pytest.approx(came, rel=1e-4)


@pytest.mark.parametrize("c", [-7.6, 0.0, 2.0])
def test_a_likelier_label_has_a_larger_chance(c):
    chances = LabelScorer.chances(torch.tensor([3.3, 1.2, c]).double(), torch.linspace(1e-4, 1, 1000).double().log())
    assert (chances.diff() > 0).all() and chances[-1] < 1
