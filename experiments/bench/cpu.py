"""Training on a CPU beside PyTorch: the same model, batch and optimizer, windows of each in turn.

    taskset -c 0 python experiments/bench/cpu.py cpu [NAME ...]       # CPU time, one pinned core
    python experiments/bench/cpu.py wall [NAME ...]                   # wall time, all cores
    BMX_TEST_DATA=DIR python experiments/bench/cpu.py epoch           # MNIST, DataLoader and all

float32, AdamW, prepared batches. PyTorch is eager, and compiled (torch.compile with its defaults),
its AdamW fused; bmx runs the dispatch of its loop: guard, metrics and schedule included, several
steps a call. Extra `reference`. Writes cpu.json here: the median over windows of the ratio of
neighboring windows, bmx over PyTorch, and the middle half of the ratios; below 1 bmx is faster.
"""

import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
import torch_models

from bmx.core.hardware import keep_freed_memory
from bmx.data.arrays import ArrayData
from bmx.data.batches import Batches
from bmx.data.text.windows import TokenData
from bmx.models.cnn import CNN
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.optim.optimizers import adamw
from bmx.optim.schedules import constant
from bmx.parallel import Layout, jit, make_mesh
from bmx.tasks.classification import Classification
from bmx.tasks.language import CausalLM
from bmx.train.feed import Feed
from bmx.train.gradients import Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_dispatch, make_train_step

Window = Callable[[], None]
WINDOWS = 21  # 9 where a window takes seconds
LAYOUT = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
RANDOM = np.random.default_rng(0)


def images(batch: int, shape: tuple[int, ...]) -> Batches:
  """Returns random images with 10 classes."""
  n = 16 * batch
  arrays = {'image': RANDOM.normal(size=(n, *shape)).astype(np.float32)}
  arrays['label'] = RANDOM.integers(0, 10, n).astype(np.int32)
  return Batches(ArrayData(arrays, {'num_classes': 10}), batch)


def tokens(batch: int, length: int) -> Batches:
  """Returns random bytes in windows."""
  ids = RANDOM.integers(0, 256, 200_000).astype(np.uint8)
  return Batches(TokenData(ids, 256, length), batch)


def gpt(width: int, depth: int, heads: int, length: int) -> GPT:
  """Returns a GPT of bytes without biases."""
  sizes = {'width': width, 'depth': depth, 'heads': heads}
  return GPT(vocab_size=256, max_seq_len=length, bias=False, **sizes)


# name -> (our task, its data, their model, steps a window: one dispatch, at most as
# `choose_dispatch` has it)
MODELS = {
  'MLP 784-512-512-10, batch 128': (
    lambda: Classification(MLP(10, (512, 512))),
    lambda: images(128, (28, 28, 1)),
    lambda: torch_models.mlp((784, 512, 512, 10)),
    20,
  ),
  'LeNet-size CNN, batch 128': (
    lambda: Classification(CNN(10, (32, 64), 5, (128,))),
    lambda: images(128, (28, 28, 1)),
    lambda: torch_models.cnn(),
    1,
  ),
  'GPT 0.8 M: L4 d128 T64 B12': (
    lambda: CausalLM(gpt(128, 4, 4, 64)),
    lambda: tokens(12, 64),
    lambda: torch_models.GPT(256, 64, 128, 4, 4),
    8,
  ),
  'GPT 10.6 M: L6 d384 T256 B8': (
    lambda: CausalLM(gpt(384, 6, 6, 256)),
    lambda: tokens(8, 256),
    lambda: torch_models.GPT(256, 256, 384, 6, 6),
    4,
  ),
  'encoder layer d768 T128 B8': (
    lambda: CausalLM(gpt(768, 1, 12, 128)),
    lambda: tokens(8, 128),
    lambda: torch_models.GPT(256, 128, 768, 1, 12),
    4,
  ),
}


def ours(task, data, count: int, steps: int = 0) -> Window:
  """Returns a window of bmx: the dispatch of its loop.

  It runs `count` steps on prepared data; or `steps` in calls of `count`, on data from the feed.
  """
  tx = adamw(constant(1e-3), b2=0.99, weight_decay=0.1)
  plan = plan_state(task, tx, data.abstract, LAYOUT)
  feed = Feed(data, LAYOUT, count)
  dispatch = make_dispatch(make_train_step(Gradient(task), tx), feed.take, 10, count)
  state, constants = plan.create(), feed.constants()
  group, _ = next(feed.groups([(0, count)]))
  program = jit(dispatch, LAYOUT, donate_argnums=(0,), out_shardings=(plan.shardings, None, None))
  compiled = program.lower(state, constants, group, np.int32(count)).compile()

  def window() -> None:
    nonlocal state
    state, *rest = compiled(state, constants, group, np.int32(count))
    jax.block_until_ready(rest)

  def fed() -> None:
    nonlocal state
    starts = range(0, steps, count)
    groups = [(start, min(count, steps - start)) for start in starts]
    for (_, n), (made, _) in zip(groups, feed.groups(groups), strict=True):
      state, *rest = compiled(state, constants, made, np.int32(n))
    jax.block_until_ready(rest)

  return fed if steps else window


