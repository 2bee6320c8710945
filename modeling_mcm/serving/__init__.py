# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as an HTTP service with a store of events (extra `serve`)."""

from .api import create_api
from .service import CustomerService, Incoming
from .store import EventStore, ServiceError

__all__ = ["CustomerService", "EventStore", "Incoming", "ServiceError", "create_api"]
