"""Sampled capture of answers and corrections, as JSON lines: one event a line."""

import hashlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from bmx import config as recipes
from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.core.ranges import check_number
from bmx.feedback.traffic import ANSWER, FEEDBACK
from bmx.runtime.files import Appender, to_json, tolerated

log = logging.getLogger('bmx')
FEEDBACK_ROUTE = '/v1/feedback'
PRIVATE = 0o600  # of files that hold what users have said
Redact = Callable[[dict[str, Any]], Mapping[str, Any]]


class Capture:
  """Writes a share of the answers of a server; see `bmx.serve.observers:Observer`.

  An answer is chosen by its id alone, so that its corrections are chosen with it. Headers, and so
  API keys, never reach it. A write that fails loses its event: the first failure is logged, all are
  counted, and serving is not disturbed.

  Args:
    folder: of the files; it is created.
    share: of the answers.
    redact: called with what users and model have said, before anything is written; its result is
      written instead. An event whose redaction fails is not written.
    file_bytes: size at which the next file begins.

  Attributes:
    written: events on disk.
    lost: events that could not be redacted or written.

  Raises:
    InputError: a number out of range; a folder that cannot be written.
  """

  def __init__(
    self, folder: str, share: float = 1.0, redact: Redact | None = None, file_bytes: int = 2**26
  ):
    check_number('capture.share', share, above=0, at_most=1)
    check_number('capture.file_bytes', file_bytes, at_least=1024)
    self.folder, self.share, self.file_bytes = local(folder), share, file_bytes
    self.written = self.lost = 0
    self._redact, self._redaction_failed = redact, False
    self._began = f'{time.strftime("%Y%m%d-%H%M%S")}-{secrets.token_hex(3)}'
    self._numbers = itertools.count()
    self._file: Appender | None = None
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      probe = self.folder / f'.probe-{secrets.token_hex(4)}'
      probe.touch()
      probe.unlink()
    except OSError as error:
      raise InputError(f'capture.folder={folder}: cannot be written: {error}') from None

  def chosen(self, request_id: str) -> bool:
    """Whether the answer of this id is captured."""
    digest = hashlib.sha256(request_id.encode('utf-8', 'replace')).hexdigest()
    return int(digest[:13], 16) < self.share * 16**13

  def answered(
    self, route: str, request_id: str, asked: Mapping[str, Any], answer: Mapping[str, Any]
  ) -> None:
    """Writes an answer, or a correction that came to `FEEDBACK_ROUTE`, if its id is chosen."""
    if not self.chosen(request_id):
      return
    said = dict(asked) if route == FEEDBACK_ROUTE else {'asked': asked, 'answer': answer}
    try:
      said = dict(self._redact(said)) if self._redact is not None else said
    except Exception as error:
      self.lost += 1
      if not self._redaction_failed:
        log.error('capture.redact failed; its events are not written', exc_info=error)
      self._redaction_failed = True
      return
    kind = FEEDBACK if route == FEEDBACK_ROUTE else ANSWER
    about = {'kind': kind, 'id': request_id, 'time': round(time.time(), 3)}
    self._write(said | about | ({'route': route} if kind == ANSWER else {}))

  def _write(self, event: Mapping[str, Any]) -> None:
    line, before = (to_json(event) + '\n').encode(), self.written
    with tolerated(self.folder):
      file = self._open(len(line))
      file.write(line)
      self.written += not file.kept
      file.kept = b''  # a full disk must not fill the memory
    self.lost += self.written == before

  def _open(self, size: int) -> Appender:
    """The file that a line of `size` bytes goes to. Raises OSError if it cannot be created."""
    file = self._file
    if file is None or (file.length and file.length + size > self.file_bytes):
      name = f'{self._began}-{next(self._numbers):05d}.jsonl'
      new = Appender(self.folder / name, mode=PRIVATE)
      if file is not None:
        file.close()
      self._file = file = new
    return file

  def count(self, registry: Any) -> None:
    """Registers the numbers of events with a registry of prometheus_client."""
    from prometheus_client import Gauge

    kwargs: Any = {'registry': registry}
    captured = Gauge('bmx_captured_events', 'Answers and corrections on disk', **kwargs)
    captured.set_function(lambda: self.written)
    lost = Gauge('bmx_lost_events', 'Events that could not be captured', **kwargs)
    lost.set_function(lambda: self.lost)

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()


def capture_of(words: Mapping[str, Any], then: Redact | None = None) -> Capture | None:
  """Returns the capture that the config words `capture` describe; None without a folder.

  Args:
    words: the config words `capture`.
    then: called with what capture.redact returns.

  Raises InputError for words out of range, or a hook that cannot be imported or called.
  """
  if not words['folder']:
    return None
  own: Redact | None = recipes.resolve(words['redact']) if words['redact'] else None
  if own and not callable(own):
    raise InputError(f"capture.redact={words['redact']!r}: expected 'module:function'")
  redact: Redact | None = own or then
  if own and then:
    redact = lambda said: then(dict(own(said)))
  return Capture(words['folder'], words['share'], redact, words['file_bytes'])
