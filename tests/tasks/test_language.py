"""Causal language modelling against the sum written out."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.models.gpt import GPT
from bmx.parallel.sharding import unbox
from bmx.tasks.language import CausalLM, bits_per_byte, perplexity
from tests.models.weights import drawn, jit

B, T, V = 3, 8, 20
KEY = jax.random.PRNGKey(0)
NOISE = Noise(KEY, jnp.int32(0))


def task(**options):
  return CausalLM(GPT(vocab_size=V, max_seq_len=T, width=16, depth=1, heads=2, **options))


def batch():
  random = np.random.default_rng(0)
  ids = random.integers(0, V, (B, T + 1)).astype(np.int32)
  weights = random.choice([0.0, 0.5, 1.0], (B, T)).astype(np.float32)
  return {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'weights': weights}


def start(task, rows):
  abstract = unbox(jax.eval_shape(task.init, NOISE, rows))['params']
  return drawn(abstract)


def evaluator(task):
  """-> run(params, rows) -> metrics, as numpy."""

  @jit
  def run(params, rows):
    loss, _, metrics, _ = task.loss({'params': params}, rows, NOISE, train=False)
    return loss, metrics

  def call(params, rows):
    loss, metrics = jax.device_get(run(params, rows))
    assert loss == metrics['loss'][0], 'what is minimised is the sum'
    return metrics

  return call


@pytest.mark.parametrize('pad', [0, 12])
def test_loss_is_the_weighted_sum_over_tokens(pad):
  rows, lm = batch(), task(vocab_pad=pad)
  params = start(lm, rows)
  apply = jit(lambda params, tokens: lm.model.apply({'params': params}, tokens))
  logits = np.asarray(apply(params, rows['tokens']), np.float64)[..., :V]
  at = np.arange(B)[:, None], np.arange(T)[None], rows['targets']
  log = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[at]
  hits = logits.argmax(-1) == rows['targets']
  metrics, count = evaluator(lm)(params, rows), rows['weights'].sum()
  assert metrics['loss'].tolist() == pytest.approx(
    [-(log * rows['weights']).sum(), count], rel=1e-5
  )
  assert metrics['accuracy'].tolist() == pytest.approx([(hits * rows['weights']).sum(), count])
  told = jit(lambda params, rows: lm.predict({'params': params}, rows, NOISE))(params, rows)
  np.testing.assert_allclose(told['log_likelihood'], log, rtol=1e-4)
  np.testing.assert_array_equal(told['prediction'], logits.argmax(-1))


def test_targets_without_weight_do_not_matter():
  rows, lm = batch(), task()
  params, run = start(lm, rows), evaluator(lm)
  hidden = rows['weights'] == 0
  assert hidden.any()
  other = rows | {'targets': np.where(hidden, (rows['targets'] + 1) % V, rows['targets'])}
  given, expected = run(params, other), run(params, rows)
  for name in expected:
    np.testing.assert_array_equal(given[name], expected[name])


def test_packed_rows_lose_what_their_documents_lose():
  """Two documents in one row, with positions and segments, against one row each."""
  rows, lm = batch(), task()
  params, (a, b), run = start(lm, rows), (5, 3), evaluator(lm)
  packed = rows | {
    'positions': np.tile(np.concatenate([np.arange(a), np.arange(b)]), (B, 1)),
    'segment_ids': np.tile(np.repeat([1, 2], [a, b]), (B, 1)),
  }
  parts = {k: v[:, :a] for k, v in rows.items()}, {k: v[:, a:] for k, v in rows.items()}
  alone = sum(run(params, part)['loss'] for part in parts)
  np.testing.assert_allclose(run(params, packed)['loss'], alone, rtol=1e-5)
  assert abs(run(params, rows)['loss'][0] - alone[0]) > 1e-4


def test_an_untrained_model_knows_nothing():
  rows, lm = batch(), task()
  params = jit(lambda rows: unbox(lm.init(NOISE, rows))['params'])(rows)
  total, count = evaluator(lm)(params, rows)['loss']
  assert total / count == pytest.approx(np.log(V), rel=0.05)


@pytest.mark.parametrize(('info', 'message'), [
  ({'num_classes': 3}, 'the data has no tokens: a language model expects text'),
  ({'vocab_size': V + 1, 'length': T}, f'vocab_size={V}: expected at least {V + 1}'),
  ({'vocab_size': V, 'length': T + 1}, f'length={T + 1}: expected rows of at most max_seq_len={T}'),
])  # fmt: skip
def test_what_is_refused(info, message):
  with pytest.raises(InputError, match=message):
    task().validate(info)


def test_padding_of_the_vocabulary_holds_no_tokens():
  with pytest.raises(InputError, match=f'vocab_size={V}: expected at least {V + 1}'):
    task(vocab_pad=12).validate({'vocab_size': V + 1, 'length': T})


def test_shorter_rows_and_smaller_vocabularies_pass():
  task().validate({'vocab_size': V, 'length': T})
  task().validate({'vocab_size': V - 5, 'length': T - 5})
  task().validate({'vocab_size': V})


def told(*probabilities, weights=None):
  """Rows of tokens that had these probabilities."""
  log = np.log(np.array(probabilities, np.float32))
  weights = np.ones_like(log) if weights is None else np.array(weights, np.float32)
  return {'log_likelihood': log, 'weights': weights}


def knowing(size):
  return types.SimpleNamespace(metadata={'bytes': size})


def test_perplexity_by_hand():
  """The inverse of the geometric mean: (1/2 · 1/4 · 1/8)^(-1/3) = 4."""
  assert perplexity(told([0.5, 0.25], [0.125, 0.9], weights=[[1, 1], [1, 0]])) == pytest.approx(4)
  assert perplexity(told([1 / 7] * 9)) == pytest.approx(7)
  assert perplexity(told([1.0, 1.0])) == 1
  assert perplexity(told([0.5, 0.125], weights=[[0.75, 0.25]])) == pytest.approx(2**1.5)


def test_bits_per_byte_by_hand():
  """1 + 2 + 3 bits for the tokens of four bytes, however many the tokens are."""
  rows = told([0.5, 0.25], [0.125, 0.9], weights=[[1, 1], [1, 0]])
  assert bits_per_byte(rows, knowing(4)) == pytest.approx(1.5)
  assert bits_per_byte(told([1 / 64]), knowing(4)) == pytest.approx(1.5)
  assert bits_per_byte(told([1 / 256] * 5), knowing(5)) == pytest.approx(8)


def test_tokens_without_weight_count_nothing():
  rows = told([0.5, 0.25], weights=[[1, 0]])
  rows['log_likelihood'][0, 1] = np.nan
  assert perplexity(rows) == pytest.approx(2)
  assert bits_per_byte(rows, knowing(1)) == pytest.approx(1)


def test_many_tokens_are_summed_exactly():
  """Two million of 0.1 nats: float32 would stop adding."""
  rows = {'log_likelihood': np.full((2000, 1000), -0.1, np.float32)}
  rows['weights'] = np.ones_like(rows['log_likelihood'])
  assert perplexity(rows) == pytest.approx(np.exp(np.float64(np.float32(0.1))), rel=1e-12)


def test_a_model_that_knows_less_than_nothing():
  rows = {'log_likelihood': np.full((1, 3), -1e4, np.float32), 'weights': np.ones((1, 3))}
  assert perplexity(rows) == np.inf
  assert np.isnan(perplexity(rows | {'log_likelihood': np.full((1, 3), np.nan)}))


def test_perplexity_and_bits_of_nothing():
  with pytest.raises(
    InputError, match='perplexity: expected a split with a token of weight above 0'
  ):
    perplexity(told([0.5], weights=[[0]]))
  with pytest.raises(InputError, match='expected a data set whose metadata counts its bytes'):
    bits_per_byte(told([0.5]), types.SimpleNamespace(metadata={}))


def test_perplexity_is_that_of_the_loss():
  """What a task predicts of each token is what it is trained on."""
  rows, lm = batch(), task()
  params = start(lm, rows)
  total, count = evaluator(lm)(params, rows)['loss']
  said = jax.device_get(
    jit(lambda params, rows: lm.predict({'params': params}, rows, NOISE))(params, rows)
  )
  assert perplexity(said | rows) == pytest.approx(np.exp(total / count), rel=1e-5)
