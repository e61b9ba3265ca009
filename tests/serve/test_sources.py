"""Generation with a model that reads something other than token ids: floats, by its `prefill`."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from bmx.core.errors import InputError
from bmx.core.types import Decoder, Facts, facts_of
from bmx.data.text.template import FIRST, Template
from bmx.parallel import Layout, jit, make_mesh
from bmx.serve.beam import BeamSearch
from bmx.serve.decode import decoder
from bmx.serve.generate import Generator
from bmx.serve.sample import Sampling
from bmx.serve.text import Options, TextGenerator

V, D, BEGIN = 11, 16, 3
ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
GREEDY = Sampling(temperature=0.0)
FEATURES = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
PROMPTS = [[3], [3, 7, 1], [3, 2]]


class ToyCache(struct.PyTreeNode):
  """keys, values [B, S, D]; memory [B, M, D]; at int32 []; first int32 [B]."""

  keys: jax.Array
  values: jax.Array
  memory: jax.Array
  at: jax.Array
  first: jax.Array

  def rows(self, order):
    take = lambda x: x if x.ndim == 0 else jnp.take(x, order, axis=0)
    return jax.tree.map(take, self)


def attend(q, k, v, mask):
  scores = jnp.where(mask, jnp.einsum('btd,bsd->bts', q, k), -1e9)
  return jnp.einsum('bts,bsd->btd', jax.nn.softmax(scores), v)


class Toy(nn.Module):
  """Float features [B, M, F] -> tokens, like a speech recognizer."""

  facts = Facts(vocab_size=V)

  def setup(self):
    self.encoder, self.embed, self.head = nn.Dense(D), nn.Embed(V, D), nn.Dense(V)
    self.query, self.key, self.value, self.cross = (nn.Dense(D) for _ in range(4))

  def _embed(self, tokens, positions):
    return self.embed(tokens) + jnp.sin(positions[..., None] * jnp.arange(1.0, D + 1)[None, None])

  def _block(self, x, k, v, mask, memory):
    x = x + attend(self.query(x), k, v, mask)
    everything = jnp.ones((1, 1, 1), bool)
    return x + attend(self.cross(x), memory, memory, everything)

  def prefill(self, inputs, slots):
    memory = jnp.tanh(self.encoder(inputs['features']))
    empty = jnp.zeros((len(memory), slots, D))
    cache = ToyCache(empty, empty, memory, jnp.int32(0), inputs['first'])
    hidden, cache = self.extend(inputs['tokens'], cache)
    return hidden[:, -1:], cache

  def extend(self, tokens, cache):
    slot = cache.at + jnp.arange(tokens.shape[1])
    x = self._embed(tokens, slot[None] - cache.first[:, None])
    put = lambda slots, new: jax.lax.dynamic_update_slice_in_dim(slots, new, cache.at, axis=1)
    keys, values = put(cache.keys, self.key(x)), put(cache.values, self.value(x))
    every = jnp.arange(keys.shape[1])[None, None]
    mask = (every <= slot[None, :, None]) & (every >= cache.first[:, None, None])
    new = cache.replace(keys=keys, values=values, at=cache.at + tokens.shape[1])
    return self._block(x, keys, values, mask, cache.memory), new

  def logits(self, hidden):
    return self.head(hidden)

  def __call__(self, features, tokens):
    """The uncached forward: logits [B, T, V]."""
    memory = jnp.tanh(self.encoder(features))
    steps = jnp.arange(tokens.shape[1])
    x = self._embed(tokens, steps[None])
    mask = steps[None, :, None] >= steps[None, None, :]
    return self.head(self._block(x, self.key(x), self.value(x), mask, memory))


class NoReordering(Toy):
  def prefill(self, inputs, slots):
    hidden, cache = super().prefill(inputs, slots)
    return hidden, vars(cache)


@functools.cache
def weights():
  run = jit(lambda key: Toy().init(key, FEATURES, jnp.zeros((3, 2), jnp.int32)), ONE)
  return jax.tree.map(lambda x: 3 * x, run(jax.random.PRNGKey(0))['params'])


@functools.cache
def forward():
  run = lambda features, ids: Toy().apply({'params': weights()}, features, ids)
  return jit(lambda features, ids: jax.nn.log_softmax(run(features, ids)), ONE)


def log_probabilities(row, ids):
  """Of the tokens after each prefix of `ids`: [T, V]."""
  padded = np.array([list(ids) + [0] * (12 - len(ids))], np.int32)
  return np.asarray(forward()(FEATURES[row : row + 1], padded))[0, : len(ids)]


def greedy(row, prompt, n):
  ids = list(prompt)
  for _ in range(n):
    ids.append(int(log_probabilities(row, ids)[-1].argmax()))
  return ids[len(prompt) :]


def generate(inputs, n, layout=ONE, begin=(BEGIN,)):
  params = jax.device_put(weights(), layout.sharding())
  generator = Generator(*decoder(Toy(), params, layout), layout, GREEDY, begin=begin)
  return np.concatenate([new for new, _ in generator.stream(inputs, n, chunk=3)], axis=1)


def search(inputs, beams, n, **options):
  model = options.pop('model', Toy())
  found = decoder(model, weights(), ONE)
  return BeamSearch(*found, ONE, beams, begin=(BEGIN,), **options)(inputs, n)


def test_the_toy_is_a_decoder():
  assert isinstance(Toy(), Decoder) and facts_of(Toy()).vocab_size == V


@pytest.mark.parametrize('mesh', [{'data': 1}, {'data': 4}])
def test_greedy_is_the_uncached_forward(mesh):
  """On four devices three rows are padded to four."""
  count = mesh['data']
  layout = Layout(make_mesh(mesh, jax.devices()[:count]))
  new = generate({'features': FEATURES}, 7, layout)
  assert new.tolist() == [greedy(row, [BEGIN], 7) for row in range(3)]
  assert len({tuple(row) for row in new.tolist()}) > 1  # the features matter


def test_prompts_beside_features():
  """Of unequal length: padded on the left."""
  new = generate({'features': FEATURES, 'tokens': PROMPTS}, 6)
  assert new.tolist() == [greedy(row, prompt, 6) for row, prompt in enumerate(PROMPTS)]


def test_as_many_beams_as_tokens_find_the_best_text():
  texts = list(itertools.product(range(V), repeat=2))
  new, score = search({'features': FEATURES}, V, 2, length_penalty=0.0)
  for row in range(3):
    first = log_probabilities(row, [BEGIN])[0]
    second = [log_probabilities(row, [BEGIN, a])[1] for a in range(V)]
    total = [first[a] + second[a][b] for a, b in texts]
    assert tuple(new[row]) == texts[int(np.argmax(total))]
    assert score[row] == pytest.approx(max(total), abs=1e-4)


def test_one_beam_is_greedy():
  new, _ = search({'features': FEATURES}, 1, 6)
  assert new == [greedy(row, [BEGIN], 6) for row in range(3)]


@dataclasses.dataclass(frozen=True)
class Letters:
  """a, b, ...; '<' begins a text."""

  size: int = V
  ends: tuple[int, ...] = ()

  @property
  def special(self):
    return {'bos': BEGIN}

  @property
  def template(self):
    return Template(((BEGIN, 0), (FIRST, 0)))

  def encode(self, texts):
    return [np.array([ord(c) - ord('a') for c in text], np.int32) for text in texts]

  def decode(self, ids):
    return ''.join(chr(ord('a') + i) for i in ids)

  def settled(self, ids):
    return self.decode(ids)


@pytest.mark.parametrize('beams', [1, 2])
def test_texts_from_features(beams):
  options = Options(max_new_tokens=6, temperature=0.0, num_beams=beams, stream=False)
  generator = TextGenerator(Toy(), weights(), ONE, Letters(), options)
  texts = generator.generate({'features': FEATURES})
  expected = generate({'features': FEATURES}, 6).tolist()
  if beams > 1:
    expected, _ = search({'features': FEATURES}, beams, 6)
  assert texts == [Letters().decode(ids) for ids in expected]
  prompted = generator.generate({'features': FEATURES[:2], 'tokens': ['', 'hb']})
  if beams == 1:
    assert prompted == [texts[0], Letters().decode(greedy(1, [BEGIN, 7, 1], 6))]


def test_inputs_that_cannot_be():
  with pytest.raises(InputError, match='prompt 1: expected at least one token'):
    generate({'features': FEATURES}, 4, begin=())
  with pytest.raises(InputError, match='2 prompts have inputs of 3 rows'):
    generate({'features': FEATURES, 'tokens': [[1], [2]]}, 4)
  with pytest.raises(InputError, match='give at least one row'):
    generate({}, 4)
  with pytest.raises(InputError, match=r'dict: expected a cache with a method rows\(order\)'):
    search({'features': FEATURES}, 2, 4, model=NoReordering())


def test_a_model_without_facts_is_refused_by_name():
  class Bare(nn.Module):
    def prefill(self, inputs, slots): ...
    def extend(self, tokens, cache): ...
    def logits(self, hidden): ...

  with pytest.raises(InputError, match='Bare declares no facts'):
    decoder(Bare(), {}, ONE)
