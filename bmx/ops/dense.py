"""The contraction behind every dense layer."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from bmx.parallel import one_device, platform


def contract(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """Computes an einsum; without a multi-device mesh in context, as a product of two matrices.

  There XLA:CPU computes the backward pass twice as fast; elsewhere merging a sharded B with a
  sharded T would gather the whole sequence.

  Args:
    equation: 'btd,dnh->btnh': x's leading labels, then the contracted ones, which lead w.
    x: input.
    w: kernel.
  """
  inputs, weights = equation.split('->')[0].split(',')
  lead = len([c for c in inputs if c not in weights])
  if lead == len(inputs) or not one_device():
    return jnp.einsum(equation, x, w)
  depth = math.prod(x.shape[lead:])
  kept = w.shape[len(inputs) - lead :]
  product = _copying if platform() == 'cpu' else jnp.matmul
  return product(x.reshape(-1, depth), w.reshape(depth, -1)).reshape(*x.shape[:lead], *kept)


@jax.custom_jvp
def _copying(x: jax.Array, w: jax.Array) -> jax.Array:
  """Multiplies x [R, D] · w [D, F] -> [R, F], with a gradient for w that is quick on XLA:CPU.

  That gradient, xᵀ g, reads one operand across its rows, which costs XLA:CPU 1.1 to 1.5 times the
  time of a copied transpose and a plain product. The narrower of x and g is copied.
  """
  return x @ w


@functools.partial(_copying.defjvp, symbolic_zeros=True)
def _copying_jvp(primals, tangents):
  (x, w), (dx, dw) = primals, tangents
  parts = []
  if not isinstance(dx, SymbolicZero):
    parts.append(dx @ w)
  if not isinstance(dw, SymbolicZero):
    parts.append(_times_tangent(x, dw))
  y = x @ w
  return y, functools.reduce(jnp.add, parts) if parts else jnp.zeros_like(y)


def _times_tangent(x: jax.Array, dw: jax.Array) -> jax.Array:
  """Multiplies x · dw, written so that its transpose copies a transpose.

  The barrier keeps XLA from folding the copy into the product.
  """
  if x.shape[1] <= dw.shape[1]:
    return jax.lax.dot_general(jax.lax.optimization_barrier(x.T), dw, (((0,), (0,)), ((), ())))
  across = jax.lax.dot_general(dw, x, (((0,), (1,)), ((), ())))
  return jax.lax.optimization_barrier(across).T
