# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The public names of `modeling_mcm`. Importing them registers the Auto classes and the pipelines.

The files `*_mcm.py` travel with a published checkpoint. Six of them are entry points: configuration, feature
extraction, modeling, action, customer, pipeline. They read the others.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .action_mcm import MCMForActionRecommendation
from .candidates_mcm import CandidateSet
from .configuration_mcm import MCMConfig
from .customer_mcm import MCMForCustomerPrediction
from .customer_model import CustomerModel
from .feature_extraction_mcm import MCMFeatureExtractor
from .live import LiveCustomer
from .live.explanations import explain
from .live.similar import similar, together
from .modeling_mcm import MCMForMultiTaskRecommendation, MCMModel, MCMPreTrainedModel
from .past import forecast_total
from .pipeline_mcm import (
    ActionScoresPipeline,
    CustomerEmbeddingPipeline,
    CustomerForecastPipeline,
    CustomerPredictionPipeline,
    PreferenceScoresPipeline,
)

AutoConfig.register("mcm", MCMConfig, exist_ok=True)
AutoModel.register(MCMConfig, MCMModel, exist_ok=True)
# Published checkpoints name the heads so (hub/folder.py); without these lines their remote code would be used here.
AutoModelForPreTraining.register(MCMConfig, MCMForMultiTaskRecommendation, exist_ok=True)
# Two heads share a name: the config's `architectures` says which of them a checkpoint has, the first if neither.
SEQUENCE_HEADS = (MCMForActionRecommendation, MCMForCustomerPrediction)
AutoModelForSequenceClassification.register(MCMConfig, SEQUENCE_HEADS, exist_ok=True)
AutoFeatureExtractor.register(MCMConfig, MCMFeatureExtractor, exist_ok=True)
PIPELINES = (
    (CustomerEmbeddingPipeline, AutoModel),
    (CustomerForecastPipeline, AutoModel),
    (PreferenceScoresPipeline, MCMForMultiTaskRecommendation),
    (ActionScoresPipeline, MCMForActionRecommendation),
    (CustomerPredictionPipeline, MCMForCustomerPrediction),
)
for pipeline, model in PIPELINES:
    PIPELINE_REGISTRY.register_pipeline(pipeline.NAME, pipeline_class=pipeline, pt_model=model, type="multimodal")

__all__ = [
    "ActionScoresPipeline",
    "CandidateSet",
    "CustomerEmbeddingPipeline",
    "CustomerForecastPipeline",
    "CustomerModel",
    "CustomerPredictionPipeline",
    "LiveCustomer",
    "MCMConfig",
    "MCMFeatureExtractor",
    "MCMForActionRecommendation",
    "MCMForCustomerPrediction",
    "MCMForMultiTaskRecommendation",
    "MCMModel",
    "MCMPreTrainedModel",
    "PreferenceScoresPipeline",
    "explain",
    "forecast_total",
    "similar",
    "together",
]
