"""What to measure when a GPU is at hand, most useful first; every trial ends within its limit.

    python experiments/bench/gpu.py --list              # the order, with limits in seconds
    python experiments/bench/gpu_trials.py [NUMBER ...] [--small]

Runs the trials of those numbers, or all, and adds each to gpu_trials.json as it ends: also one that
failed or ran out of time. A trial that is there is not run again. `--small` tries the first ones on
any CPU, in a few steps, and writes nothing.
"""

import datetime
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).parent
GPT2, LLAMA, LLAMA_2K = 'GPT-2 124M, T 1024', 'Llama 1B shape, T 4096', 'Llama 1B shape, T 2048'
CURVE = ('steps=200', 'every.log=10')  # a flag enters a preset only with a curve beside
# Each is tried alone; those that jaxlib does not know end their trial with its message.
FLAGS = (
  '--xla_gpu_enable_dynamic_slice_fusion=true',
  '--xla_gpu_enable_latency_hiding_scheduler=true',
  '--xla_gpu_enable_triton_gemm=false',
  '--xla_gpu_exhaustive_tiling_search=true',
  '--xla_gpu_enable_command_buffer=',
)


class Trial(NamedTuple):
  """One measurement.

  Attributes:
    name: what it shows.
    seconds: its limit.
    words: of gpu.py, or a script of this folder and its words.
    flags: added to XLA_FLAGS.
  """

  name: str
  seconds: int
  words: tuple[str, ...]
  flags: str = ''


TRIALS = (
  Trial('GPT-2: bmx', 120, ('--part=ours', GPT2)),
  Trial('GPT-2: PyTorch, compiled', 180, ('--part=theirs', GPT2)),
  Trial('GPT-2: 200 steps, the curve beside which flags stand', 150, ('--part=ours', GPT2, *CURVE)),
  *(Trial(f'GPT-2: 200 steps, {flag}', 150, ('--part=ours', GPT2, *CURVE), flag) for flag in FLAGS),
  Trial('GPT-2: remat=full', 120, ('--part=ours', GPT2, 'task.model.remat=full')),
  Trial('GPT-2: chunks=4', 120, ('--part=ours', GPT2, 'task.chunks=4')),
  Trial('GPT-2: layers one by one', 240, ('--part=ours', GPT2, 'task.model.scan=False')),
  Trial('GPT-2: profile', 150, ('--part=profile', GPT2)),
  Trial('matrix products and attention', 180, ('--part=rates',)),
  Trial('Llama, T 4096: bmx', 150, ('--part=ours', LLAMA)),
  Trial('Llama, T 4096: PyTorch, compiled', 200, ('--part=theirs', LLAMA)),
  Trial('Llama, T 2048: bmx', 150, ('--part=ours', LLAMA_2K)),
  Trial('Llama, T 2048: PyTorch, compiled', 200, ('--part=theirs', LLAMA_2K)),
  Trial('compilation cold and cached, and both beside PyTorch', 400, (GPT2,)),
  Trial('generation beside transformers', 300, ('generate.py',)),
  Trial('the engine beside batches and transformers', 400, ('engine.py',)),
)


def lines() -> Iterator[str]:
  """Yields a line for each trial."""
  for number, trial in enumerate(TRIALS, 1):
    shown = ' '.join(repr(w) if ' ' in w else w for w in trial.words)
    yield f'{number:3} {trial.seconds:4} s  {trial.name}: {trial.flags and "XLA_FLAGS, "}{shown}'


def run(trial: Trial, small: bool = False) -> dict[str, Any]:
  """Runs a trial in its own process -> what it printed as JSON, or how it failed."""
  words = list(trial.words)
  if small:
    words = ['small GPT-2' if w == GPT2 else w for w in words if w not in CURVE]
    words += ['steps=20'] * (words[0] == '--part=ours')
  script = words.pop(0) if words[0].endswith('.py') else 'gpu.py'
  flags = f'{os.environ.get("XLA_FLAGS", "")} {trial.flags}'.strip()
  try:
    ended = subprocess.run(
      [sys.executable, str(HERE / script), *words], capture_output=True, text=True, check=False,
      timeout=trial.seconds, env=os.environ | {'XLA_FLAGS': flags},
    )  # fmt: skip
  except subprocess.TimeoutExpired:
    return {'failed': f'no result after {trial.seconds} s'}
  if ended.returncode:
    return {'failed': ended.stderr.strip().splitlines()[-1:] or f'exit code {ended.returncode}'}
  text = ended.stdout.strip()
  return json.loads(text if text.startswith('{\n') else text.splitlines()[-1])


def main() -> None:
  """Runs the chosen trials."""
  small = '--small' in sys.argv
  chosen = [int(word) for word in sys.argv[1:] if word != '--small'] or range(1, len(TRIALS) + 1)
  path = HERE / 'gpu_trials.json'
  record = json.loads(path.read_text()) if path.exists() and not small else {}
  for trial in (TRIALS[number - 1] for number in chosen):
    if trial.name in record:
      continue
    record[trial.name] = {'date': datetime.date.today().isoformat()} | run(trial, small)
    sys.stdout.write(f'{trial.name}: {record[trial.name]}\n')
    sys.stdout.flush()
    if not small:
      path.write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  main()
