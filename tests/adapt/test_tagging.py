"""A run of pii_tagger as a finder of names in texts."""

import jax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.adapt.tagging import Tagger
from bmx.core.errors import InputError
from bmx.data.text.annotated import texts_of
from bmx.privacy.anonymize import Anonymizer
from bmx.train import loop
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tagger') / 'run'
  config, name = recipes.load(str(ROOT / 'configs/pii_tagger.py:tiny'),
                              ['mesh.data=1', 'steps=90', 'data.holdout=0.1'])  # fmt: skip
  loop.run(experiment.build(config, name, jax.devices()[:1]), folder)
  return str(folder)


def test_names_are_found_in_texts_of_any_length(run):
  """Texts of training in the middle of longer ones: spans are those of the annotation."""
  tagger = Tagger(run)
  known = texts_of('', 'train', 0.1)[:40]
  found = tagger.find([t.text for t in known])
  hits = sum(set(f) == set(t.spans) for f, t in zip(found, known, strict=True))
  assert hits >= 36
  long = '\n'.join(t.text for t in known) + ' 😀 e\u0301'  # several windows
  (spans,) = tagger.find([long])
  wanted = {t.text[s.start : s.end] for t in known for s in t.spans}
  values = {long[s.start : s.end] for s in spans}
  assert len(values & wanted) >= 0.9 * len(wanted)
  assert tagger.find(['', ' \n']) == [[], []]


def test_an_anonymizer_with_it_is_idempotent(run):
  made = Anonymizer(tagger=Tagger(run))
  texts = [t.text for t in texts_of('', 'train', 0.1)[:16]]
  new, counts = made.anonymize([*texts, 'mail bob@x.org'])
  assert counts['PERSON'] > 5 and counts['EMAIL'] == 1
  assert made.anonymize(new) == (new, {})


def test_other_folders_are_refused(run, tmp_path):
  with pytest.raises(InputError, match='expected the directory of a run of pii_tagger'):
    Tagger(str(tmp_path / 'nowhere')).check()
  with pytest.raises(InputError, match='expected the directory of a run'):
    Tagger(str(tmp_path)).check()
