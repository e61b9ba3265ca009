"""The audit: its bound on distributions that are known, and on private training."""

import runpy

import numpy as np
import pytest
from scipy import stats

from bmx.privacy.audit import audit, lower
from tests.conftest import ROOT


def test_the_bound_of_a_share_is_scipys():
  for count, trials in ((0, 10), (3, 10), (10, 10), (990, 1000)):
    expected = stats.binomtest(count, trials).proportion_ci(0.95, 'exact').low
    assert lower(count, trials, 0.025) == pytest.approx(expected, abs=1e-12)


def test_bounds_of_known_distributions():
  """Of randomized response with ε = 1, bounds hold in about 95 % of attacks, and are not far."""
  random = np.random.default_rng(0)
  share = np.exp(1) / (1 + np.exp(1))
  found = []
  for _ in range(40):
    answers = lambda p: (random.random(2000) < p).astype(float)
    found.append(audit(answers(share), answers(1 - share)).epsilon)
  assert np.mean(np.array(found) <= 1.0) >= 0.95
  assert np.median(found) > 0.7
  same = random.normal(size=(2, 2000))
  assert audit(*same).epsilon < 0.3
  assert audit(same[0] + 20, same[1]).epsilon > 5 < audit(same[0] - 20, same[1]).epsilon


def test_an_audit_of_training():
  """Below the claim of 2 with its noise; above it with a tenth of the noise, and without noise."""
  script = runpy.run_path(str(ROOT / 'experiments/privacy/audit.py'))
  honest, tenth, none = (a.epsilon for a in script['found'](200, 2.0, [1.0, 0.1, 1e-9]))
  assert honest < 2.0 < tenth <= none
