"""Predictions with names, for people."""

from typing import Any

import numpy as np

from bmx.core.types import HostBatch, Metadata

TOP = 20  # classes up to which all probabilities are given; of more, the largest `TOP`


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
