"""The wheel, the console script and `bmx` itself, from a folder that holds none of bmx's files."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

import bmx as package
from bmx import arguments, cli, main
from tests.conftest import FLAGS, ROOT

SHORT = ['--steps=4', '--every.log=2', '--cache=off']


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The path of a wheel that was built from this checkout."""
  pytest.importorskip('setuptools')
  folder = tmp_path_factory.mktemp('wheel')
  copy = folder / 'source'
  copy.mkdir()
  for name in ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE', 'bmx', 'configs'):
    (copy / name).symlink_to(ROOT / name)
  command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation',
             '--wheel-dir', folder, copy]  # fmt: skip
  subprocess.run(command, check=True, timeout=120)
  return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel):
  """The folder of an installed wheel."""
  folder = wheel.with_name('installed')
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder)
  return folder


@pytest.fixture
def run(installed, tmp_path):
  """Runs `python -m bmx ARGUMENTS` of the wheel in an empty folder -> CompletedProcess."""

  def call(*arguments):
    env = {**os.environ, 'PYTHONPATH': str(installed),
           'XLA_FLAGS': FLAGS.replace('count=8', 'count=1')}  # fmt: skip
    command = [sys.executable, '-m', 'bmx', *arguments]
    return subprocess.run(
      command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )

  return call


def test_the_wheel_holds_every_module_and_recipe(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
    points = next(n for n in names if n.endswith('entry_points.txt'))
    assert 'bmx = bmx.cli:main' in archive.read(points).decode()
  sources = [p for kind in ('py', 'css', 'html', 'js') for p in (ROOT / 'bmx').rglob(f'*.{kind}')]
  modules = {p.relative_to(ROOT).as_posix() for p in sources}
  recipes = {f'bmx/configs/{p.name}' for p in (ROOT / 'configs').glob('*.py')}
  assert modules | recipes | {'bmx/py.typed'} == {n for n in names if n.startswith('bmx/')}
  assert wheel.name.startswith(f'bmx_jax-{package.__version__}-')


def test_a_recipe_by_name_from_an_empty_folder(run, tmp_path):
  done = run('train', 'digits_mlp:tiny', '--workdir=first', *SHORT)
  assert done.returncode == 0, done.stderr
  stored = json.loads((tmp_path / 'first/config.json').read_text())
  assert (stored['name'], stored['config']['steps']) == ('digits_mlp-tiny', 4)
  done = run('eval', '--workdir=first')
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'first/evaluation.4.json').is_file()


def test_a_recipe_by_file(run, tmp_path):
  (tmp_path / 'mine.py').write_text((ROOT / 'configs/digits_mlp.py').read_text())
  done = run('train', 'mine.py:tiny', '--workdir=second', *SHORT)
  assert done.returncode == 0, done.stderr
  for name, near in (('digit_mlp', 'digits_mlp'), ('./mien.py', 'mine.py'), ('mine', 'mnist_mlp')):
    done = run('train', name)
    assert done.returncode == 2
    assert near in done.stderr, done.stderr


TRANSLATED = {
  'train gpt_char --batch_size=32': '--mode=train --config=gpt_char --config.batch_size=32',
  'eval --workdir=runs/a --step=best': '--mode=eval --workdir=runs/a --step=best',
  '--mode=eval --workdir=a': '--mode=eval --workdir=a',
  'eval runs/a --step=best': '--mode=eval --workdir=runs/a --step=best',
  'predict gs://b/a': '--mode=predict --workdir=gs://b/a',
  'eval digits_mlp:tiny': '--mode=eval --config=digits_mlp:tiny',
  'generate ./a.py:tiny': '--mode=generate --config=./a.py:tiny',
  'train runs/a': '--mode=train --config=runs/a',
  'train configs/a.py:tiny --config.steps=2': '--mode=train --config=configs/a.py:tiny '
  '--config.steps=2',
  'train a --steps 2 --workdir b': '--mode=train --config=a --config.steps 2 --workdir b',
  'generate --prompt=--x=1 --generate.top_k=3': '--mode=generate --prompt=--x=1 '
  '--config.generate.top_k=3',
}  # fmt: skip


@pytest.mark.parametrize('given', TRANSLATED)
def test_the_short_form_is_the_long_one(given):
  assert cli.translate(given.split()) == TRANSLATED[given].split()


def test_flags_are_those_of_the_parser(capsys):
  with pytest.raises(SystemExit):
    main.main(['--help'])
  named = set(re.findall(r'^  (?:-h, )?--(\w+)', capsys.readouterr().out, re.M))
  assert named == set(arguments.FLAGS)


def test_help_names_the_modes(capsys):
  with pytest.raises(SystemExit) as end:
    cli.main(['--help'])
  assert end.value.code == 0
  listed = capsys.readouterr().out.partition('modes:\n')[2].partition('\n\n')[0].splitlines()
  assert {line.split()[0] for line in listed} >= {'train', 'eval', 'predict', 'generate', 'sweep'}


def test_importing_bmx_imports_no_jax():
  code = 'import bmx, sys; assert not {"jax", "ml_collections"} & set(sys.modules); bmx.load'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, timeout=60)


def test_an_unknown_attribute():
  with pytest.raises(AttributeError, match='trian'):
    getattr(package, 'trian')  # noqa: B009


def test_the_five_functions(tmp_path):
  """Without any import of bmx's modules, in a process of its own."""
  code = """
import bmx
x = bmx.build(*bmx.load('digits_mlp:tiny', ['steps=4', 'cache=off']))
assert bmx.train(x, 'run')['steps'] == 4
metrics = bmx.evaluate(x, 'run')
lines = bmx.predict(x, 'run')
assert 'eval/test/loss' in metrics and 'prediction' in next(lines)
assert callable(bmx.train) and bmx.train.loop
"""
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr


def test_messages_name_the_distribution():
  """`bmx` on the package index is another project: nobody is asked to install it."""
  files = [*(ROOT / 'bmx').rglob('*.py'), *ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md')]
  for path in files:
    assert not re.search(r'pip install (-\S+ )*[\'"]?bmx(?!-jax)\b', path.read_text()), path


def test_dependencies_are_imported():
  """Every base dependency is imported by bmx, or says why it is one."""
  text = (ROOT / 'pyproject.toml').read_text()
  sources = ''.join(p.read_text() for p in (ROOT / 'bmx').rglob('*.py'))
  modules = {'orbax-checkpoint': 'orbax', 'tensorflow-datasets': 'tensorflow_datasets',
             'pillow': 'PIL', 'scikit-learn': 'sklearn'}  # fmt: skip
  for line in tomllib.loads(text)['project']['dependencies']:
    name = re.split('[<>=]', line)[0]
    reason = re.search(rf'"{re.escape(line)}",  # (.*)', text)
    used = re.search(rf'^\s*(import|from) {modules.get(name, name)}\b', sources, re.M)
    assert used or (reason and 'imports it' in reason.group(1)), name


def test_paths_are_those_of_the_checkout():
  assert pathlib.Path(package.__file__).parent == ROOT / 'bmx'
