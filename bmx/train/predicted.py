"""Predictions as rows for people: what `bmx predict` writes and what a server answers."""

from collections.abc import Iterator
from typing import Any

from bmx.core.data import Data, Described, Presenting, Readable
from bmx.core.types import HostBatch, Task
from bmx.train.evaluate import join


def lines(data: Data, task: Task, parts: Iterator[HostBatch]) -> Iterator[dict[str, Any]]:
  """Yields a JSON object for each example.

  Examples that present whole splits do so (questions: the best answer over all windows; pairs: the
  nearest captions), unless the predictions of the task have names of their own.

  Args:
    data: the examples.
    task: made the predictions.
    parts: predictions of each batch, in order, with its labels for metrics.
  """
  if isinstance(data.examples, Presenting) and not isinstance(task, Readable):
    yield from data.examples.present(join(list(parts)))
    return
  done = 0
  for step, rows in enumerate(parts):
    found = task.readable(rows, data.metadata) if isinstance(task, Readable) else _plain(rows)
    described = _described(data, step, len(found))
    for n, (about, line) in enumerate(zip(described, found, strict=True), done + 1):
      yield {'row': n, **about, **line}
    done += len(found)


def _plain(rows: HostBatch) -> list[dict[str, Any]]:
  return [{k: v[i].tolist() for k, v in rows.items()} for i in range(len(rows['prediction']))]


def _described(data: Data, step: int, n: int) -> list[dict[str, Any]]:
  examples = data.examples
  if not isinstance(examples, Described):
    return [{}] * n
  return examples.describe(data.indices(step)[0, :n])
