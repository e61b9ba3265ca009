"""Words that every recipe shares, with their defaults."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bmx.core.errors import InputError, did_you_mean
from bmx.core.layout import AXES, RULES

# Words that are parts, or empty.
PARTS = ('task', 'data', 'optimizer', 'schedule', 'grad', 'privacy')
# Callees of parts that are set without `call`.
DEFAULT_CALLS = {'privacy': 'bmx.privacy.mechanism:Privacy'}
# Words that map names to parts: the user chooses the names.
NAMED_PARTS = ('eval', 'hooks', 'writers')

# Axes of the mesh, whose product is the number of devices.
MESH = {
  'pipe': 'Devices that share the layers, in stages.',
  'data': 'Devices that share a batch, each with all parameters; -1: the devices that remain.',
  'fsdp': 'Devices that share a batch and the storage of the parameters.',
  'expert': 'Devices that share the experts.',
  'seq': 'Devices that share the positions of a sequence.',
  'model': 'Devices that share each matrix (tensor parallelism).',
}

# Words of `generate` that images read; texts read the others.
IMAGE_WORDS = ('label', 'count', 'guidance', 'sample_steps', 'sampler')

# Words whose own words are all known; `mesh` and `rules` are checked where they are read.
GROUPS = (
  'profile',
  'generate',
  'predict',
  'every',
  'guard',
  'watchdog',
  'stop',
  'keep',
  'compress',
  'export',
  'plan',
  'serve',
  'feedback',
  'capture',
  'anonymize',
  'explain',
  'reliability',
)


class Word(NamedTuple):
  """A word that every recipe shares.

  Attributes:
    default: its value where a recipe sets none.
    meaning: one sentence, with units.
  """

  default: Any
  meaning: str


WORDS = {
  'description': Word('', 'One line for people; the report shows it.'),
  'seed': Word(0, 'Of the parameters, the order of examples, dropout and draws.'),
  'steps': Word(0, 'Updates of the parameters; set this or `epochs`.'),
  'epochs': Word(0.0, 'Passes over the training data; set this or `steps`.'),
  'batch_size': Word(64, 'Examples of one update, of all devices and processes together.'),
  'dtype': Word('float32', 'Of the computation: float32, bfloat16, float16. Parameters: float32.'),
  'task': Word({}, 'Part: the loss and the model.'),
  'data': Word({}, 'Part: the training data.'),
  'eval': Word({}, 'Name -> its difference from `data`, and `metrics`, functions of predictions.'),
  'optimizer': Word({}, 'Part: how a gradient is applied.'),
  'schedule': Word({}, 'Part: the learning rate of each step.'),
  'grad': Word({}, 'Part around the gradient, such as accumulation; wrappers nest by `inner`.'),
  'privacy': Word({}, 'Part: differential privacy.'),
  'hooks': Word({}, 'Name -> part and `every`, in steps: called during training.'),
  'writers': Word({}, 'Name -> part that logs elsewhere: Weights & Biases, trackio.'),
  'profile.start': Word(10, 'Step after which a trace begins.'),
  'profile.steps': Word(0, 'Steps of the trace in WORKDIR/profile; 0: none.'),
  'fitted': Word('', 'Run whose columns, classes and tokenizer the data have; empty: their own.'),
  'init.path': Word('', 'Weights to start from: a run of bmx or a Hugging Face directory.'),
  'init.reinit': Word('', 'Regex of parameters that are initialized, not read from `init.path`.'),
  'generate.max_new_tokens': Word(100, 'Tokens that are generated for a prompt, at most.'),
  'generate.temperature': Word(1.0, 'Divides the logits; 0: greedy.'),
  'generate.top_k': Word(0, 'Draws from so many of the most likely tokens; 0: from all.'),
  'generate.top_p': Word(1.0, 'Draws from the smallest set of tokens of this total probability.'),
  'generate.repetition_penalty': Word(1.0, 'Divides the logits of tokens that the text contains.'),
  'generate.num_beams': Word(1, 'Above 1: beam search, without draws.'),
  'generate.length_penalty': Word(1.0, 'Of beams: the power of the length that divides scores.'),
  'generate.stop': Word((), 'Texts that end the generation.'),
  'generate.slide': Word(0.5, 'Share of the positions that a full text keeps; 0: it ends.'),
  'generate.cache': Word('auto', 'Of keys and values: auto, in `dtype`; or int8.'),
  'generate.draft': Word('', 'Run or folder of a small model that proposes tokens; greedy only.'),
  'generate.draft_tokens': Word(4, 'Tokens that the draft proposes at once.'),
  'generate.template': Word('', 'Of a chat: chatml, a file or a folder; empty: that of the run.'),
  'generate.stream': Word(True, 'Prints tokens as they are generated.'),
  'generate.label': Word(-1, 'Class of generated images; -1: every class in turn.'),
  'generate.count': Word(100, 'Images that are generated.'),
  'generate.guidance': Word(1.0, 'Of images towards their class; 1: none.'),
  'generate.sample_steps': Word(20, 'Steps from noise to an image.'),
  'generate.sampler': Word('heun', 'Of images: euler, or heun, with two velocities a step.'),
  'predict.tta': Word((), 'Views whose probabilities are averaged: flip, crops; empty: none.'),
  'predict.temperature': Word(False, 'Divides logits by the one of eval --temperature=true.'),
  'predict.labels': Word((), 'Texts that a run of images and captions chooses from for an image.'),
  'predict.templates': Word(('{}',), 'Sentences around these, such as a photo of a {}; averaged.'),
  'serve.host': Word('127.0.0.1', 'Address that the server listens on; 0.0.0.0: every one.'),
  'serve.port': Word(8000, 'Port that the server listens on; 0: a free one.'),
  'serve.rows': Word(16, 'Texts that are generated at once.'),
  'serve.context': Word(0, 'Tokens of a text, prompt included; 0: the positions of the model.'),
  'serve.max_waiting': Word(64, 'Texts, or requests of predictions, that may wait; else 429.'),
  'serve.batch': Word(64, 'Rows that are predicted at once, at most.'),
  'serve.window': Word(2.0, 'Milliseconds that a request waits for others of its batch.'),
  'serve.max_instances': Word(1024, 'Instances of one request of predictions.'),
  'serve.timeout': Word(600.0, 'Seconds of an answer.'),
  'serve.max_body': Word(1_048_576, 'Bytes of a request.'),
  'serve.adapters': Word('', 'NAME=RUN,NAME=RUN: adapters that requests name as their model.'),
  'serve.keys': Word('', 'File of API keys, a line each; empty: every client is served.'),
  'capture.folder': Word('', 'A server writes answers and corrections there; empty: nowhere.'),
  'capture.share': Word(1.0, 'Of the answers that are written, chosen by their ids.'),
  'capture.redact': Word('', "'module:function' that events pass through before they are written."),
  'capture.anonymize': Word(False, 'Replaces personal data in events, by the words `anonymize`.'),
  'capture.file_bytes': Word(67_108_864, 'Size at which the next file begins.'),
  'anonymize.types': Word((), 'Such as EMAIL, IBAN, PERSON; empty: all that can be found.'),
  'anonymize.form': Word('placeholder', 'placeholder, pseudonym, mask or remove.'),
  'anonymize.key': Word('', 'Of pseudonyms: a file, or env:NAME; at least 16 random bytes.'),
  'anonymize.tagger': Word('', 'Run of pii_tagger, which finds names; empty: patterns alone.'),
  'anonymize.columns': Word((), 'With texts; empty: all that no other word names.'),
  'anonymize.drop': Word((), 'Columns that are left out.'),
  'anonymize.pseudonyms': Word((), 'Columns whose whole values become pseudonyms.'),
  'anonymize.ranges': Word((), 'COLUMN:WIDTH,...: numbers become ranges, age:10.'),
  'anonymize.dates': Word((), 'COLUMN:month or COLUMN:year,...: the part of dates that stays.'),
  'anonymize.prefixes': Word((), 'COLUMN:N,...: the first N characters stay, zip:3.'),
  'anonymize.quasi': Word((), 'Columns that others may know of a person; see k.'),
  'anonymize.k': Word(0, 'Rows of equal `quasi`, at least; rows of smaller groups are left out.'),
  'anonymize.sensitive': Word((), 'Columns that should differ among rows of equal `quasi`.'),
  'anonymize.l': Word(0, 'Values of each sensitive column in such a group, at least.'),
  'feedback.level': Word(0.05, 'Rate of false alarms of drift; intervals of gate hold 1 - level.'),
  'feedback.sample': Word(2000, 'Examples of each side that drift compares, at most.'),
  'feedback.entry': Word('', 'Entry of `eval` with old data; empty: the first but test, or test.'),
  'feedback.share': Word(0.5, 'Of captured examples in a batch of learn.'),
  'feedback.holdout': Word(0.2, 'Share of captured examples that learn leaves for gate.'),
  'feedback.margin': Word(0.01, 'By which a challenger may be worse on old data.'),
  'feedback.slices': Word((), 'Columns, or `label`: gate compares each of their values alone.'),
  'feedback.slice_margin': Word(0.05, 'By which a challenger may be worse in a slice.'),
  'feedback.least': Word(100, 'Examples of a slice that gate judges, and of its new data.'),
  'explain.method': Word('auto', 'Such as shapley, saliency, occlusion; a wrong one lists them.'),
  'explain.count': Word(8, 'Examples that are explained, the first ones.'),
  'explain.target': Word('', 'Class or number of the output; empty: the predicted one.'),
  'explain.samples': Word(64, 'Draws of smoothgrad; orders of features of shapley.'),
  'explain.sample': Word(1000, 'Examples that permutation, probe and influence read, at most.'),
  'explain.background': Word('', 'File of rows that replace features; empty: those of the input.'),
  'explain.window': Word(0, 'Pixels of the side of an occluded window; 0: an eighth.'),
  'explain.layer': Word('', 'Path of the layer of gradcam; empty: the last one of maps.'),
  'explain.report': Word(False, 'Adds the explanation to report.html.'),
  'reliability.slices': Word((), 'Columns or `label` whose values eval judges alone; all: none.'),
  'reliability.bins': Word(15, 'Of confidence, in the calibration error.'),
  'reliability.temperature': Word(False, 'Fits a temperature on an entry of `eval` but test.'),
  'reliability.entry': Word('', 'The entry that it is fitted on; empty: the first but test.'),
  'compress.method': Word('nearest', 'nearest, gptq, awq round; magnitude, wanda prune; shrink.'),
  'compress.kind': Word('int8', 'Of the weights: int8, fp8, int4 or nf4.'),
  'compress.group': Word(32, 'Weights that share a scale, of int4 and nf4.'),
  'compress.sparsity': Word(0.5, 'Share of zeros that magnitude and wanda leave.'),
  'compress.pattern': Word('unstructured', 'Of zeros: that, 2:4, heads, neurons or channels.'),
  'compress.scope': Word('layer', 'layer: the share holds for each; global: for all together.'),
  'compress.targets': Word('', 'Regex of the paths of the kernels to compress; empty: all.'),
  'compress.activations': Word('', 'int8 or fp8: products of codes; empty: none.'),
  'compress.examples': Word(128, 'Training examples that gptq, awq and wanda read, at least.'),
  'compress.tables': Word('', 'int8 or fp8: of embedding tables; empty: none.'),
  'plan.prices': Word('', 'KIND=DOLLARS,...: of an hour of one chip, or cpu=; empty: unknown.'),
  'plan.watts': Word('', 'KIND=WATTS,...: of one chip, or cpu=; a missing kind: as published.'),
  'plan.carbon': Word(0.0, 'Grams of CO2e of a kWh; 0: unknown.'),
  'plan.law': Word('besiroglu', 'Of dial: besiroglu (2024) or hoffmann (2022, Chinchilla).'),
  'export.format': Word('bmx', 'bmx, huggingface or onnx.'),
  'export.length': Word(0, 'Tokens of a row of the exported program; 0: any number.'),
  'export.license': Word('', 'Of the weights, for the model card, such as apache-2.0.'),
  **{f'mesh.{axis}': Word(-1 if axis == 'data' else 1, MESH[axis]) for axis in AXES},
  **{f'rules.{name}': Word(axes, 'Mesh axes that this dimension is stored along.')
     for name, axes in RULES.items()},
  'compute': Word({}, 'The same during computation; `rules` without fsdp where it is silent.'),
  'every.log': Word(50, 'Steps between log lines; 0: at the end only; -20: 20 times.'),
  'every.eval': Word(0, 'Steps between evaluations; 0: at the end only; -10: 10 times.'),
  'every.save': Word(0, 'Steps between checkpoints; 0: at the end only; -2: twice.'),
  'show_parameters': Word(8, 'Parameters that the table at the start lists; 0: all.'),
  'ema': Word(0.0, 'Decay of a moving average of the parameters, which is evaluated; 0: off.'),
  'guard.patience': Word(10, 'Consecutive non-finite updates that end the run; 0: never.'),
  'guard.spike': Word(0.0, 'Rejects gradient norms above this multiple of their mean; 0: off.'),
  'watchdog.seconds': Word(0.0, 'Ends a run in which no step finishes for so long; 0: off.'),
  'stop.metric': Word('', 'Early stopping follows it, such as eval/valid/loss; empty: off.'),
  'stop.mode': Word('min', 'Better is lower (min) or higher (max).'),
  'stop.patience': Word(3, 'Evaluations without a better value that end the run.'),
  'keep.last': Word(2, 'Newest checkpoints that are kept.'),
  'keep.metric': Word('', 'The checkpoint with its best value is kept too; empty: off.'),
  'keep.mode': Word('min', 'Better is lower (min) or higher (max).'),
  'steps_per_call': Word(0, 'Steps in one compiled call; 0: chosen by the FLOPs of a step.'),
  'allow_changed_data': Word(False, 'Resumes although the training data have changed.'),
  'cache': Word('', 'Folder of compiled programs; empty: ~/.cache/bmx; off: none.'),
}  # fmt: skip


def base(description: str = '') -> Any:
  """Returns a ConfigDict of the shared words.

  Args:
    description: one line for people; the report shows it.
  """
  c = ConfigDict()
  for name, word in WORDS.items():
    group, _, leaf = name.rpartition('.')
    if group and group not in c:
      c[group] = ConfigDict()
    place: Any = c[group] if group else c
    place[leaf] = ConfigDict() if word.default == {} else word.default
  c.description = description
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
