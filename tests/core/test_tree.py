"""Trees by name: masks, sizes, differences, digests."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.errors import InputError


def params():
  return {
    'dense': {
      'kernel': np.arange(6, dtype=np.float32).reshape(2, 3),
      'bias': np.zeros(3, np.float32),
    },
    'norm': {'scale': np.ones(3, np.float32)},
  }


def test_names_follow_the_order_of_leaves():
  values = tree.named({'b': [10, {'x': 20}], 'a': (30,)})
  assert values == {'a/0': 30, 'b/0': 10, 'b/1/x': 20}
  assert list(values.values()) == jax.tree.leaves({'b': [10, {'x': 20}], 'a': (30,)})


@pytest.mark.parametrize(('pattern', 'expected'), [
  ('kernel', {'dense/kernel'}),
  ('kernel|scale', {'dense/kernel', 'norm/scale'}),
  ('^dense/', {'dense/kernel', 'dense/bias'}),
  ('bias$', {'dense/bias'}),
  ('.', {'dense/kernel', 'dense/bias', 'norm/scale'}),
])  # fmt: skip
def test_mask(pattern, expected):
  mask = tree.named(tree.mask(params(), pattern))
  assert {k for k, v in mask.items() if v} == expected
  assert set(mask) == set(tree.named(params()))


def test_a_mask_of_nothing_names_the_parameters():
  with pytest.raises(InputError, match=r"'kernal' matches no parameter(.|\n)*dense/kernel"):
    tree.mask(params(), 'kernal')


def test_a_broken_regex():
  with pytest.raises(InputError, match='is not a regular expression'):
    tree.mask(params(), '(')


def test_sizes():
  leaves = params() | {'half': jax.ShapeDtypeStruct((5, 2), jnp.bfloat16), 'one': np.int8(3)}
  assert tree.count(leaves) == 6 + 3 + 3 + 10 + 1
  assert tree.nbytes(leaves) == 4 * 12 + 2 * 10 + 1


def test_no_difference():
  given = tree.signature(params())
  assert given['dense/kernel'] == [[2, 3], 'float32']
  abstract = jax.eval_shape(lambda: params())
  assert tree.difference(given, tree.signature(abstract)) == []


def test_every_difference_is_told():
  given, expected = params(), params()
  del given['norm']['scale']
  given['extra'] = np.zeros(1)
  given['dense']['kernel'] = given['dense']['kernel'].T
  given['dense']['bias'] = given['dense']['bias'].astype(np.float16)
  lines = tree.difference(tree.signature(given), tree.signature(expected))
  assert sorted(line.split()[:2] for line in lines) == [
    ['differs', 'dense/bias:'], ['differs', 'dense/kernel:'],
    ['extra', 'extra'], ['missing', 'norm/scale'],
  ]  # fmt: skip
  assert any('[3, 2]' in line and '[2, 3]' in line for line in lines)
  assert any('float16' in line and 'float32' in line for line in lines)


def test_digest_is_sha256_of_what_it_says():
  array = np.arange(3, dtype=np.int16)
  expected = hashlib.sha256(b'a/0 (3,) int16\n' + array.tobytes()).hexdigest()
  assert tree.digest({'a': [array]}) == expected


def test_digest_of_host_and_device():
  on_device = jax.tree.map(jnp.asarray, params())
  assert tree.digest(on_device) == tree.digest(params()) == tree.digest(params())


def test_digest_of_shards():
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  at = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  array = np.arange(16, dtype=np.float32)
  assert tree.digest([jax.device_put(array, at)]) == tree.digest([array])


def test_digest_of_memory_order():
  array = np.arange(6, dtype=np.float32).reshape(2, 3)
  assert tree.digest([np.asfortranarray(array)]) == tree.digest([array])


def changed(name):
  p = params()
  kernel = p['dense']['kernel']
  if name == 'bit':
    kernel.view(np.uint32)[1, 2] ^= 1
  if name == 'sign of zero':
    p['dense']['bias'][0] = -0.0
  if name == 'name':
    p['dense']['kernal'] = p['dense'].pop('kernel')
  if name == 'dtype':
    p['dense']['kernel'] = kernel.view(np.int32)
  if name == 'shape':
    p['dense']['kernel'] = kernel.reshape(3, 2)
  if name == 'extra empty leaf':
    p['empty'] = np.zeros(0, np.float32)
  return p


@pytest.mark.parametrize(
  'what', ['bit', 'sign of zero', 'name', 'dtype', 'shape', 'extra empty leaf']
)
def test_digest_changes_with(what):
  assert tree.digest(changed(what)) != tree.digest(params())
