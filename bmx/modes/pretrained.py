"""Folders of Hugging Face that `predict` uses as a run: a Whisper, which writes transcripts."""

from bmx import config as recipes
from bmx import experiment as experiments
from bmx.adapt import audio, hub
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.data.audio.features import whisper
from bmx.data.audio.utterances import blank_spec
from bmx.data.text.targets import Target, target_spec
from bmx.data.text.tokenizer import load
from bmx.modes import Request
from bmx.modes.start import start
from bmx.runtime.storage import Place, place
from bmx.train.datafile import DataFile

RECIPE = 'fsdd_attention:finetune'
# Without moments of an optimizer, and a schedule that one example of data has the steps for.
UNTRAINED = 'optimizer.call=bmx.optim.optimizers:sgd', 'schedule.warmup=0'
DECODED = 2  # the longest transcript is this part of the positions of the decoder, as published


def config_of(folder: str, overrides: list[str]) -> tuple[object, str]:
  """Returns the config that transcribes with the Whisper of a folder, and its name."""
  length = hub.part(folder)['max_seq_len'] // DECODED
  words = [f'init.path={folder}', f'length={length}', *UNTRAINED]
  return recipes.load(RECIPE, [*words, *overrides])


def open_folder(request: Request) -> tuple[Experiment, Place, DataFile]:
  """Builds the experiment of `init.path`, a folder with a Whisper, without training data.

  Raises InputError for a folder of another model, and one that bmx does not reproduce.
  """
  folder = request.config.init.path
  if not audio.is_whisper(place(folder)):
    raise InputError(f'init.path={folder}: expected a run that has trained, or the folder of a '
                     'WhisperForConditionalGeneration')  # fmt: skip
  workdir, stored = start(request), data_of(folder)
  made = experiments.build(request.config, request.name, evals=False, labels=False, stored=stored)
  return made, workdir, stored


def data_of(folder: str) -> DataFile:
  """Returns what a run keeps of its data, as a folder with a Whisper tells it.

  Raises InputError: no preprocessor_config.json, no tokenizer.json, features of another kind.
  """
  given, part = audio.read(folder), hub.part(folder)
  if given is None:
    raise InputError(f'{folder}: expected {" or ".join(audio.FILES)} beside config.json, which say '
                     'how audio becomes features')  # fmt: skip
  first, *rest = part['begin']
  begin = (first, *sorted(part['languages'].values())[:1], *rest)
  target = Target(load(folder), part['max_seq_len'] // DECODED, begin)
  log_mel, samples = whisper(given['mels']), round(given['seconds'] * given['rate'])
  how = {'samples': samples, 'fill': True}
  spec = blank_spec(log_mel.frames(samples), log_mel.mels, 0) | target_spec(target.length)
  state = {'audio': {'log_mel': log_mel.state(), **how}, **target.state}
  facts = {'source': folder, **target.facts, 'features': {**log_mel.state(), **how}}
  return DataFile(1, spec, facts, state)
