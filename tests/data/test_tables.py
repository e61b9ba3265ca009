"""TFDS without TensorFlow, and numpy archives."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.data import tfds as source
from bmx.data.arrays import ArrayData, SourceData, arrays
from bmx.data.tfds import tfds
from tests.conftest import ROOT
from tests.data.batched import batched

SPLIT = 'test[:200]'


@pytest.fixture
def folder(data_dir):
  return str(data_dir / 'tfds')


def rows(data, indices=None):
  indices = np.arange(data.size) if indices is None else indices
  return data.rows(indices, np.arange(len(indices)))


def test_mnist(folder):
  data = batched(tfds, 16, 'mnist', SPLIT, folder, train=False)
  got = rows(data)
  assert isinstance(data.examples, ArrayData)
  assert (data.size, data.metadata['num_classes'], data.metadata['shape']) == (200, 10, (28, 28, 1))
  assert data.abstract['image'] == jax.ShapeDtypeStruct((16, 28, 28, 1), np.float32)
  assert data.abstract['label'] == jax.ShapeDtypeStruct((16,), np.int32)
  assert (got['image'].min(), got['image'].max()) == (0, 1)
  assert set(got['label']) == set(range(10))
  assert abs(got['image'].mean() - 0.1307) < 0.02  # the published mean of all


def test_pixels_are_what_tfds_reads(folder):
  import tensorflow_datasets as library

  mean, std = (0.1307,), (0.3081,)
  data = batched(tfds, 16, 'mnist', 'test[:20]', folder, mean, std, train=False)
  records = list(library.builder('mnist', data_dir=folder).as_data_source('test[:20]'))
  image = np.stack([r['image'] for r in records])
  expected = (image / 255 - 0.1307) / 0.3081
  np.testing.assert_allclose(rows(data)['image'], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(rows(data)['label'], [r['label'] for r in records])


def test_colour(folder):
  mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
  data = batched(tfds, 4, 'cifar10_jpeg', 'test[:8]', folder, mean, std, train=False)
  plain = batched(tfds, 4, 'cifar10_jpeg', 'test[:8]', folder, train=False)
  expected = (rows(plain)['image'] - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(rows(data)['image'], expected, rtol=1e-4, atol=1e-5)
  assert data.metadata['shape'] == (32, 32, 3)


def test_a_set_too_large_for_the_device_gives_the_same_rows(folder, monkeypatch):
  options = {'data_dir': folder, 'crop': 2, 'flip': True, 'seed': 3}
  held = batched(tfds, 16, 'mnist', 'test[:50]', **options)
  monkeypatch.setattr(source, 'RESIDENT_BYTES', 0)
  read = batched(tfds, 16, 'mnist', 'test[:50]', **options)
  assert isinstance(held.examples, ArrayData)
  assert isinstance(read.examples, SourceData)
  assert read.resident() is None
  assert (read.size, read.metadata, read.spec) == (held.size, held.metadata, held.spec)
  for step in (0, 3, 4):
    np.testing.assert_array_equal(read.indices(step)[0], held.indices(step)[0])
    positions = step * 16 + np.arange(16)
    a, b = (d.rows(d.indices(step)[0], positions) for d in (read, held))
    for name, value in b.items():
      np.testing.assert_array_equal(a[name], value)
      assert a[name].dtype == value.dtype


def test_tfds_data_dir_is_honoured_and_tensorflow_stays_out(folder):
  """TFDS reads TFDS_DATA_DIR when it is imported, so in a process of its own."""
  code = (
    'import sys; from bmx.data.tfds import tfds; d = tfds("mnist", "test[:10]");'
    'print(d.size, "tensorflow" in sys.modules)'
  )
  env = {**os.environ, 'TFDS_DATA_DIR': folder}
  command = [sys.executable, '-c', code]
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ['10', 'False']


def test_unknown_data_set(folder):
  with pytest.raises(InputError, match="unknown data set 'mnst'; did you mean 'mnist'"):
    batched(tfds, 4, 'mnst', data_dir=folder)


@pytest.mark.parametrize('split', ['tset', 'test[:9', 'train+tset'])
def test_unknown_split(folder, split):
  with pytest.raises(InputError, match=r'mnist has no split .*; it has train, test'):
    batched(tfds, 4, 'mnist', split, folder)


def test_an_empty_split(folder):
  with pytest.raises(InputError, match=r'test\[:0\]'):
    batched(tfds, 4, 'mnist', 'test[:0]', folder)


def test_a_set_that_is_not_prepared_says_how_to_prepare_it(tmp_path):
  with pytest.raises(InputError, match='mnist is not prepared in') as caught:
    batched(tfds, 4, 'mnist', data_dir=str(tmp_path))
  message = str(caught.value)
  command = next(x.strip() for x in message.splitlines() if 'download_and_prepare' in x)
  code = command.removeprefix('python -c "').removesuffix('"')
  compile(code, 'command', 'exec')
  assert f"t.builder('mnist', data_dir='{tmp_path}'" in code
  assert 'TFDS_DATA_DIR' in message
  assert not any(tmp_path.iterdir())


def test_a_set_without_images(folder):
  with pytest.raises(InputError, match=r"\['idx', 'label', 'sentence'\]: expected image and label"):
    batched(tfds, 4, 'sst2_rebuilt', data_dir=folder)


@pytest.fixture
def archive(tmp_path):
  """Returns a function: arrays -> the path of an archive with them."""

  def make(**arrays):
    np.savez(tmp_path / 'a.npz', **arrays)
    return str(tmp_path / 'a.npz')

  return make


def test_archive_of_images(archive):
  image = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
  label = np.arange(20) % 4
  data = batched(arrays, 4, archive(image=image, label=label), scale=255.0, train=False)
  np.testing.assert_allclose(rows(data)['image'], image / 255, rtol=1e-6)
  np.testing.assert_array_equal(rows(data)['label'], label)
  assert (data.metadata['num_classes'], data.abstract['label'].dtype) == (4, np.int32)
  assert (
    batched(arrays, 4, archive(image=image, label=label), classes=9).metadata['num_classes'] == 9
  )


def test_archive_of_a_regression(archive):
  x, y = np.random.default_rng(0).normal(size=(2, 20)).astype(np.float32)
  data = batched(arrays, 4, archive(x=x[:, None], y=y), train=False)
  np.testing.assert_array_equal(rows(data)['y'], y[:, None])
  assert data.metadata['num_targets'] == 1


def test_archive_holds_out(archive):
  path = archive(x=np.arange(40, dtype=np.float32)[:, None])
  train, valid = (batched(arrays, 4, path, split=s, holdout=0.2) for s in ('train', 'valid'))
  assert (train.size, valid.size) == (32, 8)
  values = np.concatenate([rows(train)['x'], rows(valid)['x']])
  np.testing.assert_array_equal(np.sort(values[:, 0]), np.arange(40))


def test_numpys_own_float_is_one_that_jax_has(archive):
  """Float64 becomes float32, without a warning of jax."""
  data = batched(arrays, 4, archive(x=np.random.default_rng(0).normal(size=(8, 3))))
  assert data.abstract['x'].dtype == np.float32
  assert rows(data)['x'].dtype == np.float32


REFUSED = {
  'other names': (
    {'pictures': np.zeros(3)},
    r"\['pictures'\]: expected arrays named image, x,",
  ),
  'objects': ({'x': np.array([{}, {}])}, 'is not a numpy archive'),
  'nan': ({'x': np.array([[0.0], [np.nan]])}, 'x holds nan in example 1, column 0'),
  'lengths': ({'x': np.zeros((3, 1)), 'label': np.zeros(4, int)}, 'different lengths'),
  'no rows': ({'x': np.zeros((0, 2))}, 'is empty'),
  'negative': ({'x': np.zeros((2, 1)), 'label': np.array([0, -1])}, 'label -1 of example 1'),
  'no example': ({'x': np.float32(3)}, 'x'),
  'words': ({'x': np.array(['a', 'b'])}, 'x'),
  'half a class': ({'x': np.zeros((2, 1)), 'label': np.array([0, 0.5])}, 'label'),
  'flat images': ({'image': np.zeros((4, 8, 8), np.uint8)}, 'image'),
}


@pytest.mark.parametrize(('given', 'message'), REFUSED.values(), ids=REFUSED)
def test_archives_that_cannot_be_read(archive, given, message):
  with pytest.raises(InputError, match=message):
    batched(arrays, 2, archive(**given))


def test_labels_outside_the_given_classes(archive):
  path = archive(x=np.zeros((5, 1)), label=np.arange(5))
  with pytest.raises(InputError, match='label 3 of example 3: expected one of the 3 classes'):
    batched(arrays, 2, path, classes=3)


def no_archive(path):
  path.write_text('hello')


def one_array(path):
  with path.open('wb') as file:
    np.save(file, np.ones(4))


def torn(path):
  np.savez(path, x=np.ones((64, 4)))
  path.write_bytes(path.read_bytes()[:-60])


def empty(path):
  path.touch()


@pytest.mark.parametrize('make', [no_archive, one_array, torn, empty])
def test_files_that_are_no_archive(tmp_path, make):
  make(tmp_path / 'a.npz')
  with pytest.raises(InputError, match=r'a\.npz is not a numpy archive'):
    batched(arrays, 2, str(tmp_path / 'a.npz'))


def test_an_archive_that_is_not_there(tmp_path):
  with pytest.raises(InputError, match='no file .*nowhere'):
    batched(arrays, 2, str(tmp_path / 'nowhere.npz'))
