"""Measures the recipes of images: each stage writes its part of results.json as it goes.

    BMX_TEST_DATA=DIR python experiments/vision/run.py STAGE [WORKDIR] [--small] [--seeds=N]

DIR holds tfds/ (a TFDS data directory with cifar10_jpeg and mnist) and emojitwo/images_32.npz. Runs
are in WORKDIR (/tmp/bmx-vision), and continue there if the script is started again. --small tries a
stage in a few steps, and writes to WORKDIR/results.json only. Three seeds, unless --seeds says so;
seeds that results.json has are not trained anew.

- cifar10_resnet: accuracy of the recipe on the test images.
- cifar10_vit: the same of the transformer.
- mnist_detect: average precision at an overlap of 0.5 of digits and drawings in scenes.
- mnist_segment: mean intersection over union of the same.
- transfer: pre-training on five classes, fine-tuning on 50 images of each of the other five, beside
  the same network from scratch; transfer.svg.
- loader: images/s of the folder reader beside PyTorch's DataLoader, with the same decoding and
  crops.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
DATA = os.environ.get('BMX_TEST_DATA', '')
TFDS = f'--config.data.data_dir={DATA}/tfds'
SPRITES = f'--config.data.sprites={DATA}/emojitwo/images_32.npz'
FEW = ['--config.epochs=0', '--config.steps=4', '--config.schedule.warmup=1',
       '--config.every.save=0', '--config.every.eval=0']  # fmt: skip
VALID = 'eval/valid/accuracy'
SHOTS = 50  # images of each class that fine-tuning reads


class Results:
  """results.json: stage -> name -> what was measured."""

  def __init__(self, path: pathlib.Path, stage: str):
    self.path, self.stage = path, stage

  def read(self) -> dict[str, Any]:
    """Returns what the stage has measured so far."""
    return self._all().get(self.stage, {})

  def add(self, values: Mapping[str, Any]) -> None:
    """Adds values to the stage."""
    every = self._all()
    about = {'date': datetime.date.today().isoformat(),
             'machine': f'{os.cpu_count()} × {platform.machine()} CPU'}  # fmt: skip
    every[self.stage] = about | every.get(self.stage, {}) | dict(values)
    self.path.write_text(json.dumps(every, indent=1) + '\n')

  def _all(self) -> dict[str, Any]:
    return json.loads(self.path.read_text()) if self.path.exists() else {}


def train(
  recipe: str, arguments: list[str], workdir: pathlib.Path, metric: str = 'accuracy'
) -> dict[str, Any]:
  """Trains, or continues -> metric, steps, and CPU seconds of the process and its children."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  began = time.perf_counter()
  subprocess.run(
    [sys.executable, '-m', 'bmx.main', f'--config=configs/{recipe}.py', *arguments,
     f'--workdir={workdir}'],
    check=True, cwd=ROOT,
  )  # fmt: skip
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  summary = json.loads((workdir / 'summary.json').read_text())
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return {
    metric: round(result(summary['metrics'], metric), 4),
    'steps': summary['steps'],
    'parameters': summary['parameters'],
    'cpu_seconds': round(cpu),
    'seconds': round(time.perf_counter() - began),
  }


def result(values: Mapping[str, float], metric: str) -> float:
  """Returns a metric of the only entry of `eval`, or of its entry `test`."""
  found = {k: v for k, v in values.items() if k.startswith('eval/') and k.endswith(f'/{metric}')}
  return found.get(f'eval/test/{metric}', next(iter(found.values())))


def seeds(
  results: Results, workdir: pathlib.Path, names: Mapping[str, Callable[[int, pathlib.Path], Any]],
  count: int, metric: str = 'accuracy',
) -> None:  # fmt: skip
  """Measures every name for every seed that results.json lacks, and their means."""
  for seed in range(count):
    for name, measure in names.items():
      found = results.read().get(name, {'runs': {}})
      if str(seed) in found['runs']:
        continue
      found['runs'][str(seed)] = measure(seed, workdir / f'{name}_{seed}')
      values = [run[metric] for run in found['runs'].values()]
      found['mean'] = round(statistics.mean(values), 4)
      found['spread'] = round(max(values) - min(values), 4)
      results.add({name: found})


