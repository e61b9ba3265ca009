"""Multi-layer perceptron."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Facts
from bmx.models.convolution import BatchNorm
from bmx.models.layers import (
  Dtype,
  Einsum,
  Norm,
  activation,
  check_rate,
  check_sizes,
)
from bmx.parallel import constrain


class MLP(nn.Module):
  """Dense layers of `widths`, then one of `num_outputs`; an input of any shape is flattened first.

  Attributes:
    num_outputs: classes, or 1 for a binary task or a regression.
    widths: units of each hidden layer.
    activations: one name for all hidden layers, or one for each.
    dropout: share of hidden units that training drops.
    norm: '', 'batch' or 'layer', before each activation.
    initializer: 'he' (normal, variance 2 / fan in; He et al. 2015), 'lecun', or 'torch' (PyTorch's
      default: kernel and bias uniform in ±1/√fan in).
    dtype: of the computation.
  """

  num_outputs: int
  widths: tuple[int, ...] = (256,)
  activations: tuple[str, ...] = ('relu',)
  dropout: float = 0.0
  norm: str = ''
  initializer: str = 'he'
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    return Facts(
      num_outputs=self.num_outputs, coupling='statistics' if self.norm == 'batch' else 'none'
    )

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps inputs [B, ...] to [B, num_outputs]."""
    if len(self.activations) not in (1, len(self.widths)):
      raise InputError(f'{len(self.activations)} activations for {len(self.widths)} hidden layers')
    check_sizes(num_outputs=(self.num_outputs,), widths=self.widths)
    check_rate(self.dropout)
    x = inputs.reshape(inputs.shape[0], -1).astype(self.dtype)
    # Kernels are column- and row-parallel in turn (Shoeybi et al. 2019, section 3).
    name, other = 'embed', 'mlp'
    for i, width in enumerate(self.widths):
      x = self._dense(width, (name, other), f'dense_{i}')(x)
      x = self._norm(x, f'norm_{i}', train)
      x = activation(self.activations[i % len(self.activations)])(x)
      x = constrain(x, 'batch', other if other == 'mlp' else 'act_embed')
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
      name, other = other, name
    return self._dense(self.num_outputs, (name, 'classes'), 'head')(x)

  def _dense(self, width: int, axes: tuple[str, str], name: str):
    if self.initializer not in _INITS:
      raise InputError(
        f'initializer {self.initializer!r} is unknown{did_you_mean(self.initializer, _INITS)}'
      )
    kernel, bias = _INITS[self.initializer]

    def dense(x):
      shape = (x.shape[-1], width)
      bias_init = bias(shape[0]) if bias else nn.initializers.zeros_init()
      layer = Einsum('bd,df->bf', shape, axes, True, kernel, bias_init, self.dtype, name=name)
      return layer(x)

    return dense

  def _norm(self, x: jax.Array, name: str, train: bool) -> jax.Array:
    if self.norm == 'batch':
      return BatchNorm(dtype=self.dtype, name=name)(x, train=train)
    if self.norm == 'layer':
      return Norm(dtype=self.dtype, name=name)(x)
    if self.norm:
      raise InputError(f"norm={self.norm!r}: expected '', 'batch' or 'layer'")
    return x


def _torch_bias(fan_in: int) -> nn.initializers.Initializer:
  bound = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


# name -> (initializer of the kernel, fan in -> initializer of the bias)
_INITS = {
  'he': (nn.initializers.he_normal(), None),
  'lecun': (nn.initializers.lecun_normal(), None),
  'torch': (nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'), _torch_bias),
}
