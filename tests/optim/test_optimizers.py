"""Optimizers against torch's, and what `wrap` promises about clipping and freezing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models.bert import BERT, Classifier
from bmx.models.gpt import GPT
from bmx.optim.optimizers import DECAYED as PATTERN
from bmx.optim.optimizers import adam, adamw, by_layer, sgd, wrap
from bmx.optim.schedules import constant
from bmx.optim.tables import lazy_adam
from bmx.parallel import unbox
from tests.models.weights import jit, shapes

SHAPES = {
  'dense': {'kernel': (3, 2), 'bias': (2,)},
  'embed': {'table': (4, 3)},
  'norm': {'scale': (3,)},
}
DECAYED = ('dense/kernel', 'embed/table')


def values(seed, scale=1.0):
  random = np.random.default_rng(seed)
  make = lambda shape: (scale * random.normal(size=shape)).astype(np.float32)
  return jax.tree.map(make, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def ours(tx, steps=10, scale=1.0):
  """-> parameters after `steps` updates, the gradient of step s being values(s + 1)."""
  params = jax.tree.map(jnp.asarray, values(0))
  state, update = tx.init(params), jax.jit(tx.update)
  for s in range(steps):
    updates, state = update(values(s + 1, scale), state, params)
    params = optax.apply_updates(params, updates)
  return tree.named(params)


def theirs(torch, make, steps=10, scale=1.0, decay=0.0, clip=0.0):
  """The same with torch, whose two parameter groups say what decays."""
  params = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in tree.named(values(0)).items()}
  groups = [
    {'params': [params[k] for k in DECAYED], 'weight_decay': decay},
    {'params': [p for k, p in params.items() if k not in DECAYED], 'weight_decay': 0.0},
  ]
  optimizer = make(groups)
  for s in range(steps):
    for k, g in tree.named(values(s + 1, scale)).items():
      params[k].grad = torch.tensor(g)
    if clip:
      torch.nn.utils.clip_grad_norm_(list(params.values()), clip)
    optimizer.step()
  return {k: p.detach().numpy() for k, p in params.items()}


def assert_same(given, expected):
  assert set(given) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(given[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(('momentum', 'nesterov'), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize('decay', [0.0, 0.1])
def test_sgd(torch, momentum, nesterov, decay):
  tx = sgd(constant(0.05), momentum, nesterov, decay)
  make = lambda groups: torch.optim.SGD(groups, 0.05, momentum, nesterov=nesterov)
  assert_same(ours(tx), theirs(torch, make, decay=decay))


def test_adam(torch):
  make = lambda groups: torch.optim.Adam(groups, 0.01, (0.8, 0.95), 1e-6)
  assert_same(ours(adam(constant(0.01), 0.8, 0.95, 1e-6)), theirs(torch, make))


@pytest.mark.parametrize('decay', [0.0, 0.1])
def test_adamw(torch, decay):
  make = lambda groups: torch.optim.AdamW(groups, 0.01, (0.9, 0.95))
  tx = adamw(constant(0.01), b2=0.95, weight_decay=decay)
  assert_same(ours(tx), theirs(torch, make, decay=decay))


@pytest.mark.parametrize('scale', [0.01, 1.0])
def test_clip(torch, scale):
  """Gradients of norm about 0.05 stay, those of about 5 become 0.5."""
  make = lambda groups: torch.optim.SGD(groups, 0.05, 0.9)
  tx = sgd(constant(0.05), 0.9, clip=0.5)
  assert_same(ours(tx, scale=scale), theirs(torch, make, scale=scale, clip=0.5))


def test_the_rate_follows_the_schedule():
  """Unit gradients under plain descent: the parameter falls by the rates of steps 0, 1, 2, ..."""
  tx, params = sgd(constant(0.8, warmup=4)), {'kernel': jnp.zeros(())}
  state, seen = tx.init(params), []
  for _ in range(5):
    updates, state = tx.update({'kernel': jnp.ones(())}, state, params)
    seen.append(-float(updates['kernel']))
  assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])


def decays(tx):
  """Names whose parameter moves though its gradient is zero."""
  params = jax.tree.map(jnp.asarray, values(0))
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  return {k for k, v in tree.named(updates).items() if np.any(np.asarray(v))}


@pytest.mark.parametrize('make', [sgd, adamw])
def test_only_kernels_and_tables_decay(make):
  assert decays(make(constant(0.1), weight_decay=0.1)) == set(DECAYED)
  assert decays(make(constant(0.1), weight_decay=0.1, decay='bias')) == {'dense/bias'}
  assert decays(make(constant(0.1), weight_decay=0.0)) == set()


FREEZERS = {
  'sgd': lambda freeze: sgd(constant(0.1), 0.9, freeze=freeze),
  'adam': lambda freeze: adam(constant(0.1), freeze=freeze),
  'adamw': lambda freeze: adamw(constant(0.1), weight_decay=0.1, freeze=freeze),
  'lion': lambda freeze: wrap(optax.lion(0.1), freeze=freeze),
}


@pytest.mark.parametrize('name', FREEZERS)
def test_frozen_parameters_keep_their_bits_and_have_no_moments(name):
  start, tx = tree.named(values(0)), FREEZERS[name]('embed|norm')
  end = ours(tx, steps=3)
  for leaf, value in start.items():
    frozen = leaf.startswith(('embed', 'norm'))
    assert (np.asarray(end[leaf]).tobytes() == value.tobytes()) == frozen, leaf
  shapes = {x.shape for x in jax.tree.leaves(tx.init(values(0)))}
  assert (3, 2) in shapes
  assert not {(4, 3), (3,)} & shapes


def test_what_trains_does_so_as_without_the_frozen(torch):
  """Clipping included: the norm is that of the trained parameters."""
  make = lambda groups: torch.optim.SGD(groups[:1], 0.05)
  kernels = {'freeze': 'bias|scale', 'clip': 0.5}
  given, zeroed = ours(sgd(constant(0.05), **kernels)), tree.named(values(0))
  params = {k: torch.nn.Parameter(torch.tensor(zeroed[k])) for k in DECAYED}
  optimizer = make([{'params': list(params.values())}])
  for s in range(10):
    for k in DECAYED:
      params[k].grad = torch.tensor(tree.named(values(s + 1))[k])
    torch.nn.utils.clip_grad_norm_(list(params.values()), 0.5)
    optimizer.step()
  assert_same({k: given[k] for k in DECAYED}, {k: p.detach().numpy() for k, p in params.items()})


def test_kernels_of_experts_decay():
  model = GPT(8, 4, width=8, depth=1, heads=2, experts=2, gated=True)
  made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  params = unbox(made['params'])
  names = [k for k, chosen in tree.named(tree.mask(params, PATTERN)).items() if chosen]
  assert {k.split('block_0/')[-1] for k in names if 'experts' in k} == {
    f'experts/{k}' for k in ('router/kernel', 'up', 'gate', 'down')
  }


@pytest.mark.parametrize('make', [sgd, adamw])
def test_all_that_decays_may_be_frozen(make):
  """Training of biases and norms only (Ben Zaken et al. 2022), with the default decay."""
  end = ours(make(constant(0.1), weight_decay=0.1, freeze='kernel|table'), steps=2)
  moved = {k for k, v in tree.named(values(0)).items() if np.any(v != np.asarray(end[k]))}
  assert moved == {'dense/bias', 'norm/scale'}


@pytest.mark.parametrize(
  'options', [{'freeze': 'kernal'}, {'weight_decay': 0.1, 'decay': 'kernal'}]
)
@pytest.mark.parametrize('make', [sgd, adamw])
def test_a_regex_that_matches_nothing(make, options):
  with pytest.raises(InputError, match=r"'kernal' matches no parameter(.|\n)*dense/kernel"):
    make(constant(0.1), **options).init(values(0))


def lion(params, gradients, rate, b1=0.9, b2=0.99, clip=1.0):
  """Chen et al. 2023, algorithm 2, without decay; flat float64 vectors."""
  average = np.zeros_like(params)
  for g in gradients:
    g = g * min(1.0, clip / np.linalg.norm(g))
    params = params - rate * np.sign(b1 * average + (1 - b1) * g)
    average = b2 * average + (1 - b2) * g
  return params


def test_wrap_around_lion():
  flat = lambda x: np.concatenate([np.ravel(v) for v in jax.tree.leaves(x)]).astype(np.float64)
  scales = [3.0, 0.01, 1.0, 0.1, 1.0]  # clipping changes what each adds to the average
  gradients = [values(i, scale) for i, scale in enumerate(scales)]
  tx = wrap(optax.lion(0.1, weight_decay=0.0), clip=1.0)
  params = jax.tree.map(jnp.asarray, values(9))
  state = tx.init(params)
  for g in gradients:
    updates, state = tx.update(g, state, params)
    params = optax.apply_updates(params, updates)
  expected = lion(flat(values(9)), [flat(g) for g in gradients], 0.1)
  np.testing.assert_allclose(flat(params), expected, atol=1e-6)
  assert (
    np.abs(lion(flat(values(9)), [flat(g) for g in gradients], 0.1, clip=1e9) - expected).max()
    > 0.1
  )


def test_wrap_without_anything_is_the_inner_transform():
  inner = optax.lion(0.1)
  assert wrap(inner) is inner


def text_model(kind, scan):
  """Three layers; -> abstract parameters."""
  sizes = {'vocab_size': 5, 'max_seq_len': 4, 'width': 4, 'depth': 3, 'heads': 2, 'scan': scan}
  ids = jnp.zeros((1, 2), jnp.int32)
  models = {
    'classifier': lambda: Classifier(BERT(**sizes), 2),
    'gpt': lambda: GPT(**sizes, tied=False),
    'experts': lambda: GPT(**sizes, tied=False, experts=2),
  }
  return shapes(models[kind](), ids)['params']


def expected_factor(name, shape, rate):
  """0.5^(3 - i) for layer i, by hand."""
  if name.endswith(('embed/table', 'position', 'type', 'encoder/norm/scale', 'encoder/norm/bias')):
    return rate**4
  for i in range(3):
    if f'/block_{i}/' in name:
      return rate ** (3 - i)
  if '/blocks/' in name:
    return np.array([rate**3, rate**2, rate]).reshape(3, *[1] * (len(shape) - 1))
  return 1.0


HEADS = {
  'classifier': {'head', 'encoder/pooler'},
  'gpt': {'head/table', 'norm_out'},
  'experts': {'head/table', 'norm_out'},
}


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('kind', HEADS)
def test_layers_have_rates(kind, scan):
  """Half the rate a layer down; heads keep theirs."""
  params = text_model(kind, scan)
  ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params)
  tx = by_layer(0.5)
  updates, _ = tx.update(ones, tx.init(ones), ones)
  whole = set()
  for name, value in tree.named(updates).items():
    expected = np.broadcast_to(expected_factor(name, value.shape, 0.5), value.shape)
    np.testing.assert_array_equal(value, expected, err_msg=name)
    whole |= {name} if np.all(expected == 1) else set()
  assert {next(h for h in HEADS[kind] if n.startswith(h)) for n in whole} == HEADS[kind]
  assert len(tree.named(updates)) > len(whole) + 10


def adamw_step(params, **options):
  """-> the first update, of gradients that are 1, at rate 1: -1 but for epsilon and decay."""
  tx = adamw(constant(1.0), weight_decay=0.0, **options)
  params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), params)
  return tree.named(jit(tx.update)(params, tx.init(params), params)[0])


FROZEN = {
  'nothing': '',
  'the words': 'embed|position|type',
  'the upper layers': 'block_[12]',
  'all layers': 'encoder/stack',
  'all but the head': 'encoder',
}


@pytest.mark.parametrize('name', FROZEN)
def test_layers_have_rates_beside_what_is_frozen(name):
  """The same: a frozen layer is a layer still."""
  regex = FROZEN[name]
  updates = adamw_step(text_model('classifier', scan=False), layer_decay=0.5, freeze=regex)
  moved = set()
  for leaf, value in updates.items():
    frozen = (bool(regex) and any(part in leaf for part in regex.split('|'))) or (
      regex == 'block_[12]' and ('block_1' in leaf or 'block_2' in leaf)
    )
    expected = 0.0 if frozen else -expected_factor(leaf, value.shape, 0.5)
    np.testing.assert_allclose(value, np.full(value.shape, expected), rtol=1e-5, err_msg=leaf)
    moved |= {leaf} if not frozen else set()
  assert {'head/kernel', 'head/bias'} <= moved
  assert (len(moved) == len(updates)) == (not regex)


def test_a_rate_of_one_changes_nothing():
  params = text_model('classifier', scan=True)
  plain, same = adamw_step(params), adamw_step(params, layer_decay=1.0)
  jax.tree.map(np.testing.assert_array_equal, plain, same)
  assert all(np.allclose(v, -1, rtol=1e-4) for v in plain.values())


@pytest.mark.parametrize('rate', [0.0, -0.5, 1.01, float('nan')])
def test_rates_that_are_none(rate):
  for make in (by_layer, lambda rate: adamw(constant(0.1), layer_decay=rate)):
    with pytest.raises(InputError, match=r'layer_decay=.*: expected 0 < layer_decay <= 1'):
      make(rate)


def test_layers_that_are_not_there():
  with pytest.raises(InputError, match='layer_decay=0.5: expected parameters in blocks'):
    adamw(constant(0.1), layer_decay=0.5).init(values(0))


def test_the_last_name_decides_what_decays():
  params = {
    'stable': {'bias': jnp.ones(2), 'kernel': jnp.ones(2)},
    'kernel_mixer': {'bias': jnp.ones(2), 'scale': jnp.ones(2)},
    'embed': {'table': jnp.ones(2)},
  }
  tx = adamw(constant(0.1), weight_decay=0.5)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params)
  moved = {name for name, u in tree.named(updates).items() if np.abs(u).max() > 0}
  assert moved == {'stable/kernel', 'embed/table'}


def test_the_default_may_match_nothing_and_says_so(caplog):
  params = {'query': {'kernel': {'a': jnp.ones(2), 'b': jnp.ones(2)}}}  # adapters
  tx = adamw(constant(0.1), weight_decay=0.125)
  state = tx.init(params)
  assert 'weight_decay=0.125 moves nothing' in caplog.text
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
  assert not any(np.any(u) for u in jax.tree.leaves(updates))
  with pytest.raises(InputError, match='matches no parameter'):
    adamw(constant(0.1), weight_decay=0.125, decay='kernal$').init(params)


RATE = constant(0.1)
OUT_OF_RANGE = {
  'momentum=1.0': lambda: sgd(RATE, momentum=1.0),
  'momentum=0': lambda: sgd(RATE, nesterov=True),
  'weight_decay=-0.1': lambda: sgd(RATE, weight_decay=-0.1),
  'weight_decay=nan': lambda: adamw(RATE, weight_decay=float('nan')),
  'b1=1.5': lambda: adam(RATE, b1=1.5),
  'b1=-0.1': lambda: lazy_adam(RATE, b1=-0.1),
  'b2=1.0': lambda: adamw(RATE, b2=1.0),
  'eps=0.0': lambda: adam(RATE, eps=0.0),
  'eps=inf': lambda: lazy_adam(RATE, eps=float('inf')),
  'clip=-1': lambda: adamw(RATE, clip=-1),
  'clip=nan': lambda: wrap(optax.lion(0.1), clip=float('nan')),
}


@pytest.mark.parametrize('given', OUT_OF_RANGE)
def test_numbers_that_are_out_of_range(given):
  with pytest.raises(InputError, match=f'^{re.escape(given)}: expected '):
    OUT_OF_RANGE[given]()


@pytest.mark.parametrize('make', [sgd, adamw])
def test_a_decay_that_matches_nothing_is_refused_beside_frozen_ones(make):
  with pytest.raises(InputError, match="'kernl' matches no parameter"):
    make(constant(0.1), weight_decay=0.1, decay='kernl', freeze='bias').init(values(0))
