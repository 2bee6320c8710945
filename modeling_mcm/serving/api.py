# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP service. It takes events, and answers with scores, embeddings, forecasts and explanations of customers.

/docs and docs/service.md list the endpoints. Every error is answered with `{"detail": "a sentence"}`.
"""

# FastAPI reads the annotations of functions below while they are defined: they must not become texts.
import functools
import hmac
import importlib.metadata
import json
import logging
import math
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import quote, unquote

from modeling_mcm.data.schema import example_values
from modeling_mcm.evaluation.totals import past_starts
from modeling_mcm.extras import needs
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.files_mcm import some
from modeling_mcm.forecaster_mcm import MissingForecastsError
from modeling_mcm.live.explanations import explain as explain_score
from modeling_mcm.live.explanations import find_label
from modeling_mcm.live.similar import read_labels, similar, together
from modeling_mcm.past import read_cutoff, total_of_group
from modeling_mcm.predictor_mcm import (
    EMBEDDING,
    OFFERING,
    MissingHeadError,
    Questions,
    describe_labels,
    describe_numbers,
    describe_offers,
)

from . import answers
from .service import Batch, CustomerService, Identity, Incoming, Raw, reading_request
from .store import ServiceError

with needs("serve"):
    from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
    from fastapi_offline import FastAPIOffline
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator
    from prometheus_fastapi_instrumentator.metrics import Info, default
    from pydantic import BaseModel, Field
    from starlette.convertors import StringConvertor, register_url_convertor
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)
MOST_BYTES, MOST_EVENTS = 1_000_000, 1_000  # of a request
MOST_LABELS, MOST_CUSTOMERS, LARGEST_GROUP = 1000, 100, 1000  # of an answer
MOST_VISITS = 16  # that an explanation leaves out, one at a time
SHORTEST_TOKEN = 16

AS_OF = "Time of the question, ISO 8601, not before the last event, which is the default."
AsOf = Annotated[str | None, Query(description=AS_OF)]
Count = Annotated[int, Query(ge=1, le=MOST_LABELS)]


class Events(BaseModel, extra="forbid"):
    events: list[Incoming] = Field(min_length=1, max_length=MOST_EVENTS)


class Question(BaseModel, extra="forbid"):
    task: list[str] | None = Field(None, description="All tasks by default.")
    k: int = Field(10, ge=1, le=MOST_LABELS, description="Labels of a task.")
    as_of: str | None = Field(None, description=AS_OF)
    candidate: list[str] = Field([], description="Labels to choose from, by default the service's candidates.")
    exclude: list[str] = Field([], description="Labels that are left out; `seen`: those of the customer's events.")
    per_group: str | None = Field(
        None, description="Largest number of labels of each value of a feature, as category=2."
    )
    horizon_days: float | None = Field(
        None, description="30: what comes within 30 days; by default what comes in the next visit."
    )


class CustomerIds(BaseModel, extra="forbid"):
    customers: list[Identity] = Field(min_length=1, max_length=MOST_CUSTOMERS)


class Group(BaseModel, extra="forbid"):
    customers: list[Identity] = Field(min_length=1, max_length=LARGEST_GROUP)
    quantity: str = Field("visits", description="visits, events, or the amount.")
    days: float = Field(30, gt=0, description="Horizon.")
    as_of: str | None = Field(None, description=AS_OF)


class Offered(CustomerIds):
    actions: list[Raw] = Field(
        min_length=1, max_length=MOST_LABELS, description="Dicts with `action_id` and columns of the event log."
    )


class RateLimit:
    """Lets a client send `rate` requests a second on average, and after a pause as many at once, at least one."""

    def __init__(self, rate: float):
        self.rate, self.due = rate, 0.0  # when as many requests as were sent are due

    def take(self) -> float:
        """Takes one request; returns 0, or the seconds to wait before the next one is allowed."""
        now = time.monotonic()
        due = max(self.due, now) + 1 / self.rate
        if (early := due - now - max(1, 1 / self.rate)) > 1e-6:  # more than these sums are rounded by
            return early
        self.due = due
        return 0.0


class QuotedId(StringConvertor):  # in the path, which is still quoted: see `Requests`
    def convert(self, value: str) -> str:
        return unquote(value)


register_url_convertor("id", QuotedId())


class Requests:
    """An ASGI application around another one. It leaves paths quoted, so that an id may hold a slash (%2F), and reads
    at most [`MOST_BYTES`] of a request's body. (That of FastAPI, `max_body_size`, is answered in plain text.)"""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw, size = scope.get("raw_path"), 0

        async def receive_part() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MOST_BYTES:
                words = f"The body has more than {MOST_BYTES:,} bytes: send the events in several requests."
                raise HTTPException(413, words, {"Connection": "close"})
            return message

        path = raw.decode("ascii") if raw else quote(scope.get("path", ""))
        await self.app({**scope, "path": path}, receive_part, send)


