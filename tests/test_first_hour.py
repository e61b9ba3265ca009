"""What a newcomer types: `bmx config`, and wrong inputs, each answered with a way to go on."""

import ast
import json
import os
import re

import pytest

from bmx import cli, modes
from bmx import config as recipes
from bmx.modes import config as config_mode
from tests.conftest import ROOT, own_logging

# Command after `bmx` -> what its one message names. Nothing is compiled.
WRONG = {
  'gpt_char': 'bmx train gpt_char',
  'tarin gpt_char': "did you mean 'train'",
  'train': '`bmx config` lists the recipes',
  'train gpt_chr': "did you mean 'gpt_char'",
  'train mnist': "'mnist_cnn', 'mnist_detect', 'mnist_dp', 'mnist_flow', 'mnist_gan',",
  'train recipes/gpt_char.py': "did you mean 'gpt_char', the recipe of bmx",
  'train gpt_char:tniy': "did you mean 'tiny'",
  'train gpt_char tiny': 'a variant is written RECIPE:VARIANT',
  'train README.md': '--config.data.path=README.md, beside a recipe',
  'train configs': '--workdir=configs',
  'train gpt_char --wrokdir=x': 'did you mean --workdir=x?',
  'train gpt_char -steps=3': '--config.steps=3',
  'train gpt_char steps=3': '--config.steps=3',
  'train gpt_char --batch_size = 32': 'without blanks',
  'train gpt_char --batch_size': '--config.batch_size=VALUE',
  'train gpt_char --batch_size=many': 'expected int such as 12',
  'train gpt_char --batch_size 32.5': 'expected int such as 12',
  'train gpt_char --batchsize=32': "did you mean 'batch_size'",
  'train gpt_char --lr=0.1': "did you mean 'schedule.peak'",
  'train gpt_char --weight_decay=0.1': "did you mean 'optimizer.weight_decay'",
  'train gpt_char --model.depth=8': "did you mean 'task.model.depth'",
  'train gpt_char --optimizer=adamw': '--config.optimizer.b2=VALUE',
  'train gpt_char --every=100': '--config.every.eval=VALUE',
  'train gpt_char --device=gpu': '`bmx config RECIPE` lists the words of its parts',
  'train gpt_char --step=100': 'the number of updates is --config.steps',
  'train gpt_char --prompt=hello': 'one of the modes that read it, generate',
  'train digits_mlp --steps=30': 'add --config.epochs=0 to count steps',
  'train digits_mlp:tiny --dtype=bf16': "did you mean 'bfloat16'",
  'train digits_mlp:tiny --keep.metric=accuracy': 'set --config.eval.valid.split=valid',
  'train digits_mlp:tiny --eval.valid.split=valid --data.holdout=0.1 --keep.metric=accuracy':
    "did you mean 'eval/valid/accuracy'",
  'train digits_mlp:tiny --init.path=openai-community/gpt2':
    'hf download openai-community/gpt2 --local-dir openai-community/gpt2',
  'train bert_finetune --init.path=bert-base-uncased': 'hf download bert-base-uncased',
  'eval': '--workdir=DIR',
  'eval digits_mlp': '--workdir=DIR of a run that has trained',
  'plan gpt_char': '--topology, for instance v5e:4x4',
  'train gpt_char --processes=2': 'needs --workdir, the same for all',
  'config gpt_char optimiser': "did you mean 'optimizer'",
}  # fmt: skip


def call(command, capsys):
  """-> exit code, stdout, stderr of a `bmx` command in this process."""
  capsys.readouterr()
  with own_logging():
    try:
      code = cli.main(command.split())
    except SystemExit as end:
      code = end.code
  return code, *capsys.readouterr()


@pytest.mark.parametrize('command', WRONG)
def test_a_wrong_input_names_the_way_forward(command, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'README.md').write_text('text')
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'runs').mkdir()
  code, out, err = call(command, capsys)
  assert code == 2
  assert not out
  assert WRONG[command] in err
  lines = err.splitlines()
  assert len([line for line in lines if line.startswith('usage: bmx MODE')]) <= 1
  assert len([line for line in lines if line.startswith('error: ')]) == 1
  assert 'Traceback' not in err
  assert not list(tmp_path.rglob('config.json'))


# Of files and runs that lie in the folder, see `files`.
WRONG_DATA = {
  'train table --data.path=custmers.csv --data.target=y': "did you mean 'customers.csv'",
  'train table --data.path=semi.csv --data.target=y': "set --data.delimiter=';'",
  'train table --data.path=head.csv --data.target=y': 'has a header and no records',
  'train table --data.path=latin.csv --data.target=y': 'offset 4; save it as UTF-8',
  'train table --data.path=book.xlsx --data.target=y': 'export its sheet as CSV',
  'train table --data.path=runs --data.target=y': 'no file runs: it is a folder',
  'train table --data.path=customers.csv --data.target=age': 'remove records without a target',
  'train table customers.csv': '--config.data.path=customers.csv; to predict it, --input=',
  'predict runs/chrun --input=customers.csv': "no such file; did you mean 'runs/churn'",
  'predict churn --input=customers.csv': 'churn/config.json: expected the config of a run',
  'eval runs': 'a folder of runs, the newest is runs/spend',
  'compare runs': 'at least two run directories; bmx compare runs/*',
}  # fmt: skip


