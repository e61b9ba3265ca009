"""Routes of a model that generates: `/v1/completions` and `/v1/chat/completions`."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from bmx.runtime.files import to_json
from bmx.serve.apierror import ApiError
from bmx.serve.completions import Completions, Piece
from bmx.serve.openai import Answer, Asked, choice, read_request, token_logprobs
from bmx.serve.service import Answered, Call, Handler

POLL_SECONDS = 0.5  # between two looks whether a client is still there


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


class CompletionService:
  """Completions of one model over HTTP; see `bmx.serve.service:Service`.

  Args:
    completions: the model.
  """

  ability = 'the model generates text: expected /v1/completions or /v1/chat/completions'
  page = 'page.html'

  def __init__(self, completions: Completions):
    self.completions, self.names, self.worker = completions, completions.names, completions.worker
    self.facts: dict[str, Any] = {'model': completions.names[0]}
    self.routes: dict[str, Handler] = {
      '/v1/completions': lambda call: self._complete(call, False),
      '/v1/chat/completions': lambda call: self._complete(call, True),
    }

  def count(self, registry: CollectorRegistry) -> None:
    """Registers tokens, and seconds to the first of them."""
    kwargs: Any = {'registry': registry}
    self.tokens = Counter('bmx_tokens', 'Tokens read and generated', ['kind'], **kwargs)
    self.first = Histogram('bmx_first_token_seconds', 'Seconds to the first token', **kwargs)

  async def _complete(self, call: Call, chat: bool) -> Response:
    options = self.completions.options
    asked = read_request(call.body, chat=chat, served=self.names, defaults=options)
    jobs = self.completions.jobs(asked)
    read = sum(len(job.request.prompt) for job in jobs[:: asked.choices])
    self.tokens.labels('prompt').inc(read)
    parts = self._timed(self.completions.pieces(jobs, call.timeout), call.began)
    collected, answer = Collected(len(jobs)), Answer(asked.model, chat)
    whole = lambda: self._answer(answer, collected, asked, read)

    if asked.stream:
      first = await anext(parts)  # errors of the queue get a status of their own
      stream = self._events(first, parts, asked, answer, collected, whole, call.observed)
      return StreamingResponse(stream, media_type='text/event-stream')
    await self._collect(call.request, parts, collected)
    found = whole()
    response = Answered(found)  # before an observer sees the values, which it may change
    call.observed(found, len(response.body))
    return response

  async def _timed(self, parts: AsyncIterator[Piece], began: float) -> AsyncIterator[Piece]:
    """Counts tokens and the time to the first."""
    is_first = True
    async with contextlib.aclosing(parts) as open_parts:  # type: ignore
      async for piece in open_parts:
        if is_first:
          self.first.observe(time.perf_counter() - began)
          is_first = False
        self.tokens.labels('generated').inc(len(piece.tokens))
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
    whole: Callable[[], dict[str, Any]],
    observed: Callable[[dict[str, Any], int], None],
  ) -> AsyncIterator[str]:
    """Yields server-sent events; an error after the first is an event of its own."""
    chat, seen, size = answer.chat, set(), 0

    def event(piece: Piece) -> str:
      nonlocal size
      collected.add(piece)
      log_values = self._logprobs(piece.tokens, piece.logprobs, asked, chat)
      one = choice(piece.index, piece.text, piece.finish, chat, True, log_values,
                   piece.index not in seen)  # fmt: skip
      seen.add(piece.index)
      text = _event(answer.part([one]))
      size += len(text)
      return text

    try:
      async with contextlib.aclosing(parts) as open_parts:  # type: ignore
        yield event(first)
        async for piece in open_parts:
          yield event(piece)
    except ApiError as error:
      yield _event(error.body())
      return
    found = whole()
    usage = dict(found['usage'])
    observed(found, size)
    if asked.usage:
      yield _event(answer.part([], usage=usage))
    yield 'data: [DONE]\n\n'

  def _logprobs(
    self, tokens: Sequence[int], values: Sequence[float], asked: Asked, chat: bool
  ) -> dict[str, Any] | None:
    if not asked.logprobs:
      return None
    return token_logprobs([self.completions.token_text(t) for t in tokens], values, chat)


def _event(value: Any) -> str:
  return f'data: {to_json(value)}\n\n'


def _usage(read: int, written: int) -> dict[str, int]:
  return {'prompt_tokens': read, 'completion_tokens': written, 'total_tokens': read + written}
