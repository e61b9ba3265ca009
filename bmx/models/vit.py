"""Vision transformers: images -> patches -> the language models' Stack -> outputs.

B batch, I rows, J columns, C channels, T tokens, D width.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.models.attention import Attention, AttentionConfig
from bmx.models.block import BlockConfig, FeedForward, MlpConfig
from bmx.models.layers import Dtype, Einsum, Norm, check_rate, check_sizes
from bmx.models.stack import Stack
from bmx.ops.resize import bicubic
from bmx.parallel import constrain, gather, named

NORMAL = nn.initializers.normal(0.02)
WORDS = {
  'pool': ('class', 'mean', 'attention'),
  'positions': ('learned', 'sincos'),
  'distillation': ('', 'token', 'head'),
}


class ViT(nn.Module):
  """A vision transformer: images [B, I, J, C] -> [B, num_outputs].

  Source: Dosovitskiy et al. 2021. Published sizes (width, depth, heads): Ti 192, 12, 3; S 384, 12,
  6; B 768, 12, 12, the default; L 1024, 24, 16. The vision tower of CLIP (Radford et al. 2021) has
  `pre_norm=True, patch_bias=False, head_bias=False, activation='quick_gelu', eps=1e-5`, and its
  outputs are the embedding; that of SigLIP (Zhai et al. 2023) has `pool='attention', project=False,
  activation='gelu'`.

  Attributes:
    num_outputs: classes, or the size of an embedding.
    image_size: rows and columns of the images.
    patch_size: rows and columns of a patch, a divisor of `image_size`.
    width: D, size of the hidden states.
    depth: number of blocks.
    heads: attention heads.
    mlp_dim: width of the feed-forward layers; 0 is 4 × width.
    pool: 'class', the state of a token before the patches; or, without it, 'mean' of the patches,
      or 'attention' of a learned query to them, see `AttentionPool`.
    positions: 'learned', a table; or 'sincos', fixed waves of row and column (Chen et al. 2021).
    distillation: '', or a second token after that of the class (Touvron et al. 2021): 'token'
      alone, or with a 'head' of its own, whose outputs are averaged with those of the other.
    pre_norm: whether a norm precedes the blocks.
    patch_bias: whether the projection of patches has one.
    qkv_bias: whether query, key and value have one.
    head_bias: whether the head has one.
    project: whether there is a head; without it the outputs are the pooled state, num_outputs = D.
    activation: of the feed-forward layers, a name in `layers.ACTIVATIONS`.
    eps: added to the variance in a norm.
    layer_scale: initial factor of what each block adds (Touvron et al. 2021b); 0: no factors.
    drop_path: share of examples that skip the last block in training (Huang et al. 2016); that of
      earlier blocks grows linearly from 0.
    dropout: share of units that training drops.
    attention: 'xla', 'cudnn', 'splash', 'ring', or 'auto', by the kind of device.
    scan: one compiled block over stacked parameters instead of `depth` copies, see `Stack`.
    remat: results that the backward pass computes again: 'none', 'dots' or 'full', see `Stack`.
    microbatches: of a pipeline, see `Stack`.
    dtype: of the computation.
  """

  num_outputs: int
  image_size: int = 224
  patch_size: int = 16
  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_dim: int = 0
  pool: str = 'class'
  positions: str = 'learned'
  distillation: str = ''
  pre_norm: bool = False
  patch_bias: bool = True
  qkv_bias: bool = True
  head_bias: bool = True
  project: bool = True
  activation: str = 'gelu_exact'
  eps: float = 1e-6
  layer_scale: float = 0.0
  drop_path: float = 0.0
  dropout: float = 0.0
  attention: str = 'xla'
  scan: bool = False
  remat: str = 'none'
  microbatches: int = 0
  dtype: Dtype = jnp.float32

  sources: ClassVar[tuple[str, ...]] = ('image',)

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    return Facts(num_outputs=self.num_outputs)

  @property
  def prefix(self) -> int:
    """Number of tokens before the patches."""
    return (self.pool == 'class') + bool(self.distillation)

  def setup(self):
    self._check()
    d, grid = self.width, self.image_size // self.patch_size
    if self.pool == 'class':
      self.class_token = self.param('class_token', named(NORMAL, ('norm',)), (d,), jnp.float32)
    if self.distillation:
      self.distillation_token = self.param(
        'distillation_token', named(NORMAL, ('norm',)), (d,), jnp.float32
      )
    if self.positions == 'learned':
      table = named(NORMAL, ('position', 'embed'))
      self.position = self.param('position', table, (self.prefix + grid**2, d), jnp.float32)
    if self.pre_norm:
      self.norm_in = Norm('layer', self.eps, dtype=self.dtype)
    mlp = MlpConfig(self.mlp_dim or 4 * d, self.activation)
    block = BlockConfig(
      AttentionConfig(
        self.heads, self.heads, causal=False, bias=self.qkv_bias, impl=self.attention
      ),
      mlp,
      eps=self.eps,
      dropout=self.dropout,
      layer_scale=self.layer_scale,
      drop_path=self.drop_path,
      dtype=self.dtype,
    )
    self.drop = nn.Dropout(self.dropout)
    self.stack = Stack(self.depth, block, self.scan, self.remat, self.microbatches)
    self.norm_out = Norm('layer', self.eps, dtype=self.dtype)
    if self.pool == 'attention':
      self.pooling = AttentionPool(self.heads, mlp, self.eps, self.dtype)
    if self.project:
      self.head = self._head()
    if self.distillation == 'head':
      self.distillation_head = self._head()

  def _check(self) -> None:
    for word, known in WORDS.items():
      value = {'pool': self.pool, 'positions': self.positions}.get(word, self.distillation)
      if value not in known:
        raise InputError(f'{word}={value!r}: expected one of {", ".join(map(repr, known))}')
    if self.distillation and self.pool != 'class':
      raise InputError(f"pool={self.pool!r}: expected 'class' with a distillation token")
    check_sizes(width=(self.width,), depth=(self.depth,), patch_size=(self.patch_size,))
    if not self.project and self.num_outputs != self.width:
      raise InputError(
        f'num_outputs={self.num_outputs}: expected width={self.width} with project=False'
      )
    if not self.project and self.distillation == 'head':
      raise InputError("distillation='head': expected project=True, as two heads are averaged")
    check_rate(self.dropout)
    if self.image_size < 1 or self.image_size % self.patch_size:
      raise InputError(
        f'image_size={self.image_size}: expected a multiple of patch_size={self.patch_size}'
      )
    if self.positions == 'sincos' and self.width % 4:
      raise InputError(f"width={self.width}: expected a multiple of 4 for positions='sincos'")

  def _head(self) -> Einsum:
    shape, axes = (self.width, self.num_outputs), ('embed', 'classes')
    return Einsum('bd,dc->bc', shape, axes, self.head_bias, NORMAL, dtype=self.dtype)

  @nn.compact
  def patches(self, inputs: jax.Array) -> jax.Array:
    """Projects the patches of images [B, I, J, C], row by row: [B, T, D]."""
    side, p = self.image_size, self.patch_size
    if inputs.ndim != 4 or inputs.shape[1:3] != (side, side):
      raise InputError(
        f'image_size={side}: expected images [B, {side}, {side}, C], not {inputs.shape}; resize '
        'them, or set image_size: a learned table of positions is resized as it is read'
      )
    batch, channels = inputs.shape[0], inputs.shape[-1]
    x = inputs.astype(self.dtype).reshape(batch, side // p, p, side // p, p, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, (side // p) ** 2, p, p, channels)
    shape, axes = (p, p, channels, self.width), (None, None, None, 'embed')
    project = Einsum(
      'btijc,ijcd->btd', shape, axes, self.patch_bias, dtype=self.dtype, name='patch'
    )
    return project(x)

  def features_of(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
    """Computes the states of all tokens after the last norm, [B, prefix + T, D].

    Args:
      inputs: images [B, I, J, C].
      train: whether dropout and stochastic depth are active.
    """
    x = self.patches(inputs)
    batch, _, d = x.shape
    tokens = [self.class_token] if self.pool == 'class' else []
    tokens += [self.distillation_token] if self.distillation else []
    before = [jnp.broadcast_to(t.astype(x.dtype), (batch, 1, d)) for t in tokens]
    x = jnp.concatenate([*before, x], axis=1)
    x += self._positions().astype(x.dtype)[None]
    x = self.norm_in(x) if self.pre_norm else x
    x = constrain(self.drop(x, deterministic=not train), 'batch', 'length', 'act_embed')
    order = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
    return self.norm_out(self.stack(x, order, train=train)[0])

  def memory(
    self, source: Mapping[str, jax.Array], *, train: bool = False
  ) -> tuple[jax.Array, None]:
    """Encodes 'image' [B, I, J, C]: what a text decoder attends to, [B, prefix + T, D]."""
    return self.features_of(source['image'], train=train), None

  def _positions(self) -> jax.Array:
    if self.positions == 'learned':
      return gather(self.position.astype(self.dtype), ('position', 'embed'))
    waves = sincos(self.image_size // self.patch_size, self.width)
    return jnp.concatenate([jnp.zeros((self.prefix, self.width)), waves])

  def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps images [B, I, J, C] to [B, num_outputs]."""
    x = self.features_of(inputs, train=train)
    if self.distillation == 'head':
      return (self.head(x[:, 0]) + self.distillation_head(x[:, 1])) / 2
    pooled = self._pooled(x)
    return self.head(pooled) if self.project else pooled

  def _pooled(self, x: jax.Array) -> jax.Array:
    """Summarizes the states of all tokens [B, T, D] -> [B, D]."""
    if self.pool == 'attention':
      return self.pooling(x)
    return x.mean(1) if self.pool == 'mean' else x[:, 0]


