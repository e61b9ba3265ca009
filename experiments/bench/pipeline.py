"""What the input pipelines deliver, in examples a second, beside a PyTorch DataLoader.

    BMX_TEST_DATA=DIR python experiments/bench/pipeline.py      # extra `reference`

MNIST held on the device (its order is all that travels), the same fed from the host, CIFAR-10 with
crops and flips, text packed into rows of 128 tokens: batches of 128, placed on the device, as the
loop gets them, by bmx's own threads. PyTorch reads the same images one by one, as every tutorial
has it, in the process of the loop, which is its default. Writes pipeline.json here: medians of
windows, read in turn.
"""

import datetime
import itertools
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch
import torch_models

from bmx.data.arrays import ArrayData
from bmx.data.batches import Batches
from bmx.data.text.packing import packed
from bmx.data.tfds import tfds
from bmx.parallel import Layout, jit, make_mesh
from bmx.train.feed import Feed

BATCH, STEPS, WINDOWS = 128, 200, 7
DEPTH = 10  # steps a dispatch
LAYOUT = Layout(make_mesh({'data': 1}, jax.devices()[:1]))


class FromHost(ArrayData):
  """Arrays that are fed from the host although they are small."""

  def resident(self) -> None:
    return None


def window(examples: Any) -> Callable[[], None]:
  """Reads STEPS batches as the loop does, each to the end of `take`."""
  feed = Feed(Batches(examples, BATCH), LAYOUT, DEPTH)
  constants, take = feed.constants(), jit(feed.take, LAYOUT)
  starts = itertools.count(0, STEPS)

  def run() -> None:
    start = next(starts)
    groups = [(s, DEPTH) for s in range(start, start + STEPS, DEPTH)]
    for group, _ in feed.groups(groups):
      for i in range(DEPTH):
        batch = take(constants, group, np.int32(i))
    jax.block_until_ready(batch)

  return run


def torch_window(loader: Any) -> Callable[[], None]:
  """Returns a function that reads STEPS batches of a DataLoader."""

  def forever() -> Iterator[Any]:
    while True:
      yield from loader

  batches = forever()
  return lambda: [next(batches) for _ in range(STEPS)] and None


def pipelines(folder: str) -> dict[str, dict[str, Callable[[], None]]]:
  """Returns the windows of each pipeline: name -> {side: window}."""
  place = f'{folder}/tfds'
  mnist = tfds('mnist', data_dir=place, mean=(0.1307,), std=(0.3081,))
  cifar = tfds('cifar10_jpeg', data_dir=place, crop=4, flip=True)
  assert isinstance(mnist, ArrayData) and isinstance(cifar, ArrayData)
  host = FromHost(mnist.arrays, mnist.metadata, preprocess=mnist.preprocess)
  text = packed(128, (f'{folder}/wikitext2/valid.txt',), split='all')
  digits = torch_models.mnist_loader(mnist.arrays['image'], mnist.arrays['label'], BATCH)
  pictures = torch_models.cifar_loader(cifar.arrays['image'], cifar.arrays['label'], BATCH)
  return {
    'MNIST, held on the device': {'bmx': window(mnist), 'torch': torch_window(digits)},
    'MNIST, fed from the host': {'bmx': window(host), 'torch': torch_window(digits)},
    'CIFAR-10, crops and flips': {'bmx': window(cifar), 'torch': torch_window(pictures)},
    'text packed into rows of 128': {'bmx': window(text)},
  }


def measure(runs: dict[str, Callable[[], None]]) -> dict[str, Any]:
  """Times windows in turn -> examples a second."""
  took: dict[str, list[float]] = {kind: [] for kind in runs}
  for number in range(WINDOWS + 1):
    for kind, run in runs.items():
      began = time.perf_counter()
      run()
      if number:
        took[kind].append(time.perf_counter() - began)
  found: dict[str, Any] = {
    kind: round(STEPS * BATCH / statistics.median(some)) for kind, some in took.items()
  }
  if 'torch' in took:
    ratios = [b / a for a, b in zip(took['bmx'], took['torch'], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    found['bmx/torch'] = [round(median, 1), round(low, 1), round(high, 1)]
  return found


def main() -> None:
  """Measures all pipelines and writes pipeline.json."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  results: dict[str, Any] = {
    name: measure(runs) for name, runs in pipelines(os.environ['BMX_TEST_DATA']).items()
  }
  results |= {
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU',
    'versions': {'jax': jax.__version__, 'torch': torch.__version__},
  }
  text = json.dumps(results, indent=1)
  pathlib.Path(__file__).with_suffix('.json').write_text(text + '\n')
  sys.stdout.write(text + '\n')


if __name__ == '__main__':
  main()
