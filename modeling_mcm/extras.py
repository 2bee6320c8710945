# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Error messages for missing optional packages: they name the extra of `modeling-mcm` that installs the package.

Training, fine-tuning, scoring of prepared data and the pipelines need the base install alone. All other code imports
its packages inside [`needs`].
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Context manager around imports of packages that an extra of pyproject.toml installs, such as `data`. Raises
    `ImportError` if a package is missing; the message names the package and the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "modeling_mcm"):
            raise
        raise ImportError(
            f"{package} is not installed, which comes with an extra: pip install 'modeling-mcm[{extra}]'.",
            name=package,
        ) from error
