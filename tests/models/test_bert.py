"""Encoders of the BERT family: what sees what, and that how it is computed does not matter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from bmx.core import tree
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.data.text.windows import along
from bmx.models.bert import BERT, Classifier, Pretraining, Tagger
from bmx.parallel import Layout, make_mesh
from bmx.parallel import jit as placed_jit
from bmx.parallel.sharding import param_pspecs, shardings, unbox
from bmx.tasks.encoder import MaskedLM
from bmx.train.gradients import Gradient
from tests.models.test_gpt import stacked
from tests.models.weights import jit, shapes, variables

B, T, V = 12, 12, 24
KEY = jax.random.PRNGKey(1)
NOISE = Noise(KEY, jnp.int32(0))
COUNT = np.tile(np.arange(T, dtype=np.int32), (B, 1))
ZEROS = np.zeros((B, T), np.int32)
PAIR = (COUNT // 5) % 2


def bert(**options):
  defaults = {
    'vocab_size': V,
    'max_seq_len': T,
    'width': 16,
    'depth': 2,
    'heads': 4,
    'dropout': 0.0,
  }
  return BERT(**defaults | options)


def tokens(batch=B, seed=0):
  return np.random.default_rng(seed).integers(0, V, (batch, T)).astype(np.int32)


@functools.cache
def compiled(model):
  return jit(lambda params, *inputs: model.apply({'params': params}, *inputs))


@functools.cache
def start(model, scale=0.3):
  return variables(model, tokens(), scale=scale)['params']


def run(model, ids, positions=COUNT, segment_ids=ZEROS + 1, types=ZEROS, params=None):
  return compiled(model)(params or start(model), ids, positions, segment_ids, types)


def segments(*sizes, batch=B):
  """Returns segment_ids and positions of documents in a row; the rest is padding."""
  ids = np.concatenate([np.full(n, i, np.int32) for i, n in enumerate(sizes, 1)])
  places = np.concatenate([np.arange(n, dtype=np.int32) for n in sizes])
  pad = lambda x: np.tile(np.pad(x, (0, T - len(x))), (batch, 1))
  return pad(ids), pad(places)


def test_a_token_sees_its_segment_and_no_other():
  """Row s has another token at s: the changed outputs are those that attend to s.

  The last segment is padding.
  """
  ids, places = segments(5, 4)
  base = np.tile(tokens(1), (T, 1))
  changed = np.where(np.eye(T, dtype=bool), (base + 1) % V, base)
  before, after = (run(bert(), x, places, ids) for x in (base, changed))
  np.testing.assert_array_equal(np.abs(after - before).max(-1) > 0, ids == ids.T)
  whole = run(bert(), changed) - run(bert(), base)
  assert np.abs(whole).max(-1).min() > 1e-5


def test_padding_changes_nothing():
  """A row of 7 tokens, with whatever behind it, is the row of 7 tokens."""
  padded = run(bert(), tokens(), segment_ids=segments(7)[0])
  cut = [x[:, :7] for x in (tokens(), COUNT, ZEROS + 1, ZEROS)]
  alone = compiled(bert())(start(bert()), *cut)
  np.testing.assert_allclose(padded[:, :7], alone, atol=1e-5)
  assert np.isfinite(padded).all()


def test_packed_documents_are_as_each_alone():
  ids, places = segments(5, 7)
  types = np.random.default_rng(4).integers(0, 2, (B, T)).astype(np.int32)
  packed = run(bert(), tokens(), places, ids, types)
  for part in (slice(0, 5), slice(5, 12)):
    room = part.stop - part.start
    row = lambda x, part=part, room=room: np.pad(x[:, part], ((0, 0), (0, T - room)))
    alone = run(bert(), row(tokens()), segment_ids=segments(room)[0], types=row(types))
    np.testing.assert_allclose(packed[:, part], alone[:, :room], atol=1e-5)


def numpy_bert(params, ids, types, heads):
  """Devlin et al. 2019 in the words of Vaswani et al. 2017, in float64: post-norm, exact GELU."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p['scale'] + p['bias']

  def dense(x, p):
    return np.tensordot(x, p['kernel'], 1) + p['bias']

  def attention(x, p):
    q, k, v = (dense(x, p[n]) for n in ('query', 'key', 'value'))
    y = np.zeros_like(q)
    for b in range(len(x)):
      for h in range(heads):
        weights = np.exp(q[b, :, h] @ k[b, :, h].T / np.sqrt(q.shape[-1]))
        y[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, h]
    return np.tensordot(y, p['out']['kernel'], 2) + p['out']['bias']

  gelu = lambda x: x * (1 + erf(x / np.sqrt(2))) / 2
  x = p['embed']['table'][ids] + p['position'][: ids.shape[1]] + p['type'][types]
  x = norm(x, p['norm'])
  for i in range(len(p['stack'])):
    block = p['stack'][f'block_{i}']
    x = norm(x + attention(x, block['attention']), block['attention_norm'])
    y = gelu(dense(x, block['feed_forward']['up']))
    x = norm(x + dense(y, block['feed_forward']['down']), block['feed_forward_norm'])
  return x


