"""Sown and captured values of a model."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.types import Facts, Noise
from bmx.tasks.common import ModelTask, Wrapper

NOISE = Noise(jax.random.PRNGKey(0), jnp.int32(0))


class Tower(nn.Module):
  @nn.compact
  def __call__(self, x):
    self.sow('aux', 'balance', x.sum())
    return nn.Dense(2, name='head')(x)


class Towers(nn.Module):
  """Two towers, of which the second may be the first one again."""

  shared: bool = False
  facts: Facts = Facts(num_outputs=2, aux_losses={'balance': 1.0})

  @nn.compact
  def __call__(self, x, *, train=False):
    one = Tower(name='one')
    two = one if self.shared else Tower(name='two')
    return one(x) + two(2 * x)


class Sum(ModelTask):
  """The sum of the outputs."""

  def inputs(self, batch):
    return (batch['x'],)

  def score(self, out, batch, *, train):
    return out.sum(), jnp.float32(len(out)), {}


@pytest.mark.parametrize('shared', [False, True])
def test_values_that_several_modules_sow_are_summed(shared):
  task, x = Sum(Towers(shared)), np.arange(6, dtype=np.float32).reshape(3, 2)
  variables = task.init(NOISE, {'x': x})
  out, _ = task.forward(variables, {'x': x}, NOISE, train=True)
  np.testing.assert_allclose(out.aux['balance'], 3 * x.sum(), rtol=1e-6)


def test_a_module_that_is_called_twice_has_no_one_value():
  x = np.ones((3, 2), np.float32)
  for shared in (False, True):
    task = Sum(Towers(shared))
    variables = task.init(NOISE, {'x': x})
    capture = lambda task=task, variables=variables: task.forward(
      variables, {'x': x}, NOISE, train=True, capture=('one/head',)
    )
    if shared:
      with pytest.raises(InputError, match='capture of one/head: expected a module'):
        capture()
    else:
      assert set(capture()[0].captured) == {'one/head'}


class Kept(Wrapper):
  """A wrapper with a constant collection that its inner task knows nothing of."""

  @property
  def constant(self):
    return ('frozen', *self.inner.constant)

  def init(self, noise, batch):
    return {**self.inner.init(noise, batch), 'frozen': {'x': jnp.ones(2)}}


def test_a_wrappers_own_collection_stays_with_it():
  x = np.ones((3, 2), np.float32)
  task = Kept(Sum(Towers()))
  _, collections = task.forward(task.init(NOISE, {'x': x}), {'x': x}, NOISE, train=True)
  assert 'frozen' not in collections


def wrapper(role):
  return dataclasses.dataclass(frozen=True)(type(role.title(), (Wrapper,), {'role': role}))


@pytest.mark.parametrize('outer, inner, fix', [
  ('adapters', 'distill', r'nest them the other way, Distill\(Adapters'),
  ('quantized', 'adapters', r'nest them the other way, Adapters\(Quantized'),
  ('adapters', 'adapters', 'write its merged weights'),
  ('fake', 'adapters', 'write its merged weights'),
  ('fake', 'quantized', 'write its merged weights'),
])  # fmt: skip
def test_an_order_that_loses_a_wrapper_is_refused(outer, inner, fix):
  base = Sum(Towers())
  plain = Wrapper(base)  # without a role: fits anywhere, and hides no other
  with pytest.raises(InputError, match=fix):
    wrapper(outer)(Wrapper(wrapper(inner)(plain)))


def test_the_right_order_is_taken():
  task = wrapper('distill')(wrapper('adapters')(wrapper('quantized')(Sum(Towers()))))
  assert task.transform('tx', 10) == 'tx'
