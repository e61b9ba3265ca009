"""HTTP of a server: routes, limits, metrics (Starlette)."""

import contextlib
import hmac
import importlib.resources
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bmx.serve.completions import Completions, Piece
from bmx.serve.observers import Observer, Observers
from bmx.serve.openai import Answer, ApiError, Asked, choice, read_request, token_logprobs

log = logging.getLogger('bmx')
POLL_SECONDS = 0.5  # between two looks whether a client is still there


class Metrics:
  """Counters of a server, in the text format of Prometheus."""

  def __init__(self, completions: Completions):
    self.registry = CollectorRegistry()
    kwargs: Any = {'registry': self.registry}
    self.requests = Counter('bmx_requests', 'Answers by route and status', ['route', 'status'],
                            **kwargs)  # fmt: skip
    self.tokens = Counter('bmx_tokens', 'Tokens read and generated', ['kind'], **kwargs)
    self.seconds = Histogram('bmx_request_seconds', 'Seconds of an answer', ['route'], **kwargs)
    self.lost = Counter('bmx_unobserved_answers', 'Answers that observers did not see', **kwargs)
    self.first = Histogram('bmx_first_token_seconds', 'Seconds to the first token', **kwargs)
    pending = Gauge('bmx_pending_requests', 'Choices that wait or generate', **kwargs)
    pending.set_function(lambda: completions.worker.pending)


class Collected:
  """The pieces of all choices of an answer so far.

  Args:
    choices: how many.
  """

  def __init__(self, choices: int):
    self.texts, self.finish = [''] * choices, [''] * choices
    self.tokens: list[list[int]] = [[] for _ in range(choices)]
    self.logprobs: list[list[float]] = [[] for _ in range(choices)]

  @property
  def written(self) -> int:
    """Number of tokens."""
    return sum(map(len, self.tokens))

  def add(self, piece: Piece) -> None:
    """Appends a piece to its choice."""
    self.texts[piece.index] += piece.text
    self.tokens[piece.index] += piece.tokens
    self.logprobs[piece.index] += piece.logprobs
    self.finish[piece.index] = piece.finish


