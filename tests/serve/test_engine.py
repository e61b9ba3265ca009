"""Continuous batching gives the tokens of one-by-one generation, whatever the queue."""

import functools

import jax
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.models.mlp import MLP
from bmx.ops import lowrank
from bmx.parallel import Layout, make_mesh
from bmx.serve import adapters
from bmx.serve.decode import decoder
from bmx.serve.engine import Engine, Request
from bmx.serve.generate import Generator, draw_key
from bmx.serve.sample import RowSampling, Sampling, draw
from tests.serve.test_generate import GREEDY, LENGTH, ONE, PROMPTS, V, gpt, placed, weights

KINDS = {
  'learned': {},
  'rotary': {'positions': 'rotary', 'kv_heads': 2, 'norm': 'rms', 'gated': True, 'window': 9},
}
SAMPLINGS = [
  GREEDY,
  Sampling(0.9),
  Sampling(0.7, top_k=5),
  Sampling(1.2, top_p=0.8),
  Sampling(1.0, repetition_penalty=1.3),
]
ENDS = (4,)


@functools.cache
def engine(kind, reuse=True):
  model = gpt(**KINDS[kind])
  made = Engine(
    *decoder(model, weights(model), ONE), ONE, rows=4, ends=ENDS, chunks=(4, 8), reuse=reuse
  )
  made.sizes = (12, 24, LENGTH)  # the cache grows and shrinks
  return made


@functools.cache
def forward(kind):
  """Logits [T, V] of a row, by a whole forward pass of one size."""
  model = gpt(**KINDS[kind])
  run = jax.jit(lambda params, ids: model.apply({'params': params}, ids)[0])
  return lambda ids: run(weights(model), np.array([ids + [0] * (LENGTH - len(ids))], np.int32))


DRAW = jax.jit(
  lambda x, seen, key, how: draw(x, seen, key, RowSampling.of([how])), static_argnums=3
)


@functools.cache
def alone(kind, prompt, tokens, how, seed):
  """The new tokens of one request by itself: a whole forward pass for each."""
  ids, row = list(prompt), jax.random.fold_in(draw_key(seed), 0)
  for count in range(min(tokens, LENGTH - len(prompt))):
    logits, seen = forward(kind)(ids)[len(ids) - 1][None], np.zeros((1, V), bool)
    seen[0, ids] = True
    ids.append(int(DRAW(logits, seen, jax.random.fold_in(row, count)[None], how)[0]))
    if ids[-1] in ENDS:
      break
  return ids[len(prompt) :]


def queue(seed, n=14):
  """Requests of random lengths; half of them begin as others do."""
  random = np.random.default_rng(seed)
  shared = [tuple(random.integers(0, V, k)) for k in (17, 9)]
  made = []
  for i in range(n):
    tail = tuple(random.integers(0, V, random.integers(1, 12)))
    prompt = (*shared[i % 2], *tail) if random.random() < 0.5 else tail
    prompt = tuple(int(x) for x in prompt)
    tokens = int(random.choice([1, 5, 12, 16, 60]))
    how = SAMPLINGS[random.integers(len(SAMPLINGS))]
    made.append(Request(prompt, tokens, how, seed=int(random.integers(3))))
  return made


def check_queue(made, kind, requests, seed):
  """Serves requests that arrive at random steps and are cancelled at random, against each alone."""
  random, found, numbers, cancelled = np.random.default_rng(seed), {}, {}, set()
  pending = list(enumerate(requests))
  while pending or not made.idle:
    for _ in range(int(random.integers(0, 4))):
      if pending:
        i, request = pending.pop(0)
        numbers[made.submit(request)] = i
    if numbers and random.random() < 0.15:
      number = int(random.choice([*numbers]))
      made.cancel(number)
      cancelled.add(numbers[number])
    for output in made.step():
      i = numbers[output.request]
      assert i not in cancelled
      found.setdefault(i, []).extend(output.tokens)
      if output.finish:
        assert output.finish == ('stop' if output.tokens[-1] in ENDS else 'length')
  done = [i for i in range(len(requests)) if i not in cancelled]
  assert len(done) > len(requests) // 2
  for i in done:
    r = requests[i]
    assert found[i] == alone(kind, r.prompt, r.max_new_tokens, r.sampling, r.seed), i


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('seed', range(2))
def test_a_random_queue_gives_the_tokens_of_each_request_alone(kind, seed):
  """Arrivals at random steps; some requests are cancelled, which changes no other."""
  check_queue(engine(kind), kind, queue(seed), 100 + seed)


