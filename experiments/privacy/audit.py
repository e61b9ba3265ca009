"""An audit of private training: can an attack tell which runs had a planted example?

    python experiments/privacy/audit.py [--runs=N] [--epsilon=E]

Trains 2 N small models on digits, half of them with a canary: an image with one bright pixel where
no digit has ink, so that its gradient is like no other. The attacker sees every released gradient
and the weights, and adds up how much of the canary's gradient is in them. The lower bound of ε
(Clopper-Pearson, 95 %) should lie below the ε that the accountant claims; without noise, and where
the noise is a tenth of what the claim needs, above. Prints one line for each case.
"""

import argparse
import dataclasses
import os
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bmx.core.types import Noise
from bmx.data.arrays import ArrayData
from bmx.data.batches import Batches
from bmx.data.builtin import digits
from bmx.models.mlp import MLP
from bmx.parallel.sharding import unbox
from bmx.privacy import Privacy, Secret
from bmx.privacy.audit import Audit, audit
from bmx.tasks.classification import Classification
from bmx.train.gradients import Gradient, divide

EXAMPLES, EXPECTED, STEPS, RATE = 40, 20, 8, 0.5
DELTA = 1e-5
CASES = {'as the claim needs': 1.0, 'a tenth of it': 0.1, 'none': 1e-9}
CLEAR = Noise(jax.random.PRNGKey(0), jnp.int32(0))


def examples() -> ArrayData:
  """Digits, the last of which is the canary."""
  data = digits()
  arrays = {k: data.arrays[k][:EXAMPLES].copy() for k in ('image', 'label')}
  arrays['image'] /= 16
  arrays['image'][-1] = 0
  arrays['image'][-1, 0, 0] = 10
  return ArrayData(arrays, {'num_classes': 10})


def draws(runs: int, data: Batches, secret: Secret) -> tuple[np.ndarray, ...]:
  """Returns keys [2 · runs, 2], indices and weights [2 · runs, STEPS, rows] of all runs."""
  names = [f'run {i}' for i in range(2 * runs)]
  keys = np.stack([secret.keyed(name).key for name in names])
  drawn = [data.keyed(name).compose(0, STEPS) for name in names]
  indices, weights = np.stack([d[0] for d in drawn]), np.stack([np.asarray(d[1]) for d in drawn])
  weights[runs:] *= indices[runs:] != EXAMPLES - 1  # these runs lack the canary
  return keys, indices, weights


def found(runs: int, epsilon: float, factors: list[float]) -> list[Audit]:
  """Trains private models and attacks them.

  Args:
    runs: with the canary, and as many without it.
    epsilon: claimed.
    factors: of the noise that the claim needs, one for each case; 1 is honest.
  """
  data, task = examples(), Classification(MLP(10, ()))
  claim = Privacy(epsilon=epsilon, delta=DELTA, clip=1.0)
  mechanism = claim.mechanism(EXAMPLES, EXPECTED, STEPS, 1)
  with tempfile.NamedTemporaryFile('w') as file:
    file.write('a secret of the audit, known to everybody')
    file.flush()
    secret = Secret(file.name)
    keys, indices, weights = draws(runs, mechanism.sampled(Batches(data, EXPECTED), secret), secret)
  rows = {k: jnp.asarray(v) for k, v in data.arrays.items()}
  canary = {k: v[-1:] for k, v in rows.items()}
  start = unbox(dict(task.init(CLEAR, rows)))['params']

  def score(factor: Any, key: Any, indices: Any, weights: Any) -> jax.Array:
    made: Any = dataclasses.replace(mechanism, noise=mechanism.noise * factor)
    gradient = made.around(Gradient(task), lambda inner, rows: inner)

    def step(params, item):
      number, indices, weights = item
      batch = {k: v[indices] for k, v in rows.items()} | {'weights': weights}
      noise = Noise(CLEAR.key, number, key)
      released = gradient({'params': params}, batch, noise)
      own = Gradient(task)({'params': params}, canary, CLEAR).sum
      seen = optax.tree.vdot(released.sum, own) / optax.tree.norm(own)
      update = divide(released).sum
      return jax.tree.map(lambda p, g: p - RATE * g, params, update), seen

    return jax.lax.scan(step, start, (jnp.arange(STEPS), indices, weights))[1].sum()

  attack = jax.jit(jax.vmap(score, (None, 0, 0, 0)))
  scores = [np.asarray(attack(f, keys, indices, weights)).reshape(2, runs) for f in factors]
  return [audit(inside, outside, DELTA) for inside, outside in scores]


def main() -> None:
  """Audits three strengths of noise."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--runs', type=int, default=1000)
  parser.add_argument('--epsilon', type=float, default=2.0)
  given = parser.parse_args()
  bounds = found(given.runs, given.epsilon, list(CASES.values()))
  for name, bound in zip(CASES, bounds, strict=True):
    print(
      f'noise {name}: claimed ε {given.epsilon:g} at δ {DELTA:g}, found at least '
      f'{bound.epsilon:.2f} (hits {bound.hits:.3f}, alarms {bound.alarms:.3f}; '
      f'{given.runs} runs with the canary, {given.runs} without)'
    )


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  main()
