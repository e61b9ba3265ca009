"""Images with captions: a table of files and texts, or an archive of images beside a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Examples
from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Metadata
from bmx.data.arrays import RESIDENT_BYTES, ArrayData, split_indices
from bmx.data.images.archive import read_images
from bmx.data.images.augment import Augmentation, augmentation
from bmx.data.images.folder import FolderData
from bmx.data.images.folder import images as folder_images
from bmx.data.images.listing import Listing
from bmx.data.images.normalization import with_normalization
from bmx.data.images.pairs import pair_spec, paired
from bmx.data.images.pictures import Pixels
from bmx.data.records import Record, no_file
from bmx.data.shapes import shapes
from bmx.data.text.documents import RECORDS, records, whole
from bmx.data.text.targets import Target, TargetData, target_of, target_spec
from bmx.data.text.tokenizer import Subwords
from bmx.runtime.storage import Place, place

TABLES = ('.jsonl', *RECORDS)
SPLITS = ('all', 'train', 'valid')


def captions(
  path: str = '',
  images: str = '',
  file: str = 'file',
  text: tuple[str, ...] = ('caption',),
  tokenizer: Subwords | None = None,
  length: int = 77,
  written: bool = False,
  begin: tuple[int, ...] = (),
  size: int = 224,
  channels: int = 3,
  short: int = 0,
  resample: str = 'bicubic',
  stretch: bool = False,
  mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073),
  std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711),
  background: tuple[int, ...] = (255, 255, 255),
  crop: int = 0,
  flip: bool = False,
  augment: Augmentation | None = None,
  split: str = 'all',
  holdout: float = 0.0,
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Reads pairs of an image and a caption -> `image`, `tokens` [T], `caption`.

  `caption` is a number, equal for equal captions. Images are read as by `folder.images`: resized so
  that they cover a square of `size`, whose center is cropped.

  Args:
    path: table (.jsonl, .csv, .tsv, .parquet), or a folder that holds one.
    images: numpy archive (.npz) with `images` uint8 [N, I, J, 3], one for each record, in their
      order; '' reads files.
    file: column with the path of an image, relative to the table.
    text: columns of the caption, texts or lists of texts, which are joined by commas.
    tokenizer: of the captions; it ends each text with a token.
    length: tokens of a caption, T; longer ones are cut, and counted.
    written: whether captions are texts that a decoder writes, `tokens` and `targets` with an end,
      instead of `tokens` to embed; longer ones are refused.
    begin: ids before a caption that is written; () is those that the tokenizer puts there, or else
      its end.
    size: rows and columns of the inputs, in pixels.
    channels: 1 (gray) or 3 (RGB).
    short: pixels of the short side before the center is cropped; 0: `size`.
    resample: 'bicubic', as CLIP's processor, or 'bilinear'.
    stretch: resizes the whole image to the square, as SigLIP's processor, and crops nothing.
    mean: of pixels scaled to 0..1, for all channels or one each; default: those of CLIP.
    std: of the same.
    background: color behind transparent pixels: red, green, blue, 0 to 255.
    crop: pixels of padding of a random crop in training.
    flip: left-right flips in training.
    augment: further augmentation in training, such as `bmx.data.images.augment:augment`.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    fitted: `state()` of the training data, whose sizes and normalization count.
    read: False returns shapes only.
    seed: of augmentation.
    train: whether examples are augmented.

  Raises:
    InputError: a record without caption or image, a file that cannot be read (its name), an archive
      of another number of images, a tokenizer that does not end a text.
  """
  colors = [v if len(v) == channels else (sum(v) / len(v),) for v in (mean, std)]
  pixels = Pixels((size, size, channels), short, colors[0], colors[1], background, resample,
                  stretch)  # fmt: skip
  if fitted and 'pixels' in fitted:
    pixels = Pixels.restore(fitted['pixels'])
  if not read:
    spec = pair_spec(pixels.shape, length)
    spec = {'image': spec['image'], **target_spec(length)} if written else spec
    return shapes(spec, shape=pixels.shape, length=length)
  target = target_of(tokenizer, length, begin, fitted=fitted) if written else None
  if tokenizer is None and target is None:
    raise InputError('data.tokenizer: expected one, such as bmx.data.text.tokenizer:load')
  table = _table(path)
  every = records(str(table))
  texts = [_caption(record, text, where) for where, record in every]
  chosen = split_indices(len(every), split, holdout, SPLITS)
  source = f'{path}, {split}: {len(chosen):,} pairs'
  short = 0 if pixels.stretch else pixels.short or min(pixels.shape[:2])
  resize = {'short': short, 'resample': pixels.resample}
  metadata = {'shape': pixels.shape, 'source': source, 'resize': resize}
  metadata = with_normalization(metadata, pixels.normalise)
  operations = augmentation(crop, flip, augment)
  if images:
    found: Any = _archived(images, len(every), chosen, pixels, metadata, seed, train, operations)
  else:
    names = [_file(record, file, where, table.parent) for where, record in every]
    listed = Listing(table.parent, tuple(names), str(table), (None,) * len(names), ())
    found = FolderData(listed.take(chosen), pixels, metadata, seed, train, operations)
    if found.resized is None and found.bytes <= RESIDENT_BYTES:
      found = found.decoded('refuse')
  if target is not None:
    return _written(found, every, texts, chosen, target)
  assert tokenizer is not None
  return paired(found, texts, chosen, tokenizer, length)


