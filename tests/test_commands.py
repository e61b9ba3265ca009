"""Commands of README.md and docs/: each is run in the order of its page, or is listed why not."""

import glob
import json
import pathlib
import re
import shlex
import zipfile

import jax
import numpy as np
import PIL.Image
import pytest

from bmx import arguments as argument_parser
from bmx import cli, modes
from bmx import config as recipes
from bmx import main as entry
from tests.conftest import ROOT, own_logging
from tests.data.pictures import folder
from tests.data.sounds import keypad

PAGES = {
  path.relative_to(ROOT).as_posix(): path.read_text()
  for path in [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
}
# Part of a command -> why it is only checked to be understood.
NOT_RUN = {
  'pip install': 'needs a package index; `.ci/run` begins with it',
  '--topology=': 'compiles for TPU and GPU: group `compile`, tests/plan',
  '--processes=2': 'two processes: tests/train/test_processes.py',
  'bmx serve': 'runs until it is stopped: tests/serve/test_serve_mode.py',
  'llama_1b': 'a billion parameters',
  'gpt2_124m': 'needs the weights of GPT-2: tests/adapt',
  ':finetune': 'needs weights of others: tests/adapt/test_seq2seq.py',
  'import secrets': 'makes a secret that the next line reads: tests/privacy',
  'SECRET': 'the secret of the line before: tests/privacy/test_runs.py',
  'emoji_captions': 'reads pairs of files: tests/test_captions.py',
  'runs/captions': 'written by `emoji_captions`',
  'bmx merge runs/tuned': 'of a Whisper: tests/test_whisper.py',
  'whisper-tiny': 'needs weights of others: tests/test_whisper.py',
  'emoji_clip': 'reads pairs of files: tests/test_captioned.py',
  'runs/pairs': 'written by `emoji_clip`',
  'runs/tuned --export.format=huggingface': 'needs weights of others: tests/adapt/test_clip.py',
  'chat': 'reads a terminal or weights of others: tests/serve, tests/test_configs.py',
  'bmx compress': 'needs a trained run: tests/compress',
  'runs/first_int4': 'written by `bmx compress`: tests/compress',
  'runs/adapted': 'tests/adapt/test_adapter_runs.py, and the recipe in tests/test_configs.py',
}
ENCODER = ['--config.task.model.encoder.width=16', '--config.task.model.encoder.heads=2',
           '--config.task.model.encoder.depth=1']  # fmt: skip
# Recipe of a page -> recipe that is run, with the words that make it short.
SHORTER = {
  'coco': ['coco', '--config.epochs=2', '--config.batch_size=8', '--config.data.size=32',
           '--config.task.model.features=8,16', '--config.task.model.strides=4,',
           '--config.task.model.width=8', '--config.task.model.depth=1'],
  'coco:masks': ['coco:masks', '--config.epochs=2', '--config.batch_size=8',
                 '--config.data.size=32', '--config.task.model.features=8,8',
                 '--config.task.model.attention=False,False'],
  'digits_mlp': ['digits_mlp:tiny'],
  'digits_federated': ['digits_federated:tiny', '--config.steps=2'],
  'digits_federated:fedadam': ['digits_federated:fedadam', '--config.steps=2',
                               '--config.every.eval=0'],
  'char_lstm': ['char_lstm:tiny', '--config.steps=2', '--config.schedule.warmup=1'],
  'text:lstm': ['text:lstm', '--config.epochs=1', '--config.vocab=300', '--config.length=16',
                '--config.batch_size=8', '--config.task.model.width=16'],
  'digits_mlp:tiny': ['digits_mlp:tiny'],
  'table': ['table', '--config.epochs=2', '--config.batch_size=16'],
  'table:tiny': ['table:tiny'],
  'text': ['text', '--config.epochs=1', '--config.vocab=300', '--config.length=16',
           '--config.batch_size=8', *ENCODER],
  'mnist_flow:tiny': ['mnist_flow:tiny', '--config.steps=4', '--config.schedule.warmup=1'],
  'gpt_char': ['gpt_char:tiny', '--config.steps=2', '--config.schedule.warmup=1',
               '--config.length=64'],
  'gpt_char:tiny': ['gpt_char:tiny', '--config.steps=14', '--config.schedule.warmup=1',
                    '--config.data.path=short.txt'],
  'bert_small': ['bert_small:tiny', '--config.vocab=320', '--config.steps=2',
                 '--config.schedule.warmup=1', '--config.batch_size=8', *ENCODER],
  'criteo_deepfm': ['criteo_deepfm', '--config.epochs=0', '--config.steps=2',
                    '--config.batch_size=8', '--config.task.model.widths=(8,)'],
  'movielens_two_tower': ['movielens_two_tower', '--config.epochs=0', '--config.steps=2',
                          '--config.batch_size=8', '--config.every.eval=0'],
  'speech': ['speech', '--config.epochs=0', '--config.steps=2', '--config.batch_size=4',
             '--config.schedule.warmup=1', '--config.data.rate=8000', '--config.data.mels=20',
             *ENCODER],
  'speech:tiny': ['speech:tiny', '--config.steps=2', '--config.schedule.warmup=1'],
  'fsdd_ctc': ['fsdd_ctc:tiny', '--config.steps=2', '--config.schedule.warmup=1'],
  'fsdd_attention': ['fsdd_attention:tiny', '--config.steps=2', '--config.schedule.warmup=1'],
  'images': ['images', '--config.epochs=1', '--config.batch_size=8', '--config.data.size=16',
             '--config.data.crop=2', '--config.task.model.stages=(1,)',
             '--config.task.model.features=4'],
  'multi30k_transformer': [
    'multi30k_transformer', '--config.steps=2', '--config.schedule.warmup=1', '--config.vocab=300',
    '--config.length=32', '--config.batch_size=4', '--config.generate.num_beams=2',
    '--config.generate.max_new_tokens=4', '--config.task.model.width=16',
    '--config.task.model.heads=2', '--config.task.model.mlp_dim=16', '--config.every.eval=0'],
  'bert_finetune': ['bert_finetune'],
  'bert_finetune:ner': ['bert_finetune:ner'],
  'bert_finetune:qa': ['bert_finetune:qa'],
}  # fmt: skip
FINE_TUNED = ['--config.epochs=0', '--config.steps=2', '--config.schedule.warmup=1',
              '--config.length=16', '--config.batch_size=8']  # fmt: skip
LESS = {'--trials=20': '--trials=2'}
MODE = '|'.join(modes.MODES)
START = rf'(?:(?:\w+=\S+ )*(?:bmx (?:{MODE})|python -m bmx\.main)\b|RUN=1 scripts/\S+ run)'
COMMAND = re.compile(rf'^(?:    )?({START}.*)$|`({START}[^`]*)`', re.MULTILINE)


def commands(text: str) -> list[str]:
  """Every command of a page, also in its prose and tables, without comments."""
  return [(block or inline).rstrip('& ') for block, inline in COMMAND.findall(text)]


def script(text: str) -> list[str]:
  """The lines of a page's blocks of bash."""
  blocks = re.findall(r'```bash\n(.*?)```', text, re.DOTALL)
  return [line.rstrip('& ') for block in blocks for line in block.splitlines()]


def words_of(command: str) -> list[str]:
  """A command as arguments of `bmx.main`."""
  words = shlex.split(command, comments=True)
  while re.match(r'[A-Z_]+=', words[0]):
    del words[0]
  if words[0] == 'bmx':
    return cli.translate(words[1:])
  return words[3:] if '--mode=' in command else ['--mode=train', *words[3:]]


def reason(command: str) -> str:
  """Why a command is not run; '' if it is."""
  return next((why for part, why in NOT_RUN.items() if part in command), '')


@pytest.mark.parametrize('page', [page for page, text in PAGES.items() if commands(text)])
def test_commands_are_understood(page):
  """Mode, flags, recipe and words exist; the words of a run's own recipe are those of gpt_char."""
  for command in commands(PAGES[page]):
    arguments = [word for word in words_of(command) if word.startswith('--')]
    if arguments == [f'--mode={arguments[0].partition("=")[2]}'] and ' --' not in command:
      assert arguments[0].partition('=')[2] in modes.MODES, command  # `bmx plan`, in prose
      continue
    args, overrides = argument_parser.parse(arguments, 'bmx')
    if args.mode == 'sweep':
      overrides, _ = recipes.split(overrides)
    if args.config or overrides:
      recipes.load(args.config or 'gpt_char', overrides)
    flags = args.step, args.input, tuple(args.prompt), args.topology, args.words, tuple(args.run)
    modes.check_flags(args.mode, modes.Request(None, '', args.workdir, *flags))
    if '--config=configs/' in command:
      assert (ROOT / args.config.partition(':')[0]).is_file(), command


def test_every_line_of_a_block_is_a_command_or_is_listed():
  lines = [line for text in PAGES.values() for line in script(text)]
  for line in lines:
    assert reason(line) or re.match(START, line), line
  for part in NOT_RUN:
    assert any(part in line for line in lines), part


def shortened(arguments: list[str]) -> list[str]:
  """Arguments of a smaller run: those of the page, a smaller recipe, and its words."""
  result, less = [], []
  for word in arguments:
    name, _, value = word.partition('=')
    if name == '--config':
      recipe = value.removeprefix('configs/').replace('.py', '')
      value, *less = SHORTER[recipe]
      less = less or (FINE_TUNED if recipe.startswith('bert_finetune') else [])
      word = f'--config={value}'
    result += sorted(glob.glob(word)) or [LESS.get(word, word)]
  if not {'--mode=config', '--mode=compare'} & {*result}:
    result += [*less, '--config.cache=off']  # the cache of all tests
  return result


def write_table():
  random = np.random.default_rng(0)
  head = 'age,plan,since,churned'
  rows = [
    f'{random.integers(18, 80)},{random.choice(["basic", "full"])},2024-01-{i % 28 + 1:02d},'
    f'{"yes" if i % 3 else "no"}'
    for i in range(60)
  ]
  write('my.csv', head, *rows)
  write('new.csv', head.removesuffix(',churned'), *(row.rpartition(',')[0] for row in rows[:5]))


def write_texts():
  films = [(f'{mood} film number {i}', int(mood == 'good')) for i in range(20)
           for mood in ('good', 'bad')]  # fmt: skip
  write('reviews.csv', 'review,rating', *(f'{text},{label}' for text, label in films))
  write('new.csv', 'review', *(text for text, _ in films[:5]))
  for name in ('train.csv', 'valid.csv'):
    write(name, 'sentence,label', *(f'{text},{label}' for text, label in films))
  for name in ('wiki.txt', 'my.txt'):
    write(name, *(text for text, _ in films * 20))
  write('books.jsonl', *(json.dumps({'text': text}) for text, _ in films))
  write('prompts.txt', 'good', 'bad film')
  for name in ('train.conll', 'dev.conll', 'test.conll'):
    write(name, *(f'{label}\tB-mood\nfilm\tO\n' for label in ('good', 'bad') * 10))
  context = 'the first film was good. nobody saw the second.'
  answers = [{'text': 'good', 'answer_start': context.index('good')}]
  asked = {'id': 'a', 'question': 'how was the first film?', 'answers': answers}
  paragraphs = [{'context': context, 'qas': [asked]}]
  articles = [{'title': str(i), 'paragraphs': paragraphs} for i in range(10)]
  write('squad.json', json.dumps({'data': articles}))


def write_translations():
  for name in ('train', 'val', 'test', 'new'):
    write(f'{name}.de', *(f'Zeile {i} von {name}' for i in range(20)))
    write(f'{name}.en', *(f'line {i} of {name}' for i in range(20)))


def write_clicks_and_ratings():
  fields = lambda i: [str(i % 7)] * 13 + [f'{i % 3:08x}'] * 26
  write('train.txt', *('\t'.join([str(i % 2), *fields(i)]) for i in range(40)))
  write('new.txt', *('\t'.join(fields(i)) for i in range(5)))
  write('my.csv', 'clicked,site,price', *(f'{i % 2},s{i % 3},{i}' for i in range(40)))
  events = [(user, (3 * user + i) % 20, i) for user in range(10) for i in range(8)]
  write('users.csv', 'userId', '3', 'unknown', '5')
  write(
    'bought.csv', 'customer,product,day', *(f'{u},{i},2024-01-{t + 1:02d}' for u, i, t in events)
  )
  ratings = ['userId,movieId,rating,timestamp', *(f'{u},{i},4.0,{t}' for u, i, t in events)]
  movies = ['movieId,title,genres', *(f'{i},Film {i},Drama|War' for i in range(20))]
  with zipfile.ZipFile('ml-latest-small.zip', 'w') as archive:
    archive.writestr('ml-latest-small/ratings.csv', '\n'.join(ratings))
    archive.writestr('ml-latest-small/movies.csv', '\n'.join(movies))


def write(name: str, *lines: str):
  pathlib.Path(name).write_text('\n'.join([*lines, '']))


def write_images():
  folder(pathlib.Path('photos'))
  folder(pathlib.Path('new_photos'), 2)


def write_objects():
  random = np.random.default_rng(0)
  images, items = [], []
  for i in range(10):
    name, left = f'{i}.png', int(random.integers(0, 20))
    picture = PIL.Image.new('RGB', (48, 40), (90, 90, 90))
    picture.paste((250, 30, 30), (left, 10, left + 16, 26))
    for place in ('mine', 'new')[: 1 + (i > 7)]:
      pathlib.Path(place).mkdir(exist_ok=True)
      picture.save(f'{place}/{name}')
    images.append({'id': i, 'file_name': name, 'height': 40, 'width': 48})
    corners = [left, 10, left + 16, 10, left + 16, 26, left, 26]
    items.append({'id': i, 'image_id': i, 'category_id': 3, 'bbox': [left, 10, 16, 16],
                  'segmentation': [corners]})  # fmt: skip
  made = {'images': images, 'annotations': items, 'categories': [{'id': 3, 'name': 'square'}]}
  write('mine/annotations.json', json.dumps(made))


def write_speech():
  keypad(pathlib.Path('calls'), ['one two', 'two', 'nine one', 'nine', 'two two', 'one'] * 2)
  keypad(pathlib.Path('new'), ['one', 'two nine'])
  pathlib.Path('new/transcripts.csv').unlink()


def write_recurrent():
  write_texts()
  write('input.txt', *(f'Line {i} of a short text.' for i in range(2000)))


FILES = {
  'README.md': write_table,
  'docs/tables.md': write_table,
  'docs/language.md': write_texts,
  'docs/recurrent.md': write_recurrent,
  'docs/translation.md': write_translations,
  'docs/recommendation.md': write_clicks_and_ratings,
  'docs/vision.md': write_images,
  'docs/speech.md': write_speech,
  'docs/detection.md': write_objects,
}


@pytest.mark.parametrize('page', [page for page, text in PAGES.items() if script(text)])
def test_commands_run_in_their_order(page, tmp_path, monkeypatch, capsys):
  """In one folder, with the files that the page names."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  if page != 'docs/parallel.md':  # a program for eight devices takes twice the time to compile
    monkeypatch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:1])
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  write('short.txt', *(f'Line {i} of a short text.' for i in range(400)))
  FILES.get(page, lambda: None)()
  for line in script(PAGES[page]):
    if reason(line):
      continue
    arguments = shortened(words_of(line))
    with own_logging():
      code = entry.main(arguments, 'bmx')
    assert code == 0, f'{line}\n{capsys.readouterr().err}'
    flags = dict(word[2:].split('=', 1) for word in arguments)
    if 'output' in flags:
      assert pathlib.Path(flags['output']).is_file(), line
    if flags['mode'] == 'train' and 'workdir' in flags:
      assert (tmp_path / flags['workdir'] / 'report.html').is_file(), line
