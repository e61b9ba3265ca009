"""Generation with a recurrent model: cached decoding is the whole forward, prompts are padded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.types import Decoder
from bmx.data.text.tokenizer import Bytes
from bmx.models.recurrent_lm import RecurrentLM
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.serve import decode as module
from bmx.serve.beam import BeamSearch
from bmx.serve.decode import decoder
from bmx.serve.engine import Engine
from bmx.serve.generate import Generator
from bmx.serve.sample import Sampling
from bmx.serve.text import Options, TextGenerator

V = 23
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7], [7], [20, 21, 22, 0, 1]]
GREEDY = Sampling(temperature=0.0)
ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))


def made(cell='lstm', vocab_size=V, **words):
  model = RecurrentLM(vocab_size, width=16, depth=2, cell=cell, **words)
  make = lambda key: unbox(model.init(key, jnp.zeros((1, 4), jnp.int32)))['params']
  return model, jax.tree.map(lambda x: x * 6, jit(make, ONE)(jax.random.PRNGKey(0)))


def generate(found, prompts, tokens, how=GREEDY, layout=ONE, **words):
  generator = Generator(*decoder(*found, layout), layout, how)
  return np.concatenate([new for new, _ in generator.stream(prompts, tokens, **words)], axis=1)


def read_whole(model, params, prompts, new):
  """Logits of every token of `new` from one forward pass over all texts, padded on the right."""
  rows = [p + n for p, n in zip(prompts, new, strict=True)]
  ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for row, text in zip(ids, rows, strict=True):
    row[: len(text)] = text
  logits = jit(lambda p, x: model.apply({'params': p}, x), ONE)(params, ids)
  ends = [(len(p) - 1, len(r) - 1) for p, r in zip(prompts, rows, strict=True)]
  return [np.asarray(logits[i, a:b]) for i, (a, b) in enumerate(ends)]


@pytest.mark.parametrize('cell', ['lstm', 'gru', 'rnn'])
def test_decoding_is_the_whole_forward(cell, monkeypatch):
  """Also where a long prompt is read in chunks, of which short prompts have nothing but padding."""
  monkeypatch.setattr(module, 'PREFILL_CHUNK', 8)
  model, params = found = made(cell)
  assert isinstance(model, Decoder)
  new = generate(found, PROMPTS, 6).tolist()
  likeliest = [x.argmax(-1).tolist() for x in read_whole(model, params, PROMPTS, new)]
  assert new == likeliest
  assert len({tuple(row) for row in new}) > 1


def test_a_carry_in_training_changes_no_text():
  found = made()
  other = found[0].clone(carry=True), found[1]
  np.testing.assert_array_equal(generate(found, PROMPTS, 6), generate(other, PROMPTS, 6))


def test_draws_of_a_row_are_its_own_and_layouts_agree():
  found, how = made(), Sampling(temperature=1.0)
  new = generate(found, PROMPTS, 8, how, seed=5)
  np.testing.assert_array_equal(new[2:], generate(found, PROMPTS[2:], 8, how, seed=5, row=2))
  eight = Layout(make_mesh({'data': 4, 'fsdp': 2}))
  there = found[0], jax.device_put(found[1], eight.sharding())
  np.testing.assert_array_equal(new, generate(there, PROMPTS, 8, how, eight, seed=5))


def test_beams():
  """One beam is greedy; the score of the best of three is the log-probability of its text."""
  found = model, params = made()
  search = lambda n: BeamSearch(*decoder(*found, ONE), ONE, n, length_penalty=0.0)(PROMPTS, 5)
  (one, _), (three, scores) = search(1), search(3)
  assert one == generate(found, PROMPTS, 5).tolist()
  whole = read_whole(model, params, PROMPTS, three)
  for ids, logits, score in zip(three, whole, scores, strict=True):
    picked = jax.nn.log_softmax(logits)[np.arange(5), np.array(ids)]
    assert float(picked.sum()) == pytest.approx(float(score), abs=1e-4)


def test_texts_and_refusals():
  model, params = made(vocab_size=256)
  text = lambda **words: TextGenerator(
    model, params, ONE, Bytes(), Options(max_new_tokens=70, **words)
  )
  assert len(text(temperature=0.0).generate(['ab'])[0].encode()) >= 1
  with pytest.raises(InputError, match="generate.cache='int8': expected auto; RecurrentLM has"):
    text(cache='int8')
  with pytest.raises(InputError, match='RecurrentLM: expected a decoder with `slot_cache`'):
    Engine(model, {'params': params}, ONE)
