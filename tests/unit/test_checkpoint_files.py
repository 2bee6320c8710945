# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Files of a checkpoint: weights, config and vocabularies must be complete and of one save; the extractor's files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from choices import perturb
from fake_hub import put_into_cache
from folders import content, edit_json, flipped_bits, read_json, update_json
from handmade_extractor import CUSTOMER, SETTINGS, make
from safetensors.torch import load_file, save_file
from transformers import AutoFeatureExtractor, AutoModelForPreTraining, pipeline

from modeling_mcm import (
    MCMConfig,
    MCMFeatureExtractor,
    MCMForActionRecommendation,
    MCMForMultiTaskRecommendation,
    MCMModel,
    configuration_mcm,
    feature_extraction_mcm,
)
from modeling_mcm.checkpoint_mcm import VOCABULARIES_NAME
from modeling_mcm.training.checkpoints import CheckpointError

CLASSES = [MCMModel, MCMForMultiTaskRecommendation, MCMForActionRecommendation]


@pytest.fixture
def tied(save, extractor):
    """Folder of a checkpoint whose weights and config know their values, as pre-training leaves it."""
    return Path(save(extended=True, values_digest=extractor.values_digest))


@pytest.fixture
def others(tiny_model, extractor, tmp_path):
    """Folder of a checkpoint of the same sizes, of other values."""
    extractor.vocabularies["items"].reverse()
    for part in (perturb(tiny_model(extended=True, values_digest=extractor.values_digest)), extractor):
        part.save_pretrained(tmp_path / "others")
    return tmp_path / "others"


def swap(values):
    values[-1], values[-2] = values[-2], values[-1]


REORDERED = {
    "two values swapped": lambda stored: swap(stored["vocabularies"]["items"]),
    "of a profile": lambda stored: swap(stored["vocabularies"]["age"]),
    "a value renamed": lambda stored: stored["vocabularies"]["aisle"].__setitem__(0, "aisle 9"),
    "another edge": lambda stored: stored["bins"]["a.b"].__setitem__(-1, 1e6),
}


@pytest.mark.parametrize("change", REORDERED.values(), ids=REORDERED)
def test_changed_vocabularies_are_refused(tied, change):
    edit_json(tied / VOCABULARIES_NAME, change)
    for read in CLASSES:
        with pytest.raises(
            ValueError, match="other values, or in another order, in vocabularies.json .*one and the s"
        ):
            read.from_pretrained(tied)


@pytest.mark.parametrize("files", [["model.safetensors"], ["config.json"], ["config.json", "vocabularies.json"]])
def test_files_of_another_save_are_refused(tied, others, files):
    for name in files:
        shutil.copy(others / name, tied / name)
    with pytest.raises(ValueError, match="from one and the same save"):
        MCMForMultiTaskRecommendation.from_pretrained(tied)


def test_pipeline_refuses_another_extractor(tied, others, prepare_log, event_log):
    model = MCMForMultiTaskRecommendation.from_pretrained(tied)
    other = MCMFeatureExtractor.from_pretrained(others)
    with pytest.raises(ValueError, match="other values, or in another order"):
        pipeline("preference-scores", model=model, feature_extractor=other)
    with pytest.raises(ValueError, match="has the tasks .*and .* was trained with .* take both from one"):
        MCMFeatureExtractor.from_pretrained(tied, tasks=[]).check_fits(model)
    smaller = prepare_log(event_log[event_log["item"] != "item 01"]) / "feature_extractor"
    with pytest.raises(ValueError, match="feature extractor has the features and sizes .* take both from one"):
        pipeline("preference-scores", model=model, feature_extractor=MCMFeatureExtractor.from_pretrained(str(smaller)))


def test_unknown_digest_gives_a_warning(save, monkeypatch):
    said = []
    monkeypatch.setattr("modeling_mcm.checkpoint_mcm.logger.warning_once", said.append)
    assert MCMModel.from_pretrained(save(values_digest=None)).config.values_digest is None
    assert said and "does not say which values its weights were trained with" in said[0]


# ------------------------------------------------------------------------------------------------------ read whole


def test_every_class_reads_checkpoints_of_the_others(tied, tmp_path):
    MCMForActionRecommendation.from_pretrained(tied).save_pretrained(tmp_path / "offers")
    MCMModel.from_pretrained(tied).save_pretrained(tmp_path / "base")
    folders = tied, tmp_path / "offers", tmp_path / "base"
    found = {each.from_pretrained(folder).config.values_digest for folder in folders for each in CLASSES}
    assert len(found) == 1 and None not in found


@pytest.fixture(params=["folder", "subfolder", "repository", "subfolder of a repository"])
def place(tied, tmp_path, request):
    """Where a checkpoint lies: its files, and how it is asked for, by a source and options."""
    name = "its/own" if "subfolder" in request.param else ""
    options = {"subfolder": name} if name else {}
    if "repository" in request.param:
        folder = put_into_cache(tied, tmp_path / "cache", "org/name", name)
        return folder, "org/name", options | {"cache_dir": tmp_path / "cache"}
    return shutil.copytree(tied, tmp_path / "place" / name), tmp_path / "place", options


