"""Intersection over union of segmentations: host functions of all predictions of a split."""

import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import HostBatch


def mean_iou(rows: HostBatch) -> float:
  """Computes the mean over classes of intersection over union of all pixels, 0 to 1.

  Classes that occur in neither prediction nor mask do not count.

  Args:
    rows: predictions of a `Segmentation`, with its labels.

  Raises:
    InputError: a key is missing, or no pixel counts.

  Source: Everingham et al. 2010, PASCAL VOC.
  """
  return float(np.mean(list(class_iou(rows).values())))


def class_iou(rows: HostBatch) -> dict[int, float]:
  """Computes intersection over union of each class that occurs: class -> 0 to 1.

  Args and Raises: as in `mean_iou`.
  """
  if missing := [k for k in ('prediction', 'mask') if k not in rows]:
    raise InputError(
      f'mean_iou reads prediction and mask; the predictions lack {" and ".join(missing)}'
    )
  pixels = rows['mask_weights'] > 0 if 'mask_weights' in rows else np.ones(rows['mask'].shape, bool)
  predicted, true = (
    rows['prediction'][pixels].astype(np.int64),
    rows['mask'][pixels].astype(np.int64),
  )
  if not len(true):
    raise InputError('mean_iou is undefined: the split has no pixel that counts')
  counts = lambda x: np.bincount(x, minlength=int(max(predicted.max(), true.max())) + 1)
  shared = counts(true[predicted == true])
  union = counts(predicted) + counts(true) - shared
  return {int(k): float(shared[k] / union[k]) for k in np.flatnonzero(union)}
