"""Past the positions of a model: equal to a full forward pass over the window at each step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.models.gpt import GPT
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.serve import decode as module
from bmx.serve.decode import decoder
from bmx.serve.generate import GenerationStats, Generator
from bmx.serve.sample import Sampling

V, LIMIT = 23, 12
ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7], [7], [20, 21, 22, 0, 1]]
MODELS = {
  'learned': {},
  'rotary': {'positions': 'rotary', 'kv_heads': 2, 'norm': 'rms', 'gated': True, 'bias': False},
}


@functools.cache
def model_of(name):
  return GPT(vocab_size=V, max_seq_len=LIMIT, width=32, depth=2, heads=4, **MODELS[name])


@functools.cache
def weights(name):
  """Parameters whose next tokens are far from equally likely."""
  make = lambda key: unbox(model_of(name).init(key, jnp.zeros((1, 4), jnp.int32)))['params']
  return jax.tree.map(lambda x: x * 6.0, jit(make, ONE)(jax.random.PRNGKey(0)))


@functools.cache
def forward(name):
  return jit(lambda p, ids: model_of(name).apply({'params': p}, ids), ONE)


def oracle(name, prompt, tokens, keep, begin=()):
  """The likeliest token of a whole forward over the window, which is cut when it is full."""
  window, made = list(prompt), []
  for _ in range(tokens):
    if len(window) == LIMIT:
      head = list(begin) if window[: len(begin)] == list(begin) else []
      window = head + window[len(window) - (keep - len(head)) :]
    ids = np.array([window + [0] * (LIMIT - len(window))], np.int32)
    logits = np.asarray(forward(name)(weights(name), ids))
    made.append(int(logits[0, len(window) - 1].argmax()))
    window.append(made[-1])
  return made


def generator(name, slide, layout=ONE, **options):
  found = decoder(model_of(name), jax.device_put(weights(name), layout.sharding()), layout)
  return Generator(*found, layout, Sampling(temperature=0.0), slide=slide, **options)


def made(generator, prompts, tokens, **options):
  parts = generator.stream(prompts, tokens, **options)
  return np.concatenate([new for new, _ in parts], axis=1)


@pytest.mark.parametrize(
  'name, slide, begin', [('learned', 0.5, ()), ('rotary', 0.5, ()), ('rotary', 0.75, (1, 5))]
)
def test_rows_that_slide_at_different_times_are_those_of_the_oracle(name, slide, begin):
  """The first slides of the rows are after 9, 1, 11 and 7 tokens."""
  stats = GenerationStats()
  writer = generator(name, slide, begin=begin)
  rows = made(writer, PROMPTS, 40, stats=stats, chunk=7)
  keep = round(slide * LIMIT)
  for prompt, row in zip(PROMPTS, rows, strict=True):
    assert row.tolist() == oracle(name, prompt, 40, keep, begin)
  assert len({tuple(row) for row in rows.tolist()}) > 1
  assert stats.slides > 4 and stats.new_tokens == 160
  assert len(writer.programs) <= 6  # of prefill, two windows and their decoding


def test_a_single_row_refills_one_cache_of_the_limit(monkeypatch):
  """Also in chunks of prefill; the programs of later slides are those of the first."""
  monkeypatch.setattr(module, 'PREFILL_CHUNK', 4)
  writer, stats = generator('learned', 0.5), GenerationStats()
  (row,) = made(writer, [[2, 3]], 60, stats=stats)
  assert row.tolist() == oracle('learned', [2, 3], 60, 6)
  assert len(writer.programs) == 4 and stats.slides == 9
  assert made(generator('learned', 0.0), [[2, 3]], 60).tolist()[0] == row[:10].tolist()


def test_rows_end_and_stop_while_others_slide():
  writer = generator('rotary', 0.5)
  free = made(writer, PROMPTS, 30, chunk=4)
  end = int(free[1, 8])
  rows = made(generator('rotary', 0.5, ends=(end,)), PROMPTS, 30, chunk=4)
  for row, whole in zip(rows, free[:, : rows.shape[1]], strict=True):
    stop = whole.tolist().index(end) + 1 if end in whole else len(whole)
    assert row[:stop].tolist() == whole[:stop].tolist() and (row[stop:] == -1).all()
  parts = []
  for new, stop in writer.stream(PROMPTS, 30, chunk=4):
    parts.append(new)
    stop([0])
  rows = np.concatenate(parts, axis=1)
  assert (rows[0, 4:] == -1).all()
  np.testing.assert_array_equal(rows[1:], free[1:])


def test_devices_agree():
  layout = Layout(make_mesh({'data': 2, 'fsdp': 4}))
  writer = generator('learned', 0.5, layout)
  for prompt, row in zip(PROMPTS[:3], made(writer, PROMPTS[:3], 20), strict=True):
    assert row.tolist() == oracle('learned', prompt, 20, 6)
