"""Images in a numpy archive."""

import zipfile

import numpy as np

from bmx.core.errors import InputError
from bmx.data.arrays import UNREADABLE
from bmx.runtime.fetch import fetch


def read_images(path: str, word: str) -> np.ndarray:
  """Reads the array `images` of a numpy archive (.npz): uint8 [N, I, J, 3].

  Args:
    path: of the archive.
    word: of the config that names it, for messages.

  Raises:
    InputError: the file is missing or damaged, or lacks such an array.
  """
  file = fetch(path)
  if not file.is_file():
    raise InputError(f'{word}={path}: expected a numpy archive (.npz), which does not exist')
  try:
    with zipfile.ZipFile(file):
      images = np.load(file, allow_pickle=False)['images']
  except UNREADABLE as error:
    raise InputError(
      f'{word}={path}: expected a numpy archive (.npz) with `images`: {error}'
    ) from None
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
    raise InputError(
      f'{word}={path}: images is {images.dtype} {images.shape}; expected uint8 [N, I, J, 3]'
    )
  return images
