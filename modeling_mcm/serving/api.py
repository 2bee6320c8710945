# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP service. It takes events, and answers with scores, embeddings, forecasts and explanations of customers.

    POST   /events                          stores all events of the body or none; events may be sent again
    GET    /customers/{id}/scores           the best labels: ?task=&task=&k=&now=, and of which ones:
                                            ?candidate=&candidate=&exclude=&exclude=&exclude_seen=&per_group=
    GET    /customers/{id}/embedding        ?now=
    GET    /customers/{id}/forecast         ?now=&days=&days=
    GET    /customers/{id}/explain          why a label has its score: ?task=&label=&visits=&now=
    DELETE /customers/{id}                  deletes a customer's events, state and profile
    DELETE /customers/{id}/events/{event}   deletes one event
    GET    /labels/similar                  labels that are alike: ?task=&label=&k=
    GET    /labels/together                 labels that go together: ?task=&label=&label=&k=
    GET    /metrics                         numbers for Prometheus
    GET    /healthz                         needs no token; 503 if the store does not answer
    GET    /docs, /openapi.json             a page on these endpoints; needs no token

Every error is answered with `{"detail": "a sentence"}`.
"""

# FastAPI reads the annotations of functions below while they are defined: they must not become texts.
import hmac
import importlib.metadata
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote, unquote

from modeling_mcm.extras import needs
from modeling_mcm.live.customer import LiveCustomer
from modeling_mcm.live.related import similar, together
from modeling_mcm.serving.failures import ServiceError
from modeling_mcm.serving.service import CustomerService, Incoming
from modeling_mcm.serving.store import MAX_ID
from modeling_mcm.state_mcm import MissingForecastsError

MOST_BYTES, MOST_EVENTS = 1_000_000, 1_000  # of a request
MOST_LABELS = 1000
SHORTEST_TOKEN = 16


def create_api(service: CustomerService, token: str) -> Any:
    """Makes the service's ASGI application, for uvicorn or another server.

    Args:
        service ([`CustomerService`]): The service that answers the requests.
        token (`str`): The secret that a client must send, at least 16 ASCII characters.

    Raises:
        ValueError: If the token is too short or not ASCII.
    """
    with needs("serve"):
        from fastapi import APIRouter, Depends, HTTPException
        from fastapi.security import HTTPBearer
        from fastapi_offline import FastAPIOffline
        from starlette.convertors import StringConvertor, register_url_convertor

    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or token != token.strip():
        raise ValueError(
            f"The token has {len(token)} characters; give at least {SHORTEST_TOKEN}, all ASCII, with no line end "
            "or space around it."
        )

    class Identity(StringConvertor):  # of an id in the path, which is still quoted: see `QuotedPath`
        def convert(self, value: str) -> str:
            return unquote(value)

    register_url_convertor("id", Identity())

    def check_token(sent: Annotated[Any, Depends(HTTPBearer(auto_error=False))]) -> None:
        if sent is None or not hmac.compare_digest(sent.credentials.encode(), token.encode()):
            words = "Send `Authorization: Bearer TOKEN` with the token of this service."
            raise HTTPException(401, words, {"WWW-Authenticate": "Bearer"})

    version = importlib.metadata.version("modeling-mcm")
    api = FastAPIOffline(title="MCM", version=version, description=__doc__.partition("\n\n")[0], redoc_url=None)
    guarded = APIRouter(dependencies=[Depends(check_token)])
    _answer_errors(api)
    _add_events(guarded, service)
    _add_questions(guarded, service)
    _add_labels(guarded, service)
    _add_deletions(guarded, service)
    api.include_router(guarded)
    api.add_middleware(BodyLimit)
    api.add_middleware(QuotedPath)
    _add_metrics(api, service, dependencies=[Depends(check_token)])

    @api.get("/healthz")
    def healthz() -> dict[str, str]:
        """Says whether the service can answer requests; needs no token."""
        service.store.check()
        return {"status": "ok", "checkpoint": service.store.digest[:12]}

    return api


class QuotedPath:
    """An ASGI application around another one that leaves paths quoted, so that an id may hold a slash (%2F)."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raw = scope.get("raw_path")
        path = raw.decode("ascii") if raw else quote(scope.get("path", ""))
        await self.app(scope | {"path": path}, receive, send)


