"""Folders of images for tests: red and blue pictures that a small model tells apart."""

import numpy as np
from PIL import Image


def pixels(seed, height=20, width=24, color=0):
  """Noise in which one color is strong, uint8 [height, width, 3]."""
  image = np.random.default_rng(seed).integers(0, 100, (height, width, 3))
  image[..., color] += 120
  return image.astype(np.uint8)


def save(path, image, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path, **options)


def folder(root, count=6, classes=('red', 'green', 'blue'), suffix='.png'):
  """Writes `count` images of each class: root/CLASS/NUMBER.png."""
  for color, name in enumerate(classes):
    for i in range(count):
      save(root / name / f'{i}{suffix}', pixels(100 * color + i, 20 + i, 24, color))
  return root