def test_a_checkpoint_is_read_and_checked_wherever_it_lies(place, tied):
    folder, source, options = place
    expected = MCMForMultiTaskRecommendation.from_pretrained(tied).state_dict()
    for read in (MCMForMultiTaskRecommendation, AutoModelForPreTraining):
        torch.testing.assert_close(read.from_pretrained(source, **options).state_dict(), expected, rtol=0, atol=0)
    for read in (MCMFeatureExtractor, AutoFeatureExtractor):
        found = read.from_pretrained(source, **options)
        assert found.to_dict() == MCMFeatureExtractor.from_pretrained(tied).to_dict() and found.vocabularies
    update_json(folder / "config.json", forecast_window=7)
    with pytest.raises(CheckpointError, match=r"config.json has another `forecast_window` \(7\) than model"):
        MCMModel.from_pretrained(source, **options)


def test_a_subfolder_that_is_not_there_is_named(tied):
    with pytest.raises(CheckpointError, match="checkpoint/none is no folder"):
        MCMModel.from_pretrained(tied, subfolder="none")


def another(value):
    """A value that is not this one, of its type where that is known."""
    if isinstance(value, dict):
        return {**value, "items": [1]}
    return [*value, "b"] if isinstance(value, list) else not value if isinstance(value, bool) else f"{value}1"


@pytest.mark.parametrize("gone", [False, True], ids=["another value", "gone"])
def test_every_edited_setting_is_refused_by_its_name_and_those_that_decide_nothing_are_free(tied, gone):
    kinds = {
        "config.json": (MCMModel, configuration_mcm, [*MCMConfig.__annotations__]),
        "preprocessor_config.json": (MCMFeatureExtractor, feature_extraction_mcm, [*make().to_dict()]),
    }
    for file, (kind, module, names) in kinds.items():
        saved = read_json(tied / file)
        assert {*module.FREE, *module.DECIDING} - {"auto_map"} == {*names} - {"feature_extractor_type"}
        for name in module.DECIDING:
            changed = {**saved, name: another(saved.get(name))}
            if gone and saved.get(name) is None:
                continue
            if gone:
                del changed[name]
            if name == "features" and kind is MCMFeatureExtractor:
                changed["features"] = saved["features"][:-1]
            (tied / file).write_text(json.dumps(changed))
            with pytest.raises(CheckpointError, match=f"{file} .*has another `{name}`|{file} has another `{name}`"):
                kind.from_pretrained(tied)
        (tied / file).write_text(json.dumps(saved))
    update_json(tied / "config.json", hidden_dropout_prob=0.5, forecast_days=[3.0], max_events=7)
    update_json(tied / "preprocessor_config.json", max_events=7)
    config = MCMModel.from_pretrained(tied).config
    assert (config.forecast_days, config.max_events) == ([3.0], 7)
    assert MCMFeatureExtractor.from_pretrained(tied).max_events == 7


def test_settings_are_changed_by_loading_with_others_and_saving(tied):
    MCMModel.from_pretrained(tied, kind_feature="items").save_pretrained(tied)
    assert MCMModel.from_pretrained(tied).config.kind_feature == "items"


def test_weights_that_another_tool_wrote_are_read(tied):
    save_file(load_file(tied / "model.safetensors"), tied / "model.safetensors", {"format": "pt", "by": "another"})
    update_json(tied / "config.json", kind_feature="items")
    assert MCMModel.from_pretrained(tied).config.kind_feature == "items"


def test_to_save_again_writes_the_same_bytes(tied, tmp_path):
    model = MCMModel.from_pretrained(tied)
    for number in range(6):  # which commits to the Hub count on
        model.save_pretrained(tmp_path / str(number))
    assert all(content(tmp_path / str(number)) == content(tmp_path / "0") for number in range(6))


@pytest.mark.parametrize("size", ["30KB", "1GB"])
def test_no_flipped_bit_of_the_weights_changes_an_answer(tied, size):
    model = MCMForMultiTaskRecommendation.from_pretrained(tied)
    (tied / "model.safetensors").unlink()
    model.save_pretrained(tied, max_shard_size=size)
    refused, states = 0, model.state_dict()
    for path in tied.glob("*.safetensors"):
        for _ in flipped_bits(path, 20):
            try:
                found = MCMForMultiTaskRecommendation.from_pretrained(tied).state_dict()
            except (ValueError, OSError):
                refused += 1
                continue
            assert found.keys() == states.keys() and all(torch.equal(found[name], states[name]) for name in states)
    assert refused


