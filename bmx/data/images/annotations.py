"""Annotations of images in COCO's format: one JSON file with images, categories and objects."""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bmx.core.errors import InputError
from bmx.data.images.pictures import SUFFIXES
from bmx.runtime.storage import Place, files

log = logging.getLogger('bmx')
BEYOND = 1.0  # pixels that a box may reach beyond its image, by rounding: they are cut off
SHOWN = 3  # dropped annotations that a warning names


@dataclasses.dataclass(frozen=True)
class Item:
  """An object of an image.

  Attributes:
    number: id of the annotation.
    name: category.
    box: (top, left, bottom, right) in pixels.
    area: of the object, in square pixels.
    crowd: whether it is a region of many objects.
    segmentation: polygons or run lengths; None without a mask.
  """

  number: Any
  name: str
  box: tuple[float, float, float, float]
  area: float
  crowd: bool
  segmentation: Any


@dataclasses.dataclass(frozen=True)
class Annotated:
  """An image with its objects.

  Attributes:
    name: of the file, relative to the folder of images.
    size: height and width that the file of annotations gives, in pixels; None if it gives none.
    items: objects.
  """

  name: str
  size: tuple[int, int] | None
  items: tuple[Item, ...]


@dataclasses.dataclass(frozen=True)
class Annotations:
  """The images of a data set, in the order of the file, and the names of all categories."""

  root: Place
  images: tuple[Annotated, ...]
  class_names: tuple[str, ...]
  source: str


def annotations(path: Place, root: Place, invalid: str, masks: bool) -> Annotations:
  """Reads a file of annotations.

  Args:
    path: of the file.
    root: folder of the images.
    invalid: 'refuse' or 'drop' objects that cannot be used.
    masks: whether objects need a mask.

  Raises:
    InputError: a file that is missing or is not of this format; an object of an unknown image or
      category; with `invalid` 'refuse', a box outside of its image or without area.
  """
  content = _read(path)
  names = {c['id']: str(c['name']) for c in _dicts(content, 'categories', path, 'id', 'name')}
  if len(set(names.values())) < len(names):
    raise InputError(f'{path}: expected a name of its own for each category')
  images = _dicts(content, 'images', path, 'id', 'file_name')
  if not images or not names:
    raise InputError(f'{path}: expected at least one image and one category')
  sizes = {image['id']: _size(image, path) for image in images}
  files_of = {image['id']: str(image['file_name']) for image in images}
  objects: dict[Any, list[Item]] = {image['id']: [] for image in images}
  dropped: list[str] = []
  for given in _dicts(content, 'annotations', path, 'id', 'image_id', 'category_id', 'bbox'):
    where = f'{path}: annotation {given["id"]}'
    for key, known in (('image_id', files_of), ('category_id', names)):
      if given[key] not in known:
        raise InputError(f'{where}: {key}={given[key]} is not in the file')
    number = given['image_id']
    try:
      item = _item(given, names[given['category_id']], sizes[number], masks,
                   f'{where} of {files_of[number]}')  # fmt: skip
    except InputError as error:
      if invalid == 'refuse':
        raise InputError(f'{error}; correct it, or set --data.invalid=drop') from None
      dropped.append(str(error))
      continue
    objects[number].append(item)
  if dropped:
    log.warning(
      '%s: dropped %d annotations:\n  %s', path, len(dropped), '\n  '.join(dropped[:SHOWN])
    )
  _check_files(root, list(files_of.values()))
  found = tuple(Annotated(files_of[i], sizes[i], tuple(objects[i])) for i in files_of)
  order = sorted(names, key=lambda k: (str(type(k)), k))
  return Annotations(root, found, tuple(names[k] for k in order), str(path))


def unlabeled(root: Place, names: Sequence[str]) -> Annotations:
  """Images without annotations, to predict."""
  return Annotations(root, tuple(Annotated(name, None, ()) for name in names), (), str(root))


