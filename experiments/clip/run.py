"""CLIP on EmojiTwo: recall on held-out pairs, beside chance and a bag of words, 3 seeds.

    BMX_TEST_DATA=DIR python experiments/clip/run.py [--seeds=3] [WORD=VALUE ...]

DIR holds emojitwo/captions.jsonl and emojitwo/images_32.npz. Trains `emoji_clip` on four fifths of
the pairs, seed after seed, and writes results.json beside this file after each; a seed that is
there is not trained again. The last step is reported: nothing is chosen by the held-out pairs.

The bag of words is linear: the words of a caption, weighted by their inverse document frequency,
are predicted from the pixels of the image by ridge regression, whose penalty a fifth of the
training pairs chooses; candidates are ranked by the cosine. Zero-shot: each held-out image is
classified among the names of the eight categories of EmojiTwo, half of which hardly a caption has.
Many held-out drawings have a sibling in training (another skin tone), which the split
leaves as it is.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import Counter

import numpy as np

from bmx.data.images.captions import captions
from bmx.data.text.tokenizer_train import trained
from bmx.tasks import hits

HERE = pathlib.Path(__file__).parent
DATA = pathlib.Path(os.environ.get('BMX_TEST_DATA', '')) / 'emojitwo'
TABLE, IMAGES = DATA / 'captions.jsonl', DATA / 'images_32.npz'
HOLDOUT = 0.2
RECALLS = ('image_to_text_recall_at_1', 'image_to_text_recall_at_10', 'text_to_image_recall_at_1',
           'text_to_image_recall_at_10')  # fmt: skip
CATEGORIES = ('people', 'activity', 'nature', 'food', 'objects', 'travel', 'symbols', 'flags')
PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10_000.0)


def split(name: str):
  """The pairs of a split, without augmentation: images [N, I, J, C], texts, numbers of captions."""
  data = captions(str(TABLE), str(IMAGES), text=('name', 'keywords'), size=32, length=16,
                  tokenizer=trained(vocab_size=1500, path=str(TABLE), field='name'),
                  split=name, holdout=HOLDOUT, train=False)  # fmt: skip
  return data.images.arrays['image'], data.texts, data.arrays['caption']


def words(text: str) -> list[str]:
  """Words of a text, in lower case."""
  return re.findall(r'\w+', text.lower())


def bags(texts, known: dict[str, int], weights: np.ndarray) -> np.ndarray:
  """Weighted words of texts, of length 1: float [N, V]."""
  found = np.zeros((len(texts), len(known)))
  for row, text in zip(found, texts, strict=True):
    for word in words(text):
      if word in known:
        row[known[word]] = weights[known[word]]
  return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def ridge(x, y, queries, penalty: float) -> np.ndarray:
  """Predictions of ridge regression for `queries`, by its dual."""
  mean, level = x.mean(0), y.mean(0)
  x, queries = x - mean, queries - mean
  dual = np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y - level)
  return queries @ x.T @ dual + level


def bag_of_words() -> dict:
  """Recalls of the baseline on the held-out pairs."""
  image, texts, caption = split('train')
  x = image.reshape(len(image), -1) / 255
  counts = Counter(w for text in texts for w in set(words(text)))
  known = {w: i for i, w in enumerate(sorted(counts))}
  weights = np.log(len(texts) / np.array([counts[w] for w in known]))
  y = bags(texts, known, weights)
  cut = np.random.default_rng(0).permutation(len(x))
  inner, outer = cut[len(x) // 5 :], cut[: len(x) // 5]

  def rows(queries, bag, caption):
    length = np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-9)
    return {'image': queries / length, 'text': bag, 'caption': caption}

  def score(penalty):
    guess = ridge(x[inner], y[inner], x[outer], penalty)
    return hits.image_to_text_recall_at_10(rows(guess, y[outer], caption[outer]))

  best = max(PENALTIES, key=score)
  image, texts, caption = split('valid')
  guess = ridge(x, y, image.reshape(len(image), -1) / 255, best)
  found = rows(guess, bags(texts, known, weights), caption)
  return {name: round(getattr(hits, name)(found), 4) for name in RECALLS} | {'penalty': best}


def labeled(folder: pathlib.Path) -> np.ndarray:
  """Writes the held-out images of the categories; returns their numbers of categories."""
  image, texts, _ = split('valid')
  known = {}
  for line in TABLE.read_text().splitlines():
    record = json.loads(line)
    known[', '.join([record['name'], *record['keywords']])] = record['category']
  kept = [i for i, text in enumerate(texts) if known[text] in CATEGORIES]
  label = np.array([CATEGORIES.index(known[texts[i]]) for i in kept])
  np.savez(folder / 'labeled.npz', image=image[kept], label=label)
  return label


def bmx(*flags: str) -> float:
  """Runs a command; returns its CPU seconds."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  subprocess.run([sys.executable, '-m', 'bmx.main', *flags], check=True, cwd=HERE.parent.parent)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(seed: int, overrides: list[str]) -> dict:
  """Trains one seed -> its metrics at the last step."""
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    seconds = bmx('--config=emoji_clip', f'--config.data.path={TABLE}',
                  f'--config.data.images={IMAGES}', f'--config.data.holdout={HOLDOUT}',
                  f'--config.seed={seed}', f'--workdir={folder}/run',
                  *(f'--config.{word}' for word in overrides))  # fmt: skip
    summary = json.loads((folder / 'run/summary.json').read_text())
    found = {k: round(summary['metrics'][f'eval/valid/{k}'], 4) for k in RECALLS}
    label = labeled(folder)
    bmx('--mode=predict', f'--workdir={folder}/run', f'--input={folder}/labeled.npz',
        f'--config.predict.labels={CATEGORIES}', f'--output={folder}/out.jsonl')  # fmt: skip
    lines = [json.loads(line) for line in (folder / 'out.jsonl').read_text().splitlines()]
  right = [line['prediction'] == CATEGORIES[k] for line, k in zip(lines, label, strict=True)]
  return {
    'seed': seed, 'steps': summary['steps'], 'cpu_seconds': round(seconds, 1), **found,
    'zero_shot_accuracy': round(float(np.mean(right)), 4),
  }  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
  """Mean, least and largest of the values."""
  return {'mean': round(statistics.mean(values), 4), 'least': min(values), 'most': max(values)}


