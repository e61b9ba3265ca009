"""ε: against dp-accounting's values and the closed form of the Gaussian mechanism."""

import numpy as np
import pytest
from scipy import optimize, stats

from bmx.core.errors import InputError
from bmx.privacy.accounting import LEAST_NOISE, Accountant, calibrated
from bmx.privacy.pld import subsampled_gaussian

# (noise multiplier, rate, steps, δ) -> ε of dp-accounting 0.6.0's PLDAccountant, as
# experiments/privacy/reference.py prints them.
REFERENCE = {
  (1.0, 64 / 1437, 400, 1e-5): 5.903697359645674,
  (1.1, 256 / 60000, 3516, 1e-5): 1.1339132473881204,
  (0.8, 512 / 60000, 1200, 1e-5): 2.89248051098991,
  (4.0, 0.05, 1000, 1e-6): 1.8018212923025243,
  (2.0, 1.0, 10, 1e-6): 8.306225053649792,
}


@pytest.mark.parametrize('case', REFERENCE)
def test_epsilon_is_that_of_dp_accounting(case):
  noise, rate, steps, delta = case
  found = Accountant(noise, rate, delta).epsilon(steps)
  assert found == pytest.approx(REFERENCE[case], rel=1e-4)


@pytest.mark.parametrize('steps', [1, 4])
def test_without_sampling_it_is_the_closed_form(steps):
  """δ(ε) of the Gaussian mechanism, Balle & Wang 2018, equation 6; never below it."""
  noise, delta = 3.0, 1e-5
  mean = np.sqrt(steps) / noise
  form = lambda e: (
    stats.norm.cdf(mean / 2 - e / mean) - np.exp(e) * stats.norm.cdf(-mean / 2 - e / mean)
  )
  exact = optimize.brentq(lambda e: form(e) - delta, 0, 50)
  found = Accountant(noise, 1.0, delta).epsilon(steps)
  assert exact <= found == pytest.approx(exact, rel=1e-4)


def test_losses_are_those_of_quadrature():
  """δ of one step at some ε, against integrals of the two densities on a fine grid."""
  noise, rate = 0.9, 0.1
  x = np.linspace(-12, 14, 2_000_001)
  without = stats.norm.pdf(x, 0, noise)
  both = (1 - rate) * without + rate * stats.norm.pdf(x, 1, noise)
  for removed, (p, q) in {True: (both, without), False: (without, both)}.items():
    losses = subsampled_gaussian(noise, rate, removed)
    assert losses.mass.sum() + losses.infinite == pytest.approx(1, abs=1e-12)
    for e in (0.0, 0.05, 0.5, 1.5):
      exact = np.maximum(p - np.exp(e) * q, 0).sum() * (x[1] - x[0])
      found = float(losses.delta(np.array([e]))[0])
      assert found == pytest.approx(exact, rel=1e-5, abs=1e-12)


def test_epsilon_grows_with_steps_and_falls_with_noise():
  one = Accountant(1.0, 0.02, 1e-5)
  spent = [one.epsilon(n) for n in (0, 1, 10, 100, 400)]
  assert spent[0] == 0 and spent == sorted(spent)
  assert Accountant(1.2, 0.02, 1e-5).epsilon(400) < spent[-1]
  assert one.steps(spent[2], 400) == 10 and one.steps(50.0, 400) == 400
  assert one.steps(spent[1] / 2, 400) == 0


def test_draws_that_do_not_fit_are_accounted():
  """δ grows by (1 + exp ε) · steps · the probability of one."""
  plain, cut = (Accountant(1.0, 0.02, 1e-5, lost) for lost in (0.0, 2e-9))
  spent = cut.epsilon(100)
  exact = Accountant(1.0, 0.02, 1e-5 - 2e-7 * (1 + np.exp(spent))).epsilon(100)
  assert plain.epsilon(100) < spent == pytest.approx(exact, rel=1e-4)
  assert Accountant(1.0, 0.02, 1e-5, 1e-3).epsilon(100) == np.inf


def test_calibrated_noise_is_the_least_that_is_enough():
  noise = calibrated(3.0, 1e-5, 64, 1437, 40, 140)
  spent = [Accountant(n, 64 / 1437, 1e-5).epsilon(40) for n in (noise, noise - 0.001)]
  assert spent[0] <= 3.0 < spent[1]
  assert noise == round(noise, 4)


def test_an_impossible_epsilon_is_refused():
  with pytest.raises(
    InputError, match=r'privacy.epsilon=1e-07: expected at least .* at delta=1e-05'
  ):
    calibrated(1e-7, 1e-5, 64, 1437, 400, 150)
  assert calibrated(1000.0, 1e-5, 64, 1437, 1, 150) == LEAST_NOISE