def test_it_is_the_papers_encoder():
  expected = numpy_bert(start(bert()), tokens(), PAIR, heads=4)
  np.testing.assert_allclose(run(bert(), tokens(), types=PAIR), expected, atol=2e-5)


def test_positions_and_types_matter_and_are_counted_from_zero():
  said = run(bert(), tokens())
  silent = compiled(bert())(start(bert()), tokens())
  np.testing.assert_allclose(said, silent, atol=1e-6)
  for other in ({'positions': COUNT[:, ::-1].copy()}, {'types': PAIR}):
    assert np.abs(run(bert(), tokens(), **other) - said).max() > 1e-2


def test_positions_may_begin_at_a_later_row():
  """RoBERTa's two first rows belong to no position."""
  params = start(bert(first_position=2))
  assert params['position'].shape == (T + 2, 16)
  plain = params | {'position': params['position'][2:]}
  given = run(bert(first_position=2), tokens())
  np.testing.assert_array_equal(given, run(bert(), tokens(), params=plain))


@pytest.mark.parametrize('types', [0, 1])
def test_a_model_that_tells_no_segments_apart_reads_pairs(types):
  """As RoBERTa reads questions: data that says two types is data that says none."""
  model = bert(types=types)
  given = run(model, tokens(), types=PAIR)
  assert np.isfinite(given).all()
  np.testing.assert_array_equal(given, run(model, tokens()))
  assert ('type' in start(model)) == bool(types)


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_a_scan_is_a_loop(remat):
  ids, places = segments(5, 7)
  inputs = tokens(), places, ids, PAIR
  given = run(bert(scan=True, remat=remat), *inputs, params=stacked(start(bert())))
  np.testing.assert_allclose(given, run(bert(), *inputs), atol=1e-5)


def test_the_vocabulary_may_be_padded():
  """The same scores of the same tokens, and no probability for the padding."""
  params = start(Pretraining(bert()))
  wider = dict(params) | {'bias': np.pad(params['bias'], (0, 8), constant_values=9.0)}
  table = np.pad(params['encoder']['embed']['table'], ((0, 8), (0, 0)), constant_values=1.0)
  wider['encoder'] = params['encoder'] | {'embed': {'table': table}}
  model = Pretraining(bert(vocab_pad=8))
  expected, _ = compiled(Pretraining(bert()))(params, tokens())
  logits, none = compiled(model)(wider, tokens())
  assert none is None
  assert logits.shape == (B, T, V + 8)
  np.testing.assert_allclose(logits[..., :V], expected, atol=1e-5)
  assert not np.any(jax.nn.softmax(logits)[..., V:])
  assert model.facts.padded_parameters == 8 * 17
  assert tree.count(wider) - tree.count(params) == 8 * 17


def test_heads_say_what_their_encoder_is():
  e = bert(vocab_pad=8)
  for model in (Pretraining(e), Classifier(e, 3), Tagger(e, 3)):
    assert (model.facts.vocab_size, model.facts.max_seq_len) == (V, T)
  assert Classifier(e).facts.padded_parameters == Tagger(e).facts.padded_parameters == 8 * 16


def test_what_a_model_has_by_its_arguments():
  has = lambda model: set(tree.named(shapes(model, tokens())['params']))
  plain, both = has(Pretraining(bert())), has(Pretraining(bert(), next_sentence=True))
  pooler = {'encoder/pooler/kernel', 'encoder/pooler/bias'}
  assert both - plain == pooler | {'next/kernel', 'next/bias'}
  assert pooler < has(Classifier(bert()))
  assert not pooler & has(Tagger(bert()))
  assert not [n for n in plain if 'head' in n or 'norm_out' in n]


def test_initial_values():
  """Normal of 0.02, biases zero, scales one (Devlin et al. 2019)."""
  model = Pretraining(bert(width=64, heads=2, depth=1), next_sentence=True)
  params = jit(lambda key: unbox(model.init(key, tokens()))['params'])(KEY)
  for name, value in tree.named(params).items():
    if name.endswith('bias'):
      assert not np.any(value), name
    elif name.endswith('scale'):
      assert np.all(value == 1), name
    else:
      assert np.std(value) == pytest.approx(0.02, rel=0.15), name


