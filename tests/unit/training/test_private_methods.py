# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The private methods of transformers' Trainer that are overridden: all in one list, and in the installed version."""

import inspect
import re

import pytest
from transformers import Trainer

from modeling_mcm.training.labels import LabelTrainer
from modeling_mcm.training.offer_trainer import OfferTrainer
from modeling_mcm.training.resumable import PRIVATE_METHODS, ResumableTrainer
from modeling_mcm.training.trainer import MCMTrainer

TRAINERS = (ResumableTrainer, MCMTrainer, OfferTrainer, LabelTrainer)


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_all_private_methods_that_are_overridden_are_listed():
    own = {name for trainer in TRAINERS for name, value in vars(trainer).items() if inspect.isfunction(value)}
    assert {name for name in own if is_private(name) and hasattr(Trainer, name)} == set(PRIVATE_METHODS)


@pytest.mark.parametrize("name", PRIVATE_METHODS)
def test_the_installed_trainer_has_a_private_method_with_its_parameters(name):
    parameters = list(inspect.signature(getattr(Trainer, name)).parameters)
    assert parameters[1 : 1 + len(PRIVATE_METHODS[name])] == list(PRIVATE_METHODS[name])
    for trainer in TRAINERS:  # what an override names itself, it names as the Trainer does
        if name in vars(trainer):
            named = inspect.signature(vars(trainer)[name]).parameters.values()
            kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            assert {value.name for value in named if value.kind not in kinds} <= set(parameters)


def test_a_trainer_calls_what_is_overridden():
    """An override that nothing calls any more would be as good as gone."""
    source = inspect.getsource(inspect.getmodule(Trainer))
    for name in PRIVATE_METHODS:
        assert re.search(rf"\bself\.{name}\b", source), name
