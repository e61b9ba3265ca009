"""Noise: its distribution, its independence, its secret; draws of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from bmx.core.errors import InputError
from bmx.core.types import Grads
from bmx.data.arrays import ArrayData
from bmx.data.batches import Batches
from bmx.data.mixture import Mix
from bmx.privacy import Clipped, Noised, Poisson, Secret
from bmx.privacy.clip import COLLECTION
from bmx.privacy.noise import Scales
from bmx.privacy.sampling import overflow, padded_rows
from bmx.train.gradients import Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_train_step
from tests.privacy.tasks import NOISE, classifier, flat, layout, rows, spec

SHAPES = {'a': (100, 60), 'b': (3000,)}


def still(variables, batch, noise):
  """A GradFn without a gradient: the noise alone remains."""
  zeros = {k: jnp.zeros(v) for k, v in SHAPES.items()}
  return Grads(zeros, jnp.float32(3), {'loss': jnp.zeros(2)}, {})


GRADIENT = jax.jit(Noised(still, clip=2.0, expected=10.0, scales=Scales(1.5, 4.0), loss_bound=5.0))


def noised(step, secret=NOISE.secret):
  found = GRADIENT({}, {}, NOISE.replace(step=jnp.int32(step), secret=secret))
  return {k: np.ravel(v) for k, v in jax.device_get(found.sum).items()}, jax.device_get(found)


def test_noise_is_gaussian_with_the_deviation_of_noise_times_clip():
  """Kolmogorov-Smirnov: P = 0.26 and 0.59 for this key; 1 % of keys would fail."""
  for values in noised(0)[0].values():
    assert stats.kstest(values / 3.0, 'norm').pvalue > 0.01
    assert values.std() == pytest.approx(3.0, rel=0.04)
  assert float(noised(0)[1].count) == 10.0


def test_noise_is_independent_over_steps_leaves_and_secrets():
  one, two, other = noised(0)[0], noised(1)[0], noised(0, jnp.array([1, 3], jnp.uint32))[0]
  pairs = [(one['b'], two['b']), (one['b'], other['b']), (one['a'][:3000], one['b'])]
  pairs += [(one['a'][:3000], one['a'][3000:]), (one['a'], two['a'])]
  for a, b in pairs:
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(a))
  np.testing.assert_array_equal(one['b'], noised(0)[0]['b'], 'a repeated step has its noise')


def test_the_loss_is_noised():
  losses = np.array([float(noised(i)[1].metrics['loss'][0]) for i in range(60)])
  assert losses.std() == pytest.approx(20.0, rel=0.3)  # of 60 draws: 9 %
  assert stats.kstest(losses / 20.0, 'norm').pvalue > 0.01


def test_a_step_without_a_secret_is_refused():
  with pytest.raises(InputError, match='expected a step with a secret'):
    noised(0, None)


def test_an_adaptive_clip_follows_the_quantile():
  """Against the update of Andrew et al. 2021, with the noise off; it converges to the median."""
  task, batch, tx = classifier(), rows(), optax.sgd(0.0)
  grad_fn = Noised(Clipped(Gradient(task), 9.0, adaptive=True), 9.0, 16.0,
                   Scales(1e-9, 1e-9, 1e-9), quantile=0.5, rate=0.3)  # fmt: skip
  plan = plan_state(task, tx, spec(batch), layout(), grad_fn=grad_fn)
  step, state = jax.jit(make_train_step(grad_fn, tx)), plan.create()
  gradient, norms = jax.jit(Gradient(task)), []
  for i in range(16):
    one = {k: v[i : i + 1] for k, v in batch.items()}
    norms.append(np.linalg.norm(flat(gradient({'params': state.params}, one, NOISE).sum)))
  clip = 9.0
  for _ in range(12):
    state, _ = step(state, batch, NOISE.secret)
    clip *= np.exp(-0.3 * (np.mean(np.array(norms) <= clip) - 0.5))
    assert float(state.collections[COLLECTION]['clip']) == pytest.approx(clip, rel=1e-5)
  for _ in range(60):
    state, _ = step(state, batch, NOISE.secret)
  low, high = np.quantile(norms, [0.3, 0.7])
  assert low < float(state.collections[COLLECTION]['clip']) < high


def examples(n=500):
  return ArrayData({'x': np.arange(n, dtype=np.float32)[:, None]}, {'source': 'numbers'})


@pytest.fixture
def secret(tmp_path):
  path = tmp_path / 'secret'
  path.write_bytes(b'0123456789abcdef\n')
  return Secret(str(path))


def test_every_example_is_drawn_with_one_probability(secret):
  """Counts of examples and of batches, against the binomial distributions."""
  steps, expected, size = 400, 50, 500
  data = Batches(Poisson(examples(), secret, expected), padded_rows(expected, size, 1e-9, 8))
  assert data.batch_size % 8 == 0 and data.expected == expected
  indices, weights = data.compose(0, steps)
  assert weights is not None and indices.shape == weights.shape == (steps, data.batch_size)
  counts = weights.sum(1)
  drawn = [set(i[w > 0].tolist()) for i, w in zip(indices, weights, strict=True)]
  assert [len(d) for d in drawn] == counts.tolist(), 'no example twice'
  grid = stats.binom(size, expected / size)
  assert counts.mean() == pytest.approx(expected, abs=4 * grid.std() / np.sqrt(steps))
  assert counts.std() == pytest.approx(grid.std(), rel=0.15)
  each = np.bincount(indices[weights > 0], minlength=size)
  spread = stats.binom(steps, expected / size).std()
  assert each.std() == pytest.approx(spread, rel=0.15) and each.min() > 0
  both = np.mean([{3, 4} <= d for d in drawn])
  assert both == pytest.approx(0.01, abs=4 * np.sqrt(0.01 / steps))


def test_draws_are_functions_of_secret_run_and_step(secret, tmp_path):
  data = Batches(Poisson(examples(), secret, 50), 96)
  again = Batches(Poisson(examples(), Secret(secret.source), 50), 96)
  np.testing.assert_array_equal(data.indices(7), again.compose(5, 4)[0][2:3])
  np.testing.assert_array_equal(data.keyed('a').indices(7), again.keyed('a').indices(7))
  other = tmp_path / 'other'
  other.write_bytes(b'0123456789abcdeX')
  for changed in (data.keyed('a'), Batches(Poisson(examples(), Secret(str(other)), 50), 96)):
    assert len(set(changed.indices(7)[0].tolist()) & set(data.indices(7)[0].tolist())) < 25
  assert not np.array_equal(data.indices(7), data.indices(8))
  assert not np.array_equal(secret.key, secret.keyed('a').key)


def test_a_draw_beyond_its_rows_is_cut_and_its_probability_known(secret):
  data = Batches(Poisson(examples(), secret, 50), 52)
  counts = data.compose(0, 400)[1].sum(1)
  share = overflow(51, 50, 500)
  assert share == pytest.approx(stats.binom(500, 0.1).sf(51), rel=1e-9)
  assert np.mean(counts == 52) == pytest.approx(share, abs=4 * np.sqrt(share / 400))
  for most in (1e-3, 1e-9, 1e-15):
    found = padded_rows(50, 500, most, 1)
    assert overflow(found, 50, 500) <= most < overflow(found - 1, 50, 500)


def test_a_digest_of_the_data_is_keyed(secret):
  plain = examples()
  assert Poisson(plain, secret, 50).digest() not in ('', plain.digest())


def test_bad_secrets_and_data(secret, tmp_path, monkeypatch):
  monkeypatch.delenv('BMX_TEST_SECRET', raising=False)
  for source, message in {
    'env:BMX_TEST_SECRET': r'privacy.secret=env:BMX_TEST_SECRET: expected an environment variable',
    str(tmp_path / 'absent'): r'expected a file: No such file.*token_hex',
  }.items():
    with pytest.raises(InputError, match=message):
      _ = Secret(source).key
  monkeypatch.setenv('BMX_TEST_SECRET', ' short \n')
  with pytest.raises(InputError, match='expected at least 16 random bytes, found 5'):
    _ = Secret('env:BMX_TEST_SECRET').fingerprint
  assert '0123' not in repr(secret) and len(secret.fingerprint) == 16
  with pytest.raises(InputError, match='batch_size=501: expected at most 500, the examples'):
    Poisson(examples(), secret, 501)
  mixed = Mix({'a': examples(), 'b': examples()}, {'a': 1.0, 'b': 1.0})
  with pytest.raises(InputError, match='compose batches of their own'):
    Poisson(mixed, secret, 50)
