"""preprocessor_config.json of Hugging Face: how images and audio become the inputs of a model.

Source: image_processing_vit.py, image_processing_convnext.py, image_processing_clip.py and
image_processing_siglip.py of transformers 5.24, and the published files of microsoft/resnet-50 and
google/vit-base-patch16-224.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bmx.adapt import audio
from bmx.adapt.tensors import read_json
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.types import Metadata
from bmx.data.images.pictures import RESAMPLE
from bmx.runtime.storage import Place, place
from bmx.train import datafile

log = logging.getLogger('bmx')
NAME = 'preprocessor_config.json'
KEY = 'normalization'  # of metadata: scale, mean and std of the data's `Normalise`
RESIZE = 'resize'  # of metadata, where data say how files are resized: short (0: no crop), resample
CROPPING = 'crop', 'short'  # what other data do not say
BILINEAR = 2  # Pillow's number


def content(metadata: Metadata, spec: Mapping[str, Spec]) -> dict[str, Any] | None:
  """Returns the preprocessor_config.json of data; None without images or Whisper's features.

  The processor resizes to the size of the images, divides by the scale and normalizes. Crops,
  which other data may need, are part of it where the data say how files are resized (CLIP).

  Args:
    metadata: of the data.
    spec: of the data.
  """
  if audio.KEY in metadata:
    return audio.content(metadata)
  if KEY not in metadata or 'image' not in spec:
    return None
  rows, columns, channels = spec['image'].shape
  of = metadata[KEY]
  kind: dict[str, Any] = {
    'image_processor_type': 'ViTImageProcessor',
    'size': {'height': rows, 'width': columns},
    'resample': BILINEAR,
  }
  if RESIZE in metadata and not metadata[RESIZE]['short']:
    kind |= {
      'image_processor_type': 'SiglipImageProcessor',
      'resample': RESAMPLE[metadata[RESIZE]['resample']],
      'do_convert_rgb': True,
    }
  elif RESIZE in metadata:
    kind = {
      'image_processor_type': 'CLIPImageProcessor',
      'size': {'shortest_edge': metadata[RESIZE]['short']},
      'resample': RESAMPLE[metadata[RESIZE]['resample']],
      'do_center_crop': True,
      'crop_size': {'height': rows, 'width': columns},
      'do_convert_rgb': True,
    }
  return kind | {
    'do_resize': True,
    'do_rescale': True,
    'rescale_factor': 1 / of['scale'],
    'do_normalize': True,
    'image_mean': _every(of['mean'], channels),
    'image_std': _every(of['std'], channels),
  }


def check(folder: str, run: bool, metadata: Metadata, spec: Mapping[str, Spec]) -> list[str]:
  """Warns where images of the data become other inputs than those that weights were trained on.

  Args:
    folder: with the weights.
    run: the folder is a run of bmx, else a Hugging Face directory.
    metadata: of the data.
    spec: of the data.

  Returns:
    A line for each difference; none where either side is not known.

  Raises:
    InputError: a preprocessor_config.json with malformed values, or of audio with features that bmx
      does not compute.
  """
  if audio.KEY in metadata:
    return audio.check(folder, run, metadata)
  own = content(metadata, spec)
  given = (_of_run if run else _of_folder)(place(folder)) if own else None
  if not own or not given:
    return []
  expected = _words(own)
  if RESIZE not in metadata:
    expected = {k: v for k, v in expected.items() if k not in (*CROPPING, 'resample')}
  lines = [
    f'{k}={_brief(given[k])} there, {_brief(v)} in the data'
    for k, v in expected.items()
    if k in given and not _equal(given[k], v)
  ]
  if lines:
    log.warning(
      'init.path=%s: its images are prepared differently: %s; set the words of --config.data to '
      'those of the folder, unless the difference is meant', folder, '; '.join(lines),
    )  # fmt: skip
  return lines


def _of_run(folder: Place) -> dict[str, Any] | None:
  stored = datafile.read(folder)
  own = content(stored.metadata, stored.spec) if stored else None
  return _words(own) if own else None


def _of_folder(folder: Place) -> dict[str, Any] | None:
  path = folder / NAME
  return _words(read_json(path), str(path)) if path.is_file() else None


def _words(config: Mapping[str, Any], path: str = NAME) -> dict[str, Any]:
  """Returns scale, mean, std and size of a preprocessor_config.json, as the data's words."""
  scaled, normalized = config.get('do_rescale', True), config.get('do_normalize', True)
  try:
    found: dict[str, Any] = {
      'scale': 1 / float(config.get('rescale_factor', 1 / 255)) if scaled else 1.0,
      'mean': [float(x) for x in config.get('image_mean') or ()] if normalized else [0.0],
      'std': [float(x) for x in config.get('image_std') or ()] if normalized else [1.0],
    }
  except (TypeError, ValueError, ZeroDivisionError) as error:
    names = 'rescale_factor, image_mean, image_std'
    raise InputError(f'{path}: expected numbers in {names}: {error}') from None
  cropped = config.get('do_center_crop', 'crop_size' in config and 'crop_pct' not in config)
  size = config.get('crop_size') if cropped else config.get('size')
  found['size'] = _sides(size)
  found['short'] = (_sides(config.get('size')) or [0])[0] if cropped else 0
  whole = isinstance(size, Mapping) and 'height' in size  # the image is stretched
  found['crop'] = 'center' if cropped else 'none' if whole else ''
  named = {number: name for name, number in RESAMPLE.items()}
  if config.get('resample') is not None:
    found['resample'] = named.get(config['resample'], f'another ({config["resample"]})')
  return {k: v for k, v in found.items() if v}


def _sides(size: Any) -> list[int]:
  """Returns rows and columns of a size of transformers: a number, or a mapping; [] if unknown."""
  if isinstance(size, int):
    return [size, size]
  if not isinstance(size, Mapping):
    return []
  side = size.get('shortest_edge')
  found = [size.get('height', side), size.get('width', side)]
  return [n for n in found if isinstance(n, int)] if None not in found else []


def _every(values: Sequence[float], channels: int) -> list[float]:
  return [float(x) for x in values] * (channels if len(values) == 1 else 1)


def _equal(a: Any, b: Any) -> bool:
  if isinstance(a, str):
    return a == b
  if not isinstance(a, list):
    return math.isclose(a, b, rel_tol=1e-4)
  a, b = (x * max(len(a), len(b)) if len(x) == 1 else x for x in (a, b))
  return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-4, abs_tol=1e-4)
                                  for x, y in zip(a, b, strict=True))  # fmt: skip


def _brief(value: Any) -> str:
  if isinstance(value, list):
    return f'({", ".join(_brief(x) for x in value)})'
  return value if isinstance(value, str) else f'{value:g}'
