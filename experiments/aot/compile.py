"""Compiles recipes with the real TPU and GPU compilers, on a machine that has neither.

    python experiments/aot/compile.py [WORD ...]      # cases whose name has one of the words

Each case is one process with one line of the table; results.json here holds them all. A case whose
recipe and words are those of its line is not compiled again; the others are, so the same command
continues after an interrupt. `hand_gib` is the memory that `plan.memory` counts. A case must
compile, fit its device, contain the kernels where splash or cuDNN is chosen, send no whole
parameter in an all-reduce (but where one axis spans a whole slice: libtpu writes reduce-scatters
so), and receive at most 1.5 times what `plan.communication` counts. cuDNN needs its wheels.
"""

import datetime
import hashlib
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent

# A transformer of the size of Vaswani et al. 2017 (base), with rows that splash attention computes.
TRANSLATION = [
  'dtype=bfloat16', 'vocab=32768', 'length=512', 'batch_size=64', 'task.model.width=512',
  'task.model.heads=8', 'task.model.depth=6', 'task.model.mlp_dim=2048', 'task.model.scan=True',
]  # fmt: skip
# CLIP B/32 of Radford et al. 2021.
CLIP_B = [
  'epochs=0.0', 'steps=1000', 'dtype=bfloat16', 'length=77', 'task.model.image.image_size=224',
  'task.model.image.patch_size=32', 'task.model.image.num_outputs=512',
  'task.model.image.width=768', 'task.model.image.depth=12', 'task.model.image.heads=12',
  'task.model.image.dropout=0.0', 'task.model.image.attention=xla', 'task.model.image.scan=True',
  'task.model.image.remat=full', 'task.model.text.vocab_size=49408',
  'task.model.text.end_token=49407', 'task.model.text.width=512', 'task.model.text.depth=12',
  'task.model.text.heads=8', 'task.model.text.dropout=0.0', 'task.model.text.attention=xla',
  'task.model.text.scan=True', 'task.model.text.remat=full',
]  # fmt: skip

