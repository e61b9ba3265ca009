"""What a server of one model is made of: its routes, its device thread, its page."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response

from bmx.runtime.files import to_json
from bmx.serve.apierror import ApiError
from bmx.serve.observers import Observers
from bmx.serve.worker import DeviceThread, Overloaded, Unavailable

RETRY_SECONDS = 1  # that an overloaded server asks for


class Answered(Response):
  """A JSON answer in ASCII: half of a surrogate pair in a request does not break it."""

  media_type = 'application/json'

  def render(self, content: Any) -> bytes:
    """Numbers that are not finite are texts, as in files."""
    return to_json(content).encode()


@dataclasses.dataclass(frozen=True)
class Call:
  """One POST request.

  Attributes:
    request: of Starlette.
    body: the JSON value.
    size: bytes of the body.
    began: of the request, in seconds of `time.perf_counter`.
    timeout: seconds of an answer.
    observers: of whole answers.
  """

  request: Request
  body: Any
  size: int
  began: float
  timeout: float
  observers: Observers

  @property
  def route(self) -> str:
    """Path of the request."""
    return self.request.url.path

  def observed(self, answer: Mapping[str, Any], size: int) -> None:
    """Passes a whole answer of `size` bytes to the observers."""
    self.observers.answered(self.route, answer['id'], self.body, answer, self.size + size)


Handler = Callable[[Call], Awaitable[Response]]


class Service(Protocol):
  """The model of a server.

  Attributes:
    names: of the models, in requests and answers: the served one, then its adapters.
    worker: the device thread.
    ability: of the model, in one sentence; routes of other kinds answer with it.
    page: file of the page at `/`, beside this module.
    facts: values that the page reads.
    routes: path -> handler of POST.
  """

  names: Sequence[str]
  worker: DeviceThread
  ability: str
  page: str
  facts: Mapping[str, Any]
  routes: Mapping[str, Handler]

  def count(self, registry: CollectorRegistry) -> None:
    """Registers metrics of this kind of model."""
    ...


def overloaded(text: str) -> ApiError:
  """Returns the error of a request that the server cannot queue."""
  return ApiError(429, f'{text}; send the request again', kind='overloaded', code='queue_full',
                  headers={'Retry-After': str(RETRY_SECONDS)})  # fmt: skip


@contextlib.contextmanager
def api_errors(timeout: float) -> Iterator[None]:
  """Turns errors of a device thread into ApiError: 429, 503 or 504."""
  try:
    yield
  except Overloaded as error:
    raise overloaded(str(error)) from None
  except Unavailable as error:
    raise ApiError(503, str(error), kind='server_error', code='unavailable') from None
  except TimeoutError:
    raise ApiError(504, f'no answer within {timeout:g} seconds', kind='server_error',
                   code='timeout') from None  # fmt: skip


def threadsafe(put: Callable[[Any], None]) -> Callable[[Any], None]:
  """Returns a function for other threads that calls `put` in the event loop of this one."""
  loop = asyncio.get_running_loop()

  def call(item: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop of a dead server
      loop.call_soon_threadsafe(put, item)

  return call
