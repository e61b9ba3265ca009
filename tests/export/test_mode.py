"""`bmx export`: a package runs without bmx, and is read as the run that it came from."""

import ast
import importlib
import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import bmx
from bmx import cli
from bmx import config as recipes
from bmx import experiment as experiments
from bmx import main as entry
from bmx.adapt import restore
from bmx.core import tree
from bmx.core.errors import InputError, Stop
from bmx.export import check, loader, write
from bmx.modes import export
from bmx.modes.temperature import keep_temperature
from bmx.train import package
from bmx.train.state import state_spec
from tests.conftest import own_logging

WORDS = ('task.model.norm=batch', 'steps=3', 'every.eval=0', 'cache=off')


def call(*arguments):
  with own_logging():
    return entry.main(cli.translate([*map(str, arguments)]), 'bmx')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of a perceptron with batch norm, and its package beside it."""
  folder = tmp_path_factory.mktemp('export')
  config, name = recipes.load('digits_mlp:tiny', WORDS)
  bmx.train(experiments.build(config, name, jax.devices()[:1]), folder / 'run')
  assert call('export', folder / 'run', f'--output={folder}/package', '--license=mit') == 0
  return folder


def test_the_files_of_a_package(run):
  facts = json.loads((run / 'package/package.json').read_text())
  assert facts['inputs'] == {'image': {'shape': ['b', 8, 8, 1], 'dtype': 'float32'}}
  assert set(facts['outputs']) == {'logits', 'prediction', 'probability'}
  assert facts['platforms'] == ['cpu', 'cuda', 'tpu']
  assert 0 <= facts['error'] <= 1e-5
  names = {p.name for p in (run / 'package').iterdir()}
  assert names == {*facts['files'], 'README.md', 'package.json'}
  weights = load_file(run / 'package/model.safetensors')
  assert {name.partition('/')[0] for name in weights} == {'params', 'batch_stats'}
  card = (run / 'package/README.md').read_text()
  digest = json.loads((run / 'run/data.json').read_text())['digest']
  accuracy = json.loads((run / 'run/summary.json').read_text())['metrics']['eval/test/accuracy']
  for text in ('license: mit', digest, f'{accuracy:.4g}', f'{facts["error"]:.2g} of the largest'):
    assert text in card


def test_the_loader_is_short_and_imports_jax_and_numpy_alone():
  text = pathlib.Path(loader.__file__).read_text()
  parsed = ast.parse(text)
  imported = {a.name for n in ast.walk(parsed) if isinstance(n, ast.Import) for a in n.names}
  assert imported == {'hashlib', 'json', 'pathlib', 'jax', 'jax.export', 'numpy'}
  assert not [n for n in ast.walk(parsed) if isinstance(n, ast.ImportFrom)]
  prose = [line for d in (parsed, parsed.body[-1]) for line in ast.get_docstring(d).splitlines()]
  assert len([line for line in text.splitlines() if line.strip()]) - len(prose) <= 40 + 5


def test_a_package_predicts_as_its_run_does(run):
  rows = {}
  for name in ('run', 'package'):
    assert call('predict', run / name, f'--output={run}/{name}.jsonl') == 0
    rows[name] = [json.loads(line) for line in (run / f'{name}.jsonl').read_text().splitlines()]
  assert rows['run'] == rows['package']
  images, _ = importlib.import_module('sklearn.datasets').load_digits(return_X_y=True)
  model = loader.Model(run / 'package')
  with pytest.raises(ValueError, match=r"\['x'\]: expected the inputs \['image'\]"):
    model(x=images)
  with pytest.raises(ValueError, match=r"image \(3, 64\): expected \['b', 8, 8, 1\]"):
    model(image=images[:3])
  found = model(image=np.zeros((2, 8, 8, 1)))
  assert found['logits'].shape == (2, 10)
  assert found['prediction'].dtype == np.int32


def test_a_package_keeps_the_temperature_of_its_step(run):
  step = json.loads((run / 'package/package.json').read_text())['step']
  keep_temperature(run / 'run', step, {'value': 2.0, 'fitted_on': 'valid'})
  try:
    assert call('export', run / 'run', f'--output={run}/tempered') == 0
  finally:
    (run / 'run/temperature.json').unlink()
  rows = {}
  for name, words in (('plain', []), ('scaled', ['--temperature=true'])):
    out = run / f'{name}.jsonl'
    assert call('predict', run / 'tempered', f'--output={out}', *words) == 0
    rows[name] = [json.loads(line)['probability'] for line in out.read_text().splitlines()]
  plain, scaled = (np.array([list(r.values()) for r in rows[k]]) for k in ('plain', 'scaled'))
  expected = plain**0.5 / (plain**0.5).sum(1, keepdims=True)
  np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-7)
  assert call('predict', run / 'package', '--temperature=true') == 2


def test_a_package_begins_another_run(run, capsys):
  config, name = recipes.load('digits_mlp:tiny', [*WORDS, f'init.path={run}/package'])
  x = experiments.build(config, name, jax.devices()[:1])
  state = x.init(state_spec(x))
  given = tree.named({'params': state.params, **state.collections})
  expected = load_file(run / 'package/model.safetensors')
  assert given.keys() == expected.keys()
  assert all((np.asarray(given[k]) == v).all() for k, v in expected.items())
  plain = restore.merged_params(x.task, state_spec(x), f'{run}/package', 'latest', x.layout)
  assert all((np.asarray(v) == expected[f'params/{k}']).all() for k, v in tree.named(plain).items())
  assert call('train', f'--workdir={run}/package', '--steps=9') == 2
  assert '--config.init.path=' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json', 'program.bin'])
def test_a_changed_file_is_named(run, name, capsys):
  path = run / 'package' / name
  kept = path.read_bytes()
  changed = kept[:-9] + bytes([kept[-9] ^ 1]) + kept[-8:]
  try:
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=f'{name}: expected the file that was exported'):
      loader.Model(run / 'package')
    assert call('predict', run / 'package') == 2
    assert f'{name}: expected the file that was exported' in capsys.readouterr().err
  finally:
    path.write_bytes(kept)


def test_a_failing_loader_is_named(run, tmp_path):
  (tmp_path / 'loader.py').write_text('import flax')
  with pytest.raises(Stop, match='loader failed in a process without bmx: .*flax is blocked'):
    check.loaded(tmp_path, [])


def test_a_loader_that_does_not_end_is_named(tmp_path, monkeypatch):
  (tmp_path / 'loader.py').write_text('import time\ntime.sleep(60)')
  monkeypatch.setattr(check, 'SECONDS', 0.5)
  with pytest.raises(Stop, match='loader has not ended within 0.5 s'):
    check.loaded(tmp_path, [])


def test_a_link_of_the_user_is_followed_and_those_of_a_folder_are_not(run, tmp_path, capsys):
  (tmp_path / 'linked').symlink_to(run / 'package')
  assert call('predict', tmp_path / 'linked', f'--output={tmp_path}/rows.jsonl') == 0
  (tmp_path / 'files').mkdir()
  for path in (run / 'package').iterdir():
    (tmp_path / 'files' / path.name).symlink_to(path)
  assert call('predict', tmp_path / 'files', f'--output={tmp_path}/other.jsonl') == 2
  assert 'is a symbolic link, which is not followed' in capsys.readouterr().err


def test_a_platform_that_the_program_lacks_is_named(run, monkeypatch):
  monkeypatch.setattr('jax.default_backend', lambda: 'rocm')
  with pytest.raises(ValueError, match="rocm: expected one of .*'cpu', 'cuda', 'tpu'"):
    loader.Model(run / 'package')


def test_wrong_commands(run, tmp_path, capsys):
  (tmp_path / 'config.json').write_text((run / 'run/config.json').read_text())
  (tmp_path / 'data.json').write_text((run / 'run/data.json').read_text())
  for arguments, message in {
    (run / 'run', '--format=tflite'): "export.format='tflite': expected one of bmx, huggingface",
    (run / 'run', f'--output={run}/package'): 'package: expected a new folder',
    (run / 'run', '--license=a\nb'): 'export.license=',
    (run / 'run', '--format=huggingface', '--length=8'): 'export.length=8: expected 0 with',
    (run / 'run', '--format=huggingface', '--license=mit'): "export.license='mit': expected none",
    (run / 'run', '--format=onnx', '--license=mit'): "export.license='mit': expected none",
    (tmp_path,): 'expected the directory of a run that has trained',
    (run / 'package', '--step=2'): '--step=2: expected 3, the step of the package',
    (): 'give --config=RECIPE, or --workdir=DIR',
  }.items():
    with own_logging():
      try:
        code = call('export', *arguments)
      except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_run_that_trains_with_rounding_is_refused(run, tmp_path, capsys):
  stored = json.loads((run / 'run/config.json').read_text())
  part = {'call': 'bmx.compress.quantize:FakeQuantize', 'inner': stored['config']['task']}
  stored['config']['task'] = part
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  (tmp_path / 'data.json').write_bytes((run / 'run/data.json').read_bytes())
  assert call('export', tmp_path) == 2
  assert 'expected a run whose weights alone are rounded' in capsys.readouterr().err
  assert not (tmp_path / 'export').exists()


def test_an_export_leaves_mesh_and_kernels_behind():
  words = ['mesh.fsdp=8', "rules.mlp=('model',)", 'task.model.attention=cudnn']
  config, _ = recipes.load('gpt_char:tiny', words)
  found, base = export.portable(config), recipes.base()
  assert found.task.model.attention == 'auto'
  assert found.task.model.scan
  assert (found.mesh, found.rules) == (base.mesh, base.rules)


def test_facts_of_another_format_are_refused(run, tmp_path):
  facts = json.loads((run / 'package/package.json').read_text())
  for change, message in (({'format': 2}, 'format=2: expected at most 1'),
                          ({'files': {}}, 'expected model.safetensors among them'),
                          ({'step': 'x'}, 'expected the facts of a package')):  # fmt: skip
    (tmp_path / 'package.json').write_text(json.dumps(facts | change))
    with pytest.raises(InputError, match=message):
      package.read(tmp_path)


def test_a_package_with_another_file_that_would_be_read_is_refused(run, capsys):
  added = run / 'package/tokenizer.json'
  added.write_text('{}')
  try:
    assert call('predict', run / 'package') == 2
  finally:
    added.unlink()
  assert 'tokenizer.json: the export has no such file' in capsys.readouterr().err


def test_a_changed_config_is_refused_before_it_is_built(run):
  path = run / 'package/config.json'
  kept = path.read_bytes()
  try:
    path.write_bytes(kept + b' ')
    with pytest.raises(InputError, match='config.json: expected the file that was exported'):
      package.check_config(run / 'package')
  finally:
    path.write_bytes(kept)


def test_outputs_that_differ_leave_no_folder(run, tmp_path, monkeypatch, capsys):
  plain = check.loaded

  def changed(folder, batches):
    found = plain(folder, batches)
    found[1]['logits'] = found[1]['logits'] + 1e-3
    return found

  monkeypatch.setattr(check, 'loaded', changed)
  assert call('export', run / 'run', f'--output={tmp_path}/out') == 1
  assert 'differ from those of the run by' in capsys.readouterr().err
  assert not [*tmp_path.iterdir()]


def test_a_draft_leaves_folders_of_others_and_names_what_cannot_be_written(tmp_path, monkeypatch):
  (tmp_path / 'out.part').mkdir()
  monkeypatch.chdir(tmp_path / 'out.part')
  with write.draft(pathlib.Path('.')) as draft:
    (draft / 'a').write_text('b')
  assert [p.name for p in (tmp_path / 'out.part').iterdir()] == ['a']
  with write.draft(tmp_path / 'out'):
    pass
  assert (tmp_path / 'out.part/a').is_file()
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot be written'), write.draft(tmp_path / 'file/out'):
    pass


def test_a_card_has_results_of_its_own_step_alone(run):
  assert export.results_of(run / 'run', 3)['steps'] == 3
  assert export.results_of(run / 'run', 2) == {}


@pytest.mark.nightly
def test_adapters_in_bfloat16_are_exported(tmp_path):
  """Merged weights round otherwise than adapters beside a kernel."""
  words = ('steps=3', 'dtype=bfloat16', 'cache=off', 'every.eval=0', 'task.train=embed')
  config, name = recipes.load('gpt_char:tiny_lora', words)
  bmx.train(experiments.build(config, name, jax.devices()[:1]), tmp_path / 'run')
  assert call('export', tmp_path / 'run', f'--output={tmp_path}/out') == 0
  facts = json.loads((tmp_path / 'out/package.json').read_text())
  assert 1e-5 < facts['error'] < 5e-2
