"""Past the positions of a model: equal to a full forward pass over the window at each step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.models.gpt import GPT
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.serve import stream
from bmx.serve.decode import decoder
from bmx.serve.generate import GenerationStats
from bmx.serve.programs import STEPS
from bmx.serve.sample import Sampling
from bmx.serve.stream import SlotGenerator

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
  return SlotGenerator(*found, layout, Sampling(temperature=0.0), slide=slide, **options)


def made(generator, prompts, tokens, **options):
  return joined([new for new, _ in generator.stream(prompts, tokens, **options)])


def joined(parts):
  """New tokens of each text in its parts."""
  return [
    [i for part in parts for i in part[row].tolist() if i >= 0] for row in range(len(parts[0]))
  ]


@pytest.mark.parametrize(
  'name, slide, begin', [('learned', 0.5, ()), ('rotary', 0.5, ()), ('rotary', 0.75, (1, 5))]
)
def test_rows_that_slide_at_different_times_are_those_of_the_oracle(name, slide, begin):
  """The first slides of the rows are after 9, 1, 11 and 7 tokens."""
  stats = GenerationStats()
  writer = generator(name, slide, begin=begin)
  rows = made(writer, PROMPTS, 40, stats=stats)
  keep = round(slide * LIMIT)
  for prompt, row in zip(PROMPTS, rows, strict=True):
    assert row == oracle(name, prompt, 40, keep, begin)
  assert len({tuple(row) for row in rows}) > 1
  assert stats.slides > 4 and stats.new_tokens == 160


def test_a_text_is_read_anew_in_chunks():
  writer, stats = generator('learned', 0.5), GenerationStats()
  (row,) = made(writer, [[2, 3]], 60, stats=stats)
  assert row == oracle('learned', [2, 3], 60, 6)
  assert stats.slides == 9
  assert made(generator('learned', 0.0), [[2, 3]], 60)[0] == row[:10]


def test_rows_end_and_stop_while_others_slide():
  writer = generator('rotary', 0.5)
  free = made(writer, PROMPTS, 30)
  end = int(free[1][8])
  rows = made(generator('rotary', 0.5, ends=(end,)), PROMPTS, 30)
  for row, whole in zip(rows, free, strict=True):
    assert row == whole[: whole.index(end) + 1 if end in whole else len(whole)]
  parts = []
  for new, stop in writer.stream(PROMPTS, 30):
    parts.append(new)
    stop([0])
  rows = joined(parts)
  assert rows[0] == free[0][: len(rows[0])] and len(rows[0]) <= STEPS
  assert rows[1:] == free[1:]


def test_more_texts_than_rows_and_a_reader_that_leaves(monkeypatch):
  monkeypatch.setattr(stream, 'ROWS', 2)
  writer = generator('rotary', 0.5)
  next(writer.stream(PROMPTS, 30))  # left after its first part
  expected = [oracle('rotary', prompt, 30, 6) for prompt in PROMPTS]
  assert made(writer, PROMPTS, 30) == expected
  assert list(writer.engines) == [2]


def test_two_open_streams_are_refused():
  writer = generator('rotary', 0.5)
  first = writer.stream(PROMPTS[:1], 30)
  next(first)
  with pytest.raises(RuntimeError, match='another stream of this generator is open'):
    next(writer.stream(PROMPTS[1:], 30))
  first.close()
  assert made(writer, PROMPTS[:1], 9) == [oracle('rotary', PROMPTS[0], 9, 6)]


def test_devices_agree():
  layout = Layout(make_mesh({'data': 2, 'fsdp': 4}))
  writer = generator('learned', 0.5, layout)
  for prompt, row in zip(PROMPTS[:3], made(writer, PROMPTS[:3], 20), strict=True):
    assert row == oracle('learned', prompt, 20, 6)
