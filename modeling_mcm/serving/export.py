# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Export of a checkpoint as ONNX, as a torch.export program or with int8 weights, and checks against the model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TorchAoConfig

from modeling_mcm.configuration_mcm import MCMConfig
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation, MCMModel, MCMPreTrainedModel
from modeling_mcm.processing_mcm import MCMFeatureExtractor
from modeling_mcm.training.checkpoints import read_checkpoint

ONNX, TORCH, INT8 = FORMATS = ("onnx", "torch", "int8")
SCORES, EMBEDDINGS = CONTENTS = ("scores", "embeddings")
NEEDS = {ONNX: ("onnx", "onnxscript", "onnxruntime"), TORCH: (), INT8: ("torchao",)}
TOLERANCE = 1e-5
CUTOFF = "validation"  # what is chosen, chosen there
EXAMPLE, OTHERS = (3, 11), ((1, 1), (2, 29), (5, 7))  # customers, events


def load(model: str, what: str, **options: Any) -> MCMPreTrainedModel:
    """Reads a checkpoint for an export, in float32, with the head if scores are exported.

    Args:
        model (`str`): Checkpoint folder, or name on the Hub.
        what (`str`): `scores` or `embeddings`.
        options (`dict[str, Any]`): Keyword arguments of `from_pretrained`.

    Raises:
        ValueError: If scores are to be exported from a checkpoint without its head.
    """
    head = MCMForMultiTaskRecommendation.__name__
    architectures = MCMConfig.from_pretrained(model).architectures or []
    if what == SCORES and head not in architectures:
        raise ValueError(
            f"{model} is a {', '.join(architectures) or 'bare model'}, scores need {head}: use --what embeddings."
        )
    model_class: Any = MCMForMultiTaskRecommendation if what == SCORES else MCMModel
    return read_checkpoint(model_class, model, dtype=torch.float32, **options).eval()


def example_inputs(config: MCMConfig, what: str, customers: int, events: int) -> dict[str, torch.Tensor]:
    """Makes random inputs of the kind that a feature extractor makes: histories of several lengths, with visits.

    Args:
        config (`MCMConfig`): Config of the model.
        what (`str`): `scores` or `embeddings`.
        customers (`int`): Number B of customers.
        events (`int`): Number L of events of the longest history; at most what the model reads.

    Returns:
        `dict[str, torch.Tensor]`: The inputs that the model reads: `input_ids` of shape `(B, L, J)`, `event_values` of
        shape `(B, L, N)`, `now` of shape `(B,)`, and the others of shape `(B, L)`.
    """
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
    elif what == EMBEDDINGS:
        del values["event_times"]
    return values


def export(model: MCMPreTrainedModel, what: str, target: str) -> Any:
    """Exports a model with transformers' exporter, for any number of customers and any length.

    Args:
        model (`PreTrainedModel`): The model, from [`load`], with eager attention, because other kernels depend on the
            number of visits in the data.
        what (`str`): `scores` or `embeddings`.
        target (`str`): `onnx` or `torch`.

    Returns:
        The exporter's result, which can be called with inputs and has `save_pretrained`.
    """
    from transformers.exporters import DynamoConfig, DynamoExporter, OnnxConfig, OnnxExporter

    config: Any = model.config
    batch, longest = torch.export.Dim("batch", min=1), {}
    if config.encoder_unit == "event" and config.max_position_embeddings:
        longest = {"max": config.max_position_embeddings}
    length = torch.export.Dim("length", min=1, **longest)
    events = min(EXAMPLE[1], longest.get("max", EXAMPLE[1]))
    inputs: Any = example_inputs(config, what, EXAMPLE[0], events)
    options: dict[str, Any] = {
        "dynamic": True,
        "dynamic_shapes": {
            name: {0: batch} | ({1: length} if value.dim() > 1 else {}) for name, value in inputs.items()
        },
    }
    # Each node remembers the line of source it came from, with this machine's paths: nothing to give away.
    if target == ONNX:
        exported = OnnxExporter().export(model, inputs, config=OnnxConfig(**options))
        for node in exported.program.graph.all_nodes():
            node.metadata_props.clear()
    else:
        exported = DynamoExporter().export(model, inputs, config=DynamoConfig(**options))
        for node in exported.program.graph.nodes:
            node.meta.pop("stack_trace", None)
            node.meta.pop("nn_module_stack", None)
    return exported


