"""Recurrent networks beside PyTorch's, with the same weights; padding, lengths, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import facts_of
from bmx.models.recurrent import RecurrentClassifier, RecurrentStack, RecurrentTagger
from bmx.models.recurrent_lm import RecurrentLM
from bmx.parallel import Layout, jit, make_mesh
from bmx.parallel.sharding import unbox, use

B, T, D, H, V = 3, 7, 5, 6, 11
KEY = jax.random.PRNGKey(0)
LENGTHS = np.array([7, 2, 4], np.int32)
GATES = {'lstm': 'ifgo', 'gru': 'rzn', 'rnn': ''}  # in the order of PyTorch's rows
ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))


@functools.cache
def made(model, *shapes):
  """Parameters far from zero, so that gates are not half open, from shapes of float inputs."""
  init = lambda key: unbox(model.init(key, *(jnp.zeros(s) for s in shapes)))['params']
  params = jit(init, ONE)(KEY)
  random = np.random.default_rng(1)
  return jax.tree.map(lambda x: np.asarray(x + random.normal(size=x.shape) * 0.3, x.dtype), params)


def theirs(cell, params):
  """PyTorch's weights of a cell -> {weight_ih, weight_hh, bias_ih, bias_hh}.

  PyTorch has two biases that it adds, flax one of them; in a GRU both count, as the recurrent
  one of the candidate is multiplied.
  """
  names = GATES[cell] or ('',)
  kernel = lambda side: np.concatenate([params[f'{side}{n}']['kernel'] for n in names], 1).T

  def bias(side):
    zero = np.zeros(H, np.float32)
    return np.concatenate([params[f'{side}{n}'].get('bias', zero) for n in names])

  return {'weight_ih': kernel('i'), 'weight_hh': kernel('h'), 'bias_ih': bias('i'),
          'bias_hh': bias('h')}  # fmt: skip


def reference(torch, cell, params, depth, bidirectional):
  kind = {'lstm': torch.nn.LSTM, 'gru': torch.nn.GRU, 'rnn': torch.nn.RNN}[cell]
  module = kind(D, H, depth, batch_first=True, bidirectional=bidirectional)
  for layer in range(depth):
    for direction in ('forward', 'backward')[: 1 + bidirectional]:
      weights = theirs(cell, params[f'{direction}_{layer}']['cell'])
      suffix = f'_l{layer}' + '_reverse' * (direction == 'backward')
      for name, value in weights.items():
        tensor = torch.tensor(value.copy(), requires_grad=True)
        setattr(module, name + suffix, torch.nn.Parameter(tensor))
  return module


def read(torch, module, x, lengths=None):
  """PyTorch's outputs [B, T, H], zero on padding, and last hidden states [layers, B, H]."""
  if lengths is None:
    y, last = module(x)
  else:
    pack = torch.nn.utils.rnn.pack_padded_sequence
    packed, last = module(pack(x, torch.tensor(lengths), True, enforce_sorted=False))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, True, total_length=T)
  return y, last[0] if isinstance(last, tuple) else last


