"""Arrays of instances: numbers in nested lists, or a file of an image in base64."""

import base64
from typing import Any

import numpy as np

from bmx.core.errors import InputError
from bmx.data.images.annotated import fitted_in
from bmx.data.images.pictures import Pixels


def array(where: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
  """Converts nested lists of finite numbers, float32.

  Args:
    where: name of the instance, for messages.
    value: as JSON gives it.
    shape: that is expected.

  Raises:
    InputError: another shape, or values that are not finite numbers.
  """
  try:
    found = np.asarray(value)
  except (ValueError, OverflowError, RecursionError):  # lists of different lengths
    found = np.asarray(None)
  if found.dtype.kind not in 'iuf':
    raise InputError(f'{where}: expected numbers in nested lists of shape {shape}')
  if found.shape != shape:
    raise InputError(f'{where} has shape {found.shape}: expected {shape}')
  with np.errstate(over='ignore'):
    found = found.astype(np.float32)
  if not np.isfinite(found).all():
    at = ''.join(f'[{int(i)}]' for i in np.argwhere(~np.isfinite(found))[0])
    raise InputError(f'{where}{at}: expected a finite number')
  return found


def decoded(where: str, text: str, pixels: Pixels, whole: bool = False) -> Any:
  """Reads a file of an image in base64, also as a data URL, as the images of a folder are read.

  Args:
    where: name of the instance, for messages.
    text: base64 of PNG, JPEG or another kind of file.
    pixels: how files become images.
    whole: fits the image into the shape, as the images of annotations are read.

  Returns:
    The normalized image, float32 [I, J, C]; with `whole`, (the image, its `frame` float32 [4]).

  Raises:
    InputError: it is not base64, or not an image.
  """
  head, comma, rest = text.partition(',')
  try:
    data = base64.b64decode(rest if comma and head.startswith('data:') else text, validate=True)
  except ValueError as error:
    raise InputError(
      f'{where}: expected numbers, or a file of an image in base64: {error}'
    ) from None
  picture = pixels.open(data, where)
  image, frame = fitted_in(picture, pixels) if whole else (pixels.center(picture), None)
  found = np.asarray(pixels.normalise({'image': image[None]})['image'])[0]
  return (found, frame) if whole else found
