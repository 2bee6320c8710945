# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Explanations and totals in a process of their own. One takes as long as dozens of scores, and in a thread of the
service it would hold up every other request."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from modeling_mcm.modeling_mcm import MCMForMultiTaskRecommendation
from modeling_mcm.training.checkpoints import checkpoint_digest, open_checkpoint

from .store import ServiceError

MOST_WAITING = 4  # calls at a time, with the one that is computed; each holds a thread of the service
LOWEST_PRIORITY = 19


class WorkerProcess:
    """A process that computes slow answers with the lowest priority.

    Args:
        folder (`str`): Checkpoint, which the process opens itself.
        digest (`str`): Digest of the checkpoint that the service has opened from this folder.
    """

    def __init__(self, folder: str, digest: str):
        self._checkpoint = folder, digest
        self._free = threading.Semaphore(MOST_WAITING)
        self._lock = threading.Lock()
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, _open, (*self._checkpoint, torch.get_num_threads()))
        pool.submit(os.getpid)  # starts the process now, so that the first call need not wait for it
        return pool

    def __call__(self, function: Callable[..., Any], *values: object) -> Any:
        """Calls a function with the model, the feature extractor and these values, which the process receives as
        pickles. Raises [`ServiceError`] if too many others wait, or the process is lost."""
        if not self._free.acquire(blocking=False):
            raise ServiceError(
                f"{MOST_WAITING} explanations or totals are being computed: try again in a moment, one after another."
            )
        pool = self._pool
        try:
            return pool.submit(_call, function, values).result()
        except BrokenProcessPool as error:
            with self._lock:
                self._pool = self._start() if self._pool is pool else self._pool
            raise ServiceError(
                "The process of explanations and totals stopped, and starts again; the service's log says why."
            ) from error
        finally:
            self._free.release()

    def close(self) -> None:
        """Stops the process after what it computes."""
        self._pool.shutdown(cancel_futures=True)


_checkpoint: tuple = ()  # model and feature extractor of this process


def _open(folder: str, digest: str, threads: int) -> None:
    """What the process does first; it ends when the service does, however that ends."""
    global _checkpoint
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the service stops this process itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(LOWEST_PRIORITY)
    torch.set_num_threads(threads)
    _checkpoint = open_checkpoint(MCMForMultiTaskRecommendation, folder)
    if checkpoint_digest(*_checkpoint) != digest:
        raise ValueError(f"{folder} holds another checkpoint than when the service started: start it again.")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _call(function: Callable[..., Any], values: tuple) -> Any:
    return function(*_checkpoint, *values)