@pytest.mark.parametrize('cell', ['lstm', 'gru', 'rnn'])
@pytest.mark.parametrize(('depth', 'bidirectional', 'lengths'), [
  (1, False, None), (2, False, LENGTHS), (2, True, LENGTHS),
], ids=['one', 'two', 'both'])  # fmt: skip
def test_outputs_and_gradients_are_those_of_pytorch(cell, depth, bidirectional, lengths, torch):
  stack = RecurrentStack(cell, H, depth, bidirectional)
  params = made(stack, (B, T, D))
  random = np.random.default_rng(2)
  x = random.normal(size=(B, T, D)).astype(np.float32)
  real = np.arange(T)[None] < (np.full(B, T) if lengths is None else lengths)[:, None]
  factor = real[..., None] * random.normal(size=(B, T, H * (1 + bidirectional)))
  factor = factor.astype(np.float32)

  def loss(params, x):
    y, carries = stack.apply({'params': params}, x, None, lengths)
    last = jnp.stack([v['h'] for v in carries.values()])
    return (y * factor).sum() + (last**2).sum(), (y, last)

  (_, (y, last)), (grads, dx) = jit(jax.value_and_grad(loss, (0, 1), has_aux=True), ONE)(params, x)
  module = reference(torch, cell, params, depth, bidirectional)
  there = torch.tensor(x, requires_grad=True)
  their_y, their_last = read(torch, module, there, lengths)
  ((their_y * torch.tensor(factor)).sum() + (their_last**2).sum()).backward()
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  close(np.where(real[..., None], y, 0), their_y.detach())
  close(last, their_last.detach())
  close(np.where(real[..., None], dx, 0), np.where(real[..., None], there.grad, 0))
  for name, layer in grads.items():
    direction, number = name.split('_')
    suffix = f'_l{number}' + '_reverse' * (direction == 'backward')
    for side in ('i', 'h'):
      kernel = [layer['cell'][f'{side}{n}']['kernel'] for n in GATES[cell] or ('',)]
      close(np.concatenate(kernel, 1).T, getattr(module, f'weight_{side}h{suffix}').grad)
      for i, n in enumerate(GATES[cell] or ('',)):
        bias = layer['cell'][f'{side}{n}'].get('bias')
        if bias is not None:
          theirs_ = getattr(module, f'bias_{side}h{suffix}').grad
          close(bias, theirs_[i * H : (i + 1) * H])


def test_padding_changes_nothing():
  model = RecurrentClassifier(4, V, width=H, depth=2)
  random = np.random.default_rng(3)
  tokens = random.integers(0, V, (B, T)).astype(np.int32)
  segments = (np.arange(T)[None] < LENGTHS[:, None]).astype(np.int32)
  params = jit(lambda key: unbox(model.init(key, tokens))['params'], ONE)(KEY)
  score = jit(lambda t, s: model.apply({'params': params}, t, None, s), ONE)
  out = score(tokens, segments)
  other = np.where(segments, tokens, (tokens + 1) % V)
  np.testing.assert_array_equal(out, score(other, segments))
  wide = lambda x: np.pad(x, ((0, 0), (0, 4)), constant_values=0)
  np.testing.assert_allclose(out, score(wide(tokens), wide(segments)), rtol=1e-5, atol=1e-6)
  for row, n in enumerate(LENGTHS):  # alone and without padding
    alone = jit(lambda t: model.apply({'params': params}, t), ONE)(tokens[row : row + 1, :n])
    np.testing.assert_allclose(out[row], alone[0], rtol=1e-5, atol=1e-6)
  changed = tokens.copy()
  changed[:, 0] = (changed[:, 0] + 1) % V
  assert (np.abs(np.asarray(score(changed, segments)) - out).max(1) > 1e-4).all()


def test_tags_depend_on_the_tokens_of_their_row_in_both_directions():
  model = RecurrentTagger(3, V, width=H)
  tokens = np.random.default_rng(3).integers(0, V, (B, T)).astype(np.int32)
  segments = (np.arange(T)[None] < LENGTHS[:, None]).astype(np.int32)
  params = jit(lambda key: unbox(model.init(key, tokens))['params'], ONE)(KEY)
  score = jit(lambda t, s: model.apply({'params': params}, t, None, s), ONE)
  out, real = score(tokens, segments), segments > 0
  other = score(np.where(segments, tokens, (tokens + 1) % V), segments)
  np.testing.assert_array_equal(np.asarray(out)[real], np.asarray(other)[real])
  for place, seen in ((0, -1), (-1, 0)):  # the first token is read at the last one, and back
    changed = tokens[:1].copy()
    changed[:, place] = (changed[:, place] + 1) % V
    moved = np.abs(score(changed, segments[:1]) - score(tokens[:1], segments[:1]))
    assert moved[0, seen].max() > 1e-7


