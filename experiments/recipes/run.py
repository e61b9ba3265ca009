"""Results of the recipes: runs each one whole and writes results.json beside this file.

    BMX_TEST_DATA=DIR python experiments/recipes/run.py [NAME ...]

DIR holds tfds/ (a TFDS data directory with MNIST and SST-2), tabular_uci/ (UCI Adult) and
tinyshakespeare/.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
DATA = os.environ.get('BMX_TEST_DATA', '')
TFDS = [f'--config.data.data_dir={DATA}/tfds']
# adult.data has no header.
ADULT_COLUMNS = (
  'age', 'workclass', 'fnlwgt', 'education', 'education_num', 'marital_status', 'occupation',
  'relationship', 'race', 'sex', 'capital_gain', 'capital_loss', 'hours_per_week', 'native_country',
  'income',
)  # fmt: skip
ADULT = [
  f'--config.data.path={DATA}/tabular_uci/adult.data',
  '--config.data.target=income',
  f'--config.data.columns={ADULT_COLUMNS}',
]
PHRASES = [  # 1,000 steps of 32, less than one pass over the phrases
  *TFDS,
  f'--config.data.tokenizer.data_dir={DATA}/tfds',
  '--config.data.path=tfds:sst2_rebuilt/train',
  '--config.data.text=sentence',
  '--config.epochs=0',
  '--config.steps=1000',
]

# name -> (recipe, arguments, seeds, the metric to report)
RUNS = {
  'digits_mlp': ('digits_mlp', [], 3, 'eval/test/accuracy'),
  'adult_mlp': ('adult_mlp', [f'--config.folder={DATA}/tabular_uci'], 3, 'eval/test/accuracy'),
  'table': ('table', ADULT, 3, 'eval/valid/accuracy'),
  'text': ('text', PHRASES, 1, 'eval/valid/accuracy'),
  'gpt_char': (
    'gpt_char',
    [f'--config.data.path={DATA}/tinyshakespeare/input.txt'],
    3,
    'eval/valid/loss',
  ),
  'mnist_mlp': ('mnist_mlp', TFDS, 3, 'eval/test/accuracy'),
  'mnist_mlp:published': ('mnist_mlp:published', TFDS, 3, 'eval/test/accuracy'),
  'mnist_cnn': ('mnist_cnn', TFDS, 1, 'eval/test/accuracy'),
}


def train(recipe: str, arguments: list[str], seed: int) -> dict:
  """Runs a recipe in its own folder -> its summary, with the seconds of the whole process."""
  file, _, variant = recipe.partition(':')
  config = f'configs/{file}.py' + (f':{variant}' if variant else '')
  with tempfile.TemporaryDirectory() as workdir:
    command = [sys.executable, '-m', 'bmx.main', f'--config={config}', f'--config.seed={seed}']
    began = time.perf_counter()
    subprocess.run(
      [*command, *arguments, f'--workdir={workdir}/run'], check=True, cwd=HERE.parent.parent
    )
    seconds = time.perf_counter() - began
    summary = json.loads(pathlib.Path(workdir, 'run', 'summary.json').read_text())
  return summary | {'process_seconds': round(seconds, 1)}


def main() -> None:
  """Runs the chosen recipes and updates results.json."""
  path = HERE / 'results.json'
  results = json.loads(path.read_text()) if path.exists() else {}
  for name in sys.argv[1:] or RUNS:
    recipe, arguments, seeds, metric = RUNS[name]
    summaries = [train(recipe, arguments, seed) for seed in range(seeds)]
    values = [s['metrics'][metric] for s in summaries]
    others = {k: v for k, v in summaries[0]['metrics'].items() if k.startswith('eval/')}
    results[name] = {
      'date': datetime.date.today().isoformat(),
      'machine': f'{os.cpu_count()} × {platform.machine()} CPU, {summaries[0]["device"]}',
      'metric': metric,
      'mean': round(statistics.mean(values), 5),
      'spread': round(max(values) - min(values), 5),
      'values': [round(v, 5) for v in values],
      'first_seed': {k: round(v, 5) for k, v in others.items()},
      'steps': summaries[0]['steps'],
      'process_seconds': [s['process_seconds'] for s in summaries],
    }
    path.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  main()
