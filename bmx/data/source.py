"""Data sets from files: TFDS, CSV, JSON lines, numpy archives."""

import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Rows
from bmx.data.image import Normalise, augment
from bmx.data.loader import RESIDENT_BYTES, ArrayData, SourceData, check_arrays, keep, split_indices
from bmx.data.records import Encoding, Record, number, read_csv, read_json_lines

KEYS = ('image', 'x', 'label', 'y')


def tfds(
  name: str,
  batch_size: int,
  split: str = 'train',
  data_dir: str = '',
  mean: tuple[float, ...] = (0.0,),
  std: tuple[float, ...] = (1.0,),
  crop: int = 0,
  flip: bool = False,
  seed: int = 0,
  train: bool = True,
) -> ArrayData | SourceData:
  """Images and labels of a prepared TFDS data set, read without TensorFlow.

  Args:
    name: 'mnist', or with a version or config, 'mnist:3.0.1'.
    split: as TFDS writes it, 'train[:90%]'.
    data_dir: where sets are prepared; '' is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    mean, std: of pixels scaled to 0..1, for all channels or one each.
    crop, flip: augmentation in training: padding in pixels, left-right flips.
  """
  source, info = tfds_source(name, split, data_dir)
  features: Any = info.features
  if features is None or 'image' not in features or 'label' not in features:
    raise InputError(f'{name} has features {sorted(features or ())}; image and label are expected')
  facts = {'classes': features['label'].num_classes, 'shape': tuple(features['image'].shape)}
  facts |= {'source': f'{info.full_name} {split}'}
  common: dict[str, Any] = {'info': facts, 'batch_size': batch_size, 'seed': seed, 'train': train}
  common |= {'augment': augment(crop, flip), 'finish': Normalise(255.0, mean, std)}
  if len(source) * np.prod(features['image'].shape) > RESIDENT_BYTES:
    return SourceData(source, _decode, **common)
  if not len(source):
    raise InputError(f'{name}, split {split!r}, is empty')
  return ArrayData(_decode(source.__getitems__(list(range(len(source))))), **common)


def tfds_source(name: str, split: str, data_dir: str = '') -> tuple[Any, Any]:
  """-> (records by number, what TFDS knows of them). Raises InputError: unknown, not prepared."""
  import tensorflow_datasets

  library: Any = tensorflow_datasets
  folder = data_dir or None  # TFDS reads TFDS_DATA_DIR itself
  try:
    builder = library.builder(name, data_dir=folder)
    return builder.as_data_source(split), builder.info
  except library.core.DatasetNotFoundError:
    names = library.list_builders(with_community_datasets=False)
    raise InputError(f'unknown data set {name!r}{did_you_mean(name, names)}') from None
  except (ValueError, AssertionError, FileNotFoundError, NotImplementedError, OSError) as error:
    raise _unreadable(library, name, split, folder, error) from None


def _decode(records: Sequence[Record]) -> Rows:
  return {
    'image': np.stack([r['image'] for r in records]),
    'label': np.array([r['label'] for r in records], np.int32),
  }


def _unreadable(
  library: Any, name: str, split: str, folder: str | None, error: Exception
) -> InputError:
  """What to say where TFDS cannot give a split: it is not prepared, or there is no such split."""
  place = folder or str(library.core.constants.DATA_DIR)
  try:
    builder = library.builder(name, data_dir=folder)
    prepared = builder.data_path.exists() and builder.info.splits
  except (ValueError, OSError, AssertionError):
    prepared = None
  if prepared:
    return InputError(f'{name} has no split {split!r}; it has {", ".join(prepared)} ({error})')
  return InputError(
    f'{name} is not prepared in {place}. With the extra `tf` (pip install "bmx-jax[tf]"), run\n'
    f"  python -c \"import tensorflow_datasets as t; t.builder('{name}', data_dir='{place}', "
    f"file_format='array_record').download_and_prepare()\"\n"
    'once, or name the folder that holds it: --config.data.data_dir=DIR or TFDS_DATA_DIR=DIR'
  )


