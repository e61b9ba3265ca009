"""One GPU: whole training runs of GPT-2 124M and of the Llama-3.2-1B shape beside PyTorch.

    python experiments/bench/gpu.py [--small] [NAME ...]
    python experiments/bench/gpu.py --part='ours' NAME WORD=VALUE ...   (one run, other settings)
    python experiments/bench/gpu.py --part='profile' NAME ...           (the longest operations)
    python experiments/bench/gpu.py --list                              (trials of gpu_trials.py)

For each model, one after another on one device: tokens a second of bmx's own loop (data,
optimizer, log lines; median of the log windows but the first two), MFU as the log line has it,
the same against the rate that the device reaches on a large matrix product, peak memory, seconds
to compile with an empty cache and with a full one; tokens a second of the same shape as nanoGPT
would train it, on a batch that lies ready (torch.compile, flash attention, fused AdamW,
bfloat16). Also attention forward and backward at head sizes 64 and 128, and matrix products at
widths 768, 2048 and 8192. Nothing is saved: a checkpoint of 15 GB would measure a disk. Writes
gpu.json here. `--small` is a size for any CPU, which writes nothing: it shows that the script
runs. Needs a CUDA build of torch; without torch, bmx runs alone.
"""

import argparse
import datetime
import importlib.util
import json
import logging
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.ops.attention import attend

ROOT = pathlib.Path(__file__).parent.parent.parent
LLAMA = {'width': 2048, 'depth': 16, 'heads': 32, 'kv_heads': 8, 'hidden': 8192}
# name -> (recipe, overrides, batch, arguments of the class in torch_models)
MODELS: dict[str, tuple[str, list[str], int, tuple[str, dict[str, int]]]] = {
  'GPT-2 124M, T 1024': (
    'gpt2_124m', [], 32,
    ('GPT', {'vocab': 50304, 'length': 1024, 'width': 768, 'depth': 12, 'heads': 12}),
  ),
  'Llama 1B shape, T 2048': (
    'llama_1b', ['length=2048'], 8, ('Llama', {'vocab': 128256, 'length': 2048, **LLAMA})
  ),
  'Llama 1B shape, T 4096': (
    'llama_1b', ['length=4096'], 4, ('Llama', {'vocab': 128256, 'length': 4096, **LLAMA})
  ),
}  # fmt: skip
SMALL = {
  'small GPT-2': (
    'gpt2_124m',
    ['vocab=256', 'length=64', 'task.model.width=64', 'task.model.depth=2', 'task.model.heads=4',
     'task.model.vocab_pad=0', 'dtype=float32'],
    4, ('GPT', {'vocab': 256, 'length': 64, 'width': 64, 'depth': 2, 'heads': 4}),
  ),
  'small Llama': (
    'llama_1b',
    ['vocab=256', 'length=64', 'task.model.width=64', 'task.model.depth=2', 'task.model.heads=4',
     'task.model.kv_heads=2', 'task.model.mlp_dim=128', 'dtype=float32'],
    4, ('Llama', {'vocab': 256, 'length': 64, 'width': 64, 'depth': 2, 'heads': 4, 'kv_heads': 2,
                  'hidden': 128}),
  ),
}  # fmt: skip
STEPS, LOG = 60, 10


def seconds(fn: Callable[[], Any], times: int) -> float:
  """Times one call: the median of windows that end when the device has finished."""
  jax.block_until_ready(fn())
  took = []
  for _ in range(5):
    began = time.perf_counter()
    for _ in range(times):
      out = fn()
    jax.block_until_ready(out)
    took.append((time.perf_counter() - began) / times)
  return statistics.median(took)


def matmul_rate(width: int, rows: int, times: int) -> float:
  """Returns the FLOP/s of [rows, width] x [width, 4 width] in bfloat16."""
  keys = jax.random.split(jax.random.PRNGKey(0))
  a = jax.random.normal(keys[0], (rows, width), jnp.bfloat16)
  b = jax.random.normal(keys[1], (width, 4 * width), jnp.bfloat16)
  product = jax.jit(lambda a, b: a @ b)
  return 2 * rows * width * 4 * width / seconds(lambda: product(a, b), times)


def attention_rate(size: int, length: int, impl: str, dtype: Any, times: int) -> dict[str, float]:
  """Returns the FLOP/s of causal attention, half of the full count, forward and with gradient."""
  batch, heads = 8, 16
  q, k, v = jax.random.normal(jax.random.PRNGKey(0), (3, batch, length, heads, size), dtype)
  forward = jax.jit(lambda q, k, v: attend(q, k, v, causal=True, impl=impl))
  total = lambda *x: attend(*x, causal=True, impl=impl).astype(jnp.float32).sum()
  both = jax.jit(jax.grad(total, (0, 1, 2)))
  flops = 2 * batch * heads * length * length * size
  return {
    'forward': flops / seconds(lambda: forward(q, k, v), times),
    'forward_and_backward': 3.5 * flops / seconds(lambda: both(q, k, v), times),
  }


