"""Folders of images with COCO annotations: boxes of objects, or a class for each pixel."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from bmx.core.data import Examples, Spec
from bmx.core.errors import InputError
from bmx.data.arrays import RESIDENT_BYTES, split_indices
from bmx.data.images.annotated import AnnotatedData, blank
from bmx.data.images.annotations import Annotations, annotations, unlabeled
from bmx.data.images.augment import Augmentation, augmentation
from bmx.data.images.listing import image_names
from bmx.data.images.pictures import SUFFIXES, Pixels
from bmx.data.shapes import shapes
from bmx.runtime.storage import Place, place

Kind = Literal['boxes', 'masks']
BACKGROUND = 'background'
MOST = 100  # boxes of an image where the file is not read
ANNOTATIONS = 'annotations.json'


def coco(
  path: str = '',
  images: str = '',
  kind: Kind = 'boxes',
  size: int = 256,
  channels: int = 3,
  split: str = 'all',
  holdout: float = 0.0,
  most: int = 0,
  invalid: str = 'refuse',
  mean: tuple[float, ...] = (0.5,),
  std: tuple[float, ...] = (0.25,),
  crop: int = 0,
  flip: bool = False,
  augment: Augmentation | None = None,
  unreadable: str = 'refuse',
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Reads images with annotations in COCO's format.

  An image is resized so that it fits into a square of `size`, keeping its shape; the rest of the
  square has the color `mean`. `frame` [4] holds the scale of its rows and columns, and the height
  and width of the original.

  Args:
    path: folder with annotations.json, or that file under another name. To predict, also a folder
      of images without it, or an image.
    images: folder of the images; '' is that of the file.
    kind: 'boxes' adds `boxes` [M, 4], `box_label` [M], `box_weights` [M], `box_crowd` [M] and
      `box_area` [M]; 'masks' adds `mask` [I, J], 0 for the background, and `mask_weights` [I, J], 0
      for crowds and outside of the image.
    size: rows and columns of the inputs, in pixels.
    channels: 1 (gray) or 3 (RGB).
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    most: boxes of an image, M; 0: the largest number.
    invalid: 'refuse' or 'drop' boxes outside of their image or without area, and masks that cannot
      be read.
    mean: of pixels scaled to 0..1, for all channels or one each.
    std: of the same.
    crop: pixels of padding of a random crop in training.
    flip: left-right flips in training.
    augment: further augmentation in training, such as `bmx.data.images.augment:augment`.
    unreadable: 'refuse' files that cannot be read, or 'skip' them and list their names.
    fitted: `state()` of the training data, whose classes and sizes count.
    read: False returns shapes only.
    seed: of augmentation.
    train: whether examples are augmented.

  Raises:
    InputError: a file that is missing or cannot be read, a box or mask that does not fit its image,
      other categories than those of the training data.
  """
  _check_words(kind=(kind, ('boxes', 'masks')), invalid=(invalid, ('refuse', 'drop')),
               unreadable=(unreadable, ('refuse', 'skip')))  # fmt: skip
  fitted = fitted or {}
  pixels = Pixels((size, size, channels), 0, mean, std)
  if 'whole' in fitted:
    pixels = Pixels.restore(fitted['whole'])
  if not read:
    one = blank(kind, pixels, most or MOST)
    spec = {k: Spec(v.shape[1:], np.dtype(v.dtype)) for k, v in one.items()}
    return shapes(spec, shape=pixels.shape)
  found = _found(path, images, invalid, kind == 'masks', fitted, train)
  names = tuple(fitted.get('class_names', ())) or _names(found, kind)
  chosen = split_indices(len(found.images), split, holdout, ('all', 'train', 'valid'))
  found = dataclasses.replace(found, images=tuple(found.images[i] for i in chosen))
  labeled = bool(found.class_names)  # images to predict have no categories
  facts = {'num_classes': len(names), 'class_names': list(names), 'shape': pixels.shape,
           'source': f'{path}, {split}'}  # fmt: skip
  operations = augmentation(crop, flip, augment)
  data = AnnotatedData(found, kind if labeled else '', pixels, names, most, facts, invalid, seed,
                       train, operations)  # fmt: skip
  if unreadable == 'skip':
    data = data.readable()
  small = data.size * int(np.prod(pixels.shape)) <= RESIDENT_BYTES
  return data.decoded() if small else data


def _check_words(**words: tuple[str, tuple[str, ...]]) -> None:
  for name, (value, known) in words.items():
    if value not in known:
      raise InputError(f'{name}={value!r}: expected one of {", ".join(known)}')


def _found(
  path: str, images: str, invalid: str, with_masks: bool, fitted: Mapping[str, Any], train: bool
) -> Annotations:
  """Reads annotations; or lists images to predict, which need none."""
  if not path:
    raise InputError('data.path: expected a folder with annotations.json, such as --data.path=mine')
  source = place(path)
  if fitted and not train:
    if source.is_dir() and not (source / ANNOTATIONS).is_file():
      return unlabeled(source, image_names(source, warn=True))
    if source.name.lower().endswith(SUFFIXES) and source.is_file():
      return unlabeled(source.parent, (source.name,))
  file = source / ANNOTATIONS if source.is_dir() else source
  root: Place = place(images) if images else file.parent
  return annotations(file, root, invalid, with_masks)


def _names(found: Annotations, kind: str) -> tuple[str, ...]:
  return (BACKGROUND, *found.class_names) if kind == 'masks' else found.class_names
