"""Metrics that are not means: host functions of all predictions of a split.

A config names them by import path, 'bmx.tasks.metrics:f1'; the function's name is the metric's.
Those of `(rows, data)` also read facts that only the data set has.
"""

import collections
import math
import re
import string
from collections.abc import Callable

import numpy as np

from bmx.core.data import Data, Presenting
from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.tasks.entities import brief, check_tags, entities, tag_parts, word_tags

PUNCTUATION = str.maketrans('', '', string.punctuation)


def f1(rows: HostBatch) -> float:
  """Computes F1 of class 1, as GLUE's MRPC and QQP report it; 0 if class 1 never occurs.

  rows: 'prediction' and 'label', each 0 or 1, [N]. Raises InputError if there are other classes.
  Source: van Rijsbergen 1979.
  """
  prediction, label = _classified(rows)
  classes = np.union1d(prediction, label)
  if not np.isin(classes, (0, 1)).all():
    raise InputError(
      f'f1 is of class 1 against class 0, but label and prediction have {brief(classes)}; '
      'bmx.tasks.metrics:macro_f1 reads several classes'
    )
  told, true = prediction == 1, label == 1
  return _f1((told & true).sum(), told.sum() + true.sum())


def macro_f1(rows: HostBatch) -> float:
  """Computes the unweighted mean of the F1 of each class that occurs in label or prediction.

  rows: 'prediction' and 'label', int [N].
  """
  hits, told, true = _class_counts(rows)
  return float((2 * hits / (told + true)).mean())


def matthews(rows: HostBatch) -> float:
  """Computes Matthews correlation of any number of classes, -1 to 1; 0 if one side is constant.

  rows: 'prediction' and 'label', int [N].
  Source: Matthews 1975; Gorodkin 2004 for more than two classes.
  """
  hits, told, true = _class_counts(rows)
  n = int(told.sum())
  # Python's integers: products of four counts do not fit 64 bits.
  spread = int(n * n - told @ told) * int(n * n - true @ true)
  return int(n * hits.sum() - told @ true) / math.sqrt(spread) if spread else 0.0


def pearson(rows: HostBatch) -> float:
  """Computes Pearson correlation, -1 to 1; 0 if the prediction is constant.

  rows: 'prediction' and 'y', [N] or [N, 1]. Raises InputError if it is undefined: fewer than two
  examples, a constant y, NaN or infinity.
  """
  return _correlation(*_numbers(rows))


def spearman(rows: HostBatch) -> float:
  """Computes Spearman rank correlation, -1 to 1; ties share the mean of their ranks.

  rows: 'prediction' and 'y', [N] or [N, 1]. Raises InputError if `pearson` does.
  Source: Spearman 1904.
  """
  prediction, y = _numbers(rows)
  return _correlation(_ranks(prediction), _ranks(y))


def entity_f1(rows: HostBatch, data: Data) -> float:
  """Computes F1 of named entities over the whole split.

  A prediction is right if type, first and last word are. Tags are IOB2, read leniently: an I- after
  O or after another type starts an entity. 0 if no entity is right, or the split has none.

  Args:
    rows: 'prediction' and 'targets', tag ids int [N, T], and 'weights' [N, T], above 0 at the first
      sub-word of each word. All other tokens are dropped before entities are read.
    data: its `metadata['class_names']` are the tags by id: ('O', 'B-person', 'I-person', ...). If
      it presents sentences, all their words count, with and without a sub-word.

  Raises:
    InputError: a key, the names or every word is missing, a tag is not IOB2 or has no name.

  Source: CoNLL-2000's conlleval, Tjong Kim Sang & Buchholz 2000.
  """
  prediction, targets, weights = _read(rows, 'prediction', 'targets', 'weights')
  if not prediction.shape == targets.shape == weights.shape or targets.ndim != 2:
    raise InputError(
      'entity_f1 reads prediction, targets and weights of one shape [N, T]; '
      f'they are {prediction.shape}, {targets.shape} and {weights.shape}'
    )
  kinds, types = tag_parts(data)
  word = weights > 0
  if not word.any():
    raise InputError('entity_f1 counts words with a weight above 0; the split has none')
  row, columns, names = (
    np.nonzero(word)[0],
    (prediction[word], targets[word]),
    data.metadata['class_names'],
  )
  for ids in columns:
    check_tags(ids, len(names))
  if isinstance(data.examples, Presenting):
    row, *columns = word_tags(data.examples.present(rows), names)
  told, true = (entities(ids, row, kinds, types) for ids in columns)
  return _f1(len(told & true), len(told) + len(true))


