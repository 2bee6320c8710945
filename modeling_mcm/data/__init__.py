# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Event schema, preparation and the prepared data set.

Only `prepare` needs the extra `data`, so it is imported when it is asked for.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from modeling_mcm.data.dataset import PreparedManifest, check_vocabularies, load_prepared
from modeling_mcm.data.schema import NO_CUTOFFS, EventSchema, FeatureSpec, schema_of
from modeling_mcm.extras import needs

if TYPE_CHECKING:
    from modeling_mcm.data.prepare import prepare

__all__ = [
    "NO_CUTOFFS",
    "EventSchema",
    "FeatureSpec",
    "PreparedManifest",
    "check_vocabularies",
    "load_prepared",
    "prepare",
    "schema_of",
]


class _Package(ModuleType):
    """This package, in which `prepare` is the function, whoever imports the module of this name first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "prepare" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name != "prepare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("data"):
        from modeling_mcm.data.prepare import prepare
    globals()[name] = prepare
    return prepare


sys.modules[__name__].__class__ = _Package
