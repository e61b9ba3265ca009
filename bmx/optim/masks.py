"""Masks of parameters in the state of an optimizer: pruned weights, pruned ranks."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bmx.core import tree
from bmx.core.types import Array, Variables


class Masks(NamedTuple):
  """Part of the state of an optimizer that keeps some parameters at zero.

  The step applies it to the moving average of the parameters too, which would fill them again.

  Attributes:
    kept: name of a parameter -> bool array of its shape; False stays zero. A parameter without a
      name here is whole.
  """

  kept: Mapping[str, Array]


def _is_masks(x: Any) -> bool:
  return isinstance(x, Masks)


def apply_mask(kept: Mapping[str, Array], params: Variables) -> Variables:
  """Returns parameters that are zero where `kept` is False."""
  one = lambda name, x: jnp.where(kept[name], x, jnp.zeros_like(x)) if name in kept else x
  return tree.map_named(one, params)


def masked(opt_state: Any, params: Variables) -> Variables:
  """Applies all `Masks` of an optimizer's state to parameters or to their average."""
  for part in jax.tree.leaves(opt_state, is_leaf=_is_masks):
    params = apply_mask(part.kept, params) if _is_masks(part) else params
  return params
