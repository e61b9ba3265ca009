"""Whether the confidence of a classifier can be trusted: calibration, temperature, abstention."""

from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.runtime.report import Section, curves, layout
from bmx.runtime.report.svg import svg

BINS = 15  # of confidence
POINTS = 100  # of a curve of abstention
BLUE, GRAY = '#3b82f6', '#8888aa'


class Judged(NamedTuple):
  """Predictions of a classifier, judged by their labels.

  Attributes:
    probability: float64 [N, C].
    label: int [N].
  """

  probability: np.ndarray
  label: np.ndarray

  @property
  def confidence(self) -> np.ndarray:
    """Probability of the predicted class, float64 [N]."""
    return self.probability.max(1)

  @property
  def correct(self) -> np.ndarray:
    """Whether the predicted class is the label, bool [N]."""
    return self.probability.argmax(1) == self.label


class Bin(NamedTuple):
  """Predictions of similar confidence.

  Attributes:
    count: predictions.
    confidence: their mean confidence.
    accuracy: share of them that are correct.
  """

  count: int
  confidence: float
  accuracy: float


def judged(rows: HostBatch) -> Judged | None:
  """Returns the predictions of a split; None if they are not one class for each example.

  Args:
    rows: `label` int [N] with `probability` float [N, C], or `score` float [N] of class 1.
  """
  label = rows.get('label')
  if label is None or label.ndim != 1:
    return None
  if 'probability' in rows and rows['probability'].ndim == 2:
    return Judged(rows['probability'].astype(np.float64), label)
  if 'score' in rows and rows['score'].shape == label.shape:
    score = rows['score'].astype(np.float64)
    return Judged(np.stack([1 - score, score], 1), label)
  return None


def binned(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[Bin]:
  """Groups predictions into bins of equal width over confidence 0 to 1; empty ones are left out.

  A bin includes its upper end.

  Args:
    confidence: float [N], 0 to 1.
    correct: bool [N].
    bins: number of bins.
  """
  at = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  chosen = (at == i for i in range(bins))
  return [
    Bin(int(mask.sum()), float(confidence[mask].mean()), float(correct[mask].mean()))
    for mask in chosen
    if mask.any()
  ]


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
  """Computes the expected calibration error: mean |accuracy - confidence| over bins, by count.

  Source: Naeini et al. 2015, Guo et al. 2017.

  Args:
    confidence: float [N], 0 to 1.
    correct: bool [N].
    bins: see `binned`.
  """
  found = binned(confidence, correct, bins)
  return sum(b.count * abs(b.accuracy - b.confidence) for b in found) / len(confidence)


def ece(rows: HostBatch) -> float:
  """Computes the expected calibration error of a split, with 15 bins: a metric of `eval`.

  Raises InputError for predictions that are not one class for each example.
  """
  found = judged(rows)
  if found is None:
    raise InputError('ece: expected a task that predicts one class for each example, with labels')
  return calibration_error(found.confidence, found.correct)


def log_loss(found: Judged, temperature: float = 1.0) -> float:
  """Computes the mean negative log-likelihood, in nats, of probabilities at a temperature."""
  log = _scaled(found.probability, temperature)
  return float(-np.take_along_axis(log, found.label[:, None], 1).mean())


def fit_temperature(found: Judged) -> float:
  """Returns the temperature of least log loss, 0.05 to 20. Source: Guo et al. 2017.

  Args:
    found: predictions of a validation split, never of the test set.
  """
  loss = lambda log: log_loss(found, float(np.exp(log)))
  best: Any = optimize.minimize_scalar(loss, bounds=(-3, 3), method='bounded')
  return float(np.exp(best.x))


def at_temperature(found: Judged, temperature: float) -> Judged:
  """Returns predictions whose logits are divided by a temperature."""
  return Judged(np.exp(_scaled(found.probability, temperature)), found.label)


def _scaled(probability: np.ndarray, temperature: float) -> np.ndarray:
  """Log probabilities at a temperature: logits and log probabilities differ by a constant."""
  log = np.log(np.maximum(probability, 1e-30)) / temperature
  return log - np.asarray(special.logsumexp(log, 1, keepdims=True))


def abstention(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the accuracy of the most confident predictions, if a model abstains on the others.

  Source: El-Yaniv & Wiener 2010 (risk and coverage).

  Args:
    confidence: float [N].
    correct: bool [N].

  Returns:
    Share of the examples that are answered, float64 [N], and the accuracy on them.
  """
  order = np.argsort(-confidence, kind='stable')
  answered = np.arange(1, len(order) + 1)
  return answered / len(order), np.cumsum(correct[order]) / answered


def sections(found: Judged, bins: int = BINS) -> list[Section]:
  """Returns the reliability diagram and the curve of abstention of a split; [] without examples."""
  if not len(found.label):
    return []
  groups = binned(found.confidence, found.correct, bins)
  error = calibration_error(found.confidence, found.correct, bins)
  means = [b.confidence for b in groups], [b.accuracy for b in groups]
  ideal = curves.Curve([0.0, 1.0], [0.0, 1.0])
  diagram = svg({'calibrated': ideal, 'accuracy': curves.Curve(*means)},
                {'calibrated': GRAY, 'accuracy': BLUE}, axis='confidence')  # fmt: skip
  counts = [(f'{b.confidence:.3f}', f'{b.accuracy:.3f}', f'{b.count:,}') for b in groups]
  table = layout.grid(('mean confidence', 'accuracy', 'examples'), counts)
  said = (
    f'<p>Expected calibration error {error:.4f} ({bins} bins). '
    '<span class="soft">Across: confidence; up: accuracy; gray: calibrated.</span></p>'
  )
  share, accuracy = abstention(found.confidence, found.correct)
  at = np.unique(np.linspace(0, len(share) - 1, POINTS).astype(int))
  line = curves.Curve(share[at].tolist(), accuracy[at].tolist())
  note = (
    '<p class="soft">Across: share of the examples that are answered, the most confident first; '
    'up: accuracy on them.</p>'
  )
  curve = svg({'accuracy': line}, {'accuracy': BLUE}, axis='share')
  return [Section('Calibration', said + diagram + table), Section('Abstention', note + curve)]
