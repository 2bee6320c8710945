# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP service. It takes events, and answers with scores, embeddings, forecasts and explanations of customers.

    POST   /events                          stores all events of the body or none; events may be sent again
    GET    /customers/{id}/scores           the best labels: ?task=&task=&k=&now=
    GET    /customers/{id}/embedding        ?now=
    GET    /customers/{id}/forecast         ?now=
    GET    /customers/{id}/explain          why a label has its score: ?task=&label=&visits=&now=
    DELETE /customers/{id}                  deletes a customer's events, state and profile
    DELETE /customers/{id}/events/{event}   deletes one event
    GET    /healthz                         needs no token; 503 if the store does not answer
    GET    /metrics                         numbers for Prometheus
    GET    /docs, /openapi.json             a page on these endpoints, with examples of the checkpoint

Every error is answered with `{"detail": "a sentence"}`.
"""

# FastAPI reads the annotations of functions below while they are defined: they must not become texts.
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from modeling_mcm.extras import needs
from modeling_mcm.live.customer import LiveCustomer
from modeling_mcm.serving.examples import example_answers, example_body
from modeling_mcm.serving.failures import ServiceError
from modeling_mcm.serving.limits import BodyLimit, RateLimit, TokenGuard, Watch
from modeling_mcm.serving.metrics import Metrics
from modeling_mcm.serving.service import CustomerService, Incoming
from modeling_mcm.serving.store import MAX_ID
from modeling_mcm.state_mcm import MissingForecastsError

MOST_LABELS = 1000
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Limits:
    """Limits of a request; a request beyond them is refused.

    Args:
        body_bytes (`int`): Largest size of a request's body, in bytes.
        events (`int`): Largest number of events in one request.
        rate (`float`): Largest number of requests a second from one network address, on average.
        burst (`int`): Largest number of requests at once from one network address.
    """

    body_bytes: int = 1_000_000
    events: int = 1_000
    rate: float = 200.0
    burst: int = 400


def create_api(service: CustomerService, token: str, limits: Limits | None = None) -> Any:
    """Makes the service's ASGI application, for uvicorn or another server.

    Args:
        service ([`CustomerService`]): The service that answers the requests.
        token (`str`): The secret that a client must send, at least 16 ASCII characters.
        limits ([`Limits`], *optional*): Limits of a request.

    Raises:
        ValueError: If the token is too short or not ASCII.
    """
    with needs("serve"):
        from fastapi_offline import FastAPIOffline

    if len(token) < SHORTEST_TOKEN or not token.isascii():
        raise ValueError(f"The token has {len(token)} characters; give at least {SHORTEST_TOKEN}, all ASCII.")
    limits, metrics, now = limits or Limits(), Metrics(service), service.clock()
    api = FastAPIOffline(
        title=f"MCM {service.extractor.name}",
        version=importlib.metadata.version("modeling-mcm"),
        description=__doc__.partition("\n\n")[0],
        redoc_url=None,
        swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    )
    # each layer wraps those before it
    api.add_middleware(BodyLimit, limit=limits.body_bytes)
    api.add_middleware(TokenGuard, token=token)
    api.add_middleware(RateLimit, rate=limits.rate, burst=limits.burst)
    api.add_middleware(Watch, record=metrics.record_request)
    _answer_errors(api)
    responses = _responses(service, now)
    _add_events(api, service, responses, limits.events, example_body(service.extractor, now))
    _add_questions(api, service, responses)
    _add_deletions(api, service, responses)
    _add_operations(api, service, metrics)
    return api


def _answer_errors(api: Any) -> None:
    """Errors are answered with `{"detail": "a sentence"}`."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    @api.exception_handler(ServiceError)
    def service_error(request: Request, error: Any) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"detail": str(error)}, error.status, headers)

    @api.exception_handler(ValueError)
    def value_error(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @api.exception_handler(MissingForecastsError)  # before its base class, ValueError
    def missing_forecasts(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 501)

    @api.exception_handler(RequestValidationError)
    def validation_error(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": _sentence(error.errors())}, 422)

    @api.exception_handler(HTTPException)
    def http_error(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": f"{error.detail}; GET /docs lists what there is."}, error.status_code)


def _responses(service: CustomerService, now: datetime) -> dict[str, dict[int | str, dict[str, Any]]]:
    """What the endpoints answer, for their page: an example where the checkpoint has one, and the errors."""
    answers: dict[str, dict[str, Any]] = {"forecast": {}}
    for name, example in example_answers(service.model, service.extractor, now).items():
        answers[name] = {"content": {"application/json": {"example": example}}}
    absent, broken = {"description": "No such customer"}, {"description": "The store is not there"}
    return {name: {200: answer, 404: absent, 503: broken} for name, answer in answers.items()}


def _add_events(api: Any, service: CustomerService, responses: Any, most: int, example: Any) -> None:
    """Adds the endpoint that takes events, at most `most` in one request."""
    from pydantic import BaseModel, Field

    identity = Field(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00-\x1f]+$")

    class Event(BaseModel, extra="forbid"):
        event_id: Annotated[str, identity]
        customer_id: Annotated[str, identity]
        event: dict[str, Any]
        profile: dict[str, Any] | None = None

    class Events(BaseModel, extra="forbid", json_schema_extra={"examples": [example]}):
        events: list[Event] = Field(min_length=1, max_length=most)

    @api.post("/events", responses=responses["events"])
    def post_events(body: Events) -> dict[str, Any]:
        """Stores the events of one or more customers, all of them or none.

        An event is identified by its customer and its event_id. If it is sent again it changes nothing; with other
        contents it is refused (409). After an answer with 200 the events are on the disk. `late` names customers of
        whom an event belongs before their last visit; the answers are as if it had come in time.
        """
        return service.add([Incoming(**dict(event)) for event in body.events])


def _add_questions(api: Any, service: CustomerService, responses: Any) -> None:
    """Adds the endpoints that answer questions on a customer."""
    from fastapi import Query

    moment = Annotated[
        str | None,
        Query(description="Moment of the question, ISO 8601, not before the last event, which is the default."),
    ]

    def about(live: LiveCustomer, now: str | None) -> dict[str, Any]:
        time = service.extractor.time
        last = max((event[time] for event in live.events), default=None) if time else None
        return {"customer_id": live.customer_id, "events": len(live.events), "now": now or last}

    @api.get("/customers/{customer_id:path}/scores", responses=responses["scores"])
    def scores(
        customer_id: str,
        task: Annotated[list[str] | None, Query(description="All tasks by default.")] = None,
        k: Annotated[int, Query(ge=1, le=MOST_LABELS, description="Labels of a task.")] = 10,
        now: moment = None,
    ) -> dict[str, Any]:
        """The labels that the customer is most likely to choose next, best first, with their probabilities."""
        with service.customer(customer_id) as live:
            return about(live, now) | {"tasks": live.scores(now=now, tasks=task, k=k)}

    @api.get("/customers/{customer_id:path}/embedding", responses=responses["embedding"])
    def embedding(customer_id: str, now: moment = None) -> dict[str, Any]:
        """The customer embedding."""
        with service.customer(customer_id) as live:
            return about(live, now) | {"embedding": live.embedding(now).tolist()}

    @api.get("/customers/{customer_id:path}/forecast", responses=responses["forecast"])
    def forecast(customer_id: str, now: moment = None) -> dict[str, Any]:
        """What the customer is expected to do within the next days; 501 if the checkpoint has no forecasts."""
        with service.customer(customer_id) as live:
            return about(live, now) | {"forecast": live.forecast(now)}

    @api.get("/customers/{customer_id:path}/explain", responses=responses["explain"])
    def explain(
        customer_id: str,
        task: str,
        label: Annotated[str | None, Query(description="The best one by default.")] = None,
        visits: Annotated[int, Query(ge=0, le=MOST_LABELS, description="Visits, the largest shares first.")] = 10,
        now: moment = None,
    ) -> dict[str, Any]:
        """Why a label has its score: the parts of the score, and the share of every past visit."""
        with service.customer(customer_id) as live:
            explanation = live.explain(task, label, now).to_dict()
            return about(live, now) | {"explanation": explanation | {"visits": explanation["visits"][:visits]}}


def _add_deletions(api: Any, service: CustomerService, responses: Any) -> None:
    """Adds the endpoints that delete. That of one event comes first, for the other one's path would fit it too."""

    @api.delete("/customers/{customer_id:path}/events/{event_id}", responses=responses["delete"])
    def delete_event(customer_id: str, event_id: str) -> dict[str, Any]:
        """Deletes one event. From then on all answers are those for a customer without the event."""
        service.delete_event(customer_id, event_id)
        return {"customer_id": customer_id, "events": 1}

    @api.delete("/customers/{customer_id:path}", responses=responses["delete"])
    def delete_customer(customer_id: str) -> dict[str, Any]:
        """Deletes a customer's events, state and profile."""
        return {"customer_id": customer_id, "events": service.delete_customer(customer_id)}


def _add_operations(api: Any, service: CustomerService, metrics: Metrics) -> None:
    """Adds the endpoints for those who run the service."""
    from fastapi.responses import Response

    @api.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the service can answer requests; needs no token."""
        service.store.check()
        return {"status": "ok", "checkpoint": service.store.digest[:12]}

    @api.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        """Numbers and seconds of requests, and numbers of events and states, in the text format of Prometheus."""
        return Response(metrics.text(), media_type=metrics.media_type)


def _sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """Writes pydantic's list of errors of a request as a sentence."""
    parts = []
    for error in errors[:3]:
        field = ".".join(str(part) for part in error["loc"])
        parts.append(f"{field}: {error['msg']}")
    more = f" ({len(errors) - 3} more)" if len(errors) > 3 else ""
    return f"The request can't be read: {'; '.join(parts)}{more}. GET /docs shows an example."
