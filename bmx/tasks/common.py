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
    return self.model.init(key, *self.inputs(batch), train=False)

  def loss(
    self, params: Variables, collections: Variables, batch: Batch, key: Array, *, train: bool
  ) -> tuple[Array, tuple[Metrics, Variables]]:
    variables = {'params': params, **collections}
    out, new = self.model.apply(
      variables,
      *self.inputs(batch),
      train=train,
      rngs={'dropout': key},
      mutable=list(collections) if train else [],
    )
    metrics = self.measure(out, batch)
    return metrics['loss'][0], (metrics, new if train else collections)

  def predict(self, params: Variables, collections: Variables, batch: Batch) -> dict[str, Array]:
    out = self.model.apply({'params': params, **collections}, *self.inputs(batch), train=False)
    return self.outputs(out, batch)

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
