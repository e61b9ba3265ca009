"""Pictures of two handwritten digits with their names: pairs that need no files."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.data import Examples
from bmx.data.arrays import ArrayData, split_indices
from bmx.data.builtin import digits as one_digit
from bmx.data.images.normalization import Normalise
from bmx.data.images.pairs import pair_spec, paired
from bmx.data.images.pictures import Pixels
from bmx.data.shapes import shapes
from bmx.data.text.targets import Target, TargetData, target_spec
from bmx.data.text.tokenizer import Subwords
from bmx.data.text.tokenizer_train import learned, listed

NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
SHAPE = (16, 16, 1)


def digits(
  length: int = 8,
  written: bool = False,
  split: str = 'train',
  holdout: float = 0.1,
  tokenizer: Subwords | None = None,
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Returns 1,437 pictures of two digits of scikit-learn, captioned 'three above seven'.

  The first digit is in the upper left quarter, the second in the lower right one.

  Args:
    length: tokens of a caption.
    written: whether captions are texts that a decoder writes, see `captions.captions`.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    tokenizer: of the captions; None: WordPiece, learned from them, or of written ones their words.
    fitted: `state()` of the training data, which changes nothing.
    read: False returns shapes only.
    seed: of the run.
    train: training data.
  """
  if not read:
    spec = pair_spec(SHAPE, length)
    spec = {'image': spec['image'], **target_spec(length)} if written else spec
    return shapes(spec, shape=SHAPE, length=length)
  first = one_digit('train').arrays
  other = streams.generator(0, streams.SPLIT).permutation(len(first['label']))
  image = np.zeros((len(other), *SHAPE), np.float32)
  image[:, :8, :8], image[:, 8:, 8:] = first['image'], first['image'][other]
  pairs = zip(first['label'].tolist(), first['label'][other].tolist(), strict=True)
  texts = [f'{NAMES[a]} above {NAMES[b]}' for a, b in pairs]
  chosen = split_indices(len(texts), split, holdout, ('all', 'train', 'valid'))
  metadata = {'shape': SHAPE, 'source': f'pairs of scikit-learn digits, {split}'}
  state = {'pixels': Pixels(SHAPE).state()}  # files are scaled to 0..1, as 0..16 is here
  images = ArrayData({'image': image[chosen]}, metadata, seed, train, None, Normalise(16.0),
                     fitted=state)  # fmt: skip
  if written:
    target = Target(tokenizer or listed(('above', *NAMES)), length)
    own = tuple(texts[i] for i in chosen)
    return TargetData(images, target, [target.encode(t, 'a caption') for t in own], own)
  tokenizer = tokenizer or learned(texts, 'wordpiece', 300)
  return paired(images, texts, chosen, tokenizer, length)
