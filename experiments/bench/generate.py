"""Tokens a second of generation beside Hugging Face transformers, on the same weights.

    python experiments/bench/generate.py [NAME ...]          # extra `reference`

GPT-2s of random weights, batch 8, prompts of 32 tokens, 200 more, greedy, float32, windows of both
in turn; prompts are read anew in every window. Writes generate.json here: the median of each, the
ratio of the medians, the range of the ratios of neighboring windows, and the share of tokens that
are equal in both.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
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
from bmx.serve.sample import Sampling
from bmx.serve.stream import SlotGenerator
from bmx.tasks.language import CausalLM
from bmx.train.state import plan_state

BATCH, PROMPT, TOKENS, WINDOWS = 8, 32, 200, 5
# name -> sizes of a GPT2Config
MODELS = {
  '10.6 M: L6 d384': {'n_layer': 6, 'n_embd': 384, 'n_head': 6, 'vocab_size': 65,
                      'n_positions': 256},
  '124 M: GPT-2': {'n_layer': 12, 'n_embd': 768, 'n_head': 12, 'vocab_size': 50257},
}  # fmt: skip


def theirs(folder: str, prompts: np.ndarray):
  """Returns a function that generates with transformers."""
  model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
  ids = torch.tensor(prompts)
  options = {'do_sample': False, 'max_new_tokens': TOKENS, 'min_new_tokens': TOKENS}
  mask = torch.ones_like(ids)

  def run() -> np.ndarray:
    with torch.no_grad():
      out = model.generate(ids, attention_mask=mask, pad_token_id=0, **options)
    return out[:, PROMPT:].numpy()

  return run


def ours(folder: str, prompts: np.ndarray):
  """Returns a function that generates with bmx."""
  layout = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
  model = restore.model(folder)
  task = CausalLM(model)
  batch = {k: v.batched(1) for k, v in token_spec(8).items()}
  plan = plan_state(task, sgd(lambda step: 0.0), batch, layout)
  state = start(task, plan, {'path': folder, 'reinit': ''})
  sampling = Sampling(temperature=0.0)
  generator = SlotGenerator(*decoder(model, state.params, layout), layout, sampling)

  def run() -> np.ndarray:
    generator.params = generator.params  # nothing is kept from the run before
    parts = [made for made, _ in generator.stream(prompts.tolist(), TOKENS)]
    return np.array([[i for part in parts for i in part[row] if i >= 0] for row in range(BATCH)])

  return run


def compare(sizes: dict[str, int]) -> dict:
  """Compares both on one model of random weights."""
  torch.manual_seed(0)
  config = transformers.GPT2Config(
    **sizes, bos_token_id=None, eos_token_id=None, initializer_range=0.1
  )  # far from ties, which rounding would break
  with tempfile.TemporaryDirectory() as folder:
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    prompts = np.random.default_rng(0).integers(1, sizes['vocab_size'], (BATCH, PROMPT))
    runs = {'transformers': theirs(folder, prompts), 'bmx': ours(folder, prompts)}
    said = {name: run() for name, run in runs.items()}  # and compiles
  rates: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(WINDOWS):
    for name, run in runs.items():
      began = time.perf_counter()
      run()
      rates[name].append(BATCH * TOKENS / (time.perf_counter() - began))
  pairs = [b / a for a, b in zip(rates['transformers'], rates['bmx'], strict=True)]
  medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
  return {
    'tokens_per_second': medians,
    'ratio': round(medians['bmx'] / medians['transformers'], 2),
    'ratios': [round(min(pairs), 2), round(max(pairs), 2)],
    'same_tokens': round(float((said['bmx'] == said['transformers']).mean()), 4),
  }


def main() -> None:
  """Runs the chosen models and updates generate.json."""
  path = pathlib.Path(__file__).with_suffix('.json')
  results = json.loads(path.read_text()) if path.exists() else {}
  for name in sys.argv[1:] or MODELS:
    results[name] = compare(MODELS[name]) | {
      'date': datetime.date.today().isoformat(),
      'machine': f'{os.cpu_count()} × {platform.machine()} CPU',
      'versions': {m.__name__: m.__version__ for m in (jax, torch, transformers)},
    }
    path.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  main()
