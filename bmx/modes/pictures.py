"""Images of a command: a grid as PNG, or arrays as .npz."""

import io
import logging
import time
from typing import Any

import numpy as np

from bmx.core import errors
from bmx.core.paths import local
from bmx.modes import Request
from bmx.modes.decoder import load_weights
from bmx.modes.start import Run
from bmx.runtime.files import write_bytes
from bmx.runtime.storage import Place
from bmx.serve.images import ImageSampler, clipped
from bmx.tasks import grids
from bmx.train.package import holds_weights

log = logging.getLogger('bmx')
SUFFIXES = ('.png', '.npz')


def run(opened: Run, request: Request) -> int:
  """Writes images to --output, or WORKDIR/images.png.

  A .npz holds `image` float32 [n, I, J, C] in [0, 1] and, of images of classes, `label` int [n].
  """
  x, path = opened.experiment, _path(opened, request)
  sampler = ImageSampler(x)
  began = time.perf_counter()
  images = clipped(sampler(load_weights(opened)['params'], x.seed))
  seconds = time.perf_counter() - began
  if path.suffix == '.png':
    grids.write(path, images, sampler.columns)
  else:
    _write_arrays(path, images, sampler)
  log.info('%d images in %s, %.1f s', len(images), path, seconds)
  return errors.DONE


def _path(opened: Run, request: Request) -> Place:
  """Returns the file to write. Raises InputError for a flag or a suffix that has no meaning."""
  for flag, given in (('--prompt', request.prompts), ('--input', request.input)):
    if given:
      raise errors.InputError(
        f'{flag}: expected none, as {type(opened.experiment.task).__name__} generates images; ask '
        'for a class with --config.generate.label=7'
      )
  if not request.output and not holds_weights(opened.workdir):
    raise errors.InputError('--output=FILE.png: expected where to write, without --workdir')
  path = local(request.output) if request.output else opened.workdir / 'images.png'
  if path.suffix not in SUFFIXES:
    raise errors.InputError(f'--output={path}: expected a file {" or ".join(SUFFIXES)}')
  return path


def _write_arrays(path: Place, images: np.ndarray, sampler: ImageSampler) -> None:
  arrays: dict[str, Any] = {'image': images}
  if sampler.task.num_classes:
    arrays['label'] = sampler.labels()
  file = io.BytesIO()
  np.savez(file, **arrays)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_bytes(path, file.getvalue())
