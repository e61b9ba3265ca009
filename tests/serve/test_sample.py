"""Drawing a token: by hand, by Hugging Face's processors, by frequency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx.core.errors import InputError
from bmx.ops.masks import MASK_VALUE
from bmx.serve.sample import RowSampling, Sampling, adjust, draw

V = 11
ADJUST, DRAW = jax.jit(adjust), jax.jit(draw)


def scores(seed=0, rows=4):
  return np.random.default_rng(seed).normal(0, 3, (rows, V)).astype(np.float32)


def alike(how, rows=4):
  return RowSampling.of([how] * rows)


def allowed(logits, how, seen=None):
  seen = np.zeros(logits.shape, bool) if seen is None else seen
  return (
    np.asarray(ADJUST(jnp.asarray(logits), jnp.asarray(seen), alike(how, len(logits))))
    > MASK_VALUE / 2
  )


def nucleus(row, k, p):
  """Which tokens stay, in plain Python."""
  order = sorted(range(len(row)), key=lambda i: -row[i])[: k or len(row)]
  total = sum(np.exp(row[i]) for i in order)
  stays, mass = set(), 0.0
  for i in order:
    if mass >= p:
      break
    stays.add(i)
    mass += np.exp(row[i]) / total
  return stays


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(0, V), st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]))
def test_the_nucleus_of_the_likeliest(seed, k, p):
  logits = scores(seed)
  for row, stays in zip(logits, allowed(logits, Sampling(top_k=k, top_p=p)), strict=True):
    assert set(np.flatnonzero(stays)) == nucleus(row.astype(np.float64), k, p)


def test_of_equal_logits_the_nucleus_keeps_as_many_as_it_needs():
  logits = np.array([[1.0] * 8, [0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
  stays = allowed(logits, Sampling(top_p=0.5))
  assert stays[0].tolist() == [True] * 4 + [False] * 4
  assert stays[1].tolist() == [False, True] + [False] * 6
  assert allowed(logits, Sampling(top_k=2)).sum(1).tolist() == [8, 8]  # as transformers has it
  more = allowed(logits, Sampling(top_p=0.8))[1]
  assert more.tolist() == [True] * 3 + [False] * 5


def test_each_step_is_hugging_faces():
  torch = pytest.importorskip('torch')
  process = pytest.importorskip('transformers.generation.logits_process')
  logits = scores(3)
  before = np.random.default_rng(0).integers(0, V, (4, 5))
  seen = np.zeros((4, V), bool)
  np.put_along_axis(seen, before, True, axis=1)
  theirs = torch.tensor(logits)
  for step in (
    process.RepetitionPenaltyLogitsProcessor(1.7),
    process.TemperatureLogitsWarper(0.6),
    process.TopKLogitsWarper(6),
    process.TopPLogitsWarper(0.8),
  ):
    theirs = step(torch.tensor(before), theirs)
  how = Sampling(temperature=0.6, top_k=6, top_p=0.8, repetition_penalty=1.7)
  ours = np.asarray(ADJUST(jnp.asarray(logits), jnp.asarray(seen), alike(how)))
  finite = np.isfinite(theirs.numpy())
  np.testing.assert_array_equal(ours > MASK_VALUE / 2, finite)
  np.testing.assert_allclose(ours[finite], theirs.numpy()[finite], rtol=1e-6)


def test_tokens_are_drawn_as_often_as_their_probability():
  n, logits = 20_000, scores(1, rows=1)
  keys = jax.random.split(jax.random.PRNGKey(0), n)
  many = jnp.broadcast_to(jnp.asarray(logits), (n, V))
  drawn = np.asarray(DRAW(many, jnp.zeros((n, V), bool), keys, alike(Sampling(2.0), n)))
  expected = np.exp(logits[0] / 2) / np.exp(logits[0] / 2).sum()
  share = np.bincount(drawn, minlength=V) / n
  assert (np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 1e-4).all()


def test_without_temperature_the_likeliest_is_taken():
  logits, keys = scores(2), jax.random.split(jax.random.PRNGKey(0), 4)
  taken = DRAW(jnp.asarray(logits), jnp.zeros((4, V), bool), keys, alike(Sampling(temperature=0.0)))
  np.testing.assert_array_equal(taken, logits.argmax(1))


def test_what_was_said_is_punished():
  logits = np.array([[2.0, 1.9, -1.0]], np.float32)
  seen = np.array([[True, False, True]])
  how = Sampling(temperature=0.0, repetition_penalty=2.0)
  adjusted = ADJUST(jnp.asarray(logits), jnp.asarray(seen), alike(how, 1))
  np.testing.assert_allclose(adjusted, [[1.0, 1.9, -2.0]])


@pytest.mark.parametrize(
  'bad',
  [
    {'temperature': -1.0},
    {'temperature': float('nan')},
    {'temperature': float('inf')},
    {'top_k': -1},
    {'top_p': 0.0},
    {'top_p': 1.1},
    {'repetition_penalty': 0.0},
    {'repetition_penalty': float('inf')},
  ],
)
def test_what_cannot_be(bad):
  with pytest.raises(InputError, match=next(iter(bad))):
    Sampling(**bad)
