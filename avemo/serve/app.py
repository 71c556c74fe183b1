"""The web application: who may ask what, and in which words it is answered."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from avemo.serve.answers import About, Answer, Answers, Paths, Problem, Refusal
from avemo.serve.service import BusyError, Service
from avemo.serve.uploads import TooLargeError, received

PAGE = Path(__file__).parent / "page"

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_RETRY_SECONDS = 2
_LONGEST_NAME = 255

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "a token is asked for"},
    422: {"model": Refusal, "description": "the clip cannot be used, and why"},
    429: {"model": Problem, "description": "too many clips at once; try again after a while"},
}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "the bytes of a media file",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def create_app(
    service: Service,
    *,
    token: str | None = None,
    root: Path | None = None,
    hosts: list[str],
    at_end: Callable[[], None] | None = None,
) -> FastAPI:
    """The application.

    Args:
        service: answers.
        token: that requests to the API must carry, if it is not None.
        root: folder of clips that may be given by path, or None where none may.
        hosts: names under which the server may be asked for; "*" for any.
        at_end: called when the server ends, by a signal as well.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        if at_end is not None:
            at_end()

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token is not None and not secrets.compare_digest(
            given.encode("latin-1"), f"Bearer {token}".encode()
        ):
            raise HTTPException(401, "a token is needed: Authorization: Bearer TOKEN")

    app: FastAPI = FastAPIOffline(
        title="avemo",
        version=version("avemo"),
        description="Names the emotion in clips.",
        redoc_url=None,
        lifespan=life,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    guarded = [Depends(allowed)]

    @app.middleware("http")
    async def headers(
        request: Request, following: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await following(request)
        for name, value in _HEADERS.items():
            if not (name == "Content-Security-Policy" and request.url.path == "/docs"):
                response.headers.setdefault(name, value)
        return response

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))

    @app.get("/api/about", dependencies=guarded, responses={401: _PROBLEMS[401]})
    async def about() -> About:
        """What the model names, and what it is given."""
        return About(
            version=version("avemo"),
            emotions=list(service.classes),
            streams=list(service.streams),
            megabytes=service.limits.megabytes,
            seconds=service.limits.seconds,
            paths=root is not None,
        )

    @app.post(
        "/api/predictions",
        dependencies=guarded,
        response_model=Answer,
        responses=_PROBLEMS | {413: {"model": Problem, "description": "the upload is too large"}},
        openapi_extra=_BODY,
    )
    async def predict(
        request: Request,
        name: Annotated[str, Query(max_length=_LONGEST_NAME, description="of the clip")] = "clip",
    ) -> Response | Answer:
        """The emotion in an uploaded clip."""
        most = service.limits.megabytes * 10**6
        try:
            async with received(request, most) as path:
                return _answered(await service.predict(path, name))
        except TooLargeError:
            raise HTTPException(
                413, f"an upload has at most {service.limits.megabytes} MB"
            ) from None
        except ClientDisconnect:
            return Response(status_code=400)

    if root is not None:
        _add_paths(app, service, root.resolve(), guarded)

    @app.exception_handler(BusyError)
    async def busy(*_: Any) -> JSONResponse:
        wait = {"Retry-After": str(_RETRY_SECONDS)}
        return JSONResponse({"detail": "too many clips at once; try again"}, 429, wait)

    return app


def _add_paths(app: FastAPI, service: Service, root: Path, guarded: list[Any]) -> None:
    """Clips by path: those in the root, and none that a link or `..` leads to elsewhere."""

    @app.post(
        "/api/paths", dependencies=guarded, responses={401: _PROBLEMS[401], 429: _PROBLEMS[429]}
    )
    async def predict_paths(given: Paths) -> Answers:
        """The emotions in clips of the server's folder, one after the other."""
        if len(given.paths) > service.limits.batch:
            raise HTTPException(413, f"at most {service.limits.batch} paths at once")
        found: list[Answer | Refusal] = []
        for name in given.paths:
            path = _within(root, name)
            if path is None:
                found.append(
                    Refusal(
                        name=name,
                        reason="path outside of the root",
                        details="",
                        advice="name a file below it",
                    )
                )
            else:
                found.append(await service.predict(path, name))
        return Answers(results=found)


def _within(root: Path, name: str) -> Path | None:
    try:
        path = (root / name).resolve()
    except (OSError, ValueError):  # a null character, or a circle of links
        return None
    return path if path.is_relative_to(root) else None


def _answered(result: Answer | Refusal) -> Response | Answer:
    return result if isinstance(result, Answer) else JSONResponse(result.model_dump(), 422)
