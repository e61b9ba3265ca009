"""Calibration, temperature and abstention beside loops, grids and constructed models."""

import numpy as np
import pytest
from scipy import special, stats

from bmx.core.errors import InputError
from bmx.tasks import reliability
from bmx.tasks.reliability import Judged
from bmx.tasks.scores import wilson

RANDOM = np.random.default_rng(0)


def model(scale, rows=4000):
  """Labels drawn from softmax(z), predicted as softmax(scale · z)."""
  logits = 2 * RANDOM.normal(size=(rows, 4))
  label = (special.softmax(logits, 1).cumsum(1) > RANDOM.random((rows, 1))).argmax(1)
  return Judged(special.softmax(scale * logits, 1), label)


def looped_ece(confidence, correct, bins):
  """Guo et al. 2017, equation 3: bin m is ((m - 1) / M, m / M]."""
  total = 0.0
  for m in range(1, bins + 1):
    inside = [i for i, c in enumerate(confidence) if (m - 1) / bins < c <= m / bins]
    if inside:
      accuracy = sum(correct[i] for i in inside) / len(inside)
      mean = sum(confidence[i] for i in inside) / len(inside)
      total += len(inside) / len(confidence) * abs(accuracy - mean)
  return total


@pytest.mark.parametrize('bins', [1, 10, 15])
def test_calibration_error_is_its_definition(bins):
  confidence = np.concatenate([RANDOM.random(300), [1.0, 0.2, 0.4, 1e-9]])
  correct = RANDOM.random(304) < confidence**2
  found = reliability.calibration_error(confidence, correct, bins)
  assert found == pytest.approx(looped_ece(confidence, correct, bins), abs=1e-12)
  assert found > 0.05


def test_calibration_error_by_hand():
  rows = {
    'probability': np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]),
    'label': np.array([0, 1, 1]),
  }
  # Bins of 1 / 15: .9 is right, .8 is wrong, .7 is right.
  assert reliability.ece(rows) == pytest.approx((0.1 + 0.8 + 0.3) / 3)
  binary = {'score': np.array([0.1, 0.8, 0.7]), 'label': np.array([0, 0, 1])}
  assert reliability.ece(binary) == pytest.approx((0.1 + 0.8 + 0.3) / 3)
  with pytest.raises(InputError, match='one class for each example'):
    reliability.ece({'prediction': np.zeros(3), 'y': np.zeros(3)})


def test_a_calibrated_model_has_a_small_error_and_temperature_one():
  calibrated, sure = model(1.0), model(2.5)
  error = lambda one: reliability.calibration_error(one.confidence, one.correct)
  assert error(calibrated) < 0.03 < 0.1 < error(sure)
  assert reliability.fit_temperature(calibrated) == pytest.approx(1, abs=0.08)
  assert reliability.fit_temperature(sure) == pytest.approx(2.5, abs=0.2)
  scaled = reliability.at_temperature(sure, reliability.fit_temperature(sure))
  assert error(scaled) < 0.03
  np.testing.assert_array_equal(scaled.correct, sure.correct)  # no prediction changes


def test_the_temperature_is_the_best_of_a_grid():
  one = model(0.5, rows=300)
  grid = np.exp(np.linspace(-3, 3, 6001))
  log = np.log(one.probability)
  at = lambda t: -special.log_softmax(log / t, 1)[np.arange(300), one.label].mean()
  best = grid[np.argmin([at(t) for t in grid])]
  assert reliability.fit_temperature(one) == pytest.approx(best, rel=2e-3)
  assert reliability.log_loss(one, 0.7) == pytest.approx(at(0.7))


def test_abstention():
  share, accuracy = reliability.abstention(np.array([0.9, 0.5, 0.7]), np.array([True, False, True]))
  np.testing.assert_allclose(share, [1 / 3, 2 / 3, 1])
  np.testing.assert_allclose(accuracy, [1, 1, 2 / 3])


def test_sections_hold_the_numbers():
  one = model(2.5, rows=200)
  diagram, curve = reliability.sections(one)
  error = reliability.calibration_error(one.confidence, one.correct)
  assert f'{error:.4f} (15 bins)' in diagram.html and 'confidence 0.' in diagram.html
  assert curve.title == 'Abstention' and '<polyline' in curve.html
  assert reliability.sections(Judged(np.zeros((0, 2)), np.zeros(0, int))) == []


def test_wilson_is_that_of_scipy():
  for hits, count in ((0, 5), (5, 5), (37, 120), (1, 1000)):
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method='wilson')
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
