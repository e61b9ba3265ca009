"""Folders and tables of images: classes, splits, threads, and what is refused."""

import hashlib
import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bmx.core.errors import InputError
from bmx.core.streams import Draws
from bmx.data.images import folder as reader
from bmx.data.images.augment import augment
from bmx.data.images.folder import FolderData, images
from tests.conftest import ROOT
from tests.data.pictures import folder, pixels, save


@pytest.fixture(scope='module')
def colors(tmp_path_factory):
  return folder(tmp_path_factory.mktemp('colors'))


def rows_of(data):
  every = np.arange(data.size)
  return data.rows(every, every)


def test_classes_are_the_folders_in_order(colors):
  data = images(str(colors), size=16, train=False)
  assert data.metadata['class_names'] == ('blue', 'green', 'red')
  rows = rows_of(data)
  assert rows['image'].shape == (18, 16, 16, 3)
  assert rows['label'].tolist() == [0] * 6 + [1] * 6 + [2] * 6
  strongest = rows['image'].mean((1, 2)).argmax(-1)
  np.testing.assert_array_equal(strongest, 2 - rows['label'])
  assert data.describe(np.array([0, 17])) == [{'file': 'blue/0.png'}, {'file': 'red/5.png'}]
  kept = json.loads(json.dumps(data.state()))
  assert kept['class_names'] == ['blue', 'green', 'red']
  assert kept['pixels']['shape'] == [16, 16, 3]


def test_normalization_is_that_of_pixels(colors):
  mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
  raw = rows_of(images(str(colors), 16, mean=(0.0,), std=(1.0,), train=False))['image']
  assert raw.min() >= 0
  assert 0.5 < raw.max() <= 1
  got = rows_of(images(str(colors), 16, mean=mean, std=std, train=False))['image']
  np.testing.assert_allclose(got, (raw - mean) / std, rtol=1e-4, atol=1e-5)


def test_large_sets_are_read_on_demand_and_give_the_same(colors, monkeypatch):
  words = {'size': 12, 'crop': 2, 'flip': True, 'seed': 3}
  small = images(str(colors), **words)
  monkeypatch.setattr(reader, 'RESIDENT_BYTES', 100)
  large = images(str(colors), **words)
  assert isinstance(large, FolderData)
  assert large.spec == small.spec
  at = np.array([5, 17, 3, 5])
  for name, value in small.rows(at, at + 100).items():
    np.testing.assert_array_equal(large.rows(at, at + 100)[name], value)
  assert large.digest() == images(str(colors), **words).digest()


