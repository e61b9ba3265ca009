"""Mixture of experts: a router sends every token to `top_k` of E feed-forward networks.

B batch, T length, D width, F feed-forward, E experts, C capacity.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.models.layers import Dtype, Einsum, activation
from bmx.models.weights import stored_param, weight
from bmx.parallel import axes_of, constrain, shard_map

Aux = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  """The arguments of `MoE`.

  Attributes:
    mlp_dim: F, width of the hidden layer of an expert.
    experts: E, their number.
    top_k: number of experts of a token.
    capacity_factor: an expert takes at most top_k·T / E times this many tokens of each row; tokens
      beyond pass with a zero (Lepikhin et al. 2021). 0 drops none (Gale et al. 2023).
    activation: name in `layers.ACTIVATIONS`.
    gated: whether the activation of one projection multiplies another.
    stddev: of the initial kernels of the router and into F.
    out_stddev: of the initial kernels out of F.
  """

  mlp_dim: int
  experts: int
  top_k: int = 2
  capacity_factor: float = 1.25
  activation: str = 'silu'
  gated: bool = True
  stddev: float = 0.02
  out_stddev: float = 0.02


class MoE(nn.Module):
  """Computes D -> F -> D by the chosen experts, weighted by the router's probabilities of them.

  Interceptors see `weight(name)` of each kernel, and `product` if experts have a capacity.
  """

  config: MoEConfig
  dtype: Dtype = jnp.float32

  @property
  def kernels(self) -> tuple[str, ...]:
    """Names of the experts' kernels."""
    return ('up', 'gate', 'down') if self.config.gated else ('up', 'down')

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, Aux]:
    """Applies the experts.

    Args:
      x: [B, T, D].

    Returns:
      ([B, T, D], {'balance', 'router_z', 'dropped'}: float32 []).

    Raises:
      InputError: `top_k` is not between 1 and the number of experts.
    """
    c = self.config
    if not 1 <= c.top_k <= c.experts:
      raise InputError(f'top_k={c.top_k}: expected 1 to {c.experts}, the number of experts')
    width = x.shape[-1]
    init = nn.initializers.normal(c.stddev)
    shape, axes = (width, c.experts), ('embed', None)
    scores = Einsum('btd,de->bte', shape, axes, False, init, dtype=jnp.float32, name='router')(x)
    weights, chosen, aux = route(scores, c.top_k)
    into, out = (width, c.mlp_dim), (c.mlp_dim, width)
    kernels = [self._kernel('up', into, ('embed', 'mlp'), c.stddev)]
    if c.gated:
      kernels.append(self._kernel('gate', into, ('embed', 'mlp'), c.stddev))
    kernels.append(self._kernel('down', out, ('mlp', 'embed'), c.out_stddev))
    method = self._within_capacity if c.capacity_factor else self._dropless
    y, dropped = method(x.astype(self.dtype), weights, chosen, kernels)
    return y, aux | {'dropped': dropped}

  def _kernel(self, name: str, shape: tuple[int, int], axes: tuple[str, str], stddev: float):
    names = ('expert', *axes)
    init = nn.initializers.normal(stddev)
    kernel = stored_param(self, name, init, names, (self.config.experts, *shape))
    return self.weight(name, kernel, names)

  def weight(self, name: str, kernel: Any, axes: tuple[str, str, str]) -> jax.Array:
    """Returns a stored kernel [E, ...] as the computation reads it: gathered, in `dtype`."""
    return weight(kernel, axes, (1,), self.dtype)

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies tokens with their expert's kernel: [B, E, C, D], [E, D, F] -> [B, E, C, F]."""
    return jnp.einsum('becd,edf->becf', x, w)

  def _act(self, up: jax.Array, gate: list[jax.Array]) -> jax.Array:
    return (
      up * activation(self.config.activation)(gate[0])
      if gate
      else activation(self.config.activation)(up)
    )

  def _within_capacity(self, x, weights, chosen, kernels):
    """Applies experts of limited capacity.

    Puts tokens into E × C slots, row by row, so that dropping does not depend on the layout; the
    two changes of placement around the experts are the all-to-alls.
    """
    batch, length, width = x.shape
    k, e = self.config.top_k, self.config.experts
    c = min(math.ceil(length * k / e * self.config.capacity_factor), length)

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

    def into(w: jax.Array) -> jax.Array:
      return constrain(self.product(buffer, w), 'expert_batch', 'expert', None, 'mlp')

    y = self.product(self._act(into(up), [into(w) for w in gate]), down)
    y = constrain(y, 'expert_batch', 'expert', None, 'act_embed')
    y = constrain(y, 'batch', None, None, 'act_embed').reshape(batch, e * c, width)
    y = jnp.pad(y, ((0, 0), (0, 1), (0, 0)))
    y = jnp.take_along_axis(y, place[:, :, None], axis=1).reshape(batch, k, length, width)
    y = jnp.einsum('bktd,btk->btd', y, weights.astype(y.dtype))
    return y, (place == e * c).mean(dtype=jnp.float32)

  def _dropless(self, x, weights, chosen, kernels):
    """Applies experts that accept every token.

    Every device gathers the tokens of its expert group and multiplies those that chose one of its
    experts; the results are summed back to the tokens' devices.
    """
    experts, k = axes_of('expert'), self.config.top_k
    parts = experts + axes_of('mlp')  # devices along these compute parts of one token's sum
    cuts = [tuple(a for a in axes_of(name) if a in parts) for name in ('batch', 'length')]
    shared = tuple(a for a in parts if a not in cuts[0] + cuts[1])

    def compute(x, weights, chosen, *kernels):
      for dim, axes in enumerate(cuts):
        if axes:
          x, weights, chosen = (
            jax.lax.all_gather(a, axes, axis=dim, tiled=True) for a in (x, weights, chosen)
          )
      shape, local = x.shape, kernels[0].shape[0]
      if experts:
        chosen = chosen - jax.lax.axis_index(experts) * local
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
      if shared:
        y = jax.lax.psum(y, shared)
      y = y.reshape(shape)
      for dim, axes in enumerate(cuts):
        if axes:
          y = jax.lax.psum_scatter(y, axes, scatter_dimension=dim, tiled=True)
      return y

    token, into, out = ('batch', 'length', None), ('expert', None, 'mlp'), ('expert', 'mlp', None)
    places = (token, token, token, *[into] * (len(kernels) - 1), out)
    return shard_map(compute, places, token)(x, weights, chosen, *kernels), jnp.float32(0)


def route(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array, Aux]:
  """Chooses the k most likely experts of every token.

  Args:
    scores: float32 [B, T, E].
    k: number of experts of a token.

  Returns:
    Weights float32 [B, T, k] that sum to 1, experts int32 [B, T, k], and 'balance' (Fedus et al.
    2022, eq. 4: 1 if all experts are chosen alike) and 'router_z' (Zoph et al. 2022, eq. 5).
  """
  probability = jax.nn.softmax(scores)
  weights, chosen = jax.lax.top_k(probability, k)
  experts = scores.shape[-1]
  load = jax.nn.one_hot(chosen, experts).sum(2).mean((0, 1)) / k
  balance = experts * (load * probability.mean((0, 1))).sum()
  router_z = jnp.square(jax.nn.logsumexp(scores, axis=-1)).mean()
  weights /= weights.sum(-1, keepdims=True)
  return weights, chosen, {'balance': balance, 'router_z': router_z}