def test_a_shared_beginning_is_read_once():
  model = gpt()
  begin = tuple(int(x) for x in np.random.default_rng(0).integers(0, V, 24))
  requests = [Request((*begin, i), 3, GREEDY) for i in range(12)]
  calls, results = {}, {}
  for reuse in (False, True):
    made = Engine(*decoder(model, weights(model), ONE), ONE, rows=4, chunks=(4,), reuse=reuse)
    run, calls[reuse] = made.programs.prefill, 0

    def counted(*args, run=run, reuse=reuse):
      calls[reuse] += 1
      return run(*args)

    made.programs.prefill = counted
    results[reuse] = made.run(requests)
  assert results[True] == results[False]
  assert calls[False] == 12 * 7
  assert calls[True] == 7 + 11  # those beside the first wait for it


def test_a_source_that_begins_another_prompt_is_not_read():
  """Row 1 would continue row 0's tokens, but row 0 is given away before row 1 is read."""
  model = gpt()
  made = Engine(*decoder(model, weights(model), ONE), ONE, rows=2, chunks=(4,))
  begin = tuple(range(10))
  made.run([Request(begin, 1, GREEDY)])
  others = [Request((*begin, 11), 4, GREEDY), Request((*begin, 12), 4, GREEDY),
            Request((20, 21), 4, GREEDY), Request((*begin, 13), 4, GREEDY)]  # fmt: skip
  expected = [alone('learned', r.prompt, 4, GREEDY, 0) for r in others]
  expected = [ids[:4] for ids in expected]
  assert made.run(others) == expected


@pytest.mark.parametrize('mesh', [{'data': 4}, {'data': 2, 'model': 2}], ids=str)
def test_a_mesh_gives_the_tokens_of_one_device(mesh):
  model = gpt(positions='rotary', kv_heads=2, vocab_pad=1)
  layout = Layout(make_mesh(mesh, jax.devices()[:4]))
  made = Engine(*decoder(model, placed(model, layout), layout), layout, rows=8, chunks=(8,))
  requests = [r for r in queue(7, 16) if r.max_new_tokens < 60]
  one = Engine(*decoder(model, weights(model), ONE), ONE, rows=8, chunks=(8,))
  assert made.run(requests) == one.run(requests)


def test_codes_in_the_cache_and_stored_kernels_on_a_mesh():
  """Tokens of the other cache with the same codes, by one device."""
  model = gpt(positions='rotary', kv_heads=2, vocab_pad=1, scan=True)
  layout = Layout(make_mesh({'data': 2, 'model': 2}, jax.devices()[:4]))
  made = Engine(*decoder(model, placed(model, layout), layout, 'int8'), layout, rows=4, chunks=(8,))
  codes = made.state.cache.keys[0]
  assert codes['int8'].dtype == np.int8 and codes['int8'].shape == codes['scale'].shape[:3] + (8,)
  one = Generator(*decoder(model, weights(model), ONE, 'int8'), ONE, GREEDY)
  expected = np.concatenate([new for new, _ in one.stream(PROMPTS, 8)], axis=1)
  assert made.run([Request(p, 8, GREEDY) for p in PROMPTS]) == expected.tolist()


@pytest.mark.parametrize('mesh', [{'data': 1}, {'data': 2, 'model': 2}], ids=str)
def test_rows_of_one_batch_have_adapters_of_their_own(mesh):
  """As each alone with merged weights; ranks, targets and stacked layers differ, AdaLoRA's too."""
  model = gpt(positions='rotary', kv_heads=2, scan=True, vocab_pad=1)
  base, random = weights(model), np.random.default_rng(0)
  normal = lambda *shape: random.normal(size=shape).astype(np.float32) * 0.3
  query = {'kernel_a': normal(2, 32, 3), 'kernel_b': normal(2, 3, 4, 8)}
  up = {'kernel_a': normal(2, 32, 5), 'kernel_b': normal(2, 5, 128), 'singular': normal(2, 5)}
  blocks = lambda attention, **others: {'stack': {'blocks': {'attention': attention, **others}}}
  other = {'query': {**query, 'kernel_b': -query['kernel_b']}}
  own = [(0.5, blocks({'query': query})), (2.0, blocks(other, feed_forward={'up': up}))]
  layout = Layout(make_mesh(mesh, jax.devices()[: np.prod([*mesh.values()])]))
  form, variables = decoder(model, placed(model, layout), layout)
  variables = {**variables, **adapters.stacked(own, 'float32', layout)}
  made = Engine(form, variables, layout, rows=4, chunks=(8,))
  requests = [Request(p, 8, GREEDY, adapter=a) for p in PROMPTS[:3] for a in (0, 1, 2)]
  found = made.run(requests)
  for number in (0, 1, 2):
    params = base if not number else lowrank.add(base, own[number - 1][1], own[number - 1][0])
    alone = Engine(*decoder(model, params, ONE), ONE, rows=4, chunks=(8,))
    assert alone.run([Request(p, 8, GREEDY) for p in PROMPTS[:3]]) == found[number::3]
  assert len({tuple(row) for row in found[:3]}) == 3


