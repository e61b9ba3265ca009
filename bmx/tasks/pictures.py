"""Sections of the report: pictures of images with boxes and masks."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Data
from bmx.core.types import HostBatch
from bmx.runtime.report import Section, layout
from bmx.runtime.writer import brief
from bmx.tasks import average_precision
from bmx.tasks.illustrations import class_names
from bmx.tasks.iou import class_iou

SHOWN = 12  # images
WIDTH = 320  # pixels of a picture, about: images are enlarged by a whole factor
MIN_SCORE = 0.3  # of a predicted box that is drawn
MAX_LISTED = 100  # classes in a table
COLORS = ('#e6194b', '#3cb44b', '#4363d8', '#f58231', '#911eb4', '#42d4f4', '#f032e6', '#bfef45',
          '#fabed4', '#469990', '#dcbeff', '#9a6324', '#fffac8', '#800000', '#aaffc3', '#808000',
          '#ffd8b1', '#000075', '#a9a9a9', '#ffe119')  # fmt: skip
MIX = 0.55  # opacity of a mask


def detections(rows: HostBatch, data: Data) -> list[Section]:
  """Returns the average precision of each class, and images with true and predicted boxes.

  Args:
    rows: predictions of a `Detection` for the first examples of a split, with its labels.
    data: the split.
  """
  names = class_names(data, data.metadata.get('num_classes', 0))
  precision = average_precision.by_class(rows)
  counts = np.bincount(rows['box_label'][rows['box_weights'] > 0], minlength=len(names))
  table = [
    (names[k], f'{counts[k]:,}', brief(float(v.mean())), brief(float(v[0])), brief(float(v[5])))
    for k, v in list(precision.items())[:MAX_LISTED]
  ]
  head = 'class', 'boxes', 'AP', 'AP at 0.5', 'AP at 0.75'
  truth = average_precision.true_boxes(rows)

  def drawn(i: int, image: np.ndarray) -> str:
    scale = rows['frame'][i, :2] if 'frame' in rows else np.ones(2)
    there, seen = rows['box_weights'][i] > 0, rows['score'][i] >= MIN_SCORE
    true = [(box, names[k]) for box, k in zip(truth[i][there], rows['box_label'][i][there],
                                              strict=True)]  # fmt: skip
    predicted = [
      (box, f'{names[k]} {score:.2f}')
      for box, k, score in zip(
        rows['box'][i][seen], rows['prediction'][i][seen], rows['score'][i][seen], strict=True
      )
    ]
    sides = [_boxes(image, some, scale, color)
             for some, color in ((true, '#3cb44b'), (predicted, '#e6194b'))]  # fmt: skip
    return ''.join(sides)

  note = f'left: true boxes; right: predicted boxes with scores of at least {MIN_SCORE}'
  return [
    Section('Average precision by class', layout.grid(head, table)),
    *_gallery('Boxes', note, rows, data, drawn),
  ]


def segments(rows: HostBatch, data: Data) -> list[Section]:
  """Returns the intersection over union of each class, and images with true and predicted masks.

  Args:
    rows: predictions of a `Segmentation` for the first examples of a split, with its labels.
    data: the split.
  """
  names = class_names(data, data.metadata.get('num_classes', 0))
  found = list(class_iou(rows).items())[:MAX_LISTED]
  table = [(names[k], brief(v)) for k, v in found]

  def drawn(i: int, image: np.ndarray) -> str:
    return _picture(image) + ''.join(
      _picture(_painted(image, rows[key][i])) for key in ('mask', 'prediction')
    )

  keys = ''.join(
    f'<span class="key" style="--key: {_color(k)}"></span>{html.escape(names[k])} &#160; '
    for k in range(1, min(len(names), MAX_LISTED))
  )
  sections = _gallery('Masks', 'image, true mask, predicted mask', rows, data, drawn)
  return [
    Section('Intersection over union by class', layout.grid(('class', 'IoU'), table)),
    *(Section(s.title, f'<p class="soft">{keys}</p>{s.html}') for s in sections),
  ]


def _gallery(
  title: str, note: str, rows: HostBatch, data: Data, drawn: Callable[[int, np.ndarray], str]
) -> list[Section]:
  """The first images of a split, each drawn by a function of its number and its pixels."""
  count = min(SHOWN, len(rows['prediction']), data.size)
  positions = np.arange(count)
  indices = data.indices(0, -(-count // data.batch_size)).reshape(-1)[:count]
  image = data.rows(indices, positions)['image']
  if image.ndim != 4 or image.shape[-1] not in (1, 3):
    return []
  cells = ''.join(
    f'<div>{drawn(i, _pixels(image[i]))}<br><span class="soft">example {i + 1:,}</span></div>'
    for i in range(count)
  )
  text = f'<p class="soft">{html.escape(note)}</p><div class="examples wide">{cells}</div>'
  return [Section(title, text)]


def _pixels(image: np.ndarray) -> np.ndarray:
  """Returns an image [I, J, 1 or 3] as bytes [I, J, 3], from its least to its largest value."""
  values = np.nan_to_num(image.astype(np.float32))
  low, high = values.min(), values.max()
  scaled = (255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)
  return np.broadcast_to(scaled, (*scaled.shape[:2], 3))


def _boxes(
  image: np.ndarray, boxes: Sequence[tuple[np.ndarray, str]], scale: np.ndarray, color: str
) -> str:
  """An image with boxes in pixels of its original, each with a text above."""
  from PIL import Image, ImageDraw

  factor = max(1, round(WIDTH / image.shape[1]))
  picture = Image.fromarray(np.ascontiguousarray(image))
  size = image.shape[1] * factor, image.shape[0] * factor
  picture = picture.resize(size, Image.Resampling.NEAREST)
  draw = ImageDraw.Draw(picture)
  for box, text in boxes:
    top, left, bottom, right = (box * np.tile(scale, 2) * factor).tolist()
    draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=color, width=2)
    place = left + 2, max(top - 13, 0)
    draw.rectangle(draw.textbbox(place, text, font_size=12), fill=color)
    draw.text(place, text, fill='white', font_size=12)
  return _element(picture)


def _painted(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """An image with the colors of the classes above 0."""
  from PIL import ImageColor

  classes = np.unique(mask)
  table = np.zeros((int(classes.max()) + 1, 3))
  for k in classes:
    table[k] = ImageColor.getrgb(_color(int(k)))
  share = MIX * (mask > 0)[..., None]
  return (image * (1 - share) + table[mask] * share).astype(np.uint8)


def _color(k: int) -> str:
  return COLORS[(k - 1) % len(COLORS)]


def _picture(image: np.ndarray) -> str:
  from PIL import Image

  return _element(Image.fromarray(np.ascontiguousarray(image)))


def _element(picture: Any) -> str:
  file = io.BytesIO()
  picture.save(file, 'PNG')
  return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
