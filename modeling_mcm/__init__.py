# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM, a multi-task pre-trained customer model. Importing it registers the Auto classes and the pipelines."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .action_mcm import MCMForActionRecommendation
from .configuration_mcm import MCMConfig
from .live_mcm import LiveCustomer
from .modeling_mcm import MCMForMultiTaskRecommendation, MCMModel, MCMPreTrainedModel
from .pipeline_mcm import (
    ActionScoresPipeline,
    CustomerEmbeddingPipeline,
    CustomerForecastPipeline,
    PreferenceScoresPipeline,
)
from .processing_mcm import MCMFeatureExtractor

__version__ = "0.1.0"

AutoConfig.register("mcm", MCMConfig, exist_ok=True)
AutoModel.register(MCMConfig, MCMModel, exist_ok=True)
# Published checkpoints name the heads so (hub/folder.py); without these lines their remote code would be used here.
AutoModelForPreTraining.register(MCMConfig, MCMForMultiTaskRecommendation, exist_ok=True)
AutoModelForSequenceClassification.register(MCMConfig, MCMForActionRecommendation, exist_ok=True)
AutoFeatureExtractor.register(MCMConfig, MCMFeatureExtractor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "customer-embedding", pipeline_class=CustomerEmbeddingPipeline, pt_model=AutoModel, type="multimodal"
)
PIPELINE_REGISTRY.register_pipeline(
    "customer-forecast", pipeline_class=CustomerForecastPipeline, pt_model=AutoModel, type="multimodal"
)
PIPELINE_REGISTRY.register_pipeline(
    "preference-scores",
    pipeline_class=PreferenceScoresPipeline,
    pt_model=MCMForMultiTaskRecommendation,
    type="multimodal",
)

PIPELINE_REGISTRY.register_pipeline(
    "action-scores",
    pipeline_class=ActionScoresPipeline,
    pt_model=MCMForActionRecommendation,
    type="multimodal",
)

__all__ = [
    "ActionScoresPipeline",
    "CustomerEmbeddingPipeline",
    "CustomerForecastPipeline",
    "LiveCustomer",
    "MCMConfig",
    "MCMFeatureExtractor",
    "MCMForActionRecommendation",
    "MCMForMultiTaskRecommendation",
    "MCMModel",
    "MCMPreTrainedModel",
    "PreferenceScoresPipeline",
]
