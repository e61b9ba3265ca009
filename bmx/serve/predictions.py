"""Predictions of a served model: instances of a request to the rows that `bmx predict` writes."""

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.types import HostBatch, Task
from bmx.serve.apierror import ApiError, bad, unknown_model
from bmx.serve.predictor import Batcher
from bmx.serve.service import api_errors, threadsafe
from bmx.train.predicted import lines

log = logging.getLogger('bmx')
KEYS = ('model', 'instances')
MAX_MESSAGE = 500  # characters
THREAD = 'instances'  # name of the thread that reads them


class Predictions:
  """Predictions of one model.

  Args:
    name: of the model, in requests and answers.
    worker: predicts rows.
    task: of the model; names its predictions.
    read: instances -> their examples as one batch; raises InputError naming an instance.
    columns: of the instances, as JSON objects.
    max_instances: of a request.
  """

  def __init__(
    self,
    name: str,
    worker: Batcher,
    task: Task,
    read: Callable[[Sequence[Any]], Data],
    columns: Sequence[Mapping[str, Any]],
    max_instances: int,
  ):
    self.name, self.worker, self.task, self.columns = name, worker, task, list(columns)
    self.max_instances, self._read = max_instances, read
    # One thread: a tokenizer is not safe for several. The event loop answers others meanwhile.
    self._reader = concurrent.futures.ThreadPoolExecutor(1, THREAD)
    log.addFilter(_Once())
    self._open = 0  # requests that are read, wait or run

  def instances(self, body: Any) -> list[Any]:
    """Returns the instances of a request. Raises ApiError for an invalid body."""
    if not isinstance(body, dict):
      raise ApiError(400, 'expected a JSON object')
    for key, value in body.items():
      if key not in KEYS:
        raise bad(key, value, f'one of the keys {", ".join(KEYS)}', 'unsupported_parameter')
    model = body.get('model')
    if model is not None and model != self.name:
      raise unknown_model(model, (self.name,))
    found = body.get('instances')
    if not isinstance(found, list) or not found:
      raise bad('instances', found, 'a list of at least one instance')
    if len(found) > self.max_instances:
      raise ApiError(413, f'{len(found)} instances: expected at most {self.max_instances}; send '
                     'several requests', param='instances', code='too_many_instances')  # fmt: skip
    return found

  async def rows(self, instances: Sequence[Any], timeout: float) -> list[dict[str, Any]]:
    """Predicts instances -> a JSON object for each, as `bmx predict` writes it.

    Args:
      instances: of `instances`.
      timeout: seconds.

    Raises:
      ApiError: 400, 429, 503 or 504.
    """
    with api_errors(timeout):
      self.worker.check(self._open)
      self._open += 1
      try:
        return await asyncio.wait_for(self._rows(instances), timeout)
      finally:
        self._open -= 1

  async def _rows(self, instances: Sequence[Any]) -> list[dict[str, Any]]:
    loop = asyncio.get_running_loop()
    try:
      data, rows = await loop.run_in_executor(self._reader, self._batch, instances)
    except InputError as error:
      raise _invalid(error) from None
    inbox: asyncio.Queue[HostBatch | Exception] = asyncio.Queue()
    ticket = self.worker.submit(rows, threadsafe(inbox.put_nowait))
    try:
      found = await inbox.get()
    finally:
      self.worker.cancel(ticket)
    if isinstance(found, Exception):
      raise found
    labels = {k: rows[k] for k in self.task.labels_for_metrics if k in rows}
    return await loop.run_in_executor(self._reader, self._lines, data, found | labels)

  def _batch(self, instances: Sequence[Any]) -> tuple[Data, HostBatch]:
    data = self._read(instances)
    numbers = np.arange(data.size)
    return data, data.rows(numbers, numbers)

  def _lines(self, data: Data, rows: HostBatch) -> list[dict[str, Any]]:
    return list(lines(data, self.task, iter([rows])))


class _Once(logging.Filter):
  """Logs each kind of message about instances once: requests may repeat it without end."""

  def __init__(self):
    super().__init__()
    self.seen: set[str] = set()

  def filter(self, record: logging.LogRecord) -> bool:
    """Whether a record is logged."""
    if not (record.threadName or '').startswith(THREAD):
      return True
    is_new = record.msg not in self.seen
    self.seen.add(str(record.msg))
    return is_new


def _invalid(error: InputError) -> ApiError:
  text = str(error)[:MAX_MESSAGE]
  where = text[: text.find(']') + 1] if text.startswith('instances[') else 'instances'
  return ApiError(400, text, param=where, code='invalid_instance')
