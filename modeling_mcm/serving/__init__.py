# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as an HTTP service with a store of events (extra `serve`)."""

from modeling_mcm.serving.api import Limits, create_api
from modeling_mcm.serving.failures import (
    EventConflict,
    ServiceError,
    StoreConflict,
    StoreFailure,
    StoreFull,
    StoreMismatch,
    UnknownCustomer,
)
from modeling_mcm.serving.service import CustomerService, Incoming
from modeling_mcm.serving.store import EventStore

__all__ = [
    "CustomerService",
    "EventConflict",
    "EventStore",
    "Incoming",
    "Limits",
    "ServiceError",
    "StoreConflict",
    "StoreFailure",
    "StoreFull",
    "StoreMismatch",
    "UnknownCustomer",
    "create_api",
]
