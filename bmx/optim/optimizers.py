"""Optimizers: optax transforms, with what every recipe wants around them.

Any optax callable is an optimizer by its import path, `dict(call='optax:lion', b1=0.9)`; `wrap`
gives it clipping and freezing: `dict(call='bmx.optim.optimizers:wrap', clip=1.0,
inner=dict(call='optax:lion'))`.
"""

import optax

from bmx.core import tree
from bmx.core.types import Schedule

DECAYED = 'kernel|table'  # weight decay is for what multiplies, not for norms and biases


def sgd(
  learning_rate: Schedule,
  momentum: float = 0.0,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  decay: str = DECAYED,
  clip: float = 0.0,
  freeze: str = '',
) -> optax.GradientTransformation:
  """Stochastic gradient descent; weight decay is added to the gradient, as in PyTorch."""
  trace = optax.trace(momentum, nesterov) if momentum else optax.identity()
  core = optax.chain(_decay(weight_decay, decay, freeze), trace)
  return wrap(optax.chain(core, optax.scale_by_learning_rate(learning_rate)), clip, freeze)


def adam(
  learning_rate: Schedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  clip: float = 0.0,
  freeze: str = '',
) -> optax.GradientTransformation:
  """Adam (Kingma & Ba 2015)."""
  return wrap(optax.adam(learning_rate, b1, b2, eps), clip, freeze)


def adamw(
  learning_rate: Schedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.01,
  decay: str = DECAYED,
  clip: float = 0.0,
  freeze: str = '',
) -> optax.GradientTransformation:
  """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

  Args:
    decay: regex of the parameters that decay.
    clip: the gradient's global norm is at most this; 0 is no clipping.
    freeze: regex of parameters that stay as they are, and have no moments; '' is none.
  """
  core = optax.chain(optax.scale_by_adam(b1, b2, eps), _decay(weight_decay, decay, freeze))
  return wrap(optax.chain(core, optax.scale_by_learning_rate(learning_rate)), clip, freeze)


def wrap(
  inner: optax.GradientTransformation, clip: float = 0.0, freeze: str = ''
) -> optax.GradientTransformation:
  """Any transform, with clipping by global norm before it and some parameters frozen."""
  tx = optax.chain(optax.clip_by_global_norm(clip), inner) if clip else inner
  if not freeze:
    return tx

  def labels(params):
    frozen = tree.mask(params, freeze)
    return tree.map_named(lambda _, f: 'frozen' if f else 'trained', frozen)

  return optax.partition({'trained': tx, 'frozen': optax.set_to_zero()}, labels)


def _decay(rate: float, pattern: str, freeze: str) -> optax.GradientTransformation:
  if not rate:
    return optax.identity()
  # Where some are frozen, all that decays may be: then no parameter is left to match.
  return optax.add_decayed_weights(
    rate, lambda params: tree.mask(params, pattern, required=not freeze)
  )
