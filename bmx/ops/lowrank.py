"""Arithmetic of low-rank adapters: factors beside a kernel, and what they add to it.

The parts of an adapter are the leaves beside one kernel [L?, *contracted, *outputs]:
'kernel_a' [L?, *contracted, r], 'kernel_b' [L?, r, *outputs] and, of AdaLoRA, 'singular' [L?, r];
L is there if layers are stacked.
"""

import math
import string
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core import tree
from bmx.ops.dense import contract

A, B, SINGULAR = 'kernel_a', 'kernel_b', 'singular'
Parts = Mapping[str, Any]


def equations(equation: str) -> tuple[str, str]:
  """Splits a contraction into those of its factors, through rank 'r'.

  >>> equations('btnh,nhd->btd')
  ('btnh,nhr->btr', 'btr,rd->btd')
  """
  inputs, weights = equation.split('->')[0].split(',')
  rank = next(c for c in 'r' + string.ascii_lowercase if c not in inputs + weights)
  lead = ''.join(c for c in inputs if c not in weights)
  contracted, outputs = inputs[len(lead) :], ''.join(c for c in weights if c not in inputs)
  return (
    f'{inputs},{contracted}{rank}->{lead}{rank}',
    f'{lead}{rank},{rank}{outputs}->{lead}{outputs}',
  )


def product(equation: str, x: jax.Array, parts: Parts) -> jax.Array:
  """Multiplies an input with the factors of one layer: x [.., *contracted] -> [.., *outputs]."""
  into, out = equations(equation)
  hidden = contract(into, x, parts[A])
  if SINGULAR in parts:
    hidden *= parts[SINGULAR].reshape((1,) * (hidden.ndim - 1) + (-1,))
  return contract(out, hidden, parts[B])


def product_by_row(equation: str, x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  """Multiplies each row of an input with factors of its own.

  Args:
    equation: of the kernel.
    x: [B, .., *contracted].
    a: [B, *contracted, r].
    b: [B, r, *outputs].

  Returns:
    [B, .., *outputs].
  """
  for factors, w in zip(equations(equation), (a, b), strict=True):
    inputs, rest = factors.split(',')
    x = jnp.einsum(f'{inputs},{inputs[0]}{rest}', x, w)
  return x


def delta(parts: Parts, shape: tuple[int, ...]) -> jax.Array:
  """Returns A·B (A·diag(singular)·B) as an addend of a kernel of `shape`, unscaled."""
  a, b = parts[A], parts[B]
  if SINGULAR in parts:
    own = parts[SINGULAR]
    a = a * own.reshape(own.shape[:-1] + (1,) * (a.ndim - own.ndim) + own.shape[-1:])
  lead = a.ndim + b.ndim - 2 - len(shape)  # 1 if layers are stacked
  letters = [c for c in string.ascii_lowercase if c not in 'lr'][: len(shape) - lead]
  layer, cut = 'l' * lead, a.ndim - 1 - lead
  contracted, outputs = ''.join(letters[:cut]), ''.join(letters[cut:])
  return jnp.einsum(f'{layer}{contracted}r,{layer}r{outputs}->{layer}{contracted}{outputs}', a, b)


def gram(x: jax.Array, lead: int, name: str) -> jax.Array:
  """Returns the products of a factor's vectors with each other, [L?, r, r].

  Args:
    x: of part `name`, A or B.
    lead: 1 if layers are stacked, else 0.
    name: see `x`.
  """
  layer, inner = 'l' * lead, 'abcdefgh'[: x.ndim - 1 - lead]
  one, two = (inner + c if name == A else c + inner for c in 'rs')
  return jnp.einsum(f'{layer}{one},{layer}{two}->{layer}rs', x, x)


def by_path(adapters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Groups the leaves of adapters by the path of their kernel: PATH -> parts."""
  found: dict[str, dict[str, Any]] = {}
  for name, leaf in tree.named(adapters).items():
    path, _, part = name.rpartition('/')
    found.setdefault(path, {})[part] = leaf
  return found


def add(params: Any, adapters: Mapping[str, Any], scale: float) -> Any:
  """Adds what adapters contribute to plain weights: kernel + scale · A·B."""
  parts = by_path(adapters)

  def one(name: str, leaf: jax.Array) -> jax.Array:
    own = parts.get(name.removesuffix('/kernel')) if name.endswith('/kernel') else None
    return leaf if own is None else leaf + scale * delta(own, leaf.shape)

  return tree.map_named(one, params)


def largest_rank(shape: tuple[int, ...], contracted: int) -> int:
  """Returns the smaller side of a kernel as a matrix of `contracted` dimensions by the others."""
  return min(math.prod(shape[:contracted]), math.prod(shape[contracted:]))
