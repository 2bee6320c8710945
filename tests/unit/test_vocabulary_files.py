# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The feature extractor on its way through a folder: saved and read equal, with its code, damaged, on a full disk."""

import json
import sys
from pathlib import Path

import pytest
from handmade_extractor import CUSTOMER, FEATURES, SETTINGS, batches_equal, make
from transformers import AutoFeatureExtractor, PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_mcm.files_mcm import VOCABULARIES_NAME
from modeling_mcm.processing_mcm import MCMFeatureExtractor


@pytest.fixture
def extractor():
    return make()


def test_a_saved_extractor_is_loaded_equal(tmp_path):
    edges = [0.1 + 0.2, 1 / 3, 5e-324, 1e300]
    extractor = make(bins={**SETTINGS["bins"], "a.b": sorted(edges)})
    extractor.vocabularies["items"] += ["crème", "\ud800", 'quote " and \n line']
    saved = extractor.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"preprocessor_config.json", VOCABULARIES_NAME}
    assert sorted(saved) == sorted(str(path) for path in tmp_path.iterdir())
    assert not {"vocabularies", "bins"} & set(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    for source in (tmp_path, str(tmp_path / "preprocessor_config.json")):
        loaded = MCMFeatureExtractor.from_pretrained(source)
        assert loaded.to_dict() == extractor.to_dict()
        assert (loaded.vocabularies, loaded.bins) == (extractor.vocabularies, extractor.bins)
        assert loaded.feature_names == [feature["name"] for feature in FEATURES]
        assert batches_equal(loaded([CUSTOMER, {"events": []}]), extractor([CUSTOMER, {"events": []}]))
    loaded.save_pretrained(tmp_path / "again")
    for name in ("preprocessor_config.json", VOCABULARIES_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert MCMFeatureExtractor.from_pretrained(tmp_path, max_events=3).max_events == 3


def test_auto_feature_extractor_loads_it(tmp_path, extractor):
    class ProbeConfig(PreTrainedConfig):
        model_type = "mcm-probe"

    AutoFeatureExtractor.register(ProbeConfig, MCMFeatureExtractor, exist_ok=True)
    extractor.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is MCMFeatureExtractor and batches_equal(loaded(CUSTOMER), extractor(CUSTOMER))


@pytest.fixture
def other_modules(tmp_path, monkeypatch):
    """A folder of its own for remote code: not that of another test, and none is left for other tests."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "transformers_modules").is_dir()])
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("transformers_modules")}
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    sys.modules.update(before)


def test_its_code_travels_with_it(tmp_path, extractor, other_modules, monkeypatch):
    monkeypatch.setattr(MCMFeatureExtractor, "_auto_class", None)
    MCMFeatureExtractor.register_for_auto_class()
    extractor.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    travelled = get_class_from_dynamic_module(config["auto_map"]["AutoFeatureExtractor"], str(tmp_path / "saved"))
    loaded = travelled.from_pretrained(tmp_path / "saved")
    assert type(loaded) is not MCMFeatureExtractor and batches_equal(loaded(CUSTOMER), extractor(CUSTOMER))


def test_a_push_saves_the_vocabularies_before_the_upload(tmp_path, extractor, monkeypatch):
    pushed = {}

    def push_to_hub(self, repo_id, **options):
        pushed[repo_id] = {path.name for path in (tmp_path / "grocer").iterdir()}

    monkeypatch.setattr(MCMFeatureExtractor, "push_to_hub", push_to_hub)
    extractor.save_pretrained(tmp_path / "grocer", push_to_hub=True)
    assert pushed == {"grocer": {"preprocessor_config.json", VOCABULARIES_NAME}}


def test_a_missing_damaged_or_foreign_vocabulary_file_is_named(tmp_path, extractor):
    extractor.save_pretrained(tmp_path)
    path = tmp_path / VOCABULARIES_NAME
    whole = path.read_text()
    for damaged in (whole[: len(whole) // 2], "", "[]", "{}", '{"vocabularies": {}, "bins": 3}'):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=f"{VOCABULARIES_NAME} is damaged .* save the feature extractor again"):
            MCMFeatureExtractor.from_pretrained(tmp_path)
    foreign = json.loads(whole)
    foreign["vocabularies"]["brand"] = foreign["vocabularies"].pop("items")
    path.write_text(json.dumps(foreign))
    with pytest.raises(ValueError, match=f"Found vocabularies of .*'brand'.* the features need .*{VOCABULARIES_NAME}"):
        MCMFeatureExtractor.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match=f"has no {VOCABULARIES_NAME}.* save the feature extractor again"):
        MCMFeatureExtractor.from_pretrained(tmp_path)


def test_a_full_disk_leaves_no_half_vocabulary_file(tmp_path, extractor, monkeypatch):
    extractor.save_pretrained(tmp_path)
    whole = (tmp_path / VOCABULARIES_NAME).read_bytes()

    def full(source, target):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        make(vocabularies={**SETTINGS["vocabularies"], "items": ["tea"]}).save_pretrained(tmp_path)
    assert (tmp_path / VOCABULARIES_NAME).read_bytes() == whole
