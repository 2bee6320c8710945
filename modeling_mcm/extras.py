# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What to say where a package is missing that `pip install modeling-mcm` leaves out: which extra brings it.

Training, fine-tuning, scoring of prepared data and the pipelines need the base install alone. Whatever needs more
imports it inside [`needs`].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Goes around imports of packages that an extra brings.

    Args:
        extra (`str`): Name of the extra in setup.py, such as `data`.

    Raises:
        ImportError: A package is missing; the message is one sentence that names it and the extra.

    ```python
    with needs("data"):
        import ibis
    ```
    """
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
