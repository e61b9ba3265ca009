"""AdaLoRA: the paper's equations in numpy, PEFT's allocator, and a budget that is met exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.adapt import adalora
from bmx.adapt.adalora import AdaLoRA
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models.mlp import MLP
from bmx.ops import lowrank
from bmx.parallel import jit, unbox
from bmx.tasks.classification import Classification
from bmx.train.gradients import Accumulate, Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_train_step
from tests.adapt.test_lora import NOISE, flat, gpt, layout, made, points, spec, tokens
from tests.models.weights import drawn

SHAPES = {
  'blocks/out': ((2, 2, 3, 4), (2, 4, 5)),  # two layers, two contracted dimensions
  'head': ((3, 4), (4, 6)),
}


def parts_of(seed):
  named = {}
  for path, (a, b) in SHAPES.items():
    named |= {f'{path}/kernel_a': np.zeros(a, np.float32)}
    named[f'{path}/kernel_b'] = np.zeros(b, np.float32)
    named[f'{path}/singular'] = np.zeros((*a[:-3], 4), np.float32)
  return tree.nested(named), jax.device_get(drawn(tree.nested(named), seed, 1.0))


def matrices(adapters):
  """Every matrix apart, in the order of names: Q [d2, r], P [r, d1], λ [r], float64."""
  found = []
  for _, p in sorted(lowrank.by_path(adapters).items()):
    a, b, own = (np.asarray(p[k], np.float64) for k in ('kernel_a', 'kernel_b', 'singular'))
    layers = range(len(own)) if own.ndim == 2 else (None,)
    for i in layers:
      pick = lambda x, i=i: x if i is None else x[i]
      found.append((pick(a).reshape(-1, 4), pick(b).reshape(4, -1), pick(own)))
  return found


def oracle(start, gradients, rate, *, steps, tinit, tfinal, every, first, last, beta1, beta2):
  """Algorithm 1 with equations 7 to 12 of Zhang et al. 2023; yields λ of all matrices."""
  w = [[np.array(x) for x in m] for m in matrices(start)]
  mean = [[np.zeros_like(x) for x in m] for m in w]
  doubt = [[np.zeros_like(x) for x in m] for m in w]
  final = None
  for t in range(steps):
    g = matrices(gradients[t])
    scores = []
    for i, m in enumerate(w):
      for j, x in enumerate(m):
        sensitivity = np.abs(x * g[i][j])
        mean[i][j] = beta1 * mean[i][j] + (1 - beta1) * sensitivity
        doubt[i][j] = beta2 * doubt[i][j] + (1 - beta2) * np.abs(sensitivity - mean[i][j])
        m[j] = x - rate * g[i][j]
      s = [mean[i][j] * doubt[i][j] for j in range(3)]
      scores.append(s[2] + s[0].mean(0) + s[1].mean(1))
    flat = np.concatenate(scores)
    if t >= steps - tfinal:
      budget = last * len(w)
      due = True
    else:
      share = 1 - (t - tinit) / (steps - tfinal - tinit)
      budget = int((last + (first - last) * share**3) * len(w))
      due = t > tinit and t % every == 0
    if due and final is None:
      kept = flat >= np.sort(flat)[-budget]
      final = kept if t >= steps - tfinal else None
    for i, m in enumerate(w):
      if due:
        m[2] *= (kept if final is None else final)[4 * i : 4 * i + 4]
    yield np.concatenate([m[2] for m in w])


def test_the_allocator_is_the_papers():
  shapes, start = parts_of(0)
  words = {'steps': 9, 'tinit': 1, 'tfinal': 2, 'every': 2, 'first': 4, 'last': 2}
  tx = adalora.allocator(optax.sgd(0.1), ranks=(4, 2), begin=1, end=7, every=2, betas=(0.85, 0.6))
  gradients = [jax.device_get(drawn(shapes, 10 + t, 1.0)) for t in range(9)]
  params = {'adapters': jax.tree.map(jnp.asarray, start)}
  state = tx.init(params)
  update = jax.jit(lambda g, s, p, t: tx.update(g, s, p, step=t))
  expected = oracle(start, gradients, 0.1, beta1=0.85, beta2=0.6, **words)
  zeros = []
  for t, given in enumerate(expected):
    updates, state = update({'adapters': gradients[t]}, state, params, jnp.int32(t))
    params = optax.apply_updates(params, updates)
    found = np.concatenate([m[2] for m in matrices(params['adapters'])])
    np.testing.assert_array_equal(found == 0, given == 0)
    np.testing.assert_allclose(found, given, rtol=1e-5, atol=1e-6)
    zeros.append(int((found == 0).sum()))
  assert zeros[:2] == [0, 0] and zeros[4] > 0 and zeros[5] == 0 and zeros[7:] == [6, 6]


def test_the_allocator_is_that_of_peft(torch):
  """One matrix, the same weights and gradients: importance and mask of PEFT's own code."""
  peft = pytest.importorskip('peft')
  from peft.tuners.adalora.layer import RankAllocator

  config = peft.AdaLoraConfig(target_r=2, init_r=6, tinit=0, tfinal=1, deltaT=1, beta1=0.85,
                              beta2=0.7, total_step=6, lora_alpha=6)  # fmt: skip
  random = np.random.default_rng(0)
  values = {'lora_A': random.normal(size=(6, 5)), 'lora_B': random.normal(size=(4, 6)),
            'lora_E': random.normal(size=(6, 1))}  # fmt: skip
  module = torch.nn.Module()
  for name, value in values.items():
    part = torch.nn.ParameterDict({'default': torch.nn.Parameter(torch.tensor(value))})
    module.add_module(name, part)
  theirs = RankAllocator(module, config, 'default')
  ours = lambda v: {'adapters': {'m': {
    'kernel_a': jnp.asarray(v['lora_A'].T, jnp.float32),
    'kernel_b': jnp.asarray(v['lora_B'].T, jnp.float32),
    'singular': jnp.asarray(v['lora_E'][:, 0], jnp.float32),
  }}}  # fmt: skip
  tx = adalora.allocator(optax.set_to_zero(), ranks=(6, 2), begin=0, end=5, every=1,
                         betas=(0.85, 0.7))  # fmt: skip
  params = ours(values)
  state = tx.init(params)
  update = jax.jit(lambda g, s, p, t: tx.update(g, s, p, step=t))
  for t in range(1, 6):
    g = {k: random.normal(size=v.shape) for k, v in values.items()}
    for name, value in g.items():
      weight = module.get_submodule(name)['default']
      weight.grad = torch.tensor(value)
    theirs.update_ipt(module)
    budget, _ = theirs.budget_schedule(t)
    theirs.mask_to_budget(module, budget)
    updates, state = update(ours(g), state, params, jnp.int32(t))
    params = optax.apply_updates(params, updates)
    kept = module.lora_E['default'].detach().numpy()[:, 0]
    np.testing.assert_array_equal(params['adapters']['m']['singular'] != 0, kept != 0)
    np.testing.assert_allclose(params['adapters']['m']['singular'], kept, rtol=1e-5)
  assert (kept != 0).sum() == 2


