"""Retrieval within a split: ranks of the own partners, and pictures of the hits."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmx.core.data import Data, Described
from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.ops.ranks import ranks_of
from bmx.runtime.report import Section
from bmx.tasks.illustrations import picture

QUERIES = 8  # that the report shows
BEST = 5  # candidates of each


def image_to_text_recall_at_1(rows: HostBatch) -> float:
  """Computes the share of images whose own caption is the nearest; see `recall`."""
  return recall(rows, 'image', 1)


def image_to_text_recall_at_10(rows: HostBatch) -> float:
  """Computes the share of images whose own caption is among the 10 nearest; see `recall`."""
  return recall(rows, 'image', 10)


def text_to_image_recall_at_1(rows: HostBatch) -> float:
  """Computes the share of captions whose own image is the nearest; see `recall`."""
  return recall(rows, 'text', 1)


def text_to_image_recall_at_10(rows: HostBatch) -> float:
  """Computes the share of captions whose own image is among the 10 nearest; see `recall`."""
  return recall(rows, 'text', 10)


def chance_recall_at_1(rows: HostBatch) -> float:
  """Computes `recall` at 1 of candidates in random order, the mean of both directions."""
  return (chance(rows, 'image', 1) + chance(rows, 'text', 1)) / 2


def chance_recall_at_10(rows: HostBatch) -> float:
  """Computes `recall` at 10 of candidates in random order, the mean of both directions."""
  return (chance(rows, 'image', 10) + chance(rows, 'text', 10)) / 2


def recall(rows: HostBatch, of: str, k: int) -> float:
  """Computes the share of queries whose own partner is among the k nearest of the split.

  Args:
    rows: see `ranks`.
    of: kind of the queries, 'image' or 'text'.
    k: candidates that count.

  Raises:
    InputError: an array is missing.
  """
  missing = [name for name in ('image', 'text', 'caption') if name not in rows]
  if missing:
    raise InputError(f'the metric reads image, text and caption, and the predictions lack '
                     f'{", ".join(missing)}')  # fmt: skip
  return float((ranks(rows, of) < k).mean())


def chance(rows: HostBatch, of: str, k: int) -> float:
  """Computes the expected `recall` of candidates in random order."""
  distinct, own, copies = np.unique(rows['caption'], return_inverse=True, return_counts=True)
  if of == 'image':
    return min(1.0, k / len(distinct))
  n, partners = len(own), copies[own]
  missed = np.ones(n)
  for i in range(min(k, n)):
    missed *= np.maximum(n - partners - i, 0) / (n - i)
  return float((1 - missed).mean())


def ranks(rows: HostBatch, of: str) -> np.ndarray:
  """Counts the candidates that are at least as near as the own partner, int64 [N].

  Equal captions are one candidate among texts; among images, each image with the caption of a query
  is an own partner.

  Args:
    rows: `image` and `text` float [N, E], `caption` int [N].
    of: kind of the queries, 'image' or 'text'.
  """
  image, text, caption = (rows[k] for k in ('image', 'text', 'caption'))
  if of == 'text':
    return ranks_of(text, caption, image, caption)
  distinct, first = np.unique(caption, return_index=True)
  return ranks_of(image, caption, text[first], distinct)


def retrieved(rows: HostBatch, data: Data) -> list[Section]:
  """Returns the best images of some captions, and the best captions of some images.

  Args:
    rows: `image`, `text`, `caption` of the first examples of a split.
    data: the split.
  """
  n = len(rows['caption'])
  shown = np.linspace(0, n - 1, min(QUERIES, n)).astype(int)
  _, first = np.unique(rows['caption'], return_index=True)
  images = np.argsort(-(rows['text'][shown] @ rows['image'].T), kind='stable')[:, :BEST]
  texts = first[np.argsort(-(rows['image'][shown] @ rows['text'][first].T), kind='stable')]
  captions = _captions(np.unique([*shown, *texts[:, :BEST].ravel(), *images.ravel()]), data)
  pixels = _pixels(np.unique([*shown, *images.ravel()]), data)
  share = {k: (ranks(rows, k) < BEST).mean() for k in ('text', 'image')}
  own = lambda query, i: rows['caption'][query] == rows['caption'][i]
  by_text = ''.join(
    f'<p><b>{html.escape(captions[q])}</b></p><div class="examples">'
    + ''.join(_cell(pixels[i], captions[i], own(q, i)) for i in best)
    + '</div>'
    for q, best in zip(shown, images, strict=True)
  )
  by_image = ''.join(
    f'<div>{picture(pixels[q])}<b>{html.escape(captions[q])}</b><br>'
    + '<br>'.join(_marked(captions[i], own(q, i)) for i in best[:BEST])
    + '</div>'
    for q, best in zip(shown, texts, strict=True)
  )
  note = '<p class="soft">Own partner in the first {}: {:.1f} % of {:,} queries. ✓: it is.</p>'
  line = lambda of: note.format(BEST, 100 * share[of], n)
  return [
    Section('Images of a caption', line('text') + by_text),
    Section('Captions of an image',
            f'{line("image")}<div class="examples texts">{by_image}</div>'),
  ]  # fmt: skip


def _cell(image: np.ndarray, caption: str, own: bool) -> str:
  return f'<div>{picture(image)}{_marked(caption, own)}</div>'


def _marked(caption: str, own: bool) -> str:
  text = html.escape(caption)
  return f'<b>✓ {text}</b>' if own else f'<span class="soft">{text}</span>'


def indices_of(positions: Sequence[int] | np.ndarray, data: Data) -> np.ndarray:
  """Examples at positions of a split, int64 [n]."""
  size = data.batch_size
  return np.array([data.indices(int(p) // size)[0, int(p) % size] for p in positions], np.int64)


def _captions(positions: np.ndarray, data: Data) -> dict[Any, str]:
  """Captions by position; the number of an example where the data do not describe it."""
  examples = data.examples
  known = (
    examples.describe(indices_of(positions, data))
    if isinstance(examples, Described)
    else [{}] * len(positions)
  )
  pairs = zip(positions, known, strict=True)
  return {p: str(about.get('caption', f'example {p + 1:,}')) for p, about in pairs}


def _pixels(positions: np.ndarray, data: Data) -> dict[Any, np.ndarray]:
  rows = data.rows(indices_of(positions, data), positions)
  return dict(zip(positions, rows['image'], strict=True))
