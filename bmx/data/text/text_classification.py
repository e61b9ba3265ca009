"""Texts, or pairs of texts, with a class or a number."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Examples, Spec
from bmx.core.errors import InputError, did_you_mean
from bmx.data.arrays import split_indices
from bmx.data.classes import class_line, class_names, ordered_names, warn_unseen
from bmx.data.records import LINE_END, number
from bmx.data.shapes import shapes
from bmx.data.text.documents import describe, documents, given_records, records, said, whole
from bmx.data.text.encoding import SPLITS, TextData, encode_rows, text_metadata, text_spec
from bmx.data.text.template import need_prefix
from bmx.data.text.tokenizer import Subwords

log = logging.getLogger('bmx')

MISSING = (None, '')  # of a record without a label
LABEL = 'label', Spec((), np.dtype(np.int32))
TARGET = 'y', Spec((1,), np.dtype(np.float32))


def text_classification(
  path: str,
  text: str,
  label: str,
  tokenizer: Subwords,
  length: int,
  pair: str = '',
  regression: bool = False,
  data_dir: str = '',
  split: str = 'all',
  holdout: float = 0.0,
  classes: Sequence[str] = (),
  given: Any = None,
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Reads texts -> `tokens`, `segment_ids`, `types`, and `label` or `y`.

  Args:
    path: .jsonl, .csv or 'tfds:NAME/SPLIT'.
    text: field of the text.
    label: field of the class or number. A file to predict lacks it in all records; -1 in all of
      them is a hidden test set.
    tokenizer: of the text.
    length: tokens of a row; longer texts are cut (of a pair the longer one), and counted.
    pair: field of a second text; '' without.
    regression: the label is a number.
    data_dir: of TFDS.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    classes: names in the order of the model's outputs; default: sorted.
    given: the records themselves instead of `path`: a data frame, or a list of mappings.
    fitted: `state()` of the training data, whose classes count.
    read: False returns shapes only.
    seed: of the run.
    train: training data.

  Raises:
    InputError: a file that cannot be read, a record without the field, an unknown class; a
      tokenizer that puts no token before a text, or none between two.
  """
  if not read:
    return shapes(text_spec(length, TARGET if regression else LABEL), length=length)
  need_prefix(tokenizer.template, 'text classification', pair=bool(pair))
  every = records(path, data_dir) if given is None else given_records(given)
  path = path or 'the given records'
  found = [every[i] for i in split_indices(len(every), split, holdout, SPLITS)]
  texts: list[Any] = [_text(r, text, where) for where, r in found]
  if pair:
    texts = [(a, _text(r, pair, where)) for a, (where, r) in zip(texts, found, strict=True)]
  arrays, cut = encode_rows(tokenizer, texts, length)
  metadata = text_metadata(tokenizer, length, f'{path}: {len(texts):,} texts, {cut:,} of them cut')
  labels, where = [r.get(label) for _, r in found], [w for w, _ in found]
  hidden = all(v in MISSING or number(v) == -1 for v in labels)
  if hidden and train:
    raise InputError(f'{path}: no record has a {label!r}{did_you_mean(label, found[0][1])}')
  state: dict[str, Any] = {}
  if regression:
    metadata['num_targets'] = 1
    arrays |= {} if hidden else {'y': _numbers(labels, where, label)}
  else:
    known = _classes([r.get(label) for _, r in every])
    names = ordered_names(known, classes, fitted)
    if train and not fitted:
      log.info('%s: %s: %s', path, label, class_line(known, [str(v) for v in labels]))
      warn_unseen(known, map(str, labels), f'{path}: {label}')
    state['class_names'] = list(names)
    metadata |= {'num_classes': len(names), 'class_names': names}
    arrays |= {} if hidden else {'label': _labels(labels, names, where)}
  described = [{k: r[k] for k in (text, pair) if k} for _, r in found]
  return TextData(
    arrays, metadata, seed, train, fitted=state, tokenizer=tokenizer, described=described
  )


def _text(record: dict[str, Any], field: str, where: str) -> str:
  return whole(said(record, field, where), where)


def _classes(values: Sequence[Any]) -> tuple[str, ...]:
  return class_names([None if v in MISSING else str(v) for v in values])


def _labels(given: Sequence[Any], names: Sequence[str], where: Sequence[str]) -> np.ndarray:
  place = {name: i for i, name in enumerate(names)}
  for value, at in zip(given, where, strict=True):
    if str(value) not in place:
      raise InputError(f'{at}: class {value!r}; expected one of {", ".join(names)}')
  return np.array([place[str(v)] for v in given], np.int32)


def _numbers(given: Sequence[Any], where: Sequence[str], label: str) -> np.ndarray:
  values = [number(v) for v in given]
  if None in values:
    row = values.index(None)
    raise InputError(f'{where[row]}: {label} is {given[row]!r}, expected a number')
  return np.array(values, np.float32)[:, None]


def library(
  tokenizer: Subwords,
  length: int,
  split: str = 'train',
  holdout: float = 0.1,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Reads lines of the installed Python's standard library: comments (1) without mark, code (0).

  Args:
    tokenizer: of the text.
    length: tokens of a row.
    split: 'train', 'valid' or 'all'.
    holdout: share of 'valid'.
    read: False returns shapes only.
    seed: of the run.
    train: training data.
  """
  if not read:
    return shapes(text_spec(length, LABEL), length=length)
  need_prefix(tokenizer.template, 'text classification')
  lines = [line.strip() for text in documents() for line in LINE_END.split(text)]
  comments = [line.strip('# ') for line in lines if line.startswith('# ')]
  code = [line for line in lines if line and not line.startswith('#')][: 4 * len(comments) : 4]
  texts, labels = comments + code, [1] * len(comments) + [0] * len(code)
  chosen = split_indices(len(texts), split, holdout, SPLITS)
  arrays, cut = encode_rows(tokenizer, [texts[i] for i in chosen], length)
  arrays['label'] = np.array(labels, np.int32)[chosen]
  source = f'{describe(())}, {split}: {len(chosen):,} lines, {cut:,} of them cut'
  names = ('code', 'comment')
  metadata = text_metadata(tokenizer, length, source) | {'num_classes': 2, 'class_names': names}
  fitted = {'class_names': list(names)}
  return TextData(arrays, metadata, seed, train, fitted=fitted, tokenizer=tokenizer)
