"""What every task over one linen model shares."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.metrics import Metrics
from bmx.core.types import Array, Batch, Variables


@dataclasses.dataclass(frozen=True)
class ModelTask:
  """A model, and the key of the batch it reads.

  A task over one model says what its inputs are (`inputs`), how far they are off (`measure`) and
  what it tells of an example (`outputs`).
  """

  model: nn.Module

  @property
  def separable(self) -> bool:
    return not getattr(self.model, 'batch_dependent', False)

  @property
  def padded_parameters(self) -> int:
    return getattr(self.model, 'padded_parameters', 0)

  def init(self, key: Array, batch: Batch) -> Variables:
    variables = dict(self.model.init(key, *self.inputs(batch), train=False))
    variables.pop('aux', None)  # what modules tell of one call is no state
    return variables

  def loss(
    self, params: Variables, collections: Variables, batch: Batch, key: Array, *, train: bool
  ) -> tuple[Array, tuple[Metrics, Variables]]:
    variables = {'params': params, **collections}
    out, new = self.model.apply(
      variables,
      *self.inputs(batch),
      train=train,
      rngs={'dropout': key},
      mutable=['aux', *(collections if train else [])],
      method=self.method,
    )
    new, told = dict(new), _told(new)
    new.pop('aux', None)
    metrics = self.measure(out, batch)
    total, count = metrics['loss']
    for name, weight in getattr(self.model, 'aux_losses', {}).items():
      total += weight * told[name] * count
    # What the model tells of itself counts as often as what it is trained on.
    metrics |= {k: jnp.stack([v * count, count]) for k, v in told.items()}
    return total, (metrics, new if train else collections)

  def predict(self, params: Variables, collections: Variables, batch: Batch) -> dict[str, Array]:
    out = self.model.apply({'params': params, **collections}, *self.inputs(batch), train=False)
    return self.outputs(out, batch)

  @property
  def method(self) -> str | None:
    """Of the model, whose output `measure` reads; None is `__call__`."""
    return None

  def view(self, params: Variables, collections: Variables) -> Variables:
    return params

  def check(self, info: Mapping[str, Any]) -> None:
    pass

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    raise NotImplementedError

  def measure(self, out: Any, batch: Batch) -> Metrics:
    raise NotImplementedError

  def outputs(self, out: Any, batch: Batch) -> dict[str, Array]:
    raise NotImplementedError


def _told(collections: Mapping[str, Any]) -> dict[str, Array]:
  """What modules have sown into 'aux', by its last name: float32 []."""
  leaves = jax.tree_util.tree_flatten_with_path(collections.get('aux', {}))[0]
  return {path[-2].key: value for path, value in leaves}


def find(batch: Mapping[str, Any], *names: str) -> Any:
  """The first of the keys that the batch has. Raises InputError where it has none."""
  for name in names:
    if name in batch:
      return batch[name]
  raise InputError(f'the task reads {" or ".join(names)}, but the data gives {sorted(batch)}')


def classes(model: nn.Module) -> int:
  """Outputs of a classifier, by its `outputs` attribute; 0 where it does not say."""
  return getattr(model, 'outputs', 0)


def counts(hits: jax.Array, weights: jax.Array) -> jax.Array:
  """(sum, count) of booleans."""
  return jnp.stack([jnp.where(hits, weights, 0).sum(), weights.sum()]).astype(jnp.float32)
