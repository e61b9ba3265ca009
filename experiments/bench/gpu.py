"""One GPU: whole training runs of GPT-2 124M and of the Llama-3.2-1B shape beside PyTorch.

    python experiments/bench/gpu.py [--small] [NAME ...]

For each model, in one run on one device: tokens a second of bmx's own loop (data, optimizer, log
lines; median of the log windows but the first two), MFU as the log line has it, the same against
the rate that the device reaches on a large matrix product, peak memory, seconds to compile with an
empty cache and with a full one; for GPT-2 also tokens a second of the same model as nanoGPT has it
(torch.compile, flash attention, fused AdamW, bfloat16). Also attention forward and backward at head
sizes 64 and 128, and matrix products at widths 768, 2048 and 8192. Writes gpu.json here. `--small`
is a size for any CPU, which writes nothing: it shows that the script runs. Extra `reference`, with
a CUDA build of torch; without torch there is no other side.
"""

import datetime
import importlib.util
import json
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

from bmx.core import hardware
from bmx.core.writer import read_metrics
from bmx.ops.attention import attend

ROOT = pathlib.Path(__file__).parent.parent.parent
# name -> (recipe, overrides, sizes for PyTorch: vocab, length, width, depth, heads; batch)
MODELS: dict[str, tuple[str, list[str], tuple[int, ...], int]] = {
  'GPT-2 124M, T 1024': ('gpt2_124m', [], (50304, 1024, 768, 12, 12), 32),
  'Llama 1B shape, T 2048': ('llama_1b', ['length=2048'], (), 8),
  'Llama 1B shape, T 4096': ('llama_1b', ['length=4096'], (), 4),
}
SMALL: dict[str, tuple[str, list[str], tuple[int, ...], int]] = {
  'small': (
    'gpt2_124m',
    ['vocab=256', 'length=64', 'task.model.width=64', 'task.model.depth=2', 'task.model.heads=4',
     'task.model.vocab_pad=0', 'dtype=float32'],
    (256, 64, 64, 2, 4), 4,
  ),
}  # fmt: skip
STEPS, LOG = 80, 10


def seconds(fn: Callable[[], Any], times: int = 20) -> float:
  """Of one call, the median of windows that end when the device has finished."""
  jax.block_until_ready(fn())
  took = []
  for _ in range(5):
    began = time.perf_counter()
    for _ in range(times):
      out = fn()
    jax.block_until_ready(out)
    took.append((time.perf_counter() - began) / times)
  return statistics.median(took)


def matmul_rate(width: int, rows: int) -> float:
  """FLOP/s of [rows, width] x [width, 4 width] in bfloat16."""
  keys = jax.random.split(jax.random.PRNGKey(0))
  a = jax.random.normal(keys[0], (rows, width), jnp.bfloat16)
  b = jax.random.normal(keys[1], (width, 4 * width), jnp.bfloat16)
  product = jax.jit(lambda a, b: a @ b)
  return 2 * rows * width * 4 * width / seconds(lambda: product(a, b))


def attention_rate(size: int, length: int, impl: str, dtype: Any) -> dict[str, float]:
  """FLOP/s of causal attention, half of the full count, forward and with its gradient."""
  batch, heads = 8, 16
  q, k, v = jax.random.normal(jax.random.PRNGKey(0), (3, batch, length, heads, size), dtype)
  forward = jax.jit(lambda q, k, v: attend(q, k, v, causal=True, impl=impl))
  total = lambda *x: attend(*x, causal=True, impl=impl).astype(jnp.float32).sum()
  both = jax.jit(jax.grad(total, (0, 1, 2)))
  flops = 2 * batch * heads * length * length * size
  return {
    'forward': flops / seconds(lambda: forward(q, k, v)),
    'forward_and_backward': 3.5 * flops / seconds(lambda: both(q, k, v)),
  }


