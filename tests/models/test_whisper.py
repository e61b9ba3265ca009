"""Whisper: the logits and the greedy transcript of transformers' model with the same weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.types import Decoder
from bmx.models.whisper import Whisper
from bmx.parallel import unbox

FRAMES, MELS, START, STEPS = 20, 8, 3, 10
SIZES: dict[str, Any] = {
  'vocab_size': 61, 'max_seq_len': 24, 'max_source_len': FRAMES // 2, 'width': 16, 'depth': 2,
  'heads': 2,
}  # fmt: skip


def hugging_face(torch, transformers):
  """A small model with random weights, biases and scales among them."""
  config = transformers.WhisperConfig(
    vocab_size=61, num_mel_bins=MELS, d_model=16, encoder_layers=2, decoder_layers=2,
    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
    max_source_positions=FRAMES // 2, max_target_positions=24, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, decoder_start_token_id=START, attn_implementation='eager',
  )  # fmt: skip
  torch.manual_seed(0)
  model = transformers.WhisperForConditionalGeneration(config).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if name != 'model.encoder.embed_positions.weight':
        weight.add_(0.3 * torch.randn_like(weight))
  return model


def converted(state):
  """Tensors of transformers -> parameters of bmx, for the sizes above."""
  x = {k.removeprefix('model.'): v.numpy() for k, v in state.items()}
  norm = lambda name: {'scale': x[f'{name}.weight'], 'bias': x[f'{name}.bias']}
  dense = lambda name: {'kernel': x[f'{name}.weight'].T, 'bias': x[f'{name}.bias']}

  def attention(name):
    parts = {}
    for short, long in (('q', 'query'), ('k', 'key'), ('v', 'value')):
      parts[long] = {'kernel': x[f'{name}.{short}_proj.weight'].T.reshape(16, 2, 8)}
      if short != 'k':
        parts[long]['bias'] = x[f'{name}.{short}_proj.bias'].reshape(2, 8)
    out = dense(f'{name}.out_proj')
    return parts | {'out': {'kernel': out['kernel'].reshape(2, 8, 16), 'bias': out['bias']}}

  def block(name, cross):
    made = {
      'attention_norm': norm(f'{name}.self_attn_layer_norm'),
      'attention': attention(f'{name}.self_attn'),
      'feed_forward_norm': norm(f'{name}.final_layer_norm'),
      'feed_forward': {'up': dense(f'{name}.fc1'), 'down': dense(f'{name}.fc2')},
    }
    if cross:
      made['cross_attention_norm'] = norm(f'{name}.encoder_attn_layer_norm')
      made['cross_attention'] = attention(f'{name}.encoder_attn')
    return made

  def side(name, cross):
    blocks = {f'block_{i}': block(f'{name}.layers.{i}', cross) for i in range(2)}
    return {'stack': blocks, 'norm_out': norm(f'{name}.layer_norm')}

  convolutions = {
    f'conv_{i}': {
      'kernel': x[f'encoder.conv{i + 1}.weight'].transpose(2, 1, 0)[:, None],
      'bias': x[f'encoder.conv{i + 1}.bias'],
    }
    for i in range(2)
  } | {'position': x['encoder.embed_positions.weight']}
  embed = {
    'embed': {'table': x['decoder.embed_tokens.weight']},
    'position': x['decoder.embed_positions.weight'],
  }
  return {
    'encoder': convolutions | side('encoder', False),
    'decoder': embed | side('decoder', True),
  }


@pytest.fixture(scope='module')
def pair(torch):
  """-> the model of transformers, that of bmx, its parameters, features [2, T, M]."""
  transformers = pytest.importorskip('transformers', reason='the extra `reference` is missing')
  theirs = hugging_face(torch, transformers)
  model = Whisper(**SIZES)
  features = np.random.default_rng(0).normal(size=(2, FRAMES, MELS)).astype(np.float32)
  params = jax.tree.map(jnp.asarray, converted(theirs.state_dict()))
  tokens = jnp.zeros((2, 4), jnp.int32)
  made = jax.eval_shape(model.init, jax.random.key(0), {'features': features}, tokens)
  expected = jax.tree.map(lambda a: a.shape, unbox(made['params']))
  assert jax.tree.map(lambda a: a.shape, params) == expected
  return theirs, model, params, features


def test_logits_are_those_of_transformers(pair, torch):
  theirs, model, params, features = pair
  tokens = np.random.default_rng(1).integers(0, 61, (2, 12)).astype(np.int32)
  with torch.no_grad():
    expected = theirs(
      input_features=torch.tensor(features).transpose(1, 2), decoder_input_ids=torch.tensor(tokens)
    ).logits
  got = model.apply({'params': params}, {'features': features}, tokens)
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_the_greedy_transcript_is_that_of_transformers(pair, torch):
  """Ours from a cache, theirs from the whole text at each step."""
  theirs, model, params, features = pair
  texts, expected = torch.full((2, 1), START), []
  with torch.no_grad():
    for _ in range(STEPS):
      logits = theirs(
        input_features=torch.tensor(features).transpose(1, 2), decoder_input_ids=texts
      ).logits
      expected.append(logits[:, -1].numpy())
      texts = torch.cat([texts, logits[:, -1:].argmax(-1)], 1)
  call = lambda *inputs, method: model.apply({'params': params}, *inputs, method=method)
  tokens = jnp.full((2, 1), START, jnp.int32)
  prompt = {'features': features, 'tokens': tokens, 'first': jnp.zeros(2, jnp.int32)}
  hidden, cache = call(prompt, STEPS + 1, method='prefill')
  found = [tokens]
  for theirs_now in expected:
    logits = call(hidden, method='logits')
    np.testing.assert_allclose(logits[:, 0], theirs_now, atol=1e-4)
    found.append(jnp.argmax(logits, -1).astype(jnp.int32))
    hidden, cache = call(found[-1], cache, method='extend')
  np.testing.assert_array_equal(np.concatenate(found, 1), texts)
  assert isinstance(model, Decoder)


def test_padding_does_not_matter():
  """With the number of frames, noise behind them and other rows change nothing."""
  model = Whisper(**SIZES)
  random = np.random.default_rng(2)
  features = random.normal(size=(2, FRAMES, MELS)).astype(np.float32)
  tokens = random.integers(0, 61, (2, 5)).astype(np.int32)
  given = {'features': features, 'num_frames': np.array([FRAMES, 11], np.int32)}
  params = unbox(model.init(jax.random.key(0), given, tokens)['params'])
  params = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32), params)
  apply = lambda source, tokens: np.asarray(model.apply({'params': params}, source, tokens))
  before = apply(given, tokens)
  noisy = features.copy()
  noisy[1, 11:] = 5
  np.testing.assert_allclose(apply({**given, 'features': noisy}, tokens), before, atol=1e-6)
  alone = apply({'features': features[1:, :11]}, tokens[1:])
  np.testing.assert_allclose(alone, before[1:], atol=2e-5)
