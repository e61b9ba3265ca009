"""TensorBoard's texts and hyper-parameters; Weights & Biases and trackio, offline."""

import importlib.util
import json
import sqlite3

import pytest

from bmx import config as recipes
from bmx.core.errors import InputError
from bmx.runtime import trackers
from bmx.runtime.tensorboard import Events
from bmx.runtime.trackers import About, Steps, Trackio, WandB


def test_tensorboard_gets_texts_and_hyperparameters(tmp_path):
  from tensorboardX.proto import event_pb2, plugin_hparams_pb2

  events = Events(tmp_path / 'tb', 0)
  events.texts(3, {'sample': 'a\n<b>\ud800'})
  events.hyperparameters({'schedule.peak': 0.5, 'seed': 1, 'paths': ('a', 'b')}, ['loss'])
  events.close()
  data, found = next((tmp_path / 'tb').iterdir()).read_bytes(), []
  while data:  # length, checksum, content, checksum
    size = int.from_bytes(data[:8], 'little')
    found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  values = [v for event in found for v in event.summary.value]
  assert values[0].tensor.string_val[0] == b'    a\n    <b>?'
  parse = plugin_hparams_pb2.HParamsPluginData.FromString
  experiment, start = (parse(v.metadata.plugin_data.content) for v in values[1:])
  assert [m.name.tag for m in experiment.experiment.metric_infos] == ['loss']
  words = start.session_start_info.hparams
  assert words['schedule.peak'].number_value == 0.5 and words['seed'].number_value == 1
  assert words['paths'].string_value == "('a', 'b')"


def test_a_tracker_that_fails_ends_nothing(caplog):
  def fail(step, values):
    raise OSError('no network')

  steps = Steps(fail, lambda: None)
  for step in (1, 2):
    steps.scalars(step, {'loss': 1.0})
  assert caplog.text.count('no network') == 1


@pytest.mark.parametrize('name', ['wandb', 'trackio'])
def test_an_extra_that_is_not_installed_is_named(name, monkeypatch):
  monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: None)
  part = {'call': f'bmx.runtime.trackers:{"WandB" if name == "wandb" else "Trackio"}'}
  with pytest.raises(InputError, match=rf"{name} is not installed: pip install 'bmx-jax\[{name}"):
    recipes.build(part, 'writers.mine')


def about(folder):
  return About(folder, '0123456789abcdef', 'run', {'seed': 0})


def test_weights_and_biases_offline(tmp_path):
  pytest.importorskip('wandb', reason='the extra `wandb` is not installed')
  with pytest.raises(InputError, match='expected one of online, offline'):
    WandB(mode='sometimes')
  sink = WandB(mode='offline').start(about(tmp_path))
  for step in range(10):  # a block of the file may end inside one of them
    sink.scalars(step, {'loss': 1.5})
    sink.texts(step, {'sample': 'abc'})
  sink.close()
  (path,) = tmp_path.glob('wandb/offline-run-*/run-0123456789abcdef.wandb')
  assert b'loss' in path.read_bytes() and b'abc' in path.read_bytes()


def test_trackio_on_this_machine(tmp_path):
  if importlib.util.find_spec('trackio') is None:  # its import reads where the database is
    pytest.skip('the extra `trackio` is not installed')
  sink = Trackio('mine', str(tmp_path)).start(about(tmp_path))
  sink.scalars(10, {'loss': 1.5})
  sink.close()
  (path,) = tmp_path.glob('mine*.db')
  rows = sqlite3.connect(path).execute('select step, metrics from metrics').fetchall()
  assert [(step, json.loads(m)['loss']) for step, m in rows] == [(10, 1.5)]
