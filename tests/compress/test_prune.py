"""Pruning: exact shares, masks that hold, the same choice on any layout."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.compress import calibrate, oneshot, structure
from bmx.compress.prune import keep_zeros, prune
from bmx.compress.rule import Rule
from bmx.compress.select import smallest, two_of_four
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.models.cnn import CNN
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.optim.masks import masked
from bmx.optim.optimizers import adamw, sgd
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.tasks.classification import Classification
from bmx.tasks.language import CausalLM
from bmx.train.gradients import Accumulate, Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_train_step

NOISE = Noise(jax.random.PRNGKey(3), jnp.int32(0))
RANDOM = np.random.default_rng(0)
V, T = 32, 8


def layout(devices=1, **mesh):
  return Layout(make_mesh(mesh, jax.devices()[:devices]))


def filled(model, *inputs):
  """Random parameters of the shapes that the model gives."""
  shapes = unbox(jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), *inputs)))['params']
  return jax.tree.map(lambda x: RANDOM.normal(0, 1, x.shape).astype('f'), shapes)


def gpt(scan=False, **words):
  return GPT(V, T, width=32, depth=2, heads=4, scan=scan, **words)


TOKENS = np.zeros((1, T), np.int32)


def test_the_smallest_are_those_of_a_sort():
  x = np.abs(RANDOM.normal(size=(3, 40))).astype('f')
  x[:, ::3] = 0  # ties
  x[1] = 2.0
  for count in (0, 1, 7, 13, 40):
    (found,) = smallest([jnp.array(x)], count, [(1,)])
    order = np.argsort(x, axis=1, kind='stable')[:, :count]
    expected = np.zeros(x.shape, bool)
    np.put_along_axis(expected, order, True, 1)
    np.testing.assert_array_equal(found, expected)
  counts = jnp.array([1, 5, 9])
  assert np.asarray(smallest([jnp.array(x)], counts, [(1,)])[0]).sum(1).tolist() == [1, 5, 9]


def test_the_smallest_of_several_arrays():
  a, b = (np.abs(RANDOM.normal(size=s)).astype('f') for s in ((4, 5), (2, 3, 6)))
  found = smallest([jnp.array(a), jnp.array(b)], 23, [(0, 1), (0, 1, 2)])
  both = np.concatenate([a.ravel(), b.ravel()])
  expected = both <= np.sort(both)[22]
  np.testing.assert_array_equal(np.concatenate([np.ravel(f) for f in found]), expected)


@pytest.mark.parametrize('dim', [0, 1])
def test_two_of_every_four_neighbors_remain(dim):
  x = np.abs(RANDOM.normal(size=(8, 12))).astype('f')
  x[:, :5] = 1.0
  kept = np.moveaxis(np.asarray(two_of_four(jnp.array(x), dim)), dim, -1).reshape(-1, 4)
  groups = np.moveaxis(x, dim, -1).reshape(-1, 4)
  assert (kept.sum(1) == 2).all()
  for row, marks in zip(groups, kept, strict=True):
    assert row[marks].min() >= row[~marks].max()


@pytest.mark.parametrize(('scope', 'scan'), [('layer', True), ('global', False)])
def test_shares_are_exact(scope, scan):
  params = filled(gpt(scan), TOKENS)
  new, kept = jit(Rule(0.37, scope=scope).apply, layout())(params)
  flat = tree.named(new)
  assert set(kept) == {k for k in flat if k.endswith('kernel')}
  assert not [k for k in flat if k not in kept and (np.asarray(flat[k]) == 0).any()]
  sizes = {k: (np.asarray(flat[k]) == 0).sum(tuple(range(scan, flat[k].ndim))) for k in kept}
  if scope == 'global':
    total = sum(flat[k].size for k in kept)
    assert sum(map(np.sum, sizes.values())) == int(0.37 * total + 0.5)
  else:
    for k, zeros in sizes.items():
      size = flat[k].size // (2 if scan else 1)
      assert (np.asarray(zeros) == int(0.37 * size + 0.5)).all(), k


@pytest.mark.parametrize('scope', ['layer', 'global'])
def test_a_smaller_share_than_before_brings_nothing_back(scope):
  """A resumed run with more steps has a schedule that begins again."""
  params, rule = filled(MLP(3, (16,)), np.zeros((1, 6), 'f')), Rule(0.8, scope=scope)
  _, kept = rule.apply(params)
  again = rule.choose(params, kept, jnp.float32(0.3))
  assert not any((np.asarray(again[k]) & ~np.asarray(kept[k])).any() for k in kept)


def test_targets_are_kernels_by_their_path():
  """No bias, no norm; the paths that quantization matches, too."""
  params = filled(gpt(bias=True), TOKENS)
  names = Rule(targets='attention').start(params)
  assert names.keys() == {f'stack/block_{i}/attention/{k}/kernel' for i in range(2)
                          for k in ('query', 'key', 'value', 'out')}  # fmt: skip
  assert len(Rule(kind='2:4', targets='query$').start(params)) == 2


@pytest.mark.parametrize('make', [prune, lambda inner, steps: keep_zeros(inner)])
def test_adapters_are_refused(make):
  params = {'adapters': {'head': {'kernel_a': np.ones((4, 2))}},
            'trained': {'head': {'kernel': np.ones((4, 3))}}}  # fmt: skip
  with pytest.raises(InputError, match='expected a task without adapters, whose base is frozen'):
    make(optax.sgd(0.1), 10).init(params)


def trained(task, tx, batch, where=None, steps=12, ema=0.9, accumulate=2, state=None):
  """Trains -> every state; `state` continues."""
  where = where or layout()
  spec = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
  plan = plan_state(task, tx, spec, where, ema=ema)
  grad_fn = Accumulate(Gradient(task), accumulate, len(batch['weights']))
  step = jit(make_train_step(grad_fn, tx, ema=ema), where, out_shardings=(plan.shardings, None))
  states = [state or plan.create()]
  for _ in range(steps):
    states.append(step(states[-1], batch)[0])
  return states


def zeros(params, kept):
  flat = tree.named(jax.device_get(params))
  return sum((flat[k] == 0).sum() for k in kept) / sum(flat[k].size for k in kept)


def points(n=32):
  return {
    'x': RANDOM.normal(size=(n, 6)).astype('f'),
    'label': RANDOM.integers(0, 3, n).astype(np.int32),
    'weights': np.ones(n, 'f'),
  }


def flat(params):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(params))])


def test_masks_rise_and_hold():
  """Under momentum, decay, averaging, rejected updates and a state that is continued."""
  task, batch = Classification(MLP(3, (16, 16))), points()
  tx = prune(adamw(lambda _: 1e-2, weight_decay=0.1), 20, 0.8, begin=0.1, end=0.6, every=2)
  bad = batch | {'x': np.full_like(batch['x'], np.nan)}
  states = trained(task, tx, batch, steps=8)
  states += trained(task, tx, bad, steps=2, state=states[-1])[1:]
  kept = states[8].opt_state.masks.kept
  for a, b in zip(jax.tree.leaves(states[8]), jax.tree.leaves(states[10]), strict=True):
    if a.shape != ():
      np.testing.assert_array_equal(a, b)
  states += trained(task, tx, batch, steps=8, state=states[-1])[1:]
  again = trained(task, tx, batch, steps=16)
  np.testing.assert_array_equal(flat(states[-1].params), flat(again[-1].params))
  shares = [zeros(s.params, kept) for s in states]
  t = np.clip((np.arange(17) - 2) / 10, 0, 1)
  for n in (2, 4, 6, 8):
    np.testing.assert_allclose(shares[n], 0.8 * (1 - (1 - t[n]) ** 3), atol=0.02)
  full = sum(int(0.8 * v.size + 0.5) for v in kept.values()) / sum(v.size for v in kept.values())
  assert shares[-1] == full
  assert all(b >= a for a, b in itertools.pairwise(shares))
  for s in states:
    assert zeros(s.ema['params'], kept) >= zeros(s.params, kept)
    np.testing.assert_array_equal(flat(masked(s.opt_state, s.params)), flat(s.params))


@pytest.mark.nightly
@pytest.mark.parametrize(
  'words', [{'scope': 'global'}, {'kind': 'heads'}, {'kind': '2:4'}, {'kind': 'neurons'}]
)
def test_eight_devices_prune_the_same(words):
  task, tx = (
    CausalLM(gpt(scan=True)),
    prune(sgd(lambda _: 0.3), 2, end=0.5, every=1, **words),
  )
  ids = RANDOM.integers(0, V, (16, T + 1)).astype(np.int32)
  batch = {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'weights': np.ones((16, T), 'f')}
  results = []
  for where in (layout(), layout(8, fsdp=4, model=2)):
    state = trained(task, tx, batch, where, steps=2)[-1]
    results.append((flat(state.opt_state.masks.kept), flat(state.ema['params'])))
  assert 0.4 < 1 - results[0][0].mean() < 0.6
  np.testing.assert_array_equal(results[0][0], results[1][0])
  assert np.linalg.norm(results[1][1] - results[0][1]) < 3e-6 * np.linalg.norm(results[0][1])


def test_zeros_of_the_start_are_kept():
  task, batch = Classification(MLP(3, (16,))), points()
  tx = keep_zeros(sgd(lambda _: 0.1, momentum=0.9), 'dense_0')
  states = trained(task, tx, batch, steps=0)
  pruned, kept = jit(Rule(0.5).apply, layout())(states[0].params)
  state = states[0].replace(params=pruned, opt_state=tx.init(pruned))
  end = trained(task, tx, batch, steps=3, state=state)[-1]
  name = 'dense_0/kernel'
  np.testing.assert_array_equal(np.asarray(tree.named(end.params)[name]) != 0, kept[name])
  assert (np.asarray(end.params['head']['kernel']) != 0).all()


def test_units_against_numpy():
  """Grouped heads with biases; the smallest by the norm of all their weights."""
  params = filled(gpt(kv_heads=2, bias=True), TOKENS)
  new, kept = jit(Rule(0.5, 'heads').apply, layout())(params)
  for i in range(2):
    given = tree.named(params['stack'][f'block_{i}']['attention'])
    q, o = given['query/kernel'].reshape(32, 2, -1), given['out/kernel'].reshape(2, -1)
    norm = np.square(q).sum((0, 2)) + np.square(o).sum(1)
    norm += np.square(given['query/bias']).reshape(2, -1).sum(1)
    for k in ('key', 'value'):
      norm += np.square(given[f'{k}/kernel']).sum((0, 2)) + np.square(given[f'{k}/bias']).sum(1)
    keep = norm.argmax()
    found = tree.named(new['stack'][f'block_{i}']['attention'])
    gone = np.asarray(found['query/kernel']).reshape(32, 2, -1)[:, 1 - keep]
    assert not gone.any() and not np.asarray(found['value/bias'])[1 - keep].any()
    assert not np.asarray(found['out/kernel']).reshape(2, -1)[1 - keep].any()
    np.testing.assert_array_equal(np.asarray(found['key/kernel'])[:, keep],
                                  given['key/kernel'][:, keep])  # fmt: skip
  assert not [k for k in kept if 'attention' not in k]


def test_a_masked_unit_contributes_nothing():
  """Whatever the activation of zero is; channels reach through pools and a flattened map."""
  image = RANDOM.normal(size=(2, 8, 8, 1)).astype('f')
  model = CNN(3, (4, 6), 3, (5,), activation='sigmoid')
  params = filled(model, image)
  new, _ = jit(Rule(0.5, 'channels').apply, layout())(params)
  for name, units in (('conv_0', 2), ('conv_1', 3)):
    kernel = np.asarray(tree.named(new)[f'{name}/kernel'])
    assert (np.abs(kernel).sum((0, 1, 2)) == 0).sum() == units
  gone = np.abs(np.asarray(new['conv_1']['kernel'])).sum((0, 1, 2)) == 0
  rows = np.asarray(new['MLP_0']['dense_0']['kernel']).reshape(4, 6, 5)
  assert not rows[:, gone].any() and rows[:, ~gone].all()


@pytest.mark.parametrize(('words', 'message'), [
  ({'sparsity': 1.0}, 'sparsity=1.0: expected 0 <= sparsity < 1'),
  ({'sparsity': float('nan')}, 'sparsity=nan: expected'),
  ({'kind': 'rows'}, "kind='rows': expected one of unstructured, 2:4, heads, neurons, channels"),
  ({'scope': 'model'}, "scope='model': expected one of layer, global"),
  ({'scope': 'global', 'kind': 'heads'}, "scope='global': expected 'layer' with kind='heads'"),
  ({'kind': '2:4', 'sparsity': 0.6}, "sparsity=0.6: expected 0.5 with kind='2:4'"),
  ({'targets': 'nothing'}, "targets='nothing': expected a regex that matches a kernel of"),
  ({'targets': '('}, r"targets='\(': expected a regular expression"),
  ({'kind': '2:4'}, r"kind='2:4': expected a number of inputs that 4 divides, dense_0/kernel \(6,"),
  ({'kind': 'heads'}, "kind='heads': expected a model of bmx.models with heads"),
  ({'kind': 'neurons', 'targets': 'x'}, "targets='x': expected a regex that matches one of"),
  ({'begin': 0.5, 'end': 0.4}, 'end=0.4: expected 0.5 <= end <= 1'),
  ({'every': 0}, 'every=0: expected'),
])  # fmt: skip
def test_bad_words(words, message):
  params = filled(MLP(3, (16,)), np.zeros((1, 6), 'f'))
  with pytest.raises(InputError, match=message):
    prune(optax.sgd(0.1), 10, **words).init(params)


def test_inputs_of_kernels():
  for name, shape, dims in (
    ('stack/blocks/attention/out/kernel', (2, 4, 8, 32), (1, 2)),
    ('stack/block_0/attention/query/kernel', (32, 4, 8), (0,)),
    ('stack/blocks/experts/up', (2, 4, 32, 64), (2,)),
    ('conv_0/kernel', (3, 3, 4, 8), (0, 1, 2)),
  ):
    assert structure.contracted(name, shape) == dims
  with pytest.raises(InputError, match=r'other/kernel \(2, 3, 4\): expected a kernel of'):
    structure.contracted('other/kernel', (2, 3, 4))


@pytest.mark.parametrize('scan', [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_wanda_against_numpy(scan):
  """Of each output, the inputs of the least |w| · ‖x‖; the same for scanned layers."""
  model = gpt(scan)
  ids = RANDOM.integers(0, V, (4, T)).astype(np.int32)
  batch = {'tokens': ids, 'targets': ids, 'weights': np.ones((4, T), 'f')}
  params = filled(model, TOKENS)
  hessians = calibrate.hessians(CausalLM(model), {'params': params}, [batch], layout())
  found = tree.named(oneshot.wanda(params, Rule(0.4, targets='attention|up$'), hessians, layout()))
  four = tree.named(oneshot.wanda(params, Rule(kind='2:4', targets='up$'), hessians, layout()))
  for i in range(2):
    for module, cut in (('attention/query', 1), ('attention/out', 2), ('feed_forward/up', 1)):
      path = f'stack/blocks/{module}' if scan else f'stack/block_{i}/{module}'
      pick = lambda x, scan=scan, i=i: np.asarray(x[i] if scan else x)
      w, h = pick(tree.named(params)[f'{path}/kernel']), pick(hessians[path])
      scores = np.abs(w.reshape(h.shape[0], -1)) * np.sqrt(np.diag(h))[:, None]
      kept = pick(found[f'{path}/kernel']).reshape(scores.shape) != 0
      count = int(0.4 * len(h) + 0.5)
      assert (~kept).sum(0).tolist() == [count] * scores.shape[1], cut
      assert (np.where(kept, scores, np.inf).min(0) >= np.where(kept, 0, scores).max(0)).all()
    kept = pick(four[f'{path}/kernel']).reshape(-1, 4, scores.shape[1]) != 0
    assert (kept.sum(1) == 2).all()
    by_four = scores.reshape(kept.shape)
    assert (np.where(kept, by_four, np.inf).min(1) >= np.where(kept, 0, by_four).max(1)).all()
  assert not [k for k, v in found.items() if 'down' in k and not np.asarray(v).all()]


def test_wanda_needs_inputs():
  params = filled(CNN(3, (4,), 3, (5,)), np.zeros((1, 8, 8, 1), 'f'))
  with pytest.raises(InputError, match='expected the inputs of conv_0/kernel, which calibration'):
    oneshot.wanda(params, Rule(0.5, targets='conv_0'), {}, layout())
  with pytest.raises(InputError, match="method='wanda': expected single weights of each layer"):
    oneshot.wanda(params, Rule(0.5, 'channels'), {}, layout())
