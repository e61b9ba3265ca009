"""FLOPs against hand counts: 2 for each multiply-add."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.costs import count


def flops(fn, *args):
  return count(fn, *args).flops


def array(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(('equation', 'left', 'right', 'expected'), [
  ('ij,jk->ik', (4, 8), (8, 3), 2 * 4 * 8 * 3),
  ('i,i->', (7,), (7,), 2 * 7),
  ('bij,bjk->bik', (5, 4, 8), (5, 8, 3), 5 * 2 * 4 * 8 * 3),
  ('btd,dnh->btnh', (2, 3, 8), (8, 4, 5), 2 * 2 * 3 * 8 * 4 * 5),
])  # fmt: skip
def test_contractions(equation, left, right, expected):
  fn = lambda a, b: jnp.einsum(equation, a, b)
  assert flops(fn, array(*left), array(*right)) == expected


def test_dtype_does_not_matter():
  half = array(4, 4, dtype=jnp.bfloat16)
  assert flops(jnp.dot, half, half) == 128


@pytest.mark.parametrize(('strides', 'padding', 'side'), [
  ((1, 1), 'SAME', 10), ((1, 1), 'VALID', 8), ((2, 2), 'SAME', 5),
])  # fmt: skip
def test_convolution(strides, padding, side):
  """An output number is a sum of 3 · 3 · C products, fewer where the kernel covers padding."""
  fn = lambda x, w: jax.lax.conv_general_dilated(
    x, w, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  shapes = (2, 10, 10, 4), (3, 3, 4, 16)
  products = fn(*map(jnp.ones, shapes))  # of ones: each counts the products in it
  assert products.shape == (2, side, side, 16)
  assert flops(fn, *(array(*shape) for shape in shapes)) == 2 * int(products.sum())


def test_grouped_convolution():
  """Depthwise: each output channel reads one input channel."""
  fn = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=4
  )
  assert flops(fn, array(2, 10, 10, 4), array(3, 3, 1, 4)) == 2 * (2 * 4) * (3 * 10 - 2) ** 2


def test_a_scan_counts_times_its_length():
  def fn(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  assert flops(fn, array(2, 8), array(5, 8, 8)) == 5 * 2 * 2 * 8 * 8
  nested = lambda x, w: jax.lax.scan(lambda x, _: (fn(x, w), None), x, None, length=3)[0]
  assert flops(nested, array(2, 8), array(5, 8, 8)) == 3 * 5 * 2 * 2 * 8 * 8


def test_a_gradient_costs_two_more():
  """Of x W for both: dx = dy Wᵀ and dW = xᵀ dy, each as dear as the forward product."""
  fn = lambda x, w: jnp.square(x @ w).sum()
  one = 2 * 4 * 8 * 3
  assert flops(jax.grad(fn), array(4, 8), array(8, 3)) == 2 * one
  assert flops(jax.grad(fn, argnums=(0, 1)), array(4, 8), array(8, 3)) == 3 * one


def test_the_gradient_of_a_scan():
  def fn(w, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

  assert flops(jax.grad(fn, argnums=(0, 1)), array(5, 8, 8), array(2, 8)) == 3 * 5 * 2 * 2 * 8 * 8


def test_remat_pays_the_forward_pass_again():
  def fn(w, x):
    return jnp.tanh(jnp.tanh(x @ w) @ w).sum()

  one = 2 * 2 * 8 * 8
  args = array(8, 8), array(2, 8)
  both = lambda fn: jax.value_and_grad(fn, argnums=(0, 1))
  kept, again = both(fn), both(jax.checkpoint(fn))
  assert flops(kept, *args) == 6 * one
  assert flops(again, *args) == 8 * one


def test_wrappers_hide_nothing():
  @jax.custom_vjp
  def fn(x):
    return x @ x

  fn.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
  assert flops(fn, array(4, 4)) == 128
  assert flops(jax.value_and_grad(lambda x: fn(x).sum()), array(4, 4)) == 3 * 128
  assert flops(jax.jit(fn), array(4, 4)) == 128
  assert flops(jax.vmap(jnp.dot), array(6, 4, 4), array(6, 4, 4)) == 6 * 128


def test_a_cond_costs_its_dearest_branch_and_a_while_one_turn():
  def branches(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

  def loop(x):
    return jax.lax.while_loop(lambda x: (x @ x)[0, 0] < 9, lambda x: x @ x @ x, x)

  assert flops(branches, array(4, 4)) == 2 * 128
  assert flops(loop, array(4, 4)) == 2 * 128


def test_elementwise_work_is_free():
  assert flops(lambda x: jnp.exp(x).sum() + x * x, np.ones(3, np.float32)) == 0


def test_what_no_output_needs_is_not_counted():
  assert flops(lambda x: (x @ x, x @ x @ x)[0], array(4, 4)) == 128
