"""Federated training on several machines: a silo's part of a round, and the server's.

A silo trains on its own examples with the local steps of `Federated`; the server averages changes
and updates the parameters with the training step of a run. What goes between them is arrays, which
an engine carries (`experiments/federated/flower_app.py`: Flower); nothing here imports one. The
rounds are those of a simulation of the same silos in one process, except for random numbers of the
model: dropout of a silo has a key of its own.

K silos, all of which a round asks.
"""

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.core.types import Batch, Grads, Noise, Variables
from bmx.data.clients import Clients
from bmx.parallel import jit
from bmx.privacy.federated import Federated
from bmx.train.state import state_spec
from bmx.train.step import train_step

log = logging.getLogger('bmx')


class Update(NamedTuple):
  """What a silo sends.

  Attributes:
    change: of each parameter, in the order of their names.
    examples: number of the silo's examples.
    loss: [sum, count] of the local steps, float32 [2].
  """

  change: Sequence[np.ndarray]
  examples: int
  loss: np.ndarray


class Silo:
  """One client, with the data of an experiment of its own.

  Args:
    experiment: of a recipe with `Federated` whose data have one client, `batch_size` the rows of a
      silo in a round.

  Raises:
    InputError: other data or another gradient; methods whose state is on one machine.
  """

  def __init__(self, experiment: Experiment):
    self.experiment, self.federated = experiment, _federated(experiment)
    clients = experiment.data.examples
    if not isinstance(clients, Clients) or len(clients.groups) != 1:
      raise InputError(
        f'data: expected those of one client, the silo, found '
        f'{experiment.data.metadata.get("num_clients", "no")} clients; name one source in '
        'bmx.data.clients:sources'
      )
    self.clients = clients
    train = lambda params, rows, noise: self.federated.train({'params': params}, rows, noise)
    self._train = jit(train, experiment.layout)
    self._shapes = state_spec(experiment).abstract.params

  @property
  def examples(self) -> int:
    """Number of its examples."""
    return self.clients.size

  def answer(
    self, params: Sequence[np.ndarray], number: int, silo: int, sizes: Sequence[int]
  ) -> Update:
    """Trains from the parameters of a round.

    Args:
      params: in the order of their names.
      number: of the round.
      silo: own number, from 0.
      sizes: examples of every silo: the draws of a round depend on them.

    Raises:
      InputError: parameters of another model; sizes that are not those of the silo.
    """
    if not 0 <= silo < len(sizes) or sizes[silo] != self.examples:
      raise InputError(
        f'silo {silo} of sizes {list(sizes)}: expected {self.examples} examples, its own'
      )
    check(params, self._shapes, 'parameters of the server')
    given = _nested(params, self._shapes)
    noise = Noise(jax.random.fold_in(jax.random.PRNGKey(silo), number), jnp.int32(number))
    trained = self._train(given, self._rows(number, silo, sizes), noise)
    change = [np.asarray(x[0]) for x in tree.named(trained.change).values()]
    return Update(change, self.examples, np.asarray(trained.metrics['loss'][0]))

  def _rows(self, number: int, silo: int, sizes: Sequence[int]) -> Batch:
    """Returns the rows that the simulation of all silos would give this one."""
    ends = np.cumsum([0, *sizes])
    groups = [np.arange(a, b) for a, b in itertools.pairwise(ends)]
    names = [str(i) for i in range(len(sizes))]
    every = dataclasses.replace(self.clients, groups=groups, names=names, per_round=len(sizes))
    rows = self.experiment.data.batch_size * len(sizes)
    indices, weights = every.indices(number * rows + np.arange(rows), rows)
    own = every.owners[indices] == silo
    local = indices[own] - ends[silo]
    return {**self.clients.rows(local, np.arange(len(local))), 'weights': weights[own]}


class Server:
  """The parameters, and the optimizer of an experiment.

  Args:
    experiment: of the silos' recipe; of its data only the shapes are used.

  Raises InputError for another gradient than `Federated`; methods whose state is on one machine.
  """

  def __init__(self, experiment: Experiment):
    self.experiment, self.federated = experiment, _federated(experiment)
    spec = state_spec(experiment)
    self.state = spec.create()
    sent = dataclasses.replace(experiment, grad_fn=_given)
    self._step = jit(train_step(sent), experiment.layout, out_shardings=(spec.shardings, None))

  @property
  def params(self) -> list[np.ndarray]:
    """Arrays in the order of their names."""
    return [np.asarray(x) for x in tree.named(jax.device_get(self.state.params)).values()]

  def step(self, updates: Mapping[str, Update]) -> dict[str, float]:
    """Applies the updates of a round, of those silos that answered -> metrics.

    An update that is not finite is left out, with a warning: it counts as one that did not come.

    Args:
      updates: name of a silo -> its update.

    Raises:
      InputError: an update of other arrays than the parameters.
    """
    shapes = self.state.params
    total, count, loss = [np.zeros(x.shape, np.float32) for x in self.params], 0.0, np.zeros(2)
    sent = 0
    for name, update in updates.items():
      check(update.change, shapes, f'update of silo {name}')
      if not all(np.isfinite(x).all() for x in (*update.change, update.loss)):
        log.warning('update of silo %s: expected finite numbers; it is left out', name)
        continue
      weight = float(update.examples) if self.federated.weights == 'examples' else 1.0
      total = [x - weight * change for x, change in zip(total, update.change, strict=True)]
      count, loss, sent = count + weight, loss + update.loss, sent + 1
    batch = {
      'sum': _nested(total, shapes),
      'count': jnp.float32(count),
      'loss': jnp.float32(loss),
    }
    self.state, metrics = self._step(self.state, batch)
    mean = {k: float(v[0] / max(v[1], 1e-30)) for k, v in jax.device_get(metrics).items()}
    return {**mean, 'clients': sent, 'clients_rejected': len(updates) - sent}


def check(arrays: Sequence[np.ndarray], shapes: Variables, what: str) -> None:
  """Raises InputError, naming a parameter, unless arrays have the shapes of parameters."""
  named = tree.named(shapes)
  if len(arrays) != len(named):
    raise InputError(
      f'{what}: expected {len(named)} arrays, found {len(arrays)}: use one recipe for all silos'
    )
  for (name, leaf), array in zip(named.items(), arrays, strict=True):
    if array.shape != leaf.shape or array.dtype != np.float32:
      raise InputError(
        f'{what}: {name}: expected float32 {list(leaf.shape)}, found {array.dtype} '
        f'{list(array.shape)}: use one recipe for all silos'
      )


def _given(variables: Variables, batch: Batch, noise: Noise) -> Grads:
  """A GradFn whose gradient is its batch."""
  sums: Any = batch
  return Grads(sums['sum'], sums['count'], {'loss': sums['loss']}, {})


def _nested(arrays: Sequence[np.ndarray], shapes: Variables) -> Any:
  return tree.nested(dict(zip(tree.named(shapes), arrays, strict=True)))


def _federated(experiment: Experiment) -> Federated:
  """Returns the GradFn of an experiment; raises InputError if silos cannot use it."""
  made: Any = experiment.grad_fn
  if not isinstance(made, Federated):
    raise InputError(f'grad: expected bmx.privacy.federated:Federated, found {type(made).__name__}')
  if made.method == 'scaffold' or made.secure_bits or made.late or made.dropout:
    raise InputError(
      'grad: expected fedavg or fedprox without secure_bits, late and dropout for silos: the first '
      'two need state of all clients on one machine, the others are simulated'
    )
  return made
