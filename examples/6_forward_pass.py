# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The forward pass of `MCMForMultiTaskRecommendation` for one customer and one task, in plain PyTorch.

L events of J features, N values that are summed, U visits with the start row, H hidden size, V label ids, C
candidates, S numbers of the state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.features_mcm import LabelHistory
from modeling_mcm.scorer_mcm import Readout, candidate_features


def compute_scores(
    model: MCMForMultiTaskRecommendation, task: str, ids: Tensor, visits: Tensor, days: Tensor, as_of: Tensor
) -> Tensor:
    """Scores (V) of the labels of a task; `ids` (L, J), `visits` (L), `days` (L)."""
    core, config, scorer = model.model, model.config, model.scorer
    t, feature = config.tasks.index(task), config.features.index(task)
    tables = [table.weight for table in core.embeddings.events.feature_tables]  # J of (values of the feature, H)
    events = sum(table[ids[:, j]] for j, table in enumerate(tables)) / (ids != 0).sum(1, keepdim=True)  # (L, H)
    member = F.one_hot(visits).T.float()  # (U, L)
    units = member @ events / member.sum(1, keepdim=True).sqrt()  # (U, H)
    # the encoder and its readout
    place = torch.arange(len(units))  # (U)
    age = place[:, None] - place  # (U, U)
    unseen = (age < 0) | ((age >= config.attention_window) & (place > 0))  # (U, U)
    mask = torch.zeros(1, 1, *age.shape).masked_fill(unseen, -torch.inf)  # (1, 1, U, U)
    hidden = core.encoder(core.embeddings.norm(units)[None], attention_mask=mask)[0][0]  # (U, H)
    z = model.readout_scale[t] * hidden @ tables[feature].T  # (U, V)
    readout = (z.softmax(0) * z).sum(0) + model.readout_bias[t]  # (V)
    # counts and network; the first row is the start row, 0 is the question of the next visit
    kinds = (ids[1:, config.features.index(config.kind_feature)] - 2).clamp(min=0)
    parts = (ids[1:, [feature]], visits[1:], days[1:], kinds)
    history = LabelHistory.from_batch(*(part[None] for part in parts), as_of[None])
    said = Readout(readout[None], tables[feature])
    _, label, _, x = candidate_features(history, [scorer.get_tables(t)], [said])  # (C), (C, 64)
    network = scorer.get_network(t, 0)  # of counts alone, (C, 60), or of the encoder, too
    z = ((x[:, : len(network.mean)] - network.mean) / network.std).clamp(-4, 4)  # (C, 64)
    inner = F.gelu(network.second(F.gelu(network.first(z) + network.task_vectors.weight[t])))  # (C, 32)
    logits = (network.last(inner) + network.linear(z))[:, 0] + network.log_mix(x)  # (C)
    best, shares = scorer.calibration[t, 0].exp() * logits, (scorer.get_tables(t).counts[0] + 0.5).log()  # (C), (V)
    others = shares.index_fill(0, torch.cat([torch.tensor([0, 1]), label]), -torch.inf)  # no candidates
    scores = others - others.max().nan_to_num(neginf=0.0) + best[x[:, 0] == 0].mean()  # (V)
    scores[:2] = torch.finfo(scores.dtype).min / 2  # ids 0 and 1 are no labels
    scores[label] = best
    return scores


def compute_state(
    model: MCMForMultiTaskRecommendation, ids: Tensor, visits: Tensor, days: Tensor, values: Tensor, as_of: Tensor
) -> Tensor:
    """The customer state (S); `values` (L, N)."""
    parts = (ids, torch.ones(len(ids)), visits, days, values, as_of[None])
    return model.model.state(model.model.state.counts(*(part[None] for part in parts)))[0, 0]
