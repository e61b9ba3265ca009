"""Images of one's own, end to end: training on a folder, predictions of folders, instances."""

import base64
import csv
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import bmx
from bmx import experiment
from bmx.core.errors import InputError
from bmx.data.tfds import tfds
from bmx.train import datafile
from bmx.train.evaluate import predictions
from bmx.train.predicted import lines
from bmx.train.run import restored
from tests.data.pictures import folder, pixels, save
from tests.test_bad_input import call, message_of

WORDS = ['epochs=0', 'steps=15', 'batch_size=8', 'data.size=16', 'data.crop=2', 'data.flip=True',
         'task.model.stages=(1,)', 'task.model.features=4', 'task.model.stem=small',
         'schedule.peak=0.02']  # fmt: skip


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  monkeypatch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:1])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """-> (folder of images, run directory, summary)."""
  root = tmp_path_factory.mktemp('images')
  folder(root / 'photos', 12)
  config, name = bmx.load('images', [*WORDS, f'data.path={root / "photos"}'])
  x = bmx.build(config, name, jax.devices()[:1])
  assert (x.data.size, x.evals['valid'].data.size) == (29, 7)
  summary = bmx.train(x, root / 'run')
  shutil.rmtree(root / 'photos')  # predictions need no training file
  return root, root / 'run', summary


def test_a_folder_is_learned_and_kept(run):
  _, workdir, summary = run
  assert summary['metrics']['eval/valid/accuracy'] > 0.8
  kept = json.loads((workdir / 'data.json').read_text())['state']
  assert kept['class_names'] == ['blue', 'green', 'red']
  assert kept['pixels']['shape'] == [16, 16, 3]
  page = (workdir / 'report.html').read_text()
  assert 'Accuracy by class' in page
  assert 'Confusion' in page


def table(path):
  return list(csv.DictReader(path.read_text().splitlines()))


def new_images(root):
  folder(root, 3)
  save(root / 'a.jpg', pixels(7, color=2), quality=95)
  (root / 'red/1.png').write_bytes((root / 'red/1.png').read_bytes()[:200])
  (root / 'empty.png').write_bytes(b'')
  return root


def test_predictions_of_a_folder(run, tmp_path, capsys):
  _, workdir, _ = run
  new = new_images(tmp_path / 'new')
  arguments = ['--mode=predict', f'--workdir={workdir}', f'--input={new}']
  assert call([*arguments, f'--output={tmp_path}/a.csv']) == 2
  said = capsys.readouterr()
  log = said.out + said.err
  assert 'skipped: ' in log
  assert '2 of 11 files could not be read: exit code 2' in log
  rows = table(tmp_path / 'a.csv')
  expected = ['a.jpg', *(f'{c}/{i}.png' for c in ('blue', 'green', 'red') for i in range(3))]
  expected.remove('red/1.png')
  assert [row['file'] for row in rows] == expected
  assert 'label' not in rows[0]  # a.jpg has no class
  right = [row['prediction'] == row['file'].partition('/')[0] for row in rows[1:]]
  assert np.mean(right) > 0.8
  shares = [float(v) for k, v in rows[0].items() if k.startswith('probability.')]
  assert len(shares) == 3
  assert sum(shares) == pytest.approx(1, abs=1e-5)
  for name in ('a.jpg', 'empty.png', 'red/1.png'):
    (new / name).unlink()
  for name, words in (('b', []), ('c', ['--config.predict.tta=flip,crops'])):
    assert call([*arguments, *words, f'--output={tmp_path}/{name}.csv']) == 0
  plain, averaged = (table(tmp_path / f'{n}.csv') for n in 'bc')
  assert [row['label'] for row in plain] == [row['file'].partition('/')[0] for row in plain]
  assert [r['probability.red'] for r in plain] != [r['probability.red'] for r in averaged]
  capsys.readouterr()
  assert call([*arguments, '--config.predict.tta=turn', f'--output={tmp_path}/d.csv']) == 2
  assert "unknown view 'turn'" in message_of(capsys.readouterr().err)


