"""A run of images and captions on 8 devices, by commands: retrieval, labels, a server."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.data.images.captioned_digits import digits
from bmx.experiment import Instances
from bmx.main import main
from bmx.serve.predictor import Predictor
from bmx.tasks.zeroshot import with_labels
from bmx.train import datafile, loop
from bmx.train.run import restored
from bmx.train.state import eval_variables
from tests.conftest import ROOT, own_logging

LABELS = ('seven above one', 'one above two', 'four above four')
CHOICE = f'--config.predict.labels={LABELS}'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run on files of pictures of digits, trained for four steps; the folder of the pictures."""
  folder = tmp_path_factory.mktemp('captioned')
  data = digits(split='valid', train=False)
  image = data.images.arrays['image']
  lines = []
  for i in range(24):
    Image.fromarray((16 * image[i, :, :, 0]).clip(0, 255).astype('uint8')).save(folder / f'{i}.png')
    lines.append(json.dumps({'file': f'{i}.png', 'caption': data.texts[i]}))
  (folder / 'captions.jsonl').write_text('\n'.join(lines))
  config, name = recipes.load(
    str(ROOT / 'configs/emoji_clip.py:tiny'), ['steps=4', 'schedule.warmup=0']
  )
  plain = recipes.plain(config)
  plain['data'] = {
    'call': 'bmx.data.images.captions:captions', 'path': str(folder), 'size': 16, 'length': 8,
    'channels': 1, 'split': 'train', 'holdout': 0.25,
    'tokenizer': {'call': 'bmx.data.text.tokenizer_train:trained', 'vocab_size': 300,
                  'path': str(folder / 'captions.jsonl'), 'field': 'caption'},
  }  # fmt: skip
  plain['batch_size'] = 8
  x = experiment.build(recipes.from_plain(plain), name)
  loop.run(x, folder / 'run')
  (folder / 'plain.json').write_text(json.dumps(plain))
  return folder


def predicted(folder, *flags):
  out = folder / 'out.jsonl'
  with own_logging():
    code = main(['--mode=predict', f'--workdir={folder / "run"}', f'--output={out}', *flags])
  lines = [json.loads(line) for line in out.read_text().splitlines()] if code == 0 else []
  out.unlink(missing_ok=True)
  return code, lines


def test_pairs_are_ranked(run):
  """Of the held-out split, and of a table of others, among all captions of each."""
  for flags, count in (((), 6), ((f'--input={run / "captions.jsonl"}',), 24)):
    code, lines = predicted(run, *flags)
    assert code == 0 and len(lines) == count
    for line in lines:
      best = list(line['captions'])
      assert (line['rank'] <= 5) == (line['caption'] in best)
      assert line['caption'] not in best or best[line['rank'] - 1] == line['caption']


def test_images_are_classified_among_texts(run):
  code, lines = predicted(run, f'--input={run}', CHOICE)
  assert code == 0 and len(lines) == 24
  for line in lines:
    assert line['prediction'] == max(line['probability'], key=line['probability'].get)
    assert tuple(line['probability']) == LABELS
  again = predicted(run, f'--input={run}', CHOICE, '--config.predict.templates=("{}","the {}")')[1]
  assert again[0]['probability'] != lines[0]['probability']


@pytest.mark.parametrize(('flags', 'message'), [
  (['--input=pictures'], 'expected one table of captions .* found none'),
  (['--config.predict.labels=("a",)', '--input=pictures'], 'at least two different texts'),
  (['--config.predict.tta=("flip",)'], 'expected a classification of images, not Contrastive'),
])  # fmt: skip
def test_mistakes_are_named(run, flags, message, capfd, monkeypatch):
  (run / 'pictures').mkdir(exist_ok=True)
  (run / 'pictures/0.png').write_bytes((run / '0.png').read_bytes())
  monkeypatch.chdir(run)
  assert predicted(run, *flags)[0] == 2
  assert re.search(message, capfd.readouterr().err)


@pytest.mark.nightly
def test_a_folder_of_hugging_face_and_back(run):
  """The export is checked with transformers; fine-tuning begins with the weights of the run."""
  pytest.importorskip('transformers')
  out = run / 'hf'
  with own_logging():
    flags = ['--config.export.format=huggingface', f'--output={out}']
    assert main(['--mode=export', f'--workdir={run / "run"}', *flags]) == 0
  processor = json.loads((out / 'preprocessor_config.json').read_text())
  assert processor['image_processor_type'] == 'CLIPImageProcessor'
  assert (processor['resample'], processor['crop_size']) == (3, {'height': 16, 'width': 16})
  words = [f'init.path={out}', f'data.path={run}', 'data.size=16', 'data.channels=1', 'length=8',
           'batch_size=8', 'schedule.warmup=0', 'steps=1', 'epochs=0.0']  # fmt: skip
  config, _ = recipes.load(str(ROOT / 'configs/emoji_clip.py:finetune'), words)
  x = experiment.build(config)
  found, stored = x.init(), datafile.read(run / 'run')
  own = experiment.build(
    recipes.from_plain(json.loads((run / 'plain.json').read_text())), evals=False, stored=stored
  )
  expected, _ = restored(own, run / 'run', 'latest')
  assert tree.named(found.params).keys() == tree.named(expected.params).keys()
  for name, value in tree.named(found.params).items():
    np.testing.assert_array_equal(value, tree.named(expected.params)[name], err_msg=name)
  assert x.data.metadata['end_token'] == stored.metadata['end_token']


def test_a_server_chooses_among_texts(run):
  config = recipes.from_plain(json.loads((run / 'plain.json').read_text()))
  stored = datafile.read(run / 'run')
  x = experiment.build(config, evals=False, stored=stored)
  with pytest.raises(ValueError, match=r'predict.labels=\(\): expected the texts that a served'):
    Instances(x, stored)
  config.predict.labels = LABELS
  x = experiment.build(config, evals=False, stored=stored)
  read = Instances(x, stored)
  state, _ = restored(x, run / 'run', 'latest')
  task = with_labels(x.task, LABELS, ('{}',), stored.state)
  predictor = Predictor(task, x.layout, eval_variables(state), read.spec, 8)
  pixels = [[[0.0] * 1] * 16] * 16
  rows = read([{'image': pixels}]).rows([0], [0])
  assert predictor(rows)['probability'].shape == (1, 3)