@pytest.fixture
def files(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'customers.csv').write_text('age,y\n1.5,a\nNA,b\n' + '2.5,a\n' * 20)
  (tmp_path / 'semi.csv').write_text('age;y\n1;a\n2;b\n')
  (tmp_path / 'head.csv').write_text('age,y\n')
  (tmp_path / 'latin.csv').write_bytes(b'a,y\n\xe9,p\n')
  (tmp_path / 'book.xlsx').write_bytes(b'PK\x03\x04\xff\xfe')
  for when, name in enumerate(('churn', 'spend')):
    (tmp_path / 'runs' / name).mkdir(parents=True)
    (tmp_path / f'runs/{name}/config.json').write_text('{}')
    os.utime(tmp_path / f'runs/{name}/config.json', (when, when))


@pytest.mark.parametrize('command', WRONG_DATA)
def test_a_wrong_file_or_run_names_the_way_forward(command, capsys, files):
  code, out, err = call(command, capsys)
  assert (code, out) == (2, '')
  assert WRONG_DATA[command] in err
  assert len([line for line in err.splitlines() if line.startswith('error: ')]) == 1
  assert 'Traceback' not in err


@pytest.mark.parametrize('command', ['eval', 'predict digits_mlp:tiny'])
def test_the_newest_run_is_named(command, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for when, name in ((2, 'runs/first'), (3, 'runs/gpt/second'), (1, 'runs/third')):
    path = tmp_path / name / 'config.json'
    path.parent.mkdir(parents=True)
    path.write_text('{}')
    os.utime(path, (when, when))
  code, _, err = call(command, capsys)
  assert code == 2
  assert 'the newest here: --workdir=runs/gpt/second' in err


def test_help_is_one_page(capsys):
  code, out, _ = call('', capsys)
  assert code == 0
  assert out.count('usage:') == 1
  assert all(re.search(rf'^  {mode} ', out, re.MULTILINE) for mode in modes.MODES)


def test_another_learning_rate_in_the_middle(tmp_path, capsys):
  """The run directory of another rate names init.path."""
  config, name = recipes.load('digits_mlp:tiny')
  stored = {'config': recipes.plain(config), 'name': name}
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  code, _, err = call(f'train digits_mlp:tiny --schedule.peak=0.5 --workdir={tmp_path}', capsys)
  assert code == 2
  assert 'schedule.peak: 0.003 there, 0.5 given' in err
  assert f'name another --workdir and add --config.init.path={tmp_path}' in err


def test_the_list_of_recipes(capsys):
  code, out, _ = call('config', capsys)
  assert code == 0
  for name in recipes.names():
    assert re.search(rf'^{name}( :\w+)* :tiny', out, re.MULTILINE), name


@pytest.mark.parametrize('name', recipes.names())
def test_a_recipe_says_what_it_is_and_reaches(name):
  about = recipes.about(name)
  assert about.description.endswith(('.', '?'))
  assert about.reaches
  source = ast.parse((ROOT / f'configs/{name}.py').read_text())
  assert ast.get_docstring(source).startswith(about.description[:20])


@pytest.mark.parametrize('name', recipes.names())
def test_every_word_of_a_recipe_has_a_meaning_and_can_be_set(name):
  """Each line of `bmx config` is an override that is accepted, with the value that it shows."""
  for variant in ('', *(f':{v}' for v in recipes.about(name).variants)):
    config, _ = recipes.load(name + variant)
    before = recipes.plain(config)
    for line in recipes.lines(config):
      assert line.meaning.endswith('.'), line.word
      assert len(line.meaning) < 300, line.word
      if isinstance(line.value, bool | int | float | str) and not line.word.startswith('eval.'):
        recipes.apply(config, [f'{line.word}={line.value}'])
    again = recipes.plain(config)
    assert {k: again[k] for k in ('seed', 'steps', 'every')} == {
      k: before[k] for k in ('seed', 'steps', 'every')
    }


def test_words_of_a_config(capsys):
  code, out, _ = call('config gpt_char --optimizer.clip=0.5 --words=optimizer.', capsys)
  assert code == 0
  rows = {line.split()[0]: line for line in out.splitlines()}
  assert set(rows) >= {'optimizer.call', 'optimizer.b1', 'optimizer.clip', 'optimizer.freeze'}
  assert re.search(r'clip +0\.5 +0\.0 +float +Largest global', rows['optimizer.clip'])
  assert not [name for name in rows if 'learning_rate' in name]  # `experiment.build` gives it


def test_what_a_config_would_build(capsys):
  code, out, _ = call('config digits_mlp:tiny', capsys)
  assert code == 0
  assert 'parameters  2,778' in out  # 64·32 + 32 + 32·16 + 16 + 16·10 + 10
  assert '1,437 examples' in out
  assert '20 of 64 examples' in out
  assert 'eval test   360 examples, 2 times, every 10 steps' in out


def test_what_a_config_without_its_data_would_build(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, out, _ = call('config gpt2_124m', capsys)
  assert code == 0
  assert 'would not train: no token file train.bin' in out
  assert 'parameters  124,439,808' in out


def test_meanings_fit_a_terminal():
  found = [recipes.Line('seed', 0, '0', 'int', 'word ' * 30)]
  text = config_mode.words_table(found, 80)
  assert max(map(len, text.splitlines())) <= 80
  assert text.count('word') == 31  # and the heading


def test_every_mode_is_described():
  assert all(mode.description for mode in modes.MODES.values())
