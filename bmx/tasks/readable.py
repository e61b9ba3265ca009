"""Predictions with names, for people."""

from typing import Any

import numpy as np

from bmx.core.types import HostBatch, Metadata
from bmx.tasks.average_precision import true_boxes

TOP = 20  # classes up to which all probabilities are given; of more, the largest `TOP`
SIDES = 'top', 'left', 'bottom', 'right'


def classes(rows: HostBatch, probability: np.ndarray, metadata: Metadata) -> list[dict[str, Any]]:
  """Returns {'prediction': class, 'probability': {class: share}, 'label': class} of each row.

  Args:
    rows: `prediction` int [N], and `label` int [N] where the data have it.
    probability: float [N, C].
    metadata: `class_names`; without them a class is its number.
  """
  known = metadata.get('class_names') or range(probability.shape[1])
  name = lambda i: known[int(i)]
  result = []
  for n, shares in enumerate(probability):
    told = np.argsort(-shares, kind='stable')[:TOP]
    line: dict[str, Any] = {'prediction': name(rows['prediction'][n])}
    line['probability'] = {str(name(i)): float(shares[i]) for i in sorted(told)}
    if 'label' in rows:
      line['label'] = name(rows['label'][n])
    result.append(line)
  return result


def numbers(rows: HostBatch) -> list[dict[str, Any]]:
  """Returns {'prediction': number, 'y': number} of each row; lists where there are several.

  Args:
    rows: `prediction` float [N, D], and `y` float [N, D] where the data have it.
  """
  keys = [key for key in ('prediction', 'y') if key in rows]
  plain = lambda value: float(value[0]) if len(value) == 1 else value.tolist()
  return [{k: plain(rows[k][n]) for k in keys} for n in range(len(rows['prediction']))]


def objects(rows: HostBatch, metadata: Metadata) -> list[dict[str, Any]]:
  """Returns {'objects': [...]} of each row; also {'labels': [...]} where the data have boxes.

  An object has `class`, `score` and `top`, `left`, `bottom`, `right` in pixels of the original
  image; labels are objects without a score.

  Args:
    rows: predictions of a `Detection`, with its labels.
    metadata: `class_names`; without them a class is its number.
  """
  known = metadata.get('class_names')
  name = lambda k: known[int(k)] if known else int(k)
  sides = lambda box: {k: float(v) for k, v in zip(SIDES, box, strict=True)}
  truth = true_boxes(rows) if 'boxes' in rows else None
  result = []
  for n, scores in enumerate(rows['score']):
    line: dict[str, Any] = {
      'objects': [
        {
          'class': name(rows['prediction'][n, i]),
          'score': float(scores[i]),
          **sides(rows['box'][n, i]),
        }
        for i in np.flatnonzero(scores > 0)
      ]
    }
    if truth is not None:
      there = np.flatnonzero(rows['box_weights'][n] > 0)
      line['labels'] = [
        {'class': name(rows['box_label'][n, i]), **sides(truth[n, i])} for i in there
      ]
    result.append(line)
  return result


def segments(rows: HostBatch, metadata: Metadata) -> list[dict[str, Any]]:
  """Returns {'segments': [...]} of each row: an object for each class that has pixels.

  A segment has `class`, `share` of the image's pixels, and its mask as COCO's run lengths:
  `size` [height, width] in pixels of the original image, and `counts` of alternating pixels outside
  and inside, down the columns.

  Args:
    rows: `prediction` int [N, I, J], and `frame` [N, 4] where images were resized.
    metadata: `class_names`; without them a class is its number.
  """
  known = metadata.get('class_names')
  name = lambda k: known[int(k)] if known else int(k)
  result = []
  for n, image in enumerate(rows['prediction']):
    image = in_original(image, rows['frame'][n]) if 'frame' in rows else image
    runs = {k: run_lengths(image == k) for k in np.unique(image)}
    shares = {k: float((image == k).mean()) for k in runs}
    result.append(
      {
        'segments': [
          {'class': name(k), 'share': shares[k], 'size': list(image.shape), 'counts': runs[k]}
          for k in runs
        ]
      }
    )
  return result


def in_original(image: np.ndarray, frame: np.ndarray) -> np.ndarray:
  """Returns the pixels [I, J] of an image in its original, by the nearest: [height, width]."""
  scale, size = frame[:2], frame[2:].astype(int)
  places = [
    np.minimum(((np.arange(n) + 0.5) * s).astype(int), m - 1)
    for n, s, m in zip(size, scale, image.shape, strict=True)
  ]
  return image[np.ix_(*places)]


def run_lengths(mask: np.ndarray) -> list[int]:
  """Returns COCO's run lengths of a mask bool [I, J], down its columns, pixels outside first."""
  flat = np.concatenate([[False], mask.T.reshape(-1)])
  starts = np.flatnonzero(np.diff(flat.astype(np.int8))) if flat.any() else np.zeros(0, int)
  return np.diff(np.concatenate([[0], starts, [mask.size]])).tolist()
