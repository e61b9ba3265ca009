"""Predictions of rows of any number, by programs of a few batch sizes; batches of many requests."""

import queue
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bmx.core import tree
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.types import HostBatch, Task, Variables
from bmx.parallel import Layout, jit
from bmx.serve.worker import DeviceThread, Exchange, Served, Sink, check_weights
from bmx.train.evaluate import eval_noise, join


class Predictor:
  """Predictions of a task, with weights that can be exchanged between two calls.

  All programs are compiled at the start: of each power of two of rows below `largest`, and of
  `largest`. A batch is padded to the next of them with its last row.

  Args:
    task: makes the predictions.
    layout: mesh and rules.
    variables: of the model, on the devices; an argument of the programs.
    spec: arrays of one example that the task reads.
    largest: rows of a batch.

  Raises:
    InputError: `largest` is not a multiple of the parts that the mesh splits a batch into.
  """

  def __init__(
    self, task: Task, layout: Layout, variables: Variables, spec: Mapping[str, Spec], largest: int
  ):
    self.largest, self.spec, self.variables = largest, dict(spec), variables
    parts = _parts(layout)
    if largest < 1 or largest % parts:
      raise InputError(f'serve.batch={largest}: expected a multiple of {parts}, the parts that the '
                       'mesh splits a batch into')  # fmt: skip
    everywhere = NamedSharding(layout.mesh, PartitionSpec())
    predict = jit(lambda variables, batch: task.predict(variables, batch, eval_noise()), layout,
                  out_shardings=everywhere)  # fmt: skip
    self._placed: dict[int, dict[str, NamedSharding]] = {}
    self._programs: dict[int, Any] = {}
    for size in _sizes(parts, largest):
      placed = self._placed[size] = layout.batch(self.spec, size)
      batch = {k: jax.ShapeDtypeStruct((size, *s.shape), s.dtype, sharding=placed[k])
               for k, s in self.spec.items()}  # fmt: skip
      self._programs[size] = predict.lower(variables, batch).compile()

  @property
  def sizes(self) -> tuple[int, ...]:
    """Rows of the batches that programs exist for."""
    return tuple(self._programs)

  def __call__(self, rows: HostBatch) -> HostBatch:
    """Predicts n rows, all with the same weights, in batches of `largest`."""
    variables, n = self.variables, len(rows['weights'])  # one read: a swap meanwhile counts later
    starts = range(0, n, self.largest)
    found = [self._batch(variables, rows, i, min(n - i, self.largest)) for i in starts]
    return join([{k: tree.fetch(v)[:count] for k, v in out.items()} for out, count in found])

  def _batch(
    self, variables: Variables, rows: HostBatch, start: int, count: int
  ) -> tuple[dict[str, Any], int]:
    """Starts the program of `count` rows; returns its outputs, padded, and `count`."""
    size = next(s for s in self.sizes if s >= count)
    indices = start + np.minimum(np.arange(size), count - 1)
    batch = {k: np.asarray(rows[k][indices], s.dtype) for k, s in self.spec.items()}
    return self._programs[size](variables, jax.device_put(batch, self._placed[size])), count

  def swap(self, variables: Variables) -> None:
    """Exchanges the weights between two calls, in their thread; nothing is compiled.

    Raises InputError if the arrays differ in name, shape or type from those of the program.
    """
    check_weights(variables, tree.signature(self.variables))
    served, self.variables = Served(self.variables), {}
    self.variables = served.replaced(variables)


class Batcher(DeviceThread):
  """Predicts the rows of many requests at once; a sink gets the predictions of its request.

  Args:
    predictor: compiled.
    window: seconds that the first request of a batch waits for others.
    max_waiting: requests that may wait or run; more are refused.
    on_batch: called with the number of rows of each batch.
    on_death: see `DeviceThread`.
  """

  def __init__(
    self,
    predictor: Predictor,
    window: float,
    max_waiting: int,
    on_batch: Callable[[int], None] = lambda rows: None,
    on_death: Callable[[BaseException], None] = lambda error: None,
  ):
    super().__init__(max_waiting, on_death, tree.signature(predictor.variables))
    self.predictor, self.window, self.on_batch = predictor, window, on_batch
    self._next: Exchange | None = None  # weights that wait for the batch under way

  def turns(self) -> None:
    """Collects and predicts until the server drains; exchanges weights between two batches."""
    while not (self.closing and self.inbox.empty()):
      taken = self._collect()
      if taken:
        self._predict(taken)
      if self._next is not None:
        self.predictor.swap(self._next.variables)
        self._next.done.set_result(None)
        self._next = None

  def _collect(self) -> dict[int, HostBatch]:
    """Returns rows by ticket: of the first request, and of those that follow in the window.

    Only a request opens the window. {} if other weights wait, or the server drains.
    """
    taken: dict[int, HostBatch] = {}
    deadline = 0.0
    while self._next is None and sum(map(_size, taken.values())) < self.predictor.largest:
      timeout = max(0.0, deadline - time.monotonic()) if taken else None
      try:
        kind, ticket, given = self.inbox.get(timeout=0.0 if self.closing else timeout)
      except queue.Empty:
        break
      if kind == 'swap':
        self._next = given
      if kind == 'cancel':
        taken.pop(ticket, None)
      if kind == 'submit' and ticket in self.sinks:
        deadline = deadline if taken else time.monotonic() + self.window
        taken[ticket] = given
    return taken

  def _predict(self, taken: Mapping[int, HostBatch]) -> None:
    sizes = [_size(rows) for rows in taken.values()]
    self.on_batch(sum(sizes))
    joined = join([{k: rows[k] for k in self.predictor.spec} for rows in taken.values()])
    out, start = self.predictor(joined), 0
    for ticket, size in zip(taken, sizes, strict=True):
      with self.lock:
        sink: Sink | None = self.sinks.pop(ticket, None)
      if sink is not None:
        sink({k: v[start : start + size] for k, v in out.items()})
      start += size


def _size(rows: HostBatch) -> int:
  return len(rows['weights'])


def _parts(layout: Layout) -> int:
  return int(np.prod([layout.mesh.shape[a] for a in layout.rules['batch']]))


def _sizes(parts: int, largest: int) -> list[int]:
  """Returns parts · (1, 2, 4, ...) below `largest`, and `largest`.

  >>> _sizes(1, 6), _sizes(2, 8)
  ([1, 2, 4, 6], [2, 4, 8])
  """
  found = []
  while parts < largest:
    found.append(parts)
    parts *= 2
  return [*found, largest]
