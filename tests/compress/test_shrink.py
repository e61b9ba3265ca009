"""A shrunk model computes what the masked one computes, trains, generates and is exported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx import config as recipes
from bmx.adapt import hub
from bmx.compress.rule import Rule
from bmx.compress.shrink import shrink
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.serve.decode import decoder
from bmx.serve.generate import Generator
from bmx.serve.sample import Sampling
from bmx.tasks.language import CausalLM
from bmx.train.gradients import Gradient

RANDOM = np.random.default_rng(0)
V, T = 32, 8
ONE = Layout(make_mesh({}, jax.devices()[:1]))
SIZES = {'vocab_size': V, 'max_seq_len': T, 'width': 32, 'depth': 2, 'heads': 4}
GPT = {'call': 'bmx.models.gpt:GPT', **SIZES}
LLAMA = {
  **GPT, 'kv_heads': 2, 'positions': 'rotary', 'norm': 'rms', 'activation': 'silu', 'gated': True,
  'bias': False, 'tied': False, 'eps': 1e-6, 'mlp_dim': 48,
}  # fmt: skip
BERT = {
  'call': 'bmx.models.bert:Classifier', 'num_outputs': 3,
  'encoder': {'call': 'bmx.models.bert:BERT', **SIZES, 'dropout': 0.0},
}  # fmt: skip
MLP = {'call': 'bmx.models.mlp:MLP', 'num_outputs': 3, 'widths': (12, 8), 'norm': 'batch'}
CNN = {
  'call': 'bmx.models.cnn:CNN', 'num_outputs': 3, 'features': (4, 6), 'kernel_size': 3,
  'widths': (10,), 'norm': 'batch', 'activation': 'sigmoid',
}  # fmt: skip
TOKENS = RANDOM.integers(0, V, (2, T)).astype(np.int32)
IMAGE = RANDOM.normal(size=(2, 8, 8, 1)).astype('f')


def build(part):
  return recipes.build(part, 'model')


def filled(part, inputs):
  """Random variables of the shapes that the model gives."""
  model = build(part)
  shapes = unbox(jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), inputs)))
  shapes.pop('aux', None)
  positive = lambda k, x: np.abs(x) + 0.5 if k.endswith(('var', 'scale')) else x
  random = jax.tree.map(lambda x: RANDOM.normal(0, 0.3, x.shape).astype('f'), shapes)
  return tree.map_named(positive, random)


def outputs(part, variables, inputs):
  model = build(part)
  return np.asarray(jit(lambda v: model.apply(v, inputs, train=False), ONE)(variables))


def pruned(part, inputs, *kinds, sparsity=0.5):
  variables = filled(part, inputs)
  for kind in kinds:
    params, _ = jit(Rule(sparsity, kind).apply, ONE)(variables['params'])
    variables = {**variables, 'params': params}
  return variables


CASES = [
  pytest.param(
    {**GPT, 'scan': True, 'bias': True},
    TOKENS,
    ('heads',),
    {'heads': 2, 'head_dim': 8},
    marks=pytest.mark.nightly,
  ),
  (LLAMA, TOKENS, ('heads', 'neurons'), {'heads': 2, 'kv_heads': 1, 'head_dim': 8, 'mlp_dim': 24}),
  pytest.param(
    BERT,
    TOKENS,
    ('heads', 'neurons'),
    {'heads': 2, 'head_dim': 8, 'mlp_dim': 64},
    marks=pytest.mark.nightly,
  ),
  (MLP, IMAGE, ('neurons',), {'widths': (6, 4)}),
  (CNN, IMAGE, ('channels', 'neurons'), {'features': (2, 3), 'widths': (5,)}),
]


@pytest.mark.parametrize(('part', 'inputs', 'kinds', 'words'), CASES)
def test_outputs_are_those_of_the_masked_model(part, inputs, kinds, words):
  variables = pruned(part, inputs, *kinds)
  smaller, new = shrink(part, variables)
  core = smaller.get('encoder', smaller)
  assert {k: core[k] for k in words} == words
  assert tree.signature(new) == tree.signature(filled(smaller, inputs))
  assert tree.count(new) < 0.85 * tree.count(variables)
  a, b = outputs(part, variables, inputs), outputs(smaller, new, inputs)
  np.testing.assert_allclose(b, a, atol=1e-6 * np.abs(a).max())


def test_layers_keep_equal_numbers():
  """A layer that lost more units keeps some without weights."""
  for scan in (False, True):
    part = {**GPT, 'scan': scan}
    variables = pruned(part, TOKENS, 'neurons', sparsity=0.25)
    flat = {k: np.array(v) for k, v in tree.named(variables['params']).items()}
    for k in flat:
      if 'feed_forward' in k and (scan or 'block_1' in k):
        layer = flat[k][1] if scan else flat[k]
        dims = {'up/kernel': (slice(None), slice(0, 100)), 'down/kernel': (slice(0, 100),)}
        layer[dims.get('/'.join(k.split('/')[-2:]), (slice(0, 100),))] = 0
    variables = {'params': tree.nested(flat)}
    smaller, new = shrink(part, variables)
    assert smaller['mlp_dim'] == 96 and 'head_dim' not in smaller
    a, b = outputs(part, variables, TOKENS), outputs(smaller, new, TOKENS)
    np.testing.assert_allclose(b, a, atol=1e-6 * np.abs(a).max())


def generated(model, params):
  generator = Generator(*decoder(model, params, ONE), ONE, Sampling(temperature=0.0), ())
  parts = generator.stream([[3, 1, 4]], 4, 0, chunk=4)
  return np.concatenate([made for made, _ in parts], axis=1)


def test_a_shrunk_llama_trains_generates_and_is_exported(tmp_path):
  transformers = pytest.importorskip('transformers')
  import torch

  variables = pruned(LLAMA, TOKENS, 'heads', 'neurons')
  smaller, new = shrink(LLAMA, variables)
  model = build(smaller)
  np.testing.assert_array_equal(
    generated(model, new['params']), generated(build(LLAMA), variables['params'])
  )
  hub.save(tmp_path / 'llama', model, new['params'])
  other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'llama').eval()
  with torch.no_grad():
    expected = other(torch.tensor(TOKENS)).logits.numpy()
  np.testing.assert_allclose(outputs(smaller, new, TOKENS), expected, atol=1e-5)
  batch = {'tokens': TOKENS, 'targets': TOKENS, 'weights': np.ones(TOKENS.shape, 'f')}
  noise = Noise(jax.random.PRNGKey(0), jnp.int32(0))
  tx, task = optax.sgd(0.01), CausalLM(model)

  def step(params):
    grads = Gradient(task)({'params': params}, batch, noise)
    updates, _ = tx.update(grads.sum, tx.init(params), params)
    return optax.apply_updates(params, updates), grads.metrics['loss'][0]

  params, losses = new['params'], []
  for _ in range(3):
    params, loss = jit(step, ONE)(params)
    losses.append(float(loss))
  assert losses[-1] < losses[0]


def test_a_shrunk_gpt2_is_no_gpt2(tmp_path):
  smaller, new = shrink(GPT, pruned(GPT, TOKENS, 'heads'))
  with pytest.raises(InputError, match='not a GPT2LMHeadModel of transformers:\n  .*head_dim=8'):
    hub.save(tmp_path / 'gpt2', build(smaller), new['params'])
  smaller, new = shrink(BERT, pruned(BERT, TOKENS, 'heads'))
  with pytest.raises(InputError, match='head_dim=8'):
    hub.save(tmp_path / 'bert', build(smaller), new['params'])


def test_what_cannot_shrink():
  with pytest.raises(InputError, match='shrink: expected heads, neurons or channels without weig'):
    shrink(MLP, filled(MLP, IMAGE))
  with pytest.raises(InputError, match="model='optax:adam': expected one of bmx.models.gpt:"):
    shrink({'call': 'optax:adam'}, {})
  part = {**MLP, 'norm': 'layer'}
  with pytest.raises(InputError, match="norm='layer': expected '' or 'batch', as the layer norm"):
    shrink(part, pruned(part, IMAGE, 'neurons'))