def uncaptioned(
  path: str, fitted: Mapping[str, Any], seed: int = 0, train: bool = False
) -> Examples:
  """Reads images whose captions a decoder is to write; files that cannot be read are left out.

  Args:
    path: folder of images, a table of files, or a file.
    fitted: `state()` of the training data of a captioner.
    seed: of the run.
    train: False.

  Raises:
    InputError: no image; a run that does not write captions.
  """
  target = target_of(None, 0, fitted=fitted)
  if target is None:
    raise InputError(f'{path}: expected a run that writes captions (data.written=True)')
  known = {k: v for k, v in fitted.items() if k == 'pixels'}
  found = folder_images(path, unreadable='skip', fitted=known, seed=seed, train=train)
  return TargetData(found, target)


def _written(
  images: Any, every: Sequence[Any], texts: Sequence[str], chosen: np.ndarray, target: Target
) -> TargetData:
  """Returns images with captions for a decoder. Raises InputError for one that is too long."""
  own = [(texts[int(i)], every[int(i)][0]) for i in chosen]
  ids = [target.encode(text, f'{where}: the caption') for text, where in own]
  return TargetData(images, target, ids, tuple(target.plain(text) for text, _ in own))


def _table(path: str) -> Place:
  """Returns the table of a path, or the one table of a folder."""
  if not path:
    raise InputError('data.path: expected a table of images and captions, such as '
                     '--data.path=captions.csv')  # fmt: skip
  source = place(path)
  if source.is_file() and source.suffix.lower() in TABLES:
    return source
  if not source.is_dir():
    if source.is_file():
      raise InputError(f'{path}: expected a table ({", ".join(TABLES)}) of images and captions')
    raise no_file(source)
  found = sorted(p for p in source.iterdir() if p.suffix.lower() in TABLES)
  if len(found) != 1:
    names = ', '.join(p.name for p in found) or 'none'
    raise InputError(f'{path}: expected one table of captions ({", ".join(TABLES)}) in it, found '
                     f'{names}; name the table')  # fmt: skip
  return found[0]


def _caption(record: Record, columns: Sequence[str], where: str) -> str:
  """Returns the texts of the columns of a record, joined by commas."""
  parts: list[str] = []
  for column in columns:
    value = record.get(column, '')
    if column not in record:
      raise InputError(f'{where}: no column {column!r}{did_you_mean(column, record)}; set '
                       "--data.text=\"('COLUMN',)\"")  # fmt: skip
    values = value if isinstance(value, list) else [value]
    if any(not isinstance(v, str) for v in values if v is not None):
      raise InputError(f'{where}: {column} is {value!r:.40}; expected a text, or a list of texts')
    parts += [v.strip() for v in values if v and v.strip()]
  if not parts:
    raise InputError(f'{where}: expected a caption in {", ".join(columns)}; add it, or remove the '
                     'record')  # fmt: skip
  return whole(', '.join(parts), where)


def _file(record: Record, column: str, where: str, root: Place) -> str:
  """Returns the name of the image of a record, which exists."""
  name = record.get(column)
  if not name:
    extra = did_you_mean(column, record) if column not in record else ''
    raise InputError(f'{where}: expected the path of an image in {column!r}{extra}; set '
                     '--data.file=COLUMN, or --data.images=ARCHIVE.npz')  # fmt: skip
  if not (root / str(name)).is_file():
    raise InputError(f'{where}: the caption has no image: {root / str(name)} does not exist; add '
                     'it, or remove the record')  # fmt: skip
  return str(name)


def _archived(
  path: str,
  count: int,
  chosen: np.ndarray,
  pixels: Pixels,
  metadata: Metadata,
  seed: int,
  train: bool,
  operations: Augmentation | None,
) -> ArrayData:
  """Returns the chosen images of an archive, which holds one for each of `count` records."""
  from PIL import Image

  given = read_images(path, 'data.images')
  if len(given) != count:
    raise InputError(f'data.images={path}: {len(given):,} images, and {count:,} captions; expected '
                     'one image for each')  # fmt: skip
  mode = 'L' if pixels.shape[2] == 1 else 'RGB'
  made = [pixels.center(Image.fromarray(given[i]).convert(mode)) for i in chosen]
  fitted = {'pixels': pixels.state()}
  arrays = {'image': np.stack(made)}
  return ArrayData(arrays, metadata, seed, train, operations, pixels.normalise, fitted=fitted)
