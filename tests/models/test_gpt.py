"""Properties of the language model: what sees what, and that how it is computed does not matter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models.attention import AttentionConfig
from bmx.models.block import BlockConfig, MlpConfig
from bmx.models.gpt import GPT
from bmx.models.stack import CUDNN, Stack
from bmx.parallel.sharding import unbox
from tests.models.weights import drawn, jit, shapes, variables

B, T, V = 2, 16, 23
KEY = jax.random.PRNGKey(1)


def gpt(**options):
  return GPT(**{'vocab_size': V, 'max_seq_len': T, 'width': 16, 'depth': 2, 'heads': 4} | options)


def tokens(length=T, seed=0):
  return np.random.default_rng(seed).integers(0, V, (B, length)).astype(np.int32)


@functools.cache
def compiled(model):
  return jit(lambda params, *inputs: model.apply({'params': params}, *inputs))


def start(model, scale=0.1):
  return variables(model, tokens(), scale=scale)['params']


KINDS = {
  'learned': {},
  'sinusoidal': {'positions': 'sinusoidal', 'tied': False},
  'rotary': {'positions': 'rotary', 'kv_heads': 2},
  'llama': {'positions': 'rotary', 'kv_heads': 1, 'norm': 'rms', 'gated': True, 'bias': False,
            'activation': 'silu', 'mlp_dim': 40},
}  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
def test_future_tokens_do_not_matter(kind):
  model = gpt(**KINDS[kind])
  params, ids = start(model), tokens()
  before = compiled(model)(params, ids)
  assert before.shape == (B, T, V)
  assert np.isfinite(before).all()
  for t in (0, 3, 4, 9, T - 2):
    other = np.concatenate([ids[:, : t + 1], (ids[:, t + 1 :] + 1) % V], axis=1)
    after = compiled(model)(params, other)
    np.testing.assert_array_equal(after[:, : t + 1], before[:, : t + 1])
    assert np.abs(after[:, t + 1 :] - before[:, t + 1 :]).max(-1).min() > 1e-4


@pytest.mark.parametrize('kind', KINDS)
def test_segments_do_not_matter_to_each_other(kind):
  """A packed row gives each document the logits that it has at the start of a row of its own."""
  model, (a, b) = gpt(**KINDS[kind]), (10, 6)
  params, ids, run = start(model), tokens(), compiled(model)
  positions = np.tile(np.concatenate([np.arange(a), np.arange(b)]), (B, 1))
  segment_ids = np.tile(np.repeat([1, 2], [a, b]), (B, 1))
  packed = run(params, ids, positions, segment_ids)
  first, second = run(params, ids), run(params, np.roll(ids, -a, axis=1))
  np.testing.assert_allclose(packed[:, :a], first[:, :a], atol=1e-5)
  np.testing.assert_allclose(packed[:, a:], second[:, :b], atol=1e-5)
  assert np.abs(packed - first)[:, a:].max() > 1e-3


def test_positions_matter_and_are_counted_from_zero():
  model = gpt()
  params, ids = start(model), tokens()
  count = np.tile(np.arange(T), (B, 1))
  run = compiled(model)
  np.testing.assert_array_equal(run(params, ids, count), run(params, ids))
  assert np.abs(run(params, ids, count[:, ::-1].copy()) - run(params, ids)).max() > 1e-3


def test_rotary_sees_distances_only():
  model = gpt(**KINDS['rotary'])
  params, ids = start(model), tokens()
  count = np.tile(np.arange(T), (B, 1))
  run = compiled(model)
  np.testing.assert_allclose(run(params, ids, count + 50), run(params, ids), atol=1e-4)


def stacked(params):
  """The parameters of a loop over blocks as a scan holds them."""
  stack = params['stack']
  blocks = [stack[f'block_{i}'] for i in range(len(stack))]
  return params | {'stack': {'blocks': jax.tree.map(lambda *x: jnp.stack(x), *blocks)}}


def value_and_gradient(model, params):
  """Of a number in which every logit has another weight. 7 tokens, which are not cut in blocks."""
  ids = tokens(7)
  weights = np.random.default_rng(2).normal(size=(B, 7, V)).astype(np.float32)

  def total(params):
    options = {'train': True, 'rngs': {'dropout': KEY}} if model.dropout else {}
    return (model.apply({'params': params}, ids, **options) * weights).sum()

  return jit(jax.value_and_grad(total))(params)


def assert_same(given, expected):
  (a, grads), (b, expected_grads) = given, expected
  np.testing.assert_allclose(a, b, rtol=1e-5)
  expected_grads = tree.named(expected_grads)
  for name, g in tree.named(grads).items():
    scale = float(jnp.abs(expected_grads[name]).max()) + 1e-3
    # The gradient of a key bias is zero: what is left is the rounding of its terms.
    atol = 5e-7 if name.endswith('key/bias') else 1e-5 * scale
    np.testing.assert_allclose(g, expected_grads[name], atol=atol, rtol=1e-4, err_msg=name)


def test_a_scan_is_a_loop():
  options = {'positions': 'rotary', 'kv_heads': 2, 'gated': True}
  loop, scan = gpt(**options), gpt(**options, scan=True)
  params = start(loop)
  assert tree.signature(shapes(scan, tokens())['params']) == tree.signature(stacked(params))
  value, gradient = value_and_gradient(loop, params)
  assert_same(value_and_gradient(scan, stacked(params)), (value, stacked(gradient)))


@pytest.mark.parametrize('remat', ['dots', 'full'])
@pytest.mark.parametrize('scan', [False, True])
def test_remat_changes_nothing(scan, remat):
  """Dropout included: a recomputed block drops the same units."""
  kept, again = (gpt(dropout=0.3, scan=scan, remat=remat) for remat in ('none', remat))
  params = start(kept)
  assert_same(value_and_gradient(again, params), value_and_gradient(kept, params))


@pytest.mark.parametrize('scan', [False, True])
def test_layers_drop_other_units(scan):
  """Blocks that add a constant 1 only: the sum of two is 0, 1 or 2, over the share that is kept."""
  block = BlockConfig(AttentionConfig(2, 2), MlpConfig(4), dropout=0.5)
  stack = Stack(2, block, scan=scan)
  x = jnp.zeros((2, 16, 32))
  inputs = x, jnp.zeros((2, 16), jnp.int32), None
  zeros = jax.tree.map(jnp.zeros_like, drawn(shapes(stack, *inputs, train=False)['params']))
  ones = lambda name, v: v + 1 if name.endswith('down/bias') else v
  options = {'train': True, 'rngs': {'dropout': KEY}}
  params = tree.map_named(ones, zeros)
  y = np.asarray(jit(lambda p: stack.apply({'params': p}, *inputs, **options)[0])(params))
  share = [np.isclose(y, 2.0 * n).mean() for n in range(3)]
  assert share == pytest.approx([0.25, 0.5, 0.25], abs=0.06)
  assert sum(share) == 1


def test_dropout_is_for_training():
  model = gpt(dropout=0.3)
  params, ids = start(model), tokens()
  run = jit(lambda key: model.apply({'params': params}, ids, train=True, rngs={'dropout': key}))
  np.testing.assert_array_equal(run(KEY), run(KEY))
  assert np.abs(run(KEY) - run(jax.random.PRNGKey(2))).max() > 1e-3
  np.testing.assert_array_equal(compiled(model)(params, ids), compiled(gpt())(params, ids))


def initialised(model):
  return jit(lambda key: unbox(model.init(key, tokens()))['params'])(KEY)


def test_padding_the_vocabulary_changes_no_real_token():
  """From the same seed: the same logits, and no probability for tokens that are none."""
  plain, padded = gpt(), gpt(vocab_pad=9)
  expected = compiled(plain)(initialised(plain), tokens())
  params = initialised(padded)
  logits = compiled(padded)(params, tokens())
  assert logits.shape == (B, T, V + 9)
  np.testing.assert_allclose(logits[..., :V], expected, rtol=1e-6, atol=1e-6)
  probability = jax.nn.softmax(logits)
  assert not np.any(probability[..., V:])
  np.testing.assert_allclose(probability[..., :V], jax.nn.softmax(expected), rtol=1e-5)


def test_padding_of_a_head_gets_no_gradient():
  model, ids = gpt(tied=False, vocab_pad=9), tokens(7)
  params = start(model)

  def loss(params):
    log = jax.nn.log_softmax(model.apply({'params': params}, ids))
    return -jnp.take_along_axis(log, ids[..., None], -1).mean()

  gradient = jit(jax.grad(loss))(params)['head']['table']
  assert np.isfinite(gradient).all()
  assert not np.any(gradient[V:])
  assert np.all(np.any(gradient[:V], axis=1))


def test_initial_values():
  """Radford et al. 2019: 0.02, what adds to the residual stream by 1/√(2 · depth) less."""
  params = tree.named(initialised(gpt(width=64, vocab_size=200, scan=True)))
  first, second = params['stack/blocks/feed_forward/up/kernel']
  assert np.abs(first - second).max() > 0.01
  for name, value in params.items():
    if name.endswith('bias'):
      assert not np.any(value), name
    elif name.endswith('scale'):
      assert np.all(value == 1), name
    else:
      expected = 0.01 if name.endswith(('out/kernel', 'down/kernel')) else 0.02
      assert np.std(value) == pytest.approx(expected, rel=0.1), name


def test_what_a_model_has_by_its_arguments():
  has = lambda **options: set(tree.named(shapes(gpt(**options), tokens())['params']))
  assert 'head/table' not in has()
  assert 'head/table' in has(tied=False)
  assert 'position' in has()
  assert 'position' not in has(positions='rotary') | has(positions='sinusoidal')
  assert not [n for n in has(bias=False, norm='rms') if n.endswith('bias')]
  assert any('gate' in n for n in has(gated=True))


def test_bfloat16_is_near_float32():
  exact, half = gpt(), gpt(dtype='bfloat16')
  params = start(exact)
  logits = compiled(half)(params, tokens())
  assert logits.dtype == jnp.bfloat16
  expected = compiled(exact)(params, tokens())
  error = np.abs(np.asarray(logits, np.float32) - expected).max()
  assert error < 0.03 * np.abs(expected).max()


def test_too_long_a_sequence():
  with pytest.raises(InputError, match="17 tokens is longer than the model's 16 positions"):
    shapes(gpt(), tokens(17))


@pytest.mark.parametrize(('options', 'message'), [
  ({'positions': 'alibi'}, "positions='alibi': expected"),
  ({'norm': 'group'}, "norm='group': expected 'layer' or 'rms'"),
  ({'activation': 'swish9'}, "activation='swish9': expected one of"),
  ({'attention': 'flash9'}, "attention='flash9': expected one of"),
  ({'remat': 'some'}, "remat='some': expected one of none, dots, full"),
  ({'heads': 5}, 'width=16: expected a multiple of heads=5'),
  ({'kv_heads': 3}, 'heads=4: expected a multiple of the 3 key heads'),
])  # fmt: skip
def test_what_is_refused(options, message):
  with pytest.raises(InputError, match=message):
    shapes(gpt(**options), tokens())


def products(fn, *args):
  """Contractions of a program, those inside loops once."""
  text = str(jax.make_jaxpr(fn)(*args))
  return text.count('dot_general['), text.count('tanh ')


# Products and activations. Scores, and their sums of values, in 4 blocks of rows; then query, key,
# value, out and up, where all are repeated.
REPEATED = {'none': (0, 0), 'dots': (8, 1), 'full': (13, 1)}


@pytest.mark.parametrize(('remat', 'again'), REPEATED.items())
def test_what_is_computed_again(remat, again):
  """Beside what 'none' computes."""
  loss = lambda model: lambda p: (model.apply({'params': p}, tokens()) ** 2).sum()
  model, plain = gpt(depth=1, remat=remat), gpt(depth=1)
  count = lambda model: np.array(products(jax.grad(loss(model)), start(plain)))
  np.testing.assert_array_equal(count(model) - count(plain), again)


def test_the_kernels_whose_results_are_kept_are_those_of_jax():
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  assert cudnn._dot_product_attention_fwd_p_wrapper.name == CUDNN
