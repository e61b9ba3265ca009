"""Feature extractors of Hugging Face: how audio becomes the inputs of a model.

Source: feature_extraction_whisper.py of transformers 5.24, and preprocessor_config.json of
openai/whisper-tiny.
"""

import logging
from collections.abc import Mapping
from typing import Any

from bmx.adapt.tensors import read_json
from bmx.core.errors import InputError
from bmx.core.types import Metadata
from bmx.data.audio.features import WHISPER_SECONDS, whisper
from bmx.runtime.storage import Place, place
from bmx.train import datafile

log = logging.getLogger('bmx')
FILES = ('preprocessor_config.json', 'processor_config.json')  # of transformers 4 and of 5
KEY = 'features'  # of metadata: how waves become features
KIND = 'WhisperFeatureExtractor'


def content(metadata: Metadata) -> dict[str, Any] | None:
  """Returns the preprocessor_config.json of data with Whisper's features; None for others."""
  own = _of_data(metadata)
  if own['kind'] != 'whisper' or 'seconds' not in own:
    return None
  samples = round(own['seconds'] * own['rate'])
  return {
    'feature_extractor_type': KIND, 'feature_size': own['mels'], 'sampling_rate': own['rate'],
    'hop_length': own['hop'], 'n_fft': own['window'], 'chunk_length': round(own['seconds']),
    'n_samples': samples, 'nb_max_frames': samples // own['hop'], 'padding_side': 'right',
    'padding_value': 0.0, 'dither': 0.0, 'return_attention_mask': False,
  }  # fmt: skip


def check(folder: str, run: bool, metadata: Metadata) -> list[str]:
  """Warns where audio of the data becomes other inputs than those that weights were trained on.

  Args:
    folder: with the weights.
    run: the folder is a run of bmx, else a Hugging Face directory.
    metadata: of the data.

  Returns:
    A line for each difference; none where the folder does not say it.

  Raises:
    InputError: a feature extractor that bmx does not reproduce.
  """
  own, given = _of_data(metadata), _of_run(folder) if run else read(folder)
  if given is None:
    return []
  lines = [f'{k}={v} there, {own.get(k, "other")} in the data' for k, v in given.items()
           if own.get(k) != v]  # fmt: skip
  if lines:
    log.warning(
      'init.path=%s: its audio is prepared differently: %s; set the words of --config.data to '
      'those of the folder, unless the difference is meant', folder, '; '.join(lines),
    )  # fmt: skip
  return lines


def read(folder: str) -> dict[str, Any] | None:
  """Reads the features of a Hugging Face folder: kind, rate, mels, window, hop (samples), seconds.

  Returns None where the folder has no such file.

  Raises:
    InputError: another feature extractor than Whisper's, values that bmx does not reproduce.
  """
  path = next((place(folder) / f for f in FILES if (place(folder) / f).is_file()), None)
  if path is None:
    return None
  config = read_json(path)
  config = config.get('feature_extractor', config)
  kind = config.get('feature_extractor_type')
  if kind != KIND:
    raise InputError(f'{path}: feature_extractor_type={kind!r}: expected {KIND}')
  numbers = ('feature_size', 80), ('sampling_rate', 16000), ('hop_length', 160), ('n_fft', 400)
  found = {k: config.get(k, default) for k, default in (*numbers, ('chunk_length', 30))}
  usual = whisper()
  expected = {'sampling_rate': usual.rate, 'hop_length': usual.stride, 'n_fft': usual.samples}
  expected |= {'chunk_length': WHISPER_SECONDS} | dict.fromkeys(('dither', 'padding_value'), 0)
  for key, value in (expected | {'do_normalize': False}).items():
    if config.get(key, value) != value:
      raise InputError(f'{path}: {key}={config[key]!r}: supported is {value!r}')
  if type(found['feature_size']) is not int or found['feature_size'] < 1:
    raise InputError(f'{path}: feature_size={found["feature_size"]!r}: expected int, at least 1')
  return {
    'kind': 'whisper', 'rate': found['sampling_rate'], 'mels': found['feature_size'],
    'window': found['n_fft'], 'hop': found['hop_length'], 'seconds': float(found['chunk_length']),
  }  # fmt: skip


def _of_run(folder: str) -> dict[str, Any] | None:
  stored = datafile.read(place(folder))
  return _of_data(stored.metadata) if stored and KEY in stored.metadata else None


def _of_data(metadata: Metadata) -> dict[str, Any]:
  of: Mapping[str, Any] = metadata[KEY]
  found = {k: of[k] for k in ('kind', 'rate', 'mels')}
  found |= {'window': round(of['window'] * of['rate']), 'hop': round(of['hop'] * of['rate'])}
  return found | ({'seconds': of['samples'] / of['rate']} if of['fill'] else {})


def is_whisper(folder: Place) -> bool:
  """Returns whether a folder of Hugging Face holds a Whisper."""
  path = folder / 'config.json'
  try:
    return path.is_file() and read_json(path).get('model_type') == 'whisper'
  except InputError:  # a damaged run
    return False
