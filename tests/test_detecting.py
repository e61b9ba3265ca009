"""Detection of files from end to end: in pixels of each file, with names of classes."""

import base64

import jax
import numpy as np
import pytest
from PIL import Image

import bmx
from bmx import experiment
from bmx.core.errors import InputError
from bmx.data.images.scenes import scenes
from bmx.train import datafile
from bmx.train.evaluate import predictions
from bmx.train.predicted import lines

WORDS = ['task.min_score=0.001', 'task.detections=4', 'mesh.data=1', 'data.count=2',
         'eval.valid.count=2']  # fmt: skip


def test_a_run_on_scenes_predicts_files_in_their_own_pixels(tmp_path, caplog):
  """A scene in three sizes; a damaged file is left out. Requests in base64 are answered alike."""
  scene = scenes('test', 1, 32, (2, 2), source='digits').arrays['image'][0]
  for factor in (1, 2, 3):
    large = np.repeat(np.repeat(scene, factor, 0), factor, 1)
    Image.fromarray(large[:, : 24 * factor]).save(tmp_path / f'{factor}.png')
  (tmp_path / 'x.png').write_text('no image')
  config, name = bmx.load('mnist_detect:tiny', WORDS)
  x = bmx.build(config, name, jax.devices()[:1])
  data = experiment.input_data(x, tmp_path)
  assert data.metadata['unreadable'] == 1 and 'x.png cannot be read' in caplog.text
  rows = list(lines(data, x.task, predictions(data, x.task, x.layout, x.init())))
  assert [line['file'] for line in rows] == ['1.png', '2.png', '3.png']
  for factor, line in enumerate(rows, 1):
    assert len(line['objects']) == 4 and 'labels' not in line
    for o in line['objects']:
      assert o['class'] in [str(i) for i in range(10)] and 0 < o['score'] < 1
      assert 0 <= o['top'] < o['bottom'] <= 32 * factor
      assert 0 <= o['left'] < o['right'] <= 24 * factor
    assert max(o['bottom'] for o in line['objects']) > 4 * factor
  given = [
    {'image': base64.b64encode((tmp_path / f'{n}.png').read_bytes()).decode()} for n in '123'
  ]
  asked = instances(x)(given)
  numbers = np.arange(3)
  found, expected = (d.rows(numbers, numbers) for d in (asked, data))
  for name in ('image', 'frame'):
    np.testing.assert_array_equal(found[name], expected[name])
  answers = lines(asked, x.task, predictions(asked, x.task, x.layout, x.init()))
  for answer, line in zip(answers, rows, strict=True):
    for o, other in zip(answer['objects'], line['objects'], strict=True):
      assert o.pop('class') == other.pop('class')
      assert o == pytest.approx(other, rel=1e-4, abs=1e-4)


def instances(x):
  """The reader of the requests of a run."""
  kept = datafile.describe(x.data)
  stored = datafile.DataFile(x.data.size, x.data.spec, kept['metadata'], kept['state'])
  return experiment.Instances(x, stored)


def test_requests_of_a_detector():
  """Numbers are their own originals; what cannot be read is named."""
  config, name = bmx.load('mnist_detect:tiny', WORDS)
  x = bmx.build(config, name, jax.devices()[:1])
  read = instances(x)
  assert read.spec['frame'].shape == (4,) and 'boxes' not in read.spec
  image = np.random.default_rng(0).normal(size=(32, 32, 3)).astype(np.float32)
  rows = read([{'image': image.tolist()}]).rows(np.zeros(1, int), np.zeros(1, int))
  np.testing.assert_array_equal(rows['image'][0], image)
  assert rows['frame'].tolist() == [[1, 1, 32, 32]]
  for given, message in (
    ('no base64!', r'instances\[0\].image: expected numbers, or a file of an image in base64'),
    (base64.b64encode(b'no image').decode(), r'instances\[0\].image cannot be read as an image'),
    ([[1.0]], r'instances\[0\].image has shape \(1, 1\): expected \(32, 32, 3\)'),
  ):
    with pytest.raises(InputError, match=message):
      read([{'image': given}])


def test_what_does_not_fit_a_run_is_named(tmp_path):
  config, name = bmx.load('mnist_detect:tiny', WORDS)
  x = bmx.build(config, name, jax.devices()[:1])
  with pytest.raises(InputError, match='expected images'):
    experiment.input_data(x, tmp_path)
  with pytest.raises(InputError, match='expected a file of annotations'):
    experiment.input_data(x, tmp_path / 'nowhere')
  config, name = bmx.load('mnist_detect:tiny', [*WORDS, 'task.model.num_outputs=3'])
  with pytest.raises(InputError, match='num_outputs=3: expected 10'):
    bmx.build(config, name, jax.devices()[:1])
