"""Images with captions: tables, folders and archives; what is missing is named."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from bmx.core.data import Described, Presenting
from bmx.core.errors import InputError
from bmx.data.images.captions import captions
from bmx.data.text.tokenizer_train import learned
from tests.data.pictures import pixels as noise

TEXTS = ('a red ball', 'a dog', 'a dog', 'the sea', 'ball, dog', 'the red sea')
WORDS = {'size': 8, 'length': 6, 'resample': 'bilinear'}


@pytest.fixture(scope='module')
def tokenizer():
  return learned(TEXTS, 'wordpiece', 300)


def pixels():
  return np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)


def pairs():
  return [{'file': f'pictures/{i}.png', 'caption': text} for i, text in enumerate(TEXTS)]


def write(folder, records, name='captions.jsonl', images=pixels):
  """A folder of images and a table of them -> the table's path."""
  (folder / 'pictures').mkdir(exist_ok=True)
  for i, image in enumerate(images()):
    Image.fromarray(image).save(folder / f'pictures/{i}.png')
  path = folder / name
  if name.endswith('.jsonl'):
    path.write_text('\n'.join(map(json.dumps, records)))
    return str(path)
  with path.open('w', newline='') as file:
    table = csv.DictWriter(file, records[0], delimiter='\t' if name.endswith('.tsv') else ',')
    table.writeheader()
    table.writerows(records)
  return str(path)


def rows_of(data):
  every = np.arange(data.size)
  return data.rows(every, every)


@pytest.mark.parametrize('name', ['captions.jsonl', 'captions.csv', 'captions.tsv', ''])
def test_a_table_or_a_folder_with_one(name, tokenizer, tmp_path):
  path = write(tmp_path, pairs(), name or 'captions.csv')
  data = captions(path if name else str(tmp_path), tokenizer=tokenizer, **WORDS, train=False)
  rows = rows_of(data)
  mean, std = (np.float32(data.metadata['normalization'][k]) for k in ('mean', 'std'))
  expected = (pixels() / 255 - mean) / std
  np.testing.assert_allclose(rows['image'], expected, atol=1e-5)
  assert rows['caption'].tolist() == [0, 1, 1, 2, 3, 4]
  special = tokenizer.special
  for text, tokens in zip(TEXTS, rows['tokens'], strict=True):
    ids = [special['cls'], *tokenizer.encode([text])[0], special['sep']]
    assert tokens.tolist() == ids + [special['pad']] * (6 - len(ids))
  assert data.metadata['end_token'] == special['sep']
  assert data.metadata['vocab_size'] == tokenizer.size
  assert data.describe(np.array([3])) == [{'file': 'pictures/3.png', 'caption': 'the sea'}]
  assert isinstance(data, Described) and isinstance(data, Presenting)
  gathered = data.gather(data.resident(), np.array([2, 0]))
  for key, value in rows.items():
    np.testing.assert_array_equal(gathered[key], value[[2, 0]])


def test_an_archive_is_the_same_as_its_files(tokenizer, tmp_path):
  path = write(tmp_path, pairs())
  np.savez(tmp_path / 'images.npz', images=pixels())
  files = captions(path, tokenizer=tokenizer, **WORDS, train=False)
  archive = captions(path, str(tmp_path / 'images.npz'), tokenizer=tokenizer, **WORDS, train=False)
  for key, value in rows_of(files).items():
    np.testing.assert_array_equal(rows_of(archive)[key], value)
  assert files.digest() != captions(path, tokenizer=tokenizer, **WORDS | {'length': 5}).digest()


def test_images_that_are_read_as_needed_are_the_same(tokenizer, tmp_path, monkeypatch):
  path = write(tmp_path, pairs())
  whole = rows_of(captions(path, tokenizer=tokenizer, **WORDS, train=False))
  monkeypatch.setattr('bmx.data.images.captions.RESIDENT_BYTES', 0)
  data = captions(path, tokenizer=tokenizer, **WORDS, train=False)
  assert data.resident() is None
  for key, value in rows_of(data).items():
    np.testing.assert_allclose(value, whole[key], atol=1e-6)


def test_columns_are_joined_and_lists_too(tokenizer, tmp_path):
  records = [p | {'more': ['wet', '', 'cold'] if i else None} for i, p in enumerate(pairs())]
  data = captions(write(tmp_path, records), tokenizer=tokenizer, text=('caption', 'more'), **WORDS)
  assert data.texts[0] == 'a red ball'
  assert data.texts[3] == 'the sea, wet, cold'


def test_splits_have_one_number_for_a_caption(tokenizer, tmp_path):
  path = write(tmp_path, pairs())
  parts = {
    split: captions(path, tokenizer=tokenizer, split=split, holdout=0.5, **WORDS)
    for split in ('train', 'valid')
  }
  assert parts['train'].size == parts['valid'].size == 3
  known = {}
  for data in parts.values():
    for text, number in zip(data.texts, data.arrays['caption'].tolist(), strict=True):
      assert known.setdefault(number, text) == text
  assert len(known) == 5