def test_dropout_is_between_layers_only():
  """Of one layer nothing is dropped; of two the first outputs are, anew with each key."""
  x = np.ones((B, T, D), np.float32)
  for depth, varies in ((1, False), (2, True)):
    stack = RecurrentStack('gru', H, depth, dropout=0.5)
    params = made(stack, (B, T, D))
    read = lambda key, s=stack, p=params: s.apply(
      {'params': p}, x, train=True, rngs={'dropout': key}
    )[0]
    one, other = (jit(read, ONE)(jax.random.PRNGKey(k)) for k in (1, 2))
    assert np.allclose(one, other) != varies


def test_parameters_are_counted_as_published():
  """An LSTM of D inputs has 4 (D H + H² + H) parameters with one bias, a GRU 3 (...) + H."""
  count = lambda cell: tree.count(made(RecurrentStack(cell, H), (B, T, D)))
  assert count('lstm') == 4 * (D * H + H * H + H)
  assert count('gru') == 3 * (D * H + H * H + H) + H
  assert count('rnn') == D * H + H * H + H


def test_images_are_read_row_by_row():
  """A sequence of vectors, and an image, whose rows are the steps, are the same."""
  model = RecurrentClassifier(3, width=H, cell='gru')
  images = np.random.default_rng(4).normal(size=(B, T, 2, 3)).astype(np.float32)
  params = made(model, images.shape)
  out = model.apply({'params': params}, images)
  assert out.shape == (B, 3)
  np.testing.assert_array_equal(out, model.apply({'params': params}, images.reshape(B, T, 6)))


@pytest.mark.parametrize('cell', ['lstm', 'rnn'])
def test_low_precision_is_near_full(cell):
  tokens = np.random.default_rng(5).integers(0, V, (B, T)).astype(np.int32)
  model = RecurrentLM(V, width=16, cell=cell)
  low = model.clone(dtype=jnp.bfloat16)

  def both(key):
    params = unbox(model.init(key, tokens))['params']
    return model.apply({'params': params}, tokens), low.apply({'params': params}, tokens)

  whole, half = jit(both, ONE)(KEY)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32), whole, atol=0.02)


TOKENS = jnp.zeros((B, T), jnp.int32)


@pytest.mark.parametrize(('model', 'inputs', 'message'), [
  (RecurrentLM(V, cell='ltsm'), (TOKENS,), "cell='ltsm': expected one of .*did you mean 'lstm'"),
  (RecurrentLM(V, depth=0), (TOKENS,), 'depth=.*expected at least 1'),
  (RecurrentLM(V, dropout=1.0), (TOKENS,), 'dropout=1.0'),
  (RecurrentLM(V), (TOKENS, None, TOKENS), 'without segment_ids.* packed row'),
  (RecurrentLM(V), (TOKENS, TOKENS), 'mesh.seq: expected 1.*--config.mesh.seq=1'),
  (RecurrentClassifier(2, V), (TOKENS, TOKENS), 'mesh.seq: expected 1'),
  (RecurrentClassifier(2), (TOKENS,), r'expected numbers \[B, T, C\] with vocab_size=0'),
  (RecurrentClassifier(2, V), (jnp.zeros((B, T, D)),), r'expected tokens \[B, T\] with vocab_si'),
])  # fmt: skip
def test_refusals(model, inputs, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(model.init, KEY, *inputs)


@pytest.mark.parametrize('axis', ['seq', 'pipe'])
def test_axes_that_a_recurrence_cannot_use(axis):
  with (
    use(Layout(make_mesh({'data': 4, axis: 2}))),
    pytest.raises(InputError, match=f'mesh.{axis}: expected 1, as a recurrent network reads one'),
  ):
    jax.eval_shape(RecurrentLM(V).init, KEY, jnp.zeros((8, 8), jnp.int32))


def test_facts():
  facts = facts_of(RecurrentLM(V, width=H, vocab_pad=5, carry=True))
  assert (facts.vocab_size, facts.max_seq_len, facts.carried) == (V, 0, ('carry',))
  assert facts.padded_parameters == 2 * 5 * H
  assert facts_of(RecurrentLM(V)).carried == ()
