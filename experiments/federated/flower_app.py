"""Client and server apps of Flower around bmx's local steps and server optimizer; see flower.py.

Needs flwr 1.41.0, which is not a dependency of bmx: it pins older packages.
"""

import json
import pathlib
import time
from collections.abc import Iterator

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from silo_recipe import built

from bmx.privacy.silos import Server, Silo, Update

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
  """Trains on the archive of this silo, which nobody else can read."""
  own = context.node_config
  asked = message.content['round']
  silo = Silo(built({'own': str(own['archive'])}))
  params = message.content['params'].to_numpy_ndarrays()
  update = silo.answer(params, asked['number'], int(own['silo']), asked['sizes'])
  return Message(
    RecordDict(
      {
        'change': ArrayRecord([*update.change, update.loss]),
        'silo': ConfigRecord({'number': int(own['silo']), 'examples': update.examples}),
      }
    ),
    reply_to=message,
  )


@server.main()
def main(grid: Grid, context: Context) -> None:
  """Runs the rounds; writes a line of each to rounds.jsonl and the parameters at last."""
  words = context.run_config
  sizes = json.loads(str(words['sizes']))
  folder = pathlib.Path(str(words['folder']))
  made = Server(built({'public': str(words['public'])}))
  for number in range(int(words['rounds'])):
    nodes = connected(grid, len(sizes), float(words['patience']))
    asked = ConfigRecord({'number': number, 'sizes': sizes})
    content = RecordDict({'params': ArrayRecord(made.params), 'round': asked})
    messages = [Message(content, dst_node_id=node, message_type='train') for node in nodes]
    began = time.time()
    replies = grid.send_and_receive(messages, timeout=float(words['timeout']))
    updates = dict(updates_of(replies))
    metrics = made.step(updates)
    line = {'round': number, 'silos': sorted(updates), 'seconds': round(time.time() - began, 1)}
    with open(folder / 'rounds.jsonl', 'a') as file:
      file.write(json.dumps({**line, 'loss': metrics['loss']}) + '\n')
  np.savez(folder / 'params.npz', *made.params)


def connected(grid: Grid, number: int, patience: float) -> list[int]:
  """Returns the silos that are there, after a wait of `patience` seconds for all at most."""
  began = time.time()
  while True:
    nodes = list(grid.get_node_ids())
    if len(nodes) >= number or (nodes and time.time() - began > patience):
      return nodes
    time.sleep(0.5)


def updates_of(replies) -> Iterator[tuple[str, Update]]:
  """Yields (number of a silo, its update) of replies without an error."""
  for reply in replies:
    if reply.has_error():
      print(f'node {reply.metadata.src_node_id}: {reply.error}', flush=True)
      continue
    *change, loss = reply.content['change'].to_numpy_ndarrays()
    silo = reply.content['silo']
    yield str(silo['number']), Update(change, silo['examples'], loss)
