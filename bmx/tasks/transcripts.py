"""Error rates of transcripts: metrics of a whole split."""

from collections.abc import Sequence

import numpy as np

from bmx.core.data import Data, Presenting
from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.data.audio.units import Units


def wer(rows: HostBatch, data: Data) -> float:
  """Computes the word error rate: edits of words / words of the true transcripts.

  Edits are substitutions, deletions and insertions, so that it may exceed 1.

  Args:
    rows: `prediction` int [N, S] and `transcript` int [N, L], filled up with 0; or predictions of a
      decoder.
    data: its metadata name the units; or its examples have the texts of a decoder.

  Raises:
    InputError: a key or the units are missing, no true transcript has a word.
  """
  return _rate([(true.split(), found.split()) for true, found in texts(rows, data)], 'word')


def cer(rows: HostBatch, data: Data) -> float:
  """Computes the character error rate, blanks between words included, see `wer`."""
  return _rate([(list(true), list(found)) for true, found in texts(rows, data)], 'character')


def texts(rows: HostBatch, data: Data) -> list[tuple[str, str]]:
  """Returns (true, recognized) transcripts."""
  if 'targets' in rows and isinstance(data.examples, Presenting):
    return presented(rows, data.examples)
  for name in ('prediction', 'transcript'):
    if name not in rows:
      raise InputError(f'the metric reads prediction and transcript, not only {sorted(rows)}')
  units = Units.of(data.metadata)
  pairs = zip(rows['transcript'], rows['prediction'], strict=True)
  return [(units.decode(true), units.decode(found)) for true, found in pairs]


def presented(rows: HostBatch, examples: Presenting) -> list[tuple[str, str]]:
  """Returns (true, predicted) texts of a decoder.

  Raises InputError if the true texts are not known.
  """
  found = examples.present(rows)
  if not found or not all('target' in line for line in found):
    raise InputError('the metric needs a target of every source; the split hides some')
  return [(line['target'], line['prediction']) for line in found]


def _rate(pairs: Sequence[tuple[list[str], list[str]]], kind: str) -> float:
  total = sum(len(true) for true, _ in pairs)
  if not total:
    raise InputError(f'the metric needs at least one {kind} in the true transcripts')
  return sum(edits(true, found) for true, found in pairs) / total


def edits(true: Sequence[str], found: Sequence[str]) -> int:
  """Returns the least number of substitutions, deletions and insertions between two sequences.

  >>> edits('sitting', 'kitten')
  3

  Source: Levenshtein 1966; Wagner & Fischer 1974.
  """
  names = {name: i for i, name in enumerate({*true, *found})}
  column = np.array([names[name] for name in found], np.int64)
  place = np.arange(len(found) + 1)
  row = place.copy()
  for name in true:
    kept = np.minimum(row[1:] + 1, row[:-1] + (column != names[name]))
    row = np.concatenate([row[:1] + 1, kept])
    row = np.minimum.accumulate(row - place) + place  # insertions
  return int(row[-1])