def test_pixels_do_not_depend_on_threads_or_batches(colors, monkeypatch):
  more = augment(scale=(0.2, 1.0), flip=True, randaugment=2, brightness=0.4, hue=0.1, erase=0.5)
  digests = set()
  for threads in (1, 4):
    monkeypatch.setattr(reader, 'THREADS', threads)
    data = images(str(colors), 16, augment=more, seed=2)
    at = np.arange(36)
    whole = data.rows(at % 18, at)['image']
    parts = [data.rows(p % 18, p)['image'] for p in np.split(at, 6)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    digests.add(hashlib.sha256(whole.tobytes()).hexdigest())
  assert len(digests) == 1
  assert not np.array_equal(whole[:18], whole[18:])


HALF = """
import sys
import numpy as np
from bmx.data.images.augment import augment
from bmx.data.images.folder import images

folder, out, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
more = augment(scale=(0.2, 1.0), flip=True, randaugment=2, brightness=0.4, hue=0.1, erase=0.5)
at = np.arange(first, last)
np.save(out, images(folder, 16, augment=more, seed=2).rows(at % 18, at)['image'])
"""


def test_two_processes_read_the_pixels_of_one(colors, tmp_path):
  """Each makes half of a batch far into a training, as after a resume, by its positions alone."""
  ends = 1_000_000, 1_000_013, 1_000_024
  spans = list(itertools.pairwise(ends))
  places = [tmp_path / f'{first}.npy' for first, _ in spans]
  command = lambda place, span: [sys.executable, '-c', HALF, str(colors), str(place),
                                 *map(str, span)]  # fmt: skip
  running = [subprocess.Popen(command(p, s), cwd=ROOT) for p, s in zip(places, spans, strict=True)]
  assert [process.wait() for process in running] == [0, 0]
  more = augment(scale=(0.2, 1.0), flip=True, randaugment=2, brightness=0.4, hue=0.1, erase=0.5)
  at = np.arange(ends[0], ends[-1])
  whole = images(str(colors), 16, augment=more, seed=2).rows(at % 18, at)['image']
  joined = np.concatenate([np.load(place) for place in places])
  digest = lambda x: hashlib.sha256(x.tobytes()).hexdigest()
  assert digest(joined) == digest(whole)


def test_resized_crops_are_of_the_original(colors):
  data = images(str(colors), 8, augment=augment(scale=(0.1, 0.1)), mean=(0.0,), std=(1.0,))
  got = data.rows(np.array([4]), np.array([9]))['image'][0]
  picture = Image.open(colors / 'blue/4.png')
  width, height = picture.size
  top, left, bottom, right = data.resized.parts(
    np.array([height]), np.array([width]), Draws(0, np.array([9]))
  )[0]
  assert (bottom - top) * (right - left) == pytest.approx(0.1 * width * height, rel=0.2)
  expected = np.asarray(picture.crop((left, top, right, bottom)).resize((8, 8), 2))
  np.testing.assert_allclose(got, expected / 255, atol=1e-6)


def test_splits_by_a_holdout_and_by_folders(colors, tmp_path):
  train = images(str(colors), 8, split='train', holdout=0.25)
  valid = images(str(colors), 8, split='valid', holdout=0.25, train=False)
  assert (train.size, valid.size) == (14, 4)
  names = [d['file'] for data in (train, valid) for d in data.describe(np.arange(data.size))]
  assert len(set(names)) == 18
  for part, count in (('train', 4), ('val', 2), ('test', 3)):
    folder(tmp_path / part, count)
  sizes = {
    s: images(str(tmp_path), 8, split=s, train=False).size for s in ('train', 'valid', 'test')
  }
  assert sizes == {'train': 12, 'valid': 6, 'test': 9}
  shutil.rmtree(tmp_path / 'val')
  words = {'split': 'valid', 'holdout': 0.5, 'train': False}
  held = images(str(tmp_path), 8, **words)
  assert held.size == 6
  assert all(d['file'].startswith('train/') for d in held.describe(np.arange(6)))


def test_a_table_of_files(colors, tmp_path):
  for i in range(4):
    save(tmp_path / f'{i}.png', pixels(i, color=i % 2))
  (tmp_path / 'a.csv').write_text(
    'photo,kind\n' + ''.join(f'{i}.png,{"ab"[i % 2]}\n' for i in range(4))
  )
  data = images(str(tmp_path / 'a.csv'), 8, file='photo', label='kind')
  assert data.metadata['class_names'] == ('a', 'b')
  assert data.arrays['label'].tolist() == [0, 1, 0, 1]
  lines = [{'file': str(colors / 'red/0.png'), 'label': 7}, {'file': '1.png', 'label': 10}]
  (tmp_path / 'b.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  assert images(str(tmp_path / 'b.jsonl'), 8).metadata['class_names'] == ('7', '10')


def predicted(path, fitted):
  return images(str(path), 99, unreadable='skip', fitted=fitted, train=False)


def test_images_to_predict(colors, tmp_path, caplog):
  fitted = images(str(colors), 8).state()
  save(tmp_path / 'x/a.png', pixels(0))
  save(tmp_path / 'b.jpg', pixels(1))
  (tmp_path / 'broken.png').write_bytes(b'nothing')
  (tmp_path / 'notes.txt').write_text('hello')
  (tmp_path / '.hidden.png').write_bytes(b'')
  data = predicted(tmp_path, fitted)
  assert data.metadata['unreadable'] == 1
  assert [d['file'] for d in data.describe(np.arange(2))] == ['b.jpg', 'x/a.png']
  assert set(rows_of(data)) == {'image', 'weights'}
  assert 'skipped: ' in caplog.text
  assert 'broken.png cannot be read as an image (of no known format)' in caplog.text
  assert '1 files, notes.txt' in caplog.text
  assert predicted(tmp_path / 'b.jpg', fitted).size == 1
  folder(tmp_path / 'parts/train', 1)
  save(tmp_path / 'parts/x.png', pixels(0))
  assert predicted(tmp_path / 'parts', fitted).size == 4
  known = predicted(colors, fitted)
  assert known.arrays['label'].tolist() == [0] * 6 + [1] * 6 + [2] * 6
  with pytest.raises(InputError, match='none of 1 files can be read as an image'):
    predicted(tmp_path / 'broken.png', fitted)


def test_large_sets_to_predict_skip_too(colors, tmp_path, monkeypatch):
  fitted = images(str(colors), 8).state()
  shutil.copytree(colors, tmp_path / 'all')
  (tmp_path / 'all/red/2.png').write_bytes((colors / 'red/2.png').read_bytes()[:200])
  small = predicted(tmp_path / 'all', fitted)
  monkeypatch.setattr(reader, 'RESIDENT_BYTES', 100)
  large = predicted(tmp_path / 'all', fitted)
  assert large.size == small.size == 17
  assert large.metadata == small.metadata
  for name, value in rows_of(small).items():
    np.testing.assert_array_equal(rows_of(large)[name], value)


def broken(root):
  (root / 'red/1.png').write_bytes((root / 'red/1.png').read_bytes()[:100])
  (root / 'red/2.png').write_bytes(b'')


def gone(root):
  (root / 'a.csv').write_text('file,label\nnowhere.png,a\nred/0.png,b\n')


def columns(root):
  (root / 'a.csv').write_text('fiel,label\nred/0.png,a\n')


def without(*names):
  def change(root):
    for name in names:
      shutil.rmtree(root / name)

  return change


def loose(root):
  shutil.copy(root / 'red/0.png', root / 'x.png')


def same(root):
  pass


REFUSED = {
  'truncated': (broken, {}, r'red/1.png cannot be read as an image .*; and 1 further files'),
  'empty class': (lambda r: (r / 'pink').mkdir(), {}, 'pink: expected images in the folder of a'),
  'loose': (loose, {}, 'x.png: expected a folder for each class'),
  'one class': (without('red', 'blue'), {}, 'at least two classes'),
  'other classes': (
    same,
    {'fitted': {'class_names': ['red', 'blue']}},
    r"green/0.png has class 'green': expected one of red, blue, the classes of the training data",
  ),
  'no test': (same, {'split': 'test'}, "split='test': expected a folder test beside train"),
  'split': (same, {'split': 'dev'}, "split='dev': expected one of all, train"),
  'nowhere': (same, {'path': 'nowhere'}, 'no file nowhere'),
  'no path': (same, {'path': ''}, 'data.path: expected a folder of images'),
  'no image': (without('red', 'blue', 'green'), {}, 'expected images .*.png'),
  'file of a table': (gone, {'path': 'a.csv'}, r'nowhere.png cannot be read .No such file'),
  'column': (columns, {'path': 'a.csv'}, "path of an image in 'file'; did you mean 'fiel'"),
  'unreadable': (same, {'unreadable': 'ignore'}, "unreadable='ignore': expected one of"),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_is_one_message(case, colors, tmp_path, monkeypatch):
  change, words, message = REFUSED[case]
  shutil.copytree(colors, tmp_path / 'x')
  change(tmp_path / 'x')
  monkeypatch.chdir(tmp_path / 'x')
  with pytest.raises(InputError, match=message) as info:
    images(**{'path': str(tmp_path / 'x'), 'size': 8, **words})
  assert '\n' not in str(info.value)


def test_a_file_that_breaks_while_it_is_needed(colors, tmp_path, monkeypatch):
  shutil.copytree(colors, tmp_path / 'x')
  monkeypatch.setattr(reader, 'RESIDENT_BYTES', 100)
  data = images(str(tmp_path / 'x'), 8)
  broken(tmp_path / 'x')
  data.rows(np.array([0, 1]), np.arange(2))
  with pytest.raises(InputError, match=r'red/1.png cannot be read as an image'):
    data.rows(np.array([0, 13]), np.arange(2))


def test_shapes_without_files():
  data = images('nowhere', 8, read=False, classes=('a', 'b'))
  assert data.spec['image'].shape == (8, 8, 3)
  assert data.metadata['num_classes'] == 2
