"""A draft changes no token: random queues, prefix reuse, ends, slides, meshes, int8 caches."""

import functools

import jax
import numpy as np
import pytest

import bmx
from bmx import modes
from bmx.core.errors import InputError
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.modes import serve
from bmx.parallel import Layout, make_mesh
from bmx.serve.decode import decoder
from bmx.serve.engine import Engine, Request
from bmx.serve.generate import GenerationStats
from bmx.serve.sample import Sampling
from bmx.serve.speculate import PASSES, Draft
from bmx.serve.stream import SlotGenerator
from bmx.serve.text import Options
from tests.serve.test_engine import ENDS, KINDS, check_queue, queue
from tests.serve.test_generate import GREEDY, LENGTH, ONE, PROMPTS, V, gpt, placed, weights

OTHER = GPT(vocab_size=V, max_seq_len=LENGTH, width=16, depth=1, heads=2)


def draft_of(kind: str, tokens: int, target: str = 'learned') -> Draft:
  """A draft: the model itself, nearly itself, or another one."""
  if kind == 'other':
    return Draft(*decoder(OTHER, weights(OTHER), ONE), tokens)
  model = gpt(**KINDS[target])
  noise = np.random.default_rng(0)
  share = 0.0 if kind == 'same' else 0.3
  near = lambda x: np.asarray(x) + share * np.std(x) * noise.normal(size=x.shape).astype(x.dtype)
  return Draft(*decoder(model, jax.tree.map(near, weights(model)), ONE), tokens)


@functools.cache
def engine(kind, draft, tokens):
  model = gpt(**KINDS[kind])
  made = Engine(*decoder(model, weights(model), ONE), ONE, rows=4, ends=ENDS, chunks=(8,),
                draft=draft_of(draft, tokens, kind))  # fmt: skip
  made.sizes = (24, LENGTH)  # the cache grows and shrinks
  return made


@pytest.mark.parametrize('kind, draft, tokens', [
  ('learned', 'same', 4), ('learned', 'other', 1), ('rotary', 'near', 2),
])  # fmt: skip
@pytest.mark.parametrize('seed', range(2))
def test_a_random_queue_gives_the_tokens_of_each_request_alone(kind, draft, tokens, seed):
  """Arrivals at random steps, shared beginnings; some requests are cancelled."""
  requests = [Request(r.prompt, r.max_new_tokens, GREEDY) for r in queue(seed, 12)]
  check_queue(engine(kind, draft, tokens), kind, requests, 100 + seed)


def calls_of(made, requests):
  """The answers of an engine, and the number of decoding calls."""
  plain, count = made.programs.decode, []
  made.programs.decode = lambda *args: count.append(1) or plain(*args)
  found = made.run(requests)
  made.programs.decode = plain
  return found, len(count)