# name -> (recipe or its variant, topology, overrides); or (model of images.py, topology, its sizes)
CASES = {
  'gpt2_124m v5e:2x2': ('gpt2_124m', 'v5e:2x2', ['mesh.data=4']),
  'llama_1b v5e:4x4 fsdp': ('llama_1b', 'v5e:4x4', ['mesh.data=2', 'mesh.fsdp=8']),
  'llama_8b v5p:4x4x4 fsdp-model': ('llama_8b', 'v5p:4x4x4', ['mesh.fsdp=16', 'mesh.model=4']),
  'llama_8b v6e:8x8 fsdp-model': (
    'llama_8b', 'v6e:8x8', ['mesh.fsdp=16', 'mesh.model=4', 'grad.steps=4']),
  'llama_70b v5p:8x8x16 fsdp-model': (
    'llama_70b', 'v5p:8x8x16', ['mesh.fsdp=128', 'mesh.model=8']),
  'llama_70b v6e:16x16 fsdp-model': (
    'llama_70b', 'v6e:16x16', ['mesh.fsdp=32', 'mesh.model=8', 'batch_size=64']),
  'moe v5p:4x4x4 expert-fsdp': ('moe', 'v5p:4x4x4', ['mesh.expert=8', 'mesh.fsdp=8']),
  'llama_8b v5p:4x4x4 ring 131,072': (
    'llama_8b', 'v5p:4x4x4', ['length=131072', 'batch_size=8', 'mesh.fsdp=8', 'mesh.seq=8']),
  'llama_8b v5p:4x4x4 two slices': (
    'llama_8b', 'v5p:4x4x4@2', ['mesh.data=2', 'mesh.fsdp=16', 'mesh.model=4']),
  'llama_8b v4:4x4x4 fsdp-model': (
    'llama_8b', 'v4:4x4x4', ['mesh.fsdp=16', 'mesh.model=4', 'batch_size=128']),
  'llama_8b tpu7x:4x4x4 fsdp-model': (
    'llama_8b', 'tpu7x:4x4x4', ['mesh.fsdp=32', 'mesh.model=4']),
  'gpt2_124m h200:1': ('gpt2_124m', 'h200:1', ['task.model.attention=xla']),
  'llama_1b h200:1': ('llama_1b', 'h200:1', ['task.model.attention=xla', 'batch_size=64']),
  'llama_8b h200:8 fsdp': (
    'llama_8b', 'h200:8', ['task.model.attention=xla', 'batch_size=64', 'mesh.fsdp=8']),
  'gpt2_124m h200:1 cuDNN': ('gpt2_124m', 'h200:1', ['task.model.attention=cudnn']),
  'llama_1b h200:1 cuDNN': ('llama_1b', 'h200:1', ['task.model.attention=cudnn', 'batch_size=64']),
  'llama_8b h200:8 fsdp cuDNN': (
    'llama_8b', 'h200:8', ['task.model.attention=cudnn', 'batch_size=64', 'mesh.fsdp=8']),
  'resnet50 v5e:2x2': ('resnet50', 'v5e:2x2', {'batch_size': 1024, 'data': 4}),
  'resnet50 h200:1': ('resnet50', 'h200:1', {'batch_size': 512}),
  'cifar10_resnet v5e:2x2': ('cifar10_resnet', 'v5e:2x2', {'batch_size': 1024, 'data': 4}),
  'cifar10_resnet h200:1': ('cifar10_resnet', 'h200:1', {'batch_size': 1024}),
  'vit_b v5e:2x2 fsdp-model': ('vit_b', 'v5e:2x2', {'batch_size': 512, 'fsdp': 2, 'model': 2}),
  'vit_b h200:1': ('vit_b', 'h200:1', {'batch_size': 512}),
  'llama_8b h200:32x8 fsdp-data': (
    'llama_8b', 'h200:32x8', ['task.model.attention=xla', 'mesh.fsdp=8', 'mesh.data=32']),
  'llama_8b v5p:4x4x4 fsdp, dots, two micro-batches': (
    'llama_8b', 'v5p:4x4x4', ['mesh.fsdp=64', 'grad.steps=2', 'task.model.remat=dots']),
  'llama_8b v5p:4x4x4 fsdp-model, none': (
    'llama_8b', 'v5p:4x4x4',
    ['mesh.fsdp=16', 'mesh.model=4', 'grad.steps=8', 'task.model.remat=none']),
  'llama_1b v5e:4x4 fsdp, full': (
    'llama_1b', 'v5e:4x4', ['mesh.data=2', 'mesh.fsdp=8', 'task.model.remat=full']),
  'llama_1b v6e:2x4 fsdp, none': (
    'llama_1b', 'v6e:2x4', ['mesh.fsdp=8', 'grad.steps=16', 'task.model.remat=none']),
  'gpt2_124m v6e:2x4, full': ('gpt2_124m', 'v6e:2x4', ['mesh.data=8', 'task.model.remat=full']),
  'gpt2_124m v5e:2x2, none': ('gpt2_124m', 'v5e:2x2', ['mesh.data=4', 'task.model.remat=none']),
  'llama_1b h100:8 fsdp': (
    'llama_1b', 'h100:8', ['mesh.fsdp=8', 'task.model.attention=xla', 'task.model.remat=full']),
  'bert_base v5e:2x2': ('bert_base', 'v5e:2x2', ['mesh.data=4', 'batch_size=64']),
  'multi30k_transformer v5e:2x2 fsdp-model': (
    'multi30k_transformer', 'v5e:2x2', [*TRANSLATION, 'mesh.fsdp=2', 'mesh.model=2']),
  'multi30k_transformer h200:1': ('multi30k_transformer', 'h200:1', TRANSLATION),
  'clip_b v5e:4x4 fsdp': (
    'emoji_clip:vit', 'v5e:4x4', [*CLIP_B, 'batch_size=4096', 'mesh.data=4', 'mesh.fsdp=4']),
  'clip_b h200:1': ('emoji_clip:vit', 'h200:1', [*CLIP_B, 'batch_size=1024']),
}  # fmt: skip

# Without autotuning Triton finds no tiles for their products; they are compiled without it.
PLAIN_PRODUCTS = ('vit_b h200:1', 'clip_b h200:1')

