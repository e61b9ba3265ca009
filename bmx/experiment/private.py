"""Private training of an experiment: the config word `privacy`."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bmx import config as recipes
from bmx.config.words import DEFAULT_CALLS
from bmx.core.data import Digested, Stateful
from bmx.core.errors import InputError
from bmx.core.events import Hook
from bmx.core.experiment import Eval
from bmx.core.types import GradFn, Secret, Task
from bmx.data.batches import Batches
from bmx.parallel import Layout
from bmx.privacy import mechanism
from bmx.train.gradients import Gradient, described

log = logging.getLogger('bmx')
FIXED = ('pixels',)  # fitted values that do not depend on the examples


class Training(NamedTuple):
  """What the word `privacy` changes of an experiment.

  Attributes:
    data: training data.
    steps: of the run.
    grad_fn: the gradient.
    secret: of the noise; None without privacy.
    values: name -> function of the completed steps, for log lines.
    hooks: name -> hook.
  """

  data: Batches
  steps: int
  grad_fn: GradFn
  secret: Secret | None = None
  values: Mapping[str, Callable[[int], float]] = {}
  hooks: Mapping[str, Hook] = {}


def training(
  c: dict[str, Any],
  layout: Layout,
  data: Batches,
  task: Task,
  steps: int,
  wrap: Callable[[GradFn, int], GradFn],
  *,
  trains: bool,
) -> Training:
  """Returns the training of an experiment, private if the config asks for it.

  The config gets what a run decides: the noise multiplier, and the fingerprint of the secret.

  Args:
    c: the resolved config.
    layout: of the run.
    data: training data.
    task: of the experiment.
    steps: as the config has them.
    wrap: (GradFn, rows of a batch) -> the wrappers of the word `grad` around it.
    trains: whether the data are read, so that the experiment may be trained.

  Raises:
    InputError: see `bmx.privacy.Privacy`; another secret than the run began with.
  """
  gradient = Gradient(task)
  if not c['privacy']:
    return Training(data, steps, wrap(gradient, c['batch_size']))
  c['privacy'] = {'call': DEFAULT_CALLS['privacy']} | c['privacy']
  words = recipes.build(c['privacy'], 'privacy')
  if not isinstance(words, mechanism.Privacy):
    raise InputError(
      f'privacy.call={c["privacy"]["call"]}: expected {DEFAULT_CALLS["privacy"]}, or a class '
      'derived from it'
    )
  mechanism.check_task(task)
  if c['allow_changed_data']:
    raise InputError(
      'allow_changed_data=True: expected False with privacy, whose accounting holds for one set of '
      'examples'
    )
  made = mechanism_of(c, words, layout, data, steps, wrap(gradient, c['batch_size']), trains)
  secret = mechanism.Secret(words.secret)
  c['privacy'] |= {'noise_multiplier': made.noise}
  if trains:
    check_fingerprint(words, secret)
    c['privacy'] |= {'fingerprint': secret.fingerprint}
    log.info('%s', made.describe())
    note_fitted(data)
  values = {'epsilon': made.accountant.epsilon}
  sampled = made.sampled(data, secret)
  hooks = {'privacy': Hook(0, made.section, 'privacy', reads_state=False)}
  return Training(sampled, made.steps, made.around(gradient, wrap), secret, values, hooks)


def mechanism_of(
  c: Mapping[str, Any],
  words: mechanism.Privacy,
  layout: Layout,
  data: Batches,
  steps: int,
  grad_fn: GradFn,
  trains: bool,
) -> mechanism.Mechanism:
  """Returns the mechanism of examples, or of clients; the arguments are those of `training`.

  Raises InputError for data without clients.
  """
  shards = math.prod(layout.mesh.shape[a] for a in layout.rules['batch'])
  clients = data.metadata.get('num_clients')
  if words.unit == 'example':
    if clients is not None:
      raise InputError(
        'privacy.unit=example: expected client with data of clients, whose rounds draw clients and '
        'not examples; set --config.privacy.unit=client'
      )
    multiple = shards * described(grad_fn).micro_batches
    return words.mechanism(data.size, c['batch_size'], steps, multiple, trains)
  if clients is None:
    raise InputError(
      'privacy.unit=client: expected data of clients; set --config.data.call to a part of '
      'bmx.data.clients, such as bmx.data.clients:dirichlet'
    )
  per_round = data.metadata['clients_per_round']
  return words.mechanism(clients, per_round, steps, shards, trains, c['batch_size'] // per_round)


def check_fingerprint(words: mechanism.Privacy, secret: Secret) -> None:
  """Raises InputError if a stored config names another secret."""
  if words.fingerprint and words.fingerprint != secret.fingerprint:
    raise InputError(
      f'privacy.secret={words.secret}: expected the secret of fingerprint {words.fingerprint}, '
      f'with which the run began, found {secret.fingerprint}'
    )


def note_fitted(data: Batches) -> None:
  """Warns of values that were fitted to the training data: ε does not cover them."""
  state = data.examples.state() if isinstance(data.examples, Stateful) else {}
  fitted = sorted(set(state) - set(FIXED))
  if fitted:
    log.warning(
      'NOT COVERED BY ε: data.json holds %s, fitted to the training data without noise. Where they '
      'reveal an example, fit them to public data: --config.fitted=RUN', ', '.join(fitted),
    )  # fmt: skip


def check_evals(data: Batches, evals: Mapping[str, Eval]) -> None:
  """Raises InputError naming an `eval` entry of the training examples: its metrics are exact."""
  if not isinstance(data.examples, Digested):
    return
  own = data.examples.digest()
  for name, entry in evals.items():
    other = entry.data.examples
    if own and isinstance(other, Digested) and other.digest() == own:
      raise InputError(
        f'eval.{name}: expected other examples than the training data: its metrics are exact, and '
        'reveal what ε should protect; remove the entry (log lines have a noised training loss)'
      )