async def get_service(request: Request, response: Response) -> CustomerService:
    """The service of a request, the same from its begin to its end. The answer names its checkpoint."""
    service = request.app.state.service
    response.headers["MCM-Checkpoint"] = service.digest[:12]
    return service


Service = Annotated[CustomerService, Depends(get_service)]
router = APIRouter(responses=answers.ERRORS)


def create_api(service: CustomerService, tokens: str, limit: float = math.inf, log_requests: bool = False) -> FastAPI:
    """Makes the service's ASGI application, for uvicorn or another server.

    Args:
        service ([`CustomerService`]): The service that answers the requests. `state.service` of the application is
            the one that answers those to come: set it to go on with another checkpoint.
        tokens (`str`): The secret that a client must send, at least 16 ASCII characters; or several, with commas
            between them.
        limit (`float`): How many requests a second each token may send.
        log_requests (`bool`): Whether a line of JSON is logged for each request.

    Raises:
        ValueError: If a token is too short or not ASCII.
    """
    known = tokens.split(",")
    for token in known:
        if not re.fullmatch(rf"[!-~][ -~]{{{SHORTEST_TOKEN - 2},}}[!-~]", token):
            raise ValueError(
                f"The token has {len(token)} characters; give at least {SHORTEST_TOKEN}, all ASCII, with no line end "
                "or space around it."
            )
    limits = [RateLimit(limit) for _ in known] if limit < math.inf else []

    async def check_token(
        sent: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        fits = [sent is not None and hmac.compare_digest(sent.credentials.encode(), one.encode()) for one in known]
        if not any(fits):
            words = "Send `Authorization: Bearer TOKEN` with the token of this service."
            raise HTTPException(401, words, {"WWW-Authenticate": "Bearer"})
        if limits and (seconds := limits[fits.index(True)].take()):
            words = f"This token may send {limit:g} requests a second: wait as long as Retry-After says."
            raise HTTPException(429, words, {"Retry-After": str(math.ceil(seconds))})

    @asynccontextmanager
    async def closing(api: FastAPI) -> AsyncIterator[None]:
        yield
        api.state.service.close()

    version, words = importlib.metadata.version("modeling-mcm"), __doc__.partition("\n\n")[0]
    api = FastAPIOffline(
        title="MCM",
        version=version,
        description=words,
        redoc_url=None,
        lifespan=closing,
        generate_unique_id_function=lambda route: route.name,
    )
    api.state.service = service
    _answer_errors(api)
    api.include_router(router, prefix="/v1", dependencies=[Depends(check_token), Depends(get_service)])
    api.add_middleware(Requests)
    registry = CollectorRegistry()
    metrics = Instrumentator(should_group_status_codes=False, registry=registry).add(default(registry=registry))
    if log_requests:
        metrics.add(_log_request)
    metrics.instrument(api).expose(api, dependencies=[Depends(check_token)])

    @api.get("/healthz")
    def healthz(service: Service) -> answers.Health:
        """Says that the process runs; needs no token."""
        return {"status": "ok", "checkpoint": service.digest[:12]}

    @functools.lru_cache(1)  # whoever asks and how often: it takes the lock of writers
    def check(second: int) -> None:
        api.state.service.check()

    @api.get("/readyz")
    def readyz(service: Service) -> answers.Health:
        """Says whether the service can answer requests, as of this second; needs no token."""
        check(int(time.monotonic()))
        return healthz(service)

    _add_examples(api.openapi(), service.extractor)
    return api


def _log_request(info: Info) -> None:
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "method": info.method,
        "path": info.request.url.path,
        "status": int(info.modified_status),
        "milliseconds": round(1000 * info.modified_duration, 1),
    }
    logger.info(json.dumps(facts))


