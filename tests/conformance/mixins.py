# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""transformers' own test mixins on MCM's classes, unmodified. Not collected by itself: test_conformance.py fetches the
mixins of the installed transformers, puts them on the path as `transformers_tests`, and runs this file.
"""

import unittest
from itertools import product

import torch
from choices import PAPER
from torch.utils._pytree import tree_leaves
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_feature_extraction_common import FeatureExtractionSavingTestMixin
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask

from modeling_mcm import (
    MCMConfig,
    MCMFeatureExtractor,
    MCMForActionRecommendation,
    MCMForMultiTaskRecommendation,
    MCMModel,
)

MODEL_MAPPING_NAMES.setdefault("mcm", "MCMModel")
BATCH, LENGTH, SIZES = 13, 7, [5, 11, 9]


class MCMModelTester:
    """A tiny config and inputs for it, as the mixins ask for them."""

    is_training = True

    def __init__(self, parent):
        self.parent = parent
        self.batch_size, self.seq_length, self.hidden_size = BATCH, LENGTH, 32
        self.num_hidden_layers, self.num_attention_heads = 2, 4
        self.choices = {**PAPER, "readout_bias": True}
        self.encoder_seq_length = self.key_length = LENGTH

    def get_config(self):
        return MCMConfig(
            features=["token_type", "category", "brand"],
            vocabulary_sizes=SIZES,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            **self.choices,
        )

    def prepare_config_and_inputs_for_common(self):
        ids = torch.stack([ids_tensor([BATCH, LENGTH], size - 1) + 1 for size in SIZES], dim=-1)
        return self.get_config(), {"input_ids": ids, "attention_mask": random_attention_mask([BATCH, LENGTH])}


class MCMModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MCMModel, MCMForMultiTaskRecommendation)
    test_resize_embeddings = False  # an event has a table for each feature

    def setUp(self):
        self.model_tester = MCMModelTester(self)
        self.config_tester = ConfigTester(self, config_class=MCMConfig, has_text_modality=False, hidden_size=32)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_exporters_of_transformers_give_the_same(self):
        # What their ExportTesterMixin does, which no distribution has
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class, dynamic, (exporter, settings) in product(
            self.all_model_classes, (False, True), ((DynamoExporter, DynamoConfig), (OnnxExporter, OnnxConfig))
        ):
            inputs = self._prepare_for_class(inputs, model_class)
            inputs.pop("labels", None)
            model = model_class(config).eval()
            exported = exporter().export(model, dict(inputs), settings(dynamic=dynamic))
            with torch.no_grad():
                wanted = [value for value in tree_leaves(dict(model(**inputs))) if value is not None]
            found = [value for value in tree_leaves(dict(exported(**inputs))) if value is not None]
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = dict(super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels))
        if model_class is MCMForMultiTaskRecommendation:  # else the first output would be a dict of tasks
            inputs["labels"] = torch.full((len(inputs["input_ids"]), 1, len(SIZES) - 1), 3)
        return inputs


class MCMForActionTest(MCMModelTest):
    """The head for offers: each customer is offered both of two actions, a category each."""

    all_model_classes = (MCMForActionRecommendation,)
    test_exporters_of_transformers_give_the_same = None  # sizes depend on the numbers of offers

    def setUp(self):
        super().setUp()
        self.model_tester.choices = PAPER  # whose every parameter the scores depend on

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = dict(ModelTesterMixin._prepare_for_class(self, inputs_dict, model_class, return_labels=return_labels))
        batch, length = inputs["input_ids"].shape[:2]
        return inputs | {
            "event_times": torch.arange(length).float().expand(batch, -1),
            "action_input_ids": torch.tensor([[3, 2, 0], [3, 4, 0]]),
            "action_rows": torch.tensor([0, 1]),
            "action_matches": torch.tensor([[0, 1, 0, 1], [0, 2, 1, 1], [0, 3, 1, 0]]),
            "offered_actions": torch.tensor([0, 1]).expand(batch, -1),
            "labels": torch.tensor([[1.0, 0.0], [0.0, -1.0]]).expand(batch, -1, -1),
        }


class MCMFeatureExtractorTest(FeatureExtractionSavingTestMixin, unittest.TestCase):
    feature_extraction_class = MCMFeatureExtractor

    @property
    def feat_extract_dict(self):
        return {}
