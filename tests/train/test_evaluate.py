"""Metrics of a split before a model exists: faults that its labels alone show."""

import jax
import numpy as np
import optax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.core.experiment import Eval
from bmx.data.arrays import ArrayData
from bmx.data.batches import Batches
from bmx.models.mlp import MLP
from bmx.parallel import Layout, make_mesh
from bmx.tasks.classification import BinaryClassification, Classification, auc
from bmx.tasks.metrics import f1, macro_f1, pearson
from bmx.tasks.regression import Regression
from bmx.train import loop
from bmx.train.evaluate import rehearse
from bmx.train.state import plan_state
from tests.conftest import ROOT

N, LAYOUT = 10, Layout(make_mesh({}, jax.devices()[:1]))


def rehearsed(task, metrics, **labels):
  rows = {'x': np.ones((N, 3), np.float32)} | labels
  data = Batches(ArrayData(rows, {}), 4, train=False)
  spec = plan_state(task, optax.sgd(0.1), data.abstract, LAYOUT)
  rehearse('valid', Eval(data, metrics), task, LAYOUT, spec.variables)


BINARY, THREE = BinaryClassification(MLP(1, (4,))), Classification(MLP(3, (4,)))
ONE_CLASS, CLASSES = np.ones(N, np.int32), np.arange(N, dtype=np.int32) % 3
CONSTANT = np.full((N, 1), 7, np.float32)


@pytest.mark.parametrize(
  ('task', 'metric', 'labels', 'message'),
  [
    (BINARY, auc, {'label': ONE_CLASS}, 'eval.valid: auc: AUC needs examples of both classes'),
    (THREE, f1, {'label': CLASSES}, 'eval.valid: f1: .*:macro_f1 reads several classes'),
    (Regression(MLP(1, (4,))), pearson, {'y': CONSTANT}, 'y is constant, 7'),
  ],
)
def test_labels_that_a_metric_cannot_read(task, metric, labels, message):
  with pytest.raises(InputError, match=message):
    rehearsed(task, {metric.__name__: metric}, **labels)


def test_what_predictions_of_zero_may_cause_is_logged(caplog):
  def unlucky(rows):
    assert rows['probability'].shape == (N, 3)
    return 1 / rows['probability'].sum().item()

  rehearsed(THREE, {'unlucky': unlucky, 'macro_f1': macro_f1}, label=CLASSES)
  assert 'eval.valid: unlucky raised for predictions of 0: ZeroDivisionError' in caplog.text


def test_a_run_ends_before_it_compiles(tmp_path):
  overrides = ['mesh.data=1', "eval.test.metrics=('bmx.tasks.metrics:f1',)"]
  config, name = recipes.load(str(ROOT / 'configs/digits_mlp.py:tiny'), overrides)
  with pytest.raises(InputError, match='eval.test: f1: '):
    loop.run(experiment.build(config, name, jax.devices()[:1]), tmp_path / 'run')
  assert not list((tmp_path / 'run').glob('metrics*'))
