"""A queue of unequal requests: the engine beside batches of bmx and of transformers.

    python experiments/bench/engine.py          # extra `reference`

A GPT-2 of random weights (10.6 M: L6 d384, context 512), greedy, float32. 64 requests with prompts
of 8 to 128 tokens and 8 to 192 new tokens, 16 at a time: the engine refills a row when its request
ends, a batch waits for its longest. Only tokens that were asked for count. Then 64 requests that
share a prompt of 150 tokens, with and without reuse. Each side runs in windows taken in turn, after
a first run that compiles; torch has as many threads as jax. Writes engine.json here: seconds,
ratios (below 1 the engine is faster), and whether all tokens are equal.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time

import jax
import numpy as np
import torch
import transformers

from bmx.adapt import restore
from bmx.adapt.restore import start
from bmx.data.text.windows import token_spec
from bmx.optim.optimizers import sgd
from bmx.parallel import Layout, make_mesh
from bmx.serve.decode import decoder
from bmx.serve.engine import Engine
from bmx.serve.generate import Generator
from bmx.serve.rows import Request
from bmx.serve.sample import Sampling
from bmx.tasks.language import CausalLM
from bmx.train.state import plan_state

ROWS, REQUESTS, WINDOWS = 16, 64, 3
SIZES = {'n_layer': 6, 'n_embd': 384, 'n_head': 6, 'vocab_size': 65, 'n_positions': 512}
GREEDY = Sampling(temperature=0.0)
Queue = list[tuple[list[int], int]]  # (prompt, new tokens)


def unequal() -> Queue:
  """Returns prompts and lengths that differ."""
  random = np.random.default_rng(0)
  return [
    (random.integers(1, SIZES['vocab_size'], random.integers(8, 129)).tolist(),
     int(random.integers(8, 193)))
    for _ in range(REQUESTS)
  ]  # fmt: skip


def sharing() -> Queue:
  """Returns prompts that begin alike."""
  random = np.random.default_rng(1)
  common = random.integers(1, SIZES['vocab_size'], 150).tolist()
  return [
    (common + random.integers(1, SIZES['vocab_size'], 8).tolist(), 16) for _ in range(REQUESTS)
  ]


def batches(queue: Queue) -> list[Queue]:
  """Cuts a queue into batches, in its order."""
  return [queue[i : i + ROWS] for i in range(0, len(queue), ROWS)]


def of_engine(model, params, layout, reuse=True):
  """Returns a function that answers a queue with the engine."""
  engine = Engine(*decoder(model, params, layout), layout, rows=ROWS, reuse=reuse)

  def run(queue: Queue) -> list[list[int]]:
    engine.forget()  # nothing is kept from the run before
    return engine.run([Request(prompt, tokens, GREEDY) for prompt, tokens in queue])

  return run


def of_batches(model, params, layout):
  """Returns a function that answers a queue batch by batch; a row ends with its own request."""
  generator = Generator(*decoder(model, params, layout), layout, GREEDY)

  def run(queue: Queue) -> list[list[int]]:
    found = []
    for batch in batches(queue):
      most, done = max(tokens for _, tokens in batch), 0
      rows: list[list[int]] = [[] for _ in batch]
      for new, stop in generator.stream([prompt for prompt, _ in batch], most, chunk=16):
        done += new.shape[1]
        for row, ids in zip(rows, new.tolist(), strict=True):
          row += [i for i in ids if i >= 0]
        stop([n for n, (_, tokens) in enumerate(batch) if done >= tokens])
      found += [row[:tokens] for row, (_, tokens) in zip(rows, batch, strict=True)]
    return found

  return run


def of_transformers(folder: str):
  """Returns a function that answers a queue batch by batch with transformers."""
  model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

  def run(queue: Queue) -> list[list[int]]:
    found = []
    for batch in batches(queue):
      longest = max(len(prompt) for prompt, _ in batch)
      ids = torch.zeros((len(batch), longest), dtype=torch.long)
      mask = torch.zeros_like(ids)
      for n, (prompt, _) in enumerate(batch):
        ids[n, longest - len(prompt) :] = torch.tensor(prompt)
        mask[n, longest - len(prompt) :] = 1
      most = max(tokens for _, tokens in batch)
      options = {'do_sample': False, 'max_new_tokens': most, 'min_new_tokens': most}
      with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, pad_token_id=0, **options)
      new = out[:, longest:].tolist()
      found += [row[:tokens] for row, (_, tokens) in zip(new, batch, strict=True)]
    return found

  return run


def measure(runs: dict, queue: Queue) -> dict:
  """Runs all sides in turn -> seconds, ratios of the engine to each, equality of tokens."""
  said = {name: run(queue) for name, run in runs.items()}  # and compiles
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(WINDOWS):
    for name, run in runs.items():
      began = time.perf_counter()
      run(queue)
      seconds[name].append(time.perf_counter() - began)
  middle = {name: statistics.median(values) for name, values in seconds.items()}
  first, *others = runs
  pairs = {
    name: [a / b for a, b in zip(seconds[first], seconds[name], strict=True)] for name in others
  }
  same = lambda a, b: float(np.mean([x == y for x, y in zip(a, b, strict=True)]))
  return {
    'new_tokens': sum(tokens for _, tokens in queue),
    'seconds': {name: round(value, 2) for name, value in middle.items()},
    'ratio': {name: round(middle[first] / middle[name], 3) for name in others},
    'ratios': {name: [round(min(x), 3), round(max(x), 3)] for name, x in pairs.items()},
    'equal_answers': {name: same(said[first], said[name]) for name in others},
  }


def main() -> None:
  """Writes engine.json."""
  threads = len(os.sched_getaffinity(0))
  torch.set_num_threads(threads)
  torch.manual_seed(0)
  config = transformers.GPT2Config(**SIZES, bos_token_id=None, eos_token_id=None,
                                   initializer_range=0.1)  # fmt: skip
  with tempfile.TemporaryDirectory() as folder:
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    layout = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
    model = restore.model(folder)
    batch = {k: v.batched(1) for k, v in token_spec(8).items()}
    plan = plan_state(CausalLM(model), sgd(lambda step: 0.0), batch, layout)
    params = start(CausalLM(model), plan, {'path': folder, 'reinit': ''}).params
    engine, plain = of_engine(model, params, layout), of_batches(model, params, layout)
    theirs = of_transformers(folder)
    unshared = of_engine(model, params, layout, reuse=False)
    results = {
      'unequal': measure({'engine': engine, 'batches': plain, 'transformers': theirs}, unequal()),
      'sharing': measure(
        {'engine': engine, 'without reuse': unshared, 'batches': plain}, sharing()
      ),
      'rows': ROWS,
      'date': datetime.date.today().isoformat(),
      'machine': f'{threads} × {platform.machine()} CPU, torch with {threads} threads',
      'versions': {m.__name__: m.__version__ for m in (jax, torch, transformers)},
    }
  path = pathlib.Path(__file__).with_suffix('.json')
  path.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  main()
