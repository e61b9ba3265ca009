"""The check of a package: its loader, in a process without bmx, against the outputs of the run."""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import Stop
from bmx.core.types import HostBatch

# Of the largest number of an output, by the dtype of the computation: adapters of a run round what
# merged weights do not.
TOLERANCES = {'float32': 1e-5, 'bfloat16': 5e-2, 'float16': 1e-2}
LONGEST = 64  # tokens of a generated example
MASKED = 1e20  # numbers of this size mean "impossible"; they must be equal
SECONDS = 1200.0


def generated(
  inputs: Mapping[str, Any], most: Mapping[str, int], vocab_size: int, seed: int = 0
) -> list[HostBatch]:
  """Returns batches of random inputs, of other sizes each: [3, T] and [2, T / 2].

  Args:
    inputs: of a signature.
    most: of a signature.
    vocab_size: token ids are below it.
    seed: of the draws.
  """
  random = np.random.default_rng(seed)

  def draw(name: str, shape: list[int], dtype: np.dtype) -> np.ndarray:
    length = shape[1] if len(shape) > 1 else 1
    if name == 'positions':
      return np.broadcast_to(np.arange(length), shape).astype(dtype)
    if name in ('segment_ids', 'context'):  # 0 in the last part of a row: padding, the question
      return np.broadcast_to(np.arange(length) < max(1, length - 2), shape).astype(dtype)
    if name == 'types':
      return np.broadcast_to(np.arange(length) >= length // 2, shape).astype(dtype)
    if dtype.kind == 'f':
      return random.standard_normal(shape).astype(dtype)
    return random.integers(0, vocab_size or 2, shape).astype(dtype)

  batches = []
  for part in (1, 2):
    sizes: dict[Any, Any] = {k: max(1, min(v, LONGEST) // part) for k, v in most.items()}
    sizes['b'] = 4 - part
    batches.append({
      k: draw(k, [sizes.get(n, n) for n in v['shape']], np.dtype(v['dtype']))
      for k, v in inputs.items()
    })  # fmt: skip
  return batches


def loaded(
  folder: pathlib.Path, batches: Sequence[HostBatch], kind: str = 'loader'
) -> list[HostBatch]:
  """Returns the outputs of an export, called in a process without bmx and flax.

  Args:
    folder: a package, or a Hugging Face folder.
    batches: inputs.
    kind: 'loader' of a package, 'transformers' of the other.

  Raises:
    Stop: the process failed, with its last line; or it took longer than SECONDS.
  """
  script = pathlib.Path(__file__).with_name('isolated.py')
  with tempfile.TemporaryDirectory() as place:
    given, made = pathlib.Path(place) / 'inputs.npz', pathlib.Path(place) / 'outputs.npz'
    arrays: dict[str, Any] = {f'{i}/{k}': v for i, b in enumerate(batches) for k, v in b.items()}
    np.savez(given, **arrays)
    command = [sys.executable, '-I', script, kind, folder.resolve(), given, made]
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    try:
      done = subprocess.run(
        [*map(str, command)], cwd=place, env=env, capture_output=True, text=True,
        timeout=SECONDS, check=False,
      )  # fmt: skip
    except subprocess.TimeoutExpired:
      raise Stop(f'{folder}: {kind} has not ended within {SECONDS:g} s in a process without bmx; '
                 'nothing is written') from None  # fmt: skip
    if done.returncode:
      last = (done.stderr.strip() or f'exit code {done.returncode}').splitlines()[-1]
      raise Stop(f'{folder}: {kind} failed in a process without bmx: {last}')
    with np.load(made) as file:
      found = {k: file[k] for k in file.files}
  return [
    {k.partition('/')[2]: v for k, v in found.items() if k.startswith(f'{i}/')}
    for i in range(len(batches))
  ]


def largest_error(given: Sequence[HostBatch], expected: Sequence[HostBatch]) -> float:
  """Returns the largest difference, relative to the largest number of its output.

  Integers (classes, tokens) and masked scores must be equal: their difference counts as 1.
  """
  errors = [0.0]
  for ours, theirs in zip(given, expected, strict=True):
    for name in ours.keys() | theirs.keys():
      a, b = ours.get(name), theirs.get(name)
      errors.append(1.0 if a is None or b is None or a.shape != b.shape else _error(a, b))
  return max(errors)


def _error(a: np.ndarray, b: np.ndarray) -> float:
  if b.dtype.kind != 'f':
    return float((a != b).any())
  masked = np.abs(b) > MASKED
  if (a[masked] != b[masked]).any() or not np.isfinite(a[~masked]).all():
    return 1.0
  a, b = a[~masked].astype(np.float64), b[~masked].astype(np.float64)
  return float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30))