def train(recipe: str, overrides: list[str], batch: int, folder: pathlib.Path) -> dict:
  """A whole run in a process of its own -> its summary and log lines."""
  cache, workdir = folder / 'programs', folder / f'run-{time.monotonic_ns()}'
  words = [f'batch_size={batch}', f'steps={STEPS}', f'every.log={LOG}', 'every.eval=0',
           'every.save=0', 'grad.steps=1', 'schedule.warmup=10', f'cache={cache}',
           f'data.path={folder / "tokens.bin"}', *overrides]  # fmt: skip
  config = f'--config={folder / "recipe.py"}'
  (folder / 'recipe.py').write_text(RECIPE % recipe)
  command = [sys.executable, '-m', 'bmx.main', config, f'--workdir={workdir}']
  subprocess.run([*command, *[f'--config.{w}' for w in words]], check=True, cwd=ROOT)
  summary = json.loads((workdir / 'summary.json').read_text())
  return summary | {'lines': read_metrics(workdir / 'metrics.jsonl')}


# The recipe with tokens from a file and no evaluation.
RECIPE = """
import runpy
def get_config(variant=''):
  c = runpy.run_path('configs/%s.py')['get_config']()
  c.eval = {}
  with c.data.unlocked():
    c.data.dtype = 'uint32'
  return c
"""


def ours(name: str, models: Any, folder: pathlib.Path) -> dict[str, Any]:
  recipe, overrides, _, batch = models[name]
  cold = train(recipe, overrides, batch, folder)
  warm = train(recipe, overrides, batch, folder)
  lines = [line for line in warm['lines'] if 'tokens_per_second' in line][2:]
  found = {'tokens_per_second': statistics.median(line['tokens_per_second'] for line in lines)}
  if 'mfu' in lines[0]:
    found['mfu'] = statistics.median(line['mfu'] for line in lines)
  found['data_wait'] = statistics.median(line['data_wait_fraction'] for line in lines)
  found['compile_seconds'] = [cold['compile_seconds'], warm['compile_seconds']]
  found['peak_memory_bytes'] = warm['peak_memory_bytes']
  return found | {'parameters': warm['parameters'], 'loss': lines[-1]['loss']}


def theirs(sizes: tuple[int, ...], batch: int) -> dict[str, Any]:
  """nanoGPT's step on the same shape."""
  import torch
  import torch_models

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = torch.compile(torch_models.GPT(*sizes).to(device))
  optimizer = torch.optim.AdamW(model.parameters(), 6e-4, (0.9, 0.95), fused=True)
  x = torch.randint(sizes[0], (batch, sizes[1]), device=device)
  took = []
  for step in range(STEPS):
    began = time.perf_counter()
    with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
      out = model(x)
      loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), x.flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if device == 'cuda':
      torch.cuda.synchronize()
    if step >= STEPS // 4:
      took.append(time.perf_counter() - began)
  return {'tokens_per_second': x.numel() / statistics.median(took), 'loss': float(loss.detach())}


def main() -> None:
  small = '--small' in sys.argv
  names = [a for a in sys.argv[1:] if not a.startswith('--')]
  models = SMALL if small else MODELS
  device = jax.devices()[0]
  chip = hardware.chip(device)
  results: dict[str, Any] = {'device': device.device_kind, 'jax': jax.__version__}
  results['date'] = datetime.date.today().isoformat()
  widths = (64,) if small else (768, 2048, 8192)
  results['matmul'] = {str(w): matmul_rate(w, 128 if small else 16384) for w in widths}
  impl, dtype = ('xla', jnp.float32) if small else ('cudnn', jnp.bfloat16)
  lengths = 128 if small else 4096
  results['attention'] = {str(h): attention_rate(h, lengths, impl, dtype) for h in (64, 128)}
  ceiling = max(results['matmul'].values())
  for name in names or models:
    sizes, batch = models[name][2:]
    with tempfile.TemporaryDirectory() as place:
      folder = pathlib.Path(place)
      vocab = 256 if small else 50257
      tokens = np.random.default_rng(0).integers(0, vocab, 20_000_000 if not small else 40_000)
      tokens.astype(np.uint32).tofile(folder / 'tokens.bin')
      found = {'bmx': ours(name, models, folder)}
    if sizes and importlib.util.find_spec('torch'):
      found['torch'] = theirs(sizes, batch)
      found['bmx/torch'] = found['bmx']['tokens_per_second'] / found['torch']['tokens_per_second']
    if chip and 'mfu' in found['bmx']:
      found['of_measured_matmul'] = found['bmx']['mfu'] * chip.flops / ceiling
    results[name] = found
  text = json.dumps(results, indent=1)
  sys.stdout.write(text + '\n')
  if not small:
    pathlib.Path(__file__).with_suffix('.json').write_text(text + '\n')


if __name__ == '__main__':
  main()
