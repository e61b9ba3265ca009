"""Trains gpt_char in six sizes and predicts the largest from the others, by `bmx scale`'s law.

    python experiments/plan/sizes.py DIR [STEPS]

DIR keeps the runs: the same command continues after an interrupt. Each size reads the same tokens
(STEPS steps, by default 1,500), so that runs differ in size alone. sizes.json here says whether the
largest loss lies in the 90 % interval of the prediction. About 15 minutes on two idle CPU cores.
"""

import datetime
import json
import pathlib
import subprocess
import sys

from bmx.plan import powerlaw

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
WIDTHS = {32: 2, 48: 2, 64: 4, 96: 4, 128: 4, 192: 6}  # width -> heads; depth 4


def train(folder: pathlib.Path, width: int, steps: int) -> dict:
  """Trains one size unless it has been; returns its summary."""
  workdir = folder / f'width{width}'
  summary = workdir / 'summary.json'
  if not summary.is_file():
    words = [f'task.model.width={width}', f'task.model.heads={WIDTHS[width]}', f'steps={steps}']
    words += ['every.eval=0', 'every.save=0', f'schedule.warmup={min(100, steps // 10)}']
    command = [sys.executable, '-m', 'bmx.main', '--config=gpt_char', f'--workdir={workdir}']
    subprocess.run([*command, *(f'--config.{w}' for w in words)], cwd=ROOT, check=True)
  return json.loads(summary.read_text())


def main() -> None:
  """Trains all sizes, fits all but the largest, and writes sizes.json."""
  folder, steps = pathlib.Path(sys.argv[1]), int((sys.argv[2:] or ['1500'])[0])
  sizes, losses = [], []
  for width in WIDTHS:
    found = train(folder.absolute(), width, steps)
    sizes.append(float(found['parameters']))
    losses.append(float(found['metrics']['eval/valid/loss']))
  law, (held,) = powerlaw.predict(sizes[:-1], losses[:-1], sizes[-1:])
  record = {
    'date': datetime.date.today().isoformat(),
    'steps': steps,
    'sizes': sizes,
    'losses': losses,
    'law': law._asdict(),
    'held_out': held._asdict() | {'reached': losses[-1]},
    'inside': held.low <= losses[-1] <= held.high,
  }
  (HERE / 'sizes.json').write_text(json.dumps(record, indent=1) + '\n')
  sys.stdout.write(json.dumps(record['held_out']) + f' inside: {record["inside"]}\n')


if __name__ == '__main__':
  main()
