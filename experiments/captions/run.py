"""Captions of EmojiTwo: BLEU and chrF on held-out pairs, beside captions of other pictures.

    BMX_TEST_DATA=DIR python experiments/captions/run.py [--workdir=DIR] [WORD=VALUE ...]

DIR holds emojitwo/captions.jsonl and emojitwo/images_32.npz. Trains `emoji_captions` unless
--workdir holds a run of it, predicts the held-out pairs, and prints the scores of the captions, and
of the same captions permuted among the pictures (mean of 5 permutations), which depend on no
picture.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from bmx.tasks.translation import corpus_bleu, corpus_chrf

DATA = pathlib.Path(os.environ.get('BMX_TEST_DATA', '')) / 'emojitwo'
PERMUTATIONS = 5


def bmx(*flags: str) -> None:
  """Runs a command."""
  subprocess.run([sys.executable, '-m', 'bmx.main', *flags], check=True)


def scores(predictions: list[str], targets: list[str]) -> list[float]:
  """BLEU and chrF."""
  return [corpus_bleu(predictions, targets), corpus_chrf(predictions, targets)]


def main() -> None:
  """Trains, predicts and prints the scores."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--workdir', default='', help='of a run of emoji_captions; trained without')
  parser.add_argument('words', nargs='*', help='of the config, such as epochs=1.0')
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as place:
    workdir = given.workdir or f'{place}/run'
    if not given.workdir:
      bmx('--config=emoji_captions', f'--config.data.path={DATA / "captions.jsonl"}',
          f'--config.data.images={DATA / "images_32.npz"}', f'--workdir={workdir}',
          *(f'--config.{word}' for word in given.words))  # fmt: skip
    bmx('--mode=predict', f'--workdir={workdir}', f'--output={place}/out.jsonl')
    lines = [json.loads(line) for line in pathlib.Path(place, 'out.jsonl').read_text().splitlines()]
  found, targets = ([line[k] for line in lines] for k in ('prediction', 'target'))
  draws = [np.random.default_rng(seed).permutation(len(found)) for seed in range(PERMUTATIONS)]
  other = np.mean([scores([found[i] for i in order], targets) for order in draws], 0)
  same = sum(a == b for a, b in zip(found, targets, strict=True))
  print(f'{len(found)} pairs, {len({*found})} different captions, {same} the true one')
  for name, (bleu, chrf) in (('own picture', scores(found, targets)), ('other picture', other)):
    print(f'{name:14} BLEU {bleu:.2f}  chrF {chrf:.2f}')


if __name__ == '__main__':
  main()
