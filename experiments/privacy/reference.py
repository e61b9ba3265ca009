"""Values of ε that tests/privacy/test_accounting.py compares with, by Google's dp-accounting.

pip install dp-accounting==0.6.0   # in an environment of its own: it needs attrs below 24
python experiments/privacy/reference.py
"""

import dp_accounting
from dp_accounting import pld

# (noise multiplier, rate, steps, δ)
CASES = [
  (1.0, 64 / 1437, 400, 1e-5),
  (1.1, 256 / 60000, 3516, 1e-5),
  (0.8, 512 / 60000, 1200, 1e-5),
  (4.0, 0.05, 1000, 1e-6),
  (2.0, 1.0, 10, 1e-6),
]

if __name__ == '__main__':
  for noise, rate, steps, delta in CASES:
    event = dp_accounting.GaussianDpEvent(noise)
    if rate < 1:
      event = dp_accounting.PoissonSampledDpEvent(rate, event)
    accountant = pld.PLDAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    print((noise, rate, steps, delta), accountant.get_epsilon(delta))
