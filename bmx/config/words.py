"""Words that every recipe shares, with their defaults."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bmx.core.errors import InputError, did_you_mean
from bmx.core.layout import AXES, RULES

# Words that are parts, or empty.
PARTS = ('task', 'data', 'optimizer', 'schedule', 'grad', 'privacy')
# Words that map names to parts: the user chooses the names.
NAMED_PARTS = ('eval', 'hooks')

# Words whose own words are all known; `mesh` and `rules` are checked where they are read.
GROUPS = ('profile', 'generate', 'every', 'guard', 'watchdog', 'stop', 'keep')


def base(description: str = '') -> Any:
  """Returns a ConfigDict of the shared words.

  Args:
    description: one line for people; the report shows it.
  """
  c = ConfigDict()
  c.description = description
  c.seed = 0
  c.steps = 0  # updates; set this or
  c.epochs = 0.0  # passes over the data
  c.batch_size = 64  # global: of all devices and processes
  c.dtype = 'float32'  # of the computation; parameters are float32
  c.task = ConfigDict()  # part: the loss
  c.data = ConfigDict()  # part: the training data
  c.eval = ConfigDict()  # name -> difference from `data`; `metrics`: functions of predictions
  c.optimizer = ConfigDict()  # part
  c.schedule = ConfigDict()  # part: the learning rate
  c.grad = ConfigDict()  # part around the gradient; wrappers nest by `inner`
  c.privacy = ConfigDict()  # part
  c.hooks = ConfigDict()  # name -> part and `every`, in steps: called during training
  c.profile = {'start': 10, 'steps': 0}  # trace of so many steps after step `start`; 0: off
  c.init = {
    'path': '',  # weights to start from: a run of bmx, or a Hugging Face directory
    'reinit': '',  # regex: these parameters are initialized, not read from `path`
  }  # other keys: collection -> folder, such as teacher='DIR'
  c.generate = {
    'max_new_tokens': 100,  # per prompt
    'temperature': 1.0,  # 0: greedy
    'top_k': 0,  # draws from so many of the most likely tokens; 0: all
    'top_p': 1.0,  # draws from the smallest set of tokens with this total probability
    'repetition_penalty': 1.0,  # divides the logits of tokens that the text contains
    'num_beams': 1,  # above 1: beam search, nothing is drawn
    'length_penalty': 1.0,  # of beams: divides log-probabilities by length^length_penalty
    'stop': (),  # texts that end the generation
    'stream': True,  # prints tokens as they are generated
  }
  c.mesh = {axis: 1 for axis in AXES} | {'data': -1}  # devices along each axis; -1: the rest
  c.rules = dict(RULES)  # dimension -> mesh axes it is stored along
  c.compute = ConfigDict()  # the same during computation; default: `rules` without fsdp
  c.every = {'log': 50, 'eval': 0, 'save': 0}  # steps; 0: only at the end
  c.ema = 0.0  # decay of the moving average of the parameters; 0: off
  c.guard = {
    'patience': 10,  # consecutive non-finite updates before the run ends; 0: never ends
    'spike': 0.0,  # rejects gradient norms above this multiple of their running mean; 0: off
  }
  c.watchdog = {'seconds': 0.0}  # without a finished step before the run ends; 0: off
  c.stop = {'metric': '', 'mode': 'min', 'patience': 3}  # early stopping
  c.keep = {'last': 2, 'metric': '', 'mode': 'min'}  # checkpoints: the newest, the best by metric
  c.steps_per_call = 0  # steps in one jitted call; 0: chosen from the step's FLOPs
  c.allow_changed_data = False  # resume although the training data changed
  c.cache = ''  # folder of compiled programs; '': the user's cache folder; 'off': none
  return c


def check_words(config: Mapping[str, Any]) -> None:
  """Raises InputError naming a word that its group lacks, or a group that is not a mapping."""
  known = base()
  for group in GROUPS:
    if not isinstance(config[group], Mapping):
      raise InputError(f'{group}={config[group]!r}: expected words {", ".join(known[group])}')
    for word in config[group]:
      if word not in known[group]:
        near = did_you_mean(word, known[group])
        raise InputError(
          f'{group}.{word}={config[group][word]!r}: expected a word of {group}{near}'
        )
