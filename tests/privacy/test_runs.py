"""Private runs: from the config to log lines, with a budget, a secret, and resumes."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError, Preempted
from bmx.core.events import Hook
from bmx.modes import Request
from bmx.modes import evaluate as evaluate_mode
from bmx.privacy.accounting import Accountant
from bmx.runtime.writer import TIMES, read_metrics
from bmx.train import loop, rundir
from bmx.train.state import state_spec
from tests.conftest import ROOT

DIGITS = 'digits_mlp.py:tiny'
NOISY = ['privacy.noise_multiplier=1.0']
TEXT = '0123456789abcdef0123456789abcdef'


@pytest.fixture(autouse=True)
def secret(monkeypatch):
  monkeypatch.setenv('BMX_PRIVACY_SECRET', TEXT)


def built(*words, recipe=DIGITS):
  config, name = recipes.load(str(ROOT / 'configs' / recipe), ['mesh.data=1', *words])
  return experiment.build(config, name, jax.devices()[:1])


def lines(workdir):
  found = read_metrics(workdir / 'metrics.jsonl')
  return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def stop(event):
  raise KeyError(event.step)


def test_a_budget_chooses_the_noise_and_is_in_every_log_line(tmp_path, caplog):
  """ε of each line is that of the accountant; the secret is in no file of the run."""
  caplog.set_level('INFO', 'bmx')
  x = built('privacy.epsilon=3', 'ema=0.5', 'privacy.quantile=0.5', 'privacy.micro_batches=2')
  noise = x.config['privacy']['noise_multiplier']
  assert f'ε 3 at δ 1e-05 after 20 steps: noise multiplier {noise:g}' in caplog.text
  assert x.data.batch_size % 2 == 0 and x.data.batch_size > x.data.expected == 64
  summary = loop.run(x, tmp_path / 'run')
  found = [line for line in lines(tmp_path / 'run') if 'loss' in line]
  accountant = Accountant(noise, 64 / 1437, 1e-5)
  for line in found:
    assert line['epsilon'] == pytest.approx(accountant.epsilon(line['step']), rel=3e-3)
    assert {'accuracy', 'without_target'}.isdisjoint(line), 'exact metrics of training examples'
  assert 2.9 < summary['metrics']['epsilon'] <= 3.0
  assert f'Poisson samples, 64 of 1,437 examples on average, at most {x.data.batch_size}' in (
    (tmp_path / 'run' / 'report.html').read_text()
  )
  with pytest.raises(InputError, match=r'privacy.noise_multiplier: .* there, .* given'):
    loop.run(built('privacy.epsilon=3', 'steps=40'), tmp_path / 'run')
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())['config']['privacy']
  assert config['fingerprint'] == x.secret.fingerprint
  for folder, _, files in os.walk(tmp_path / 'run'):
    for name in files:
      with open(os.path.join(folder, name), 'rb') as file:
        assert TEXT.encode() not in file.read(), name


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path, monkeypatch):
  """To the last bit: noise and draws are functions of secret, run and step; ε counts each once."""
  monkeypatch.setattr(rundir.secrets, 'token_hex', lambda n: 'a1' * n)
  words = [*NOISY, 'every.save=5', 'every.log=5', 'privacy.quantile=0.5']
  whole = loop.run(built(*words), tmp_path / 'whole')
  with pytest.raises(KeyError):
    loop.run(built(*words), tmp_path / 'run', {'stop': Hook((12,), stop)})
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '12')  # as if it had been killed
  found = loop.run(built(*words), tmp_path / 'run')
  assert found['state_digest'] == whole['state_digest']
  assert lines(tmp_path / 'run') == lines(tmp_path / 'whole')


def test_a_killed_run_repeats_steps_with_the_same_words_only(tmp_path):
  """Under another schedule they would meet other weights with the same noise."""
  words = [*NOISY, 'steps=8', 'every.save=3', 'every.log=1']
  with pytest.raises(KeyError):
    loop.run(built(*words), tmp_path / 'run', {'stop': Hook((5,), stop)})
  longer = [*words, 'steps=12']
  with pytest.raises(InputError, match=r'which was killed: .* same noise(.|\n)*steps: 8 there, 12'):
    loop.run(built(*longer), tmp_path / 'run')
  assert loop.run(built(*words, 'every.log=2'), tmp_path / 'run')['steps'] == 8
  found = loop.run(built(*longer), tmp_path / 'run')  # the run has ended, and nothing is repeated
  assert found['steps'] == 12 and not (tmp_path / 'run' / 'unsaved').exists()


def test_an_interrupted_run_is_saved_and_may_get_other_steps(tmp_path):
  words = [*NOISY, 'steps=8', 'every.save=0']

  def interrupt(event):
    os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Preempted):
    loop.run(built(*words), tmp_path / 'run', {'stop': Hook((3,), interrupt)})
  assert loop.run(built(*words, 'steps=6'), tmp_path / 'run')['steps'] == 6


def test_two_runs_of_one_secret_have_other_noise(tmp_path):
  """Noise that two runs share is the difference of what they release."""
  words = [*NOISY, 'steps=3']
  digests = [loop.run(built(*words), tmp_path / name)['state_digest'] for name in 'ab']
  assert digests[0] != digests[1]


def test_another_secret_is_refused_and_none_is_needed_to_evaluate(tmp_path, monkeypatch):
  words = [*NOISY, 'steps=4', 'every.save=2']
  with pytest.raises(KeyError):
    loop.run(built(*words), tmp_path / 'run', {'stop': Hook((2,), stop)})
  monkeypatch.setenv('BMX_PRIVACY_SECRET', TEXT[::-1])
  with pytest.raises(InputError, match=r'privacy.fingerprint: .* there, .* given'):
    loop.run(built(*words), tmp_path / 'run')
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())['config']
  with pytest.raises(InputError, match='expected the secret of fingerprint'):
    experiment.build(recipes.from_stored(stored), 'run', jax.devices()[:1])
  monkeypatch.delenv('BMX_PRIVACY_SECRET')
  config = recipes.from_stored(stored)
  config.mesh.data = -1
  request = Request(config, 'run', str(tmp_path / 'run'))
  assert evaluate_mode.run(request) == 0


def test_training_ends_before_the_budget_is_spent(tmp_path):
  x = built('privacy.epsilon=1.8', 'steps=500', *NOISY)
  accountant = Accountant(1.0, 64 / 1437, 1e-5)
  assert accountant.epsilon(x.steps) <= 1.8 < accountant.epsilon(x.steps + 1)
  summary = loop.run(x, tmp_path / 'run')
  assert summary['steps'] == x.steps < 500
  assert summary['metrics']['epsilon'] <= 1.8


BAD = {
  'privacy.epsilon=-1': 'privacy.epsilon=-1.0: expected a finite number, 0 <= privacy.epsilon',
  'privacy.epsilon=1e-9 steps=9000': 'privacy.epsilon=1e-09: expected at least .*, however',
  'privacy.delta=1e-5': 'privacy: expected a budget, such as --config.privacy.epsilon=3',
  'privacy.noise_multiplier=0.01': 'noise_multiplier=0.01: expected at least 0.3, or 0 to choose',
  'privacy.epsilon=1 privacy.noise_multiplier=0.5': r'epsilon=1: expected at least [\d.]+, which',
  'privacy.epsilon=3 batch_size=1500': 'batch_size=1500: expected at most 1437, the examples',
  'privacy.epsilon=3 privacy.delta=1': 'privacy.delta=1.0: expected 0 < privacy.delta < 1',
  'privacy.epsilon=3 privacy.clip=0': 'privacy.clip=0.0: expected a finite number, 0 < privacy',
  'privacy.epsilon=3 privacy.secret=/absent': 'privacy.secret=/absent: expected a file',
  'privacy.epsilon=3 privacy.method=gohst': "privacy.method='gohst': expected vmap or ghost; did",
  'privacy.epsilon=3 task.mixup=0.2': 'expected examples that do not see each other',
  'privacy.epsilon=3 eval.train.split=train': 'eval.train: expected other examples than the train',
  'privacy.epsilon=3 allow_changed_data=True': 'allow_changed_data=True: expected False',
  'privacy.epsilon=3 grad.call=bmx.train.gradients:GradWrapper': 'grad=GradWrapper: expected bmx',
  'privacy.epsilo=3': "unknown config key 'privacy.epsilo'; did you mean 'epsilon'",
  'privacy.call=bmx.models.mlp:MLP privacy.num_outputs=3': 'privacy.call=bmx.models.mlp:MLP: exp',
}


@pytest.mark.parametrize('words', BAD)
def test_bad_words(words):
  with pytest.raises(InputError, match=BAD[words]):
    built(*words.split())


def test_batch_norm_and_tables_of_rows_are_refused():
  with pytest.raises(InputError, match='shares statistics of a batch'):
    built('privacy.epsilon=3', recipe='mnist_cnn.py:tiny')


def test_adapters_are_tuned_privately(tmp_path):
  """LoRA: clipped and noised are the adapters and the head; the base stays as it is."""
  x = built(*NOISY, 'steps=5', 'every.save=0', recipe='bert_finetune.py:tiny_lora')
  params = state_spec(x).abstract.params
  summary = loop.run(x, tmp_path / 'run')
  assert summary['metrics']['epsilon'] > 0
  assert set(params) == {'adapters', 'trained'}
  assert np.isfinite(summary['metrics']['loss'])
