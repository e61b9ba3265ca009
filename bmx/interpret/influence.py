"""Which training examples a prediction comes from: TracIn over the checkpoints of a run."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Array, Batch, Task, Variables
from bmx.parallel import vmap_examples
from bmx.train.evaluate import eval_noise


def losses(task: Task, variables: Variables, batch: Batch) -> Array:
  """Returns the loss of each example, float32 [B], as in an evaluation; weights count.

  Args:
    task: whose examples do not see each other.
    variables: of the model.
    batch: of examples.

  Raises:
    InputError: a task whose loss is of pairs of examples.
  """
  if task.coupling == 'loss':
    raise InputError(f'influence: expected a loss of single examples, not {type(task).__name__}')

  def one(row: Batch) -> Array:
    batch = jax.tree.map(lambda x: x[None], row)
    return task.loss(variables, batch, eval_noise(), train=False).sum

  return vmap_examples(one)(batch)


def gradient(task: Task, variables: Variables, batch: Batch, row: Any) -> Variables:
  """Returns the gradient of the loss of one example with respect to the parameters.

  Args:
    task: see `losses`.
    variables: of the model.
    batch: of examples.
    row: int [], of the example.
  """
  # The whole batch, cut as the mesh wants it: one row could not be.
  of = lambda params: losses(task, {**variables, 'params': params}, batch)[row]
  return jax.grad(of)(variables['params'])


def along(task: Task, variables: Variables, batch: Batch, direction: Variables) -> Array:
  """Returns the derivative of each example's loss along a direction of the parameters: [B].

  It is the product of the example's gradient with the direction, in one forward pass: no gradient
  of a single example is held.

  Args:
    task: see `losses`.
    variables: of the model.
    batch: of examples.
    direction: like 'params'.
  """
  of = lambda params: losses(task, {**variables, 'params': params}, batch)
  return jax.jvp(of, (variables['params'],), (direction,))[1]


def tracin(
  checkpoints: Iterable[tuple[Any, float]],
  count: int,
  gradient_of: Callable[[Any, int], Any],
  products: Callable[[Any, Any], np.ndarray],
) -> np.ndarray:
  """Sums learning rate times product of gradients over checkpoints: float64 [count, N].

  An entry above 0 is a training example whose update lowers the loss of the explained example.
  Source: Pruthi et al. 2020, TracInCP.

  Args:
    checkpoints: (variables, learning rate) of each.
    count: explained examples.
    gradient_of: (variables, explained example) -> gradient of its loss.
    products: (variables, direction) -> its product with the gradient of each training example, [N].
  """
  total: Any = 0.0
  for variables, rate in checkpoints:
    rows = [products(variables, gradient_of(variables, i)) for i in range(count)]
    total = total + rate * np.stack(rows).astype(np.float64)
  return np.asarray(total)
