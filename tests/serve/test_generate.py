"""Generation: cached decoding is the whole forward, rows do not see each other, layouts agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models import kernels
from bmx.models.bert import BERT
from bmx.models.gpt import GPT
from bmx.models.stack import unstacked
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.parallel.sharding import param_pspecs, shardings
from bmx.serve import decode as module
from bmx.serve.beam import BeamSearch
from bmx.serve.decode import decoder
from bmx.serve.generate import GenerationStats, Generator
from bmx.serve.sample import Sampling

V, LENGTH = 23, 48
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7], [7], [20, 21, 22, 0, 1]]
GREEDY = Sampling(temperature=0.0)
ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))


def gpt(**options):
  return GPT(vocab_size=V, max_seq_len=LENGTH, width=32, depth=2, heads=4, **options)


@functools.cache
def weights(model, sharp=6.0):
  """Parameters whose next tokens are far from equally likely."""
  make = lambda key: unbox(model.init(key, jnp.zeros((1, 4), jnp.int32)))['params']
  return jax.tree.map(lambda x: x * sharp, jit(make, ONE)(jax.random.PRNGKey(0)))


def generate(
  model, prompts, tokens, how=GREEDY, layout=ONE, seed=0, ends=(), chunk=16, params=None
):
  found = decoder(model, weights(model) if params is None else params, layout)
  generator = Generator(*found, layout, how, ends)
  parts = generator.stream(prompts, tokens, seed, chunk=chunk)
  return np.concatenate([made for made, _ in parts], axis=1)


def search(model, beams, prompts, tokens, layout=ONE, **options):
  params = options.pop('params', weights(model))
  return BeamSearch(*decoder(model, params, layout), layout, beams, **options)(prompts, tokens)


def placed(model, layout):
  boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0), jnp.zeros((1, 4), jnp.int32))
  places = shardings(param_pspecs(boxed['params'], layout), layout.mesh)
  return jax.device_put(weights(model), places)


def slowly(model, prompt, tokens):
  """The likeliest token of a whole forward, again and again."""
  run = jit(lambda p, ids: model.apply({'params': p}, ids), ONE)
  ids = list(prompt)
  for _ in range(tokens):
    padded = np.array([ids + [0] * (LENGTH - len(ids))], np.int32)
    ids.append(int(np.asarray(run(weights(model), padded))[0, len(ids) - 1, :V].argmax()))
  return ids[len(prompt) :]


MODELS = {
  'gpt2': {},
  'llama': {'positions': 'rotary', 'kv_heads': 2, 'norm': 'rms', 'gated': True, 'bias': False},
  'scanned': {'scan': True, 'vocab_pad': 9, 'tied': False},
  'window': {'positions': 'sinusoidal', 'window': 5},
  'experts': {'experts': 4, 'capacity_factor': 0.0},
}


@pytest.mark.parametrize('name', MODELS)
def test_prompts_of_unequal_length_go_on_as_each_alone(name):
  model = gpt(**MODELS[name])
  made = generate(model, PROMPTS, 12, chunk=5)
  for prompt, row in zip(PROMPTS, made, strict=True):
    assert row.tolist() == slowly(model, prompt, 12)
  assert len({tuple(row) for row in made.tolist()}) > 1


def test_experts_drop_no_token_because_of_the_rows_beside_it():
  full, free = gpt(experts=4, capacity_factor=0.5), gpt(experts=4, capacity_factor=0.0)
  np.testing.assert_array_equal(generate(full, PROMPTS, 6), generate(free, PROMPTS, 6))


@pytest.mark.parametrize('how', [GREEDY, Sampling(0.9, 7, 0.8, 1.3)])
def test_chunks_change_nothing(how):
  whole, parts = (generate(gpt(), PROMPTS, 9, how, chunk=n) for n in (9, 2))
  np.testing.assert_array_equal(whole, parts)


def test_a_long_prompt_is_read_in_pieces(monkeypatch):
  whole = generate(gpt(), PROMPTS, 6)
  monkeypatch.setattr(module, 'PREFILL_CHUNK', 8)
  np.testing.assert_array_equal(generate(gpt(), PROMPTS, 6), whole)


def test_a_row_does_not_depend_on_the_rows_beside_it():
  how = Sampling(temperature=1.0)
  together, alone = generate(gpt(), PROMPTS, 8, how), generate(gpt(), PROMPTS[:1], 8, how)
  np.testing.assert_array_equal(together[:1], alone)
  other = generate(gpt(), PROMPTS, 8, how, seed=1)
  assert (other != together).any()


MESHES = [{'data': 4, 'model': 2}, {'fsdp': 8}, {'model': 4, 'data': 2}]


@pytest.mark.parametrize('mesh', MESHES)
def test_devices_agree(mesh):
  """Three prompts over the parts of the mesh, the rest is padding, in several chunks.

  One row is stopped. The initial state of decoding always has the same placement.
  """
  model = gpt(positions='rotary', kv_heads=4, vocab_pad=1, scan=True)
  layout = Layout(make_mesh(mesh))
  alone = generate(model, PROMPTS[:3], 10)
  params = placed(model, layout)
  made = generate(model, PROMPTS[:3], 10, layout=layout, params=params, chunk=3)
  np.testing.assert_array_equal(made, alone)
  generator = Generator(*decoder(model, params, layout), layout, GREEDY)
  rows = []
  for some, stop in generator.stream(PROMPTS[:3], 8, chunk=2):
    rows.append(some)
    stop([1])
  assert (np.concatenate(rows, axis=1)[1, 2:] == -1).all()


@pytest.mark.parametrize('mesh', MESHES[:2])
def test_beams_on_devices_agree(mesh):
  model = gpt(positions='rotary', kv_heads=4, vocab_pad=1, scan=True)
  layout = Layout(make_mesh(mesh))
  made, score = search(model, 3, PROMPTS[:3], 6, layout, params=placed(model, layout))
  alone, expected = search(model, 3, PROMPTS[:3], 6)
  assert made == alone
  np.testing.assert_allclose(score, expected, atol=1e-4)


def test_stored_kernels_and_codes_in_the_cache():
  """On 8 devices as with the weights that the kernels stand for on one; kernels stay stored."""
  model = gpt(positions='rotary', kv_heads=4, vocab_pad=1, scan=True)
  with kernels.recorded() as found:
    jax.eval_shape(model.init, jax.random.PRNGKey(0), jnp.zeros((1, 4), jnp.int32))
  split = jit(lambda params: kernels.split(params, found, 'int4', 8), ONE)
  rest, quantized = jax.device_get(split(weights(model)))
  layout = Layout(make_mesh(MESHES[0]))
  plain = decoder(model, jit(kernels.join, ONE)(rest, quantized), ONE, 'int8')
  stored = decoder(model, rest, layout, 'int8', quantized)
  assert not [k for k in tree.named(stored[1]['params']) if k.endswith('/kernel')]
  assert tree.nbytes(stored[1]) < 0.35 * tree.nbytes(plain[1])
  made = [
    np.concatenate([new for new, _ in Generator(*one, at, GREEDY).stream(PROMPTS[:3], 4)], axis=1)
    for one, at in ((stored, layout), (plain, ONE))
  ]
  np.testing.assert_array_equal(*made)


@pytest.mark.parametrize('mesh', [{'seq': 2, 'data': 4}, {'pipe': 2, 'data': 4}])
def test_a_mesh_that_generation_cannot_use(mesh):
  with pytest.raises(InputError, match=f'mesh.{next(iter(mesh))}=2: expected 1'):
    decoder(gpt(scan=True), weights(gpt(scan=True)), Layout(make_mesh(mesh)))


def test_a_row_ends_where_the_positions_do():
  made = generate(gpt(), [[1] * 44, [2]], 9)
  assert (made[0, :4] >= 0).all() and (made[0, 4:] == -1).all() and (made[1] >= 0).all()
  np.testing.assert_array_equal(made[1:], generate(gpt(), [[2]], 9))


def test_the_cache_has_slots_for_positions_that_exist():
  """A cache of 10¹² tokens fits into no memory."""
  made = generate(gpt(), [[1] * 44, [2] * 40], 10**12)
  assert (made >= 0).sum(1).tolist() == [4, 8]


def test_a_row_ends_with_its_end():
  free = generate(gpt(), PROMPTS, 12)
  end = int(free[1, 4])
  made = generate(gpt(), PROMPTS, 12, ends=(end, V + 3), chunk=3)
  for row, whole in zip(made, free[:, : made.shape[1]], strict=True):
    stop = whole.tolist().index(end) + 1 if end in whole else len(whole)
    np.testing.assert_array_equal(row[:stop], whole[:stop])
    assert (row[stop:] == -1).all()


def test_a_row_that_is_stopped_makes_no_more():
  generator = Generator(*decoder(gpt(), weights(gpt()), ONE), ONE, GREEDY)
  rows = []
  for made, stop in generator.stream(PROMPTS, 8, chunk=2):
    rows.append(made)
    stop([0])
  made = np.concatenate(rows, axis=1)
  assert (made[0, :2] >= 0).all() and (made[0, 2:] == -1).all() and (made[1:] >= 0).all()


def test_programs_are_compiled_once_and_time_is_measured():
  generator = Generator(*decoder(gpt(), weights(gpt()), ONE), ONE, GREEDY)
  both = [GenerationStats(), GenerationStats()]
  for stats in both:
    list(generator.stream(PROMPTS, 8, stats=stats, chunk=4))
  assert both[0].compile_seconds > 0 == both[1].compile_seconds
  assert both[1].new_tokens == 32 and both[1].prompt_tokens == sum(map(len, PROMPTS))
  assert both[1].tokens_per_second == pytest.approx(32 / both[1].decode_seconds)


def test_stacked_weights_are_the_same_weights():
  scanned, plain = gpt(scan=True), gpt()
  ids = np.array([PROMPTS[1]], np.int32)
  run = lambda m, p: np.asarray(jit(lambda p: m.apply({'params': p}, ids), ONE)(p))
  stacked = weights(scanned)
  np.testing.assert_allclose(run(plain, unstacked(stacked)), run(scanned, stacked), atol=1e-4)


BAD = {
  'no prompt': ([], 4, 'expected at least one'),
  'empty': ([[1], []], 4, 'prompt 2: expected at least one token'),
  'long': ([[1] * 48], 9, 'prompt 1 has 48 tokens: expected fewer than the max_seq_len=48'),
  'unknown': ([[1, V]], 4, f'token id {V}: expected 0 <= id < vocab_size={V}'),
}


@pytest.mark.parametrize('name', BAD)
def test_prompts_that_cannot_be(name):
  prompts, tokens, said = BAD[name]
  with pytest.raises(InputError, match=said):
    generate(gpt(), prompts, tokens)


def test_an_encoder_cannot_generate():
  with pytest.raises(InputError, match='BERT cannot generate: expected a decoder'):
    decoder(BERT(vocab_size=V, max_seq_len=8), {}, ONE)


def log_probability(model, prompt, ids):
  run = jit(lambda p, x: jax.nn.log_softmax(model.apply({'params': p}, x)), ONE)
  log = np.asarray(run(weights(model), np.array([prompt + ids], np.int32)), np.float64)[0]
  return sum(log[len(prompt) - 1 + i, t] for i, t in enumerate(ids))


def test_one_beam_is_greedy():
  model = gpt()
  made, _ = search(model, 1, PROMPTS[:1], 6)
  assert made[0] == slowly(model, PROMPTS[0], 6)


def test_as_many_beams_as_there_are_texts_find_the_best():
  """V beams and two tokens: all V² texts are looked at."""
  model = gpt(positions='rotary')
  made, score = search(model, V, PROMPTS[:1], 2, length_penalty=0.0)
  texts = [[a, b] for a in range(V) for b in range(V)]
  run = jit(lambda p, x: jax.nn.log_softmax(model.apply({'params': p}, x)), ONE)
  ids = np.array([PROMPTS[0] + t for t in texts], np.int32)
  log = np.asarray(run(weights(model), ids))
  n = len(PROMPTS[0])
  total = [log[i, n - 1, a] + log[i, n, b] for i, (a, b) in enumerate(texts)]
  assert made[0] == texts[int(np.argmax(total))]
  assert score[0] == pytest.approx(max(total), abs=1e-4)


@pytest.mark.parametrize('end', [-1, 5])
def test_beams_are_an_oracles(end):
  """The same search in plain Python over whole forwards."""
  model, beams, tokens = gpt(), 3, 5
  run = jit(lambda p, x: jax.nn.log_softmax(model.apply({'params': p}, x)), ONE)

  def step(ids):
    padded = np.array([PROMPTS[1] + ids + [0] * (20 - len(ids))], np.int32)
    return np.asarray(run(weights(model), padded), np.float64)[0, len(PROMPTS[1]) + len(ids) - 1]

  live, ended = [(0.0, [])], []
  for n in range(1, tokens + 1):
    new = [(score + log[t], [*ids, t]) for score, ids in live
           for log in [step(ids)] for t in range(V)]  # fmt: skip
    new = sorted(new, key=lambda k: -k[0])[: 2 * beams]
    ends = [ids[-1] == end or n == tokens for _, ids in new]
    ended += [(k[0] / n, k[1]) for k, e in zip(new[:beams], ends, strict=False) if e]
    ended = sorted(ended, key=lambda k: -k[0])[:beams]
    live = [k for k, e in zip(new, ends, strict=True) if not e][:beams]
    if len(ended) == beams and (not live or live[0][0] / n <= ended[-1][0]):
      break
  best = ended[0]
  made, score = search(model, beams, [PROMPTS[1]], tokens, ends=(end,))
  assert made[0] == [t for t in best[1] if t != end]
  assert score[0] == pytest.approx(best[0], abs=1e-4)


def test_beams_of_unequal_prompts_are_those_of_each_alone():
  model = gpt(positions='rotary')
  together, score = search(model, 3, PROMPTS, 7)
  for n, prompt in enumerate(PROMPTS):
    alone, expected = search(model, 3, [prompt], 7)
    assert together[n] == alone[0] and score[n] == pytest.approx(expected[0], abs=1e-4)


def test_beams_end_where_the_positions_of_their_row_do():
  """A long prompt leaves 4 positions to its own row only."""
  prompts = [[1] * 44, [2]]
  together, score = search(gpt(), 3, prompts, 9)
  assert [len(ids) for ids in together] == [4, 9]
  alone, expected = search(gpt(), 3, prompts[1:], 9)
  assert together[1:] == alone and score[1] == pytest.approx(expected[0], abs=1e-4)


@pytest.mark.parametrize('beams', [0, V + 1])
def test_beams_that_cannot_be(beams):
  with pytest.raises(InputError, match=f'num_beams={beams}'):
    search(gpt(), beams, PROMPTS, 4)