def test_other_folders_and_one_image(run, tmp_path, capsys):
  _, workdir, _ = run
  arguments = ['--mode=predict', f'--workdir={workdir}']
  folder(tmp_path / 'other', 1, ('house', 'tree'))
  assert call([*arguments, f'--input={tmp_path}/other', f'--output={tmp_path}/a.jsonl']) == 0
  rows = [json.loads(line) for line in (tmp_path / 'a.jsonl').read_text().splitlines()]
  assert [row['file'] for row in rows] == ['house/0.png', 'tree/0.png']
  assert 'label' not in rows[0]
  image = tmp_path / 'other/tree/0.png'
  assert call([*arguments, f'--input={image}', f'--output={tmp_path}/b.jsonl']) == 0
  one = json.loads((tmp_path / 'b.jsonl').read_text())
  assert one['probability'] == pytest.approx(rows[1]['probability'], rel=1e-4)
  image.write_text('no image')
  capsys.readouterr()
  assert call([*arguments, f'--input={image}']) == 2
  assert 'none of 1 files can be read as an image' in message_of(capsys.readouterr().err)


def instances(x, stored):
  read = experiment.Instances(x, stored)
  return lambda given: read(given).rows(np.arange(len(given)), np.arange(len(given)))['image']


def test_an_image_in_base64_is_that_of_a_file(run, tmp_path):
  _, workdir, _ = run
  stored = datafile.read(workdir)
  config, name = bmx.load('images', WORDS)
  x = bmx.build(config, name, jax.devices()[:1], stored=stored, evals=False)
  save(tmp_path / 'a.png', pixels(3, 30, 20))
  data = experiment.input_data(x, tmp_path / 'a.png')
  expected = data.rows(np.arange(1), np.arange(1))['image']
  text = base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()
  assert stored is not None
  read = instances(x, stored)
  for given in (text, f'data:image/png;base64,{text}'):
    np.testing.assert_array_equal(read([{'image': given}]), expected)
  state, _ = restored(x, workdir, 'latest')
  rows = list(lines(data, x.task, predictions(data, x.task, x.layout, state)))
  assert rows[0]['file'] == 'a.png'
  data = experiment.Instances(x, stored)([{'image': text}])
  (asked,) = lines(data, x.task, predictions(data, x.task, x.layout, state))
  assert asked['prediction'] == rows[0]['prediction']  # the name of a class
  assert asked['probability'] == pytest.approx(rows[0]['probability'], rel=1e-4)
  with pytest.raises(InputError, match=r'instances\[0\].image: expected numbers, or a file of'):
    read([{'image': 'not base64!'}])
  broken = base64.b64encode(b'no image').decode()
  with pytest.raises(InputError, match=r'instances\[0\].image cannot be read as an image'):
    read([{'image': broken}])


@pytest.mark.parametrize('source', ['digits', 'bytes'])
def test_runs_on_arrays_read_files_as_their_pixels(source, tmp_path):
  image = np.random.default_rng(0).integers(0, 17, (6, 8, 8, 1))
  config, name = bmx.load('digits_mlp:tiny', ['steps=3'])
  config.eval = {}
  pixel = (255 * image / 16).round().astype(np.uint8)
  if source == 'bytes':
    np.savez(tmp_path / 'a.npz', image=pixel, label=np.arange(6) % 3)
    with config.unlocked():
      config.classes = 3
      config.data = {'call': 'bmx.data.arrays:arrays', 'path': str(tmp_path / 'a.npz'),
                     'scale': 100.0}  # fmt: skip
  x = bmx.build(config, name, jax.devices()[:1])
  Image.fromarray(pixel[0, ..., 0]).save(tmp_path / 'a.png')
  got = experiment.input_data(x, tmp_path / 'a.png').rows(np.arange(1), np.arange(1))['image']
  expected = pixel[0] / (255 if source == 'digits' else 100)
  np.testing.assert_allclose(got[0], expected, rtol=1e-5)
  kept = datafile.describe(x.data)
  stored = datafile.DataFile(x.data.size, x.data.spec, kept['metadata'], kept['state'])
  text = base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()
  np.testing.assert_allclose(instances(x, stored)([{'image': text}])[0], expected, rtol=1e-4)


def test_classes_of_tfds_have_names(data_dir):
  data = tfds('cifar10_jpeg', 'test[:4]', str(data_dir / 'tfds'), (0.5,), (0.25,), train=False)
  assert data.metadata['class_names'][:2] == ('airplane', 'automobile')
  assert data.state()['pixels']['shape'] == [32, 32, 3]


def test_other_classes_of_an_evaluation(run, tmp_path, capsys):
  _, workdir, _ = run
  folder(tmp_path / 'other', 2, ('red', 'pink'))
  arguments = ['--mode=eval', f'--workdir={workdir}']
  words = [f'--config.eval.valid.path={tmp_path}/other', '--config.eval.valid.split=all']
  assert call([*arguments, *words]) == 2
  message = message_of(capsys.readouterr().err)
  assert "pink/0.png has class 'pink': expected one of blue, green, red" in message