def _answer_errors(api: FastAPI) -> None:
    def answer(status: int, words: str) -> JSONResponse:
        level = logging.WARNING if status in (503, 507) else logging.INFO
        logger.log(level, "%s: %s", status, json.dumps(words))  # in a line, whatever a client has sent
        return JSONResponse({"detail": words}, status, {"Retry-After": "1"} if status == 503 else None)

    @api.exception_handler(ServiceError)
    @api.exception_handler(MissingForecastsError)
    @api.exception_handler(MissingHeadError)
    def expected_error(request: Request, error: Exception) -> JSONResponse:
        return answer(getattr(error, "status", 501), str(error))

    @api.exception_handler(Exception)
    def unexpected_error(request: Request, error: Exception) -> JSONResponse:
        # The server logs the traceback
        return answer(500, f"The service failed ({type(error).__name__}): its log says where.")

    @api.exception_handler(RequestValidationError)
    def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        parts = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        return answer(422, f"The request can't be read: {some(parts)}. GET /docs says what it expects.")


def _add_examples(found: dict, extractor: MCMFeatureExtractor) -> None:
    """Gives /openapi.json, which needs no token, examples of the log's columns and tasks, but no value of a customer's
    event. Every later checkpoint has the same ones."""
    columns = example_values(extractor, known=False)
    event = ({extractor.time: "2017-03-01T18:30:00"} if extractor.time else {}) | columns
    bodies = {
        "/v1/events": {"events": [{"event_id": "1", "customer_id": "7", "event": event}]},
        "/v1/offers": {"customers": ["7"], "actions": [{"action_id": "1"} | columns]},
    }
    for path, example in bodies.items():
        found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"] = example
    operations = [operation for path in found["paths"].values() for operation in path.values()]
    for parameter in [each for operation in operations for each in operation.get("parameters", ())]:
        if parameter["name"] == "task":
            is_list = "'array'" in str(parameter["schema"])
            parameter["example"] = extractor.tasks[:1] if is_list else extractor.tasks[0]


# --------------------------------------------------------------------------------------------------------- changes


@router.post("/events")
def post_events(service: Service, body: Events) -> answers.Added:
    """Stores the events of one or more customers, all of them or none.

    An event is identified by its customer and its event_id. If it is sent again it changes nothing, nor does a
    profile beside it; with other contents it is refused (409). After an answer with 200 the events are on the
    disk. `late` names customers of whom an event belongs before their last visit; the answers are as if it had
    come in time. `unknown_values` are those that the checkpoint does not know; they count as one value.
    """
    return service.add(body.events)


@router.delete("/customers/{customer_id:id}/events/{event_id:id}")
def delete_event(service: Service, customer_id: Identity, event_id: Identity) -> answers.Deleted:
    """Deletes one event. From then on all answers are those for a customer without the event."""
    return {"customer_id": customer_id, "events": service.delete(customer_id, event_id)}


@router.delete("/customers/{customer_id:id}")
def delete_customer(service: Service, customer_id: Identity) -> answers.Deleted:
    """Deletes a customer's events and profile."""
    return {"customer_id": customer_id, "events": service.delete(customer_id)}


# ----------------------------------------------------------------------------------------- questions of customers


def _read_one(service: Service, customer_id: Identity, as_of: AsOf = None) -> Batch:
    return service.read([customer_id], as_of)


One = Annotated[Batch, Depends(_read_one)]


def _answer_scores(service: CustomerService, batch: Batch, asked: Question) -> list[answers.Scores]:
    with reading_request():
        tasks = tuple(service.predictor.tasks(asked.task))
        chosen = service.candidate_set(tasks, tuple(asked.candidate), tuple(asked.exclude) or None, asked.per_group)
    wanted = Questions(tasks=tasks, k=asked.k, candidates=chosen, horizon_days=asked.horizon_days)
    columns, questions = service.ask(batch, wanted)
    return [
        answers.Scores(**customer, tasks=describe_labels(columns, questions, row))
        for row, customer in enumerate(batch.customers)
    ]


@router.get("/customers/{customer_id:id}/scores")
def scores(service: Service, customer_id: Identity, asked: Annotated[Question, Query()]) -> answers.Scores:
    """The candidates that the customer is most likely to choose next, best first, with their probabilities among
    the candidates."""
    return _answer_scores(service, service.read([customer_id], asked.as_of), asked)[0]


@router.post("/scores")
def many_scores(service: Service, body: CustomerIds, asked: Annotated[Question, Query()]) -> answers.ManyScores:
    """The same for many customers; `unknown` are those without an event."""
    batch = service.read(body.customers, asked.as_of, may_be_unknown=True)
    return {"customers": _answer_scores(service, batch, asked), "unknown": batch.unknown}


@router.get("/customers/{customer_id:id}/embedding")
def embedding(service: Service, batch: One) -> answers.Embedding:
    """The customer embedding."""
    columns, _ = service.ask(batch, Questions(embedding=True))
    return answers.Embedding(**batch.customers[0], embedding=columns[EMBEDDING][0].tolist())


