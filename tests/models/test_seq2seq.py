"""Properties of the encoder-decoder: what sees what, cached decoding, and packed pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Decoder
from bmx.models.seq2seq import Seq2Seq
from bmx.serve.decode import DecodingForm
from tests.models.weights import jit, shapes, variables

B, S, T, V = 3, 9, 8, 23
KINDS = {
  'plain': {},
  'marian': {'positions': 'sinusoidal_halves', 'post_norm': True, 'norm_out': False,
             'scaled_embed': True, 'head_bias': True, 'activation': 'silu'},
  'bart': {'positions': 'learned', 'first_position': 2, 'post_norm': True, 'norm_out': False,
           'embed_norm': True, 'head_bias': True, 'encoder_depth': 1, 'encoder_heads': 2},
  't5': {'positions': 'relative', 'relative_buckets': 8, 'relative_distance': 6, 'norm': 'rms',
         'bias': False, 'scaled_attention': False, 'gated': True, 'activation': 'gelu',
         'head_dim': 6, 'scaled_head': True, 'vocab_pad': 9},
  'rotary': {'positions': 'rotary', 'tied': False},
}  # fmt: skip


def made(kind='plain', **options):
  sizes = {'vocab_size': V, 'max_seq_len': 16, 'width': 16, 'depth': 2, 'heads': 4}
  return Seq2Seq(**sizes | KINDS[kind] | options)


def draw(length, seed=0, batch=B):
  return np.random.default_rng(seed).integers(0, V, (batch, length)).astype(np.int32)


def source(ids=None, seed=1):
  """Sources of 9, 5 and 7 tokens, padded on the right."""
  real = np.arange(S)[None] < np.array([9, 5, 7])[:, None]
  return {'source': draw(S, seed) if ids is None else ids, 'source_ids': real.astype(np.int32)}


@functools.cache
def run(model):
  return jit(lambda params, *inputs: model.apply({'params': params}, *inputs))


@functools.cache
def start(model):
  return variables(model, source(), draw(T), scale=0.2)['params']


def logits(model, *inputs):
  return np.asarray(run(model)(start(model), *inputs))


@pytest.mark.parametrize('kind', ['plain', 't5'])
def test_future_targets_do_not_matter_and_sources_do(kind):
  model, ids = made(kind), draw(T)
  before = logits(model, source(), ids)
  assert before.shape[:2] == (B, T) and np.isfinite(before).all()
  other = np.concatenate([ids[:, :4], (ids[:, 4:] + 1) % V], axis=1)
  after = logits(model, source(), other)
  np.testing.assert_allclose(after[:, :4], before[:, :4], atol=1e-6)
  assert np.abs(after[:, 4:] - before[:, 4:])[..., :V].max(-1).min() > 1e-4
  changed = logits(model, source(seed=2), ids)
  assert np.abs(changed - before)[..., :V].max(-1).min() > 1e-4


@pytest.mark.parametrize('kind', KINDS)
def test_padding_of_the_source_does_not_matter(kind):
  model, ids = made(kind), draw(T)
  before, given = logits(model, source(), ids), source()
  noise = np.where(given['source_ids'] > 0, given['source'], (given['source'] + 7) % V)
  np.testing.assert_array_equal(logits(model, source(noise), ids), before)
  # A source alone, without padding, gives the same.
  alone = {'source': given['source'][1:2, :5]}
  np.testing.assert_allclose(logits(model, alone, ids[1:2]), before[1:2], atol=2e-5)


@functools.cache
def steps(model):
  def begin(params, inputs):
    return model.apply({'params': params}, inputs, 14, method='prefill')

  def extend(params, tokens, cache):
    return model.apply({'params': params}, tokens, cache, method='extend')

  head = lambda params, hidden: model.apply({'params': params}, hidden, method='logits')
  return jit(begin), jit(extend), jit(head)


@pytest.mark.parametrize('kind', KINDS)
def test_cached_decoding_is_the_whole_forward(kind):
  """Prompts of unequal length, padded on the left, beside sources padded on the right."""
  model, ids, sizes = made(kind), draw(T), (4, 2, 3)
  expected, params = logits(model, source(), ids), start(model)
  begin, extend, head = steps(model)
  tokens = np.full((B, 4), V - 1, np.int32)
  for row, n in enumerate(sizes):
    tokens[row, 4 - n :] = ids[row, :n]
  first = np.array([4 - n for n in sizes], np.int32)
  hidden, cache = begin(params, {**source(), 'tokens': tokens, 'first': first})
  for step in range(4):
    given = np.asarray(head(params, hidden))[:, 0]
    for row, n in enumerate(sizes):
      np.testing.assert_allclose(given[row], expected[row, n - 1 + step], atol=1e-4)
    at = [[ids[row, n + step]] for row, n in enumerate(sizes)]
    hidden, cache = extend(params, np.array(at, np.int32), cache)


def test_beams_do_not_copy_the_memory():
  model, ids = made(), draw(4)
  begin, extend, head = steps(model)
  params = start(model)
  first = np.zeros(B, np.int32)
  _, cache = begin(params, {**source(), 'tokens': ids, 'first': first})
  order = np.array([0, 0, 1, 1, 2, 2])
  beams = cache.rows(jnp.asarray(order))
  assert beams.keys[0].shape[0] == 6
  assert all(m.key is own.key for m, own in zip(beams.memory, cache.memory, strict=True))
  new = draw(1, seed=5, batch=6)
  hidden, _ = extend(params, new, beams)
  found = np.asarray(head(params, hidden))[:, 0]
  for i, row in enumerate(order):
    whole = np.concatenate([ids[row], new[i]])[None]
    one = {k: v[row : row + 1] for k, v in source().items()}
    np.testing.assert_allclose(found[i], logits(model, one, whole)[0, -1], atol=1e-4)


def test_int8_memory_is_close():
  model, ids = made(), draw(4)
  plain, codes = made(), made(kv_cache='int8')
  inputs = {**source(), 'tokens': ids, 'first': np.zeros(B, np.int32)}
  results = []
  for m in (plain, codes):
    begin, extend, head = steps(m)
    hidden, cache = begin(start(model), inputs)
    hidden, _ = extend(start(model), draw(1, seed=5), cache)
    results.append(np.asarray(head(start(model), hidden)))
  assert cache.memory[0].key['int8'].dtype == jnp.int8
  np.testing.assert_allclose(results[1], results[0], atol=0.05)
  assert np.abs(results[1] - results[0]).max() > 0


@pytest.mark.parametrize('kind', ['bart', 't5', 'rotary'])
def test_packed_pairs_do_not_see_each_other(kind):
  model = made(kind)
  sizes, lengths = (4, 5), (3, 5)  # tokens of both sources, of both targets
  ids, src = draw(T, batch=1), draw(S, seed=1, batch=1)
  count = lambda pair: np.concatenate([np.arange(n) for n in pair])[None].astype(np.int32)
  which = lambda pair: np.repeat([1, 2], pair)[None].astype(np.int32)
  row = {'source': src, 'source_ids': which(sizes), 'source_positions': count(sizes)}
  packed = logits(model, row, ids, count(lengths), which(lengths))
  one = logits(model, {'source': src[:, :4]}, ids[:, :3])
  two = logits(model, {'source': src[:, 4:]}, ids[:, 3:])
  np.testing.assert_allclose(packed[:, :3], one, atol=2e-5)
  np.testing.assert_allclose(packed[:, 3:], two, atol=2e-5)


def test_a_scan_is_a_loop():
  loop, scan = made('t5', encoder_depth=3), made('t5', encoder_depth=3, scan=True)
  params = dict(start(loop))
  for side, depth in (('encoder', 3), ('decoder', 2)):
    own = dict(params[side])
    blocks = [own['stack'][f'block_{i}'] for i in range(depth)]
    own['stack'] = {'blocks': jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
    params[side] = own
  wanted = shapes(scan, source(), draw(T))['params']
  assert tree.signature(wanted) == tree.signature(params)
  given = run(scan)(params, source(), draw(T))
  np.testing.assert_allclose(given, logits(loop, source(), draw(T)), atol=2e-5)
  model, convert = scan.for_decoding()
  assert tree.signature(convert({'params': params})['params']) == tree.signature(start(loop))
  assert not model.scan


def test_suppressed_ids_are_never_generated():
  model = made(suppressed=(3,))
  hidden = jnp.ones((1, 1, 16))
  head = lambda m, method: m.apply({'params': start(made())}, hidden, method=method)
  found = head(model, 'logits')
  np.testing.assert_array_equal(np.delete(found, 3, -1), np.delete(head(made(), 'logits'), 3, -1))
  assert found[0, 0, 3] < -1e29
  assert logits(model, source(), draw(T)).min() > -1e3  # of training they are as they are


def test_it_is_a_decoder():
  assert isinstance(made(), Decoder) and isinstance(made(), DecodingForm)
  facts = made(max_source_len=20, vocab_pad=9).facts
  assert (facts.vocab_size, facts.max_seq_len, facts.max_source_len) == (V, 16, 20)
  assert facts.padded_parameters == 9 * 16


@pytest.mark.parametrize(('options', 'message'), [
  ({'positions': 'none at all'}, "positions='none at all': expected one of learned, "),
  ({'positions': 'learned', 'max_seq_len': 0}, 'max_seq_len=0: expected the rows of the table'),
  ({'max_source_len': 6}, "a sequence of 9 tokens is longer than the model's 6 positions"),
  ({'attention': 'splash'}, "attention 'splash' needs a TPU"),
  ({'positions': 'relative', 'attention': 'cudnn'}, "attention 'cudnn' needs a GPU"),
  ({'width': 15, 'heads': 3}, 'width=15: expected an even number for sinusoidal positions'),
])  # fmt: skip
def test_refused_by_name(options, message):
  with pytest.raises(InputError, match=message):
    shapes(made(**options), source(), draw(T))