def test_a_flipped_bit_of_a_downloaded_weight_is_named(tied, tmp_path):
    folder = put_into_cache(tied, tmp_path / "cache", "org/name", "")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-7] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    for source, options in ((folder, {}), ("org/name", {"cache_dir": tmp_path / "cache"})):
        with pytest.raises(CheckpointError, match="model.safetensors was damaged or changed after it was saved: copy"):
            MCMModel.from_pretrained(source, **options)


@pytest.mark.parametrize("size", ["5KB", "1GB"])
def test_saving_over_a_checkpoint_leaves_no_weights_of_the_one_before(tied, monkeypatch, size):
    pushed = []
    monkeypatch.setattr(MCMModel, "push_to_hub", lambda self, name, **options: pushed.append((name, options)))
    model = MCMModel.from_pretrained(tied)
    model.save_pretrained(tied, max_shard_size="7KB")
    model.save_pretrained(tied, max_shard_size=size, push_to_hub=True, repo_id="org/name", private=True)
    assert pushed == [("org/name", {"private": True})] and not [*tied.glob(".*")]
    index = tied / "model.safetensors.index.json"
    names = {*read_json(index)["weight_map"].values()} if index.exists() else {"model.safetensors"}
    assert {path.name for path in tied.glob("*.safetensors")} == names and (size == "1GB") == (len(names) == 1)
    again = MCMModel.from_pretrained(tied).state_dict()
    torch.testing.assert_close(again, model.state_dict(), rtol=0, atol=0)


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tied, small_disk):
    disk = small_disk("8m")
    folder = shutil.copytree(tied, disk / "run")
    before, model = content(folder), MCMForMultiTaskRecommendation.from_pretrained(tied)
    (disk / "rest").write_bytes(bytes(shutil.disk_usage(disk).free - 2**14))
    with pytest.raises(OSError, match="run can't be written .* is as it was: make room"):
        model.save_pretrained(folder)
    assert content(folder) == before
    (disk / "rest").unlink()
    model.save_pretrained(folder)


@pytest.mark.parametrize("text", ["null", "[]", "7", "[" * 10**5, '{"a":' * 10**5, '{"features": null}'])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", VOCABULARIES_NAME])
def test_other_json_is_refused_by_the_name_of_its_file(tied, file, text):
    (tied / file).write_text(text)
    with pytest.raises((ValueError, OSError), match=file):
        MCMForMultiTaskRecommendation.from_pretrained(tied)
        MCMFeatureExtractor.from_pretrained(tied)


def test_saved_extractor_is_loaded_equal(tmp_path):
    edges = [0.1 + 0.2, 1 / 3, 5e-324, 1e300]
    extractor = make(bins={**SETTINGS["bins"], "a.b": sorted(edges)})
    extractor.vocabularies["items"] += ["crème", "\ud800", 'quote " and \n line']
    saved = extractor.save_pretrained(tmp_path)
    assert sorted(saved) == [str(tmp_path / name) for name in ("preprocessor_config.json", VOCABULARIES_NAME)]
    assert not {"vocabularies", "bins"} & set(read_json(tmp_path / "preprocessor_config.json"))
    for source in (tmp_path, str(tmp_path / "preprocessor_config.json")):
        loaded = MCMFeatureExtractor.from_pretrained(source)
        assert loaded.to_dict() == extractor.to_dict() and loaded.values_digest == extractor.values_digest
        torch.testing.assert_close(*(each([CUSTOMER, {"events": []}]) for each in (loaded, extractor)), rtol=0, atol=0)
    assert MCMFeatureExtractor.from_pretrained(tmp_path, max_events=3).max_events == 3


def test_push_saves_vocabularies_first(tmp_path, monkeypatch):
    pushed = {}

    def push_to_hub(self, repo_id, **options):
        pushed[repo_id] = {path.name for path in (tmp_path / "grocer").iterdir()}

    monkeypatch.setattr(MCMFeatureExtractor, "push_to_hub", push_to_hub)
    make().save_pretrained(tmp_path / "grocer", push_to_hub=True)
    assert pushed == {"grocer": {"preprocessor_config.json", VOCABULARIES_NAME}}


def test_bad_vocabulary_file_is_named(tmp_path):
    make().save_pretrained(tmp_path)
    path = tmp_path / VOCABULARIES_NAME
    whole = path.read_text()
    for damaged in (whole[: len(whole) // 2], "[]", "{}", '{"vocabularies": {}, "bins": 3}'):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=f"{VOCABULARIES_NAME} is damaged .* save the feature extractor again"):
            MCMFeatureExtractor.from_pretrained(tmp_path)
    stored = json.loads(whole)
    stored["vocabularies"]["brand"] = stored["vocabularies"].pop("items")
    del stored["settings"]  # as if it was made by hand
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=f"Found vocabularies of .*'brand'.* the features need .*{VOCABULARIES_NAME}"):
        MCMFeatureExtractor.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match=f"has no {VOCABULARIES_NAME}.* save the feature extractor again"):
        MCMFeatureExtractor.from_pretrained(tmp_path)
