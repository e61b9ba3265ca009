"""Maps over images and tokens: Grad-CAM of convolutions, rollout of attention."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.types import Array, Batch, Task, Variables
from bmx.interpret.dense import is_dense
from bmx.interpret.patches import Patch, Place, forward, places
from bmx.interpret.subject import Subject
from bmx.models.attention import WEIGHTS
from bmx.models.stack import ONE, STACKED


def convolution_paths(known: Mapping[str, Place]) -> list[str]:
  """Returns the modules whose outputs are maps of more than one pixel, in the order of calls."""
  is_map = lambda shape: len(shape) == 4 and shape[1] > 1 and shape[2] > 1
  return [path for path, place in known.items() if path and is_map(place.output.shape)]


def grad_cam(subject: Subject, path: str = '') -> Array:
  """Returns where the channels of a layer that raise the score are active: float32 [B, I', J'].

  The weight of a channel is the mean of the score's gradient over its pixels; negative sums are
  0. Source: Selvaraju et al. 2017.

  Args:
    subject: a network of convolutions.
    path: of the layer; '' is the last one whose outputs are maps, of a task of single outputs.

  Raises:
    InputError: the model has no layer of maps; the layer's outputs are not maps; none is named, of
      a task of masks or boxes.
  """
  known = places(subject.task, subject.variables, subject.batch)
  maps = convolution_paths(known)
  if not maps:
    raise InputError('gradcam: expected a network of convolutions; method=saliency reads any model')
  if not path and is_dense(subject.task):
    raise InputError(
      'gradcam: expected the path of a layer, as the last one of a model of masks or boxes is its '
      f'outputs; set --layer to one of {", ".join(maps)}'
    )
  path = path or maps[-1]
  if path not in maps:
    raise InputError(f'layer={path!r}: expected one of {", ".join(maps)}')
  out = forward(subject.task, subject.variables, subject.batch, capture=(path,))
  active = out.captured[path].astype(jnp.float32)
  zero = jnp.zeros_like(active)
  slope = jax.grad(lambda added: subject.score({path: Patch(added=added)}).sum())(zero)
  weights = slope.mean((1, 2), keepdims=True)
  return jax.nn.relu((weights * active).sum(-1))


def resized(values: Array, shape: tuple[int, int]) -> Array:
  """Resizes maps [B, I', J'] to [B, *shape], linearly."""
  return jax.image.resize(values, (len(values), *shape), 'linear')


def attention_weights(task: Task, variables: Variables, batch: Batch) -> Array:
  """Returns the attention of every layer, float32 [L, B, N, T, T], in the order of the layers.

  Row t of a matrix has the weights of the keys that query t attends to.

  Raises InputError if the model has no layers of attention.
  """
  found = forward(task, variables, batch, collect=(WEIGHTS,)).captured
  layers: dict[tuple[str, int], Array] = {}
  for name, value in found.items():
    path = name.removeprefix(f'{WEIGHTS}/')
    if f'/{STACKED}' in f'/{path}':
      layers |= {(path, i): x for i, x in enumerate(value)}
    else:
      number = next((p.removeprefix(ONE) for p in path.split('/') if p.startswith(ONE)), '0')
      layers[path.split(ONE)[0], int(number)] = value
  if not layers:
    raise InputError('rollout: expected a transformer; method=saliency reads any model')
  return jnp.stack([layers[at] for at in sorted(layers)])


def rollout(weights: Array) -> Array:
  """Multiplies attention through the layers: float32 [B, T, T], rows sum to 1.

  Each layer is the mean over heads, half of it replaced by the identity for the residual stream.
  Row t says how much each input token reaches position t. Source: Abnar & Zuidema 2020.

  Args:
    weights: float [L, B, N, T, T].
  """
  mean = weights.mean(2)
  mixed = (mean + jnp.eye(mean.shape[-1])[None, None]) / 2
  mixed /= mixed.sum(-1, keepdims=True)
  total = mixed[0]
  for layer in mixed[1:]:
    total = layer @ total
  return total
