"""Columns of examples and of their predictions: the samples that drift and slices compare."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.data import Data, Stateful
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch, Noise, Task, Variables
from bmx.data.arrays import ArrayData
from bmx.data.batches import Batches
from bmx.data.encoder import TabularEncoder
from bmx.feedback.drift import Column
from bmx.models import bert
from bmx.tasks.common import Wrapper

HIDDEN = 'hidden'  # key of the predictions of `WithHidden`
BUCKETS = 256  # of hashed counts
HASH = 2654435761  # Knuth, The Art of Computer Programming, volume 3, section 6.4
UNKNOWN, MISSING = '(unknown)', '(missing)'


@dataclasses.dataclass(frozen=True)
class WithHidden(Wrapper):
  """A task over an encoder whose predictions hold its hidden states, averaged over the tokens."""

  def predict(self, variables: Variables, batch: Batch, noise: Noise) -> dict[str, Any]:
    out, _ = self.forward(
      variables, batch, noise, train=False, method='logits', capture=('^encoder$',)
    )
    states, real = out.captured['encoder'], (batch['segment_ids'] > 0)[..., None]
    mean = (states * real).sum(1) / real.sum(1)
    return {**self.postprocess(out.value, batch), HIDDEN: mean}


def with_hidden(task: Task) -> tuple[Task, str]:
  """Returns the task whose predictions are compared, and the embedding of its texts, for people."""
  if isinstance(task.model, bert.HEADED):
    return WithHidden(task), "hidden states of the model's encoder, averaged over the tokens"
  return task, f'counts of token ids, hashed into {BUCKETS} buckets'


def sample(data: Data, most: int, seed: int = 0) -> Batches:
  """Returns at most `most` examples of a split, drawn without replacement, in their order."""
  count = min(data.size, most)
  random = streams.generator(seed, streams.DRIFT, 1)
  positions = np.sort(random.choice(data.size, count, replace=False))
  steps, places = np.divmod(positions, data.batch_size)
  order = {int(s): data.indices(int(s))[0] for s in np.unique(steps)}
  indices = np.array([order[int(s)][p] for s, p in zip(steps, places, strict=True)])
  names = {k: s.names for k, s in data.spec.items()}
  inner = ArrayData(data.rows(indices, positions), data.metadata, train=False, names=names,
                    fitted=state_of(data))  # fmt: skip
  return Batches(inner, data.batch_size, seed, False)


def state_of(data: Data) -> dict[str, Any]:
  """Returns the fitted values of the examples; {} if nothing was fitted."""
  return data.examples.state() if isinstance(data.examples, Stateful) else {}


def inputs(data: Data, rows: HostBatch) -> list[Column]:
  """Returns the columns of examples that are held as arrays: of a table, or one embedding.

  Args:
    data: the examples, see `sample`.
    rows: their predictions, see `with_hidden`.

  Raises:
    InputError: examples of another kind.
  """
  arrays, state = data.rows(np.arange(data.size), np.arange(data.size)), state_of(data)
  if 'x' in arrays and 'encoder' in state:
    return table_columns(arrays['x'], TabularEncoder.restore(state['encoder']))
  if HIDDEN in rows:
    return [Column('text', 'vector', rows[HIDDEN].astype(np.float64))]
  if 'tokens' in arrays:
    real = arrays['segment_ids'] > 0 if 'segment_ids' in arrays else None
    return [Column('text', 'vector', hashed(arrays['tokens'], real))]
  if 'image' in arrays:
    return [Column('image', 'vector', arrays['image'].reshape(data.size, -1).astype(np.float64))]
  if 'x' in arrays and arrays['x'].ndim == 2:
    return [Column(f'x{i}', 'number', v) for i, v in enumerate(arrays['x'].T.astype(np.float64))]
  raise InputError(f'drift: expected examples with x, tokens or image, found {", ".join(arrays)}')


def table_columns(x: np.ndarray, encoder: TabularEncoder) -> list[Column]:
  """Returns the columns of an encoded table, each in its own unit.

  Args:
    x: float [N, encoded columns].
    encoder: that made it; a missing number is the mean of the training data.
  """
  found, at = [], 0
  for moments in (encoder.numeric, encoder.dates):
    for name, (mean, std) in moments.items():
      found.append(Column(name, 'number', np.round(mean + std * x[:, at].astype(np.float64), 6)))
      at += 1
  for name, known in encoder.categories.items():
    hot = x[:, at : at + len(known)]
    texts = np.array([*(k or MISSING for k in known), UNKNOWN])
    where = np.where(hot.any(1), hot.argmax(1) if len(known) else 0, len(known))
    found.append(Column(name, 'category', texts[where]))
    at += len(known)
  return found


def hashed(tokens: np.ndarray, real: np.ndarray | None) -> np.ndarray:
  """Returns the root of the share of each bucket of hashed ids, float [N, BUCKETS].

  Args:
    tokens: int [N, T].
    real: bool [N, T], False for padding; None: all are real.
  """
  bucket = ((tokens.astype(np.uint64) * HASH) >> np.uint64(16)) % BUCKETS
  weights = np.ones(tokens.shape) if real is None else real.astype(np.float64)
  found = np.zeros((len(tokens), BUCKETS))
  np.add.at(found, (np.arange(len(tokens))[:, None], bucket.astype(np.int64)), weights)
  return np.sqrt(found / np.maximum(found.sum(1, keepdims=True), 1))


def outputs(rows: HostBatch, metadata: Mapping[str, Any]) -> list[Column]:
  """Returns the columns of predictions: class and confidence, or numbers; [] of other tasks.

  Args:
    rows: predictions of all examples.
    metadata: of the data: `class_names`.
  """
  prediction = rows.get('prediction')
  if prediction is None or prediction.ndim > 2:
    return []
  if np.issubdtype(prediction.dtype, np.floating):
    many = prediction.reshape(len(prediction), -1).astype(np.float64).T
    name = lambda i: f'prediction {i}' if len(many) > 1 else 'prediction'
    return [Column(name(i), 'number', values) for i, values in enumerate(many)]
  if prediction.ndim > 1:
    return []
  names = metadata.get('class_names') or range(int(prediction.max()) + 1)
  texts = np.array([str(name) for name in names])[prediction]
  found = [Column('prediction', 'category', texts)]
  if 'score' in rows:
    found.append(Column('score', 'number', rows['score'].astype(np.float64)))
  elif 'probability' in rows:
    found.append(Column('confidence', 'number', rows['probability'].max(-1).astype(np.float64)))
  return found