def attention_error(impl: str, dtype: Any) -> dict[str, float]:
  """Returns the error of `impl` against 'xla' in float32: ‖difference‖ / ‖float32‖.

  The largest of the output's and the three gradients'.
  """
  keys = jax.random.split(jax.random.PRNGKey(1), 4)
  q, out = jax.random.normal(keys[0], (2, 2, 256, 8, 64))
  k, v = jax.random.normal(keys[1], (2, 2, 256, 2, 64))
  ids = jnp.cumsum(jax.random.bernoulli(keys[2], 0.02, (2, 256)), 1, dtype=jnp.int32)
  cases = {'causal': {'causal': True}, 'window': {'causal': True, 'window': 100}, 'full': {},
           'segments': {'causal': True, 'segment_ids': ids}}  # fmt: skip

  def both(impl, dtype, case):
    def run(q, k, v, out):
      value, back = jax.vjp(lambda *x: attend(*x, impl=impl, **case), q, k, v)
      return [x.astype(jnp.float32) for x in (value, *back(out))]

    return jax.jit(run)(*(x.astype(dtype) for x in (q, k, v, out)))

  def error(case):
    pairs = zip(both(impl, dtype, case), both('xla', jnp.float32, case), strict=True)
    return max(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in pairs)

  with jax.default_matmul_precision('highest'):
    return {name: error(case) for name, case in cases.items()}


def rates(small: bool) -> dict[str, Any]:
  """Measures matrix products and attention."""
  device = jax.devices()[0]
  widths = (64,) if small else (768, 2048, 8192)
  impl, dtype = ('xla', jnp.float32) if small else ('cudnn', jnp.bfloat16)
  length, times = (128, 1) if small else (4096, 20)
  return {
    'device': device.device_kind,
    'jax': jax.__version__,
    'matmul': {str(w): matmul_rate(w, 128 if small else 16384, times) for w in widths},
    'attention': {str(h): attention_rate(h, length, impl, dtype, times) for h in (64, 128)},
    'attention_error': attention_error(impl, jnp.bfloat16),
  }


def built(name: str, words: list[str], folder: pathlib.Path) -> Any:
  """Builds the experiment of a model, on random tokens."""
  from bmx import config as recipes
  from bmx import experiment
  from bmx.runtime import cache

  logging.basicConfig(level=logging.INFO, stream=sys.stderr, format='%(message)s')
  recipe, overrides, batch, _ = (MODELS | SMALL)[name]
  tokens = folder / f'{name}.bin'
  words = [f'batch_size={batch}', f'steps={STEPS}', f'every.log={LOG}', 'every.eval=0',
           'every.save=0', 'grad.steps=1', 'schedule.warmup=10', f'data.path={tokens}',
           *overrides, *words]  # fmt: skip
  config, run = recipes.load(str(ROOT / 'configs' / f'{recipe}.py'), [])
  config.eval = {}
  with config.data.unlocked():
    config.data.dtype = 'uint32'
  recipes.apply(config, words)
  if not tokens.exists():
    ids = np.random.default_rng(0).integers(0, min(config.vocab, 50257), 20_000_000)
    ids.astype(np.uint32).tofile(tokens)
  cache.enable(str(folder / 'programs'))
  return experiment.build(config, run)


def ours(name: str, words: list[str], folder: pathlib.Path) -> dict[str, Any]:
  """Runs bmx's own loop, without its checkpoints."""
  from bmx.core import hardware
  from bmx.runtime.throughput import peak_memory_bytes
  from bmx.runtime.writer import read_metrics
  from bmx.train import hooks, loop
  from bmx.train.run import make_run
  from bmx.train.rundir import RunDir

  x = built(name, words, folder)
  with tempfile.TemporaryDirectory() as place:
    made = make_run(x, RunDir(f'{place}/run', x), [hooks.logging_hook(x)])
    for event in loop.steps(made):
      hooks.call_due(event)
    found = {'compile_seconds': made.loop.compile_seconds, 'peak_memory_bytes': peak_memory_bytes()}
    made.close()
    lines = read_metrics(pathlib.Path(place) / 'run' / 'metrics.jsonl')
  lines = [line for line in lines if 'tokens_per_second' in line]
  median = lambda key: statistics.median(line[key] for line in lines[2:] or lines)
  known = hardware.chip(x.layout.mesh.devices.flat[0])
  if known:
    found |= {'mfu': median('mfu'), 'flops': median('mfu') * known.flops}
  keys = ('tokens_per_second', 'step_seconds', 'data_wait_fraction')
  return found | {k: median(k) for k in keys} | {'losses': [line['loss'] for line in lines]}


