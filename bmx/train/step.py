"""The training step: gradient of a sum, divided once, applied if it is finite."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bmx.core import streams, tree
from bmx.core.experiment import Experiment
from bmx.core.metrics import Metrics, add
from bmx.core.types import Array, Batch, GradFn, Noise, Variables
from bmx.optim.masks import masked
from bmx.train.gradients import divide
from bmx.train.guard import guarded
from bmx.train.state import TrainState, split_constant, variables_of, with_constant

Step = Callable[..., tuple[TrainState, Metrics]]


def step_key(key: Array, step: Any) -> Array:
  """Returns the key of all noise of one step, from the run's key."""
  return jax.random.fold_in(jax.random.fold_in(key, streams.STEP), step)


def step_noise(state: TrainState, step: Any, secret: Array | None = None) -> Noise:
  """Returns the noise of one step of a run."""
  return Noise(step_key(state.key, step), step, secret)


def abstract_secret(x: Experiment) -> jax.ShapeDtypeStruct | None:
  """Returns the shape of the secret of a private experiment; None without one."""
  return None if x.secret is None else jax.ShapeDtypeStruct((2,), jnp.uint32)


def make_train_step(
  grad_fn: GradFn,
  tx: optax.GradientTransformation,
  *,
  ema: float = 0.0,
  spike: float = 0.0,
  constant: tuple[str, ...] = (),
) -> Step:
  """Makes step(state, batch, secret=None) -> (state, metrics).

  Args:
    grad_fn: the gradient.
    tx: the optimizer; it gets `step`, the completed steps, if it takes further arguments.
    ema: decay of the moving averages of parameters and averaged collections; 0 keeps none.
    spike: see `guard.guarded`.
    constant: collections that no step changes (`Task.constant`).
  """
  inner = optax.with_extra_args_support(tx)

  def update(state, gradient, collections):
    updates, opt_state = inner.update(gradient, state.opt_state, state.params, step=state.step)
    params = apply_updates(state.params, updates)
    collections = {**state.collections, **collections}
    new = {'params': params, **collections}
    average = state.ema and {k: _averaged(old, new[k], ema) for k, old in state.ema.items()}
    if average:
      average['params'] = masked(opt_state, average['params'])
    return state.replace(params=params, opt_state=opt_state, collections=collections, ema=average)

  def step(state, batch, secret=None):
    noise = step_noise(state, state.step, secret)
    grads = divide(grad_fn(variables_of(state), batch, noise))
    state, fixed = split_constant(state, constant)
    state, metrics = guarded(update, state, grads, spike)
    return with_constant(state.replace(step=state.step + 1), fixed), metrics

  return step


def train_step(x: Experiment) -> Step:
  """Makes the training step of an experiment."""
  spike, constant = x.guard['spike'], x.task.constant
  return make_train_step(x.grad_fn, x.tx, ema=x.ema, spike=spike, constant=constant)


def apply_updates(params: Variables, updates: Any) -> Variables:
  """Adds updates to parameters; an update of `SparseRows` is added to its rows only."""

  def one(update, param):
    if tree.is_rows(update):
      return param.at[update.indices].add(update.values.astype(param.dtype), mode='drop')
    return optax.apply_updates(param, update)

  return jax.tree.map(one, updates, params, is_leaf=tree.is_rows)


def _averaged(average: Variables, new: Variables, decay: float) -> Variables:
  """Moves float leaves towards the new values; replaces other leaves."""

  def one(a, x):
    return a + (1 - decay) * (x - a) if jnp.issubdtype(x.dtype, jnp.floating) else x

  return jax.tree.map(one, average, new)


def make_dispatch(
  step: Step,
  take: Callable[[Any, Any, Any], Batch],
  patience: int,
  depth: int,
  constant: tuple[str, ...] = (),
) -> Any:
  """Several steps in one program.

  The program is dispatch(state, arrays, group, n, secret=None) -> (state, metric sums,
  consecutive skips). n, at most `depth`, is traced, so that groups of every length run the same
  program: two programs for one step need not give the same bits.

  Args:
    step: see `make_train_step`.
    take: (resident arrays, group, i) -> the batch of step i of a group.
    patience: the loop ends early once the guard has rejected so many updates in a row; 0 is never.
    depth: most steps of a call; 1 has no loop.
    constant: collections that no step changes; the loop does not carry them.
  """

  def once(state, arrays, group, n, secret=None):
    state, metrics = step(state, take(arrays, group, 0), secret)
    return state, metrics, state.consecutive_skips

  def dispatch(state, arrays, group, n, secret=None):
    batch = jax.eval_shape(take, arrays, group, 0)
    shapes = jax.eval_shape(step, state, batch, secret)[1]
    sums = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), shapes)
    state, fixed = split_constant(state, constant)

    def body(carry):
      i, state, sums = carry
      state, metrics = step(with_constant(state, fixed), take(arrays, group, i), secret)
      return i + 1, split_constant(state, constant)[0], add(sums, metrics)

    def more(carry):
      i, state, _ = carry
      return (i < n) & (state.consecutive_skips < patience) if patience else i < n

    _, state, sums = jax.lax.while_loop(more, body, (jnp.int32(0), state, sums))
    return with_constant(state, fixed), sums, state.consecutive_skips

  return dispatch if depth > 1 else once