def exact_match(rows: HostBatch, data: Data) -> float:
  """Computes the share of questions whose answer is a true one, 0 to 1 (SQuAD reports percent).

  Answers are compared without case, punctuation, articles and extra whitespace.

  Args:
    rows: predictions, from which the data reads answers.
    data: its `answers(rows)` gives (predicted text, true texts) for each question.

  Raises:
    InputError: the data has no answers or no questions, or a question without true texts.

  Source: SQuAD v1.1, Rajpurkar et al. 2016.
  """
  return _best(rows, data, lambda told, true: float(told == true))


def answer_f1(rows: HostBatch, data: Data) -> float:
  """Computes the mean over questions of the F1 of an answer's words against the most similar truth.

  From 0 to 1. Words are compared as in `exact_match` and count as often as they occur. Two answers
  without any word match, as in the script of SQuAD v2.0; that of v1.1 gives them 0.

  Args and Raises: as in `exact_match`.

  Source: SQuAD v1.1, Rajpurkar et al. 2016.
  """
  return _best(rows, data, _word_f1)


def _f1(hits: int, total: int) -> float:
  """Computes F1. total: number of predicted and true items together."""
  return float(2 * hits / total) if total else 0.0


def _read(rows: HostBatch, *names: str) -> list[np.ndarray]:
  if any(name not in rows for name in names):
    raise InputError(
      f'the metric reads {", ".join(names)}, but the predictions have {sorted(rows)}'
    )
  if not all(len(rows[name]) for name in names):
    raise InputError('the metric needs examples; the split has none')
  return [rows[name] for name in names]


def _classified(rows: HostBatch) -> list[np.ndarray]:
  prediction, label = _read(rows, 'prediction', 'label')
  if prediction.shape != label.shape or label.ndim != 1:
    raise InputError(
      'the metric reads one class an example, prediction and label [N]; '
      f'they are {prediction.shape} and {label.shape}'
    )
  return [prediction, label]


def _class_counts(rows: HostBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Counts how often each class that occurs is right, predicted and true: int [K] each."""
  prediction, label = _classified(rows)
  classes, index = np.unique(np.concatenate([prediction, label]), return_inverse=True)
  told, true = np.split(index, 2)
  columns = told[told == true], told, true
  hits, told, true = (np.bincount(c, minlength=len(classes)) for c in columns)
  return hits, told, true


def _numbers(rows: HostBatch) -> list[np.ndarray]:
  """Returns prediction and y, float64 [N]: two columns whose correlation is defined."""
  columns = _read(rows, 'prediction', 'y')
  shapes = [c.shape[:1] if c.shape[1:] == (1,) else c.shape for c in columns]
  if shapes[0] != shapes[1] or len(shapes[0]) != 1:
    raise InputError(
      'correlation reads one number an example, prediction and y [N] or [N, 1]; '
      f'they are {columns[0].shape} and {columns[1].shape}'
    )
  if len(columns[0]) < 2:
    raise InputError('correlation is undefined for fewer than 2 examples')
  columns = [c.reshape(-1).astype(np.float64) for c in columns]
  for name, column in zip(('prediction', 'y'), columns, strict=True):
    if not np.isfinite(column).all():
      raise InputError(f'correlation is undefined: {name} has NaN or infinity')
  y = columns[1]
  if (y == y[0]).all():
    raise InputError(f'correlation is undefined: y is constant, {y[0]:g}')
  return columns


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  if (a == a[0]).all():
    return 0.0  # an untrained model may predict a constant
  a, b = _centred(a), _centred(b)
  return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def _centred(values: np.ndarray) -> np.ndarray:
  """Subtracts the mean, and scales so that squares of tiny values do not vanish."""
  values = values - values.mean()
  return values / np.abs(values).max()


def _ranks(values: np.ndarray) -> np.ndarray:
  _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(count) - (count - 1) / 2)[inverse]


def _best(rows: HostBatch, data: Data, score: Callable[[list[str], list[str]], float]) -> float:
  """Averages over questions the best score of the answer's words with a true answer's."""
  if not isinstance(data.examples, Presenting):
    raise InputError(
      f'{type(data.examples).__name__} has no answers in words: this metric expects questions'
    )
  pairs = [(a['answer'], a['known']) for a in data.examples.present(rows)]
  if not pairs:
    raise InputError('the metric needs examples; the split has none')
  if not all(true for _, true in pairs):
    raise InputError('the metric needs a true answer to every question; the split hides some')
  return float(np.mean([max(score(_words(p), _words(t)) for t in true) for p, true in pairs]))


def _words(text: str) -> list[str]:
  # In the order of SQuAD's script: punctuation first, so that 'a.m.' is not an article.
  return re.sub(r'\b(a|an|the)\b', ' ', text.lower().translate(PUNCTUATION)).split()


def _word_f1(told: list[str], true: list[str]) -> float:
  common = collections.Counter(told) & collections.Counter(true)
  return _f1(common.total(), len(told) + len(true)) if told or true else 1.0
