"""LoRA: adapted = merged, against numpy, wherever arrays lie, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.adapt.lora import LoRA
from bmx.compress.quantize import Quantized
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.models.bert import BERT, Classifier
from bmx.models.cnn import CNN
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.ops import lowrank
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.tasks.classification import Classification
from bmx.tasks.encoder import TextClassification
from bmx.tasks.language import CausalLM
from bmx.train.gradients import Accumulate, Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_train_step
from tests.models.weights import drawn

NOISE = Noise(jax.random.PRNGKey(3), jnp.int32(0))
ALL = 'attention/|feed_forward/'
LLAMA = {'kv_heads': 2, 'positions': 'rotary', 'norm': 'rms', 'gated': True, 'bias': False,
         'activation': 'silu', 'tied': False}  # fmt: skip


def layout(devices=1, **mesh):
  return Layout(make_mesh(mesh, jax.devices()[:devices]))


def tokens(n=4, length=8, vocab=32):
  ids = np.random.default_rng(0).integers(0, vocab, (n, length + 1)).astype(np.int32)
  return {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'weights': np.ones((n, length), np.float32)}


def gpt(depth=1, **words):
  return CausalLM(GPT(32, 8, width=32, depth=depth, heads=4, **words))


def bert():
  encoder = BERT(32, 8, width=32, depth=1, heads=4, mlp_dim=64, dropout=0.0)
  return TextClassification(Classifier(encoder, 3))


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def made(task, batch, scale=0.1):
  """Variables whose adapters matter: drawn, quantized as the task quantizes."""
  new = jax.eval_shape(lambda: unbox(task.init(NOISE, batch)))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), new)
  plain = drawn(jax.eval_shape(task.merged_params, new), scale=scale)
  taken = dict(jax.jit(task.take)(zeros, plain))
  adapters = drawn(taken['params']['adapters'], 1, scale)
  return {**taken, 'params': {**taken['params'], 'adapters': adapters}}


CASES = {
  'gpt bfloat16': (lambda: gpt(2, scan=True), {'rslora': True, 'base': 'bfloat16'}),
  'llama': (lambda: gpt(**LLAMA), {}),
  'llama nf4': (lambda: gpt(2, scan=True, **LLAMA), {'base': 'nf4', 'group': 8}),
  'quantized': (lambda: Quantized(gpt(2, scan=True), kind='int4', group=8), {}),
  'bert int8': (bert, {'train': '^head/|pooler', 'base': 'int8'}),
}


@pytest.mark.parametrize('case', CASES)
def test_adapted_is_merged(case):
  inner, words = CASES[case]
  task, batch = LoRA(inner(), rank=3, targets=ALL, **words), tokens()
  variables = made(task, batch)

  def both(v):
    run = lambda t, v: t.forward(v, batch, NOISE, train=False, method='logits')[0].value
    plain = task.inner.inner if case == 'quantized' else task.inner
    return run(task, v), run(plain, {'params': task.merged_params(v)})

  adapted, merged = jit(both, layout())(variables)
  assert np.linalg.norm(adapted - merged) < 1e-6 * np.linalg.norm(merged)
  names = [n for n in tree.named(variables['params']) if n.startswith('adapters/')]
  assert {n.rpartition('/')[2] for n in names} == {'kernel_a', 'kernel_b'}
  assert any('attention/out' in n for n in names)
  whole = tree.named(variables['params'].get('trained', {}))
  assert {*whole} == ({'head/bias', 'head/kernel', 'encoder/pooler/bias', 'encoder/pooler/kernel'}
                      if case.startswith('bert') else set())  # fmt: skip


def test_an_adapter_is_what_the_paper_says():
  """H = W x + b + (alpha / r) B A x, in numpy, and the gradients of A and B by its chain rule."""
  task = LoRA(Classification(MLP(3, ())), rank=2, alpha=6.0, targets='head')
  batch = points()
  variables = made(task, batch, 0.5)
  (own,) = lowrank.by_path(variables['params']['adapters']).values()
  a, b = (np.asarray(own[k], np.float64) for k in ('kernel_a', 'kernel_b'))
  base = {k.rpartition('/')[2]: np.asarray(v, np.float64)
          for k, v in tree.named(variables['frozen']).items()}  # fmt: skip
  x = np.asarray(batch['x'], np.float64)
  logits = x @ base['kernel'] + base['bias'] + 3.0 * (x @ a) @ b
  forward = jax.jit(lambda v: task.forward(v, batch, NOISE, train=True)[0].value)
  np.testing.assert_allclose(forward(variables), logits, rtol=1e-5, atol=1e-6)
  grads = jax.jit(Gradient(task))(variables, batch, NOISE).sum
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  error = p - np.eye(3)[batch['label']]
  (g,) = lowrank.by_path(grads['adapters']).values()
  np.testing.assert_allclose(g['kernel_b'], 3.0 * (x @ a).T @ error, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(g['kernel_a'], 3.0 * x.T @ error @ b.T, rtol=1e-4, atol=1e-5)
  assert set(grads) == {'adapters'}


def test_a_new_adapter_adds_nothing_and_takes_what_it_gives():
  for words in ({'train': 'norm_out'}, {'base': 'int8'}):
    task, batch = LoRA(gpt(scan=True), rank=2, **words), tokens()
    plan = plan_state(task, optax.adam(1e-2), spec(batch), layout())
    plain = jax.tree.map(lambda x: np.full(x.shape, 0.25, x.dtype), plan.plain)
    state = plan.create({}, tree.named(plain))
    merged = task.merged_params({**state.collections, 'params': state.params})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), merged, plain)
    kept = tree.nbytes(state.opt_state)
    assert kept < 0.3 * tree.nbytes(plain)


def points():
  random = np.random.default_rng(0)
  return {'x': random.normal(size=(5, 4)).astype(np.float32), 'label': np.arange(5) % 3,
          'weights': np.ones(5, np.float32)}  # fmt: skip


def test_dropout_is_on_the_input_of_the_adapter_alone():
  task, batch = LoRA(Classification(MLP(3, ())), rank=2, dropout=0.5, targets='head'), points()
  variables = made(task, batch, 0.5)
  value = lambda v, noise, train: task.forward(v, batch, noise, train=train)[0].value
  first = value(variables, NOISE, True)
  np.testing.assert_array_equal(value(variables, NOISE, True), first)
  assert np.abs(value(variables, NOISE.fold(1), True) - first).max() > 1e-3
  zero = jax.tree.map(jnp.zeros_like, variables['params']['adapters'])
  plain = value({**variables, 'params': {'adapters': zero}}, NOISE, False)
  without = value({**variables, 'params': {'adapters': zero}}, NOISE, True)
  np.testing.assert_array_equal(without, plain)
  drawn = jax.vmap(lambda i: value(variables, NOISE.fold(i), True))(jnp.arange(4000))
  full = value(variables, NOISE, False)
  assert np.linalg.norm(drawn.mean(0) - full) < 0.1 * np.linalg.norm(full - plain)


def trained(task, batch, where, tx, steps=3, **options):
  plan = plan_state(task, tx, spec(batch), where, **options)
  grad_fn = Accumulate(Gradient(task), 2, len(batch['weights']))
  step = make_train_step(grad_fn, tx, constant=task.constant, **options)
  run = jit(step, where, out_shardings=(plan.shardings, None))
  state, losses = plan.create(), []
  for _ in range(steps):
    state, metrics = run(state, batch)
    losses.append(float(metrics['loss'][0]))
  return jax.device_get(state), np.array(losses), plan


def flat(params):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


@pytest.mark.nightly  # at every push: tests/seams/test_compose.py
@pytest.mark.parametrize('case', ['data', 'fsdp', 'pipe'])
def test_eight_devices_are_one(case):
  words = {'base': 'nf4', 'group': 8, 'targets': ALL} if case == 'fsdp' else {'dropout': 0.1}
  meshes = {'data': {'data': 8}, 'fsdp': {'fsdp': 4, 'model': 2}}
  mesh = meshes.get(case, {'data': 2, 'pipe': 2, 'model': 2})
  task, batch, tx = LoRA(gpt(2, scan=True), rank=4, **words), tokens(16), optax.sgd(0.5)
  one, losses, _ = trained(task, batch, layout(), tx)
  many, given, plan = trained(task, batch, layout(8, **mesh), tx)
  np.testing.assert_allclose(given, losses, rtol=1e-6)
  size = np.linalg.norm(flat(one.params))
  assert np.linalg.norm(flat(many.params) - flat(one.params)) < 1e-6 * size
  before = jax.device_get(plan.create().collections)
  jax.tree.map(np.testing.assert_array_equal, many.collections, before)
  leaves = tree.named(plan.abstract.params)
  a = leaves['adapters/stack/blocks/attention/query/kernel_a'].sharding.spec
  assert ('fsdp' in str(a)) == (case == 'fsdp')


@pytest.mark.parametrize('base', ['float32', 'int8', 'nf4'])
def test_plain_weights_are_read_where_those_of_the_inner_task_are(base):
  where, batch = layout(8, fsdp=4, model=2), spec(tokens(16))
  task = LoRA(gpt(2, scan=True), rank=4, base=base, group=8, train='embed')
  tx = optax.identity()
  given, expected = (plan_state(t, tx, batch, where).plain for t in (task, task.inner))
  place = lambda x, like: x.sharding.is_equivalent_to(like.sharding, len(x.shape))
  assert all(jax.tree.leaves(jax.tree.map(place, given, expected)))


@pytest.mark.nightly  # at every push: tests/seams/test_compose.py
def test_averages_and_rejected_updates():
  """EMA averages what trains; a batch that is not finite moves nothing."""
  task, batch, tx = LoRA(gpt(scan=True), rank=2), tokens(), optax.adam(1e-2)
  state, _, plan = trained(task, batch, layout(), tx, 2, ema=0.5)
  assert set(state.ema['params']) == {'adapters'}
  assert np.abs(flat(state.ema['params']) - flat(state.params)).max() > 0
  step = jit(make_train_step(Gradient(task), tx, ema=0.5, constant=task.constant), layout())
  bad = batch | {'weights': np.full_like(batch['weights'], np.nan)}
  after = jax.device_get(step(jax.device_put(state), bad)[0])
  for part in ('params', 'opt_state', 'ema'):
    old, new = getattr(state, part), getattr(after, part)
    jax.tree.map(np.testing.assert_array_equal, new, old)
  assert after.consecutive_skips == 1


def cnn():
  return Classification(CNN(3))


PICTURE = {'image': np.zeros((2, 8, 8, 1), np.float32), 'label': np.zeros(2, np.int32),
           'weights': np.ones(2, np.float32)}  # fmt: skip
BAD = {
  'nothing': (gpt, {'targets': 'qeury'}, r"(?s)targets='qeury'.*stack/block_0/attention/query"),
  'not a regex': (gpt, {'targets': '('}, r"targets='\('"),
  'convolution': (cnn, {'targets': 'conv'}, r'(?s)is a Conv'),
  'rank': (gpt, {'rank': 33}, r'rank=33: expected at most 32, the smaller side of .*/kernel'),
  'no rank': (gpt, {'rank': 0}, 'rank=0: expected at least 1'),
  'alpha': (gpt, {'alpha': 0.0}, 'alpha=0.0: expected'),
  'dropout': (gpt, {'dropout': 1.0}, 'dropout=1.0: expected 0 <= dropout < 1'),
  'base': (gpt, {'base': 'int3'}, "base='int3': expected one of float32"),
  'group': (gpt, {'base': 'int4', 'group': 7}, 'group=7: expected an even number'),
  'train': (gpt, {'train': 'haed'}, r"(?s)train='haed': expected a regex that matches a param"),
  'both': (gpt, {'train': 'query'}, "train='query': expected no kernel that targets"),
  'twice': (lambda: LoRA(gpt()), {}, r'LoRA\(LoRA\(\.\.\.\)\)'),
  'experts': (lambda: gpt(experts=2), {'targets': 'experts/up'}, 'experts/up is a kernel of MoE'),
}


@pytest.mark.parametrize('name', BAD)
def test_what_is_refused(name):
  inner, words, said = BAD[name]
  batch = PICTURE if inner is cnn else tokens()
  with pytest.raises(InputError, match=said):
    jax.eval_shape(lambda: unbox(LoRA(inner(), **words).init(NOISE, batch)))
