"""Metrics by client: what an average over all examples hides.

Each reads the predictions of a split of `bmx.data.clients` and gives a number of the accuracies of
its clients.
"""

import math

import numpy as np

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.data.clients import Clients


def accuracies(rows: HostBatch, data: Data) -> np.ndarray:
  """Returns the accuracy of each client, ascending: float64 [K].

  Args:
    rows: 'prediction' and 'label', int [N], in the order of the split.
    data: the split.

  Raises:
    InputError: examples without clients, or predictions that are not classes.
  """
  if not isinstance(data.examples, Clients):
    raise InputError(
      'metrics of clients: expected an entry of `eval` whose examples belong to clients '
      '(bmx.data.clients)'
    )
  if not {'prediction', 'label'} <= set(rows):
    raise InputError(
      f'metrics of clients: expected predictions of classes, found {", ".join(sorted(rows))}'
    )
  owners = data.examples.owners
  hits = np.bincount(owners, rows['prediction'] == rows['label'])
  return np.sort(hits / np.bincount(owners))


def client_worst_tenth(rows: HostBatch, data: Data) -> float:
  """Computes the mean accuracy of the tenth of the clients that have the lowest, one at least."""
  found = accuracies(rows, data)
  return float(found[: math.ceil(len(found) / 10)].mean())


def client_lower_quartile(rows: HostBatch, data: Data) -> float:
  """Computes the accuracy below which a quarter of the clients are (linear interpolation)."""
  return float(np.quantile(accuracies(rows, data), 0.25))


def client_median(rows: HostBatch, data: Data) -> float:
  """Computes the median of the accuracies of the clients."""
  return float(np.median(accuracies(rows, data)))