class Server:
  """Routes of one model.

  Args:
    completions: the model.
    keys: API keys; () accepts every client.
    max_body: bytes of a request.
    timeout: seconds of an answer.
    observers: see whole answers.
  """

  def __init__(
    self, completions: Completions, keys: Sequence[str] = (), max_body: int = 2**20,
    timeout: float = 600.0, observers: Sequence[Observer] = (),
  ):  # fmt: skip
    self.completions, self.keys, self.max_body = completions, tuple(keys), max_body
    self.timeout, self.metrics, self.created = timeout, Metrics(completions), int(time.time())
    self.observers = Observers(observers, self.metrics.lost.inc)
    self.draining = False

  def app(self) -> Starlette:
    """Returns the ASGI application."""
    post = lambda path, chat: Route(path, self._completion(chat), methods=['POST'])
    routes = [
      Route('/', self._page),
      Route('/health', self._health),
      Route('/ready', self._ready),
      Route('/metrics', self._metrics),
      Route('/v1/models', self._models),
      Route('/v1/models/{name:path}', self._models),
      post('/v1/completions', False),
      post('/v1/chat/completions', True),
    ]
    handlers: Any = {ApiError: _answer_error, HTTPException: _answer_http, Exception: _answer_any}
    return Starlette(routes=routes, exception_handlers=handlers)

  async def _page(self, request: Request) -> Response:
    page = importlib.resources.files('bmx.serve').joinpath('page.html').read_text()
    return HTMLResponse(page.replace('MODEL_NAME', json.dumps(self.completions.name)))

  async def _health(self, request: Request) -> Response:
    error = self.completions.worker.error
    return JSONResponse({'status': 'failed' if error else 'ok'}, 503 if error else 200)

  async def _ready(self, request: Request) -> Response:
    ready = not self.draining and self.completions.worker.accepts
    return JSONResponse({'status': 'ready' if ready else 'busy'}, 200 if ready else 503)

  async def _metrics(self, request: Request) -> Response:
    return Response(generate_latest(self.metrics.registry), media_type='text/plain; version=0.0.4')

  async def _models(self, request: Request) -> Response:
    self._authorize(request)
    one = {'id': self.completions.name, 'object': 'model', 'created': self.created,
           'owned_by': 'bmx'}  # fmt: skip
    name = request.path_params.get('name')
    if name is None:
      return JSONResponse({'object': 'list', 'data': [one]})
    if name != self.completions.name:
      raise ApiError(404, f'the model {name!r} does not exist: expected {self.completions.name!r}',
                     param='model', code='model_not_found')  # fmt: skip
    return JSONResponse(one)

  def _completion(self, chat: bool) -> Any:
    route = '/v1/chat/completions' if chat else '/v1/completions'

    async def call(request: Request) -> Response:
      began = time.perf_counter()
      try:
        response = await self._complete(request, chat, began)
      except ApiError as error:
        self.metrics.requests.labels(route, error.status).inc()
        raise
      self.metrics.requests.labels(route, response.status_code).inc()
      self.metrics.seconds.labels(route).observe(time.perf_counter() - began)
      return response

    return call

  async def _complete(self, request: Request, chat: bool, began: float) -> Response:
    self._authorize(request)
    body = await self._body(request)
    served, options = self.completions.name, self.completions.options
    asked = read_request(body, chat=chat, served=served, defaults=options)
    jobs = self.completions.jobs(asked)
    read = sum(len(job.request.prompt) for job in jobs[:: asked.choices])
    self.metrics.tokens.labels('prompt').inc(read)
    parts = self._timed(self.completions.pieces(jobs, self.timeout), began)
    collected = Collected(len(jobs))
    answer = Answer(self.completions.name, chat)

    def ended() -> dict[str, Any]:
      whole = self._answer(answer, collected, asked, read)
      route = request.url.path
      self.observers.answered(route, whole['id'], body, whole)
      return whole

    if asked.stream:
      first = await anext(parts)  # errors of the queue get a status of their own
      stream = self._events(first, parts, asked, answer, collected, ended)
      return StreamingResponse(stream, media_type='text/event-stream')
    await self._collect(request, parts, collected)
    return JSONResponse(ended())

  def _authorize(self, request: Request) -> None:
    if not self.keys:
      return
    given = request.headers.get('authorization', '').removeprefix('Bearer ').encode()
    if not any([hmac.compare_digest(given, key.encode()) for key in self.keys]):
      raise ApiError(401, 'expected the header Authorization: Bearer KEY with a valid key',
                     code='invalid_api_key', headers={'WWW-Authenticate': 'Bearer'})  # fmt: skip

  async def _body(self, request: Request) -> Any:
    """Reads a body piece by piece. Raises ApiError for one that is too large or is not JSON."""
    parts, size = [], 0
    try:
      async for part in request.stream():
        size += len(part)
        if size > self.max_body:
          raise ApiError(413, f'expected a body of at most {self.max_body} bytes',
                         code='body_too_large')  # fmt: skip
        parts.append(part)
    except ClientDisconnect:
      raise ApiError(400, 'the client has left') from None
    try:
      return json.loads(b''.join(parts))
    except (ValueError, RecursionError) as error:
      raise ApiError(400, f'the body is not JSON: {error}', code='invalid_json') from None

  async def _timed(self, parts: AsyncIterator[Piece], began: float) -> AsyncIterator[Piece]:
    """Counts tokens and the time to the first."""
    is_first = True
    async with contextlib.aclosing(parts) as open_parts:  # type: ignore
      async for piece in open_parts:
        if is_first:
          self.metrics.first.observe(time.perf_counter() - began)
          is_first = False
        self.metrics.tokens.labels('generated').inc(len(piece.tokens))
        yield piece

  async def _collect(
    self, request: Request, parts: AsyncIterator[Piece], collected: Collected
  ) -> None:
    """Reads an answer to its end; looks now and then whether the client is still there."""
    looked = time.monotonic()
    async with contextlib.aclosing(parts) as open_parts:  # type: ignore
      async for piece in open_parts:
        collected.add(piece)
        if time.monotonic() - looked > POLL_SECONDS:
          looked = time.monotonic()
          if await request.is_disconnected():
            raise ApiError(400, 'the client has left')

  def _answer(
    self, answer: Answer, collected: Collected, asked: Asked, read: int
  ) -> dict[str, Any]:
    """Returns an answer in one piece."""
    choices = []
    for i, text in enumerate(collected.texts):
      logs = self._logprobs(collected.tokens[i], collected.logprobs[i], asked, answer.chat)
      choices.append(choice(i, text, collected.finish[i], answer.chat, False, logs))
    return answer.whole(choices, _usage(read, collected.written))

  async def _events(
    self,
    first: Piece,
    parts: AsyncIterator[Piece],
    asked: Asked,
    answer: Answer,
    collected: Collected,
    ended: Callable[[], dict[str, Any]],
  ) -> AsyncIterator[str]:
    """Yields server-sent events; an error after the first is an event of its own."""
    chat, seen = answer.chat, set()

    def event(piece: Piece) -> str:
      collected.add(piece)
      log_values = self._logprobs(piece.tokens, piece.logprobs, asked, chat)
      one = choice(piece.index, piece.text, piece.finish, chat, True, log_values,
                   piece.index not in seen)  # fmt: skip
      seen.add(piece.index)
      return _event(answer.part([one]))

    try:
      async with contextlib.aclosing(parts) as open_parts:  # type: ignore
        yield event(first)
        async for piece in open_parts:
          yield event(piece)
    except ApiError as error:
      yield _event(error.body())
      return
    whole = ended()
    if asked.usage:
      yield _event(answer.part([], usage=whole['usage']))
    yield 'data: [DONE]\n\n'

  def _logprobs(
    self, tokens: Sequence[int], values: Sequence[float], asked: Asked, chat: bool
  ) -> dict[str, Any] | None:
    if not asked.logprobs:
      return None
    return token_logprobs([self.completions.token_text(t) for t in tokens], values, chat)


def _event(value: Any) -> str:
  return f'data: {json.dumps(value)}\n\n'


def _usage(read: int, written: int) -> dict[str, int]:
  return {'prompt_tokens': read, 'completion_tokens': written, 'total_tokens': read + written}


async def _answer_error(request: Request, error: ApiError) -> Response:
  return JSONResponse(error.body(), error.status, headers=error.headers)


async def _answer_http(request: Request, error: HTTPException) -> Response:
  text = f'{request.method} {request.url.path}: {error.detail}'
  return JSONResponse(ApiError(error.status_code, text).body(), error.status_code,
                      headers=error.headers)  # fmt: skip


async def _answer_any(request: Request, error: Exception) -> Response:
  """Answers without a traceback, which stays in the log."""
  log.error('%s %s', request.method, request.url.path, exc_info=error)
  body = ApiError(500, 'the server failed; its log says why', kind='server_error').body()
  return JSONResponse(body, 500)
