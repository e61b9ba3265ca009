"""Several adapters of one base: read, weighted, exchanged."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bmx.adapt import runs
from bmx.adapt.lora import ADAPTERS, FROZEN, TRAINED
from bmx.adapt.peft import adapters_of
from bmx.core import tree
from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Variables
from bmx.ops import lowrank
from bmx.train.state import StateSpec


@dataclasses.dataclass(frozen=True)
class Adapters:
  """Adapters of runs that share a base.

  Attributes:
    base: plain weights, without adapters.
    own: name -> (scale, adapters).
  """

  base: Variables
  own: Mapping[str, tuple[float, Variables]]

  def merged(self, weights: Mapping[str, float]) -> Variables:
    """Returns plain weights: the base plus the sum of weight · scale · A·B.

    `merged({'a': 1.0})` are the weights of run 'a'; {} are those of the base.
    `serve.text.TextGenerator.load` exchanges them without a new program.

    Args:
      weights: name of an adapter -> its weight.

    Raises:
      InputError: an unknown name.
    """
    params = self.base
    for name, weight in weights.items():
      if name not in self.own:
        raise InputError(f'{name!r}: expected an adapter of {", ".join(self.own)}'
                         f'{did_you_mean(name, self.own)}')  # fmt: skip
      scale, adapters = self.own[name]
      params = lowrank.add(params, adapters, weight * scale)
    return params


def load(folders: Mapping[str, str], like: Any = None, step: str = 'latest') -> Adapters:
  """Reads the adapters of runs.

  Args:
    folders: name -> run directory.
    like: plain weights, abstract, whose placement the base takes; None: one device.
    step: 'latest', 'best' or a number.

  Raises:
    InputError: a run without adapters; bases that differ (their digests are compared); a run that
      trained other parameters whole, which have no common base.
  """
  if not folders:
    raise InputError('folders: expected one run of adapters or more')
  like = tree.named(like or {})
  first, base, digests, own = '', {}, {}, {}
  for name, folder in folders.items():
    path, facts = runs.checkpoint(folder, step)
    task: Any = runs.read_task(folder)
    lora = adapters_of(task)
    params = runs.read_params(path, facts, like)
    if TRAINED in params:
      raise InputError(
        f'{folder}: expected a run without task.train={lora.train!r}: parameters that train whole '
        'have no base to be added to'
      )
    if not first:
      first, digests = folder, facts['constants']
      variables = {**runs.read_constants(folder, facts, like), 'params': params}
      base = _without(task, variables)
    elif facts['constants'] != digests:
      raise InputError(
        f'{folder}: expected adapters of the base of {first}, {_brief(digests)}, found '
        f'{_brief(facts["constants"])}'
      )
    own[name] = lora.scale, params[ADAPTERS]
  return Adapters(base, own)


def read_given(folder: str, task: Any, spec: StateSpec) -> dict[str, jax.Array]:
  """Reads what the steps of a run of adapters change, for a new run: 'params/NAME' -> array.

  Args:
    folder: a run of adapters.
    task: of the new run.
    spec: of its state.

  Raises:
    InputError: other adapters than the task's (all differences are listed).
  """
  path, facts = runs.checkpoint(folder, 'latest')
  theirs, lora = adapters_of(runs.read_task(folder)), adapters_of(task)
  if (theirs.scale, type(theirs)) != (lora.scale, type(lora)):
    raise InputError(
      f'task.rank={lora.rank}, task.alpha={lora.alpha}: expected {type(theirs).__name__} with '
      f'rank={theirs.rank}, alpha={theirs.alpha}, rslora={theirs.rslora}, those of {folder}'
    )
  found = runs.read_like(path, facts, spec.abstract.params)
  return {f'params/{k}': v for k, v in found.items()}


def check_base(folder: str, collections: Variables) -> None:
  """Compares the base of a run of adapters with that of a new state.

  Raises InputError if their digests differ.
  """
  _, facts = runs.checkpoint(folder, 'latest')
  own = {k: tree.digest(collections[k]) for k in facts['constants'] if k in collections}
  if own != facts['constants']:
    raise InputError(
      f'init.adapter={folder!r}: expected adapters of the base {_brief(own)}, found those of '
      f'{_brief(facts["constants"])}; name their base in init.path, and the same task.base and '
      'task.train'
    )


def _without(task: Any, variables: Variables) -> Variables:
  """Returns the plain weights of the base."""
  zeros = jax.tree.map(jnp.zeros_like, variables['params'][ADAPTERS])
  return task.merged_params({**variables, 'params': {ADAPTERS: zeros}})


def _brief(digests: Mapping[str, str]) -> str:
  return digests.get(FROZEN, next(iter(digests.values()), 'none'))[:12]
