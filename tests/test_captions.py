"""Captions that a decoder writes, from end to end: a run on files, a folder, bad pairs."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import bmx
from bmx.core import errors
from bmx.core.errors import InputError
from bmx.data.images.captioned_digits import digits
from bmx.data.images.captions import captions
from bmx.data.text.tokenizer_train import listed
from bmx.main import main
from bmx.models.to_text import ToText
from bmx.models.vit import ViT
from bmx.tasks.seq2seq import Seq2SeqLM
from bmx.tasks.translation import corpus_bleu
from tests.conftest import own_logging
from tests.test_bad_input import message_of

NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
PAIRS = 24


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run on files of pictures of digits; the folder of the pictures and the run's summary."""
  folder = tmp_path_factory.mktemp('captions')
  data: Any = digits(split='valid', train=False, written=True, length=5)
  image, lines = data.source.arrays['image'], []
  for i in range(PAIRS):
    pixels = (16 * image[i, :, :, 0]).clip(0, 255).astype('uint8')
    (folder / 'pictures').mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / f'pictures/{i}.png')
    lines.append(json.dumps({'file': f'pictures/{i}.png', 'caption': data.texts[i]}))
  (folder / 'captions.jsonl').write_text('\n'.join(lines))
  config, name = bmx.load('emoji_captions:tiny', [
    'steps=4', 'schedule.warmup=0', 'batch_size=8',
  ])  # fmt: skip
  config.data = {
    'call': 'bmx.data.images.captions:captions', 'path': str(folder), 'size': 16, 'length': 5,
    'channels': 1, 'split': 'train', 'holdout': 0.25, 'written': True,
    'tokenizer': {'call': 'bmx.data.text.tokenizer_train:listed', 'words': ('above', *NAMES)},
  }  # fmt: skip
  x = bmx.build(config, name, jax.devices())
  return folder, bmx.train(x, folder / 'run')


def predicted(folder, *flags):
  out = folder / 'out.jsonl'
  with own_logging():
    code = main(['--mode=predict', f'--workdir={folder / "run"}', f'--output={out}', *flags])
  lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
  out.unlink(missing_ok=True)
  return code, lines


def test_metrics_are_those_of_the_texts(run):
  folder, summary = run
  code, lines = predicted(folder)
  assert code == 0 and len(lines) == PAIRS // 4
  assert set(lines[0]) == {'row', 'file', 'prediction', 'score', 'target'}
  pairs = [[line[k] for line in lines] for k in ('prediction', 'target')]
  assert summary['metrics']['eval/valid/bleu'] == pytest.approx(corpus_bleu(*pairs))
  page = (folder / 'run' / 'report.html').read_text()
  assert '<h2>Captions (valid)' in page and page.count('data:image/png') >= PAIRS // 4


def test_captions_of_a_folder_are_those_of_its_table(run):
  """The same images without captions; one that cannot be read is left out."""
  folder, _ = run
  (folder / 'pictures/broken.png').write_bytes(b'no image')
  code, lines = predicted(folder, f'--input={folder / "pictures"}')
  (folder / 'pictures/broken.png').unlink()
  assert code == errors.BAD_INPUT and len(lines) == PAIRS and 'target' not in lines[0]
  code, known = predicted(folder, f'--input={folder / "captions.jsonl"}')
  assert code == 0 and all(line['target'] for line in known)
  assert {f'pictures/{line["file"]}': line['prediction'] for line in lines} == {
    line['file']: line['prediction'] for line in known
  }


def test_prompts_are_refused(run, capsys):
  folder, _ = run
  assert main(['--mode=generate', f'--workdir={folder / "run"}', '--prompt=x']) == errors.BAD_INPUT
  assert 'ToText reads image, not text: expected bmx predict' in message_of(capsys.readouterr().err)


def test_rows_are_captions_with_an_end():
  """Begin, the words and the end; weights of 0 behind it; the words of each row again."""
  data: Any = digits(split='train', written=True, length=6)
  rows = data.rows(np.arange(4), np.arange(4))
  words = ('<|endoftext|>', 'above', *NAMES)
  for n in range(4):
    assert ' '.join(words[i] for i in rows['targets'][n, :3]) == data.texts[n]
    assert rows['targets'][n, 3:].tolist() == [0, 0, 0]
    assert rows['tokens'][n].tolist() == [0, *rows['targets'][n, :3], 0, 0]
    assert rows['weights'][n].tolist() == [1, 1, 1, 1, 0, 0]
  found = data.present({
    'prediction': np.array([[2, 1, 3, -1]]), 'targets': rows['targets'][:1],
    'weights': rows['weights'][:1],
  })  # fmt: skip
  assert found == [{'row': 1, 'prediction': 'zero above one', 'target': data.texts[0]}]


@pytest.mark.parametrize(('line', 'words', 'message'), [
  ({'file': 'gone.png', 'caption': 'one'}, {}, 'line 1: the caption has no image: .*gone.png'),
  ({'file': '0.png', 'caption': ' '}, {}, 'line 1: expected a caption in caption'),
  ({'file': '0.png', 'caption': 'one above two'}, {'length': 3},
   'the caption has 4 tokens, begin and end included: expected at most length=3'),
  ({'file': '0.png', 'caption': 'ten'}, {}, "the caption, 'ten': the tokenizer cannot encode"),
  ({'file': '0.png', 'caption': 'one'}, {'tokenizer': None}, 'length=8: expected a tokenizer'),
])  # fmt: skip
def test_bad_pairs(tmp_path, line, words, message):
  Image.new('RGB', (8, 8)).save(tmp_path / '0.png')
  (tmp_path / 'captions.jsonl').write_text(json.dumps(line))
  given = {'tokenizer': listed(('above', *NAMES)), 'length': 8, 'size': 8} | words
  with pytest.raises(InputError, match=message):
    captions(str(tmp_path), written=True, **given)


def test_targets_begin_as_the_model_does():
  task = Seq2SeqLM(ToText(encoder=ViT(0), vocab_size=12, begin=(3, 4)))
  task.validate({'vocab_size': 12, 'begin': [3, 4]})
  with pytest.raises(InputError, match=r'data.begin=\(0,\): expected \(3, 4\), the ids'):
    task.validate({'vocab_size': 12, 'begin': [0]})


@pytest.mark.parametrize('words', [(), ('one', 'one'), ('one two',)])
def test_words_of_a_tokenizer(words):
  with pytest.raises(InputError, match='expected different words without blanks'):
    listed(words)
