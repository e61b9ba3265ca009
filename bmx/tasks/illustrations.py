"""Sections of the report: confusion, worst examples, histograms, columns of a table."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Data, Described, Stateful
from bmx.core.types import HostBatch
from bmx.data.encoder import TabularEncoder
from bmx.data.text.tokenizer import Bytes, Subwords, Tokenizer
from bmx.runtime.report import Section, layout
from bmx.runtime.writer import brief
from bmx.tasks import reliability

MAX_CLASSES = 20  # of a confusion matrix; more become a list of the most frequent mistakes
MAX_MISTAKES = 20  # rows of that list
WORST = 12  # pictures
WORST_TEXTS = 6  # texts or rows of a table
BINS = 30
MAX_TARGETS = 4  # of a regression that are shown
MAX_CHARS = 400  # of a text
MAX_COLUMNS = 12  # of a row of a table
MAX_LISTED = 100  # columns in the table of columns


def classes(
  prediction: np.ndarray, label: np.ndarray, probability: np.ndarray, data: Data
) -> list[Section]:
  """Returns the confusion and the worst examples of a classifier; [] if nothing can be shown.

  Args:
    prediction: int [N].
    label: int [N].
    probability: float [N, classes].
    data: the split, of which these are the first examples.
  """
  if not len(label) or prediction.shape != label.shape or probability.shape[:-1] != label.shape:
    return []
  names = class_names(data, probability.shape[-1])
  true = np.take_along_axis(probability, label[:, None], 1)[:, 0]
  worst = [i for i in np.argsort(true, kind='stable')[:WORST] if prediction[i] != label[i]]
  said = lambda i: (
    f'{names[label[i]]}, predicted {names[prediction[i]]} ({probability[i, prediction[i]]:.2f})'
  )
  parts = [confusion(prediction, label, names), by_class(prediction, label, names)]
  trust = reliability.sections(reliability.Judged(probability.astype(np.float64), label))
  return [*parts, *trust, *_worst(worst, said, data)]


def class_names(data: Data, count: int) -> list[str]:
  """Names of the classes of a split; their numbers where it has none."""
  names = [str(name) for name in data.metadata.get('class_names', ())]
  return names if len(names) == count else [str(i) for i in range(count)]


def confusion(prediction: np.ndarray, label: np.ndarray, names: Sequence[str]) -> Section:
  """Returns how often each class is predicted for each; of many classes, the frequent mistakes.

  Args:
    prediction: int [N].
    label: int [N].
    names: of the classes.
  """
  n = len(names)
  counts = np.bincount(label * n + prediction, minlength=n * n).reshape(n, n)
  if n <= MAX_CLASSES:
    return Section('Confusion', _matrix(counts, names))
  wrong = counts * ~np.eye(n, dtype=bool)
  order = np.argsort(-wrong, axis=None, kind='stable')[:MAX_MISTAKES]
  pairs = [divmod(int(i), n) for i in order if wrong.flat[i]]
  rows = [(names[a], names[b], f'{counts[a, b]:,}', f'{counts[a].sum():,}') for a, b in pairs]
  return Section('Confusion', layout.grid(('true', 'predicted', 'times', 'of'), rows))


def _matrix(counts: np.ndarray, names: Sequence[str]) -> str:
  """A table: a row for each true class, shaded by the share of its predictions."""
  short = [html.escape(name[:24]) for name in names]
  head = ''.join(f'<th>{name}</th>' for name in short)
  rows = ''
  for name, row in zip(short, counts, strict=True):
    shares = 100 * row / max(row.sum(), 1)
    cells = ''.join(
      f'<td style="--share: {0.8 * s:.0f}%">{c or ""}</td>'
      for c, s in zip(row.tolist(), shares, strict=True)
    )
    rows += f'<tr><th>{name}</th>{cells}</tr>'
  return (
    '<p class="soft">Rows: true class; columns: predicted.</p>'
    f'<table class="matrix"><tr><th></th>{head}</tr>{rows}</table>'
  )


def by_class(prediction: np.ndarray, label: np.ndarray, names: Sequence[str]) -> Section:
  """Returns the accuracy of each class, the lowest first.

  Args:
    prediction: int [N].
    label: int [N].
    names: of the classes.
  """
  counts = np.bincount(label, minlength=len(names))
  right = np.bincount(label[prediction == label], minlength=len(names))
  there = np.flatnonzero(counts)
  shares = right[there] / counts[there]
  order = np.argsort(shares, kind='stable')[:MAX_LISTED].tolist()
  rows = [
    (
      names[int(there[i])],
      f'{100 * shares[i]:.1f} %',
      f'{right[there[i]]:,} of {counts[there[i]]:,}',
    )
    for i in order
  ]
  return Section('Accuracy by class', layout.grid(('class', 'accuracy', 'right'), rows))


def numbers(prediction: np.ndarray, y: np.ndarray, data: Data) -> list[Section]:
  """Returns histograms of predictions beside targets, and the worst examples of a regression.

  Args:
    prediction: float [N, D].
    y: float [N, D].
    data: the split, of which these are the first examples.
  """
  if not len(y) or prediction.shape != y.shape or y.ndim != 2:
    return []
  many = y.shape[1] > 1
  sections = [
    histogram(f'Predictions {i}' if many else 'Predictions', prediction[:, i], y[:, i])
    for i in range(min(y.shape[1], MAX_TARGETS))
  ]
  error = np.nan_to_num(np.abs(prediction - y).sum(1), nan=np.inf)
  shown = lambda row: ', '.join(brief(float(v)) for v in row[:MAX_TARGETS])
  said = lambda i: f'{shown(y[i])}, predicted {shown(prediction[i])}'
  worst = np.argsort(-error, kind='stable')[:WORST].tolist()
  return sections + _worst(worst, said, data)


def histogram(title: str, prediction: np.ndarray, y: np.ndarray) -> Section:
  """Returns a histogram of predictions beside that of the targets.

  Args:
    title: plain text.
    prediction: float [N].
    y: float [N].
  """
  finite = [v[np.isfinite(v)].astype(np.float64) for v in (prediction, y)]
  both = np.concatenate(finite)
  if not len(both):
    return Section(title, '<p>There is not one finite prediction.</p>')
  edges = np.histogram_bin_edges(both, BINS)
  counts = [np.histogram(v, edges)[0] for v in finite]
  top = max(int(c.max()) for c in counts)
  bars = ''.join(
    f'<span title="{brief(float(a))} to {brief(float(b))}: {p} predicted, {t} true">'
    f'<i style="height: {100 * p / top:.1f}%"></i>'
    f'<i class="other" style="height: {100 * t / top:.1f}%"></i></span>'
    for p, t, a, b in zip(*(c.tolist() for c in counts), edges, edges[1:], strict=False)
  )
  ends = f'<span>{brief(float(edges[0]))}</span><span>{brief(float(edges[-1]))}</span>'
  keys = (
    '<p class="soft"><span class="key" style="--key: #3b82f6"></span>predicted &#160; '
    '<span class="key" style="--key: #ea580c"></span>true</p>'
  )
  return Section(title, f'<div class="bars">{bars}</div><div class="ends">{ends}</div>{keys}')


def _worst(worst: Sequence[int], said: Callable[[int], str], data: Data) -> list[Section]:
  """The examples at positions of a split, each above a line of text."""
  if not len(worst):
    return []
  worst = worst[: WORST if 'image' in data.spec else WORST_TEXTS]
  positions = np.array(worst, np.int64)
  indices = [data.indices(int(p) // data.batch_size)[0, int(p) % data.batch_size] for p in worst]
  rows = data.rows(np.array(indices), positions)
  shown, files = example_html(rows, data), _files(np.array(indices), data)
  cells = ''.join(
    f'<div>{shown(i)}<b>{html.escape(said(p))}</b> '
    f'<span class="soft">example {p + 1:,}{html.escape(files[i])}</span></div>'
    for i, p in enumerate(worst)
  )
  kind = '' if 'image' in rows else ' texts'
  return [Section('Worst examples', f'<div class="examples{kind}">{cells}</div>')]


def _files(indices: np.ndarray, data: Data) -> list[str]:
  """Names of the files of examples, each after a comma; '' where an example has no file."""
  known = data.examples.describe(indices) if isinstance(data.examples, Described) else []
  return [f', {about["file"]}' if 'file' in about else '' for about in known] or [''] * len(indices)


def example_html(rows: HostBatch, data: Data) -> Callable[[int], str]:
  """Returns a function: number of a row -> a picture, a text, columns, or '', as HTML.

  Args:
    rows: examples.
    data: that they are of.
  """
  state = _state(data)
  if 'image' in rows and rows['image'].ndim == 4 and rows['image'].shape[-1] in (1, 3):
    return lambda i: picture(rows['image'][i])
  if 'tokens' in rows:
    coder = _tokenizer(state)
    return lambda i: f'<pre>{html.escape(_text(rows, i, coder))}</pre>'
  if 'x' in rows and 'encoder' in state:
    encoder = TabularEncoder.restore(state['encoder'])
    return lambda i: f'<p>{html.escape(_columns(encoder.decode(rows["x"][i])))}</p>'
  return lambda i: ''


def _state(data: Data) -> Mapping[str, Any]:
  return data.examples.state() if isinstance(data.examples, Stateful) else {}


def _tokenizer(state: Mapping[str, Any]) -> Tokenizer:
  text = state.get('tokenizer', '')
  return Subwords(text) if text else Bytes()


def _text(rows: HostBatch, i: int, coder: Tokenizer) -> str:
  """The text of a row, without its padding."""
  tokens = rows['tokens'][i]
  tokens = tokens[rows['segment_ids'][i] > 0] if 'segment_ids' in rows else tokens
  return coder.decode(tokens.tolist())[:MAX_CHARS]


def _columns(values: Mapping[str, str]) -> str:
  shown = list(values.items())[:MAX_COLUMNS]
  return ', '.join(f'{k} {v}' for k, v in shown) + (' ...' if len(values) > len(shown) else '')


def picture(image: np.ndarray) -> str:
  """Returns an image as an element with its PNG inside, from its least to its largest value.

  Args:
    image: [I, J, 1] or [I, J, 3].
  """
  values = np.nan_to_num(image.astype(np.float32))
  low, high = values.min(), values.max()
  return encoded((255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8))


def encoded(pixels: np.ndarray) -> str:
  """Returns pixels as an element with their PNG inside.

  Args:
    pixels: uint8 [I, J, 1] or [I, J, 3].
  """
  from PIL import Image

  file = io.BytesIO()
  Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, 'PNG')
  return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def columns(data: Data) -> list[Section]:
  """Returns how each column of a table is read; [] for data that are not a table."""
  state = _state(data)
  if 'encoder' not in state:
    return []
  rows = TabularEncoder.restore(state['encoder']).table()
  more = f'<p class="soft">and {len(rows) - MAX_LISTED} more</p>' if len(rows) > MAX_LISTED else ''
  table = layout.grid(('column', 'read as', 'values'), rows[:MAX_LISTED])
  return [Section('Columns', table + more)]
