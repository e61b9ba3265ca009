"""Click-through rates: metrics against scikit-learn, the loss against the metric."""

import numpy as np
import pytest
from sklearn import metrics

from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.data.recommend.synthetic import clicks
from bmx.models.recsys import DeepFM
from bmx.parallel.sharding import unbox
from bmx.tasks.classification import auc
from bmx.tasks.ctr import (
  ClickThrough,
  calibration,
  calibration_error,
  log_loss,
  normalized_entropy,
)


def rows(n=500):
  random = np.random.default_rng(0)
  score = random.random(n).round(2).astype(np.float32).clip(0.01, 0.99)  # with ties
  return {'score': score, 'label': (random.random(n) < score**2).astype(np.int32)}


def test_metrics_are_those_of_scikit_learn():
  given = rows()
  assert log_loss(given) == pytest.approx(metrics.log_loss(given['label'], given['score']), 1e-6)
  assert auc(given) == pytest.approx(metrics.roc_auc_score(given['label'], given['score']), 1e-9)
  rate = np.full(500, given['label'].mean())
  alone = metrics.log_loss(given['label'], rate)
  assert normalized_entropy(given) == pytest.approx(log_loss(given) / alone, 1e-6)
  assert log_loss({'score': np.float32([1, 0]), 'label': np.array([0, 1])}) < 20  # finite


def test_calibration():
  given = rows()
  assert calibration(given) == pytest.approx(given['score'].sum() / given['label'].sum(), 1e-5)
  perfect = {'score': np.repeat(np.float32([0.2, 0.8]), 50), 'label': np.tile([0] * 4 + [1], 20)}
  perfect['label'][50:] = 1 - perfect['label'][50:]
  assert calibration(perfect) == pytest.approx(1)
  assert calibration_error(perfect) == pytest.approx(0, abs=1e-6)
  wrong = {**perfect, 'score': np.repeat(np.float32([0.3, 0.9]), 50)}
  assert calibration_error(wrong) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(('metric', 'label', 'message'), [
  (calibration, [0, 0], 'needs examples of class 1'),
  (normalized_entropy, [1, 1], 'needs examples of both classes'),
  (log_loss, [], 'the split has none'),
])  # fmt: skip
def test_undefined_metrics_are_refused(metric, label, message):
  given = {'score': np.full(len(label), 0.5, np.float32), 'label': np.array(label)}
  with pytest.raises(InputError, match=message):
    metric(given)
  with pytest.raises(InputError, match='the metric reads score, label'):
    metric({'label': np.array(label)})


def test_the_loss_is_the_log_loss_of_the_predictions():
  data = clicks(50)
  task = ClickThrough(DeepFM(data.metadata['field_sizes'], 1, width=4, widths=(4,)))
  task.validate(data.metadata)
  batch, noise = data.arrays, Noise(np.zeros(2, np.uint32), 0)
  task.check_rows(batch, np.arange(50))
  variables = unbox(task.init(noise, batch))
  loss, out = task.loss(variables, batch, noise, train=False), task.predict(variables, batch, noise)
  found = log_loss({'score': np.asarray(out['score']), 'label': batch['label']})
  assert float(loss.sum / loss.count) == pytest.approx(found, 1e-5)


def test_what_would_read_other_rows_is_refused():
  data = clicks(50)
  sizes = data.metadata['field_sizes']
  task = ClickThrough(DeepFM(sizes, 1))
  ids = data.arrays['ids'].copy()
  ids[7, 1] = sizes[1]
  with pytest.raises(InputError, match=f'ids={sizes[1]} of example 17, column 1: expected 0 <= id'):
    task.check_rows({'ids': ids}, np.arange(10, 60))
  with pytest.raises(InputError, match="expected .* those of the data; set both to 'auto'"):
    ClickThrough(DeepFM((3, 3), 1)).validate(data.metadata)
