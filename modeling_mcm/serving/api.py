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
from typing import Annotated, Any

from modeling_mcm.extras import needs
from modeling_mcm.live_mcm import LiveCustomer
from modeling_mcm.serving.examples import example_answers, example_body
from modeling_mcm.serving.failures import ServiceError
from modeling_mcm.serving.limits import BodyLimit, RateLimit, TokenGuard, Watch
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
        from fastapi import FastAPI, Query, Request
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import JSONResponse, Response
        from fastapi_offline import FastAPIOffline
        from pydantic import BaseModel, Field
        from starlette.exceptions import HTTPException

        from modeling_mcm.serving.metrics import Metrics

    allowed = limits or Limits()
    if len(token) < SHORTEST_TOKEN or not token.isascii():
        raise ValueError(f"The token has {len(token)} characters; give at least {SHORTEST_TOKEN}, all ASCII.")
    now = service.clock()
    answers = example_answers(service.model, service.extractor, now)
    identity = Field(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00-\x1f]+$")

    class Event(BaseModel, extra="forbid"):
        event_id: Annotated[str, identity]
        customer_id: Annotated[str, identity]
        event: dict[str, Any]
        profile: dict[str, Any] | None = None

    class Events(BaseModel, extra="forbid", json_schema_extra={"examples": [example_body(service.extractor, now)]}):
        events: list[Event] = Field(min_length=1, max_length=allowed.events)

    def answer(name: str) -> dict[int | str, dict[str, Any]]:
        """What an endpoint answers, for its page."""
        example = {"content": {"application/json": {"example": answers[name]}}} if name in answers else {}
        return {200: example, 404: {"description": "No such customer"}, 503: {"description": "The store is not there"}}

    title = f"MCM {service.extractor.name}"
    api: FastAPI = FastAPIOffline(
        title=title,
        version=importlib.metadata.version("modeling-mcm"),
        description=__doc__.partition("\n\n")[0],
        redoc_url=None,
        swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    )
    metrics = Metrics(service)
    for layer, options in (
        (BodyLimit, {"limit": allowed.body_bytes}),
        (TokenGuard, {"token": token}),
        (RateLimit, {"rate": allowed.rate, "burst": allowed.burst}),
        (Watch, {"record": metrics.record_request}),
    ):
        api.add_middleware(layer, **options)  # type: ignore[arg-type]  # each wraps those before it

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
        return JSONResponse({"detail": sentence(error.errors())}, 422)

    @api.exception_handler(HTTPException)
    def http_error(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": f"{error.detail}; GET /docs lists what there is."}, error.status_code)

    def about(live: LiveCustomer, now: str | None) -> dict[str, Any]:
        time = service.extractor.time
        last = max((event[time] for event in live.events), default=None) if time else None
        return {"customer_id": live.customer_id, "events": len(live.events), "now": now or last}

    moment = Annotated[
        str | None,
        Query(description="Moment of the question, ISO 8601, not before the last event, which is the default."),
    ]

    @api.post("/events", responses=answer("events"))
    def post_events(body: Events) -> dict[str, Any]:
        """Stores the events of one or more customers, all of them or none.

        An event is identified by its customer and its event_id. If it is sent again it changes nothing; with other
        contents it is refused (409). After an answer with 200 the events are on the disk. `late` names customers of
        whom an event belongs before their last visit; the answers are as if it had come in time.
        """
        return service.add([Incoming(**dict(event)) for event in body.events])

    @api.get("/customers/{customer_id:path}/scores", responses=answer("scores"))
    def scores(
        customer_id: str,
        task: Annotated[list[str] | None, Query(description="All tasks by default.")] = None,
        k: Annotated[int, Query(ge=1, le=MOST_LABELS, description="Labels of a task.")] = 10,
        now: moment = None,
    ) -> dict[str, Any]:
        """The labels that the customer is most likely to choose next, best first, with their probabilities."""
        with service.customer(customer_id) as live:
            return about(live, now) | {"tasks": live.scores(now=now, tasks=task, k=k)}

    @api.get("/customers/{customer_id:path}/embedding", responses=answer("embedding"))
    def embedding(customer_id: str, now: moment = None) -> dict[str, Any]:
        """The customer embedding."""
        with service.customer(customer_id) as live:
            return about(live, now) | {"embedding": live.embedding(now).tolist()}

    @api.get("/customers/{customer_id:path}/forecast", responses=answer("forecast"))
    def forecast(customer_id: str, now: moment = None) -> dict[str, Any]:
        """What the customer is expected to do within the next days; 501 if the checkpoint has no forecasts."""
        with service.customer(customer_id) as live:
            return about(live, now) | {"forecast": live.forecast(now)}

    @api.get("/customers/{customer_id:path}/explain", responses=answer("explain"))
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

    @api.delete("/customers/{customer_id:path}/events/{event_id}", responses=answer("delete"))
    def delete_event(customer_id: str, event_id: str) -> dict[str, Any]:
        """Deletes one event. From then on all answers are those for a customer without the event."""
        service.delete_event(customer_id, event_id)
        return {"customer_id": customer_id, "events": 1}

    @api.delete("/customers/{customer_id:path}", responses=answer("delete"))
    def delete_customer(customer_id: str) -> dict[str, Any]:
        """Deletes a customer's events, state and profile."""
        return {"customer_id": customer_id, "events": service.delete_customer(customer_id)}

    @api.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the service can answer requests; needs no token."""
        service.store.check()
        return {"status": "ok", "checkpoint": service.store.digest[:12]}

    @api.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        """Numbers and seconds of requests, and numbers of events and states, in the text format of Prometheus."""
        return Response(metrics.text(), media_type=metrics.media_type)

    return api


def sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """Writes pydantic's list of errors of a request as a sentence.

    Args:
        errors (list of `dict`): The errors.
    """
    parts = []
    for error in errors[:3]:
        field = ".".join(str(part) for part in error["loc"])
        parts.append(f"{field}: {error['msg']}")
    more = f" ({len(errors) - 3} more)" if len(errors) > 3 else ""
    return f"The request can't be read: {'; '.join(parts)}{more}. GET /docs shows an example."