# Lines of 2026-11-25, before lines held a digest: the recipes may have changed since. Compiling one
# again (`compile.py NAME`) gives it a digest and takes it off this list.
UNDATED = (
  'gpt2_124m v5e:2x2', 'llama_1b v5e:4x4 fsdp', 'llama_8b v5p:4x4x4 fsdp-model',
  'llama_8b v6e:8x8 fsdp-model', 'llama_70b v5p:8x8x16 fsdp-model',
  'llama_70b v6e:16x16 fsdp-model', 'moe v5p:4x4x4 expert-fsdp',
  'llama_8b v5p:4x4x4 ring 131,072', 'llama_8b v5p:4x4x4 two slices',
  'llama_8b v4:4x4x4 fsdp-model', 'llama_8b tpu7x:4x4x4 fsdp-model', 'llama_1b h200:1',
  'gpt2_124m h200:1 cuDNN',
)  # fmt: skip
# Cases that have not been compiled yet.
MISSING = (
  'llama_8b v5p:4x4x4 fsdp-model, none', 'llama_1b v5e:4x4 fsdp, full',
  'llama_1b v6e:2x4 fsdp, none', 'gpt2_124m v6e:2x4, full', 'gpt2_124m v5e:2x2, none',
  'llama_1b h100:8 fsdp', 'bert_base v5e:2x2', 'multi30k_transformer v5e:2x2 fsdp-model',
  'clip_b v5e:4x4 fsdp',
)  # fmt: skip


def compile_case(recipe: str, topology: str, overrides: list[str] | dict[str, int]) -> dict:
  """Compiles one case in this process; `run` starts one for each."""
  from bmx.plan import topology as topologies

  topologies.prepare()
  import jax  # noqa: F401

  from bmx import config as recipes
  from bmx import experiment
  from bmx.plan import memory
  from bmx.plan.compile import GIB, compile_step, summarize

  devices = topologies.devices(topology)
  if isinstance(overrides, dict):
    import images

    x = images.build(recipe, devices, **overrides)
    return summarize(x, compile_step(x))
  _, colon, variant = recipe.partition(':')
  words = ['mesh.data=1', *overrides]
  config, name = recipes.load(f'{_file(recipe)}{colon}{variant}', words)
  x = experiment.build(config, name, devices, read=False)
  hand = memory.estimate(x)
  kinds = {name: round(size / GIB, 2) for name, size in hand._asdict().items()}
  counted = {'hand_gib': round(hand.total / GIB, 2), 'hand_by_kind_gib': kinds}
  return counted | summarize(x, compile_step(x))


def _file(recipe: str) -> pathlib.Path:
  return ROOT / f'configs/{recipe.partition(":")[0]}.py'


def digest(recipe: str, topology: str, overrides: list[str] | dict[str, int]) -> str:
  """Returns a digest of what a case compiles: the recipe and the words."""
  source = HERE / 'images.py' if isinstance(overrides, dict) else _file(recipe)
  text = source.read_text() + repr((topology, overrides))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(case: str) -> dict:
  """Compiles a case in its own process -> its line of the table, or the error."""
  command = [sys.executable, __file__, '--one', case]
  flags = '--xla_gpu_enable_triton_gemm=false' if case in PLAIN_PRODUCTS else ''
  env = os.environ | {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flags}'}
  result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
  if result.returncode:
    errors = [line for line in result.stderr.splitlines() if 'Error' in line]
    return {'error': errors[-1] if errors else f'exit code {result.returncode}'}
  return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
  """Compiles the chosen cases and updates results.json."""
  if sys.argv[1:2] == ['--one']:
    sys.stdout.write(json.dumps(compile_case(*CASES[sys.argv[2]])) + '\n')
    return
  chosen = [c for c in CASES if not sys.argv[1:] or any(word in c for word in sys.argv[1:])]
  path = HERE / 'results.json'
  record = json.loads(path.read_text()) if path.exists() else {}
  for case in chosen:
    made_from = digest(*CASES[case])
    if record.get(case, {}).get('digest') == made_from:
      continue
    result = run(case)
    if 'error' in result and 'cuDNN' in result['error']:  # the wheels are not installed
      continue
    today = datetime.date.today().isoformat()
    record[case] = {'date': today, 'digest': made_from} | result
    sys.stdout.write(f'{case}: {record[case]}\n')
    sys.stdout.flush()
    path.write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  main()
