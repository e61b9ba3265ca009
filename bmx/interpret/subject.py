"""What attributions explain: one output of a model for each example, as a function of an input."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Array, Batch, Task, Variables
from bmx.interpret import fields
from bmx.interpret.dense import dense_outputs, is_dense
from bmx.interpret.patches import Patch, Place, forward, places
from bmx.models.layers import Embed
from bmx.tasks.classification import BinaryClassification, Classification
from bmx.tasks.common import innermost
from bmx.tasks.language import CausalLM
from bmx.tasks.regression import Regression

Score = Callable[[Array], Array]  # input [B, ...] -> float32 [B]
KEYS = ('image', 'ids', 'x', 'tokens')  # of a batch, what attributions are of; ids stand for x too


def input_key(batch: Mapping[str, Any]) -> str:
  """Returns the key of the input that attributions are of.

  Raises InputError if the batch has none of `KEYS`.
  """
  found = next((key for key in KEYS if key in batch), None)
  if found is None:
    raise InputError(f'explain: expected examples with {", ".join(KEYS)}, not {sorted(batch)}')
  return found


def check_task(task: Task) -> None:
  """Raises InputError if a task has no single outputs to explain."""
  inner = innermost(task)
  single = isinstance(inner, Classification | BinaryClassification | Regression | CausalLM)
  if not single and not is_dense(inner):
    raise InputError(
      'explain: expected a task of classification, clicks, regression, next tokens, tags, masks or '
      f'boxes, not {type(inner).__name__}; bmx predict writes what a run of it predicts'
    )


def outputs(task: Task, value: Any, batch: Batch) -> Array:
  """Returns the outputs that can be explained: float32 [B, K]; with a place [B, ..., K].

  They are logits of classes; of a binary task those against and for class 1; standardized numbers
  of a regression; of a language model the logits of the token that follows each text; those of
  tags, masks and boxes have a place, see `dense.dense_outputs`.

  Args:
    task: that made `value`.
    value: outputs of 'logits'.
    batch: of the examples.
  """
  inner = innermost(task)
  if is_dense(inner):
    return dense_outputs(inner, value)
  if isinstance(inner, BinaryClassification):
    return jnp.concatenate([-value[:, :1], value[:, :1]], 1).astype(jnp.float32)
  if isinstance(inner, CausalLM):
    rows = jnp.arange(len(value))
    return value[rows, last_positions(batch)].astype(jnp.float32)
  return value.astype(jnp.float32)


def last_positions(batch: Batch) -> Array:
  """Returns the position of the last token of each text, int [B]; padding is segment 0."""
  tokens = batch['tokens']
  if 'segment_ids' not in batch:
    return jnp.full(len(tokens), tokens.shape[1] - 1)
  real = batch['segment_ids'] > 0
  return jnp.where(real, jnp.arange(tokens.shape[1])[None], 0).max(1)


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model and examples.

  Attributes:
    task: over the model.
    variables: of the model.
    batch: of examples.
    target: int [B], the output of each example that is explained, None: the largest one; or float
      like the outputs, by how much each counts (`dense.weights_of`).
  """

  task: Task
  variables: Variables
  batch: Batch
  target: Array | None = None

  def outputs(
    self,
    patches: Mapping[str, Patch] | None = None,
    arrays: Mapping[str, Array] | None = None,
  ) -> Array:
    """Returns the outputs, float32 [B, K] or [B, ..., K].

    Args:
      patches: see `patches.forward`.
      arrays: replace those of the batch.
    """
    batch = {**self.batch, **(arrays or {})}
    out = forward(self.task, self.variables, batch, patches=patches)
    return outputs(self.task, out.value, batch)

  def score(
    self,
    patches: Mapping[str, Patch] | None = None,
    arrays: Mapping[str, Array] | None = None,
  ) -> Array:
    """Returns the explained output of each example, float32 [B]; see `outputs`."""
    found = self.outputs(patches, arrays)
    if self.target is not None and self.target.ndim > 1:
      return (found * self.target).sum(range(1, found.ndim))
    flat = found.reshape(len(found), -1)
    target = self.target
    if target is None:
      target = self.outputs().reshape(flat.shape).argmax(-1)
    return jnp.take_along_axis(flat, target[:, None], 1)[:, 0]

  def input(self) -> tuple[Score, Array]:
    """Returns (score, x): the explained outputs as a function of the input, and the input.

    The input is `image` or `x`; of a click model all its columns, int32 [B, N + F], see
    `fields.pack`; of tokens their embeddings [B, T, D]: those of the token table, before positions
    are added.

    Raises:
      InputError: the batch has no such input; tokens are not read by one table.
    """
    key = input_key(self.batch)
    if key == 'ids':
      x, ids = self.batch['x'], self.batch['ids']
      of = lambda packed: self.score(arrays=fields.unpack(packed, x.shape[1]))
      return of, fields.pack(x, ids)
    if key != 'tokens':
      return lambda x: self.score(arrays={key: x}), jnp.asarray(self.batch[key], jnp.float32)
    path = embedding_path(places(self.task, self.variables, self.batch))
    out = forward(self.task, self.variables, self.batch, capture=(path,))
    return lambda x: self.score({path: Patch(x)}), out.captured[path]


def embedding_path(known: Mapping[str, Place]) -> str:
  """Returns the path of the table of tokens. Raises InputError if there is not exactly one."""
  found = [path for path, place in known.items() if issubclass(place.kind, Embed)]
  if len(found) != 1:
    raise InputError(
      f'explain: expected one bmx.models.layers:Embed that reads the tokens, found {found}'
    )
  return found[0]


def class_number(name: str, names: tuple[str, ...], count: int) -> int:
  """Returns the number of the output that `target` names: a class, or its number.

  Raises InputError if the model lacks it.
  """
  if name in names:
    return names.index(name)
  if name.isdecimal() and int(name) < count:
    return int(name)
  known = names or tuple(map(str, np.arange(count)[:20]))
  raise InputError(f'explain.target={name!r}: expected an output of the model'
                   f'{did_you_mean(name, known)}')  # fmt: skip