@pytest.mark.parametrize('resample', ['bilinear', 'bicubic'])
def test_images_are_resized_as_asked(resample, tokenizer, tmp_path):
  """Pillow is the reference: the short side becomes the size, then the center."""
  write(tmp_path, pairs(), images=lambda: [noise(0, 20, 30)] * 6)
  data = captions(str(tmp_path), tokenizer=tokenizer, **WORDS | {'resample': resample}, mean=(0.0,),
                  std=(1.0,), train=False)  # fmt: skip
  way = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}[resample]
  expected = Image.fromarray(noise(0, 20, 30)).resize((12, 8), way).crop((2, 0, 10, 8))
  np.testing.assert_allclose(255 * rows_of(data)['image'][0], np.asarray(expected), atol=1e-3)
  fitted = data.state()
  again = captions(str(tmp_path), tokenizer=tokenizer, fitted=fitted, train=False, length=6)
  np.testing.assert_array_equal(rows_of(again)['image'], rows_of(data)['image'])


def test_predictions_are_the_nearest_captions(tokenizer, tmp_path):
  data = captions(write(tmp_path, pairs()), tokenizer=tokenizer, **WORDS, train=False)
  random = np.random.default_rng(0)
  image, text = random.normal(size=(2, 6, 4))
  text[2] = text[1]  # one caption
  lines = data.present({'image': image, 'text': text})
  for i, line in enumerate(lines):
    scores = {TEXTS[j]: float(text[j] @ image[i]) for j in range(6)}
    best = sorted(scores, key=lambda t, s=scores: -s[t])
    assert list(line['captions']) == best
    assert line['rank'] == best.index(TEXTS[i]) + 1
    assert line['similarity'] == pytest.approx(scores[TEXTS[i]])
    assert (line['row'], line['file'], line['caption']) == (i + 1, f'pictures/{i}.png', TEXTS[i])


def changed(number, **change):
  records = pairs()
  records[number] = {k: v for k, v in (records[number] | change).items() if v is not ...}
  return records


@pytest.mark.parametrize(('records', 'words', 'message'), [
  (changed(2, file='pictures/9.png'), {},
   r'captions.jsonl, line 3: the caption has no image: \S*9.png does not exist; add it'),
  (changed(2, file=''), {}, "line 3: expected the path of an image in 'file'; set --data.file"),
  (changed(2, file=..., fil='a.png'), {}, "line 3: .*'file'; did you mean 'fil'"),
  (changed(1, caption='  '), {}, 'line 2: expected a caption in caption; add it, or remove'),
  (changed(1, caption=...), {}, "line 2: no column 'caption'"),
  (changed(1, caption=7), {}, 'line 2: caption is 7; expected a text, or a list of texts'),
  (pairs(), {'text': ('captoin',)}, "line 1: no column 'captoin'; did you mean 'caption'"),
  (pairs(), {'tokenizer': None}, 'data.tokenizer: expected one'),
  (pairs(), {'tokenizer': 'bpe'}, 'the tokenizer adds no token behind a text'),
  (pairs(), {'resample': 'nearest'}, "resample='nearest': expected one of bilinear, bicubic"),
  (pairs(), {'images': 'absent.npz'}, 'data.images=absent.npz: expected a numpy archive'),
  (pairs()[:5], {'images': 'six.npz'}, r'six.npz: 6 images, and 5 captions; expected one image'),
  (pairs(), {'path': ''}, 'data.path: expected a table of images and captions'),
  (pairs(), {'path': 'captoins.jsonl'}, 'no file captoins.jsonl'),
  (pairs(), {'path': 'pictures/0.png'}, 'pictures/0.png: expected a table'),
  (pairs(), {'path': 'pictures'}, 'pictures: expected one table of captions .* found none'),
])  # fmt: skip
def test_mistakes_are_named(records, words, message, tokenizer, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  np.savez('six.npz', images=pixels())
  given = {'path': write(tmp_path, records), 'tokenizer': tokenizer} | words
  if given['tokenizer'] == 'bpe':
    given['tokenizer'] = learned(TEXTS, 'bpe', 300)
  with pytest.raises(InputError, match=message):
    captions(**given, **{k: v for k, v in WORDS.items() if k not in words})


def test_two_tables_and_a_damaged_image(tokenizer, tmp_path):
  path = write(tmp_path, pairs())
  (tmp_path / 'pictures/4.png').write_bytes(b'\x89PNG')
  with pytest.raises(InputError, match=r'4\.png cannot be read as an image'):
    captions(path, tokenizer=tokenizer, **WORDS)
  write(tmp_path, pairs(), 'more.csv')
  with pytest.raises(InputError, match='found captions.jsonl, more.csv; name the table'):
    captions(str(tmp_path), tokenizer=tokenizer, **WORDS)


def test_emojitwo(data_dir, tokenizer):
  """2,008 drawings with names and keywords, in the order of their table."""
  folder = data_dir / 'emojitwo'
  data = captions(str(folder), str(folder / 'images_32.npz'), text=('name', 'keywords'),
                  tokenizer=tokenizer, **WORDS | {'size': 32}, train=False)  # fmt: skip
  assert data.size == 2008
  assert data.texts[0] == 'grinning face, happy, smiley, emotion'
  with np.load(folder / 'images_32.npz') as file:
    expected = file['images'][7] / 255
  row = data.rows(np.array([7]), np.array([7]))['image'][0]
  mean, std = (np.float32(data.metadata['normalization'][k]) for k in ('mean', 'std'))
  np.testing.assert_allclose(row * std + mean, expected, atol=1e-5)
