"""Ranges of numbers in a config."""

import math
from collections.abc import Mapping
from typing import Any

from bmx.config import base
from bmx.config.words import IMAGE_WORDS
from bmx.core.errors import InputError, did_you_mean
from bmx.core.images import ImageOptions
from bmx.core.types import Task
from bmx.serve.images import check_options, image_task

# leaf -> (least, bound): least <= value < bound
RANGES = {
  'seed': (0, 2**32),
  'batch_size': (-math.inf, 2**31),  # its least value depends on the mesh
  'steps_per_call': (0, math.inf),
  'show_parameters': (0, math.inf),
  'ema': (0, 1),
  'guard.patience': (0, math.inf),
  'guard.spike': (0, math.inf),
  'profile.start': (1, math.inf),
  'profile.steps': (0, math.inf),
  'watchdog.seconds': (0, math.inf),
  'keep.last': (1, math.inf),
}

DTYPES = ('bfloat16', 'float16', 'float32')
SHORT_DTYPES = {
  'bf16': 'bfloat16', 'fp16': 'float16', 'f16': 'float16', 'half': 'float16', 'fp32': 'float32',
  'f32': 'float32',
}  # fmt: skip


def check_ranges(c: Mapping[str, Any]) -> None:
  """Raises InputError naming the first number that is not finite, or is outside its range.

  `dtype` is one of DTYPES.
  """
  _check_finite(c, '')
  if c['dtype'] not in DTYPES:
    given = str(c['dtype'])
    near = did_you_mean(SHORT_DTYPES.get(given, given), DTYPES)
    raise InputError(f'--config.dtype={given}: expected one of {", ".join(DTYPES)}{near}')
  for name, (least, bound) in RANGES.items():
    word, _, leaf = name.partition('.')
    value = c[word][leaf] if leaf else c[word]
    if not least <= value < bound:
      limit = '' if bound == math.inf else f' and below {bound}'
      raise InputError(f'--config.{name}={value}: expected at least {least}{limit}')
  for word, value in c['every'].items():
    if value == -1:
      raise InputError(
        f'--config.every.{word}=-1: expected steps, at least 0, or so many times as -20'
      )
  spike = c['guard']['spike']
  if 0 < spike <= 1:
    raise InputError(
      f'--config.guard.spike={spike}: expected 0, or above 1: a multiple of the mean gradient norm'
    )


def check_generate(words: Mapping[str, Any], task: Task) -> None:
  """Raises InputError naming a word of `generate` that is set although the task does not read it.

  A task that generates images reads no words of texts; other tasks read no words of images.

  Args:
    words: the config word `generate`.
    task: of the experiment.
  """
  images = image_task(task)
  name, made = type(task).__name__, 'no texts' if images else 'no images'
  if images:
    check_options(images, ImageOptions(**{k: words[k] for k in IMAGE_WORDS}))
  for word, default in base().generate.items():
    if (word in IMAGE_WORDS) != bool(images) and words[word] != default:
      raise InputError(
        f'generate.{word}={words[word]!r}: expected {default!r}, since {name} generates {made}'
      )


def _check_finite(value: Any, name: str) -> None:
  if isinstance(value, Mapping):
    for key, inner in value.items():
      _check_finite(inner, f'{name}.{key}')
  elif isinstance(value, tuple | list):
    for inner in value:
      _check_finite(inner, name)
  elif isinstance(value, float) and not math.isfinite(value):
    raise InputError(f'--config{name}={value}: expected a finite number')
