"""What the report shows of predictions: against scikit-learn, numpy and the data themselves."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from bmx.data import tables
from bmx.data.arrays import ArrayData
from bmx.data.batches import Batches
from bmx.runtime.report import fragments
from bmx.tasks import illustrations

RNG = np.random.default_rng(0)
N = 500


class Cells(html.parser.HTMLParser):
  """The texts of the cells of a table, by row."""

  def __init__(self, text):
    super().__init__()
    self.rows, self.inside = [], False
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th'):
      self.rows[-1].append('')
    self.inside = tag in ('td', 'th', 'wbr') and bool(self.rows)

  def handle_data(self, data):
    if self.inside:
      self.rows[-1][-1] += data


def split(count=N, **arrays):
  return Batches(ArrayData(arrays or {'x': np.zeros((count, 1), np.float32)}, {}), 64, train=False)


def test_the_confusion_is_scikit_learns():
  label, prediction = RNG.integers(0, 5, (2, N))
  section = illustrations.confusion(prediction, label, list('abcde'))
  rows = [row[1:] for row in Cells(section.html).rows[1:]]
  counts = [[int(cell or 0) for cell in row] for row in rows]
  assert counts == metrics.confusion_matrix(label, prediction).tolist()
  assert fragments.clean(section.html) == section.html.replace('&#160;', '\xa0')


def test_many_classes_become_a_list_of_their_most_frequent_mistakes():
  label = np.repeat(np.arange(30), 10)
  prediction = label.copy()
  prediction[30:34], prediction[100:107] = 9, 2
  rows = Cells(illustrations.confusion(prediction, label, [f'c{i}' for i in range(30)]).html).rows
  assert rows[1:] == [['c10', 'c2', '7', '10'], ['c3', 'c9', '4', '10']]


def test_accuracy_by_class_is_scikit_learns_recall():
  label, prediction = RNG.integers(0, 4, (2, N))
  label[label == 2] = 3  # a class that does not occur
  section = illustrations.by_class(prediction, label, list('abcd'))
  recall = metrics.recall_score(label, prediction, labels=[0, 1, 3], average=None, zero_division=0)
  expected = sorted((r, 'abd'[i]) for i, r in enumerate(recall))
  rows = Cells(section.html).rows[1:]
  assert [row[:2] for row in rows] == [[name, f'{100 * r:.1f} %'] for r, name in expected]
  assert fragments.clean(section.html) == section.html


def test_the_worst_examples_are_the_least_probable_wrong_ones():
  image = RNG.random((N, 4, 4, 1), np.float32)
  label = RNG.integers(0, 3, N)
  probability = RNG.dirichlet(np.ones(3), N)
  prediction = probability.argmax(1)
  data = split(image=image, label=label.astype(np.int32))
  *_, worst = illustrations.classes(prediction, label, probability, data)
  order = sorted(range(N), key=lambda i: probability[i, label[i]])[: illustrations.WORST]
  numbers = [int(n.replace(',', '')) for n in re.findall(r'example ([\d,]+)', worst.html)]
  assert numbers == [i + 1 for i in order if prediction[i] != label[i]]
  assert f'{label[order[0]]}, predicted {prediction[order[0]]}' in worst.html
  assert fragments.clean(worst.html) == worst.html
  first = re.search(r'base64,([^"]+)', worst.html).group(1)
  shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))), np.float32)
  given = image[order[0], ..., 0]
  scaled = (given - given.min()) / (given.max() - given.min())
  np.testing.assert_allclose(shown / 255, scaled, atol=1 / 255)


def test_the_histogram_counts_every_finite_number():
  y = RNG.normal(size=N)
  prediction = y + 0.1
  prediction[:3] = np.nan, np.inf, -np.inf
  section = illustrations.histogram('Predictions', prediction, y)
  bars = re.findall(r'title="(\S+) to (\S+): (\d+) predicted, (\d+) true"', section.html)
  assert sum(int(b[2]) for b in bars) == N - 3
  assert sum(int(b[3]) for b in bars) == N
  assert fragments.clean(section.html).count('height: ') == 2 * illustrations.BINS
  assert (
    'not one finite' in illustrations.histogram('P', np.full(3, np.nan), np.full(3, np.nan)).html
  )


def test_regression_shows_its_largest_errors():
  y = np.arange(N, dtype=np.float32)[:, None]
  prediction = y.copy()
  prediction[7], prediction[9] = -1000, np.nan
  *_, worst = illustrations.numbers(prediction, y, split(x=y, y=y))
  assert re.findall(r'example (\d+)', worst.html)[:2] == ['10', '8']
  assert '7, predicted -1,000' in worst.html


@pytest.mark.parametrize('rows', [0, 3])
def test_shapes_that_cannot_be_shown_show_nothing(rows):
  ids, floats = np.zeros((rows, 2), np.int32), np.zeros((rows, 2, 2), np.float32)
  assert illustrations.classes(ids, ids[:, 0], floats, split()) == []
  assert illustrations.numbers(floats, floats, split()) == []
  assert illustrations.columns(split()) == []


CSV = """age,born,city,note,weird&lt;
31,1990-05-17,Bonn,0.5,<b>
47,2001-01-02,"Köln, West",0,<i>
22,1999-12-31,Bonn,-0.5,<b>
"""


def test_rows_of_a_table_read_as_they_were_written(tmp_path):
  """`decode` is the inverse of `encode`; the columns' table escapes their names."""
  (tmp_path / 'x.csv').write_text(CSV.replace('city', 'city,c').replace('Bonn,', 'Bonn,yes,')
                                  .replace('West",', 'West",no,'))  # fmt: skip
  data = Batches(tables.table(str(tmp_path / 'x.csv'), 'c'), 2, train=False)
  rows = data.rows(np.arange(3), np.arange(3))
  encoder = illustrations.TabularEncoder.restore(data.examples.state()['encoder'])
  assert encoder.decode(rows['x'][1]) == {
    'age': '47', 'note': '0', 'born': '2001-01-02', 'city': 'Köln, West', 'weird&lt;': '<i>',
  }  # fmt: skip
  unknown = np.where(np.arange(rows['x'].shape[1]) < 3, rows['x'][1], 0)
  assert encoder.decode(unknown)['city'] == '(unknown)'
  (section,) = illustrations.columns(data)
  cells = {row[0]: row[1:] for row in Cells(section.html).rows}
  assert cells['city'] == ['category', '2: Bonn, Köln, West']
  assert cells['age'][0] == 'number' and cells['born'][0] == 'date'
  assert 'weird&amp;lt;' in section.html