def test_a_draft_that_agrees_saves_passes():
  """Of k + 1 tokens each; one that never agrees costs a pass a token."""
  model = gpt()
  make = lambda draft: Engine(*decoder(model, weights(model), ONE), ONE, rows=1, draft=draft)
  request = [Request((3, 1, 4), 40, GREEDY)]
  expected = make(None).run(request)
  agrees, few = calls_of(make(draft_of('same', 4)), request)
  negative = decoder(model, weights(model, -3.0), ONE)
  differs, many = calls_of(make(Draft(*negative, 4)), request)
  assert agrees == differs == expected
  assert few == -(-40 // (5 * PASSES)) == 2
  assert many == 40 // PASSES


@pytest.mark.parametrize('cache', ['auto', 'int8'])
def test_texts_that_slide_and_their_probabilities_are_those_without_a_draft(cache):
  model = gpt(positions='rotary')
  given, words = decoder(model, weights(model), ONE, cache), {'rows': 2, 'slide': 0.5}
  plain, made = (
    Engine(*given, ONE, **words),
    Engine(*given, ONE, **words, draft=draft_of('near', 3)),
  )
  tokens, likely = [], []
  for one in (plain, made):
    numbers = {one.submit(Request(p, 60, GREEDY)): i for i, p in enumerate(PROMPTS[:3])}
    found, values = [[] for _ in numbers], [[] for _ in numbers]
    while not one.idle:
      for output in one.step():
        found[numbers[output.request]] += output.tokens
        values[numbers[output.request]] += output.logprobs
    tokens.append(found)
    likely.append(values)
  assert tokens[0] == tokens[1] and plain.stats.slides == made.stats.slides > 0
  np.testing.assert_allclose(likely[0], likely[1], atol=1e-4)


def test_a_mesh_gives_the_tokens_of_one_device():
  model = gpt(positions='rotary', kv_heads=2, vocab_pad=1)
  layout = Layout(make_mesh({'data': 2, 'model': 2}, jax.devices()[:4]))
  given = decoder(model, placed(model, layout), layout)
  made = Engine(*given, layout, rows=4, chunks=(8,), draft=Draft(*given, 3))
  requests = [Request(r.prompt, 9, GREEDY) for r in queue(7, 8)]
  one = Engine(*decoder(model, weights(model), ONE), ONE, rows=4, chunks=(8,))
  assert made.run(requests) == one.run(requests)


def test_the_texts_of_a_command_and_programs_compiled_before():
  model = gpt()
  given = decoder(model, weights(model), ONE)
  plain, made = (SlotGenerator(*given, ONE, GREEDY, ends=ENDS, draft=draft)
                 for draft in (None, draft_of('near', 4)))  # fmt: skip

  def texts(generator, stats):
    found = [[] for _ in PROMPTS]
    for new, _ in generator.stream(PROMPTS, 30, stats=stats):
      for text, ids in zip(found, new, strict=True):
        text += [int(i) for i in ids if i >= 0]
    return found

  stats = GenerationStats(), GenerationStats()
  assert texts(made, stats[0]) == texts(plain, stats[1])
  assert stats[0].new_tokens == stats[1].new_tokens
  (one,) = made.engines.values()
  one.compile()
  seconds = one.programs.seconds
  texts(made, GenerationStats())
  assert one.programs.seconds == seconds > 0


def test_drafts_that_do_not_fit_and_requests_that_draw_are_named():
  model = gpt()
  given = decoder(model, weights(model), ONE)
  make = lambda other, k=4: Engine(*given, ONE, rows=2, draft=Draft(other, {}, k))
  for other, text in (
    (MLP(num_outputs=2, widths=(4,)), 'MLP cannot generate'),
    (GPT(V + 1, LENGTH, width=8, depth=1, heads=1), f'vocab_size={V + 1}: expected {V}'),
    (GPT(V, LENGTH - 1, width=8, depth=1, heads=1), f'max_seq_len={LENGTH - 1}: expected at least'),
  ):
    with pytest.raises(InputError, match=text):
      make(other)
  with pytest.raises(InputError, match='generate.draft_tokens=0'):
    make(OTHER, 0)
  made = make(OTHER)
  for how, text in (
    (Sampling(0.5), 'generate.temperature=0.5: expected 0'),
    (Sampling(0.0, repetition_penalty=2.0), 'generate.repetition_penalty=2.0'),
  ):
    with pytest.raises(InputError, match=text):
      made.submit(Request((1,), 4, how))


@pytest.mark.parametrize('options, text', [
  ({}, 'generate.temperature=1.0: expected 0 with generate.draft=small'),
  ({'temperature': 0.0, 'num_beams': 2}, 'generate.num_beams=2: expected 1'),
  ({'temperature': 0.0, 'repetition_penalty': 1.1}, 'generate.repetition_penalty=1.1'),
  ({'temperature': 0.0, 'draft_tokens': 0}, 'generate.draft_tokens=0'),
])  # fmt: skip
def test_options_that_exclude_a_draft_are_named(options, text):
  with pytest.raises(InputError, match=text):
    Options(draft='small', **options)


@pytest.mark.nightly
def test_a_command_with_a_draft_writes_the_same_texts(tmp_path, capsys):
  run, words = tmp_path / 'run', ['generate.temperature=0.0', 'generate.max_new_tokens=12']
  config, name = bmx.load('gpt_char:tiny', ['steps=4', 'every.log=4', 'cache=off'])
  bmx.train(bmx.build(config, name, jax.devices()[:1]), run)

  def texts(*more):
    config, _ = bmx.load('gpt_char:tiny', [*words, 'cache=off', *more])
    modes.run('generate', modes.Request(config, 'run', str(run), prompts=('def ', 'class')))
    return capsys.readouterr().out

  assert texts() == texts(f'generate.draft={run}', 'generate.draft_tokens=3') != ''
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'tokenizer.json').write_text(
    '{"model": {"type": "BPE", "vocab": {"a": 0}}}'
  )
  with pytest.raises(InputError, match='BPE of 1 tokens there, bytes here'):
    texts(f'generate.draft={tmp_path}/other')
  with pytest.raises(InputError, match='generate.draft=small: expected none; a server draws'):
    serve._check({}, Options(draft='small', temperature=0.0))