def test_dropout_is_for_training():
  model = Classifier(bert(dropout=0.3, depth=1))
  params = start(model)
  run = jit(
    lambda key: model.apply({'params': params}, tokens(), train=True, rngs={'dropout': key})
  )
  np.testing.assert_array_equal(run(KEY), run(KEY))
  assert np.abs(run(KEY) - run(jax.random.PRNGKey(2))).max() > 1e-3
  plain = compiled(Classifier(bert(depth=1)))(params, tokens())
  np.testing.assert_array_equal(compiled(model)(params, tokens()), plain)


def test_bfloat16_is_near_float32():
  given = run(bert(dtype='bfloat16'), tokens(), params=start(bert()))
  assert given.dtype == jnp.bfloat16
  expected = run(bert(), tokens())
  assert np.abs(np.asarray(given, np.float32) - expected).max() < 0.1


@pytest.mark.parametrize(('options', 'message'), [
  ({'max_seq_len': T - 1}, f"sequence of {T} tokens is longer than the model's {T - 1} positions"),
  ({'heads': 5}, 'width=16: expected a multiple of heads=5'),
  ({'activation': 'swish9'}, "activation='swish9': expected one of"),
  ({'pooler_activation': 'swish9'}, "pooler_activation='swish9': expected one of"),
  ({'attention': 'flash9'}, "attention='flash9': expected one of"),
  ({'dropout': 1.0}, 'dropout=1.0: expected 0 <= dropout < 1'),
  ({'depth': 0}, r'depth=\(0,\)'),
])  # fmt: skip
def test_what_is_refused(options, message):
  with pytest.raises(InputError, match=message):
    shapes(bert(**options), tokens())


def rows_of_pairs():
  random = np.random.default_rng(3)
  ids, places = segments(5, 6, batch=8)
  return {
    'tokens': tokens(8),
    'segment_ids': ids,
    'positions': places,
    'types': random.integers(0, 2, (8, T)).astype(np.int32),
    'next': random.integers(0, 2, 8).astype(np.int32),
    'weights': np.ones(8, np.float32),
  }


def pretraining(**options):
  return MaskedLM(Pretraining(bert(scan=True, **options), next_sentence=True), rate=0.3)


def placed(mesh, fn):
  """`fn(task, params, rows)`, parameters and rows placed as their names say."""
  count = int(np.prod(list(mesh.values()), dtype=int))
  layout = Layout(make_mesh(mesh, jax.devices()[:count]))
  task = pretraining(attention='ring' if layout.mesh.shape['seq'] > 1 else 'xla')
  boxed = jax.eval_shape(pretraining().init, NOISE, rows_of_pairs())['params']
  places = shardings(param_pspecs(boxed, layout), layout.mesh)
  params = jax.device_put(start(pretraining().model), places)
  given = rows_of_pairs()
  spec = {k: along(T) if v.ndim == 2 else Spec((), v.dtype) for k, v in given.items()}
  rows = jax.device_put(given, layout.batch(spec | {'weights': Spec((), np.float32)}, 8))
  options = {'compiler_options': {'xla_backend_optimization_level': 0}}
  return jax.device_get(placed_jit(functools.partial(fn, task), layout, **options)(params, rows))


def sums(task, params, rows):
  return task.loss({'params': params}, rows, NOISE, train=True).metrics


def gradient(task, params, rows):
  grads = Gradient(task)({'params': params}, rows, NOISE)
  return grads.sum, grads.metrics


@pytest.fixture(scope='module')
def alone():
  return placed({}, gradient)


def same_sums(given, expected):
  for name, (total, count) in expected.items():
    assert given[name].tolist() == pytest.approx([total, count], rel=1e-5), name


def near(given, expected):
  """Gradients, each against the largest: that of a key's bias is 0 but for rounding."""
  largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)
  jax.tree.map(close, given, expected)


def test_loss_and_gradient_do_not_depend_on_the_layout(alone):
  """Of masked words, whose places are the same everywhere, and of next sentences."""
  grads, metrics = placed({'data': 2, 'fsdp': 2, 'model': 2}, gradient)
  same_sums(metrics, alone[1])
  near(grads, alone[0])


@pytest.mark.parametrize('mesh', [
  {'fsdp': 4, 'seq': 2}, {'data': 2, 'pipe': 2, 'model': 2},
], ids=['seq', 'pipe'])  # fmt: skip
def test_the_loss_does_not_depend_on_the_layout(mesh, alone):
  same_sums(placed(mesh, sums), alone[1])