class BodyLimit:
    """An ASGI application around another one that reads at most [`MOST_BYTES`] of a request's body."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from fastapi import HTTPException

        read = 0

        async def limited() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MOST_BYTES:
                words = f"The body has more than {MOST_BYTES:,} bytes: send the events in several requests."
                raise HTTPException(413, words, {"Connection": "close"})
            return message

        await self.app(scope, limited, send)


def _answer_errors(api: Any) -> None:
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    @api.exception_handler(ServiceError)
    @api.exception_handler(ValueError)
    def expected_error(request: Request, error: Any) -> JSONResponse:
        status = 501 if isinstance(error, MissingForecastsError) else getattr(error, "status", 422)
        return JSONResponse({"detail": str(error)}, status, {"Retry-After": "1"} if status == 503 else None)

    @api.exception_handler(Exception)
    def unexpected_error(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"detail": f"The service failed ({type(error).__name__}): its log says where."}, 500)

    @api.exception_handler(RequestValidationError)
    def validation_error(request: Request, error: Any) -> JSONResponse:
        errors = error.errors()
        parts = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in errors[:3]]
        more = f" ({len(errors) - 3} more)" if len(errors) > 3 else ""
        words = f"The request can't be read: {'; '.join(parts)}{more}. GET /docs says what it expects."
        return JSONResponse({"detail": words}, 422)


def _add_events(api: Any, service: CustomerService) -> None:
    from pydantic import BaseModel, Field

    identity = Field(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00-\x1f]+$")

    class Event(BaseModel, extra="forbid"):
        event_id: Annotated[str, identity]
        customer_id: Annotated[str, identity]
        event: dict[str, Any] = Field(description="Values by column of the log.")
        profile: dict[str, Any] | None = None

    class Events(BaseModel, extra="forbid"):
        events: list[Event] = Field(min_length=1, max_length=MOST_EVENTS)

    @api.post("/events")
    def post_events(body: Events) -> dict[str, Any]:
        """Stores the events of one or more customers, all of them or none.

        An event is identified by its customer and its event_id. If it is sent again it changes nothing; with other
        contents it is refused (409). After an answer with 200 the events are on the disk. `late` names customers of
        whom an event belongs before their last visit; the answers are as if it had come in time.
        """
        return service.add([Incoming(**dict(event)) for event in body.events])


def _add_questions(api: Any, service: CustomerService) -> None:
    from fastapi import Query

    words = "Moment of the question, ISO 8601, not before the last event, which is the default."
    moment = Annotated[str | None, Query(description=words)]
    of_group = "Largest number of labels of each value of a feature, as category=2."

    def about(live: LiveCustomer, now: str | None) -> dict[str, Any]:
        time = service.extractor.time
        last = max((event[time] for event in live.events), default=None) if time else None
        return {"customer_id": live.customer_id, "events": len(live.events), "now": now or last}

    @api.get("/customers/{customer_id:id}/scores")
    def scores(
        customer_id: str,
        task: Annotated[list[str] | None, Query(description="All tasks by default.")] = None,
        k: Annotated[int, Query(ge=1, le=MOST_LABELS, description="Labels of a task.")] = 10,
        now: moment = None,
        candidate: Annotated[
            list[str] | None, Query(description="Labels to choose from. By default the service's table of candidates.")
        ] = None,
        exclude: Annotated[list[str] | None, Query(description="Labels that are left out.")] = None,
        exclude_seen: Annotated[bool, Query(description="Leave out the labels of the customer's history.")] = False,
        per_group: Annotated[str | None, Query(pattern=r"^.+=[1-9][0-9]*$", description=of_group)] = None,
    ) -> dict[str, Any]:
        """The candidates that the customer is most likely to choose next, best first, with their probabilities among
        the candidates."""
        if exclude and exclude_seen:
            raise ValueError("`exclude` and `exclude_seen` are both given: give one of them.")
        name, _, most = (per_group or "").rpartition("=")
        tasks = tuple(service.model.config.tasks if task is None else task)
        if wrong := [name for name in tasks if name not in service.model.config.tasks]:
            raise ValueError(f"No tasks {wrong}: this checkpoint predicts {service.model.config.tasks}.")
        left_out = "seen" if exclude_seen else tuple(exclude or ()) or None
        chosen = service.candidate_set(tasks, tuple(candidate or ()), left_out, (name, int(most)) if name else None)
        with service.customer(customer_id) as live:
            return about(live, now) | {"tasks": live.scores(now=now, tasks=tasks, k=k, candidates=chosen)}

    @api.get("/customers/{customer_id:id}/embedding")
    def embedding(customer_id: str, now: moment = None) -> dict[str, Any]:
        """The customer embedding."""
        with service.customer(customer_id) as live:
            return about(live, now) | {"embedding": live.embedding(now).tolist()}

    @api.get("/customers/{customer_id:id}/forecast")
    def forecast(
        customer_id: str,
        now: moment = None,
        days: Annotated[list[float] | None, Query(description="Horizons. Those of the checkpoint by default.")] = None,
    ) -> dict[str, Any]:
        """What the customer is expected to do within the next days, with intervals that hold 80% and 95% of such
        customers; 501 if the checkpoint has no forecasts."""
        with service.customer(customer_id) as live:
            return about(live, now) | {"forecast": live.forecast(now, days)}

    @api.get("/customers/{customer_id:id}/explain")
    def explain(
        customer_id: str,
        task: str,
        label: Annotated[str | None, Query(description="The best one by default.")] = None,
        visits: Annotated[int, Query(ge=0, le=MOST_LABELS, description="Visits that matter most.")] = 10,
        now: moment = None,
    ) -> dict[str, Any]:
        """Why a label has its score: what its probability would be without each past visit."""
        with service.customer(customer_id) as live:
            explanation = live.explain(task, label, now).to_dict()
            return about(live, now) | {"explanation": explanation | {"visits": explanation["visits"][:visits]}}


def _add_labels(api: Any, service: CustomerService) -> None:
    from fastapi import Query

    number = Annotated[int, Query(ge=1, le=MOST_LABELS)]

    @api.get("/labels/similar")
    def similar_labels(task: str, label: str, k: number = 10) -> dict[str, Any]:
        """The labels that are most like a label, best first."""
        return {"task": task, "labels": similar(service.model, service.extractor, task, label, k)}

    @api.get("/labels/together")
    def labels_together(task: str, label: Annotated[list[str], Query()], k: number = 10) -> dict[str, Any]:
        """The labels that go with some labels, such as those of a basket, best first."""
        return {"task": task, "labels": together(service.model, service.extractor, task, label, k)}


def _add_deletions(api: Any, service: CustomerService) -> None:
    @api.delete("/customers/{customer_id:id}/events/{event_id:id}")
    def delete_event(customer_id: str, event_id: str) -> dict[str, Any]:
        """Deletes one event. From then on all answers are those for a customer without the event."""
        service.delete_event(customer_id, event_id)
        return {"customer_id": customer_id, "events": 1}

    @api.delete("/customers/{customer_id:id}")
    def delete_customer(customer_id: str) -> dict[str, Any]:
        """Deletes a customer's events, state and profile."""
        return {"customer_id": customer_id, "events": service.delete_customer(customer_id)}


def _add_metrics(api: Any, service: CustomerService, **options: Any) -> None:
    with needs("serve"):
        from prometheus_client import CollectorRegistry
        from prometheus_client.core import CounterMetricFamily
        from prometheus_fastapi_instrumentator import Instrumentator

    class Counts:
        def collect(self) -> Iterator[Any]:
            for name, number in service.counts.items():
                yield CounterMetricFamily(f"mcm_{name}", name.replace("_", " "), value=number)

    registry: Any = CollectorRegistry()
    registry.register(Counts())
    metrics = Instrumentator(should_group_status_codes=False, registry=registry).instrument(api)
    metrics.expose(api, **options)
