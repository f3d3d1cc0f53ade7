/** Compression with the WebSocket client `ws`, which has its own implementation of permessage-deflate. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import WebSocket from 'ws';
import { Inbox } from '../support/inbox.mjs';
import { closeWith } from '../support/resources.mjs';
import { useStage } from '../support/stage.mjs';

const stage = useStage();

/** A connection to an app, with an inbox of its messages and the number of bytes that it has received. */
async function connect(t, app, perMessageDeflate) {
  const { host, port, apps } = stage.server;
  const socket = new WebSocket(`ws://${host}:${port}/app/${apps[app].key}?protocol=7`, { perMessageDeflate });
  closeWith(t, 'a WebSocket', () => socket.terminate());
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
  'with the defaults of ws': true,
  'without context takeover': { serverNoContextTakeover: true, clientNoContextTakeover: true },
  'with the largest window': { serverMaxWindowBits: 15, clientMaxWindowBits: 15 },
  'with a small client window': { clientMaxWindowBits: 9 },
})) {
  test(`compression offered ${what} is negotiated`, async (t) => {
    const channel = stage.unique('rows');
    const client = await connect(t, 'compressed', typeof offer === 'object' ? { threshold: 0, ...offer } : offer);
    assert.equal(client.socket.extensions, 'permessage-deflate');
    // With a threshold of 0, ws compresses this message.
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
  ['a server window that is too small', 'compressed', { serverMaxWindowBits: 10 }],
  ['nothing', 'compressed', false],
  ['compression to an app without it', 'main', true],
]) {
  test(`a client that offers ${what} gets uncompressed messages`, async (t) => {
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

test('a compressed message that is too long closes the connection with 1009', async (t) => {
  const client = await connect(t, 'compressed', true);
  const closed = once(client.socket, 'close');
  client.send({ event: 'client-x', channel: 'private-x', data: ' '.repeat(1_000_000) });
  const [code] = await closed;
  assert.equal(code, 1009);
});
