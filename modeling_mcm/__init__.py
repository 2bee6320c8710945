# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""MCM, a multi-task pre-trained customer model. Its names are in `public.py`, and loaded when one of them is used.

After `import modeling_mcm`, transformers knows the model and the pipelines, whichever of the two is imported first.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":  # what others ask each module for
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("modeling_mcm.public"), name)


def __dir__() -> list[str]:
    return [*globals(), "__all__", *__getattr__("__all__")]


class _Registration(MetaPathFinder):
    """Imports `public`, which registers the model, once transformers' Auto classes are there. To do that inside of
    another import of either package would be a circle, so it waits for the end of the outermost."""

    depth = 0

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in ("modeling_mcm", "transformers"):
            return None
        later = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in later)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                self.depth += 1
                try:
                    execute(module)
                finally:
                    self.depth -= 1
                self.register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec

    def register(self) -> None:
        if not self.depth and self in sys.meta_path and "transformers.models.auto.configuration_auto" in sys.modules:
            sys.meta_path.remove(self)
            importlib.import_module("modeling_mcm.public")


_registration = _Registration()
sys.meta_path.insert(0, _registration)
_registration.register()
