"""Pruning of a trained model at once: by magnitudes, or with the inputs of each layer (Wanda)."""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from bmx.compress import structure
from bmx.compress.rule import Rule
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Array, Variables
from bmx.parallel import Layout, jit


def pruned(params: Variables, rule: Rule, layout: Layout) -> Variables:
  """Prunes by magnitude; raises InputError: see `Rule`."""
  return jit(lambda p: rule.apply(p)[0], layout)(params)


def wanda(
  params: Variables, rule: Rule, hessians: Mapping[str, Array], layout: Layout
) -> Variables:
  """Prunes by |w| · ‖x‖, the share of the inputs of each output alike (Sun et al. 2024).

  Args:
    params: plain parameters, placed.
    rule: of kind 'unstructured' or '2:4', each layer by itself.
    hessians: sums of x xᵀ by path of a module, see `calibrate.hessians`.
    layout: mesh and rules.

  Raises:
    InputError: see `wanda_names`; a kernel whose inputs were not seen.
  """
  names = wanda_names(params, rule)

  def apply(params, hessians):
    scores = {k: _scores(k, x, hessians) for k, x in tree.named(params).items() if k in names}
    return rule.apply(params, scores)[0]

  return jit(apply, layout)(params, dict(hessians))


def wanda_names(params: Variables, rule: Rule) -> Collection[str]:
  """Returns the parameters that `wanda` prunes. Raises InputError: a rule that it cannot follow."""
  if rule.kind not in ('unstructured', '2:4') or rule.scope != 'layer':
    raise InputError(
      "method='wanda': expected single weights of each layer, 'unstructured' or '2:4', found "
      f'kind={rule.kind!r}, scope={rule.scope!r}'
    )
  return rule.start(jax.eval_shape(lambda: params)).keys()


def _scores(name: str, w: Array, hessians: Mapping[str, Array]) -> Array:
  path = name.removesuffix('/kernel')
  if path not in hessians:
    raise InputError(
      f"method='wanda': expected the inputs of {name}, which calibration does not see; leave it "
      "out of targets, or use method='magnitude'"
    )
  squares = jnp.diagonal(hessians[path], axis1=-2, axis2=-1)
  dims = structure.contracted(name, w.shape)
  inputs = w.shape[: dims[-1] + 1]
  norms = jnp.sqrt(squares).reshape(*inputs, *[1] * (w.ndim - len(inputs)))
  return jnp.abs(w.astype(jnp.float32)) * norms
