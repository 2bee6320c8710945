# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The methods of docs/results.md, a file each or a family. To add one, write a file here with a list `METHODS`."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from logs import Log
from modeling_mcm.data import PreparedData
from modeling_mcm.evaluation.cases import EvaluationCases

# From cases to their metrics by task and name, each `(cases,)`, as `TargetRanks.metrics` gives them, and by task the
# lists of the best ten labels, `(cases, 10)`.
Ranker = Callable[[EvaluationCases], tuple[dict[str, dict[str, NDArray]], dict[str, NDArray]]]


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        name (`str`): Its name in the tables.
        fit (callable): From a log, its prepared data, a seed and a folder of its own to a [`Ranker`], which may read
            events before the test cutoff; None if the method has no answer for such a log.
        seeds (`bool`): Whether its result depends on the seed.
        tuned (`str`): What was chosen on this log, in words.
        packages (tuple of `str`): Packages whose versions matter.
    """

    name: str
    fit: Callable[[Log, PreparedData, int, Path], Ranker | None]
    seeds: bool = False
    tuned: str = "nothing"
    packages: tuple[str, ...] = ("numpy",)


def find_methods() -> list[Method]:
    """The methods of all files of this folder, in the order of the names of the files."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [method for module in modules for method in module.METHODS]
