"""Residual networks for images.

B batch, I rows, J columns, C channels.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.models.convolution import (
  ONES,
  ZEROS,
  BatchNorm,
  Conv,
  GroupNorm,
  max_pool,
  torch_padding,
)
from bmx.models.layers import Dtype, Einsum, Names, check_sizes
from bmx.parallel import constrain

EXPANSION = 4  # channels of a bottleneck block, over those of its 3×3 convolution
# depth -> (block, blocks of each stage), He et al. 2016, table 1
PUBLISHED: dict[int, tuple[str, tuple[int, ...]]] = {
  18: ('basic', (2, 2, 2, 2)),
  34: ('basic', (3, 4, 6, 3)),
  50: ('bottleneck', (3, 4, 6, 3)),
  101: ('bottleneck', (3, 4, 23, 3)),
  152: ('bottleneck', (3, 8, 36, 3)),
}
HE = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
STEM_AXES: Names = (None, None, None, 'mlp')  # no mesh axis divides three colors
AXES: Names = (None, None, 'embed', 'mlp')


@dataclasses.dataclass(frozen=True)
class NormConfig:
  """The norms of a ResNet.

  Attributes:
    kind: 'batch' or 'group'.
    groups: of group norms.
    momentum: of batch norms.
    eps: added to the variance.
    dtype: of the result.
  """

  kind: str = 'batch'
  groups: int = 32
  momentum: float = 0.9
  eps: float = 1e-5
  dtype: Dtype = jnp.float32

  def apply(self, x: jax.Array, train: bool, zero: bool = False) -> jax.Array:
    """Normalizes x; call it in a compact method. zero: whether the scale starts at 0."""
    init = ZEROS if zero else ONES
    if self.kind == 'batch':
      return BatchNorm(self.momentum, self.eps, init, self.dtype, name='norm')(x, train=train)
    # Another name: neither reads the weights of the other.
    return GroupNorm(self.groups, self.eps, init, self.dtype, name='group_norm')(x)


class ConvNorm(nn.Module):
  """A convolution without bias, and its norm: [B, I, J, C] -> [B, I', J', features].

  Attributes:
    features: channels of the result.
    size: side of the kernel, in pixels.
    stride: pixels from an output to the next.
    norm: of the result.
    zero: whether the scale of the norm starts at 0.
    axes: names of the kernel's dimensions.
  """

  features: int
  size: int
  stride: int
  norm: NormConfig
  zero: bool = False
  axes: Names = AXES

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    sizes, strides = (self.size, self.size), (self.stride, self.stride)
    conv = Conv(
      self.features, sizes, strides, torch_padding(self.size), bias=False, axes=self.axes,
      kernel_init=HE, dtype=self.norm.dtype, name='conv',
    )  # fmt: skip
    return self.norm.apply(conv(x), train, self.zero)


class ResidualBlock(nn.Module):
  """Adds convolutions of x to x, or to its 1×1 convolution where the shapes differ.

  Source: He et al. 2016; the stride of a bottleneck is that of its 3×3 convolution, as in PyTorch.

  Attributes:
    features: channels of the 3×3 convolutions.
    stride: of the first of them.
    bottleneck: whether 1×1 convolutions lead to it and to EXPANSION times its channels; else two
      3×3 convolutions follow each other.
    norm: of every convolution.
    zero_init: whether the scale of the last norm starts at 0, so that the block starts as x.
  """

  features: int
  stride: int
  bottleneck: bool
  norm: NormConfig
  zero_init: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    n, last = self.features, self.features * (EXPANSION if self.bottleneck else 1)
    layers = [(n, 3, self.stride), (n, 3, 1)]
    if self.bottleneck:
      layers = [(n, 1, 1), (n, 3, self.stride), (last, 1, 1)]
    y = x
    for i, (features, size, stride) in enumerate(layers):
      zero = self.zero_init and i == len(layers) - 1
      layer = ConvNorm(features, size, stride, self.norm, zero, name=f'layer_{i}')
      y = layer(jax.nn.relu(y) if i else y, train=train)
    if x.shape[-1] != last or self.stride != 1:
      x = ConvNorm(last, 1, self.stride, self.norm, name='shortcut')(x, train=train)
    return constrain(jax.nn.relu(x + y), 'batch', None, None, 'mlp')


class Stage(nn.Module):
  """A sequence of `blocks` residual blocks, of which the first one has the stride."""

  blocks: int
  features: int
  stride: int
  bottleneck: bool
  norm: NormConfig
  zero_init: bool

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for i in range(self.blocks):
      stride = 1 if i else self.stride
      block = ResidualBlock(
        self.features, stride, self.bottleneck, self.norm, self.zero_init, name=f'block_{i}'
      )
      x = block(x, train=train)
    return x


class ResNet(nn.Module):
  """A residual network: images [B, I, J, C] -> [B, num_outputs].

  Source: He et al. 2016, as torchvision and transformers compute it. `depth` has a published size;
  `stages`, `features` and `block` make others: stages=(1, 1, 1, 1) with features=32 is a small one.

  Attributes:
    num_outputs: classes, or 1 for a number.
    depth: 18, 34, 50, 101 or 152; without effect where `stages` is given.
    stages: blocks of each stage; () is that of `depth`.
    block: 'basic' or 'bottleneck'; '' is that of `depth`, or 'basic' with `stages`.
    features: channels of the 3×3 convolutions of the first stage; each further stage has twice as
      many, and half the rows and columns.
    stem: 'imagenet', a 7×7 convolution with stride 2 and a 3×3 max pool with stride 2; or 'small',
      a 3×3 convolution, for images of about 32 pixels.
    stem_features: channels of the stem; 0 is `features`.
    norm: 'batch' or 'group'.
    groups: of group norms.
    momentum: share of the running statistics that a step keeps; PyTorch's 0.1 is 0.9 here.
    eps: added to the variance in a norm.
    zero_init: whether the scale of each block's last norm starts at 0 (Goyal et al. 2017).
    dtype: of the computation.
  """

  num_outputs: int
  depth: int = 50
  stages: tuple[int, ...] = ()
  block: str = ''
  features: int = 64
  stem: str = 'imagenet'
  stem_features: int = 0
  norm: str = 'batch'
  groups: int = 32
  momentum: float = 0.9
  eps: float = 1e-5
  zero_init: bool = True
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    return Facts(
      num_outputs=self.num_outputs, coupling='statistics' if self.norm == 'batch' else 'none'
    )

  @property
  def sizes(self) -> tuple[str, tuple[int, ...]]:
    """Kind of block, and the blocks of each stage. Raises InputError for an unknown depth."""
    if not self.stages and self.depth not in PUBLISHED:
      known = ', '.join(map(str, PUBLISHED))
      raise InputError(f'depth={self.depth}: expected one of {known}; or set stages')
    block, stages = ('basic', self.stages) if self.stages else PUBLISHED[self.depth]
    return self.block or block, tuple(stages)

  def setup(self):
    block, stages = self.sizes
    for name, value, known in (
      ('block', block, ('basic', 'bottleneck')),
      ('stem', self.stem, ('imagenet', 'small')),
      ('norm', self.norm, ('batch', 'group')),
    ):
      if value not in known:
        raise InputError(f'{name}={value!r}: expected {" or ".join(map(repr, known))}')
    check_sizes(stages=stages, features=(self.features,))
    norm = NormConfig(self.norm, self.groups, self.momentum, self.eps, self.dtype)
    size, stride = (7, 2) if self.stem == 'imagenet' else (3, 1)
    first = self.stem_features or self.features
    self.first = ConvNorm(first, size, stride, norm, axes=STEM_AXES, name='stem')
    self.stage = [
      Stage(n, self.features * 2**i, 2 if i else 1, block == 'bottleneck', norm, self.zero_init)
      for i, n in enumerate(stages)
    ]
    width = self.features * 2 ** (len(stages) - 1) * (EXPANSION if block == 'bottleneck' else 1)
    normal = nn.initializers.normal(0.01)
    self.head = Einsum(
      'bd,dc->bc', (width, self.num_outputs), ('embed', 'classes'), kernel_init=normal,
      dtype=self.dtype,
    )  # fmt: skip

  def maps(self, inputs: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
    """Computes the result of every stage, for detectors: each [B, I', J', C'], halved each time.

    Args:
      inputs: images [B, I, J, C].
      train: whether batch norms use the statistics of the batch.
    """
    if inputs.ndim != 4:
      raise InputError(f'ResNet reads images [B, I, J, C], not an array of shape {inputs.shape}')
    x = jax.nn.relu(self.first(inputs.astype(self.dtype), train=train))
    x = max_pool(x, 3, 2, 1) if self.stem == 'imagenet' else x
    x = constrain(x, 'batch', None, None, 'mlp')
    found: list[Any] = []
    for stage in self.stage:
      x = stage(x, train=train)
      found.append(x)
    return tuple(found)

  def features_of(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
    """Computes the inputs of the head: the mean over pixels of the last map, [B, C']."""
    x = self.maps(inputs, train=train)[-1].astype(jnp.float32).mean((1, 2))
    return constrain(x, 'batch', 'act_embed')

  def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps images [B, I, J, C] to [B, num_outputs]."""
    return self.head(self.features_of(inputs, train=train))
