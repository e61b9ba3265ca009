"""Captions of images: pictures with the captions that a decoder writes, for the report."""

import html

import numpy as np

from bmx.core.data import Data, Presenting
from bmx.core.types import HostBatch
from bmx.runtime.report import Section
from bmx.tasks.hits import indices_of
from bmx.tasks.illustrations import picture
from bmx.tasks.seq2seq import Seq2SeqLM

SHOWN = 24  # pictures


class Captioning(Seq2SeqLM):
  """`Seq2SeqLM` of images, whose report shows pictures with their captions."""

  def illustrate(self, rows: HostBatch, data: Data) -> list[Section]:
    """Shows pictures, the captions that were written, and the true ones.

    Args:
      rows: predictions of the first examples of a split.
      data: the split.
    """
    examples = data.examples
    if not isinstance(examples, Presenting):
      return []
    lines = examples.present(rows)
    shown = np.linspace(0, len(lines) - 1, min(SHOWN, len(lines))).astype(int)
    images = data.rows(indices_of(shown, data), shown)['image']
    cells = ''.join(
      f'<div>{picture(image)}<b>{html.escape(line["prediction"])}</b><br>'
      f'<span class="soft">{html.escape(line.get("target", ""))}</span></div>'
      for image, line in zip(images, (lines[int(i)] for i in shown), strict=True)
    )
    note = '<p class="soft">Bold: the caption that was written; below it the true one.</p>'
    return [Section('Captions', f'{note}<div class="examples texts">{cells}</div>')]
