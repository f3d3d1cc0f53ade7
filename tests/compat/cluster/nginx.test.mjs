/** The nginx of examples/cluster in front of two nodes. */
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { Agent } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { startChild } from '../support/child.mjs';
import { ClusterStage } from '../support/cluster.mjs';
import { eventually } from '../support/stage.mjs';

const CONFIG = new URL('../../../examples/cluster/nginx.conf', import.meta.url);
const HOST = '127.0.0.1';

let stage;
before(async () => {
  stage = await ClusterStage.start(undefined, { count: 2 });
});
after(() => stage?.close());

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, HOST, resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts the nginx of the example in front of these ports; the port it listens on. Ends with the test. */
async function startNginx(t, [first, second]) {
  const directory = await mkdtemp(join(tmpdir(), 'pusherd-nginx-'));
  const port = await freePort();
  let config = await readFile(CONFIG, 'utf8');
  for (const [from, to] of [
    ['127.0.0.1:6001', `${HOST}:${first}`],
    ['127.0.0.1:6002', `${HOST}:${second}`],
    ['listen 8080;', `listen ${HOST}:${port};`],
  ]) {
    assert.equal(config.split(from).length, 2, `the example has one ${from}`);
    config = config.replace(from, to);
  }
  await writeFile(join(directory, 'nginx.conf'), config);
  const args = ['-p', directory, '-c', 'nginx.conf', '-e', 'stderr', '-g', 'daemon off;'];
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` };
  const child = startChild('nginx', args, { env, stdio: ['ignore', 'ignore', 'pipe'] });
  let printed = '';
  child.stderr.setEncoding('utf8').on('data', (text) => (printed += text));
  child.exited.then(() => (printed += 'nginx ended'));
  t.after(async () => {
    child.kill('SIGQUIT');
    child.kill('SIGTERM');
    await child.exited;
    await rm(directory, { recursive: true, force: true });
  });
  await eventually(async () => {
    assert.doesNotMatch(printed, /nginx ended/, printed);
    assert.equal((await fetch(`http://${HOST}:${port}/up`)).status, 200);
  });
  return port;
}

const portsOfNodes = () => stage.nodes.map(({ port }) => port);

/** An SDK that opens a connection for each request, as PHP does. */
const sdkThrough = (port) => stage.sdkFor('main', { port, agent: new Agent({ keepAlive: false }) });

test('clients and the application go through it to both nodes', async (t) => {
  const port = await startNginx(t, portsOfNodes());
  const channel = stage.unique('private-news');
  const witnesses = [];
  for (const user of ['ada', 'bob']) witnesses.push(await stage.witness(t, channel, { port, user }));
  const sdk = sdkThrough(port);
  for (let number = 0; number < 10; number += 1) await sdk.trigger(channel, 'said', number);
  for (const witness of witnesses) {
    await witness.fenced(stage, 0);
    assert.deepEqual(witness.heard, Array.from({ length: 10 }, (_, number) => ['said', number]));
  }
});

test('the longest batch that pusherd takes passes', async (t) => {
  const port = await startNginx(t, portsOfNodes());
  const channel = stage.unique('news');
  // Each of these characters is six in JSON.
  const data = '\u0001'.repeat(100_000);
  const response = await sdkThrough(port).triggerBatch(Array.from({ length: 10 }, () => ({ channel, name: 'long', data })));
  assert.equal(response.status, 200);
});

test('a publish that a node may have carried out is not repeated, and one that it was not sent is', async (t) => {
  let taken = 0;
  const dying = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', (bytes) => {
      if (!bytes.toString('latin1').startsWith('POST ')) return socket.end('HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n');
      taken += 1;
      socket.destroy();
    });
  });
  await new Promise((resolve) => dying.listen(0, HOST, resolve));
  const { port: dyingPort } = dying.address();
  const channel = stage.unique('news');
  const witness = await stage.witness(t, channel, { at: 0 });
  const port = await startNginx(t, [dyingPort, stage.nodes[0].port]);
  const published = [];
  const refused = [];
  for (let number = 0; taken === 0; number += 1) {
    assert.ok(number < 20, 'nginx asks the dying node in its turn');
    try {
      await sdkThrough(port).trigger(channel, 'said', number);
      published.push(number);
    } catch (error) {
      refused.push(error.status);
    }
  }
  await new Promise((resolve) => dying.close(resolve));
  // Nobody listens there any more: what cannot be sent goes to the other node.
  await sdkThrough(port).trigger(channel, 'said', 'after');
  await witness.fenced(stage, 0);
  assert.deepEqual(refused, [502], 'the application is told of what the dying node took');
  assert.deepEqual(witness.heard, [...published, 'after'].map((data) => ['said', data]));
});