def csv(
  path: str,
  target: str,
  batch_size: int,
  fit: str = '',
  columns: tuple[str, ...] = (),
  regression: bool = False,
  missing: str = '?',
  strip: str = '',
  delimiter: str = ',',
  split: str = 'all',
  holdout: float = 0.0,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """A table with a header line (or `columns`): one-hot categories, standardised numbers -> `x`.

  Args:
    target: the column to predict: classes by sorted name, or a number where `regression`.
    fit: the file whose columns decide categories, means and deviations; '' is `path` itself. An
      evaluation of another file names the training file here.
    strip: characters to cut from the target's ends.
    split, holdout: 'train' and 'valid' where that share of the file is held out.
  """
  read = lambda p: read_csv(pathlib.Path(p), columns, delimiter)
  options = (target, regression, missing, strip, split, holdout)
  return _table(read, path, fit, *options, batch_size=batch_size, seed=seed, train=train)


def json_lines(
  path: str,
  target: str,
  batch_size: int,
  fit: str = '',
  regression: bool = False,
  missing: str = '',
  split: str = 'all',
  holdout: float = 0.0,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """As `csv`, from a file with one flat JSON object a line."""
  read = lambda p: read_json_lines(pathlib.Path(p))
  options = (target, regression, missing, '', split, holdout)
  return _table(read, path, fit, *options, batch_size=batch_size, seed=seed, train=train)


def _table(
  read, path, fit, target, regression, missing, strip, split, holdout, **common
) -> ArrayData:
  records = read(path)
  known = read(fit) if fit and fit != path else records
  if target not in known[0]:
    raise InputError(f'no column {target!r} in {fit or path}{did_you_mean(target, known[0])}')
  part = split_indices(len(known), 'train' if holdout else 'all', holdout, ('all', 'train'))
  encoding = Encoding.fit([known[i] for i in part], (target,), missing, fit or path)
  chosen = split_indices(len(records), split, holdout, ('all', 'train', 'valid'))
  records = [records[i] for i in chosen]
  arrays: Rows = {'x': encoding.encode(records, path)}
  info: dict[str, Any] = {'columns': arrays['x'].shape[1], 'source': path}
  said = [r.get(target) for r in records]
  if regression:
    info['targets'] = 1
    arrays |= _numbers(said, target, path)
  else:
    seen = [r[target] for r in known if r.get(target) is not None]
    names = sorted({str(v).strip(strip + ' ') for v in seen})
    info |= {'classes': len(names), 'names': tuple(names)}
    arrays |= _labels([None if v is None else str(v).strip(strip + ' ') for v in said], names, path)
  return ArrayData(arrays, info, **common)


def _numbers(said: Sequence[Any], target: str, path: str) -> Rows:
  """The regression target; none where no record has one (a file to predict)."""
  if all(v is None for v in said):
    return {}
  values = [number(v) for v in said]
  if None in values:
    row = values.index(None)
    raise InputError(f'{path}, record {row + 1}: {target} is {said[row]!r}, expected a number')
  return {'y': np.array(values, np.float32)[:, None]}


def _labels(said: Sequence[str | None], names: Sequence[str], path: str) -> Rows:
  if all(v is None for v in said):
    return {}
  for row, value in enumerate(said):
    if value not in names:
      raise InputError(
        f'{path}, record {row + 1}: class {value!r} is not one of {", ".join(names)}'
      )
  return {'label': np.array([names.index(str(v)) for v in said], np.int32)}


def arrays(
  path: str,
  batch_size: int,
  classes: int = 0,
  split: str = 'all',
  holdout: float = 0.0,
  scale: float = 1.0,
  crop: int = 0,
  flip: bool = False,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """A numpy archive (.npz) with arrays named `image` or `x`, and `label` or `y`.

  Args:
    classes: of `label`; 0 is the largest label and one.
    scale: images are divided by it.
  """
  if not pathlib.Path(path).is_file():
    raise InputError(f'no file {path}')
  try:
    with open(path, 'rb') as file, zipfile.ZipFile(file):
      file.seek(0)
      archive = np.load(file, allow_pickle=False)
      found = {k: archive[k] for k in archive.files}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
    raise InputError(f'{path} is not a numpy archive (.npz): {error}') from None
  if not found or set(found) - set(KEYS):
    raise InputError(f'{path} holds {sorted(found)}; arrays named {", ".join(KEYS)} are expected')
  info: dict[str, Any] = {'source': path}
  for name, array in found.items():
    found[name] = _numeric(name, array, path)
  if 'label' in found:
    found['label'] = found['label'].astype(np.int32)
    info['classes'] = classes or int(found['label'].max(initial=0)) + 1
  if 'y' in found:
    found['y'] = found['y'].astype(np.float32).reshape(len(found['y']), -1)
    info['targets'] = found['y'].shape[1]
  check_arrays(found, info)
  chosen = split_indices(len(next(iter(found.values()))), split, holdout, ('all', 'train', 'valid'))
  found = {k: v[chosen] for k, v in found.items()}
  finish = Normalise(scale) if 'image' in found else keep
  return ArrayData(found, info, batch_size, seed, train, augment(crop, flip), finish)


def _numeric(name: str, array: np.ndarray, path: str) -> np.ndarray:
  """An array of an archive as jax can hold it. Raises InputError for what is no row of examples."""
  if array.ndim == 0 or array.dtype.kind not in 'biuf':
    raise InputError(
      f'{path}: {name} is {array.dtype} {array.shape}; numbers [N, ...] are expected'
    )
  if name == 'label' and (array.ndim != 1 or (array != np.round(array)).any()):
    raise InputError(
      f'{path}: label is {array.dtype} {array.shape}; whole numbers [N] are expected'
    )
  if name == 'image' and array.ndim != 4:
    raise InputError(f'{path}: image has shape {array.shape}; [N, I, J, C] is expected')
  return array.astype(np.float32) if array.dtype == np.float64 else array
