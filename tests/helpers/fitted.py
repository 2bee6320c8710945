# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A scorer and a forecaster that have something to say, without a log to fit them on."""

import torch

from modeling_mcm.training.forecaster.shop import load_weights


@torch.no_grad()
def fill_scorer(model, reads_readout=True):
    """Fills a model's scorer with random counts and marks it as fitted; gives the model."""
    generator, scorer = torch.Generator().manual_seed(1), model.scorer
    for table in scorer.tables:
        size = table.counts.shape[1]
        table.neighbours.copy_(torch.randint(2, size, table.neighbours.shape, generator=generator))
        table.weights.copy_(torch.rand(table.weights.shape, generator=generator))
        table.counts.copy_(torch.randint(1, 50, table.counts.shape, generator=generator))
        table.attributes[2:, 0], table.rarity[2:, 0] = torch.arange(len(table.rarity) - 2) // 2 + 1, 1.5
        table.totals.copy_(torch.tensor([300.0, 2.0, 1.0, table.attributes.max()]))
    scorer.calibration.uniform_(0.1, 0.5, generator=generator)
    for table in scorer.tables:
        table.first.copy_(torch.rand(table.first.shape, generator=generator).log())
    scorer.reads.fill_(reads_readout)
    scorer.fitted.fill_(True)
    return model


@torch.no_grad()
def fill_forecaster(model):
    """Gives a model's forecaster the shipped weights and the statistics of an average shop; gives the model."""
    forecaster = model.base_model.forecaster
    load_weights(forecaster)
    forecaster.window.fill_(model.config.forecast_window)
    forecaster.most.fill_(1000.0)
    forecaster.calendar.counts.copy_(torch.tensor([20.0, 100.0]))
    forecaster.calendar.counts[::7, 0] = 60.0
    forecaster.statistics.copy_(forecaster.visit_network.range.mean[-len(forecaster.statistics) :])
    return model
