/** The WebSocket client of Node's world, which negotiates and does permessage-deflate by its own code. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import WebSocket from 'ws';
import { Inbox } from '../support/inbox.mjs';
import { useStage } from '../support/stage.mjs';

const stage = useStage();

/** A connection to an app: what arrives, and the bytes that it took. */
async function connect(t, app, perMessageDeflate) {
  const { host, port, apps } = stage.server;
  const socket = new WebSocket(`ws://${host}:${port}/app/${apps[app].key}?protocol=7`, { perMessageDeflate });
  t.after(() => socket.terminate());
  const messages = new Inbox('messages');
  socket.on('message', (data) => messages.put(JSON.parse(data)));
  await once(socket, 'open');
  assert.equal((await messages.take()).event, 'pusher:connection_established');
  const send = (message) => socket.send(JSON.stringify(message));
  return { socket, messages, send, bytes: () => socket._socket.bytesRead };
}

async function subscribe({ send, messages }, channel) {
  send({ event: 'pusher:subscribe', data: { channel } });
  assert.equal((await messages.take()).event, 'pusher_internal:subscription_succeeded');
}

const rows = Array.from({ length: 100 }, (_, id) => ({ id, name: `Käufer ${id}`, email: `k${id}@example.test` }));
const length = JSON.stringify(JSON.stringify(rows)).length;

for (const [what, offer] of Object.entries({
  'as it comes': true,
  'without contexts': { serverNoContextTakeover: true, clientNoContextTakeover: true },
  'with the largest window': { serverMaxWindowBits: 15, clientMaxWindowBits: 15 },
  'with a small window of its own': { clientMaxWindowBits: 9 },
})) {
  test(`compression offered ${what} is agreed upon`, async (t) => {
    const channel = stage.unique('rows');
    const client = await connect(t, 'compressed', typeof offer === 'object' ? { threshold: 0, ...offer } : offer);
    assert.equal(client.socket.extensions, 'permessage-deflate');
    // With a threshold of 0, this is compressed.
    await subscribe(client, channel);
    for (let i = 0; i < 3; i += 1) {
      const before = client.bytes();
      await stage.sdk.compressed.trigger(channel, 'rows', rows);
      assert.deepEqual(await client.messages.take(), { event: 'rows', channel, data: JSON.stringify(rows) });
      const bytes = client.bytes() - before;
      assert.ok(bytes < length / 4, `${bytes} bytes of ${length}`);
    }
  });
}

for (const [what, app, offer] of [
  ['a window that is too small', 'compressed', { serverMaxWindowBits: 10 }],
  ['nothing', 'compressed', false],
  ['compression to an app that has none', 'main', true],
]) {
  test(`offering ${what} leads to messages as they are`, async (t) => {
    const channel = stage.unique('rows');
    const client = await connect(t, app, offer);
    assert.equal(client.socket.extensions, '');
    await subscribe(client, channel);
    const before = client.bytes();
    await stage.sdk[app].trigger(channel, 'rows', rows);
    assert.deepEqual(await client.messages.take(), { event: 'rows', channel, data: JSON.stringify(rows) });
    assert.ok(client.bytes() - before > length);
  });
}

test('a compressed message that is too long is refused', async (t) => {
  const client = await connect(t, 'compressed', true);
  const closed = once(client.socket, 'close');
  client.send({ event: 'client-x', channel: 'private-x', data: ' '.repeat(1_000_000) });
  const [code] = await closed;
  assert.equal(code, 1009);
});
