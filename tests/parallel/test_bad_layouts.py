"""Layouts that cannot be: one message each, before anything is compiled."""

import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from tests.conftest import ROOT

GPT, MOE = 'gpt_char', 'moe'
MODEL = 'task.model'
CASES = {
  'a mesh that is not the devices': (GPT, ['mesh.data=3'], 'needs 3 devices, but there are 8'),
  'heads': (GPT, ['mesh.data=1', 'mesh.model=8'], "('heads'|'kv').* is not divisible by model=8"),
  'experts': (
    MOE, ['mesh.data=1', 'mesh.expert=8', f'{MODEL}.experts=6'],
    "'expert'.* is not divisible by expert=8"),
  'layers': (GPT, ['mesh.data=1', 'mesh.pipe=8'], "'layers'.* is not divisible by pipe=8"),
  'layers that are not stacked': (
    GPT, ['mesh.data=4', 'mesh.pipe=2', f'{MODEL}.scan=False'], 'scan=True'),
  'a length': (GPT, ['mesh.data=1', 'mesh.seq=8', 'length=24'], '24 is not divisible into the 16'),
  'a batch': (GPT, ['mesh.data=8', 'batch_size=12'], 'batch_size=12: expected a multiple of 8'),
  'attention that sees a cut sequence': (
    GPT, ['mesh.data=4', 'mesh.seq=2', f'{MODEL}.attention=xla'],
    "set the model's attention='ring'"),
  'a kernel of another device': (GPT, [f'{MODEL}.attention=splash'], 'splash.* needs a TPU'),
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_it_is_said(case):
  recipe, overrides, message = CASES[case]
  config, _ = recipes.load(str(ROOT / f'configs/{recipe}.py:tiny'), overrides)
  with pytest.raises(InputError, match=message):
    experiment.build(config)
