# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The private methods of transformers' Trainer that are overridden: all in one list, and in the installed version."""

import importlib
import inspect
import pkgutil
import re

import pytest
from transformers import Trainer

import modeling_mcm.training
from modeling_mcm.training.resumable import PRIVATE_METHODS


def trainers(parent=Trainer):
    """The package's classes that are Trainers; a new one is found as soon as a module of training has it."""
    for module in pkgutil.iter_modules(modeling_mcm.training.__path__):
        importlib.import_module(f"modeling_mcm.training.{module.name}")
    for child in parent.__subclasses__():
        yield from [child] if child.__module__.startswith("modeling_mcm.") else []
        yield from trainers(child)


TRAINERS = tuple(trainers())


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_all_private_methods_that_are_overridden_are_listed():
    assert {trainer.__name__ for trainer in TRAINERS} >= {"ResumableTrainer", "MCMTrainer", "OfferTrainer"}
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
