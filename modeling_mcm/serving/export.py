# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Export of a checkpoint as ONNX, and its comparison with the model."""

from collections.abc import Mapping
from typing import Any

import torch

from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation, MCMModel, MCMPreTrainedModel
from modeling_mcm.training.checkpoints import read_checkpoint

EXAMPLE, OTHERS = (3, 11), ((1, 1), (2, 29), (5, 7))  # customers, events


def load(model: str) -> MCMPreTrainedModel:
    """Reads a checkpoint for an export, in float32: with the head for all tasks if it has that one, else without head.

    Attention is eager, because other kernels depend on the number of visits in the data.

    Args:
        model (`str`): Checkpoint folder, or name on the Hub.
    """
    scores = MCMForMultiTaskRecommendation.__name__ in (MCMConfig.from_pretrained(model).architectures or [])
    model_class: Any = MCMForMultiTaskRecommendation if scores else MCMModel
    return read_checkpoint(model_class, model, dtype=torch.float32, attn_implementation="eager").eval()


def example_inputs(model: MCMPreTrainedModel, customers: int, events: int) -> dict[str, torch.Tensor]:
    """Makes random inputs of the kind that a feature extractor makes: histories of several lengths, with visits.

    Args:
        model (`PreTrainedModel`): The model.
        customers (`int`): Number B of customers.
        events (`int`): Number L of events of the longest history; at most what the model reads.

    Returns:
        `dict[str, torch.Tensor]`: The inputs that the model reads: `input_ids` of shape `(B, L, J)`, `event_values` of
        shape `(B, L, N)`, `now` of shape `(B,)`, and the others of shape `(B, L)`.
    """
    config: Any = model.config
    draw = torch.Generator().manual_seed(events)
    shape = (customers, events)
    ids = torch.stack([torch.randint(1, size, shape, generator=draw) for size in config.vocabulary_sizes], dim=-1)
    lengths = torch.randint(1, events + 1, (customers, 1), generator=draw)
    lengths[0] = events
    mask = (torch.arange(events) < lengths).long()
    opens_visit = torch.randint(0, 2, shape, generator=draw)
    opens_visit[:, 0] = 0
    values = {
        "input_ids": ids * mask[..., None],
        "attention_mask": mask,
        "visit_ids": opens_visit.cumsum(1) * mask,
        "event_times": (3 * torch.rand(shape, generator=draw)).cumsum(1) * mask,
    }
    if config.state_size:
        values["now"] = values["event_times"].amax(1) + 9
        if number := len(config.summed_features):
            values["event_values"] = 5 * torch.rand((*shape, number), generator=draw) * mask[..., None]
    elif isinstance(model, MCMModel):
        del values["event_times"]
    return values


def export(model: MCMPreTrainedModel) -> Any:
    """Exports a model with transformers' exporter, for any number of customers and any length.

    Args:
        model (`PreTrainedModel`): The model, from [`load`].

    Returns:
        An ONNX program, which can be called with inputs and has `save_pretrained`.
    """
    from transformers.exporters import OnnxConfig, OnnxExporter

    config: Any = model.config
    if config.scorer and not isinstance(model, MCMModel):
        raise ValueError("A model that scores by counts alone has no graph of a fixed shape: pre-train an encoder.")
    batch, longest = torch.export.Dim("batch", min=1), {}
    if config.encoder_unit == "event" and config.max_position_embeddings:
        longest = {"max": config.max_position_embeddings}
    length = torch.export.Dim("length", min=1, **longest)
    inputs: Any = example_inputs(model, EXAMPLE[0], min(EXAMPLE[1], longest.get("max", EXAMPLE[1])))
    shapes: Any = {name: {0: batch} | ({1: length} if value.dim() > 1 else {}) for name, value in inputs.items()}
    exported = OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True, dynamic_shapes=shapes))
    for node in exported.program.graph.all_nodes():  # each names the line of source that it came from, with its path
        node.metadata_props.clear()
    return exported


@torch.no_grad()
def largest_difference(model: MCMPreTrainedModel, exported: Any) -> float:
    """Computes the largest difference between the outputs of a model and of its export, on inputs of several shapes.

    Args:
        model (`PreTrainedModel`): The model that was exported.
        exported: The export, from [`export`].

    Returns:
        `float`: The difference; NaN if an output has one.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    differences = []
    for customers, events in OTHERS:
        inputs = example_inputs(model, customers, min(events, longest or events))
        expected, actual = _outputs(model(**inputs)), _outputs(exported(**inputs))
        differences += [(value - torch.as_tensor(actual[name])).abs().max() for name, value in expected.items()]
    return float(torch.stack(differences).max())


def _outputs(outputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    values = {"pooler_output": outputs["pooler_output"]} | dict(outputs.get("forecasts") or {})
    # without the two ids that are no labels, whose number has no digits to compare
    return values | {task: torch.as_tensor(scores)[:, 2:] for task, scores in (outputs.get("logits") or {}).items()}
