"""Outputs that have a place: tags of tokens, classes of pixels, boxes of points.

B batch, T tokens, I rows, J columns, P points of a detector, K classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.types import Array, HostBatch, Task
from bmx.tasks.common import innermost
from bmx.tasks.detection import Detection
from bmx.tasks.encoder import TokenClassification
from bmx.tasks.segmentation import Segmentation

DENSE = TokenClassification, Segmentation, Detection


def is_dense(task: Task) -> bool:
  """Returns whether the outputs of a task have a place."""
  return isinstance(innermost(task), DENSE)


def dense_outputs(task: Any, value: Any) -> Array:
  """Returns the outputs that can be explained, float32.

  They are logits of tags [B, T, K] and of pixels [B, I, J, K]; of a detector the logarithm of the
  score of each box and class [B, P, K].

  Args:
    task: the innermost one.
    value: outputs of 'logits'.
  """
  if isinstance(task, Detection):
    quality = jax.nn.log_sigmoid(value.quality.astype(jnp.float32))[..., None]
    return (jax.nn.log_sigmoid(value.logits.astype(jnp.float32)) + quality) / 2
  return value.astype(jnp.float32)


def chosen_class(task: Task, outputs: np.ndarray, rows: HostBatch, ground: int) -> np.ndarray:
  """Returns the class of each example that is explained by default, int [B].

  It is that of the best box, the class of most pixels, the tag of the surest token: of a class
  other than `ground`, unless the model finds no other.

  Args:
    task: over the model.
    outputs: see `dense_outputs`.
    rows: of the examples.
    ground: class of pixels or tokens without an object, -1 without one.
  """
  inner = innermost(task)
  if isinstance(inner, Detection):
    return outputs.max(1).argmax(-1)
  best = outputs.argmax(-1).reshape(len(outputs), -1)
  if isinstance(inner, Segmentation):
    counts = np.stack([np.bincount(row, minlength=outputs.shape[-1]) for row in best])
  else:
    sure = _probability(outputs).max(-1)
    counts = np.zeros((len(best), outputs.shape[-1]))
    for i, real in enumerate(_real(rows)):
      np.maximum.at(counts[i], best[i][real], sure[i][real])
  if ground >= 0:
    others = counts.copy()
    others[:, ground] = 0
    counts = np.where(others.any(1, keepdims=True), others, counts)
  return counts.argmax(1)


def weights_of(task: Task, outputs: np.ndarray, rows: HostBatch, classes: np.ndarray) -> np.ndarray:
  """Returns by how much each output counts in the explained score, float32 like the outputs.

  The score is the output of a class at one place: its best box, or the token that is surest to
  have the tag; of pixels its mean over those that are predicted to be of the class, over all where
  none is (Vinogradova et al. 2020). The place is that of the example as it is: where a method
  changes the input, the same place counts.

  Args:
    task: over the model.
    outputs: see `dense_outputs`, float [B, ..., K].
    rows: of the examples.
    classes: int [B].
  """
  found = np.zeros(outputs.shape, np.float32)
  for i, k in enumerate(classes):
    if isinstance(innermost(task), Segmentation):
      there = outputs[i].argmax(-1) == k
      there = there if there.any() else np.ones_like(there)
      found[i, ..., k] = there / there.sum()
      continue
    scores = outputs[i, :, k]
    if isinstance(innermost(task), TokenClassification):
      scores = np.where(_real(rows)[i], _probability(outputs[i])[:, k], -1)
    found[i, scores.argmax(), k] = 1
  return found


def place_of(weights: np.ndarray) -> tuple[int, int]:
  """Returns the place and the class of one example's explained output, of `weights_of` [..., K]."""
  at = int(weights.reshape(-1, weights.shape[-1]).max(-1).argmax())
  return at, int(weights.reshape(-1, weights.shape[-1]).max(0).argmax())


def _real(rows: HostBatch) -> np.ndarray:
  """Tokens that have a tag, bool [B, T]: those that begin a word; without labels all."""
  real = rows['weights'] > 0
  whole = rows['segment_ids'] > 0 if 'segment_ids' in rows else np.ones_like(real)
  return np.where(real.any(1, keepdims=True), real, whole)


def _probability(outputs: np.ndarray) -> np.ndarray:
  found = np.exp(outputs - outputs.max(-1, keepdims=True))
  return found / found.sum(-1, keepdims=True)
