"""Writes the golden placements anew: python -m tests.golden.write. Read the diff then."""

import pathlib
import runpy

FOLDER = pathlib.Path(__file__).parent
IMAGES = FOLDER.parent.parent / 'experiments/aot/images.py'
# file -> (recipe, topology, overrides); or (model of IMAGES, topology, its sizes)
CASES = {
  'gpt2_124m.v5e-2x2': ('gpt2_124m', 'v5e:2x2', ['mesh.data=4']),
  'llama_1b.v5e-4x4': ('llama_1b', 'v5e:4x4', ['mesh.data=2', 'mesh.fsdp=8']),
  'llama_8b.v5p-4x4x4': ('llama_8b', 'v5p:4x4x4', ['mesh.fsdp=16', 'mesh.model=4']),
  'llama_8b.v5p-4x4x4-two-slices': (
    'llama_8b', 'v5p:4x4x4@2', ['mesh.data=2', 'mesh.fsdp=16', 'mesh.model=4']),
  'llama_8b.h200-32x8': (
    'llama_8b', 'h200:32x8', ['mesh.data=32', 'mesh.fsdp=8', 'task.model.attention=xla']),
  'llama_70b.v5p-8x8x16': ('llama_70b', 'v5p:8x8x16', ['mesh.fsdp=128', 'mesh.model=8']),
  'vit_b.v5e-2x2': ('vit_b', 'v5e:2x2', {'batch_size': 512, 'fsdp': 2, 'model': 2}),
  'multi30k_transformer.v5e-2x2': (
    'multi30k_transformer', 'v5e:2x2',
    ['mesh.fsdp=2', 'mesh.model=2', 'dtype=bfloat16', 'length=512', 'vocab=32768',
     'task.model.width=512', 'task.model.heads=8', 'task.model.mlp_dim=2048',
     'task.model.scan=True']),
  'moe.v5p-4x4x4': ('moe', 'v5p:4x4x4', ['mesh.expert=8', 'mesh.fsdp=8']),
}  # fmt: skip


def text(name: str) -> str:
  from bmx import config as recipes
  from bmx import experiment
  from bmx.plan import topology
  from bmx.plan.placement import placement

  recipe, where, overrides = CASES[name]
  if isinstance(overrides, dict):
    build = runpy.run_path(str(IMAGES))['build']
    return placement(build(recipe, topology.devices(where), **overrides))
  path = FOLDER.parent.parent / f'configs/{recipe}.py'
  config, full = recipes.load(str(path), ['mesh.data=1', *overrides])
  return placement(experiment.build(config, full, topology.devices(where), read=False))


if __name__ == '__main__':
  from bmx.plan.topology import prepare

  prepare()
  for case in CASES:
    (FOLDER / f'{case}.txt').write_text(text(case))
