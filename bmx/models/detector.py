"""Anchor-free detector: for each point of a grid, the classes and the place of a box.

B batch, I rows, J columns, C channels, P points of all maps, K classes.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.models.convolution import Conv, GroupNorm, upsample
from bmx.models.layers import Dtype, Einsum, Init, Names, check_sizes
from bmx.parallel import constrain

AXES = (None, None, 'embed', 'mlp')  # of kernels whose inputs are features
PRIOR = 0.01  # probability of every class at the start: most points lie on the background


class Detections(NamedTuple):
  """The outputs of a detector at P points, see `points`.

  Attributes:
    logits: of each class, float [B, P, K].
    places: of the box: rows and columns from the point to its center, height, width, in pixels,
      [B, P, 4].
    quality: logit of the overlap of that box with the object, [B, P].
  """

  logits: jax.Array
  places: jax.Array
  quality: jax.Array


class Detector(nn.Module):
  """Convolutional stages, a feature pyramid, and heads that all maps share.

  Each stage halves rows and columns: the last has stride 2 ** len(features). From the coarsest to
  the finest, stages become maps of `width` channels, to which the coarser map is added (Lin et al.
  2017, feature pyramids). Each pixel of a map whose stride is in `strides` is a point (Tian et al.
  2019, FCOS).

  Attributes:
    num_outputs: classes, without the background.
    features: channels of each stage.
    blocks: residual convolutions of each stage.
    strides: of the maps that predict, ascending powers of 2, in pixels from a point to the next.
    width: channels of the maps and of the heads.
    depth: convolutions of each head.
    groups: of channels in a group norm, at most; their greatest common divisor with the channels
      counts.
    dtype: of the computation.
  """

  num_outputs: int
  features: tuple[int, ...] = (32, 64, 128)
  blocks: int = 1
  strides: tuple[int, ...] = (4,)
  width: int = 64
  depth: int = 2
  groups: int = 8
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    return Facts(num_outputs=self.num_outputs)

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False) -> Detections:
    """Maps images [B, I, J, C] to `Detections`.

    Raises InputError for sizes that do not fit each other.
    """
    self._check(image)
    heads = Heads(self.num_outputs, self.width, self.depth, self.groups, self.dtype, name='heads')
    maps = self._pyramid(self._stages(image))
    found = [heads(maps[stride], stride) for stride in self.strides]
    return Detections(*(jnp.concatenate(parts, 1) for parts in zip(*found, strict=True)))

  def _stages(self, image: jax.Array) -> dict[int, jax.Array]:
    """Returns the result of each stage by its stride."""
    x, result = image, {}
    for i, width in enumerate(self.features):
      x = self._layer(width, f'down_{i}', axes=AXES if i else (None, None, None, 'mlp'), step=2)(x)
      for j in range(self.blocks):
        x += self._layer(width, f'block_{i}_{j}')(x)
      result[2 ** (i + 1)] = x
    return result

  def _pyramid(self, stages: dict[int, jax.Array]) -> dict[int, jax.Array]:
    """Returns the maps of `strides`."""
    above: jax.Array | None = None
    result = {}
    for stride in sorted((s for s in stages if s >= self.strides[0]), reverse=True):
      conv = Conv(self.width, (1, 1), axes=AXES, dtype=self.dtype, name=f'lateral_{stride}')
      x = conv(stages[stride])
      if above is not None:
        x += upsample(above)[:, : x.shape[1], : x.shape[2]]
      above = x
      if stride in self.strides:
        result[stride] = self._layer(self.width, f'map_{stride}')(x)
    return result

  def _layer(self, width: int, name: str, axes: Names = AXES, step: int = 1) -> 'ConvNorm':
    return ConvNorm(width, self.groups, axes, step, self.dtype, name=name)

  def _check(self, image: jax.Array) -> None:
    check_sizes(num_outputs=(self.num_outputs,), features=self.features, width=(self.width,),
                groups=(self.groups,))  # fmt: skip
    known = [2 ** (i + 1) for i in range(len(self.features))]
    if not self.strides or list(self.strides) != [s for s in known if s in self.strides]:
      raise InputError(
        f'strides={self.strides}: expected some of {known} in ascending order, the strides of the '
        f'stages features={self.features}'
      )
    if image.ndim != 4:
      raise InputError(
        f'Detector: expected images [B, I, J, C], not an array of shape {image.shape}'
      )


class ConvNorm(nn.Module):
  """A 3×3 convolution, group norm and ReLU: [B, I, J, C] -> [B, I / step, J / step, features]."""

  features: int
  groups: int
  axes: Names = AXES
  step: int = 1
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    step = self.step, self.step
    x = Conv(self.features, strides=step, bias=False, axes=self.axes, dtype=self.dtype,
             name='conv')(x)  # fmt: skip
    x = GroupNorm(math.gcd(self.features, self.groups), dtype=self.dtype, name='norm')(x)
    return constrain(jax.nn.relu(x), 'batch', None, None, 'mlp')


class Heads(nn.Module):
  """Classes, and places of boxes, at each pixel of a map."""

  num_outputs: int
  width: int
  depth: int
  groups: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, stride: int) -> Detections:
    """Maps a map [B, I, J, C] to the outputs of its I·J points."""
    prior = nn.initializers.constant(-math.log((1 - PRIOR) / PRIOR))
    logits = self._head(x, 'classes', self.num_outputs, prior)
    place = self._head(x, 'place', 5, nn.initializers.zeros_init())
    sizes = jax.nn.softplus(place[..., 2:4])
    places = stride * jnp.concatenate([place[..., :2], sizes], -1)
    return Detections(logits, places, place[..., 4])

  def _head(self, x: jax.Array, name: str, outputs: int, bias_init: Init) -> jax.Array:
    for i in range(self.depth):
      x = ConvNorm(self.width, self.groups, dtype=self.dtype, name=f'{name}_{i}')(x)
    shape, init = (x.shape[-1], outputs), nn.initializers.normal(0.01)
    project = Einsum('bijc,ck->bijk', shape, ('embed', None), kernel_init=init,
                     bias_init=bias_init, dtype=self.dtype, name=name)  # fmt: skip
    return project(x).reshape(x.shape[0], -1, outputs).astype(jnp.float32)


class Points(NamedTuple):
  """The points of a detector on images of one size.

  Attributes:
    center: row and column of each point, in pixels, float32 [P, 2].
    stride: of the map of each point, in pixels, float32 [P].
    least: the longer side of the objects of each point is above it, in pixels, float32 [P].
    most: upper bound of the same, included.
  """

  center: np.ndarray
  stride: np.ndarray
  least: np.ndarray
  most: np.ndarray


def points(size: tuple[int, int], strides: tuple[int, ...]) -> Points:
  """Returns the points of a detector, in the order of its outputs.

  Objects belong to the finest map whose stride is at least an eighth of their longer side; those
  that are larger belong to the last.

  Args:
    size: height and width of the images, in pixels.
    strides: of the maps, ascending.
  """
  parts = []
  for i, s in enumerate(strides):
    rows, columns = (-(-side // s) for side in size)
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing='ij'), -1)
    center = (grid.reshape(-1, 2).astype(np.float32) + 0.5) * s
    least = 8.0 * strides[i - 1] if i else 0.0
    most = 8.0 * s if i < len(strides) - 1 else np.inf
    parts.append((center, *(np.full(len(center), v, np.float32) for v in (s, least, most))))
  return Points(*(np.concatenate(part) for part in zip(*parts, strict=True)))
