# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as an HTTP service with a store of events (extra `serve`)."""

from modeling_mcm.serving.api import create_api
from modeling_mcm.serving.service import CustomerService, Incoming
from modeling_mcm.serving.store import EventStore, ServiceError
from modeling_mcm.serving.worker import WorkerProcess

__all__ = ["CustomerService", "EventStore", "Incoming", "ServiceError", "WorkerProcess", "create_api"]
