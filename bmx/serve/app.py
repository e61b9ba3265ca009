"""HTTP of a server: limits, keys, metrics and the routes that all models share (Starlette)."""

import asyncio
import hmac
import importlib.resources
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from bmx.serve import corrections
from bmx.serve.apierror import MAX_SHOWN, ApiError, unknown_model
from bmx.serve.observers import Observer, Observers
from bmx.serve.service import Answered, Call, Service, overloaded

log = logging.getLogger('bmx')
# Of all kinds of models; a server has those of its own model.
MODEL_ROUTES = ('/v1/completions', '/v1/chat/completions', '/v1/predict')
POST_ROUTES = (*MODEL_ROUTES, corrections.ROUTE)


class Metrics:
  """Counters of a server, in the text format of Prometheus."""

  def __init__(self, service: Service):
    self.registry = CollectorRegistry()
    kwargs: Any = {'registry': self.registry}
    self.requests = Counter('bmx_requests', 'Answers by route and status', ['route', 'status'],
                            **kwargs)  # fmt: skip
    self.seconds = Histogram('bmx_request_seconds', 'Seconds of an answer', ['route'], **kwargs)
    self.lost = Counter('bmx_unobserved_answers', 'Answers that observers did not see', **kwargs)
    pending = Gauge('bmx_pending_requests', 'Requests that wait or run', **kwargs)
    pending.set_function(lambda: service.worker.pending)
    service.count(self.registry)


