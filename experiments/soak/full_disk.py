"""Full disks: fails every write of a run in turn, and fills small disks; writes full_disk.json.

    python experiments/soak/full_disk.py [EVERY]

Part 1 counts the writes that Python makes in a run directory (files opened for writing, renamed,
written, synchronized, folders made) and repeats the run once for every EVERY-th of them: it fails
with ENOSPC, alone, or with all that follow. Part 2 trains on a tmpfs of so many KiB, which also
fails the writes of Orbax's C++. Then the disk has space and the same command runs again.

A run hangs if it takes more than `PATIENCE` seconds. A checkpoint is lost if a step that was
complete is not valid afterwards, though no newer one displaced it.
"""

import datetime
import errno
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import jax

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import Stop
from bmx.train import checkpoint, hooks, loop, manifest

HERE = pathlib.Path(__file__).parent
RECIPE = str(HERE.parent.parent / 'configs/digits_mlp.py')
PATIENCE = 120.0
SIZES = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)  # KiB of a tmpfs


class Disk:
  """Counts the writes below a folder, and fails some of them."""

  def __init__(self) -> None:
    self.folder, self.count, self.first, self.last = '', 0, 0, 0
    self.failed: list[str] = []
    sys.addaudithook(self.audit)
    self.write, self.fsync = os.write, os.fsync
    os.write = lambda file, data: self.call('write', file) or self.write(file, data)
    os.fsync = lambda file: self.call('fsync', file) or self.fsync(file)

  def begin(self, folder: pathlib.Path, first: int = 0, last: int = 0) -> None:
    """Fails the writes from number `first` to number `last`, counted from 1."""
    self.count, self.first, self.last, self.failed = 0, first, last, []
    self.folder = str(folder)

  def audit(self, event: str, arguments: tuple) -> None:
    if not self.folder or event not in ('open', 'os.rename', 'os.mkdir'):
      return
    if event == 'open' and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
      return
    self.check(event, str(arguments[0]))

  def call(self, name: str, file: int) -> None:
    if self.folder:
      self.check(name, os.readlink(f'/proc/self/fd/{file}'))

  def check(self, name: str, path: str) -> None:
    if not path.startswith(self.folder):
      return
    self.count += 1
    if self.first <= self.count <= self.last:
      self.failed.append(f'{name} {path.removeprefix(self.folder)}')
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


class Complete:
  """The newest step whose manifest was written."""

  def __init__(self) -> None:
    self.step, self.join = 0, manifest.join
    manifest.join = self.joined

  def joined(self, path: pathlib.Path, *arguments, **facts) -> None:
    self.join(path, *arguments, **facts)
    self.step = max(self.step, int(path.name))


def build():
  """Builds the run on one device."""
  words = ['mesh.data=1', 'steps=40', 'every.save=10', 'every.eval=10', 'every.log=10']
  config, name = recipes.load(f'{RECIPE}:tiny', words)
  config.eval.held = {'split': 'test'}
  config.keep.metric = 'eval/held/loss'
  return experiment.build(config, name, jax.devices()[:1])


def attempt(x, workdir: pathlib.Path) -> str:
  """Trains in a thread -> 'done', the kind of the error, or 'hang'."""
  result = ['hang']

  def train() -> None:
    try:
      loop.run(x, workdir)
      result[0] = 'done'
    except (Stop, OSError) as error:
      result[0] = type(error).__name__
    except Exception as error:
      result[0] = f'TRACEBACK {type(error).__name__}: {error}'

  thread = threading.Thread(target=train, daemon=True)
  thread.start()
  thread.join(PATIENCE)
  return result[0]


def judge(x, workdir: pathlib.Path, expected: str, complete: int) -> dict[str, bool]:
  """Runs again with space -> whether a checkpoint was lost, and whether the end is the same."""
  folder = workdir / 'checkpoints'
  newest = (checkpoint.Checkpoints(folder).newest_valid() or 0) if folder.is_dir() else 0
  again = loop.run(x, workdir)
  report = (workdir / 'report.html').is_file()
  return {'lost': newest < complete, 'same': again['state_digest'] == expected and report}


def hooked(disk: Disk, complete: Complete, every: int, folder: pathlib.Path) -> dict:
  """Fails every `every`-th write in turn -> counts of ends, lost checkpoints and differences."""
  x = build()
  disk.begin(folder / 'straight')
  expected, writes = loop.run(x, folder / 'straight')['state_digest'], disk.count
  record: dict = {'writes': writes}
  for kind, length in (('one fails', 1), ('all that follow fail', 10**9)):
    ends: dict[str, int] = {}
    tried = lost = different = 0
    for number in range(1, writes + 1, every):
      workdir, complete.step = folder / f'{length}-{number}', 0
      disk.begin(workdir, number, number + length - 1)
      end = attempt(x, workdir)
      failed, disk.folder = disk.failed[:1], ''
      # A run that hangs still holds its folder: it is not started again.
      there = end != 'hang'
      found = judge(x, workdir, expected, complete.step) if there else {'lost': 0, 'same': False}
      if found['lost'] or not found['same'] or end.startswith(('hang', 'TRACEBACK')):
        sys.stdout.write(f'{kind} {number} {failed}: {end} {found}\n')
      tried, ends[end] = tried + 1, ends.get(end, 0) + 1
      lost, different = lost + found['lost'], different + (not found['same'])
      shutil.rmtree(workdir, ignore_errors=end == 'hang')
    record[kind] = {'tried': tried, 'ends': ends, 'lost': lost, 'different': different}
  return record


def small(complete: Complete, folder: pathlib.Path) -> dict:
  """Trains on small disks -> ends, lost checkpoints and differences."""
  x, ends, lost, different = build(), {}, 0, 0
  expected = loop.run(x, folder / 'straight2')['state_digest']
  for size in SIZES:
    workdir = folder / f'disk-{size}'
    workdir.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}k', 'tmpfs', str(workdir)]
    subprocess.run(mount, check=True)
    complete.step = 0
    end = attempt(x, workdir / 'run')
    subprocess.run(['mount', '-o', 'remount,size=64m', str(workdir)], check=True)
    found = judge(x, workdir / 'run', expected, complete.step)
    if found['lost'] or not found['same'] or end.startswith(('hang', 'TRACEBACK')):
      sys.stdout.write(f'tmpfs {size}: {end} {found}\n')
    ends[end] = ends.get(end, 0) + 1
    lost, different = lost + found['lost'], different + (not found['same'])
    subprocess.run(['umount', '--lazy', str(workdir)], check=True)
  return {'tried': len(SIZES), 'ends': ends, 'lost': lost, 'different': different}


def main() -> None:
  """Runs both parts and writes full_disk.json."""
  every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
  logging.getLogger('bmx').setLevel(logging.CRITICAL)
  hooks.RETRY_SECONDS = checkpoint.RETRY_SECONDS = 0.01
  disk, complete = Disk(), Complete()
  with tempfile.TemporaryDirectory() as place:
    folder, began = pathlib.Path(place), time.monotonic()
    record: dict = {'date': datetime.date.today().isoformat(), 'every': every}
    record['hook'] = hooked(disk, complete, every, folder)
    record['tmpfs'] = small(complete, folder)
    record['seconds'] = round(time.monotonic() - began)
  (HERE / 'full_disk.json').write_text(json.dumps(record, indent=1) + '\n')
  sys.stdout.write(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  main()