def test_every_program_is_compiled_before_the_first_request():
  made = Engine(*decoder(gpt(), weights(gpt()), ONE), ONE, rows=2, chunks=(8,))
  made.sizes = (24, LENGTH)
  made.compile()
  seconds, programs = made.programs.seconds, len(made.programs._found)
  made.run([r for r in queue(3) if r.sampling.repetition_penalty == 1])
  made.run([Request((5, 3) * 4, 2, GREEDY)])
  assert made.programs.seconds == seconds and len(made.programs._found) == programs


def test_other_weights_are_used_after_the_cache_is_forgotten():
  model = gpt()
  made = Engine(*decoder(model, weights(model), ONE), ONE, rows=2, chunks=(8,))
  (before,) = made.run([Request((3, 1, 4, 1, 5), 8, GREEDY)])
  made.submit(Request((3, 1, 4), 8, GREEDY))
  with pytest.raises(RuntimeError, match='idle'):
    made.forget()
  made.cancel(1)
  made.forget()
  made.variables = {'params': weights(model, -3.0)}
  other = Engine(*decoder(model, weights(model, -3.0), ONE), ONE, rows=2, chunks=(8,))
  expected = other.run([Request((3, 1, 4, 1, 5), 8, GREEDY)])
  assert made.run([Request((3, 1, 4, 1, 5), 8, GREEDY)]) == expected != [before]


def test_an_interrupt_ends_requests_and_the_engine_answers_on():
  """Ctrl-C falls after the arrays of the cache were given away."""
  model = gpt()
  made = Engine(*decoder(model, weights(model), ONE), ONE, rows=2, chunks=(8,))
  expected = made.run([Request((3, 1, 4), 8, GREEDY)])
  plain = made.programs.decode

  def interrupted(*args):
    plain(*args)
    raise KeyboardInterrupt

  made.programs.decode = interrupted
  made.submit(Request((3, 1, 4), 8, GREEDY))
  with pytest.raises(KeyboardInterrupt):
    made.step()
  made.programs.decode = plain
  assert made.idle and made.run([Request((3, 1, 4), 8, GREEDY)]) == expected


def test_a_longer_prompt_of_the_same_beginning_finds_the_tokens_of_the_former():
  """The cache is not shortened while it waits."""
  model, read = gpt(), []
  made = Engine(*decoder(model, weights(model), ONE), ONE, rows=2, chunks=(4,))
  made.sizes = (12, 24, LENGTH)
  begin = tuple(range(20))
  (new,) = made.run([Request(begin, 8, GREEDY)])
  plain = made.programs.prefill
  made.programs.prefill = lambda *args: read.append(int(args[2].count.sum())) or plain(*args)
  made.run([Request((*begin, *new, 5, 6), 4, GREEDY)])
  assert sum(read) == 2


def test_logprobs_are_those_of_a_whole_forward():
  model, made = gpt(), engine('learned')
  number = made.submit(Request((3, 1, 4, 1, 5), 6, Sampling(0.8), seed=2))
  ids, likely = [], []
  while not made.idle:
    for output in made.step():
      assert output.request == number
      ids += output.tokens
      likely += output.logprobs
  whole = np.array([[3, 1, 4, 1, 5, *ids]], np.int32)
  logits = jax.nn.log_softmax(jax.jit(model.apply)({'params': weights(model)}, whole))[0, 4:]
  expected = [float(logits[i, token]) for i, token in enumerate(ids)]
  np.testing.assert_allclose(likely, expected, atol=1e-4)


def test_rows_of_unequal_options_are_drawn_as_each_alone():
  random = np.random.default_rng(0)
  logits = random.normal(size=(5, 40)).astype(np.float32) * 3
  logits[:, 7] = logits[:, 9]  # ties
  seen = random.random((5, 40)) < 0.3
  together = jax.jit(draw)
  for seed in range(20):
    keys = jax.random.split(jax.random.PRNGKey(seed), 5)
    rows = RowSampling.of(SAMPLINGS)
    found = together(logits, seen, keys, rows)
    for i, how in enumerate(SAMPLINGS):
      one = slice(i, i + 1)
      assert found[i] == DRAW(logits[one], seen[one], keys[one], how)[0], (seed, how)


def test_errors():
  model = gpt()
  make = lambda model=model, layout=ONE, **o: Engine(model, {'params': weights(gpt())}, layout, **o)
  with pytest.raises(InputError, match='MLP cannot generate'):
    make(MLP(num_outputs=2, widths=(4,)))
  with pytest.raises(InputError, match='rows=3: expected a multiple of 2'):
    make(layout=Layout(make_mesh({'data': 2}, jax.devices()[:2])), rows=3)
  with pytest.raises(InputError, match='context=1: expected at least 2'):
    make(context=1)
  made = engine('learned')
  for prompt, text in (((), 'at least one token'), ((V,), 'vocab_size'), ((1,) * LENGTH, 'fewer')):
    with pytest.raises(InputError, match=text):
      made.submit(Request(prompt, 4))
  with pytest.raises(InputError, match='max_new_tokens=0'):
    made.submit(Request((1,), 0))
  assert made.idle
