"""Boxes of images: overlaps, and the best boxes that do not overlap.

A box is (top, left, bottom, right) in pixels, the last dimension of an array [..., 4].
"""

import jax
import jax.numpy as jnp

EPS = 1e-9  # square pixels: two boxes without area overlap by 0


def area(boxes: jax.Array) -> jax.Array:
  """Returns the areas of boxes [..., 4] in square pixels, [...]."""
  return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """Computes intersection over union, 0 to 1, of boxes that broadcast: [..., 4] -> [...]."""
  inside = _intersection(a, b)
  return inside / jnp.maximum(area(a) + area(b) - inside, EPS)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
  """Computes generalized intersection over union, -1 to 1, of boxes [..., 4] -> [...].

  It subtracts the share of the smallest box around both that neither of them covers, so that boxes
  without an overlap have a gradient.

  Source: Rezatofighi et al. 2019, algorithm 1.
  """
  inside = _intersection(a, b)
  union = area(a) + area(b) - inside
  corners = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
  hull = area(jnp.concatenate(corners, -1))
  return inside / jnp.maximum(union, EPS) - (hull - union) / jnp.maximum(hull, EPS)


def non_maximum_suppression(
  boxes: jax.Array, scores: jax.Array, labels: jax.Array, count: int, threshold: float
) -> tuple[jax.Array, jax.Array]:
  """Chooses the best boxes of each image; one that overlaps a better one of its class is left out.

  Greedy: takes the box of the highest score, drops those of its class that overlap it, and
  continues. Of equal scores the first counts.

  Args:
    boxes: [B, N, 4].
    scores: [B, N], above 0; 0 marks a place without a box.
    labels: class of each box, int [B, N].
    count: boxes to choose in each image.
    threshold: intersection over union above which a box is dropped.

  Returns:
    Numbers of the chosen boxes, int32 [B, count], and their scores [B, count], 0 where none is
    left.
  """

  def choose(i, carry):
    left, chosen, kept = carry
    best = left.argmax(-1).astype(jnp.int32)[:, None]
    take = lambda x: jnp.take_along_axis(x, best, 1)
    box = jnp.take_along_axis(boxes, best[..., None], 1)
    chosen = chosen.at[:, i].set(best[:, 0])
    kept = kept.at[:, i].set(take(left)[:, 0])
    dropped = (iou(boxes, box) > threshold) & (labels == take(labels))
    dropped |= jnp.arange(boxes.shape[1])[None] == best
    return jnp.where(dropped, 0.0, left), chosen, kept

  batch = boxes.shape[0]
  start = scores, jnp.zeros((batch, count), jnp.int32), jnp.zeros((batch, count), scores.dtype)
  _, chosen, kept = jax.lax.fori_loop(0, count, choose, start)
  return chosen, kept


def _intersection(a: jax.Array, b: jax.Array) -> jax.Array:
  top_left = jnp.maximum(a[..., :2], b[..., :2])
  bottom_right = jnp.minimum(a[..., 2:], b[..., 2:])
  return jnp.maximum(bottom_right - top_left, 0.0).prod(-1)
