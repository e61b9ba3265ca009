"""Outputs of a Hugging Face folder in a process without bmx, as `bmx export` compares them."""

import jax
import numpy as np
import pytest

import bmx
from bmx import cli, experiment
from bmx import config as recipes
from bmx import main as entry
from bmx.adapt import hub
from bmx.export import check
from bmx.models.gpt import GPT
from tests.models.weights import variables
from tests.test_bad_input import own_logging

LLAMA = {'positions': 'rotary', 'kv_heads': 2, 'norm': 'rms', 'gated': True, 'activation': 'silu',
         'bias': False, 'tied': False, 'vocab_pad': 8}  # fmt: skip


@pytest.mark.nightly
def test_outputs_of_transformers(tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  model = GPT(vocab_size=40, max_seq_len=16, width=16, depth=2, heads=4, mlp_dim=24, **LLAMA)
  tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
  weights = variables(model, tokens)
  hub.save(tmp_path / 'folder', model, weights['params'])
  (given,) = check.loaded(tmp_path / 'folder', [{'tokens': tokens}], 'transformers')
  own = np.asarray(jax.jit(model.apply)(weights, tokens))[..., :40]
  assert check.largest_error([given], [{'logits': own}]) < 1e-5


@pytest.mark.nightly
@pytest.mark.parametrize('model', [
  {'call': 'bmx.models.resnet:ResNet', 'stages': (1, 1), 'features': 4},
  {'call': 'bmx.models.vit:ViT', 'image_size': 8, 'patch_size': 2, 'width': 8, 'depth': 2,
   'heads': 2, 'scan': True},
])  # fmt: skip
def test_runs_on_images_are_exported(model, tmp_path):
  """`bmx export` compares both formats with the run; the folder has the data's processor."""
  pytest.importorskip('transformers')
  config, name = recipes.load('digits_mlp:tiny', ['steps=3', 'every.eval=0', 'cache=off'])
  plain = recipes.plain(config)
  plain['task']['model'] = {'num_outputs': 10, **model}
  x = experiment.build(recipes.from_plain(plain), name, jax.devices()[:1])
  bmx.train(x, tmp_path / 'run')
  for kind in ('huggingface', 'bmx'):
    words = ['export', f'{tmp_path}/run', f'--export.format={kind}', f'--output={tmp_path}/{kind}']
    with own_logging():
      assert entry.main(cli.translate(words), 'bmx') == 0
  names = {p.name for p in (tmp_path / 'huggingface').iterdir()}
  assert {'config.json', 'model.safetensors', 'preprocessor_config.json'} <= names