class Server:
  """Routes of one model.

  Args:
    service: the model.
    keys: API keys; () accepts every client.
    max_body: bytes of a request.
    timeout: seconds of an answer.
    observers: see whole answers, and corrections with the route `corrections.ROUTE`.
    captured: whether the answer of an id is captured; None: corrections are refused.
  """

  def __init__(
    self, service: Service, keys: Sequence[str] = (), max_body: int = 2**20,
    timeout: float = 600.0, observers: Sequence[Observer] = (),
    captured: Callable[[str], bool] | None = None,
  ):  # fmt: skip
    self.service, self.keys, self.max_body = service, tuple(keys), max_body
    self.timeout, self.metrics, self.created = timeout, Metrics(service), int(time.time())
    self.observers = Observers(observers, self.metrics.lost.inc)
    self.captured, self.draining = captured, False

  def app(self) -> Starlette:
    """Returns the ASGI application."""
    routes = [
      Route('/', self._page),
      Route('/health', self._health),
      Route('/ready', self._ready),
      Route('/metrics', self._metrics),
      Route('/v1/models', self._models),
      Route('/v1/models/{name:path}', self._models),
      *(Route(path, self._call(path), methods=['POST']) for path in POST_ROUTES),
    ]
    handlers: Any = {ApiError: _answer_error, HTTPException: _answer_http, Exception: _answer_any}
    return Starlette(routes=routes, exception_handlers=handlers)

  async def _page(self, request: Request) -> Response:
    page = importlib.resources.files('bmx.serve').joinpath(self.service.page).read_text()
    facts = json.dumps(self.service.facts).replace('<', '\\u003c')  # it stands in a script
    return HTMLResponse(page.replace('SERVED_MODEL', facts))

  async def _health(self, request: Request) -> Response:
    error = self.service.worker.error
    return Answered({'status': 'failed' if error else 'ok'}, 503 if error else 200)

  async def _ready(self, request: Request) -> Response:
    ready = not self.draining and self.service.worker.accepts
    return Answered({'status': 'ready' if ready else 'busy'}, 200 if ready else 503)

  async def _metrics(self, request: Request) -> Response:
    return Response(generate_latest(self.metrics.registry), media_type='text/plain; version=0.0.4')

  async def _models(self, request: Request) -> Response:
    self._authorize(request)
    served = self.service.names
    one = {'object': 'model', 'created': self.created, 'owned_by': 'bmx'}
    name = request.path_params.get('name')
    if name is None:
      return Answered({'object': 'list', 'data': [{'id': n, **one} for n in served]})
    if name not in served:
      raise unknown_model(name, served)
    return Answered({'id': name, **one})

  def _call(self, route: str) -> Any:
    """Returns the endpoint of a route of models: counts and times its answers."""

    async def call(request: Request) -> '_Counted':
      began = time.perf_counter()

      def count(status: int) -> None:
        self.metrics.requests.labels(route, status).inc()
        self.metrics.seconds.labels(route).observe(time.perf_counter() - began)

      try:
        response = await self._answer(route, request, began)
      except ApiError as error:
        count(error.status)
        raise
      except Exception:
        count(500)
        raise
      return _Counted(response, count)

    return call

  async def _answer(self, route: str, request: Request, began: float) -> Response:
    self._authorize(request)
    if route == corrections.ROUTE:
      return self._correct(*await self._body(request))
    handler = self.service.routes.get(route)
    if handler is None:
      raise ApiError(404, f'{route}: {self.service.ability}', code='unsupported_route')
    body, size = await self._body(request)
    return await handler(Call(request, body, size, began, self.timeout, self.observers))

  def _correct(self, body: Any, size: int) -> Response:
    """Passes a correction to the observers: it is written a moment later.

    One of an unknown id is passed on too: another server, or this one before a restart, may have
    given the answer.
    """
    if self.captured is None:
      raise ApiError(404, f'{corrections.ROUTE}: answers are not captured: expected a server with '
                     '--capture.folder=DIR', code='not_captured')  # fmt: skip
    correction = corrections.read_correction(body)
    name = correction['id']
    if not self.observers.corrected(corrections.ROUTE, name, correction, size):
      raise overloaded('too many answers and corrections wait to be written')
    known = self.observers.knows(name)
    captured = known and self.captured(name)
    return Answered({'id': name, 'object': 'feedback', 'known': known, 'captured': captured}, 202)

  def _authorize(self, request: Request) -> None:
    if not self.keys:
      return
    given = request.headers.get('authorization', '').removeprefix('Bearer ').encode()
    if not any([hmac.compare_digest(given, key.encode()) for key in self.keys]):
      raise ApiError(401, 'expected the header Authorization: Bearer KEY with a valid key',
                     code='invalid_api_key', headers={'WWW-Authenticate': 'Bearer'})  # fmt: skip

  async def _body(self, request: Request) -> tuple[Any, int]:
    """Reads a body; returns its value and its bytes.

    Raises ApiError for one that is too large or too slow, or is not JSON.
    """
    parts, size = [], 0
    try:
      async with asyncio.timeout(self.timeout):
        async for part in request.stream():
          size += len(part)
          if size > self.max_body:
            raise ApiError(413, f'expected a body of at most {self.max_body} bytes',
                           code='body_too_large')  # fmt: skip
          parts.append(part)
    except ClientDisconnect:
      raise ApiError(400, 'the client has left') from None
    except TimeoutError:
      raise ApiError(408, f'expected the whole body within {self.timeout:g} seconds',
                     code='timeout') from None  # fmt: skip
    try:
      return json.loads(b''.join(parts)), size
    except (ValueError, RecursionError) as error:
      raise ApiError(400, f'the body is not JSON: {error}', code='invalid_json') from None


class _Counted:
  """A response that is counted once it is sent, or its client has left.

  Args:
    response: of an endpoint; a stream is sent part by part.
    count: called with its status.
  """

  def __init__(self, response: Response, count: Callable[[int], None]):
    self.response, self.count = response, count

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    """Sends the response."""
    try:
      await self.response(scope, receive, send)
    finally:
      self.count(self.response.status_code)


async def _answer_error(request: Request, error: ApiError) -> Response:
  return Answered(error.body(), error.status, headers=error.headers)


async def _answer_http(request: Request, error: HTTPException) -> Response:
  text = f'{request.method[:MAX_SHOWN]} {request.url.path[:MAX_SHOWN]}: {error.detail}'
  return Answered(ApiError(error.status_code, text).body(), error.status_code,
                  headers=error.headers)  # fmt: skip


async def _answer_any(request: Request, error: Exception) -> Response:
  """Answers without a traceback, which stays in the log."""
  log.error('%s %s', request.method, request.url.path, exc_info=error)
  body = ApiError(500, 'the server failed; its log says why', kind='server_error').body()
  return Answered(body, 500)