def test_the_penalty_is_in_the_loss():
  inner = Classification(MLP(3, (8,)))
  words = {'targets': '.', 'rank': 2, 'init_rank': 3, 'orthogonality': 0.3}
  task, batch = AdaLoRA(inner, **words), points()
  variables = made(task, batch)
  loss = task.loss(variables, batch, NOISE, train=True)
  expected = 0.0
  for parts in lowrank.by_path(variables['params']['adapters']).values():
    q = np.asarray(parts['kernel_a'], np.float64).T
    p = np.asarray(parts['kernel_b'], np.float64).T
    expected += np.square(p.T @ p - np.eye(3)).sum() + np.square(q @ q.T - np.eye(3)).sum()
  own = loss.metrics['orthogonality']
  assert float(own[0] / own[1]) == pytest.approx(expected, rel=1e-5)
  alone = loss.metrics['loss']
  assert float((loss.sum - alone[0]) / loss.count) == pytest.approx(0.3 * expected, rel=1e-4)


def train(where, *runs):
  """States after 8 steps, one for each set of steps whose update is rejected."""
  task, batch = AdaLoRA(gpt(2, scan=True), rank=2, init_rank=4, tfinal=2, delta_t=2), tokens(8)
  tx, ema = task.transform(optax.adam(3e-2), 8), 0.5
  plan = plan_state(task, tx, spec(batch), where, ema=ema)
  step = make_train_step(Accumulate(Gradient(task), 2, 8), tx, ema=ema, constant=task.constant)
  run = jit(step, where, out_shardings=(plan.shardings, None))
  states = []
  for bad in runs:
    state = plan.create()
    for t in range(8):
      weights = np.full_like(batch['weights'], np.nan if t in bad else 1)
      state, _ = run(state, batch | {'weights': weights})
    states.append(jax.device_get(state))
  return states