def profile(name: str, words: list[str], folder: pathlib.Path) -> dict[str, Any]:
  """Traces three steps -> the longest operations, with their share of the traced time."""
  from bmx.core.events import Hook
  from bmx.runtime import trace
  from bmx.train import hooks, loop
  from bmx.train.run import make_run
  from bmx.train.rundir import RunDir

  first, last = 20, 23
  x = built(name, [*words, f'steps={last + 2}'], folder)
  with tempfile.TemporaryDirectory() as place:
    hook = Hook((first, last), hooks.Profile(first, last), 'profile')
    made = make_run(x, RunDir(f'{place}/run', x), [hooks.logging_hook(x), hook])
    for event in loop.steps(made):
      hooks.call_due(event)
    made.close()
    path = trace.newest(pathlib.Path(place) / 'run' / 'profile')
    if path is None:
      raise SystemExit(f'{name}: the profiler has written no trace')
    found = trace.read(path)
  heads = ('share', 'ms', 'calls', 'operation')
  rows = [dict(zip(heads, row, strict=True)) for row in trace.rows(found)]
  return {'steps': last - first, 'operations': rows}


def theirs(name: str) -> dict[str, Any]:
  """Runs nanoGPT's step, on the same shape and one prepared batch."""
  import torch
  import torch_models

  torch.set_float32_matmul_precision('high')
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  *_, batch, (kind, sizes) = (MODELS | SMALL)[name]
  with torch.device(device):
    model = torch.compile(getattr(torch_models, kind)(**sizes))
    x = torch.randint(min(sizes['vocab'], 50257), (batch, sizes['length']))
  optimizer = torch.optim.AdamW(model.parameters(), 6e-4, (0.9, 0.95), fused=True)

  def steps(n: int) -> float:
    began = time.perf_counter()
    for _ in range(n):
      with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
        out = model(x)
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), x.flatten())
      optimizer.zero_grad(set_to_none=True)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
    loss.item()  # waits for the device
    return (time.perf_counter() - began) / n

  first = steps(1)
  took = [steps(LOG) for _ in range(STEPS // LOG)][2:]
  found = {'tokens_per_second': x.numel() / statistics.median(took), 'first_step_seconds': first}
  if device == 'cuda':
    found['peak_memory_bytes'] = torch.cuda.max_memory_allocated()
  return found | {'torch': torch.__version__}


def apart(*words: str) -> dict[str, Any]:
  """Runs a part in its own process, which has the device's memory to itself."""
  out = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE)
  return json.loads(out.stdout.splitlines()[-1])


def compare(name: str, ceiling: float, folder: str) -> dict[str, Any]:
  """Runs one model by bmx and PyTorch -> their figures."""
  part = lambda kind, *words: apart(f'--part={kind}', f'--folder={folder}', name, *words)
  cold, warm = part('ours'), part('ours')
  found = {'bmx': warm | {'compile_seconds': [cold['compile_seconds'], warm['compile_seconds']]}}
  if importlib.util.find_spec('torch'):
    found['torch'] = part('theirs')
    found['rate, bmx/torch'] = warm['tokens_per_second'] / found['torch']['tokens_per_second']
  if 'flops' in warm:
    found['of_measured_matmul'] = warm['flops'] / ceiling
  return found


def main() -> None:
  """Runs one part, or all models, and writes gpu.json."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--small', action='store_true')
  parser.add_argument('--list', action='store_true')
  parser.add_argument('--part', choices=('rates', 'ours', 'theirs', 'profile'))
  parser.add_argument('--folder', type=pathlib.Path)
  parser.add_argument('words', nargs='*')
  args = parser.parse_args()
  if args.list:
    import gpu_trials

    sys.stdout.write('\n'.join(gpu_trials.lines()) + '\n')
    return
  if args.part:
    name, *words = args.words or ['']
    with tempfile.TemporaryDirectory() as place:
      folder = args.folder or pathlib.Path(place)
      parts = {'rates': lambda: rates(args.small), 'theirs': lambda: theirs(name),
               'ours': lambda: ours(name, words, folder),
               'profile': lambda: profile(name, words, folder)}  # fmt: skip
      sys.stdout.write(json.dumps(parts[args.part]()) + '\n')
    return
  results = {'date': datetime.date.today().isoformat()}
  results |= apart('--part=rates', *['--small'] * args.small)
  path = pathlib.Path(__file__).with_suffix('.json')
  for name in args.words or (SMALL if args.small else MODELS):
    with tempfile.TemporaryDirectory() as folder:
      results[name] = compare(name, max(results['matmul'].values()), folder)
    if not args.small:
      path.write_text(json.dumps(results, indent=1) + '\n')
  sys.stdout.write(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  main()
