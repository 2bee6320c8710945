# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The answers of the service, as /openapi.json describes them."""

from datetime import datetime
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic reads that of typing from Python 3.12 on

from modeling_mcm.live.explanations import Explanation


class Problem(TypedDict):
    detail: str


class RankedLabel(TypedDict):  # that of predictor_mcm, which pydantic can't read on Python 3.11
    label: str
    score: float
    chance: NotRequired[float]


class Labels(TypedDict):
    task: str
    labels: list[RankedLabel]


class Customer(TypedDict):
    customer_id: str
    events: int
    as_of: str | None
    warning: NotRequired[str]  # of a time of the past, that the counts hold later events


class Scores(Customer):
    tasks: dict[str, list[RankedLabel]]


class ManyScores(TypedDict):
    customers: list[Scores]
    unknown: list[str]


class Embedding(Customer):
    embedding: list[float]


class Forecast(Customer):
    forecast: dict[str, float]


class Prediction(Customer):
    prediction: dict[str, float]


class Offers(Customer):
    offers: list[dict[str, float | str]]


class ManyOffers(TypedDict):
    customers: list[Offers]
    unknown: list[str]
    unknown_values: dict[str, list[str]]


class PastOfTotal(TypedDict):
    as_of: datetime
    expected: float
    actual: float
    error: float | None


class Total(TypedDict):
    customers: int
    as_of: datetime
    quantity: str
    days: float
    expected: float
    past: list[PastOfTotal]


class Explained(Customer):
    explanation: Explanation


class Added(TypedDict):
    added: int
    known: int
    late: list[str]
    customers: dict[str, int]
    unknown_values: dict[str, list[str]]


class Deleted(TypedDict):
    customer_id: str
    events: int


class Health(TypedDict):
    status: str
    checkpoint: str


REASONS = {
    400: "The body can't be read.",
    401: "The token is missing or wrong.",
    404: "The customer has no events, or not this one.",
    409: "The event_id was sent before with other contents.",
    413: "The body is too large.",
    422: "The request, or an event in it, is bad. Nothing of it is stored.",
    429: "The token has sent more requests a second than `--limit` allows: wait as long as Retry-After says.",
    500: "The service failed; its log says where.",
    501: "The checkpoint has no head for this question, or no forecasts; or the service was started without --data.",
    503: "The store is locked or damaged, or too many explanations or totals are asked for: try again later.",
    507: "The disk of the store is full. Nothing of the request is stored.",
}
# For `responses=` of the routes
ERRORS: dict[int | str, dict] = {status: {"model": Problem, "description": words} for status, words in REASONS.items()}
