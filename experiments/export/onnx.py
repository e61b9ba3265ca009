"""Exports runs as ONNX, in an environment of its own.

    python experiments/export/onnx.py RUN [--output=DIR] [--export.length=N]    # exports a run
    python experiments/export/onnx.py                                           # writes onnx.json

jax2onnx 0.17.1 asks for other versions than bmx does: this script installs it without its
dependencies, beside those of this environment, in ~/.cache/bmx/onnx (or BMX_ONNX), and calls
`bmx export --format=onnx` there. That compares the model in onnxruntime with the run, to 1e-5 of
the largest output, before its folder appears.

Without a run: trains a perceptron, a CNN with batch norm, a BERT and GPTs for a few steps, exports
each with any length and with a fixed one, and writes the largest errors, or the error messages,
to onnx.json.
"""

import datetime
import json
import os
import pathlib
import platform
import random
import subprocess
import sys
import sysconfig
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PACKAGES = ('jax2onnx==0.17.1', 'onnx', 'onnx-ir', 'onnxruntime')
SMALL = ('--epochs=0', '--steps=4', '--every.eval=0')
TEXT = ('text', '--data.path=films.csv', '--data.text=text', '--data.label=label',
        '--vocab=300', '--length=16', '--batch_size=8', '--task.model.encoder.width=16',
        '--task.model.encoder.heads=2', '--task.model.encoder.depth=1')  # fmt: skip
GPT = ('gpt_char:tiny', '--data.path=films.txt', '--schedule.warmup=1')
# Name -> the words of a short training.
RUNS = {
  'MLP': ('digits_mlp:tiny',),
  'CNN with batch norm': ('mnist_cnn:tiny', '--task.model.norm=batch'),
  'BERT, classes of texts': TEXT,
  'GPT, learned positions': (*GPT, '--task.model.positions=learned'),
  'GPT, rotary positions, grouped heads': (*GPT, '--task.model.positions=rotary',
                                           '--task.model.kv_heads=1'),
}  # fmt: skip
LENGTH = '--export.length=16'


def environment() -> pathlib.Path:
  """Returns the Python of the environment; makes it if it is not there."""
  default = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'bmx/onnx'
  folder = pathlib.Path(os.environ.get('BMX_ONNX', default))
  python = folder / 'bin/python'
  if not (folder / 'ready').is_file():
    venv.create(folder, with_pip=True, clear=True)
    install = [python, '-m', 'pip', 'install', '--quiet', '--no-deps', *PACKAGES]
    subprocess.run(install, check=True)
    (own,) = folder.glob('lib/python*/site-packages')
    paths = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}
    lines = [f'import site; site.addsitedir({path!r})\n' for path in sorted(paths)]
    (own / 'bmx.pth').write_text(''.join(lines))
    (folder / 'ready').touch()
  return python


def bmx(python: pathlib.Path | str, *arguments: str, cwd: str | None = None, capture: bool = False):
  """Runs a command of bmx with a Python."""
  path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH', ''))))
  env = {**os.environ, 'PYTHONPATH': path}
  command = [str(python), '-m', 'bmx', *arguments]
  return subprocess.run(command, cwd=cwd, env=env, capture_output=capture, text=True, check=False)


def outcome(done: subprocess.CompletedProcess) -> float | str:
  """Returns the largest error that an export printed, or its error message."""
  lines = [line.strip() for line in done.stderr.splitlines()]
  for line in lines:
    if 'largest error' in line:
      return float(line.partition('largest error ')[2].split()[0])
  return next((line for line in lines if line.startswith('error: ')), lines[-1])


def measure(python: pathlib.Path) -> dict[str, dict[str, float | str]]:
  """Trains and exports every model of RUNS."""
  results: dict[str, dict[str, float | str]] = {}
  with tempfile.TemporaryDirectory() as folder:
    draw = random.Random(0)
    words = ('the', 'good', 'bad', 'film', 'was', 'nobody', 'saw', 'it', 'again', 'and', 'then')
    texts = [' '.join(draw.choices(words, k=12)) for _ in range(200)]
    rows = [f'{text},{i % 2}' for i, text in enumerate(texts)]
    pathlib.Path(folder, 'films.csv').write_text('\n'.join(['text,label', *rows, '']))
    pathlib.Path(folder, 'films.txt').write_text('\n'.join(texts * 3))
    for number, (name, arguments) in enumerate(RUNS.items()):
      run = f'run{number}'
      made = bmx(sys.executable, 'train', *arguments, *SMALL, f'--workdir={run}', cwd=folder,
                 capture=True)  # fmt: skip
      if made.returncode:
        raise SystemExit(f'{name}: {made.stderr}')
      lengths = {'any length': ()}
      if name.startswith(('BERT', 'GPT')):
        lengths |= {'16 tokens': (LENGTH,)}
      for kind, more in lengths.items():
        done = bmx(python, 'export', run, '--format=onnx', f'--output={run} {kind}', *more,
                   cwd=folder, capture=True)  # fmt: skip
        results.setdefault(name, {})[kind] = outcome(done)
        print(name, kind, results[name][kind], flush=True)
  return results


def main() -> int:
  """Exports a run, or writes onnx.json."""
  python = environment()
  if len(sys.argv) > 1:
    return bmx(python, 'export', *sys.argv[1:], '--format=onnx').returncode
  results = measure(python)
  listed = subprocess.run([python, '-m', 'pip', 'list', '--format=json'], capture_output=True,
                          text=True, check=True)  # fmt: skip
  wanted = ('jax', 'jax2onnx', 'onnx', 'onnx-ir', 'onnxruntime')
  versions = {x['name']: x['version'] for x in json.loads(listed.stdout) if x['name'] in wanted}
  facts = {'date': datetime.date.today().isoformat(), 'machine': platform.machine(),
           'versions': versions, 'largest_error': results}  # fmt: skip
  pathlib.Path(__file__).with_suffix('.json').write_text(json.dumps(facts, indent=1) + '\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
