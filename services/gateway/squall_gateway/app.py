"""The HTTP application: FastAPI's routes, the call path beside them, one form of errors, one OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from squall import errors
from squall.errors import InvalidError, NotFoundError, SquallError
from squall_gateway.answers import error_body, error_headers, public
from squall_gateway.edge import REQUEST, Exchange
from squall_gateway.openapi import HOT_PATHS, with_errors
from squall_gateway.openapi_entries import ENTRY_PATHS
from squall_service.health import Health
from squall_service.health import answer as health_answer

OBSERVED = ("/healthz", "/readyz", "/metrics")


def build(version: str, routers: Sequence[APIRouter], health: Health, metrics: Callable[[], bytes]) -> FastAPI:
    """The application without the call path."""
    app = FastAPI(
        title="squall",
        version=version,
        docs_url=None,
        redoc_url=None,
        # Measured at the edge; FastAPI's own would count twice and costs 60 us a request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    for router in (*routers, _observed(health, metrics)):
        app.include_router(router)
    app.add_exception_handler(SquallError, _on_error)
    app.add_exception_handler(Exception, _on_unexpected)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.openapi = lambda: _document(app, version)  # type: ignore[method-assign]
    return app


def _observed(health: Health, metrics: Callable[[], bytes]) -> APIRouter:
    router = APIRouter(tags=["health"])

    async def observed(request: Request) -> Response:
        """Liveness, readiness, Prometheus metrics."""
        status, content_type, body = health_answer(request.url.path, health, metrics)
        return Response(body, status, media_type=content_type)

    for path in OBSERVED:
        router.get(path, response_class=Response, operation_id=path.strip("/"))(observed)
    return router


def _answer(request: Request, error: SquallError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    exchange: Exchange = request.scope[REQUEST]
    return Response(error_body(error, exchange.id), error.http_status, headers=headers)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SquallError)
    return _answer(request, public(error))


async def _on_unexpected(request: Request, _: Exception) -> Response:
    """The answer; what went wrong is logged at the edge, with the same id."""
    exchange: Exchange = request.scope[REQUEST]
    return _answer(request, errors.InternalError(f"request {exchange.id} failed"))


async def _on_invalid(request: Request, error: Exception) -> Response:
    """What FastAPI found wrong with a request, in the one form of errors."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(str(part) for part in found['loc'])}: {found['msg']}" for found in error.errors()]
    return _answer(request, InvalidError("; ".join(problems)[:2000], fix="Correct what the message names."))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _answer(
            request, NotFoundError(f"there is no {request.url.path}", fix="See /openapi.json for what there is.")
        )
    told = errors.InvalidError(f"{request.method} {request.url.path}: {error.detail}", fix="See /openapi.json.")
    response = _answer(request, told)
    response.status_code = error.status_code
    return response


def _document(app: FastAPI, version: str) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=version, routes=app.routes)
        for path, operations in (HOT_PATHS | ENTRY_PATHS).items():
            document["paths"].setdefault(path, {}).update(operations)
        app.openapi_schema = with_errors(document)
    return app.openapi_schema
