"""Differential privacy of clients: clipped changes of whole clients, drawn with one probability.

The unit is a client with all its examples (McMahan et al. 2018, Learning differentially private
recurrent language models): each one is in a round with the probability C / K, adds a change of
bounded norm, and the sum has the noise of `Noised` and a divisor that does not depend on who came.

K clients of all, C of a round on average, R rows of a client in a round.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Array, Batch, GradFn, Grads, Noise, Variables
from bmx.data.clients import Clients
from bmx.privacy.clip import COLLECTION, judged
from bmx.privacy.federated import Federated
from bmx.privacy.sampling import SecretDraws
from bmx.train.gradients import GradWrapper
from bmx.train.guard import norm


@dataclasses.dataclass(frozen=True)
class PoissonClients(SecretDraws):
  """Clients that are drawn for a round at random, from a secret; so is the order of their examples.

  A batch has R rows for each of a fixed number of places; places that a draw leaves free have
  weight 0. A draw of more clients than places keeps a random part of them: the accounting adds the
  probability of that to δ.

  Attributes:
    rows_each: R.
  """

  rows_each: int

  @property
  def expected(self) -> float:
    """Rows of a batch, on average."""
    return self.rows_each * self.inner.metadata['clients_per_round']

  def draw(self, number: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices and weights of the rows of a round, R of each client that is drawn."""
    clients = self.inner
    assert isinstance(clients, Clients)
    random, size = self.secret.generator(number), len(clients.groups)
    count = random.binomial(size, clients.per_round / size)
    drawn = random.choice(size, count, replace=False)[: rows // self.rows_each]
    parts = [clients.rows_of(int(client), self.rows_each, random) for client in drawn]
    empty = [(np.zeros(0, np.int64), np.zeros(0, np.float32))]
    indices, weights = zip(*(parts or empty), strict=True)
    return np.concatenate(indices), np.concatenate(weights)


@dataclasses.dataclass(frozen=True)
class ClippedClients(GradWrapper):
  """Minus the sum of the changes of the clients of a round, each of a norm of at most `clip`.

  A client counts if it answers, and if its loss and change are finite. Of the metrics only the loss
  remains: each client adds its mean loss, limited to ±`loss_bound`.

  Attributes:
    inner: local training.
    clip: largest L2 norm of a client's change; the first one, if the clip is adaptive.
    loss_bound: largest absolute loss of a client in the metrics.
    adaptive: the clip is state, that `Noised` moves (Andrew et al. 2021).

  Raises:
    InputError: local training whose result is not a sum with one term of bounded norm by client.
  """

  inner: Federated
  clip: float = 1.0
  loss_bound: float = 10.0
  adaptive: bool = False

  def __post_init__(self):
    kept = {'weights': 'equal', 'secure_bits': 0, 'late': 0.0}
    for name, value in kept.items():
      if (given := getattr(self.inner, name)) != value:
        raise InputError(
          f'grad.{name}={given}: expected {value} with privacy.unit=client, whose noise is for a '
          f'sum that has one term of one weight by client; set --config.grad.{name}={value}'
        )
    if self.inner.method == 'scaffold':
      raise InputError(
        'grad.method=scaffold: expected fedavg or fedprox with privacy.unit=client: control '
        'variates are sums of changes without noise'
      )

  def init(self, variables: Variables) -> Variables:
    """Returns the collections of the inner GradFn, and the state of an adaptive clip."""
    inner = super().init(variables)
    if not self.adaptive:
      return inner
    return {**inner, COLLECTION: {'clip': jnp.float32(self.clip), 'within': jnp.float32(0)}}

  def __call__(self, variables: Variables, batch: Batch, noise: Noise) -> Grads:
    """Returns the clipped sum; the count is that of the clients."""
    bound = variables[COLLECTION]['clip'] if self.adaptive else jnp.float32(self.clip)
    rest = {k: v for k, v in variables.items() if k != COLLECTION}
    trained = self.inner.train(rest, batch, noise)
    answered = trained.answered & trained.finite
    losses = jnp.where(answered[:, None], trained.metrics['loss'], 0.0)
    judge = jax.vmap(functools.partial(judged, bound, self.loss_bound))
    factors, values, counts, within = judge(jax.vmap(norm)(trained.change), losses)

    def add(change: Array) -> Array:
      along = lambda x: x.reshape(-1, *[1] * (change.ndim - 1))
      scaled = change * along(factors).astype(change.dtype)
      return -jnp.where(along(counts) > 0, scaled, 0).sum(0)

    state: dict[str, Any] = {}
    if self.adaptive:
      within = variables[COLLECTION]['within'] + within.sum()
      state[COLLECTION] = {'clip': bound, 'within': within}
    metrics = {'loss': jnp.stack([values.sum(), counts.sum()])}
    return Grads(jax.tree.map(add, trained.change), counts.sum(), metrics, state)


def federated_of(made: GradFn, rows: int, places: int) -> Federated:
  """Returns the local training of private rounds.

  Args:
    made: what the word `grad` makes.
    rows: of a batch.
    places: for clients in a batch.

  Raises:
    InputError: it is not local training.
  """
  if not isinstance(made, Federated):
    raise InputError(
      f'privacy.unit=client: expected grad.call=bmx.privacy.federated:Federated, found '
      f'{type(made).__name__}; set --config.privacy.unit=example to protect single examples'
    )
  metadata = {**made.metadata, 'clients_per_round': places}
  return dataclasses.replace(made, batch_size=rows, metadata=metadata)
