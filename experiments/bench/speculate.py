"""Greedy texts with a draft beside the same texts without one.

    python experiments/bench/speculate.py FOLDER        # of the runs; again: continues there

Trains a GPT over the bytes of Python's standard library (3.2 M: L4 d256, context 256) and a draft
(0.1 M: L1 d64), 300 steps each; FOLDER keeps both. Then one request at a time and 16 at once, 96
new bytes each, with 2, 4 and 8 proposed tokens and without a draft, in windows taken in turn. A
second draft is the model itself: it always agrees, and costs as much. Writes speculate.json here:
tokens/s, the ratio of seconds to those without a draft (below 1 the draft is faster), tokens of one
pass of the model, and whether all tokens are equal.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import jax

from bmx.adapt import restore
from bmx.core import tree
from bmx.data.text.windows import token_spec
from bmx.optim.optimizers import sgd
from bmx.parallel import Layout, make_mesh
from bmx.serve.decode import decoder
from bmx.serve.engine import Engine
from bmx.serve.rows import Request
from bmx.serve.sample import Sampling
from bmx.serve.speculate import PASSES, Draft
from bmx.tasks.language import CausalLM
from bmx.train.state import plan_state

WINDOWS, TOKENS, LENGTH = 3, 96, 256
SIZES = {'model': ('width=256', 'depth=4'), 'draft': ('width=64', 'depth=1')}


def train(folder: pathlib.Path, name: str) -> str:
  """Trains a run, or continues it; returns its directory."""
  sizes = [f'--config.task.model.{word}' for word in SIZES[name]]
  words = ('--config=gpt_char', f'--config.length={LENGTH}', '--config.steps=300', *sizes,
           '--config.every.eval=0', '--config.every.save=50', '--config.schedule.peak=2e-3',
           '--config.hooks.samples.every=1000', f'--workdir={folder / name}')  # fmt: skip
  subprocess.run([sys.executable, '-m', 'bmx.main', *words], check=True)
  return str(folder / name)


def read(folder: str, layout: Layout):
  """Returns a decoder and its variables."""
  model = restore.model(folder)
  batch = {k: v.batched(1) for k, v in token_spec(8).items()}
  plan = plan_state(CausalLM(model), sgd(lambda step: 0.0), batch, layout)
  return decoder(model, tree.nested(restore.load(folder, plan.plain)), layout)


def requests(count: int) -> list[Request]:
  """Returns requests whose prompts are places of a text that neither model has read."""
  text = pathlib.Path(__file__).read_bytes()
  starts = range(0, 150 * count, 150)
  greedy = Sampling(temperature=0.0)
  return [Request(tuple(text[i : i + 40]), TOKENS, greedy) for i in starts]


def measure(engines: dict[str, Engine], given: list[Request]) -> dict:
  """Runs all engines in turn; returns seconds, tokens/s, ratios, and equality of tokens."""
  said, calls = {}, {}
  seconds: dict[str, list[float]] = {name: [] for name in engines}
  for name, engine in engines.items():
    plain, count = engine.programs.decode, []
    engine.programs.decode = lambda *a, plain=plain, count=count: count.append(1) or plain(*a)
    said[name] = engine.run(given)
    calls[name], engine.programs.decode = len(count), plain
  for _ in range(WINDOWS):
    for name, engine in engines.items():
      engine.forget()
      began = time.perf_counter()
      engine.run(given)
      seconds[name].append(time.perf_counter() - began)
  middle = {name: statistics.median(values) for name, values in seconds.items()}
  made = sum(map(len, said['none']))
  ratios = {
    name: [a / b for a, b in zip(values, seconds['none'], strict=True)]
    for name, values in seconds.items()
  }
  return {
    'new_tokens': made,
    'tokens_per_second': {k: round(made / v, 1) for k, v in middle.items()},
    'ratio': {k: round(v / middle['none'], 3) for k, v in middle.items()},
    'ratios': {k: [round(min(v), 3), round(max(v), 3)] for k, v in ratios.items()},
    'tokens_per_pass': {
      k: round(made / (len(given) if len(engines['none'].rows) > 1 else 1) / PASSES / n, 2)
      for k, n in calls.items()
      if k != 'none'
    },
    'equal_answers': {k: v == said['none'] for k, v in said.items()},
  }


def main(folder: str) -> None:
  """Writes speculate.json."""
  layout = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
  runs = {name: train(pathlib.Path(folder), name) for name in SIZES}
  model, draft = (read(run, layout) for run in runs.values())
  results = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU',
    'jax': jax.__version__,
  }
  for rows in (1, 16):
    make = lambda given, rows=rows: Engine(*model, layout, rows=rows, draft=given)
    engines = {'none': make(None), 'itself, 4': make(Draft(*model, 4))}
    engines |= {f'small, {k}': make(Draft(*draft, k)) for k in (2, 4, 8)}
    results[f'rows {rows}'] = measure(engines, requests(4 if rows == 1 else rows))
  path = pathlib.Path(__file__).with_suffix('.json')
  path.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  main(sys.argv[1])
