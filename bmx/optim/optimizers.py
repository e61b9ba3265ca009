"""Optimizers: optax transforms, with clipping, freezing and masked decay around them.

Any optax callable is an optimizer by its import path, `dict(call='optax:lion', b1=0.9)`; `wrap`
gives it clipping and freezing: `dict(call='bmx.optim.optimizers:wrap', clip=1.0,
inner=dict(call='optax:lion'))`. Each of these raises InputError for a number that is not finite or
is out of its range.
"""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import optax

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import Schedule

log = logging.getLogger('bmx')
# Weight decay is for parameters that multiply, not for norms and biases; the name decides.
DECAYED = '(^|/)(kernel|kernel_a|kernel_b|table|experts/(up|gate|down))$'


def sgd(
  learning_rate: Schedule,
  momentum: float = 0.0,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  decay: str = DECAYED,
  clip: float = 0.0,
  freeze: str = '',
) -> optax.GradientTransformation:
  """Stochastic gradient descent; adds weight decay to the gradient, as PyTorch does.

  Args:
    learning_rate: of a step.
    momentum: decay of the sum of the gradients; 0 is without.
    nesterov: follows the gradient at the point that the momentum leads to.
    weight_decay: share of a parameter that is added to its gradient.
    decay: regex of the parameters that decay.
    clip: largest global norm of the gradient; 0 disables clipping.
    freeze: regex of parameters that stay as they are, and have no moments; '' freezes none.

  Raises InputError for Nesterov's method without momentum, which it extrapolates.
  """
  check_number('momentum', momentum, at_least=0, below=1)
  if nesterov and not momentum:
    raise InputError('momentum=0: expected 0 < momentum < 1 with nesterov=True')
  trace = optax.trace(momentum, nesterov) if momentum else optax.identity()
  core = optax.chain(_decay(weight_decay, decay, freeze), trace)
  tx = wrap(optax.chain(core, optax.scale_by_learning_rate(learning_rate)), clip, freeze)
  return _demand(tx, decay)


def adam(
  learning_rate: Schedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  clip: float = 0.0,
  freeze: str = '',
) -> optax.GradientTransformation:
  """Adam (Kingma & Ba 2015).

  Args:
    learning_rate: of a step.
    b1: decay of the mean of the gradients.
    b2: decay of the mean of their squares.
    eps: added to the root of that mean.
    clip: largest global norm of the gradient; 0 disables clipping.
    freeze: regex of parameters that stay as they are, and have no moments; '' freezes none.
  """
  check_moments(b1, b2, eps)
  return wrap(optax.adam(learning_rate, b1, b2, eps), clip, freeze)


def adamw(
  learning_rate: Schedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.01,
  decay: str = DECAYED,
  layer_decay: float = 1.0,
  clip: float = 0.0,
  freeze: str = '',
) -> optax.GradientTransformation:
  """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

  Args:
    learning_rate: of a step.
    b1: decay of the mean of the gradients.
    b2: decay of the mean of their squares.
    eps: added to the root of that mean.
    weight_decay: share of a parameter that is subtracted, times the learning rate.
    decay: regex of the parameters that decay.
    layer_decay: factor of the learning rate for each block below the head, see `by_layer`.
    clip: largest global norm of the gradient; 0 disables clipping.
    freeze: regex of parameters that stay as they are, and have no moments; '' freezes none.
  """
  check_moments(b1, b2, eps)
  core = optax.chain(optax.scale_by_adam(b1, b2, eps), _decay(weight_decay, decay, freeze))
  tx = wrap(optax.chain(core, optax.scale_by_learning_rate(learning_rate)), clip, freeze)
  # Around the frozen, too: they count as layers.
  return _demand(optax.chain(tx, by_layer(layer_decay)) if layer_decay != 1 else tx, decay)


def check_moments(b1: float, b2: float, eps: float) -> None:
  """Raises InputError for decays of Adam's moments, or an eps, that are out of range."""
  check_number('b1', b1, at_least=0, below=1)
  check_number('b2', b2, at_least=0, below=1)
  check_number('eps', eps, above=0)


BLOCK = re.compile(r'(^|/)block_(\d+)/')
BLOCKS = re.compile(r'(^|/)blocks/')
BELOW = re.compile(r'(^|/)(embed/table|position|type|encoder/norm/\w+)$')


def by_layer(rate: float) -> optax.GradientTransformation:
  """Scales updates by layer: block i of L by rate^(L - i), embeddings by rate^(L + 1), heads by 1.

  Source: Howard & Ruder 2018; Clark et al. 2020.

  Raises InputError if no parameter is in a block.
  """
  if not 0 < rate <= 1:
    raise InputError(f'layer_decay={rate}: expected 0 < layer_decay <= 1')

  def depth(params):
    names = tree.named(params)
    found = [int(m[2]) + 1 for m in map(BLOCK.search, names) if m]
    found += [v.shape[0] for name, v in names.items() if BLOCKS.search(name)]
    if not found:
      raise InputError(f'layer_decay={rate}: expected parameters in blocks; set layer_decay=1')
    return max(found)

  def scale(name, update, layers):
    block = BLOCK.search(name)
    if block:
      return update * rate ** (layers - int(block[2]))
    if BLOCKS.search(name):
      rates = rate ** (layers - jnp.arange(layers, dtype=update.dtype))
      return update * rates.reshape(-1, *[1] * (update.ndim - 1))
    return update * rate ** (layers + 1) if BELOW.search(name) else update

  def update(updates, state, params=None):
    layers = depth(updates)
    return tree.map_named(lambda name, u: scale(name, u, layers), updates), state

  def init(params):
    depth(params)
    return optax.EmptyState()

  return optax.GradientTransformation(init, update)


def wrap(
  inner: optax.GradientTransformation, clip: float = 0.0, freeze: str = ''
) -> optax.GradientTransformation:
  """Wraps any transform: clipping by global norm before it, and some parameters frozen."""
  check_number('clip', clip, at_least=0)
  tx = optax.chain(optax.clip_by_global_norm(clip), inner) if clip else inner
  if not freeze:
    return tx

  def labels(params):
    frozen = tree.mask(params, freeze)
    return tree.map_named(lambda _, f: 'frozen' if f else 'trained', frozen)

  return optax.partition({'trained': tx, 'frozen': optax.set_to_zero()}, labels)


def _decay(rate: float, pattern: str, freeze: str) -> optax.GradientTransformation:
  check_number('weight_decay', rate, at_least=0)
  if not rate:
    return optax.identity()
  mask = functools.partial(tree.mask, pattern=pattern, required=False)
  core = optax.add_decayed_weights(rate, mask)

  def init(params):
    if not freeze and not any(jax.tree.leaves(mask(params))):
      _warn_once(
        f'weight_decay={rate} moves nothing: no parameter is named kernel or table; name what '
        'decays with decay=REGEX'
      )
    return core.init(params)

  return optax.GradientTransformation(init, core.update)


def _demand(tx: optax.GradientTransformation, pattern: str) -> optax.GradientTransformation:
  """Raises InputError from `init` if a user's pattern matches no parameter, frozen or not."""
  if pattern == DECAYED:
    return tx
  inner = optax.with_extra_args_support(tx)

  def init(params):
    tree.mask(params, pattern)
    return inner.init(params)

  return optax.GradientTransformationExtraArgs(init, inner.update)


@functools.cache  # `init` is traced for its shapes first, and again for its values
def _warn_once(text: str) -> None:
  log.warning(text)
