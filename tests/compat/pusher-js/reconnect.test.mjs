import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import { Forwarder } from '../support/forwarder.mjs';
import { file } from '../support/resources.mjs';
import { framesOf, listen, next, subscribe, useStage } from '../support/stage.mjs';

const stage = useStage();

/** pusher-js reconnects within this time after a refused connection. */
const RETRY_MS = 25_000;

describe('a restart behind a load balancer', () => {
  let forwarder;
  before(async () => {
    forwarder = await Forwarder.start(file, stage.server);
  });

  test('closes connections with 4100, and clients reconnect, subscribe and sign in again', async (t) => {
    const { port } = forwarder;
    const ada = await stage.signIn(t, { user: 'ada', port });
    const bob = await stage.connect(t, { user: 'bob', port });
    const names = ['news', 'private-news', 'private-encrypted-news', 'cache-news', 'presence-news'];
    for (const name of names) await subscribe(ada, name);
    await subscribe(bob, 'presence-news');
    const oldSocketId = ada.connection.socket_id;
    const errors = listen(ada.connection, 'error');
    const back = [
      next(ada, 'pusher:signin_success'),
      next(bob.connection, 'connected'),
      ...names.map((name) => next(ada.channel(name), 'pusher:subscription_succeeded')),
    ];

    forwarder.hold();
    await stage.server.restart();
    forwarder.release();
    const [{ data }] = await errors.take();
    assert.equal(data.code, 4100);
    await Promise.all(back);
    assert.notEqual(ada.connection.socket_id, oldSocketId);

    for (const name of names) {
      const inbox = listen(ada.channel(name), 'greeted');
      await stage.sdk.main.trigger(name, 'greeted', { name });
      assert.deepEqual((await inbox.take())[0], { name });
    }
    await membersAre(ada.channel('presence-news'), ['ada', 'bob']);
    const hello = next(ada.user, 'hello');
    await stage.sdk.main.sendToUser('ada', 'hello', 1);
    assert.equal(await hello, 1);
  });

  async function membersAre(channel, ids) {
    const changes = listen(channel, 'pusher:member_added', 'pusher:subscription_succeeded');
    while (Object.keys(channel.members.members).sort().join() !== ids.join()) await changes.take();
  }
});

test('a client reconnects to a server that was restarted on its port', async (t) => {
  const channel = 'news-after-restart';
  const pusher = await stage.connect(t);
  await subscribe(pusher, channel);
  const oldSocketId = pusher.connection.socket_id;
  const back = next(pusher.connection, 'connected', RETRY_MS);
  await stage.server.restart();
  await back;
  assert.notEqual(pusher.connection.socket_id, oldSocketId);

  const frames = framesOf(pusher, channel);
  if (!pusher.channel(channel).subscribed) await next(pusher.channel(channel), 'pusher:subscription_succeeded');
  const fence = frames.takeUntil(({ event }) => event === 'fence');
  await stage.sdk.main.trigger(channel, 'fence', {});
  assert.deepEqual(await fence, { event: 'fence', data: {} });
});

/** A slower restart proves nothing: pusher-js tries to connect after a second, and then again after 15 s. */
const QUICK_RESTART_MS = 800;

test('all clients reconnect within 5 s after a quick restart without a load balancer', async (t) => {
  const pushers = await Promise.all(Array.from({ length: 20 }, () => stage.connect(t)));
  for (let attempt = 0; attempt < 5; attempt += 1) {
    let firstClosedAt = Infinity;
    const back = pushers.map(({ connection }) => {
      const closed = next(connection, 'error', RETRY_MS).then(() => {
        firstClosedAt = Math.min(firstClosedAt, performance.now());
      });
      return closed.then(() => next(connection, 'connected', RETRY_MS)).then(() => performance.now());
    });
    await stage.server.restart();
    const listeningAt = performance.now();
    const lastBackAt = Math.max(...(await Promise.all(back)));
    if (listeningAt - firstClosedAt > QUICK_RESTART_MS) continue;
    assert.ok(lastBackAt - firstClosedAt < 5_000, `the last client reconnected after ${lastBackAt - firstClosedAt} ms`);
    return;
  }
  assert.fail(`no restart took less than ${QUICK_RESTART_MS} ms`);
});