def _read(path: Place) -> Mapping[str, Any]:
  try:
    content = json.loads(path.read_bytes())
  except OSError as error:
    raise InputError(f'{path}: expected a file of annotations: {error.strerror or error}') from None
  except ValueError as error:
    raise InputError(f'{path}: expected annotations as JSON: {error}') from None
  if not isinstance(content, Mapping):
    raise InputError(f'{path}: expected a JSON object with images, categories and annotations')
  return content


def _dicts(content: Mapping[str, Any], name: str, path: Place, *keys: str) -> list[Any]:
  """Returns a list of objects that have the keys."""
  values = content.get(name)
  if not isinstance(values, list):
    raise InputError(f'{path}: expected a list {name!r}; the file has {", ".join(content) or "{}"}')
  seen = set()
  for position, value in enumerate(values):
    missing = [k for k in keys if not isinstance(value, Mapping) or k not in value]
    if missing:
      raise InputError(f'{path}: {name}[{position}]: expected {", ".join(missing)}')
    if isinstance(value['id'], list | dict) or value['id'] in seen:
      raise InputError(f'{path}: {name}[{position}]: expected an id of its own, not {value["id"]}')
    seen.add(value['id'])
  return values


def _size(image: Mapping[str, Any], path: Place) -> tuple[int, int] | None:
  size = image.get('height'), image.get('width')
  if size == (None, None):
    return None
  if not all(isinstance(side, int | float) and side == int(side) and side > 0 for side in size):
    raise InputError(
      f'{path}: {image["file_name"]}: expected height and width in pixels, not {size}'
    )
  return int(size[0]), int(size[1])  # type: ignore


def _item(
  given: Mapping[str, Any], name: str, size: tuple[int, int] | None, masks: bool, where: str
) -> Item:
  box = given['bbox']
  numbers = isinstance(box, list) and len(box) == 4 and all(_finite(v) for v in box)
  if not numbers or box[2] <= 0 or box[3] <= 0:
    raise InputError(
      f'{where}: bbox={box}: expected [left, top, width, height] with a width and a height above 0'
    )
  left, top, width, height = (float(v) for v in box)
  sides = top, left, top + height, left + width
  item = Item(given['id'], name, sides, float(given.get('area') or width * height),
              bool(given.get('iscrowd', 0)), given.get('segmentation'))  # fmt: skip
  if masks and not item.segmentation:
    raise InputError(f'{where}: expected a mask, `segmentation`')
  return item if size is None else inside(item, size, where)


def inside(item: Item, size: tuple[int, int], where: str) -> Item:
  """Cuts off what a box reaches beyond its image by rounding.

  Raises InputError for a box that reaches further.
  """
  top, left, bottom, right = item.box
  if min(top, left) < -BEYOND or bottom > size[0] + BEYOND or right > size[1] + BEYOND:
    raise InputError(
      f'{where}: bbox={[left, top, right - left, bottom - top]}: expected a box inside the image '
      f'of {size[1]} × {size[0]} pixels'
    )
  box = max(top, 0.0), max(left, 0.0), min(bottom, float(size[0])), min(right, float(size[1]))
  if box[0] >= box[2] or box[1] >= box[3]:
    raise InputError(f'{where}: expected a box with an area inside the image')
  return dataclasses.replace(item, box=box)


def _finite(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)


def _check_files(root: Place, names: Sequence[str]) -> None:
  """Raises InputError for an image that is not there."""
  there = set(files(root)) if root.is_dir() else set()
  missing = [name for name in names if name not in there and not (root / name).is_file()]
  if missing:
    more = f', and {len(missing) - 1} more' if len(missing) > 1 else ''
    raise InputError(
      f'{root / missing[0]}: expected an image that the annotations name{more}; set '
      f'--data.images=FOLDER, or remove the entry'
    )
  for name in names:
    if not name.lower().endswith(SUFFIXES):
      raise InputError(f'{root / name}: expected an image ({", ".join(SUFFIXES)})')
