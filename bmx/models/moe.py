"""Mixture of experts: a router sends every token to `top_k` of E feed-forward networks.

B batch, T length, D width, F feed-forward, E experts, C capacity.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.models.layers import Dtype, Einsum, activation
from bmx.parallel import constrain, current, gather, named, shard_map

Aux = dict[str, jax.Array]


class MoE(nn.Module):
  """D -> F -> D by the chosen experts, weighted by the router's probabilities of them.

  Attributes:
    capacity_factor: an expert takes at most top_k·T / E times this many tokens of each row; tokens
      beyond pass with a zero (Lepikhin et al. 2021). 0 drops none (Gale et al. 2023).
  """

  mlp_dim: int
  experts: int
  top_k: int = 2
  capacity_factor: float = 1.25
  activation: str = 'silu'
  gated: bool = True
  stddev: float = 0.02
  out_stddev: float = 0.02
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, Aux]:
    """x [B, T, D] -> ([B, T, D], {'balance', 'router_z', 'dropped'}: float32 [])."""
    if not 1 <= self.top_k <= self.experts:
      raise InputError(f'top_k={self.top_k} of {self.experts} experts')
    width = x.shape[-1]
    init = nn.initializers.normal(self.stddev)
    shape, axes = (width, self.experts), ('embed', None)
    scores = Einsum('btd,de->bte', shape, axes, False, init, dtype=jnp.float32, name='router')(x)
    weights, chosen, aux = route(scores, self.top_k)
    kernels = [self._kernel('up', (width, self.mlp_dim), ('embed', 'mlp'), self.stddev)]
    if self.gated:
      kernels.append(self._kernel('gate', (width, self.mlp_dim), ('embed', 'mlp'), self.stddev))
    kernels.append(self._kernel('down', (self.mlp_dim, width), ('mlp', 'embed'), self.out_stddev))
    method = self._within_capacity if self.capacity_factor else self._dropless
    y, dropped = method(x.astype(self.dtype), weights, chosen, kernels)
    return y, aux | {'dropped': dropped}

  def _kernel(self, name: str, shape: tuple[int, int], axes: tuple[str, str], stddev: float):
    names = ('expert', *axes)
    init = named(nn.initializers.normal(stddev), names)
    kernel = self.param(name, init, (self.experts, *shape), jnp.float32)
    return gather(kernel.astype(self.dtype), names)

  def _act(self, up: jax.Array, gate: list[jax.Array]) -> jax.Array:
    return up * activation(self.activation)(gate[0]) if gate else activation(self.activation)(up)

  def _within_capacity(self, x, weights, chosen, kernels):
    """Tokens are put into E × C places, row by row, so that what is dropped depends on no layout;
    the two changes of place around the experts are the all-to-alls."""
    batch, length, width = x.shape
    k, e = self.top_k, self.experts
    c = min(math.ceil(length * k / e * self.capacity_factor), length)

    def dispatch(x, chosen):
      """One row: [T, D], [T, k] -> [E, C, D] and the place of every choice [k·T]."""
      expert = chosen.T.reshape(-1)  # first choices of all tokens before second choices
      rank = jnp.cumsum(jax.nn.one_hot(expert, e, dtype=jnp.int32), axis=0) - 1
      rank = jnp.take_along_axis(rank, expert[:, None], axis=1)[:, 0]
      place = jnp.where(rank < c, expert * c + rank, e * c)  # the last place is the bin
      buffer = jnp.zeros((e * c + 1, width), x.dtype).at[place].add(jnp.tile(x, (k, 1)))
      return buffer[:-1].reshape(e, c, width), place

    buffer, place = jax.vmap(dispatch)(x, chosen)
    buffer = constrain(buffer, 'batch', None, None, 'act_embed')
    buffer = constrain(buffer, 'expert_batch', 'expert', None, 'act_embed')
    up, *gate, down = kernels
    into = lambda w: constrain(
      jnp.einsum('becd,edf->becf', buffer, w), 'expert_batch', 'expert', None, 'mlp'
    )
    y = jnp.einsum('becf,efd->becd', self._act(into(up), [into(w) for w in gate]), down)
    y = constrain(y, 'expert_batch', 'expert', None, 'act_embed')
    y = constrain(y, 'batch', None, None, 'act_embed').reshape(batch, e * c, width)
    y = jnp.pad(y, ((0, 0), (0, 1), (0, 0)))
    y = jnp.take_along_axis(y, place[:, :, None], axis=1).reshape(batch, k, length, width)
    y = jnp.einsum('bktd,btk->btd', y, weights.astype(y.dtype))
    return y, (place == e * c).mean(dtype=jnp.float32)

  def _dropless(self, x, weights, chosen, kernels):
    """Every device gathers the tokens of its expert group and multiplies those that chose one of
    its experts; the results are summed back to where the tokens live."""
    layout = current()
    groups = layout.mesh.shape['expert'] if layout else 1
    cut = layout.mesh.shape['model'] if layout else 1
    k, local = self.top_k, self.experts // groups

    def compute(x, weights, chosen, *kernels):
      shape = x.shape
      if groups > 1:
        x, weights, chosen = (
          jax.lax.all_gather(a, 'expert', tiled=True) for a in (x, weights, chosen)
        )
        chosen = chosen - jax.lax.axis_index('expert') * local
      x, weights, chosen = x.reshape(-1, shape[-1]), weights.reshape(-1), chosen.reshape(-1)
      chosen = jnp.where((chosen >= 0) & (chosen < local), chosen, local)  # others' sort last
      order = jnp.argsort(chosen)
      sizes = jnp.bincount(chosen, length=local + 1)[:local].astype(jnp.int32)
      up, *gate, down = kernels
      multiply = lambda rows, w: jax.lax.ragged_dot(rows, w, sizes)
      rows = x[order // k]
      hidden = self._act(multiply(rows, up), [multiply(rows, w) for w in gate])
      y = multiply(hidden, down) * weights[order][:, None].astype(x.dtype)
      mine = jnp.arange(len(order)) < sizes.sum()  # rows behind the last group are undefined
      y = jnp.zeros_like(x).at[order // k].add(jnp.where(mine[:, None], y, 0))
      if cut > 1:
        y = jax.lax.psum(y, 'model')
      y = y.reshape(-1, *shape[1:])
      return jax.lax.psum_scatter(y, 'expert', tiled=True) if groups > 1 else y

    token, into, out = ('batch', 'length', None), ('expert', None, 'mlp'), ('expert', 'mlp', None)
    places = (token, token, token, *[into] * (len(kernels) - 1), out)
    return shard_map(compute, places, token)(x, weights, chosen, *kernels), jnp.float32(0)


def route(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array, Aux]:
  """The k likeliest experts of every token.

  scores float32 [B, T, E] -> weights float32 [B, T, k] that sum to 1, experts int32 [B, T, k], and
  'balance' (Fedus et al. 2022, eq. 4: 1 where all experts are chosen alike) and 'router_z' (Zoph et
  al. 2022, eq. 5).
  """
  probability = jax.nn.softmax(scores)
  weights, chosen = jax.lax.top_k(probability, k)
  experts = scores.shape[-1]
  load = jax.nn.one_hot(chosen, experts).sum(2).mean((0, 1)) / k
  balance = experts * (load * probability.mean((0, 1))).sum()
  router_z = jnp.square(jax.nn.logsumexp(scores, axis=-1)).mean()
  weights /= weights.sum(-1, keepdims=True)
  return weights, chosen, {'balance': balance, 'router_z': router_z}
