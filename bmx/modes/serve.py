"""Mode `serve`: a run behind HTTP: OpenAI's completions API, or predictions of instances."""

import contextlib
import logging
import pathlib
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

from bmx.core import errors
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.feedback import pointer
from bmx.feedback.capture import capture_of
from bmx.modes import Request
from bmx.modes.anonymize import capture_hook
from bmx.modes.promoted import Watch, follower
from bmx.modes.services import completions, generates, predictions
from bmx.modes.start import Run, open_weights
from bmx.modes.temperature import check_served
from bmx.serve.text import Options

log = logging.getLogger('bmx')
GRACE_SECONDS = 30  # that answers under way have after SIGTERM
KEEP_ALIVE_SECONDS = 75  # of an idle connection: longer than those of common load balancers


def run(request: Request) -> int:
  """Serves until SIGTERM or SIGINT; answers under way are finished first."""
  libraries = _libraries()
  served = open_weights('serve', request)
  x = served.experiment
  words, options = dict(x.config['serve']), Options(**x.generate)
  check_served(x.config['predict']['temperature'], generates(x), request.pointer)
  keys = _check(words, options)
  captured = capture_of(x.config['capture'], capture_hook(x.config))
  with contextlib.closing(_bind(words['host'], words['port'])) as listening:
    service, line = completions(served, options) if generates(x) else predictions(served)
    observers, chosen = ([captured], captured.chosen) if captured else ([], None)
    server = libraries.server(service, keys, words['max_body'], words['timeout'], observers, chosen)
    if captured is not None:
      captured.count(server.metrics.registry)
      log.info('capture    %s of the answers in %s', f'{captured.share:.0%}', captured.folder)
    host, port = _listen(listening)
    log.info('serving    %s at http://%s:%d, %s%s', served.folder, host, port, line,
             '' if keys else '; every client is served (serve.keys)')  # fmt: skip
    try:
      with _watching(request, served, service.worker):
        return _serve(libraries, server, listening)
    finally:
      if captured is not None:
        captured.close()


@contextlib.contextmanager
def _watching(request: Request, served: Run, worker: Any) -> Iterator[None]:
  """Watches the pointer that the command names, if it names one."""
  if not request.pointer:
    yield
    return
  named = pointer.read(request.pointer).target
  is_served = (named.run, str(named.step)) == (request.workdir, request.step)
  target = named if is_served else pointer.Target(request.workdir, 0, '')
  watch = Watch(request.pointer, target, follower(served, worker))
  watch.start()
  try:
    yield
  finally:
    watch.stop()


class _Libraries:
  """What the extra `serve` brings, imported together."""

  def __init__(self):
    import uvicorn

    from bmx.serve.app import Server

    self.uvicorn, self.server = uvicorn, Server


def _libraries() -> _Libraries:
  try:
    return _Libraries()
  except ImportError as error:
    raise InputError(f"--mode=serve needs the extra serve: pip install -e '.[serve]' ({error})"
                     ) from None  # fmt: skip


def _check(words: dict[str, Any], options: Options) -> tuple[str, ...]:
  """Checks the words of a server; returns the API keys.

  Raises InputError for a value out of range, or a file without keys.
  """
  if options.num_beams > 1:
    raise InputError(f'generate.num_beams={options.num_beams}: expected 1; a server draws tokens')
  if options.draft:
    raise InputError(f'generate.draft={options.draft}: expected none; a server draws tokens')
  check_number('serve.port', words['port'], at_least=0, at_most=65535)
  check_number('serve.max_waiting', words['max_waiting'], at_least=0)
  check_number('serve.timeout', words['timeout'], above=0)
  check_number('serve.max_body', words['max_body'], at_least=1024)
  if not words['keys']:
    return ()
  path = pathlib.Path(words['keys'])
  if not path.is_file():
    raise InputError(f'serve.keys={words["keys"]}: expected a file of keys, a line each')
  keys = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
  if not keys:
    raise InputError(f'serve.keys={words["keys"]}: expected at least one key')
  return keys


def _bind(host: str, port: int) -> socket.socket:
  """Takes the port before the model is loaded. Raises InputError if it is in use.

  Clients are refused until `_listen`: none waits for a model that is being loaded.
  """
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  made = socket.socket(family, socket.SOCK_STREAM)
  made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    made.bind((host, port))
  except OSError as error:
    made.close()
    raise _taken(host, port, error) from None
  return made


def _listen(bound: socket.socket) -> tuple[str, int]:
  """Accepts connections from now on; returns the address.

  Raises InputError if another server took the port meanwhile: a port that nobody listens on can be
  bound twice.
  """
  host, port = bound.getsockname()[:2]
  try:
    bound.listen(2048)
  except OSError as error:
    raise _taken(host, port, error) from None
  return host, port


def _taken(host: str, port: int, error: OSError) -> InputError:
  return InputError(
    f'serve.host={host}, serve.port={port}: {error.strerror}; choose another with --port=N'
  )


def _serve(libraries: _Libraries, server: Any, listening: socket.socket) -> int:
  """Runs the event loop in this thread and the model in its own."""
  worker = server.service.worker
  config = libraries.uvicorn.Config(
    server.app(), log_level='warning', lifespan='off', timeout_graceful_shutdown=GRACE_SECONDS,
    timeout_keep_alive=KEEP_ALIVE_SECONDS,
  )  # fmt: skip

  cut = 0  # answers that took longer than the grace

  class Uvicorn(libraries.uvicorn.Server):
    """Without uvicorn's own signal handlers, which raise SIGTERM again after a clean end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
      yield

    async def shutdown(self, sockets: Any = None) -> None:
      nonlocal cut
      await super().shutdown(sockets)
      cut = sum(task.cancelling() > 0 for task in self.server_state.tasks)

  http = Uvicorn(config)

  def stop(*_: Any) -> None:
    server.draining = http.should_exit = True

  before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
  worker.on_death = lambda _: stop()
  worker.start()
  try:
    http.run(sockets=[listening])
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    worker.drain()
    worker.join(GRACE_SECONDS)
    server.observers.close(GRACE_SECONDS)
  if worker.error is not None:
    sys.stderr.write(f'error: the device thread has ended: {worker.error}\n')
    return errors.FAILURE
  if cut:
    log.warning('stopped    %d answers were cut after %d s', cut, GRACE_SECONDS)
  else:
    log.info('stopped    all answers are sent')
  return errors.DONE
