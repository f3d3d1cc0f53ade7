/** TLS of the server itself. `npm run test:node` sets NODE_EXTRA_CA_CERTS. */
import assert from 'node:assert/strict';
import { Agent } from 'node:https';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { framesOf, listen, next, subscribe, useStage } from '../support/stage.mjs';

const file = (name) => fileURLToPath(new URL(`../support/${name}`, import.meta.url));
const stage = useStage({ server: { tls_cert: file('localhost.crt'), tls_key: file('localhost.key') } });

assert.ok(process.env.NODE_EXTRA_CA_CERTS, 'set NODE_EXTRA_CA_CERTS=support/localhost.crt');

const overTls = (options = {}) => ({ forceTLS: true, wssPort: stage.server.port, ...options });
const sdk = () => stage.sdkFor('main', { useTLS: true, agent: new Agent({ keepAlive: true }) });

test('pusher-js works over wss, and the SDK over https', async (t) => {
  const name = stage.unique('private-room');
  const [ada, bob] = [
    await stage.connect(t, overTls({ user: 'ada' })),
    await stage.connect(t, overTls({ user: 'bob' })),
  ];
  const frames = framesOf(ada, name);
  const channel = await subscribe(ada, name);
  await frames.take();
  const heard = listen(await subscribe(bob, name), 'client-typing');

  channel.trigger('client-typing', { who: 'ada' });
  assert.deepEqual((await heard.take())[0], { who: 'ada' });

  const publisher = sdk();
  for (const length of [1, 16_384, 100_000]) {
    await publisher.trigger(name, 'news', { text: 'é'.repeat(length / 2) });
    assert.deepEqual(await frames.take(), { event: 'news', data: { text: 'é'.repeat(length / 2) } });
  }
  const answer = await publisher.get({ path: '/channels', params: { filter_by_prefix: 'private-' } });
  assert.deepEqual(await answer.json(), { channels: { [name]: {} } });
});

test('presence channels work over wss', async (t) => {
  const name = stage.unique('presence-room');
  const ada = await stage.connect(t, overTls({ user: 'ada' }));
  const channel = await subscribe(ada, name);
  assert.equal(channel.members.count, 1);
  const added = next(channel, 'pusher:member_added');
  const bob = await stage.connect(t, overTls({ user: 'bob' }));
  await subscribe(bob, name);
  assert.equal((await added).id, 'bob');
  const removed = next(channel, 'pusher:member_removed');
  bob.disconnect();
  assert.equal((await removed).id, 'bob');
});

test('a client that connects with ws to the TLS port switches to wss', async (t) => {
  const pusher = await stage.connect(t, { wsPort: stage.server.port, wssPort: stage.server.port });
  assert.equal(pusher.connection.connection.transport.options.useTLS, true);
});
