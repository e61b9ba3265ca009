"""Federated averaging as a GradFn: a round is a step, its gradient the average of local training.

The rows of a batch are those of C clients (`bmx.data.clients`), R for each. Every client trains
from the same parameters for S local steps of R / S rows; the gradient of the round is the average
of old minus new parameters, so that any optimizer is a server optimizer: SGD with rate 1 is FedAvg
(McMahan et al. 2017), Adam is FedAdam (Reddi et al. 2021).

K clients of all, C of a round.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bmx.core import tree
from bmx.core.errors import InputError, did_you_mean
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, Coupling, Grads, Noise, Variables
from bmx.parallel import constrain, vmap_examples
from bmx.privacy import late as queue
from bmx.privacy import secure
from bmx.privacy.late import LATE
from bmx.train.gradients import GradWrapper, described, divide

METHODS = ('fedavg', 'fedprox', 'scaffold')
WEIGHTS = ('examples', 'equal')
CONTROL = (
  'control'  # collection of SCAFFOLD: 'server' as the parameters, 'clients' [K, ...] of each
)


class Trained(NamedTuple):
  """The clients of a round after their local training.

  Attributes:
    change: of the parameters of each, [C, ...].
    metrics: sums of each, [C, 2].
    answered: bool [C], whether it has rows and did not drop out.
    finite: bool [C], whether all numbers of its update are.
    steps: int [C], that had rows.
    client: its number, int [C].
    own: its control variates, [C, ...]; None without.
  """

  change: Any
  metrics: Any
  answered: Array
  finite: Array
  steps: Array
  client: Array
  own: Any


@dataclasses.dataclass(frozen=True)
class Federated(GradWrapper):
  """The gradient of a round: minus the average change of the parameters of its clients.

  An update that is not finite counts as one of a client that dropped out; the metric
  `clients_rejected` counts them. A round without any update leaves the gradient zero; one in which
  each client that answers has an update that is not finite is not finite itself, which the guard
  rejects.

  Attributes:
    inner: GradFn of a local step.
    batch_size: rows of a round, of all clients.
    metadata: facts of the data, `num_clients` and `clients_per_round` among them.
    local_steps: S, of a client in a round.
    learning_rate: of the local steps, which are plain gradient descent.
    method: 'fedavg'; 'fedprox', with `proximal` (Li et al. 2020); 'scaffold', with control variates
      that correct the drift of clients (Karimireddy et al. 2020, option II).
    proximal: μ of FedProx: weight of half the squared distance from the round's parameters.
    weights: of the clients in the average: 'examples', as many as each has; or 'equal'.
    dropout: probability of a client to drop out of a round after its training.
    late: probability of an update that is sent to come `late_rounds` rounds late.
    late_rounds: see `late`.
    late_weight: factor of the weight of a late update, from 0 (it is lost) to 1 (Xie et al. 2019).
    secure_bits: bits behind the binary point of a simulated secure aggregation; 0: without.

  Raises:
    InputError: data without clients; numbers out of range or that do not divide; a model whose
      examples see each other, or that carries state.
  """

  batch_size: int
  metadata: Mapping[str, Any]
  local_steps: int = 10
  learning_rate: float = 0.1
  method: str = 'fedavg'
  proximal: float = 0.0
  weights: str = 'examples'
  dropout: float = 0.0
  late: float = 0.0
  late_rounds: int = 1
  late_weight: float = 0.5
  secure_bits: int = 0

  def __post_init__(self):
    for name, known in (('method', METHODS), ('weights', WEIGHTS)):
      value = {'method': self.method, 'weights': self.weights}[name]
      if value not in known:
        near = did_you_mean(value, known)
        raise InputError(f'grad.{name}={value!r}: expected one of {", ".join(known)}{near}')
    check_number('grad.local_steps', self.local_steps, at_least=1)
    check_number('grad.learning_rate', self.learning_rate, above=0)
    check_number('grad.proximal', self.proximal, at_least=0)
    check_number('grad.dropout', self.dropout, at_least=0, below=1)
    check_number('grad.late', self.late, at_least=0, at_most=1)
    check_number('grad.late_rounds', self.late_rounds, at_least=1)
    check_number('grad.late_weight', self.late_weight, at_least=0, at_most=1)
    if self.late and (self.secure_bits or self.method == 'scaffold'):
      raise InputError(
        f'grad.late={self.late}: expected 0 with method=scaffold, whose control variates are those '
        'of one round, and with secure_bits, whose masks are'
      )
    if bool(self.proximal) != (self.method == 'fedprox'):
      raise InputError(
        f'grad.proximal={self.proximal} with method={self.method}: expected a number above 0 with '
        'fedprox, and 0 with another method'
      )
    if not 0 <= self.secure_bits <= 24:
      raise InputError(f'grad.secure_bits={self.secure_bits}: expected from 0 (off) to 24')
    self._check_inner()
    if 'num_clients' not in self.metadata:
      raise InputError(
        'grad: expected data that belong to clients; set --config.data.call to a part of '
        'bmx.data.clients, such as bmx.data.clients:dirichlet'
      )
    if self.batch_size % (self.clients * self.local_steps):
      raise InputError(
        f'batch_size={self.batch_size}: expected a multiple of {self.clients} clients of a round × '
        f'{self.local_steps} local steps (data.per_round, grad.local_steps)'
      )

  def _check_inner(self) -> None:
    """Raises InputError for models and wrappers whose local steps would differ from others."""
    inner = described(self.inner)
    if inner.coupling != 'none' or inner.carried:
      raise InputError(
        f'grad: expected a model whose examples do not see each other, found coupling='
        f'{inner.coupling!r}, carried={inner.carried}: batch norm and carried state would mix '
        'the data of clients'
      )

  @property
  def clients(self) -> int:
    """C."""
    return self.metadata['clients_per_round']

  @property
  def coupling(self) -> Coupling:
    """The rows of a client belong together: no part of a batch is a round."""
    return 'loss'

  @property
  def micro_batches(self) -> int:
    """Number of forward passes of a step."""
    return self.local_steps * super().micro_batches

  def init(self, variables: Variables) -> Variables:
    """Returns the control variates of SCAFFOLD and the queue of late updates, where they exist.

    Raises InputError for an inner GradFn with state of its own, which clients cannot share.
    """
    if own := super().init(variables):
      raise InputError(f'grad.inner: expected local steps without state, found {sorted(own)}')
    if self.late:
      return {LATE: queue.empty(variables['params'], self.late_rounds)}
    if self.method != 'scaffold':
      return {}
    zeros = lambda *lead: jax.tree.map(
      lambda x: jnp.zeros((*lead, *x.shape), jnp.float32), variables['params']
    )
    return {CONTROL: {'server': zeros(), 'clients': zeros(self.metadata['num_clients'])}}

  def __call__(self, variables: Variables, batch: Batch, noise: Noise) -> Grads:
    """Returns minus the weighted sum of the changes, with the sum of the weights as count."""
    control = variables.get(CONTROL)
    trained = self.train(variables, batch, noise)
    change, metrics, answered, finite = trained[:4]
    key = jax.random.fold_in(noise.key, self.clients)
    delayed = jax.random.bernoulli(jax.random.fold_in(key, 2), self.late, (self.clients,))
    on_time = answered & ~delayed
    sent = on_time & finite
    total, count, more = self._average(change, batch, sent, jax.random.fold_in(key, 1))
    collections = {}
    if self.late:
      sums = self._average(change, batch, answered & delayed & finite, key)[:2]
      collections[LATE], (due, weight) = queue.exchange(variables[LATE], noise.step, sums)
      total = jax.tree.map(lambda x, d: x + self.late_weight * d, total, due)
      count += self.late_weight * weight
    # Only clients with numbers that are not finite: so is the round.
    lost = on_time.any() & ~sent.any()
    total = jax.tree.map(lambda x: jnp.where(lost, jnp.nan, -x), total)
    seen = sent | (on_time & lost)
    metrics = jax.tree.map(lambda m: jnp.where(seen[:, None], m, 0).sum(0), metrics)
    counted = {'clients': sent, 'clients_rejected': answered & ~finite}
    counted |= {'clients_late': answered & delayed} if self.late else {}
    metrics |= {k: jnp.stack([v.sum(), 1]).astype(jnp.float32) for k, v in counted.items()} | more
    if control is not None:
      collections[CONTROL] = self._moved(control, trained, sent)
    return Grads(total, count, metrics, collections)

  def train(self, variables: Variables, batch: Batch, noise: Noise) -> 'Trained':
    """Trains the clients of a round."""
    control = variables.get(CONTROL)
    rest = {k: v for k, v in variables.items() if k not in (CONTROL, LATE)}
    split = lambda x: x.reshape(self.clients, self.local_steps, -1, *x.shape[1:])
    rows = jax.tree.map(split, batch)
    client = constrain(rows['client'][:, 0, 0], 'batch')
    own = control and jax.tree.map(lambda x: x[client], control['clients'])
    correction = control and jax.tree.map(lambda s, c: s[None] - c, control['server'], own)
    change, metrics, steps = self._train(rest, rows, correction, noise)
    finite = jnp.stack([_finite(x) for x in jax.tree.leaves((change, metrics))]).all(0)
    key = jax.random.fold_in(noise.key, self.clients)
    answered = (steps > 0) & ~jax.random.bernoulli(key, self.dropout, (self.clients,))
    return Trained(change, metrics, answered, finite, steps, client, own)

  def _moved(self, control: Any, trained: 'Trained', sent: Array) -> dict[str, Any]:
    drift = jax.tree.map(
      lambda x: x / self.learning_rate / _along(trained.steps, x), trained.change
    )
    return _moved(control, drift, trained.own, trained.client, sent)

  def _train(
    self, variables: Variables, rows: Batch, correction: Any, noise: Noise
  ) -> tuple[Any, Any, Array]:
    """Trains all clients: rows [C, S, b, ...] -> the results of `_local`, [C, ...] each."""

    def train(rows, correction, key):
      return self._local(variables, rows, correction, dataclasses.replace(noise, key=key))

    keys = jax.vmap(lambda i: noise.fold(i).key)(jnp.arange(self.clients))
    axes = (0, 0 if correction else None, 0)
    return vmap_examples(train, axes)(rows, correction, keys)

  def _local(
    self, variables: Variables, rows: Batch, correction: Any, noise: Noise
  ) -> tuple[Any, Any, Array]:
    """Trains one client -> (change of its parameters, sums of metrics, steps that had rows)."""
    start = variables['params']

    def step(params, item):
      number, batch = item
      grads = self.inner({**variables, 'params': params}, batch, noise.fold(number))
      _check(grads)
      there = (batch['weights'] > 0).any()
      gradient = divide(grads).sum
      if self.proximal:
        pull = lambda g, p, s: g + self.proximal * (p - s)
        gradient = jax.tree.map(pull, gradient, params, start)
      if correction is not None:
        gradient = jax.tree.map(jnp.add, gradient, correction)
      moved = jax.tree.map(lambda p, g: p - self.learning_rate * g, params, gradient)
      params = jax.tree.map(lambda new, old: jnp.where(there, new, old), moved, params)
      return params, (grads.metrics, there)

    end, (metrics, there) = jax.lax.scan(step, start, (jnp.arange(self.local_steps), rows))
    change = jax.tree.map(jnp.subtract, end, start)
    return change, jax.tree.map(lambda m: m.sum(0), metrics), there.sum()

  def _average(
    self, change: Any, batch: Batch, sent: Array, key: Array
  ) -> tuple[Any, Array, dict[str, Array]]:
    """Adds the weighted changes that were sent -> (sums, sum of the weights, further metrics)."""
    sizes = batch['client_examples'].reshape(self.clients, -1)[:, 0]
    weight = jnp.where(sent, sizes if self.weights == 'examples' else 1.0, 0.0)
    count = weight.sum()
    share = weight / jnp.maximum(count, 1e-30)
    shares = jax.tree.map(lambda x: jnp.where(_along(sent, x), x, 0) * _along(share, x), change)
    if not self.secure_bits:
      return jax.tree.map(lambda x: x.sum(0) * count, shares), count, {}
    masked = secure.messages(shares, sent, key, self.secure_bits)
    total = jax.tree.map(lambda x: x * count, secure.add(masked.values, self.secure_bits))
    saturated = jnp.stack([masked.saturated, jnp.ones_like(masked.saturated)])
    return total, count, {'secure_saturated': saturated}


def _moved(control: Any, drift: Any, own: Any, client: Array, sent: Array) -> dict[str, Any]:
  """Returns the control variates after a round; those of clients without an update stay.

  Args:
    control: before the round: 'server' and 'clients'.
    drift: change of each client, by its steps and their rate.
    own: control variates of the clients of the round, [C, ...].
    client: their numbers, int [C].
    sent: bool [C].
  """
  more = jax.tree.map(
    lambda s, d: jnp.where(_along(sent, d), -s[None] - d, 0.0), control['server'], drift
  )
  clients = jax.tree.map(
    lambda every, old, new: every.at[client].set(old + new), control['clients'], own, more
  )
  number = len(jax.tree.leaves(clients)[0])
  server = jax.tree.map(lambda s, new: s + new.sum(0) / number, control['server'], more)
  return {'server': server, 'clients': clients}


def _along(values: Array, x: Array) -> Array:
  """Reshapes a value of each client, [C], so that it broadcasts over x [C, ...]."""
  return values.reshape(-1, *[1] * (x.ndim - 1))


def _finite(x: Array) -> Array:
  """Returns whether all numbers of each client are finite: [C, ...] -> bool [C]."""
  return jnp.isfinite(x).reshape(len(x), -1).all(1)


def _check(grads: Grads) -> None:
  """Raises InputError for gradients that clients cannot average."""
  if grads.collections:
    raise InputError(
      f'grad: expected a model without running statistics, found {sorted(grads.collections)}: they '
      'are of one client'
    )
  if any(tree.is_rows(g) for g in tree.rows_or_leaves(grads.sum)):
    raise InputError(
      'grad: expected dense gradients for local training; set --config.task.model.sparse=False'
    )
