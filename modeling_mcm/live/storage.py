# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Live customers as bytes, in the safetensors format, with the digest of the checkpoint that they belong to."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from modeling_mcm.files_mcm import tensors_digest
from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.processing_mcm import MCMFeatureExtractor

LIVE_FORMAT, VERSION = "mcm-live", "5"
FIX = "add the customer's events to a new LiveCustomer"
EVENTS = "events"  # name of the tensor of a stored customer that holds the events, as compressed JSON
PREFIX = "state."  # prefix of the names of the other tensors of a stored customer
OF_EVENTS = ("input_ids", "visit_ids", "event_times", "event_values")  # of the state; compressed to a sixth
# The digest of each model's weights, with the versions of the weights that it was computed from.
_DIGESTS: WeakKeyDictionary[torch.nn.Module, tuple[Any, str]] = WeakKeyDictionary()


def pack(values: Mapping[str, Any], state: Mapping[str, torch.Tensor], checkpoint: str) -> bytes:
    """Stores a customer as a safetensors file in memory."""
    tensors = {PREFIX + name: value for name, value in state.items() if name not in OF_EVENTS}
    parts = {EVENTS: json.dumps(values, separators=(",", ":"), allow_nan=False).encode()}
    parts[PREFIX + EVENTS] = save({name: state[name] for name in OF_EVENTS if name in state})
    for name, part in parts.items():
        tensors[name] = torch.frombuffer(bytearray(zlib.compress(part)), dtype=torch.uint8)
    metadata = {"format": LIVE_FORMAT, "version": VERSION, "checkpoint": checkpoint}
    metadata["content"] = tensors_digest(tensors)
    return save(tensors, metadata)


def unpack(
    data: bytes, model: MCMForMultiTaskRecommendation, feature_extractor: MCMFeatureExtractor
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Restores what `pack` stored. Raises `ValueError` if the bytes are damaged or of another checkpoint."""
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        if metadata.get("format") != LIVE_FORMAT or metadata.get("content") != tensors_digest(tensors):
            raise ValueError("its content does not have the digest that was stored with it")
        parts = [zlib.decompress(tensors.pop(name).numpy().tobytes()) for name in (EVENTS, PREFIX + EVENTS)]
        values, of_events = json.loads(parts[0]), load(parts[1])
    except (SafetensorError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise ValueError(f"A stored state of {len(data):,} bytes is cut or damaged ({error}): {FIX}.") from error
    digest = checkpoint_digest(model, feature_extractor)
    if metadata.get("version") != VERSION or metadata.get("checkpoint") != digest:
        raise ValueError(
            f"A stored state is of the checkpoint {str(metadata.get('checkpoint'))[:12]} (format version "
            f"{metadata.get('version')}), this one is {digest[:12]} (version {VERSION}): {FIX}."
        )
    return values, of_events | {name.removeprefix(PREFIX): value for name, value in tensors.items()}


def checkpoint_digest(model: torch.nn.Module, feature_extractor: MCMFeatureExtractor) -> str:
    """Digest of a model's weights and of its feature extractor's settings; cached for each model."""
    weights = sorted(model.state_dict().items())
    versions = tuple((value.data_ptr(), value._version) for _, value in weights)
    entry = _DIGESTS.get(model)
    if entry is None or entry[0] != versions:
        entry = _DIGESTS[model] = (versions, tensors_digest(dict(weights)))
    reads = feature_extractor.to_dict() | {
        "vocabularies": feature_extractor.vocabularies,
        "bins": feature_extractor.bins,
    }
    of_extractor = json.dumps(reads, sort_keys=True, default=str)
    return hashlib.sha256(f"{entry[1]} {of_extractor}".encode()).hexdigest()
