"""One optimizer for each of several networks, in one step."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from bmx.core import tree
from bmx.core.errors import InputError, did_you_mean
from bmx.core.ranges import check_number


def by_network(
  networks: Mapping[str, optax.GradientTransformation], rates: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
  """Gives the parameters of each network an optimizer of their own; clips count its own norm.

  In a recipe: optimizer = {'call': 'bmx.optim.networks:by_network', 'networks': {'generator':
  {'call': 'bmx.optim.optimizers:adam', 'clip': 1.0}, 'discriminator': {...}}}.

  Args:
    networks: first part of the names of parameters, such as 'generator' -> its optimizer.
    rates: network -> factor of its learning rate; 1 without (Heusel et al. 2017).

  Raises:
    InputError: no networks, a factor that is not above 0 or of an unknown network; from `init`, a
      network without parameters, or parameters of none.
  """
  rates = dict(rates or {})
  if not networks:
    raise InputError('networks={}: expected an optimizer for each network')
  for name, rate in rates.items():
    if name not in networks:
      raise InputError(f'rates.{name}: expected one of the networks{did_you_mean(name, networks)}')
    check_number(f'rates.{name}', rate, above=0)
  parts: dict[Any, Any] = {
    k: optax.chain(tx, optax.scale(rates.get(k, 1.0))) for k, tx in networks.items()
  }
  return optax.partition(parts, functools.partial(_labels, known=tuple(networks)))


def _labels(params: Any, known: tuple[str, ...]) -> Any:
  """Returns the network of each parameter."""
  labels = tree.map_named(lambda name, _: name.split('/')[0], params)
  found = set(jax.tree.leaves(labels))
  for name in sorted(found - set(known)):
    raise InputError(
      f'networks={known}: expected an optimizer of the parameters {name}/...'
      f'{did_you_mean(name, known)}'
    )
  for name in sorted(set(known) - found):
    raise InputError(
      f'networks.{name}: expected one of {", ".join(sorted(found))}{did_you_mean(name, found)}'
    )
  return labels
