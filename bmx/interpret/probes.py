"""What a layer knows: linear probes of its outputs, and the logit lens."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from bmx.core.errors import InputError
from bmx.core.types import Array, Batch, Task, Variables
from bmx.interpret.patches import Patch, Place, forward, places
from bmx.interpret.subject import outputs
from bmx.models.convolution import Conv
from bmx.models.layers import Einsum
from bmx.models.stack import ONE

MAX_LAYERS = 64
LAYERS = (Conv, Einsum, nn.Conv, nn.Dense)


class Probe(NamedTuple):
  """A linear classifier of the outputs of a layer.

  Attributes:
    weights: float64 [D + 1, C], of standardized features; the last row is the bias.
    mean: float64 [D], of the features.
    std: float64 [D].
  """

  weights: np.ndarray
  mean: np.ndarray
  std: np.ndarray

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """Returns the class of each row, int [N]."""
    return (_with_one((features - self.mean) / self.std) @ self.weights).argmax(1)


def fit_probe(features: np.ndarray, label: np.ndarray, classes: int, decay: float = 1e-3) -> Probe:
  """Fits a multinomial logistic regression. Source: Alain & Bengio 2016.

  Args:
    features: float [N, D].
    label: int [N].
    classes: C.
    decay: half of it times the squared weights is added to the mean loss; the bias is free.

  Raises:
    InputError: labels of fewer than two classes.
  """
  if len(np.unique(label)) < 2:
    raise InputError('probe: expected labels of at least two classes')
  features = features.astype(np.float64)
  mean, std = features.mean(0), features.std(0)
  std = np.where(std > 1e-12, std, 1.0)
  x, one_hot = _with_one((features - mean) / std), np.eye(classes)[label]
  free = np.ones((x.shape[1], 1))
  free[-1] = 0

  def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
    weights = flat.reshape(x.shape[1], classes)
    logits = x @ weights
    log = logits - special.logsumexp(logits, 1, keepdims=True)
    slope = x.T @ (np.exp(log) - one_hot) / len(x) + decay * free * weights
    return -(log * one_hot).sum() / len(x) + decay / 2 * (free * weights**2).sum(), slope.ravel()

  start = np.zeros(x.shape[1] * classes)
  found = optimize.minimize(loss, start, jac=True, method='L-BFGS-B', options={'maxiter': 1000})
  return Probe(found.x.reshape(x.shape[1], classes), mean, std)


def _with_one(x: np.ndarray) -> np.ndarray:
  return np.concatenate([x, np.ones((len(x), 1))], 1)


def layers_of(known: dict[str, Place]) -> list[str]:
  """Returns the paths of a model's layers: blocks, else convolutions and dense layers.

  There are at most `MAX_LAYERS`. Raises InputError for a model without any.
  """
  blocks = blocks_of(known)
  others = [path for path, place in known.items() if path and issubclass(place.kind, LAYERS)]
  found = (blocks or others)[:MAX_LAYERS]
  if not found:
    raise InputError('probe: expected a model with blocks, convolutions or dense layers')
  return found


def blocks_of(known: dict[str, Place]) -> list[str]:
  """Returns the paths of the blocks of a transformer, in order."""
  return [path for path in known if path.split('/')[-1].startswith(ONE)]


def layer_features(task: Task, variables: Variables, batch: Batch, paths: list[str]) -> list[Array]:
  """Returns the features of each example in each layer, float32 [B, D].

  Positions of a sequence (without padding) and pixels are averaged.

  Args:
    task: over the model.
    variables: of the model.
    batch: of examples.
    paths: of the layers.
  """
  out = forward(task, variables, batch, capture=paths)
  return [_pooled(out.captured[path].astype(jnp.float32), batch) for path in paths]


def _pooled(x: Array, batch: Batch) -> Array:
  if x.ndim == 3 and 'segment_ids' in batch and x.shape[:2] == batch['segment_ids'].shape:
    real = (batch['segment_ids'] > 0)[..., None]
    return (x * real).sum(1) / jnp.maximum(real.sum(1), 1)
  return x.reshape(len(x), -1, x.shape[-1]).mean(1)


def logit_lens(task: Task, variables: Variables, batch: Batch) -> Array:
  """Returns the outputs of the model's head for each block: float32 [L, B, K], see `outputs`.

  The head reads the output of block i in place of that of the last one, whose row of the result is
  the model's own output. Source: nostalgebraist 2020.

  Args:
    task: over a transformer.
    variables: of the model.
    batch: of examples.

  Raises:
    InputError: a model without blocks.
  """
  known = places(task, variables, batch)
  blocks = blocks_of(known)
  if not blocks:
    raise InputError(f'lens: expected a transformer, not {type(task.model).__name__}')
  states = forward(task, variables, batch, capture=blocks).captured

  def read(state: Array) -> Array:
    out = forward(task, variables, batch, patches={blocks[-1]: Patch(state)})
    return outputs(task, out.value, batch)

  return jax.lax.map(read, jnp.stack([states[path] for path in blocks]))
