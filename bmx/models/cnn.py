"""Convolutional network for small images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.models.convolution import BatchNorm, Conv, max_pool
from bmx.models.layers import Dtype, activation
from bmx.models.mlp import MLP
from bmx.parallel import constrain


class CNN(nn.Module):
  """Convolutions with 2×2 max pools, then an MLP.

  Attributes:
    num_outputs: classes, or 1 for a binary task.
    features: channels of each convolution, which optional batch norm, activation and pool follow.
    kernel_size: side of the square kernels, in pixels.
    widths: hidden layers of the MLP on the flattened last map.
    activation: gelu, gelu_exact, relu, silu, tanh or sigmoid.
    norm: '' or 'batch'.
    dropout: share of hidden units of the MLP that training drops.
    dtype: of the computation.
  """

  num_outputs: int
  features: tuple[int, ...] = (32,)
  kernel_size: int = 5
  widths: tuple[int, ...] = (128,)
  activation: str = 'relu'
  norm: str = ''
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    return Facts(
      num_outputs=self.num_outputs, coupling='statistics' if self.norm == 'batch' else 'none'
    )

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps images [B, I, J, C] to [B, num_outputs]."""
    if inputs.ndim != 4:
      raise InputError(f'CNN reads images [B, I, J, C], not an array of shape {inputs.shape}')
    if self.norm not in ('', 'batch'):
      raise InputError(f"norm={self.norm!r}: expected '' or 'batch'")
    x = inputs.astype(self.dtype)
    for i, features in enumerate(self.features):
      kernel_size = (self.kernel_size, self.kernel_size)
      # Batch norm subtracts the mean, and a bias with it.
      x = Conv(features, kernel_size, bias=not self.norm, dtype=self.dtype, name=f'conv_{i}')(x)
      if self.norm:
        x = BatchNorm(dtype=self.dtype, name=f'norm_{i}')(x, train=train)
      x = activation(self.activation)(x)
      x = constrain(max_pool(x), 'batch', None, None, 'mlp')
    # The flattened map is wide and its channels may be sharded: 'act_embed' gathers them first.
    x = constrain(x.reshape(x.shape[0], -1), 'batch', 'act_embed')
    head = MLP(self.num_outputs, self.widths, (self.activation,), self.dropout, dtype=self.dtype)
    return head(x, train=train)
