"""Memory traffic of training steps compiled for an H200, on a machine without a GPU.

    python experiments/bench/traffic.py [WORD ...]      # cases whose name has one of the words

Each case is a recipe with other words, compiled in its own process by the GPU's compiler (the
extra `aot`, and the wheels of cuDNN: nvidia-cudnn-cu12 and those it needs). `bmx.plan.traffic` adds
up the bytes that its kernels read and write, by group; milliseconds are those bytes over 4.8 TB/s,
a lower bound. For products and fused attention it is not the time: they compute. `rest_ms` is that
of everything else. Writes traffic.json here, a case at a time; a case that is there is not compiled
again.
"""

import datetime
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
BANDWIDTH = 4.8e12  # bytes/s of an H200, as its vendor states it
GPT2 = ['task.model.attention=cudnn', 'grad.steps=1', 'batch_size=32']
LLAMA = ['task.model.attention=cudnn', 'grad.steps=1', 'batch_size=4', 'length=4096']
# name -> (recipe, overrides); with ours first, one word changed in each of the others.
CASES: dict[str, tuple[str, list[str]]] = {
  'gpt2_124m': ('gpt2_124m', GPT2),
  'gpt2_124m, tanh written': ('gpt2_124m', [*GPT2, 'task.model.activation=tanh_gelu']),
  'gpt2_124m, logits in bfloat16': ('gpt2_124m', GPT2),
  'gpt2_124m, scan=False': ('gpt2_124m', [*GPT2, 'task.model.scan=False']),
  'gpt2_124m, remat=none': ('gpt2_124m', [*GPT2, 'task.model.remat=none']),
  'gpt2_124m, remat=full': ('gpt2_124m', [*GPT2, 'task.model.remat=full']),
  'gpt2_124m, chunks=4': ('gpt2_124m', [*GPT2, 'task.chunks=4']),
  'gpt2_124m, attention=xla': ('gpt2_124m', [*GPT2, 'task.model.attention=xla']),
  'llama_1b': ('llama_1b', LLAMA),
  'llama_1b, scan=False': ('llama_1b', [*LLAMA, 'task.model.scan=False']),
}


def measure(case: str) -> dict[str, Any]:
  """Compiles one case in this process -> its line of the table."""
  from bmx.plan import topology as topologies

  topologies.prepare()
  from bmx import config as recipes
  from bmx import experiment
  from bmx.plan import traffic
  from bmx.plan.compile import GIB, compile_step

  change(case)
  recipe, words = CASES[case]
  devices = topologies.devices('h200:1')
  config, name = recipes.load(str(ROOT / f'configs/{recipe}.py'), ['mesh.data=1', *words])
  x = experiment.build(config, name, devices, read=False)
  began = time.process_time()
  made = compile_step(x)
  seconds = time.process_time() - began
  kernels = traffic.kernels(made.program.as_text())
  groups = traffic.by_group(kernels)
  ms = {name: round(moved / BANDWIDTH * 1e3, 2) for name, (_, moved) in groups.items()}
  return {
    'tokens': int(x.data.batch_size * config.length),
    'kernels': sum(k.times for k in kernels),
    'gb': {name: round(moved / 1e9, 2) for name, (_, moved) in groups.items()},
    'ms': ms,
    'rest_ms': round(sum(v for k, v in ms.items() if k not in ('products', 'attention')), 2),
    'peak_gib': round(made.peak / GIB, 2),
    'compile_cpu_seconds': round(seconds, 1),
  }


def change(case: str) -> None:
  """Puts in place what a case tries and bmx does not do."""
  import inspect

  import jax

  from bmx.models import layers
  from bmx.ops import losses

  if 'tanh written' in case:
    layers.ACTIVATIONS['tanh_gelu'] = lambda x: jax.nn.gelu(x, approximate=True)
  if 'logits in bfloat16' in case:
    source = inspect.getsource(losses._chunk)
    rounded = source.replace(
      'table, preferred_element_type=jnp.float32)', 'table).astype(jnp.float32)'
    )
    if rounded == source:
      raise SystemExit('losses._chunk has changed: this case no longer rounds its logits')
    exec(rounded, losses.__dict__)


def main() -> None:
  """Compiles the chosen cases and updates traffic.json."""
  if sys.argv[1:2] == ['--one']:
    sys.stdout.write(json.dumps(measure(sys.argv[2])) + '\n')
    return
  chosen = [c for c in CASES if not sys.argv[1:] or any(word in c for word in sys.argv[1:])]
  path = HERE / 'traffic.json'
  record = json.loads(path.read_text()) if path.exists() else {}
  for case in (c for c in chosen if c not in record):
    command = [sys.executable, __file__, '--one', case]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
      sys.exit(f'{case}:\n{result.stderr}')
    found = json.loads(result.stdout.splitlines()[-1])
    record[case] = {'date': datetime.date.today().isoformat()} | found
    sys.stdout.write(f'{case}: {record[case]}\n')
    sys.stdout.flush()
    path.write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  main()