def main() -> None:
  """Trains what results.json lacks."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('words', nargs='*', help='of the config, such as epochs=1')
  given = parser.parse_args()
  path = HERE / 'results.json'
  record = json.loads(path.read_text()) if path.exists() else {}
  if 'bag_of_words' not in record:
    _, texts, caption = split('valid')
    with tempfile.TemporaryDirectory() as folder:
      label = labeled(pathlib.Path(folder))
    record |= {
      'held_out': len(texts),
      'distinct_captions': len(np.unique(caption)),
      'chance': {f'recall_at_{k}': round(getattr(hits, f'chance_recall_at_{k}')(
        {'caption': caption}), 4) for k in (1, 10)},
      'bag_of_words': bag_of_words(),
      'largest_category': round(float(np.bincount(label).max() / len(label)), 4),
      'runs': [],
    }  # fmt: skip
    path.write_text(json.dumps(record, indent=1) + '\n')
  for seed in range(given.seeds):
    if seed in [r['seed'] for r in record['runs']]:
      continue
    record['runs'].append(train(seed, given.words))
    names = (*RECALLS, 'zero_shot_accuracy', 'cpu_seconds')
    record['summary'] = {k: spread([r[k] for r in record['runs']]) for k in names}
    record['date'] = datetime.date.today().isoformat()
    record['words'] = given.words
    record['machine'] = f'1 of {os.cpu_count()} {platform.machine()} CPU cores, shared'
    path.write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  main()
