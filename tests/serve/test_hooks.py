"""Texts that are sampled while a model trains."""

import json
import logging

import jax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.serve.hooks import SampleTexts
from bmx.train import loop
from tests.conftest import ROOT


def build(**part):
  words = 'mesh.data=1', 'steps=8', f'data.path={ROOT}/LICENSE'
  config, name = recipes.load('gpt_char:tiny', words)
  if part:
    config.hooks.samples = {'call': 'bmx.serve.hooks:SampleTexts', 'every': 4, **part}
  return experiment.build(config, name, jax.devices()[:1])


def test_samples_change_nothing_and_appear_in_log_and_report(tmp_path, monkeypatch):
  plain = loop.run(build(), tmp_path / 'plain')
  x = build(prompts=('def ', '<a>'), max_new_tokens=5, temperature=0.0)
  lines, log, handler = [], logging.getLogger('bmx'), logging.Handler()
  monkeypatch.setattr(handler, 'emit', lambda record: lines.append(record.getMessage()))
  former = log.level
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  try:
    sampled = loop.run(x, tmp_path / 'run')
  finally:
    log.removeHandler(handler)
    log.setLevel(former)
  assert sampled['state_digest'] == plain['state_digest']
  lines = [text for text in lines if text.startswith('sample')]
  assert len(lines) == 4 and "'def " in lines[0]
  page = (tmp_path / 'run/report.html').read_text()
  assert 'Texts of step 8' in page and '&lt;a&gt;' in page and '<b><a>' not in page
  assert json.loads((tmp_path / 'run/summary.json').read_text())['steps'] == 8


IMPOSSIBLE = {
  'model': ('digits_mlp:tiny', ('mesh.data=1',), ('a',), 'MLP cannot generate'),
  'mesh': ('gpt_char:tiny', ('mesh.data=1', 'mesh.seq=2'), ('a',), 'mesh.seq=2: expected 1'),
  'prompt': ('gpt_char:tiny', ('mesh.data=1',), ('a', 'x' * 40), 'has 40 tokens: expected fewer'),
  'tokenizer': ('gpt_char:tiny', ('mesh.data=1', 'task.model.vocab_size=300'), ('a',),
                'vocab_size=300: expected data with a tokenizer'),
}  # fmt: skip


@pytest.mark.parametrize('name', IMPOSSIBLE)
def test_samples_that_cannot_be_are_found_by_build(name):
  """Not at the end of the training; what only reads a run does not ask."""
  recipe, words, prompts, said = IMPOSSIBLE[name]
  config, _ = recipes.load(recipe, words)
  config.hooks.samples = {'call': 'bmx.serve.hooks:SampleTexts', 'prompts': prompts}
  devices = jax.devices()[: config.mesh.seq]
  with pytest.raises(InputError, match=f'hooks.samples: .*{said}'):
    experiment.build(config, 'run', devices)
  experiment.build(config, 'run', devices, read=False)


def test_a_hook_without_prompts_is_refused():
  with pytest.raises(InputError, match='expected at least one text'):
    SampleTexts(())


def test_optional_samples_leave_out_meshes_that_cannot_generate():
  part = {'prompts': ('a',), 'call': 'bmx.serve.hooks:SampleTexts', 'every': 4}
  for optional in (False, True):
    config, name = recipes.load('gpt_char:tiny', ['mesh.seq=2', 'steps=8'])
    config.hooks.samples = {**part, 'optional': optional}
    if optional:
      x = experiment.build(config, name, jax.devices()[:2])
      assert x.hooks['samples'].call(None) is None
    else:
      with pytest.raises(InputError, match=r'mesh\.seq=2: expected 1'):
        experiment.build(config, name, jax.devices()[:2])