def save_int8(model: str, what: str, output_dir: str) -> None:
    """Saves a checkpoint with int8 weights of the encoder. `from_pretrained` reads it if torchao is installed.

    Args:
        model (`str`): Checkpoint folder, or name on the Hub.
        what (`str`): `scores` saves the head too, `embeddings` does not.
        output_dir (`str`): Folder to write.
    """
    from torchao.quantization import Int8WeightOnlyConfig

    # The repeat memory's linear layers are a few hundred numbers: nothing to save, and a label's rank to lose. The
    # state's read counts, whose sizes differ too much for one scale a row.
    quantization = TorchAoConfig(
        Int8WeightOnlyConfig(), modules_to_not_convert=["repeat_memory", "state", "forecasts"]
    )
    load(model, what, quantization_config=quantization).save_pretrained(output_dir)
    for path in Path(output_dir).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
        # torchao rebuilds tensors of modules only: it stumbles over the name of a parameter of the model itself,
        # such as readout_scale, which is plain and needs no rebuilding.
        names = [name for name in json.loads(metadata["tensor_names"]) if "." in name]
        save_file(tensors, path, metadata | {"tensor_names": json.dumps(names)})


def cost_in_ndcg(model: str, exported: str, data: str) -> tuple[list[list[str]], str]:
    """Measures what int8 weights cost: the next-visit NDCG@10 of each task on the validation cases, before and after.

    Args:
        model (`str`): Checkpoint folder, or name on the Hub.
        exported (`str`): Folder of the same checkpoint with int8 weights.
        data (`str`): Folder of a prepared data set with the checkpoint's vocabularies.

    Returns:
        `tuple`: The table as lists of cells with its heading, and its caption.
    """
    from modeling_mcm.data import PreparedData
    from modeling_mcm.evaluation import bootstrap_interval, paired_difference
    from modeling_mcm.evaluation.cases import cases_at
    from modeling_mcm.evaluation.model import model_values
    from modeling_mcm.evaluation.reports import with_interval

    extractor, prepared = MCMFeatureExtractor.from_pretrained(model), PreparedData(data)
    cases = cases_at(prepared, CUTOFF)
    tasks = list(extractor.tasks)
    models: Any = [load(checkpoint, SCORES) for checkpoint in (model, exported)]
    before, after = (model_values(checkpoint, extractor, prepared.rows, cases, tasks) for checkpoint in models)
    table = [["task", "float32", "int8", "difference"]]
    for task in tasks:
        values = [metrics[task]["next_visit_ndcg@10"] for metrics in (before, after)]
        change = paired_difference(values[1], values[0]).absolute
        means = [f"{bootstrap_interval(ndcg).mean:.5f}" for ndcg in values]
        table.append([task, *means, with_interval(change, "+.5f")])
    caption = f"Next-visit NDCG@10, {len(cases):,} {CUTOFF} cases of {prepared.schema.name}"
    return table, f"{caption}; the difference is paired by customer, with its 95% interval in brackets."


@torch.no_grad()
def largest_difference(model: MCMPreTrainedModel, exported: Any, what: str) -> float:
    """Computes the largest difference between the outputs of a model and of its export, on inputs of several shapes.

    Args:
        model (`PreTrainedModel`): The model that was exported.
        exported: The export, from [`export`].
        what (`str`): `scores` or `embeddings`.
    """
    config: Any = model.config
    differences = []
    for customers, events in OTHERS:
        inputs = example_inputs(config, what, customers, min(events, config.max_position_embeddings or events))
        expected, actual = _outputs(model(**inputs), what), _outputs(exported(**inputs), what)
        differences += [(value - torch.as_tensor(actual[name])).abs().max() for name, value in expected.items()]
    return float(torch.stack(differences).max())  # NaN if there is one


def _outputs(outputs: Mapping[str, Any], what: str) -> dict[str, torch.Tensor]:
    values = {"pooler_output": outputs["pooler_output"]} | dict(outputs.get("forecasts") or {})
    if what == SCORES:  # without the two ids that are no labels, whose number has no digits to compare
        values |= {task: torch.as_tensor(scores)[:, 2:] for task, scores in outputs["logits"].items()}
    return values
