# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""From an event log to a prepared data set, and the deletion of customers.

Everything here needs the extra `data`. Training on prepared data and scoring them do not need this room.
"""

from .prepare import prepare

__all__ = ["prepare"]
