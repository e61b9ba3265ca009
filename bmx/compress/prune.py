"""Pruning in training: a transform around an optimizer, whose pruned weights stay zero."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bmx.compress.rule import Rule, check_regex, targeted
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import Array
from bmx.optim.masks import Masks, apply_mask


class PruneState(NamedTuple):
  """State of `prune`.

  Attributes:
    count: int32 [], accepted updates.
    masks: weights that remain.
    inner: state of the optimizer inside.
  """

  count: Array
  masks: Masks
  inner: Any


def prune(
  inner: optax.GradientTransformation,
  steps: int,
  sparsity: float = 0.5,
  kind: str = 'unstructured',
  scope: str = 'layer',
  targets: str = '',
  begin: float = 0.0,
  end: float = 0.5,
  every: int = 10,
) -> optax.GradientTransformation:
  """Prunes gradually, by magnitude, during training: a transform around an optimizer.

  Between `begin` and `end`, every `every` updates, the share of zeros rises to
  sparsity · (1 - (1 - t)³), t from 0 to 1 (Zhu & Gupta 2017); the share at `end` is exact. 2:4 is
  pruned at `begin` at once. A pruned weight is zero from then on, whatever momentum and weight
  decay add, in the moving average too. Updates that the guard rejects do not count.

  Args:
    inner: the optimizer.
    steps: of the run.
    sparsity: see `Rule`.
    kind: see `Rule`.
    scope: see `Rule`.
    targets: see `Rule`.
    begin: share of the steps before the first weights are pruned.
    end: share of the steps after which the masks stay.
    every: updates between two changes of the masks.

  Raises:
    InputError: see `Rule`; begin and end out of order; from `init`, targets that match nothing,
      or adapters, whose base it would not prune.
  """
  rule = Rule(sparsity, kind, scope, targets)
  check_number('begin', begin, at_least=0, at_most=1)
  check_number('end', end, at_least=begin, at_most=1)
  check_number('every', every, at_least=1)
  first = max(1, round(begin * steps))
  last = first if kind == '2:4' else max(first, round(end * steps))

  def due(count):
    regular = (count >= first) & (count <= last) & ((count - first) % every == 0)
    return regular | (count == last)

  def choose(count, params, kept):
    if kind == '2:4':
      return rule.choose(params, kept)
    t = jnp.clip((count - first) / max(last - first, 1), 0.0, 1.0)
    share = jnp.where(count >= last, 1.0, sparsity * (1 - (1 - t) ** 3))
    return rule.choose(params, kept, share)

  def step(count, params, kept):
    choices = lambda: choose(count, apply_mask(kept, params), kept)
    return jax.lax.cond(due(count), choices, lambda: dict(kept))

  return _masking(inner, rule.start, step)


def keep_zeros(inner: optax.GradientTransformation, targets: str = '') -> Any:
  """Keeps those weights zero that are zero before the first step: those of a pruned init.path.

  Args:
    inner: the optimizer.
    targets: regex of the paths of the kernels; '' is all.

  Raises:
    InputError: from `init`, targets that match nothing, or adapters.
  """
  check_regex(targets)

  def start(params):
    flat = tree.named(params)
    return {name: flat[name] != 0 for name in targeted(flat, targets)}

  return _masking(inner, start, lambda count, params, kept: kept)


def _masking(inner, start, step) -> optax.GradientTransformationExtraArgs:
  """Returns a transform whose updates lead masked weights to zero.

  Args:
    inner: the optimizer.
    start: params -> marks.
    step: (accepted updates, new params, marks) -> new marks.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    _check_no_adapters(params)
    return PruneState(jnp.zeros((), jnp.int32), Masks(start(params)), inner.init(params))

  def update(updates, state, params=None, **extra):
    updates, inner_state = inner.update(updates, state.inner, params, **extra)
    old, moves = tree.named(params), tree.named(updates, is_leaf=tree.is_rows)
    new = {k: optax.apply_updates(old[k], moves[k]) for k in state.masks.kept}
    count = state.count + 1
    kept = step(count, {**old, **new}, state.masks.kept)

    def one(name, move):
      return jnp.where(kept[name], move, -old[name]) if name in kept else move

    updates = tree.map_named(one, updates, is_leaf=tree.is_rows)
    return updates, PruneState(count, Masks(kept), inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _check_no_adapters(params: Any) -> None:
  if any(name.startswith('adapters/') for name in tree.named(params)):
    raise InputError(
      'optimizer=bmx.compress.prune: expected a task without adapters, whose base is frozen and '
      'would not be pruned; train the adapters first, then prune the run: bmx compress RUN '
      '--magnitude merges them'
    )
