"""Every recipe's `:tiny` variant trains, with falling loss, and leaves a whole run directory."""

import json

import jax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.runtime.writer import read_metrics
from bmx.train import loop
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures('short_library')
NAMES = sorted(p.stem for p in (ROOT / 'configs').glob('*.py'))
NIGHTLY = pytest.mark.nightly
PARTS = (
  'config.json',
  'metrics.jsonl',
  'summary.json',
  'report.html',
  'tensorboard',
  'checkpoints',
)


TINY = [*(f'{name}:tiny' for name in NAMES), 'bert_finetune:tiny_lora', 'gpt_char:tiny_lora',
        'bert_finetune:tiny_adalora', 'text:tiny_lstm']  # fmt: skip
# `llama_70b:tiny` has the model, the data and the optimizer of `llama_8b:tiny`.
# That of `speech` has the task, the model and the data of `fsdd_ctc:tiny`.
# That of `coco` has the task, the model and the data of `mnist_detect:tiny`.
NIGHT = ('bert_finetune:tiny_adalora', 'coco:tiny', 'llama_70b:tiny', 'speech:tiny')


@pytest.mark.parametrize('name', [pytest.param(n, marks=[NIGHTLY] * (n in NIGHT)) for n in TINY])
def test_tiny_trains(name, tmp_path):
  config, full = recipes.load(str(ROOT / f'configs/{name.replace(":", ".py:")}'), ['mesh.data=1'])
  x = experiment.build(config, full, jax.devices()[:1])
  summary = loop.run(x, tmp_path / 'run')
  lines = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  losses = [line['loss'] for line in lines if 'loss' in line]
  assert losses[-1] < losses[0] * 0.95
  assert any(key.startswith('eval/') for line in lines for key in line)
  assert summary['steps'] == x.steps == lines[-1]['step']
  assert not [p for p in PARTS if not (tmp_path / 'run' / p).exists()]
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored['resolved']['steps_per_call'] >= 1
  assert list((tmp_path / 'run' / 'tensorboard').iterdir())


@pytest.mark.parametrize('name', NAMES)
def test_a_recipe_has_its_command_on_top(name):
  text = (ROOT / f'configs/{name}.py').read_text()
  assert f'python -m bmx.main --config=configs/{name}.py' in text.split('"""')[1]
