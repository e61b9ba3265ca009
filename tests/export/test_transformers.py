"""Outputs of a Hugging Face folder in a process without bmx, as `bmx export` compares them."""

import jax
import numpy as np
import pytest

from bmx.adapt import hub
from bmx.export import check
from bmx.models.gpt import GPT
from tests.models.weights import variables

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
