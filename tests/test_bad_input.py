"""What a person can give wrongly: one message, exit code 2, no traceback, nothing written over.

Most of it calls `main` in this process; what the process itself decides has one of its own.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.main import main
from tests.conftest import ROOT, own_logging

CONFIGS = ROOT / 'configs'
DIGITS, TABLE, GPT = (f'{CONFIGS}/{n}.py:tiny' for n in ('digits_mlp', 'adult_mlp', 'gpt_char'))
MNIST = f'{CONFIGS}/mnist_mlp.py'


def call(arguments):
  """-> the exit code of `main`, without a cache that outlives the test."""
  with own_logging():
    try:
      return main([*map(str, arguments), '--config.cache=off'])
    except SystemExit as end:
      return end.code


def message_of(stderr):
  """The one error on stderr; lines before it are the log's, or of libraries that jax loads."""
  assert 'Traceback' not in stderr
  log, _, message = ('\n' + stderr).partition('\nerror: ')
  assert message, stderr
  assert 'error: ' not in log + message
  return message


@pytest.fixture
def refused(capsys):
  """Arguments -> the one message that `main` gave for them."""

  def run(*arguments):
    capsys.readouterr()
    assert call(arguments) == 2
    said = capsys.readouterr()
    assert not said.out
    return message_of(said.err)

  return run


@pytest.fixture
def workdir(tmp_path):
  return tmp_path / 'run'


def snapshot(folder):
  # `lock` names the process that has the directory open.
  files = sorted(p for p in folder.rglob('*') if p.is_file() and p.name != 'lock')
  return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


BAD_CONFIGS = {
  'misspelt key': (DIGITS, 'optimizer.clpi=1', "'optimizer.clpi'; did you mean 'clip'"),
  'not in the recipe': (DIGITS, 'optimizer.b2=x', 'optimizer.b2=x: expected float such as 0.9'),
  'ill-typed': (DIGITS, 'steps=many', '--config.steps=many: expected int'),
  'ill-typed tuple': (DIGITS, 'task.model.widths=wide', 'widths'),
  'data type': (DIGITS, 'dtype=float31', 'float31'),
  'activation': (DIGITS, 'task.model.activations=rleu', "activation='rleu': expected one of"),
  'data set': (TABLE, 'data.name=irsi', "unknown data set 'irsi'; did you mean 'iris'"),
  'split': (DIGITS, 'data.split=tset', "unknown split 'tset'; known: train, valid, test"),
  'evaluation split': (DIGITS, 'eval.test.split=tset', "unknown split 'tset'"),
  'module': (DIGITS, 'task.call=bmx.taks:X', "'bmx.taks:X' cannot be imported: No module named"),
  'name': (DIGITS, 'task.model.call=bmx.models.mlp:MPL', "no 'MPL'; did you mean 'MLP'"),
  'no path': (DIGITS, 'task.call=MLP', "'MLP': expected an import path"),
  'half a path': (DIGITS, 'task.call=:MLP', 'import'),
  'keyword': (DIGITS, 'data.call=bmx.data.text.windows:text',
              r"no argument 'crop'.*\nit takes \(length"),
  'batch': (DIGITS, 'batch_size=60', 'batch_size=60: expected a multiple of 8'),
  'no batch': (DIGITS, 'batch_size=0', 'batch_size=0'),
  'evaluation batch': (GPT, 'eval.valid.batch_size=12',
                       r'eval\.valid: batch_size=12: expected a multiple'),
  'devices': (DIGITS, 'mesh.data=3', 'mesh data=3 needs 3 devices, but there are 8'),
  'left devices': (DIGITS, 'mesh.fsdp=3', 'needs a multiple of 3 devices, but there are 8'),
  'axis': (DIGITS, 'mesh.modle=2', "'mesh.modle'; did you mean 'model'"),
  'rule': (DIGITS, 'rules.embed=fspd', "no mesh axis 'fspd'; did you mean 'fsdp'"),
  'classes': (DIGITS, 'classes=9', 'num_outputs=9: expected 10, the number of classes'),
  'vocabulary': (GPT, 'task.model.vocab_size=100', 'vocab_size=100: expected at least 256'),
  'metric of test': (DIGITS, 'stop.metric=eval/test/loss', 'the test set must not select'),
  'best by test': (DIGITS, 'keep.metric=eval/test/loss', 'the test set must not select'),
  'metric': (GPT, 'keep.metric=valid/loss', 'metric=valid/loss: expected eval/ENTRY'),
  'mode of a metric': (GPT, 'stop.mode=up', "stop.mode=up: expected 'min' or 'max'"),
  'no end': (DIGITS, 'steps=0', r'set one of steps \(0\) and epochs'),
  'two ends': (DIGITS, 'epochs=2', r'set one of steps \(20\) and epochs \(2\.0\)'),
  'nothing to do': (DIGITS, 'steps=-4', 'nothing to train'),
  'warm-up': (DIGITS, 'schedule.warmup=20', 'warmup=20 leaves nothing of steps=20'),
  'no value': (DIGITS, 'steps', '--config.steps has no value'),
}  # fmt: skip


