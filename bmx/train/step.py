"""The training step: gradient of a sum, divided once, applied if it is finite."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, add
from bmx.core.types import Array, Batch, GradFn, Task, Variables
from bmx.train.guard import guarded
from bmx.train.state import TrainState

log = logging.getLogger('bmx')
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Gradient:
  """The innermost GradFn: the gradient of a task's weighted sum."""

  task: Task

  @property
  def separable(self) -> bool:
    return self.task.separable

  def __call__(
    self, params: Variables, collections: Variables, batch: Batch, key: Array
  ) -> tuple[Variables, Metrics, Variables]:
    loss = lambda p: self.task.loss(p, collections, batch, key, train=True)
    grads, (metrics, collections) = jax.grad(loss, has_aux=True)(params)
    return grads, metrics, collections


@dataclasses.dataclass(frozen=True)
class Accumulate:
  """A GradFn over `steps` micro-batches, one after another; the sum is that of the whole batch.

  Micro-batch i has rows i, i + steps, i + 2·steps, ...: a strided split, so that no row of a
  sharded batch moves. Where examples see each other (batch norm), they see those of their
  micro-batch only.
  """

  inner: GradFn
  steps: int
  batch_size: int

  def __post_init__(self):
    if self.steps < 1 or self.batch_size % self.steps:
      raise InputError(
        f'accumulation: {self.steps} steps do not divide batch_size={self.batch_size}'
      )
    if self.steps > 1 and not self.separable:
      log.warning('accumulation: examples of this task see only those of their micro-batch')

  @property
  def separable(self) -> bool:
    return getattr(self.inner, 'separable', True)

  def __call__(
    self, params: Variables, collections: Variables, batch: Batch, key: Array
  ) -> tuple[Variables, Metrics, Variables]:
    split = lambda x: x.reshape(-1, self.steps, *x.shape[1:]).swapaxes(0, 1)
    micro = jax.tree.map(split, batch)
    # The first micro-batch outside the scan gives the carry its structure and dtypes.
    head, tail = jax.tree.map(lambda x: x[0], micro), jax.tree.map(lambda x: x[1:], micro)
    first = self.inner(params, collections, head, jax.random.fold_in(key, 0))

    def body(carry, item):
      (grads, metrics, collections), (i, batch) = carry, item
      g, m, c = self.inner(params, collections, batch, jax.random.fold_in(key, i))
      return (jax.tree.map(jnp.add, grads, g), add(metrics, m), c), None

    return jax.lax.scan(body, first, (jnp.arange(1, self.steps), tail))[0]


def step_key(key: Array, step: Any) -> Array:
  """The key of all noise of one step, from the run's key."""
  return jax.random.fold_in(jax.random.fold_in(key, streams.STEP), step)


def make_train_step(
  grad_fn: GradFn, tx: optax.GradientTransformation, *, ema: float = 0.0, spike: float = 0.0
) -> Step:
  """-> step(state, batch) -> (state, metrics).

  Args:
    ema: decay of the moving average of the parameters; 0 keeps none.
    spike: see `guard.guarded`.
  """

  def update(state, grads, collections):
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.ema
    if ema:
      average = jax.tree.map(lambda a, p: a + (1 - ema) * (p - a), average, params)
    return state.replace(
      params=params, opt_state=opt_state, collections=collections, ema=average, skips=jnp.int32(0)
    )

  def step(state, batch):
    key = step_key(state.key, state.step)
    grads, metrics, collections = grad_fn(state.params, state.collections, batch, key)
    count = jnp.maximum(metrics['loss'][1], 1.0)
    grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
    state, metrics = guarded(update, state, grads, collections, metrics, spike)
    return state.replace(step=state.step + 1), metrics

  return step


def make_dispatch(
  step: Step, take: Callable[[Any, Any, Any], Batch], patience: int, depth: int
) -> Any:
  """Several steps in one program: dispatch(state, constants, group, n) -> (state, metric sums,
  skips).

  n, at most `depth`, is traced, so that groups of every length run the same program: two programs
  for one step need not give the same bits. The loop ends early once the guard has refused
  `patience` updates in a row. Where `depth` is 1 there is no loop.
  """

  def once(state, constants, group, n):
    state, metrics = step(state, take(constants, group, 0))
    return state, metrics, state.skips

  def dispatch(state, constants, group, n):
    batch = jax.eval_shape(take, constants, group, 0)
    shapes = jax.eval_shape(step, state, batch)[1]
    sums = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), shapes)

    def body(carry):
      i, state, sums = carry
      state, metrics = step(state, take(constants, group, i))
      return i + 1, state, add(sums, metrics)

    def more(carry):
      i, state, _ = carry
      return (i < n) & (state.skips < patience) if patience else i < n

    _, state, sums = jax.lax.while_loop(more, body, (jnp.int32(0), state, sums))
    return state, sums, state.skips

  return dispatch if depth > 1 else once
