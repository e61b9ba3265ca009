"""The config word `privacy`, and what a run makes of it."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

from bmx.core.errors import InputError, did_you_mean
from bmx.core.ranges import check_number
from bmx.core.types import GradFn, Task, facts_of
from bmx.data.batches import Batches
from bmx.privacy.accounting import LEAST_NOISE, Accountant, calibrated
from bmx.privacy.clients import ClippedClients, PoissonClients, federated_of
from bmx.privacy.clip import Clipped
from bmx.privacy.ghost import GhostClipped
from bmx.privacy.noise import Noised, Scales
from bmx.privacy.sampling import Poisson, check_rate, overflow, padded_rows
from bmx.privacy.secret import Secret
from bmx.runtime.report import Section
from bmx.train.gradients import Accumulate
from bmx.train.run import Event

log = logging.getLogger('bmx')
UNITS = ('example', 'client')
METHODS = {'vmap': Clipped, 'ghost': GhostClipped}
OVERFLOW = 0.01  # of δ, at most, for draws that do not fit their batch
USUAL, LARGEST = 10.0, 30.0  # ε that the padding is chosen for: without a budget; at most


@dataclasses.dataclass(frozen=True)
class Privacy:
  """Differentially private training, for the config word `privacy`.

  Attributes:
    epsilon: budget of the run; 0: none, ε is reported only.
    delta: probability with which the guarantee may fail; below 1 / examples.
    noise_multiplier: deviation of the noise over what an example adds; 0: chosen for `epsilon`.
    clip: largest norm of an example's gradient; the first one, if `quantile` is above 0.
    quantile: share of the norms that an adaptive clip leaves as they are; 0: the clip is fixed.
    clip_rate: step of an adaptive clip, on the logarithm.
    loss_bound: largest absolute loss of an example in log lines.
    loss_share: share of the budget that the loss in log lines gets.
    quantile_share: share of the budget that an adaptive clip gets.
    unit: who is protected: 'example', or 'client' of federated training, with all its examples.
    method: 'vmap', gradients of single examples; 'ghost', their norms alone, in two passes.
    micro_batches: parts of a batch whose gradients of single examples are in memory at once.
    secret: file of at least 16 random bytes, or env:NAME, an environment variable.
    fingerprint: of the secret; a run writes it, and continues with that secret only.

  Raises:
    InputError: a number out of range; neither `epsilon` nor `noise_multiplier`.
  """

  epsilon: float = 0.0
  delta: float = 1e-5
  noise_multiplier: float = 0.0
  clip: float = 1.0
  quantile: float = 0.0
  clip_rate: float = 0.2
  loss_bound: float = 10.0
  loss_share: float = 0.01
  quantile_share: float = 0.01
  unit: str = 'example'
  method: str = 'vmap'
  micro_batches: int = 1
  secret: str = 'env:BMX_PRIVACY_SECRET'
  fingerprint: str = ''

  def __post_init__(self):
    check_number('privacy.epsilon', self.epsilon, at_least=0)
    check_number('privacy.delta', self.delta, above=0, below=1)
    check_number('privacy.noise_multiplier', self.noise_multiplier, at_least=0)
    if 0 < self.noise_multiplier < LEAST_NOISE:
      raise InputError(
        f'privacy.noise_multiplier={self.noise_multiplier}: expected at least {LEAST_NOISE}, or 0 '
        'to choose it for privacy.epsilon'
      )
    check_number('privacy.clip', self.clip, above=0)
    check_number('privacy.loss_bound', self.loss_bound, above=0)
    check_number('privacy.quantile', self.quantile, at_least=0, below=1)
    check_number('privacy.clip_rate', self.clip_rate, above=0)
    check_number('privacy.loss_share', self.loss_share, above=0, below=0.5)
    check_number('privacy.quantile_share', self.quantile_share, above=0, below=0.5)
    for word, known in (('unit', UNITS), ('method', METHODS)):
      if (value := getattr(self, word)) not in known:
        near = did_you_mean(value, known)
        raise InputError(f'privacy.{word}={value!r}: expected {" or ".join(known)}{near}')
    if self.unit == 'client' and (self.method, self.micro_batches) != ('vmap', 1):
      raise InputError(
        f'privacy.method={self.method}, privacy.micro_batches={self.micro_batches}: expected vmap '
        'and 1 with privacy.unit=client, where a client is clipped after its local training'
      )
    check_number('privacy.micro_batches', self.micro_batches, at_least=1)
    if not self.epsilon and not self.noise_multiplier:
      raise InputError(
        'privacy: expected a budget, such as --config.privacy.epsilon=3, or '
        '--config.privacy.noise_multiplier=1'
      )

  def mechanism(
    self,
    size: int,
    expected: int,
    steps: int,
    multiple: int,
    trains: bool = True,
    rows_each: int = 1,
  ) -> 'Mechanism':
    """Returns the mechanism of a run.

    Args:
      size: examples of the training data; or clients, here and below.
      expected: examples of a batch, on average.
      steps: of the run.
      multiple: that the examples of a padded batch are of, besides `micro_batches`.
      rows_each: rows of a client in a batch; 1 for examples.
      trains: whether the run is trained; shapes, all that plans and stored runs read, do not depend
        on a noise multiplier that is not chosen yet.

    Raises:
      InputError: a batch larger than the data; an `epsilon` that no noise gives.
    """
    check_rate(expected, size)
    if trains and self.delta >= 1 / size:
      log.warning(
        'privacy.delta=%g: expected below 1 / %ss = %.2g, the δ of a mechanism that publishes one '
        'at random', self.delta, self.unit, 1 / size,
      )  # fmt: skip
    most = OVERFLOW * self.delta / (steps * (1 + math.exp(min(self.epsilon or USUAL, LARGEST))))
    rows = padded_rows(expected, size, most, multiple * self.micro_batches)
    noise = self.noise_multiplier
    if not noise and trains:
      noise = calibrated(self.epsilon, self.delta, expected, size, steps, rows)
    made = Mechanism(self, size, expected, rows, noise or 1.0, steps, rows_each)
    if not (self.epsilon and trains):
      return made
    within = made.accountant.steps(self.epsilon, steps)
    if not within:
      raise InputError(
        f'privacy.epsilon={self.epsilon:g}: expected at least {made.accountant.epsilon(1):.3g}, '
        f'which one step spends with noise_multiplier={noise:g}; set noise_multiplier=0 to choose '
        'it for epsilon'
      )
    if within < steps:
      log.warning(
        'privacy.epsilon=%g is spent after %d steps, steps=%d: the run ends there',
        self.epsilon, within, steps,
      )  # fmt: skip
    return dataclasses.replace(made, steps=within)


@dataclasses.dataclass(frozen=True)
class Mechanism:
  """Private training of a run, with every number known.

  Attributes:
    words: of the config.
    size: examples of the training data; or clients, here and below.
    expected: examples of a batch, on average.
    rows: examples of a padded batch.
    noise: the noise multiplier of all that a step releases.
    steps: of the run, within the budget.
    rows_each: rows of a client in a batch; 1 for examples.
  """

  words: Privacy
  size: int
  expected: int
  rows: int
  noise: float
  steps: int
  rows_each: int = 1

  @functools.cached_property
  def accountant(self) -> Accountant:
    """Computes ε of a number of steps."""
    lost = overflow(self.rows, self.expected, self.size)
    return Accountant(self.noise, self.expected / self.size, self.words.delta, lost)

  @property
  def scales(self) -> Scales:
    """Splits the noise: precisions add up, so that a sum with a share s gets noise / √s."""
    words = self.words
    of_clip = words.quantile_share if words.quantile else 0.0
    of_gradient = 1 - words.loss_share - of_clip
    within = self.noise / math.sqrt(of_clip) if of_clip else 0.0
    loss = self.noise / math.sqrt(words.loss_share)
    return Scales(self.noise / math.sqrt(of_gradient), loss, within)

  def sampled(self, data: Batches, secret: Secret) -> Batches:
    """Returns the training data with padded batches, drawn from a secret."""
    if self.words.unit == 'client':
      examples = PoissonClients(data.examples, secret, self.rows_each)
    else:
      examples = Poisson(data.examples, secret, self.expected)
    return dataclasses.replace(data, examples=examples, batch_size=self.rows * self.rows_each)

  def around(self, gradient: GradFn, wrap: Callable[[GradFn, int], GradFn]) -> GradFn:
    """Returns the private GradFn.

    Args:
      gradient: of a batch.
      wrap: (GradFn, rows of a batch) -> the wrappers of the config word `grad` around it.

    Raises:
      InputError: a wrapper other than accumulation, whose result is not a sum over examples; for
        clients, other than local training.
    """
    words = self.words
    inner = self._of_clients if words.unit == 'client' else self._of_examples
    return Noised(
      inner(gradient, wrap),
      words.clip,
      self.expected,
      self.scales,
      words.loss_bound,
      words.quantile,
      words.clip_rate,
    )

  def _of_examples(self, gradient: GradFn, wrap: Callable[[GradFn, int], GradFn]) -> GradFn:
    words, clipped = self.words, METHODS[self.words.method]
    made: GradFn = clipped(gradient, words.clip, words.loss_bound, bool(words.quantile))
    if words.micro_batches > 1:
      made = Accumulate(made, words.micro_batches, self.rows)
    made = wrap(made, self.rows)
    _check_sums(made)
    return made

  def _of_clients(self, gradient: GradFn, wrap: Callable[[GradFn, int], GradFn]) -> GradFn:
    words, made = self.words, wrap(gradient, self.expected * self.rows_each)
    federated = federated_of(made, self.rows * self.rows_each, self.rows)
    return ClippedClients(federated, words.clip, words.loss_bound, bool(words.quantile))

  def section(self, event: Event) -> Section:
    """Returns a section of the report on the privacy of a run, for a hook."""
    words, scales = self.words, self.scales
    rows = {
      'ε': f'{self.accountant.epsilon(event.step):.4g} after {event.step:,} steps',
      'δ': f'{words.delta:g}',
      'neighbors': f'data sets of which one has one {words.unit} more',
      'batches': f'Poisson samples, {self.expected:,} of {self.size:,} {words.unit}s on average, '
      f'at most {self.rows:,}',
      'noise multiplier': f'{self.noise:g} ({scales.gradient:.4g} of the gradient, '
      f'{scales.loss:.4g} of the loss in log lines)',
      'clip': f'{words.clip:g}' + (', adaptive' if words.quantile else ''),
      'not covered': 'values fitted to the training data, evaluations, a search for words',
    }
    cells = ''.join(f'<tr><th>{k}</th><td>{v}</td></tr>' for k, v in rows.items())
    return Section('Privacy', f'<table>{cells}</table>')

  def describe(self) -> str:
    """Formats the line that a run begins with."""
    words = self.words
    chosen = f', chosen for epsilon={words.epsilon:g}' if words.epsilon else ''
    return (
      f'privacy    ε {self.accountant.epsilon(self.steps):.4g} at δ {words.delta:g} after '
      f'{self.steps:,} steps: noise multiplier {self.noise:g}{chosen}, Poisson batches of '
      f'{self.expected:,} of {self.size:,} {words.unit}s in {self.rows:,} places'
    )


def _check_sums(made: Any) -> None:
  """Raises InputError for a wrapper around `Clipped` that may scale what an example adds."""
  while not isinstance(made, Clipped):
    if not isinstance(made, Accumulate):
      raise InputError(
        f'grad={type(made).__name__}: expected bmx.train.gradients:Accumulate or nothing with '
        'privacy, whose noise is for a sum of clipped gradients of examples'
      )
    made = made.inner


def check_task(task: Task) -> None:
  """Raises InputError naming what single examples of a task do not have."""
  name, model = type(task).__name__, type(task.model).__name__
  if task.coupling == 'statistics':
    raise InputError(
      f'privacy: expected examples that do not see each other; {name} of {model} shares statistics '
      'of a batch (batch norm, balance of experts, Mixup): choose group or layer norm, no experts, '
      'mixup=0 and cutmix=0'
    )
  if task.coupling == 'loss':
    raise InputError(
      f'privacy: expected a loss of single examples; that of {name} compares the examples of a '
      'batch, so no example has a gradient of its own'
    )
  if tables := facts_of(task.model).sparse_tables:
    raise InputError(
      f'privacy: expected dense gradients; {", ".join(tables)} of {model} have gradients of rows, '
      'and which rows have one reveals examples'
    )
