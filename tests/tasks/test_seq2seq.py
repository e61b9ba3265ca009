"""Sequence to sequence: the loss, and texts that depend on their source alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.models.gpt import GPT
from bmx.models.seq2seq import Seq2Seq
from bmx.parallel import Layout, make_mesh
from bmx.serve.beam import BeamSearch
from bmx.serve.decode import decoder
from bmx.tasks.common import Wrapper
from bmx.tasks.seq2seq import Seq2SeqLM
from tests.models.weights import jit, variables

V, END, S, T = 19, 3, 8, 6
ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))


def task(**options):
  model = Seq2Seq(vocab_size=V, width=16, depth=2, heads=2, begin=(END,), dropout=0.0)
  settings = {'num_beams': 3, 'max_new_tokens': 7, 'metadata': {'ends': (END,)}}
  return Seq2SeqLM(model, **settings | options)


def batch(rows=5, length=S):
  random = np.random.default_rng(0)
  sizes = np.array([8, 3, 5, 8, 2, 4])[:rows, None]
  ids = (np.arange(length)[None] < sizes).astype(np.int32)
  source = random.integers(4, V, (6, S)).astype(np.int32)[:rows]
  source = np.pad(source, ((0, 0), (0, length - S)), constant_values=7) * ids
  targets = random.integers(4, V, (rows, T)).astype(np.int32)
  tokens = np.concatenate([np.full((rows, 1), END), targets[:, :-1]], 1).astype(np.int32)
  weights = np.ones((rows, T), np.float32)
  weights[:, 4:] = 0
  return {'source': source, 'source_ids': ids, 'tokens': tokens, 'targets': targets,
          'weights': weights}  # fmt: skip


@functools.cache
def params():
  own = batch()
  return variables(task().model, {k: own[k] for k in ('source', 'source_ids')}, own['tokens'],
                   scale=0.6)['params']  # fmt: skip


def noise():
  return Noise(jax.random.PRNGKey(0), jnp.int32(0))


@functools.cache
def predictor(num_beams=3):
  own = task(num_beams=num_beams)
  return jit(lambda params, batch: own.predict({'params': params}, batch, noise()))


def predicted(rows, num_beams=3):
  keys = ('source', 'source_ids')
  found = predictor(num_beams)(params(), {k: rows[k] for k in keys})
  return {k: np.asarray(v) for k, v in found.items()}


def test_predictions_are_those_of_beam_search():
  own = batch()
  found = predicted(own)
  inputs = {k: own[k] for k in ('source', 'source_ids')}
  search = BeamSearch(*decoder(task().model, params(), ONE), ONE, 3, (END,), begin=(END,))
  texts, scores = search(inputs, 7)
  assert [row[row >= 0].tolist() for row in found['prediction']] == texts
  np.testing.assert_allclose(found['score'], scores, atol=1e-5)
  assert np.ptp(scores) > 1e-3  # the sources matter


@pytest.mark.parametrize('num_beams', [1, 3])
def test_texts_depend_neither_on_the_batch_nor_on_padding(num_beams):
  whole = predicted(batch(), num_beams)
  wide = predicted(batch(length=S + 5), num_beams)
  np.testing.assert_array_equal(wide['prediction'], whole['prediction'])
  np.testing.assert_allclose(wide['score'], whole['score'], atol=1e-5)
  alone = predicted({k: v[1:2] for k, v in batch().items()}, num_beams)
  np.testing.assert_array_equal(alone['prediction'], whole['prediction'][1:2])
  np.testing.assert_allclose(alone['score'], whole['score'][1:2], atol=1e-5)


def test_the_loss_is_smoothed_in_training_only():
  own = batch()
  plain, smooth = task(), task(smoothing=0.2)
  source = {k: own[k] for k in ('source', 'source_ids')}
  logits = plain.model.apply({'params': params()}, source, own['tokens'])
  log = np.asarray(jax.nn.log_softmax(logits), np.float64)
  picked = np.take_along_axis(log, own['targets'][..., None], -1)[..., 0]
  expected = -(picked * own['weights']).sum()
  moved = -((0.8 * picked + 0.2 * log.mean(-1)) * own['weights']).sum()
  for t, train, value in (
    (plain, True, expected),
    (smooth, False, expected),
    (smooth, True, moved),
  ):
    found = t.loss({'params': params()}, own, noise(), train=train)
    assert float(found.sum) == pytest.approx(value, rel=1e-5)
    assert float(found.count) == own['weights'].sum()


@dataclasses.dataclass(frozen=True)
class Doubled(Wrapper):
  def merged_params(self, variables):
    return jax.tree.map(lambda x: 2 * x, variables['params'])


def test_a_wrapper_decodes_with_its_own_weights():
  half = jax.tree.map(lambda x: x / 2, params())
  rows = {k: v for k, v in batch().items() if k.startswith('source')}
  found = Doubled(task()).predict({'params': half}, rows, noise())
  np.testing.assert_array_equal(found['prediction'], predicted(batch())['prediction'])


def test_refused_by_name():
  with pytest.raises(InputError, match='task.model=GPT: expected an encoder-decoder'):
    Seq2SeqLM(GPT(V, 8))
  for options, message in (
    ({'num_beams': 0}, 'num_beams=0: expected a finite number, 1 <= num_beams'),
    ({'smoothing': 1.0}, 'smoothing=1.0: expected 0 <= smoothing < 1'),
  ):
    with pytest.raises(InputError, match=message):
      task(**options)
  facts = {'vocab_size': V, 'length': 8, 'begin': END}
  task().validate(facts)
  with pytest.raises(InputError, match='data.begin=0: expected 3, the id that targets'):
    task().validate({**facts, 'begin': 0})
  bounded = task()
  object.__setattr__(bounded, 'model', bounded.model.clone(max_source_len=5))
  with pytest.raises(InputError, match='source_length=9: expected rows of at most'):
    bounded.validate({**facts, 'source_length': 9})
  with pytest.raises(InputError, match='source'):
    task().check_rows({**batch(), 'source': np.full((5, S), V)}, np.arange(5))
