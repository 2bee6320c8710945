# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers of the service in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modeling_mcm.extras import needs
from modeling_mcm.serving.service import CustomerService

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
COUNTED = {
    "events_added": "Events that were stored.",
    "events_known": "Events that were sent again.",
    "customers_late": "Times that a customer had an event before the last visit, and the state was computed anew.",
    "states_read": "States that were read from the store.",
    "states_made": "States that were made from all events of a customer.",
    "states_damaged": "Stored states that could not be read; they were made from the events.",
    "conflicts": "Changes that another service was faster than; they were tried again.",
}


class Metrics:
    """Counts requests by route, and reports the numbers of a service.

    Args:
        service ([`CustomerService`]): The service whose numbers are reported.
    """

    def __init__(self, service: CustomerService):
        with needs("serve"):
            import prometheus_client

        self.service, self.client = service, prometheus_client
        self.registry = prometheus_client.CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = prometheus_client.Counter(
            "mcm_requests", "Requests that were answered.", labels, registry=self.registry
        )
        self.seconds = prometheus_client.Histogram(
            "mcm_request_seconds", "Seconds to the answer.", labels[:2], buckets=SECONDS, registry=self.registry
        )
        self.registry.register(self)  # type: ignore[arg-type]  # it asks for `collect` alone

    @property
    def media_type(self) -> str:
        """The content type of [`text`]."""
        return self.client.CONTENT_TYPE_LATEST

    def record_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request.

        Args:
            method (`str`): HTTP method.
            route (`str`): Path of the route.
            status (`int`): Status of the answer.
            seconds (`float`): Duration of the request.
        """
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)

    def collect(self) -> Iterator[Any]:
        """Reports what the service has counted so far."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, words in COUNTED.items():
            yield CounterMetricFamily(f"mcm_{name}", words, value=self.service.counts[name])
        yield GaugeMetricFamily("mcm_customers_in_memory", "Customers in memory.", value=self.service.remembered)

    def text(self) -> bytes:
        """Writes all numbers in the text format of Prometheus."""
        return self.client.generate_latest(self.registry)