def recipe_stage(
  recipe: str, metric: str = 'accuracy', words: tuple[str, ...] = ()
) -> Callable[..., None]:
  """Returns the stage that trains a recipe with `count` seeds."""

  def stage(results: Results, workdir: pathlib.Path, small: bool, count: int) -> None:
    arguments = [TFDS, *words, *(FEW if small else [])]
    measure = lambda seed, folder: train(
      recipe, [*arguments, f'--config.seed={seed}'], folder, metric
    )
    seeds(results, workdir, {recipe: measure}, count, metric)

  return stage


def pictures(workdir: pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes images of cifar10_jpeg as folders: `first` five classes, and a `few` of the others."""
  from PIL import Image

  from bmx.data.tfds import tfds

  folders = {name: workdir / 'images' / name for name in ('first', 'few')}
  if (workdir / 'images/done').exists():
    return folders
  for split, part in (('train', 'train'), ('test', 'valid')):
    data = tfds('cifar10_jpeg', split, f'{DATA}/tfds').arrays
    written: dict[int, int] = {}
    for image, label in zip(data['image'], data['label'].tolist(), strict=True):
      written[label] = written.get(label, 0) + 1
      if label >= 5 and part == 'train' and written[label] > SHOTS:
        continue
      folder = folders['first' if label < 5 else 'few'] / part / str(label)
      folder.mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(folder / f'{written[label]:05}.png')
  (workdir / 'images/done').touch()
  return folders


def transfer(results: Results, workdir: pathlib.Path, small: bool, count: int) -> None:
  """Fine-tuning after pre-training on other classes, beside training from scratch."""
  folders = pictures(workdir)
  common = ['--config.data.size=32', '--config.data.crop=4', '--config.task.model.stem=small',
            '--config.keep.metric=']  # fmt: skip

  def words(name: str, seed: int) -> list[str]:
    return [*common, f'--config.data.path={folders[name]}', f'--config.seed={seed}']

  def pretrain(seed: int, folder: pathlib.Path) -> dict[str, Any]:
    length = FEW if small else ['--config.epochs=10', '--config.schedule.warmup=50']
    return train('images', [*words('first', seed), *length], folder)

  def of_few(seed: int, folder: pathlib.Path, more: list[str]) -> dict[str, Any]:
    length = FEW if small else ['--config.epochs=40', '--config.schedule.warmup=20']
    return train('images', [*words('few', seed), '--config.batch_size=50', *length, *more], folder)

  def tuned(seed: int, folder: pathlib.Path) -> dict[str, Any]:
    start = [f'--config.init.path={workdir / f"pretrained_{seed}"}', '--config.init.reinit=^head/']
    return of_few(seed, folder, start)

  names = {'pretrained': pretrain, 'tuned': tuned, 'scratch': lambda s, f: of_few(s, f, [])}
  seeds(results, workdir, names, count)
  found = results.read()
  results.add({'points': round(100 * (found['tuned']['mean'] - found['scratch']['mean']), 1)})
  plot(workdir, results.path.parent / 'transfer.svg', count)


def plot(workdir: pathlib.Path, path: pathlib.Path, count: int) -> None:
  """Draws accuracy against the step, of every seed with and without pre-training."""
  import matplotlib.pyplot as plt

  from bmx.runtime.writer import read_metrics

  figure, axes = plt.subplots(figsize=(6, 4))
  for name, color in (('tuned', '#2563eb'), ('scratch', '#ea580c')):
    for seed in range(count):
      lines = read_metrics(workdir / f'{name}_{seed}' / 'metrics.jsonl')
      points = [(x['step'], 100 * x[VALID]) for x in lines if VALID in x]
      axes.plot(*zip(*points, strict=True), color=color, label='' if seed else name)
  axes.set(xlabel='step', ylabel='accuracy on test images, %', title=f'{SHOTS} images a class')
  axes.legend()
  figure.savefig(path, bbox_inches='tight')


SIDE, SIZE, BATCH = 256, 224, 32  # pixels of the files, of the crops; images of a batch


def photos(folder: pathlib.Path, count: int) -> pathlib.Path:
  """Writes images of cifar10_jpeg, enlarged, as JPEG files in a folder for each class."""
  from PIL import Image

  from bmx.data.tfds import tfds

  if (folder / 'done').exists():
    return folder
  data = tfds('cifar10_jpeg', f'train[:{count}]', f'{DATA}/tfds').arrays
  for i, (image, label) in enumerate(zip(data['image'], data['label'].tolist(), strict=True)):
    (folder / str(label)).mkdir(parents=True, exist_ok=True)
    large = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    large.save(folder / str(label) / f'{i:05}.jpg', quality=90)
  (folder / 'done').touch()
  return folder


def of_bmx(folder: pathlib.Path, steps: int) -> int:
  """Reads batches as a training does, onto the device -> number of images."""
  import jax

  from bmx.data.batches import Batches
  from bmx.data.images.augment import augment
  from bmx.data.images.folder import images
  from bmx.parallel import Layout, make_mesh
  from bmx.train.feed import Feed

  more = augment(scale=(0.08, 1.0), flip=True)
  data = Batches(images(str(folder), SIZE, augment=more), BATCH)
  layout = Layout(make_mesh({}, jax.devices()[:1]))
  for group, _ in Feed(data, layout, 1).groups([(step, 1) for step in range(steps)]):
    jax.block_until_ready(group)
  return steps * BATCH


def of_torch(folder: pathlib.Path, steps: int) -> int:
  """The same by PyTorch: two worker processes, Pillow, the same distribution of crops."""
  import torch
  from PIL import Image

  files = sorted(folder.glob('*/*.jpg'))
  mean, std = (np.array(v, np.float32).reshape(3, 1, 1)
               for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip

  class Files(torch.utils.data.Dataset):
    def __len__(self) -> int:
      return len(files)

    def __getitem__(self, i: int) -> tuple[Any, int]:
      from bmx.core.streams import Draws
      from bmx.data.images.parts import RandomResizedCrop

      draws = Draws(int(torch.randint(1 << 30, ())), np.zeros(1, np.int64))
      with Image.open(files[i]) as picture:
        picture = picture.convert('RGB')
      sides = np.array([picture.height]), np.array([picture.width])
      top, left, bottom, right = RandomResizedCrop().parts(*sides, draws)[0].tolist()
      picture = picture.crop((left, top, right, bottom)).resize((SIZE, SIZE), Image.BILINEAR)
      if draws(0)[0, 2] < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
      pixels = np.asarray(picture).transpose(2, 0, 1).astype(np.float32) / 255
      return torch.from_numpy((pixels - mean) / std), int(files[i].parent.name)

  loader = torch.utils.data.DataLoader(Files(), BATCH, shuffle=True, num_workers=2, drop_last=True)
  done = 0
  while done < steps:
    for _ in loader:
      done += 1
      if done == steps:
        break
  return steps * BATCH


def loader(results: Results, workdir: pathlib.Path, small: bool, count: int) -> None:
  """Images/s of both, in turns; also for each CPU second, as other work may share the machine."""
  del count
  folder = photos(workdir / 'photos', 64 if small else 2000)
  found: dict[str, list[list[float]]] = {'bmx': [], 'torch': []}
  for _ in range(1 if small else 5):
    for name, read in (('bmx', of_bmx), ('torch', of_torch)):
      began, before = time.perf_counter(), cpu_seconds()
      count = read(folder, 2 if small else 40)
      wall, cpu = time.perf_counter() - began, cpu_seconds() - before
      found[name].append([round(count / wall, 1), round(count / cpu, 1)])
      results.add({'columns': ['images/s', 'images per CPU second'], **found})
  medians = {k: [statistics.median(c) for c in zip(*v, strict=True)] for k, v in found.items()}
  results.add({'medians': medians})


def cpu_seconds() -> float:
  """CPU seconds of this process and of its children that have ended."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(u.ru_utime + u.ru_stime for u in used)


STAGES: dict[str, Callable[[Results, pathlib.Path, bool, int], None]] = {
  'cifar10_resnet': recipe_stage('cifar10_resnet'),
  'cifar10_vit': recipe_stage('cifar10_vit'),
  'mnist_detect': recipe_stage('mnist_detect', 'ap50', (SPRITES,)),
  'mnist_segment': recipe_stage('mnist_segment', 'mean_iou', (SPRITES,)),
  'transfer': transfer,
  'loader': loader,
}


def main() -> None:
  """Runs a stage."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('stage', choices=list(STAGES))
  parser.add_argument('workdir', nargs='?', default='/tmp/bmx-vision')
  parser.add_argument('--small', action='store_true', help='a few steps')
  parser.add_argument('--seeds', type=int, default=3)
  given = parser.parse_args()
  workdir = pathlib.Path(given.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  path = (workdir if given.small else HERE) / 'results.json'
  folder = workdir / given.stage
  folder.mkdir(parents=True, exist_ok=True)
  count = 1 if given.small else given.seeds
  STAGES[given.stage](Results(path, given.stage), folder, given.small, count)


if __name__ == '__main__':
  main()