def theirs(model, data, count: int, compiled: bool) -> Window:
  """Returns a window of PyTorch: `count` steps on one prepared batch."""
  rows = data.rows(data.indices(0)[0], np.arange(data.batch_size))
  x, y = (torch.tensor(rows[k]) for k in (('image', 'label') if 'image' in rows else
                                          ('tokens', 'targets')))  # fmt: skip
  x = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x.long()
  optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.99), weight_decay=0.1, fused=True)
  run = torch.compile(model) if compiled else model

  def window() -> None:
    for _ in range(count):
      out = run(x)
      loss = torch.nn.functional.cross_entropy(out.flatten(0, -2), y.long().flatten())
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      loss.item()

  return window


def compare(name: str, clock: Callable[[], float], windows: int) -> dict:
  """Times windows of all in turn -> ratios of bmx to PyTorch."""
  keep_freed_memory()  # as a run does; PyTorch's blocks are kept too
  task, data, model, count = MODELS[name]
  runs = {
    'bmx': ours(task(), data(), count),
    'eager': theirs(model(), data(), count, False),
    'compiled': theirs(model(), data(), count, True),
  }
  took: dict[str, list[float]] = {kind: [] for kind in runs}
  for number in range(windows + 2):
    for kind, run in runs.items():
      began = clock()
      run()
      if number >= 2:
        took[kind].append((clock() - began) / count)
  result = {'milliseconds': {k: round(1e3 * statistics.median(v), 3) for k, v in took.items()}}
  for kind in ('eager', 'compiled'):
    pairs = [a / b for a, b in zip(took['bmx'], took[kind], strict=True)]
    low, median, high = statistics.quantiles(pairs, n=4)
    result[f'bmx/{kind}'] = [round(median, 3), round(low, 3), round(high, 3)]
  return result


def epoch() -> dict:
  """Times one epoch of MNIST by the published MLP 784-256-128-10 with batch 64.

  Wall time from start to end, data included, compilation apart.
  """
  from bmx.data.tfds import tfds

  folder = os.environ['BMX_TEST_DATA'] + '/tfds'
  examples = tfds('mnist', data_dir=folder)
  data = Batches(examples, 64)
  run_ours = ours(Classification(MLP(10, (256, 128))), data, 50, steps=-(-data.size // 64))
  loader = torch_models.mnist_loader(examples.arrays['image'], examples.arrays['label'], 64)
  run = torch_models.epoch(torch_models.mlp((784, 256, 128, 10)), loader)
  took: dict[str, list[float]] = {'bmx': [], 'torch': []}
  for _ in range(4):
    began = time.perf_counter()
    run_ours()
    took['bmx'].append(time.perf_counter() - began)
    began = time.perf_counter()
    run()
    took['torch'].append(time.perf_counter() - began)
  pairs = [a / b for a, b in zip(took['bmx'][1:], took['torch'][1:], strict=True)]
  seconds = {k: round(statistics.median(v[1:]), 2) for k, v in took.items()}
  return {'seconds': seconds, 'bmx/torch': [round(v, 3) for v in sorted(pairs)]}


def processor() -> str:
  """Returns the name of the CPU and its widest vectors, which decide most ratios."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    return platform.processor()
  name = re.search(r'model name\s*: (.*)', text)
  wide = next((w for w in ('avx512f', 'avx2') if w in text), 'neither AVX2 nor AVX-512')
  return f'{name[1] if name else platform.machine()}, {wide}'


def main() -> None:
  """Runs the chosen comparisons and updates cpu.json."""
  kind, names = sys.argv[1], sys.argv[2:]
  path = pathlib.Path(__file__).with_suffix('.json')
  every = json.loads(path.read_text()) if path.exists() else {}
  results = every.setdefault(processor(), {})
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  clock = {'cpu': time.process_time, 'wall': time.perf_counter}.get(kind)
  about = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU',
    'versions': {'jax': jax.__version__, 'torch': torch.__version__},
  }
  for name in names or (MODELS if clock else ['MNIST epoch, 784-256-128-10, batch 64']):
    windows = 9 if name.startswith(('GPT 10', 'encoder')) else WINDOWS
    found = compare(name, clock, windows) if clock else epoch()
    results.setdefault(kind, {})[name] = found | about
    path.write_text(json.dumps(every, indent=1) + '\n')
    sys.stdout.write(f'{kind} {name}: {found}\n')


if __name__ == '__main__':
  main()