class AttentionPool(nn.Module):
  """Pools tokens [B, T, D] -> [B, D]: a learned query attends to them; then feed-forward.

  Source: Zhai et al. 2022, "Scaling Vision Transformers", which calls it MAP.

  Attributes:
    heads: attention heads.
    mlp: of the feed-forward network.
    eps: added to the variance in the norm before it.
    dtype: of the computation.
  """

  heads: int
  mlp: MlpConfig
  eps: float = 1e-6
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, T, D] to [B, D]."""
    batch, _, d = x.shape
    query = self.param('query', named(NORMAL, ('norm',)), (d,), jnp.float32)
    query = jnp.broadcast_to(query.astype(self.dtype), (batch, 1, d))
    # One query has no use of a fused kernel, which would refuse keys of another length.
    config = AttentionConfig(self.heads, self.heads, causal=False, impl='xla')
    at = Attention(config, self.dtype, name='attention')
    y = at(query, jnp.zeros((batch, 1), jnp.int32), None, context=x)[0]
    norm = Norm('layer', self.eps, dtype=self.dtype, name='norm')
    return (y + FeedForward(self.mlp, self.dtype, name='feed_forward')(norm(y)))[:, 0]


def sincos(grid: int, width: int) -> np.ndarray:
  """Returns fixed positions of a square grid, float32 [grid², width].

  The quarters of a row are the sines and cosines of the column, and those of the row, with
  frequencies 10,000^(-k / (width / 4 - 1)). Source: Chen et al. 2021, as big_vision computes it.
  """
  row, column = np.mgrid[:grid, :grid].reshape(2, -1, 1)
  omega = 1e4 ** -(np.arange(width // 4) / max(width // 4 - 1, 1))
  parts = [f(at * omega) for at in (column, row) for f in (np.sin, np.cos)]
  return np.concatenate(parts, axis=1).astype(np.float32)


def resized(table: jax.Array, rows: int, prefix: int) -> jax.Array:
  """Resizes the positions of a square grid of patches, as PyTorch's bicubic does.

  Args:
    table: [prefix + T, D].
    rows: prefix + T of the result.
    prefix: tokens before the patches, whose rows stay.

  Raises:
    InputError: a grid that is not square.
  """
  old, new = (round((n - prefix) ** 0.5) if n > prefix else 0 for n in (len(table), rows))
  if old**2 + prefix != len(table) or new**2 + prefix != rows or not old or not new:
    raise InputError(
      f'position: cannot resize {len(table)} rows to {rows}: expected {prefix} and the patches of '
      'a square image in both'
    )
  grid = bicubic(table[prefix:].reshape(old, old, -1), new, new)
  return jnp.concatenate([table[:prefix], grid.reshape(new**2, -1)])
