"""Prepared TFDS data sets, read without TensorFlow."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.core.paths import local
from bmx.core.types import HostBatch
from bmx.data.arrays import RESIDENT_BYTES, ArrayData, SourceData
from bmx.data.images.augment import Augmentation, augmentation
from bmx.data.images.normalization import Normalise
from bmx.data.images.pictures import Pixels
from bmx.data.records import Record

NAME = re.compile(r'\w+(/[\w.+-]+)*(:[\d.*]+)?')  # with a config, with a version


def tfds(
  name: str,
  split: str = 'train',
  data_dir: str = '',
  mean: tuple[float, ...] = (0.0,),
  std: tuple[float, ...] = (1.0,),
  crop: int = 0,
  flip: bool = False,
  augment: Augmentation | None = None,
  seed: int = 0,
  train: bool = True,
) -> ArrayData | SourceData:
  """Reads images and labels of a prepared TFDS data set.

  Args:
    name: 'mnist', or with a version or config, 'mnist:3.0.1'.
    split: as TFDS writes it, 'train[:90%]'.
    data_dir: folder of prepared sets; '' is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    mean: of pixels scaled to 0..1, for all channels or one each.
    std: of the same.
    crop: pixels of padding of a random crop in training.
    flip: left-right flips in training.
    augment: further augmentation in training, such as `bmx.data.images.augment:augment`.
    seed: of augmentation.
    train: whether examples are augmented.

  Raises:
    InputError: the data set is unknown, is not prepared, or has no images with labels.
  """
  source, info = tfds_source(name, split, data_dir)
  features: Any = info.features
  if features is None or 'image' not in features or 'label' not in features:
    raise InputError(f'{name} has features {sorted(features or ())}: expected image and label')
  names, shape = tuple(features['label'].names), tuple(features['image'].shape)
  if None in shape:
    raise InputError(
      f'{name} has images of different sizes, {shape}: expected one size; write them to files, and '
      'use bmx.data.images.folder:images'
    )
  metadata = {'num_classes': len(names), 'class_names': names, 'shape': shape}
  metadata |= {'source': f'{info.full_name} {split}'}
  state: dict[str, Any] = {'class_names': list(names)}
  if shape[-1] in (1, 3):
    state['pixels'] = Pixels((shape[0], shape[1], shape[2]), 0, mean, std).state()
  common: dict[str, Any] = {'metadata': metadata, 'seed': seed, 'train': train, 'fitted': state}
  common |= {'augment': augmentation(crop, flip, augment)}
  common |= {'preprocess': Normalise(255.0, mean, std)}
  if len(source) * np.prod(shape) > RESIDENT_BYTES:
    return SourceData(source, _decode, **common)
  if not len(source):
    raise InputError(f'split={split!r}: expected a split of {name} that is not empty')
  return ArrayData(_decode(source.__getitems__(list(range(len(source))))), **common)


def tfds_source(name: str, split: str, data_dir: str = '') -> tuple[Any, Any]:
  """Opens a prepared split -> (records by number, the builder's info).

  Raises InputError if the data set is unknown or not prepared.
  """
  import tensorflow_datasets

  library: Any = tensorflow_datasets
  folder = str(local(data_dir)) if data_dir else None  # TFDS reads TFDS_DATA_DIR itself
  if not NAME.fullmatch(name):
    raise InputError(
      f'data set {name!r}: expected a name such as mnist, glue/sst2 or mnist:3.0.1; names of other '
      'collections (huggingface:NAME) are read from the network'
    )
  try:
    builder = library.builder(name, data_dir=folder)
    return builder.as_data_source(split), builder.info
  except library.core.DatasetNotFoundError:
    names = library.list_builders(with_community_datasets=False)
    raise InputError(f'unknown data set {name!r}{did_you_mean(name, names)}') from None
  except (ValueError, AssertionError, FileNotFoundError, NotImplementedError, OSError) as error:
    raise _unreadable(library, name, split, folder, error) from None


def _decode(records: Sequence[Record]) -> HostBatch:
  return {
    'image': np.stack([r['image'] for r in records]),
    'label': np.array([r['label'] for r in records], np.int32),
  }


def _unreadable(
  library: Any, name: str, split: str, folder: str | None, error: Exception
) -> InputError:
  """Returns the error if TFDS cannot read a split: not prepared, or no such split."""
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