def test_the_budget_is_met_exactly():
  """Under accumulation, on eight devices, with rejected updates; the average is pruned too."""
  one, rejected = train(layout(), (), (2, 6))
  count = lambda params: {k: np.asarray(v) for k, v in adalora.ranks(params['adapters']).items()}
  kept = count(one.params)
  assert sum(v.sum() for v in kept.values()) == 8  # rank 2, two kernels of two layers
  averaged = count(one.ema['params'])
  jax.tree.map(np.testing.assert_array_equal, averaged, kept)
  (eight,) = train(layout(8, fsdp=4, model=2), ())
  jax.tree.map(np.testing.assert_array_equal, count(eight.params), kept)
  assert np.linalg.norm(flat(eight.params) - flat(one.params)) < 1e-4 * np.linalg.norm(
    flat(one.params)
  )
  assert sum(v.sum() for v in count(rejected.params).values()) == 8
  assert int(rejected.consecutive_skips) == 0 and bool(rejected.opt_state.held)


def test_a_run_that_gets_more_steps_meets_its_budget_at_the_new_end():
  _, start = parts_of(0)
  params = {'adapters': jax.tree.map(jnp.asarray, start)}
  made = lambda end: adalora.allocator(
    optax.sgd(0.1), ranks=(4, 2), begin=0, end=end, every=10, betas=(0.85, 0.6)
  )
  state = made(2).init(params)
  for end, steps in ((2, range(4)), (12, range(4, 14))):
    update = jax.jit(made(end).update)
    for t in steps:
      gradient = {'adapters': jax.device_get(drawn(start, 10 + t, 1.0))}
      updates, state = update(gradient, state, params, step=jnp.int32(t))
      params = optax.apply_updates(params, updates)
    left = sum(int(v.sum()) for v in adalora.ranks(params['adapters']).values())
    assert left == 2 * len(matrices(start))


def test_equal_scores_are_broken_by_their_order():
  scores = {'b': jnp.ones((2, 2)), 'c': jnp.array([2.0, 1.0])}
  masks = adalora.top(scores, 3)
  np.testing.assert_array_equal(masks['b'], [[True, True], [False, False]])
  np.testing.assert_array_equal(masks['c'], [True, False])


BAD = {
  'init_rank': ({'rank': 8, 'init_rank': 4}, 'init_rank=4: expected'),
  'rank': ({'init_rank': 99}, '^init_rank=99: expected at most 32'),
  'delta_t': ({'delta_t': 0}, 'delta_t=0: expected'),
  'beta1': ({'beta1': 1.0}, 'beta1=1.0: expected'),
  'steps': ({'tinit': 5, 'tfinal': 5}, 'tinit=5, tfinal=5: expected .* below steps=10'),
}


@pytest.mark.parametrize('name', BAD)
def test_what_is_refused(name):
  words, said = BAD[name]
  with pytest.raises(InputError, match=said):
    task = AdaLoRA(gpt(), **words)
    task.transform(optax.identity(), 10)
    jax.eval_shape(lambda: unbox(task.init(NOISE, tokens())))