@pytest.mark.parametrize(('recipe', 'override', 'message'), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_configs(refused, workdir, recipe, override, message):
  said = refused(f'--config={recipe}', f'--config.{override}', f'--workdir={workdir}')
  assert re.search(message, said), said
  assert not workdir.exists()


# A run would hang, end in a traceback after it has compiled, or train nonsense.
OUT_OF_RANGE = {
  'every.log=-1': DIGITS,
  'steps_per_call=-1': DIGITS,
  'seed=-1': DIGITS,
  'classes=0': DIGITS,
  'task.model.widths=(0,)': DIGITS,
  'task.model.dropout=1.5': DIGITS,
  'data.crop=-1': DIGITS,
  'data.holdout=-0.5': DIGITS,
  'ema=2': DIGITS,
  'guard.patience=-1': DIGITS,
  'guard.spike=0.5': DIGITS,
  'guard.spike=1e999': DIGITS,
  'schedule.peak=-1.0': DIGITS,
  'schedule.floor=1.0': DIGITS,
  'optimizer.clip=-1.0': DIGITS,
  'optimizer.eps=1e999': DIGITS,
  'task.smoothing=1.5': DIGITS,
  'task.chunks=0': GPT,
  'generate.temperature=1e999': GPT,
  'length=0': GPT,
  'stop.metric=eval/valid/lsos': GPT,
  'keep.metric=eval/valid/lsos': GPT,
}


@pytest.mark.parametrize(('override', 'recipe'), OUT_OF_RANGE.items(), ids=OUT_OF_RANGE)
def test_values_out_of_range_are_refused_before_anything_is_compiled(override, recipe):
  config, name = recipes.load(recipe, [override])
  with pytest.raises(InputError):
    experiment.build(config, name)


def test_an_unknown_variant(refused, workdir):
  said = refused(f'--config={DIGITS}y', f'--workdir={workdir}')
  assert "unknown variant 'tinyy'; did you mean 'tiny'" in said


def test_a_recipe_that_is_not_there(refused, workdir):
  said = refused(f'--config={ROOT}/configs/digit_mlp.py', f'--workdir={workdir}')
  assert 'did you mean' in said
  assert 'digits_mlp.py' in said


def test_an_unknown_tfds_set(refused, workdir, tmp_path):
  place = f'--config.data.data_dir={tmp_path}'
  said = refused(f'--config={MNIST}', '--config.data.name=mnst', place, f'--workdir={workdir}')
  assert "unknown data set 'mnst'; did you mean 'mnist'" in said
  said = refused(f'--config={MNIST}', place, f'--workdir={workdir}')
  assert 'download_and_prepare()' in said


RECIPE = """
from bmx.config import base


def get_config(variant=''):
  c = base('a recipe of this test')
  c.steps, c.batch_size = 3, 8
  c.task = {'call': 'bmx.tasks.%(task)s', 'model': %(model)s}
  c.data = %(data)s
  c.schedule = {'call': 'bmx.optim.schedules:constant', 'peak': 1e-3}
  c.optimizer = {'call': 'bmx.optim.optimizers:sgd'}
  return c
"""
MLP = {'call': 'bmx.models.mlp:MLP', 'num_outputs': 3, 'widths': (4,)}
LM = {
  'call': 'bmx.models.gpt:GPT',
  'vocab_size': 300,
  'max_seq_len': 8,
  'width': 8,
  'depth': 1,
  'heads': 1,
}
TOKENS = {'call': 'bmx.data.text.windows:tokens', 'vocab_size': 300, 'length': 8}
KINDS = {
  'csv': ('classification:Classification', MLP, {'call': 'bmx.data.tables:table', 'target': 'y'}),
  'npz': ('classification:Classification', MLP, {'call': 'bmx.data.arrays:arrays', 'classes': 3}),
  'bin': ('language:CausalLM', LM, TOKENS),
  'jsonl': (
    'language:CausalLM',
    {**LM, 'vocab_size': 256},
    {'call': 'bmx.data.text.windows:text', 'length': 8},
  ),
  'txt': (
    'language:CausalLM',
    {**LM, 'vocab_size': 256},
    {'call': 'bmx.data.text.windows:text', 'length': 8},
  ),
}


def archive(value=0.0, label=0, n=16):
  x, labels = np.ones((n, 4), np.float32), np.arange(n) % 3
  if n:
    x[5, 2], labels[7] = value, label
  return lambda path: np.savez(path, x=x, label=labels)


def content(text):
  return lambda path: path.write_bytes(text if isinstance(text, bytes) else text.encode())


def ids(bad):
  return lambda path: np.array([1, 2, bad] * 50, np.uint16).tofile(path)


DATA = {
  'nan.npz': (archive(np.nan), 'x holds nan in example 5, column 2'),
  'inf.npz': (archive(np.inf), 'x holds inf in example 5, column 2'),
  'label.npz': (archive(label=3), 'label 3 of example 7: expected one of the 3 classes'),
  'empty.npz': (archive(n=0), 'empty'),
  'text.npz': (content('hello'), 'text.npz is not a numpy archive'),
  'nan.csv': (content('a,y\n1,p\nnan,q\n'), "nan.csv, record 2: a is 'nan'"),
  'fields.csv': (content('a,y\n1,p\n2\n'), 'fields.csv, line 3: 1 fields, expected 2'),
  'latin.csv': (content(b'a,y\n\xe9,p\n'), 'latin.csv is not UTF-8: byte 0xe9 at offset 4'),
  'empty.csv': (content(''), 'empty.csv is empty'),
  'head.csv': (content('a,y\n'), 'head.csv has a header and no records'),
  'target.csv': (content('a,z\n1,p\n'), 'expected a column of'),
  'classes.csv': (content('a,y\n1,p\n2,q\n'), 'num_outputs=3: expected 2, the number of classes'),
  'vocabulary.bin': (ids(300), 'token id 300 at offset 2 of'),
  'empty.bin': (content(b''), 'empty.bin'),
  'short.bin': (content(bytes(8)), 'length=8: expected at most 2'),
  'line.jsonl': (content('{"text": "aaaa"}\n{"tex\n'), 'line.jsonl, line 2: not JSON'),
  'field.jsonl': (content('{"body": "aaaa"}\n'), "line 1: no text under 'text'"),
  'latin.txt': (content(b'caf\xe9 au lait'), 'latin.txt is not UTF-8: byte 0xe9 at offset 3'),
  'empty.txt': (content(' \n'), 'empty.txt is empty'),
  'few.txt': (content('abcdefgh'), 'length=8: expected at most 6'),
  'nowhere.csv': (lambda path: None, 'no file'),
}  # fmt: skip


def recipe_for(path):
  task, model, data = KINDS[path.suffix[1:]]
  recipe = path.with_name('recipe.py')
  recipe.write_text(RECIPE % {'task': task, 'model': model, 'data': {**data, 'path': str(path)}})
  return recipe


@pytest.mark.parametrize('name', DATA)
def test_data(refused, workdir, tmp_path, name):
  write, message = DATA[name]
  write(tmp_path / name)
  said = refused(f'--config={recipe_for(tmp_path / name)}', f'--workdir={workdir}')
  assert message in said
  assert not workdir.exists()


def test_dimensions_that_the_mesh_does_not_divide(refused, workdir):
  overrides = ['--config.mesh.model=2', '--config.task.model.widths=(31, 16)']
  said = refused(f'--config={DIGITS}', *overrides, f'--workdir={workdir}')
  assert 'dense_0/' in said
  assert 'is not divisible by model=2' in said
  assert not workdir.exists()


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of a run of three steps."""
  folder = tmp_path_factory.mktemp('finished') / 'run'
  assert call([f'--config={DIGITS}', '--config.steps=3', f'--workdir={folder}']) == 0
  return folder


@pytest.fixture
def run(finished, workdir):
  """A copy of it that a test may change."""
  shutil.copytree(finished, workdir)
  return workdir


SAME = (f'--config={DIGITS}', '--config.steps=3')


def test_the_same_command_again_is_well(run):
  before = snapshot(run)
  assert call([*SAME, f'--workdir={run}']) == 0
  assert snapshot(run) == before


def test_the_run_of_another_config(refused, run):
  before = snapshot(run)
  other = ['--config.task.model.dropout=0.5', '--config.optimizer.clip=1']
  said = refused(*SAME, *other, f'--workdir={run}')
  assert 'expected the same config as its run' in said
  assert 'task.model.dropout: 0.3 there, 0.5 given' in said
  assert 'optimizer.clip: 0.0 there, 1.0 given' in said
  assert len(said.strip().splitlines()) == 4
  assert snapshot(run) == before


def test_a_folder_of_something_else(refused, workdir):
  workdir.mkdir()
  (workdir / 'thesis.txt').write_text('precious')
  before = snapshot(workdir)
  said = refused(*SAME, f'--workdir={workdir}')
  assert 'expected a new directory or a run of bmx, found thesis.txt' in said
  assert snapshot(workdir) == before


@pytest.mark.parametrize('text', ['{"model_type": "gpt2"}', '[1]', '{', '{"config": {}}'])
def test_a_config_that_is_none_of_ours(refused, workdir, text):
  workdir.mkdir()
  (workdir / 'config.json').write_text(text)
  before = snapshot(workdir)
  said = refused(*SAME, f'--workdir={workdir}')
  assert str(workdir) in said
  assert snapshot(workdir) == before


@pytest.mark.parametrize('text', ['{"model_type": "gpt2"}', '{'])
def test_a_config_that_is_none_of_ours_is_not_run(refused, workdir, text):
  workdir.mkdir()
  (workdir / 'config.json').write_text(text)
  assert 'config.json' in refused(f'--workdir={workdir}', '--mode=eval')


@pytest.mark.parametrize('below', ['', 'run', 'a/b'])
def test_a_workdir_that_cannot_be_written(refused, tmp_path, below):
  (tmp_path / 'file').write_text('precious')
  said = refused(*SAME, f'--workdir={tmp_path / "file" / below}')
  assert 'cannot be written' in said
  assert (tmp_path / 'file').read_text() == 'precious'


@pytest.mark.parametrize('mode', ['eval', 'predict'])
def test_use_without_a_workdir(refused, mode):
  assert f'--mode={mode} needs --workdir=DIR' in refused(*SAME, f'--mode={mode}')


@pytest.mark.parametrize('mode', ['eval', 'predict'])
def test_use_of_a_workdir_without_a_run(refused, workdir, mode):
  said = refused(*SAME, f'--workdir={workdir}', f'--mode={mode}')
  assert 'expected the directory of a run' in said
  said = refused(f'--workdir={workdir}', f'--mode={mode}')
  assert 'config.json: expected the config of a run' in said
  assert not workdir.exists()


def test_use_of_a_run_without_a_checkpoint(refused, run):
  shutil.rmtree(run / 'checkpoints' / '3')
  assert 'no checkpoint in' in refused(f'--workdir={run}', '--mode=eval')


@pytest.mark.parametrize(
  ('step', 'message'),
  [
    ('7', "no checkpoint of step '7'; there are 3"),
    ('newest', "no checkpoint of step 'newest'; there are 3"),
    ('-3', "no checkpoint of step '-3'"),
    ('best', 'no best checkpoint in'),
  ],
)
def test_a_step_that_is_not_there(refused, run, step, message):
  before = snapshot(run)
  assert message in refused(f'--workdir={run}', '--mode=eval', f'--step={step}')
  assert snapshot(run) == before


LEAVES = {
  (32, 8): ('differs  params/dense_1/kernel: has [[32, 16]', 'differs  params/head/kernel'),
  (32,): ('extra    params/dense_1/kernel', 'differs  params/head/kernel'),
  (32, 16, 8): ('missing  params/dense_2/kernel', 'differs  params/head/kernel'),
}


def rewrite(run, **changes):
  """A config.json that says another model, so that config and checkpoint disagree."""
  path = run / 'config.json'
  stored = json.loads(path.read_text())
  stored['config']['task']['model'].update(changes)
  path.write_text(json.dumps(stored))


@pytest.mark.parametrize('widths', LEAVES)
def test_a_checkpoint_of_another_model(refused, run, widths):
  rewrite(run, widths=widths)
  before = snapshot(run)
  said = refused(f'--workdir={run}', '--mode=eval')
  assert 'checkpoints/3 does not fit the model' in said
  for line in LEAVES[widths]:
    assert line in said
  assert snapshot(run) == before


def test_training_does_not_go_on_from_another_model(refused, run):
  rewrite(run, widths=(32, 8))
  before = snapshot(run)
  said = refused(f'--workdir={run}', '--config.steps=6')
  assert 'does not fit the model' in said
  assert 'differs  params/dense_1/kernel' in said
  assert snapshot(run) == before


def test_a_damaged_checkpoint(refused, run):
  files = [p for p in (run / 'checkpoints/3').rglob('*') if p.is_file()]
  largest = max(files, key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  said = refused(f'--workdir={run}', '--mode=eval')
  assert 'checkpoint 3 is damaged' in said
  assert largest.name in said


INPUTS = {
  'nowhere.npz': (lambda path: None, 'no file'),
  'text.npz': (content('hello'), 'is not a numpy archive'),
  'nan.npz': (lambda path: np.savez(path, image=np.full((4, 8, 8, 1), np.nan)), 'image holds nan'),
  'shape.npz': (lambda path: np.savez(path, image=np.zeros((4, 9, 9, 1), np.float32)), 'image'),
  'key.npz': (lambda path: np.savez(path, label=np.zeros(4, int)), 'image'),
}


@pytest.mark.parametrize('name', INPUTS)
def test_input_that_cannot_be_predicted(refused, run, tmp_path, name):
  write, message = INPUTS[name]
  write(tmp_path / name)
  said = refused(f'--workdir={run}', '--mode=predict', f'--input={tmp_path / name}')
  assert message in said
  assert not (run / 'predictions').exists()


USAGE = {
  'mode': (['--mode=tarin'], '--mode=tarin: expected one of train, eval,'),
  'flag': (['--confgi=x'], "unknown argument '--confgi=x'"),
  'abbreviation': (['--work=x'], "unknown argument '--work=x'"),
  'word': (['tiny'], "unknown argument 'tiny'"),
}


@pytest.mark.parametrize(('arguments', 'message'), USAGE.values(), ids=USAGE)
def test_usage(capsys, workdir, arguments, message):
  assert call([f'--config={DIGITS}', f'--workdir={workdir}', *arguments]) == 2
  said = capsys.readouterr().err
  assert message in said
  assert 'Traceback' not in said
  assert not workdir.exists()


def test_no_arguments(capsys):
  with pytest.raises(SystemExit) as end:
    main([])
  assert end.value.code == 2
  assert 'give --config=' in capsys.readouterr().err


# Processes of their own.


def test_help(bmx):
  done = bmx('--help')
  assert done.returncode == 0
  assert all(f'--{flag}' in done.stdout for flag in ('config', 'workdir', 'mode', 'step'))


def test_the_door_opens_without_jax():
  code = "import bmx.main, sys; assert 'jax' not in sys.modules"
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


PROCESSES = {
  'misspelt key': (['--config.optimizer.clpi=1'], 1, "did you mean 'clip'"),
  'mesh': (['--config.mesh.data=2'], 1, 'mesh data=2 needs 2 devices, but there are 1'),
  'batch': (['--config.batch_size=60'], 8, 'batch_size=60: expected a multiple of 8'),
  'split': (['--config.data.split=tset'], 1, "unknown split 'tset'"),
  'step': (['--mode=eval', '--step=7'], 1, 'expected the directory of a run'),
}


@pytest.mark.parametrize(('arguments', 'devices', 'message'), PROCESSES.values(), ids=PROCESSES)
def test_processes(bmx, workdir, arguments, devices, message):
  config = '--config=configs/digits_mlp.py:tiny'
  done = bmx(config, *arguments, f'--workdir={workdir}', devices=devices)
  assert done.returncode == 2, done.stderr
  assert message in message_of(done.stderr)
  assert not done.stdout
  assert not workdir.exists()


def test_processes_leave_a_run_as_it_is(bmx, run):
  rewrite(run, widths=(32, 8))
  before = snapshot(run)
  for arguments in (['--mode=eval'], ['--config.steps=6'], ['--config.seed=1']):
    done = bmx(f'--workdir={run}', *arguments)
    assert done.returncode == 2, done.stderr
    assert message_of(done.stderr)
  assert snapshot(run) == before


@pytest.mark.parametrize(('flags', 'message'), [
  (['--step=100'], '; the number of updates is --config.steps'),
  (['--mode=eval', '--input=x.csv'], '--input: expected one of the modes that read it'),
  (['--mode=predict', '--prompt=x'], '--prompt: expected one of the modes that read it, generate'),
])  # fmt: skip
def test_a_flag_that_the_mode_does_not_read(flags, message, capsys):
  assert main(['--config=digits_mlp:tiny', *flags]) == 2
  assert message in capsys.readouterr().err
