"""Costs counted from the program itself: the contractions of a jaxpr, loops multiplied out."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr


class Costs(NamedTuple):
  """Costs of a call.

  Attributes:
    flops: of its matrix products and convolutions.
    convolves: whether it contains a convolution.
  """

  flops: int
  convolves: bool = False


def count(fn: Callable[..., Any], *args: Any) -> Costs:
  """Returns the costs of `fn(*args)`; args may be abstract.

  One multiply-add is two FLOPs. A scan counts times its length, a `cond` as its most expensive
  branch, a `while` body once. Dead code is not counted, as compilers remove it; nor is element-wise
  work (Chowdhery et al. 2022, PaLM, appendix B).

  >>> import jax.numpy as jnp
  >>> count(jnp.dot, jnp.ones((4, 8)), jnp.ones((8, 3)))
  Costs(flops=192, convolves=False)
  """
  jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
  return Costs(_count(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]), _convolves(jaxpr))


def _convolves(jaxpr: Any) -> bool:
  here = any(e.primitive.name == 'conv_general_dilated' for e in jaxpr.eqns)
  return here or any(_convolves(j) for e in jaxpr.eqns for j in _inner(e.params))


def _count(jaxpr: Any) -> int:
  return sum(_equation(e) for e in jaxpr.eqns)


def _equation(e: Any) -> int:
  name = e.primitive.name
  if name == 'dot_general':
    (contract, _), _ = e.params['dimension_numbers']
    depth = math.prod(e.invars[0].aval.shape[i] for i in contract)
    return 2 * depth * math.prod(e.outvars[0].aval.shape)
  if name == 'ragged_dot_general':
    return 2 * math.prod(e.outvars[0].aval.shape) * e.invars[0].aval.shape[-1]
  if name == 'conv_general_dilated':
    return _convolution(e)
  if name == 'cond':
    return max(_count(b.jaxpr) for b in e.params['branches'])
  times = e.params['length'] if name == 'scan' else 1
  return times * sum(_count(j) for j in _inner(e.params))


def _convolution(e: Any) -> int:
  """Counts the products of elements that exist: neither padding nor the zeros of a dilation."""
  source, kernel, out = (v.aval.shape for v in (*e.invars, *e.outvars))
  left, right, result = e.params['dimension_numbers']
  pairs = 1
  for i, (low, _) in enumerate(e.params['padding']):
    pairs *= _pairs(
      source[left[2 + i]],
      kernel[right[2 + i]],
      out[result[2 + i]],
      e.params['window_strides'][i],
      low,
      e.params['lhs_dilation'][i],
      e.params['rhs_dilation'][i],
    )
  return 2 * pairs * out[result[0]] * out[result[1]] * kernel[right[1]]


def _pairs(size: int, taps: int, outs: int, stride: int, low: int, holes: int, spread: int) -> int:
  """Counts (output, tap) that read an element, along one dimension of a convolution."""
  at = np.arange(outs)[:, None] * stride + np.arange(taps)[None] * spread - low
  return int(((at >= 0) & (at <= (size - 1) * holes) & (at % holes == 0)).sum())


def _inner(params: dict[str, Any]) -> list[Any]:
  """Yields the jaxprs an equation runs; a custom derivative's rules are functions, not jaxprs."""
  values = [v for k, v in params.items() if k not in ('cond_jaxpr', 'branches')]
  values += params.get('branches', ())
  jaxprs = [v for v in values if hasattr(v, 'eqns')]
  return jaxprs + [v.jaxpr for v in values if hasattr(v, 'jaxpr') and not hasattr(v, 'eqns')]