@router.get("/customers/{customer_id:id}/forecast")
def forecast(
    service: Service,
    batch: One,
    days: Annotated[list[float] | None, Query(description="Horizons. Those of the checkpoint by default.")] = None,
    discount_rate: Annotated[float | None, Query(description="Of a year. Adds what means are worth now.")] = None,
) -> answers.Forecast:
    """What the customer is expected to do within the next days, with intervals that hold 80% and 95% of such
    customers; 501 if the checkpoint has no forecasts."""
    columns, _ = service.ask(batch, Questions(forecasts=True, days=days, discount_rate=discount_rate))
    return answers.Forecast(**batch.customers[0], forecast=describe_numbers(columns))


@router.get("/customers/{customer_id:id}/prediction")
def prediction(service: Service, batch: One) -> answers.Prediction:
    """What the checkpoint was fine-tuned to: the probability of each class, or the number."""
    columns, _ = service.ask(batch, Questions(label=True))
    return answers.Prediction(**batch.customers[0], prediction=describe_numbers(columns))


@router.get("/customers/{customer_id:id}/explain")
def explain(
    service: Service,
    batch: One,
    task: str,
    label: Annotated[str | None, Query(description="The best one by default.")] = None,
    visits: Annotated[int, Query(ge=0, le=MOST_LABELS, description="Visits that matter most.")] = 10,
) -> answers.Explained:
    """Why a label has its score: what its chance would be without each past visit. A few are computed at a
    time; for more the answer is 503."""
    with reading_request():
        service.predictor.tasks([task])
        if label is not None:
            find_label(service.extractor, task, label)
    explanation = service.worker(explain_score, batch.rows[0], task, label, batch.as_of, MOST_VISITS)
    explanation = replace(explanation, visits=explanation.visits[:visits])
    return answers.Explained(**batch.customers[0], explanation=explanation)


@router.post("/offers")
def offers(service: Service, body: Offered, as_of: AsOf = None) -> answers.ManyOffers:
    """How likely each customer takes each action, if the checkpoint was fine-tuned to offers: the probability of
    each outcome. Of an action with several times the version of `as_of` counts, by default the latest. `unknown`
    are the customers without an event, and `unknown_values` those of the actions that the checkpoint does not
    know; they count as one value."""
    service.predictor.check_head(OFFERING)
    batch = service.read(body.customers, as_of, may_be_unknown=True)
    columns, questions = service.ask(batch, Questions(offers=body.actions))
    customers = [
        answers.Offers(**customer, offers=describe_offers(columns, questions, row))
        for row, customer in enumerate(batch.customers)
    ]
    unknown_values = service.unknown_values(body.actions)
    return {"customers": customers, "unknown": batch.unknown, "unknown_values": unknown_values}


@router.post("/totals")
def totals(service: Service, body: Group) -> answers.Total:
    """What the customers of a group are expected to do in all, and how wrong the same forecast was from earlier
    times. A few are computed at a time; for more the answer is 503."""
    if service.data is None:
        raise HTTPException(501, "The service was started without --data: it can't tell what training has read.")
    batch = service.read(body.customers, body.as_of)
    latest = max(int(row["times"].max()) for row in batch.rows)
    end = latest if batch.as_of is None else int(batch.as_of)
    asked = end, body.quantity, body.days
    with reading_request():
        past_starts(service.model, latest, read_cutoff(service.data), *asked)
    total = service.worker(total_of_group, service.data, batch.rows, *asked)
    past = [each._asdict() | {"error": each.error if each.actual else None} for each in total.past]
    about = {"customers": len(batch.rows), "quantity": body.quantity, "days": body.days, "past": past}
    return total._asdict() | about


# -------------------------------------------------------------------------------------------- questions of labels


@router.get("/labels/similar")
def similar_labels(service: Service, task: str, label: str, k: Count = 10) -> answers.Labels:
    """The labels that are most like a label, best first."""
    with reading_request():
        read_labels(service.model, service.extractor, task, [label])
    return {"task": task, "labels": similar(service.model, service.extractor, task, label, k)}


@router.get("/labels/together")
def labels_together(
    service: Service, task: str, label: Annotated[list[str], Query()], k: Count = 10
) -> answers.Labels:
    """The labels that go with some labels, such as those of a basket, best first."""
    with reading_request():
        read_labels(service.model, service.extractor, task, label)
    return {"task": task, "labels": together(service.model, service.extractor, task, label, k)}
