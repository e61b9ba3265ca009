"""A BERT of 11.8 M parameters without foreign weights: pre-trained, then fine-tuned three ways.

    BMX_TEST_DATA=DIR python experiments/bert_finetune/run.py WORK [STAGE ...]

Pre-training reads a million words. Baselines are the same model from scratch and a regression on
bigrams. DIR holds wikitext2/valid.txt, tfds/ (sst2_rebuilt), xquad/xquad.en.json, ner_wnut17/. Runs
are stored in WORK and resumed. Stages: pretrain, sst2, ner, qa, bigrams, adapters (all by default).
`adapters` trains all weights, LoRA and AdaLoRA from the pre-trained run, half an epoch of SST-2
each; the step of its newest checkpoint is recorded, so an interrupted pre-training will do. Writes
results.json beside this file; README.md reads it.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
DATA = os.environ.get('BMX_TEST_DATA', '')

TEXTS = (f'{DATA}/wikitext2/valid.txt', 'tfds:sst2_rebuilt/train', f'{DATA}/xquad/xquad.en.json')
PRETRAIN = [
  f'paths={TEXTS}', 'field=sentence', f'data_dir={DATA}/tfds', 'length=128', 'batch_size=16',
  'steps=4000', 'every.eval=500', 'every.save=500',
]  # fmt: skip
# Half of the phrases of SST-2 have 10 tokens, 5 % more than 32; its sentences up to 58.
SST2 = [
  f'data_dir={DATA}/tfds', 'data.path=tfds:sst2_rebuilt/train',
  'eval.valid.path=tfds:sst2_rebuilt/validation', 'eval.valid.length=64', 'length=32',
  'batch_size=64', 'schedule.peak=3e-4', 'epochs=1.0',
]  # fmt: skip
NER = [
  f'data.path={DATA}/ner_wnut17/wnut17train.conll',
  f'eval.valid.path={DATA}/ner_wnut17/emerging.dev.conll',
  f'eval.test.path={DATA}/ner_wnut17/emerging.test.annotated',
  'epochs=5.0',
]
QA = [f'data.path={DATA}/xquad/xquad.en.json', 'epochs=4.0']
# stage -> (variant, its data, seeds, metrics to report)
TASKS = {
  'sst2': ('', SST2, 3, ('eval/valid/accuracy', 'eval/valid/matthews')),
  'ner': (':ner', NER, 1, ('eval/valid/entity_f1', 'eval/test/entity_f1')),
  'qa': (':qa', QA, 1, ('eval/valid/exact_match', 'eval/valid/answer_f1')),
}
# What differs: a model from scratch has no layers that know more than others.
KINDS = {
  'pretrained': ['init.reinit=head|pooler'],
  'scratch': ['init.reinit=.', 'optimizer.layer_decay=1.0'],
}

ADAPTER_SEEDS = 3
# The pooler is new: adapters move it too, as training it whole would be 2 % of the weights.
LOW_RANK = ['task.targets=attention/|feed_forward/|pooler', 'task.train=head']
# kind -> (variant, what differs)
ADAPTERS = {
  'full': ('', ['schedule.peak=3e-4']),
  'lora': (':lora', ['schedule.peak=2e-3', *LOW_RANK]),
  'adalora': (':adalora', ['schedule.peak=4e-3', *LOW_RANK]),
}


def train(recipe: str, workdir: pathlib.Path, overrides: list[str]) -> dict:
  """Runs or resumes one run -> its summary."""
  command = [sys.executable, '-m', 'bmx.main', f'--config=configs/{recipe}', f'--workdir={workdir}']
  command += [f'--config.{o}' for o in overrides]
  subprocess.run(command, check=True, cwd=ROOT)
  return json.loads((workdir / 'summary.json').read_text())


def finetune(stage: str, work: pathlib.Path) -> dict:
  """Fine-tunes pre-trained and from scratch, with every seed -> metrics of the last step."""
  variant, data, seeds, metrics = TASKS[stage]
  result = {}
  for kind, differs in KINDS.items():
    found = []
    for seed in range(seeds):
      start = [f'init.path={work / "pretrain"}', *differs, f'seed={seed}']
      workdir = work / f'{stage}-{kind}-{seed}'
      found.append(train(f'bert_finetune.py{variant}', workdir, [*data, *start]))
    for metric in metrics:
      values = [s['metrics'][metric] for s in found]
      result[f'{kind} {metric}'] = {
        'mean': round(statistics.mean(values), 4), 'values': [round(v, 4) for v in values]
      }  # fmt: skip
    result[f'{kind} seconds'] = [s['seconds'] for s in found]
  return result


def adapters(work: pathlib.Path) -> dict:
  """Trains all weights, LoRA and AdaLoRA -> accuracy, share of trained parameters, seconds."""
  common = [o for o in SST2 if not o.startswith(('epochs', 'schedule'))]
  common += ['epochs=0.5', f'init.path={work / "pretrain"}', 'init.reinit=head|pooler']
  found: dict[str, list[dict]] = {kind: [] for kind in ADAPTERS}
  for seed in range(ADAPTER_SEEDS):
    for kind, (variant, differs) in ADAPTERS.items():
      workdir = work / f'adapters-{kind}-{seed}'
      recipe = f'bert_finetune.py{variant}'
      found[kind].append(train(recipe, workdir, [*common, *differs, f'seed={seed}']))
  whole = found['full'][0]['parameters']
  steps = [int(p.name) for p in (work / 'pretrain/checkpoints').iterdir() if p.name.isdigit()]
  result: dict = {'pretrain steps': max(steps)}
  for kind, summaries in found.items():
    values = [s['metrics']['eval/valid/accuracy'] for s in summaries]
    trained = summaries[0]['parameters']
    result[kind] = {
      'accuracy': round(statistics.mean(values), 4), 'values': [round(v, 4) for v in values],
      'trained': trained, 'share': round(trained / whole, 4),
      'seconds': [s['seconds'] for s in summaries],
    }  # fmt: skip
  return result


def pretrain(work: pathlib.Path) -> dict:
  """Pre-trains the model -> metrics, parameters, steps, seconds."""
  summary = train('bert_small.py', work / 'pretrain', PRETRAIN)
  metrics = {k: round(v, 4) for k, v in summary['metrics'].items() if k.startswith('eval/')}
  return metrics | {k: summary[k] for k in ('parameters', 'steps', 'seconds')}


def bigrams(_: pathlib.Path) -> dict:
  """Fits a logistic regression on words and pairs of words, on the same texts.

  The best of a dozen settings that were tried (81 to 82.6 %).
  """
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.linear_model import LogisticRegression

  from bmx.data.text.documents import records

  parts = {}
  for split in ('train', 'validation'):
    found = [r for _, r in records(f'tfds:sst2_rebuilt/{split}', f'{DATA}/tfds')]
    parts[split] = [r['sentence'] for r in found], [r['label'] for r in found]
  count = TfidfVectorizer(ngram_range=(1, 2))
  x = count.fit_transform(parts['train'][0])
  model = LogisticRegression(C=10.0, max_iter=500, solver='liblinear').fit(x, parts['train'][1])
  score = model.score(count.transform(parts['validation'][0]), parts['validation'][1])
  return {'accuracy': round(float(score), 4), 'features': x.shape[1]}


def main() -> None:
  """Runs the chosen stages and updates results.json."""
  work, stages = pathlib.Path(sys.argv[1]).absolute(), sys.argv[2:]
  path = HERE / 'results.json'
  results = json.loads(path.read_text()) if path.exists() else {}
  for stage in stages or ('pretrain', 'bigrams', 'adapters', *TASKS):
    run = {'pretrain': pretrain, 'bigrams': bigrams, 'adapters': adapters}.get(stage)
    results[stage] = run(work) if run else finetune(stage, work)
    results[stage]['date'] = datetime.date.today().isoformat()
    results[stage]['machine'] = f'{os.cpu_count()} × {platform.machine()} CPU'
    path.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  main()
