/** nginx with examples/cluster/nginx.conf in front of two nodes. */
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { Agent } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { startChild } from '../support/child.mjs';
import { ClusterStage } from '../support/cluster.mjs';
import { closeWith, file } from '../support/resources.mjs';
import { eventually } from '../support/stage.mjs';

const CONFIG = new URL('../../../examples/cluster/nginx.conf', import.meta.url);
const HOST = '127.0.0.1';

let stage;
before(async () => {
  stage = await ClusterStage.start(file, { count: 2 });
});

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, HOST, resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts nginx in front of two ports, and returns the port that it listens on. */
async function startNginx(t, [first, second]) {
  const directory = await mkdtemp(join(tmpdir(), 'pusherd-nginx-'));
  closeWith(t, 'the directory of nginx', () => rm(directory, { recursive: true, force: true }));
  const port = await freePort();
  let config = await readFile(CONFIG, 'utf8');
  for (const [from, to] of [
    ['127.0.0.1:6001', `${HOST}:${first}`],
    ['127.0.0.1:6002', `${HOST}:${second}`],
    ['listen 8080;', `listen ${HOST}:${port};`],
  ]) {
    assert.equal(config.split(from).length, 2, `nginx.conf does not have one ${from}`);
    config = config.replace(from, to);
  }
  await writeFile(join(directory, 'nginx.conf'), config);
  const args = ['-p', directory, '-c', 'nginx.conf', '-e', 'stderr', '-g', 'daemon off;'];
  const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` };
  const child = startChild('nginx', args, { env, stdio: ['ignore', 'ignore', 'pipe'] });
  closeWith(t, 'nginx', () => {
    child.kill('SIGQUIT');
    child.kill('SIGTERM');
    return child.exited;
  });
  let printed = '';
  child.stderr.setEncoding('utf8').on('data', (text) => (printed += text));
  child.exited.then(() => (printed += 'nginx exited'));
  await eventually(async () => {
    assert.doesNotMatch(printed, /nginx exited/, printed);
    assert.equal((await fetch(`http://${HOST}:${port}/up`)).status, 200);
  });
  return port;
}

const portsOfNodes = () => stage.nodes.map(({ port }) => port);

/** An SDK that opens a connection for each request, as the PHP SDK does. */
const sdkThrough = (port) => stage.sdkFor('main', { port, agent: new Agent({ keepAlive: false }) });

test('clients and applications reach both nodes through nginx', async (t) => {
  const port = await startNginx(t, portsOfNodes());
  const channel = stage.unique('private-news');
  const recorders = [];
  for (const user of ['ada', 'bob']) recorders.push(await stage.recorder(t, channel, { port, user }));
  const sdk = sdkThrough(port);
  for (let number = 0; number < 10; number += 1) await sdk.trigger(channel, 'said', number);
  for (const recorder of recorders) {
    await recorder.fenced(stage, 0);
    assert.deepEqual(recorder.events, Array.from({ length: 10 }, (_, number) => ['said', number]));
  }
});

test('nginx forwards the longest batch that pusherd accepts', async (t) => {
  const port = await startNginx(t, portsOfNodes());
  const channel = stage.unique('news');
  // JSON escapes each of these characters to six.
  const data = '\u0001'.repeat(100_000);
  const response = await sdkThrough(port).triggerBatch(Array.from({ length: 10 }, () => ({ channel, name: 'long', data })));
  assert.equal(response.status, 200);
});

test('nginx retries a publish on the next node only if it was not sent', async (t) => {
  let received = 0;
  const crashing = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', (bytes) => {
      if (!bytes.toString('latin1').startsWith('POST ')) return socket.end('HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n');
      received += 1;
      socket.destroy();
    });
  });
  const close = () => new Promise((resolve) => crashing.close(resolve));
  closeWith(t, 'the crashing node', close);
  await new Promise((resolve) => crashing.listen(0, HOST, resolve));
  const { port: crashingPort } = crashing.address();
  const channel = stage.unique('news');
  const recorder = await stage.recorder(t, channel, { at: 0 });
  const port = await startNginx(t, [crashingPort, stage.nodes[0].port]);
  const published = [];
  const rejected = [];
  for (let number = 0; received === 0; number += 1) {
    assert.ok(number < 20, 'nginx sends no request to the crashing node');
    try {
      await sdkThrough(port).trigger(channel, 'said', number);
      published.push(number);
    } catch (error) {
      rejected.push(error.status);
    }
  }
  await close();
  // nginx cannot connect to the closed port, so it sends the request to the other node.
  await sdkThrough(port).trigger(channel, 'said', 'after');
  await recorder.fenced(stage, 0);
  assert.deepEqual(rejected, [502], 'the application must get an error for the publish that the crashing node received');
  assert.deepEqual(recorder.events, [...published, 'after'].map((data) => ['said', data]));
});
