import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { FORGERIES } from '../support/auth.mjs';
import { errorsOf, framesOf, listen, refused, roundTrip, subscribe, useStage } from '../support/stage.mjs';

const stage = useStage();

const PRIVATE_PREFIXES = ['private-', 'private-cache-', 'private-encrypted-', 'private-encrypted-cache-'];
const PRESENCE_PREFIXES = ['presence-', 'presence-cache-'];

describe('public channels', () => {
  test('an event reaches every subscriber with its data', async (t) => {
    const channel = stage.unique('news');
    const clients = await Promise.all([stage.connect(t), stage.connect(t)]);
    const inboxes = [];
    for (const pusher of clients) {
      inboxes.push(listen(await subscribe(pusher, channel), 'App\\Events\\Greeted'));
    }
    await stage.sdk.main.trigger(channel, 'App\\Events\\Greeted', { hello: 'world' });
    for (const inbox of inboxes) assert.deepEqual((await inbox.take())[0], { hello: 'world' });
  });

  test('an event reaches the subscribers of its channel only', async (t) => {
    const [here, there] = [stage.unique('news'), stage.unique('news')];
    const pusher = await stage.connect(t);
    const frames = listen(pusher.connection, 'message');
    await subscribe(pusher, here);
    await frames.take();

    await stage.sdk.main.trigger(there, 'greeted', {});
    await stage.sdk.main.trigger(here, 'fence', {});
    assert.deepEqual(await frames.take(), [{ event: 'fence', channel: here, data: {} }]);
  });

  test('an event of one app does not reach the same channel of another app', async (t) => {
    const channel = stage.unique('news');
    const pusher = await stage.connect(t, { app: 'quiet' });
    const frames = framesOf(pusher, channel);
    await subscribe(pusher, channel);
    await frames.take();

    await stage.sdk.main.trigger(channel, 'greeted', {});
    await stage.sdk.quiet.trigger(channel, 'fence', {});
    assert.deepEqual(await frames.take(), { event: 'fence', data: {} });
  });

  test('the first frame is subscription_succeeded with the data {}', async (t) => {
    const channel = stage.unique('news');
    const pusher = await stage.connect(t);
    const frames = framesOf(pusher, channel);
    await subscribe(pusher, channel);
    assert.deepEqual(await frames.take(), { event: 'pusher_internal:subscription_succeeded', data: {} });
  });

  test('a name that only resembles a private or presence channel needs no authorisation', async (t) => {
    const pusher = await stage.connect(t);
    for (const name of ['privateroom', 'presence', 'cached', 'room-private-x', 'cache-private-x']) {
      await subscribe(pusher, name);
    }
  });

  test('a channel name may contain every allowed character', async (t) => {
    const channel = stage.unique('azAZ09_-=@,.;');
    const pusher = await stage.connect(t);
    const inbox = listen(await subscribe(pusher, channel), 'greeted');
    await stage.sdk.main.trigger(channel, 'greeted', 1);
    assert.equal((await inbox.take())[0], 1);
  });

  test('a channel name with another character is refused with 400', async (t) => {
    for (const name of ['with space', 'a/b', 'a:b', 'ünicode', 'a#b', '%41', 'a\nb']) {
      const pusher = await stage.connect(t);
      const errors = errorsOf(pusher);
      const { type, status } = await refused(pusher, name);
      assert.deepEqual({ type, status }, { type: 'InvalidChannel', status: 400 }, name);
      assert.equal((await errors.take()).code, null);
      await roundTrip(pusher);
    }
  });

  test('a name of 200 characters is accepted, one of 201 is refused with 413', async (t) => {
    const pusher = await stage.connect(t);
    const name = stage.unique('n'.repeat(150)).padEnd(200, 'x');
    await subscribe(pusher, name);
    const { type, status } = await refused(pusher, `${name}x`);
    assert.deepEqual({ type, status }, { type: 'LimitReached', status: 413 });
  });

  test('after unsubscribing, no event arrives', async (t) => {
    const [left, kept] = [stage.unique('news'), stage.unique('news')];
    const pusher = await stage.connect(t);
    await subscribe(pusher, left);
    await subscribe(pusher, kept);
    const frames = listen(pusher.connection, 'message');
    await stage.sdk.main.trigger(left, 'before', {});
    assert.equal((await frames.take())[0].event, 'before');

    pusher.unsubscribe(left);
    await roundTrip(pusher);
    assert.equal((await frames.take())[0].event, 'pusher:pong');
    await stage.sdk.main.trigger(left, 'after', {});
    await stage.sdk.main.trigger(kept, 'fence', {});
    assert.equal((await frames.take())[0].event, 'fence');
  });

  test('unsubscribing and subscribing in direct succession ends subscribed', async (t) => {
    const channel = stage.unique('news');
    const pusher = await stage.connect(t);
    await subscribe(pusher, channel);
    pusher.unsubscribe(channel);
    const inbox = listen(await subscribe(pusher, channel), 'greeted');
    await stage.sdk.main.trigger(channel, 'greeted', 1);
    assert.equal((await inbox.take())[0], 1);
  });

  test('subscribing twice succeeds twice and delivers once', async (t) => {
    const channel = stage.unique('news');
    const pusher = await stage.connect(t);
    await subscribe(pusher, channel);
    const frames = framesOf(pusher, channel);
    pusher.send_event('pusher:subscribe', { auth: '', channel });
    assert.equal((await frames.take()).event, 'pusher_internal:subscription_succeeded');

    await stage.sdk.main.trigger(channel, 'greeted', {});
    await stage.sdk.main.trigger(channel, 'fence', {});
    assert.equal((await frames.take()).event, 'greeted');
    assert.equal((await frames.take()).event, 'fence');
  });

  test('unsubscribing from a channel without a subscription is ignored', async (t) => {
    const pusher = await stage.connect(t);
    const frames = listen(pusher.connection, 'message');
    pusher.send_event('pusher:unsubscribe', { channel: stage.unique('news') });
    await subscribe(pusher, stage.unique('news'));
    assert.equal((await frames.take())[0].event, 'pusher_internal:subscription_succeeded');
  });

  test('300 concurrent subscriptions all succeed', async (t) => {
    const prefix = stage.unique('many');
    const pusher = await stage.connect(t);
    const names = Array.from({ length: 300 }, (_, i) => `${prefix}-${i}`);
    await Promise.all(names.map((name) => subscribe(pusher, name)));
    assert.equal(pusher.connection.state, 'connected');
    assert.equal(pusher.allChannels().filter((channel) => channel.subscribed).length, 300);
  });
});

describe('private channels', () => {
  test('an authorised client is subscribed and receives events', async (t) => {
    const channel = stage.unique('private-room');
    const pusher = await stage.connect(t, { user: 'ada' });
    const inbox = listen(await subscribe(pusher, channel), 'greeted');
    await stage.sdk.main.trigger(channel, 'greeted', { a: 1 });
    assert.deepEqual((await inbox.take())[0], { a: 1 });
  });

  test('the older options `authEndpoint` and `auth` work', async (t) => {
    const pusher = await stage.connect(t, {
      authEndpoint: `${stage.auth.url}/broadcasting/auth`,
      auth: { headers: { 'X-User': 'ada' } },
    });
    await subscribe(pusher, stage.unique('private-room'));
  });

  test('signed `channel_data` is accepted on a private channel', async (t) => {
    const pusher = await stage.connect(t, { user: 'ada', params: { data: '{"note":"x"}' } });
    await subscribe(pusher, stage.unique('private-room'));
  });

  test('a rejection by the auth endpoint reaches the channel, and the connection stays open', async (t) => {
    const pusher = await stage.connect(t);
    const { type, status } = await refused(pusher, stage.unique('private-room'));
    assert.deepEqual({ type, status }, { type: 'AuthError', status: 403 });
    assert.equal(pusher.connection.state, 'connected');
  });

  for (const forge of Object.keys(FORGERIES).filter((name) => !/ data$/.test(name))) {
    test(`an authorisation ${forge} is refused with 401 and 4009`, async (t) => {
      const channel = stage.unique('private-room');
      const pusher = await stage.connect(t, { user: 'mallory', params: { forge } });
      await assertRefused(pusher, channel);
    });
  }

  for (const prefix of [...PRIVATE_PREFIXES, ...PRESENCE_PREFIXES]) {
    test(`${prefix}* needs an authorisation`, async (t) => {
      const pusher = await stage.connect(t);
      for (const auth of [{}, { auth: '' }, { auth: null }, { auth: 7 }, { auth: {} }, { auth: 'demo-key' }]) {
        const channel = stage.unique(`${prefix}room`);
        const frames = framesOf(pusher, channel);
        const data = JSON.stringify({ user_id: 'mallory' });
        pusher.send_event('pusher:subscribe', { ...auth, channel, channel_data: data });
        const { event, data: error } = await frames.take();
        assert.equal(event, 'pusher:subscription_error', JSON.stringify(auth));
        assert.deepEqual([error.type, error.status], ['AuthError', 401]);
        const response = await stage.sdk.main.get({ path: `/channels/${channel}` });
        assert.deepEqual(await response.json(), { occupied: false });
      }
    });
  }

  test('a failed second subscription leaves the first in place', async (t) => {
    const channel = stage.unique('private-room');
    const pusher = await stage.connect(t, { user: 'ada' });
    await subscribe(pusher, channel);
    const frames = framesOf(pusher, channel);
    pusher.send_event('pusher:subscribe', { auth: 'demo-key:00', channel });
    assert.equal((await frames.take()).event, 'pusher:subscription_error');
    await stage.sdk.main.trigger(channel, 'fence', {});
    assert.deepEqual(await frames.take(), { event: 'fence', data: {} });
  });
});

/** Asserts that channel and connection get an error, no event of the channel arrives, and the connection stays open. */
async function assertRefused(pusher, channel) {
  const errors = errorsOf(pusher);
  const frames = framesOf(pusher, channel);
  const { type, status, error } = await refused(pusher, channel);
  assert.deepEqual({ type, status }, { type: 'AuthError', status: 401 });
  assert.equal(typeof error, 'string');
  assert.equal((await frames.take()).event, 'pusher:subscription_error');

  const { code, message } = await errors.take();
  assert.equal(code, 4009);
  assert.match(message, new RegExp(channel.replaceAll('.', '\\.')));

  const open = stage.unique('news');
  await subscribe(pusher, open);
  const received = listen(pusher.connection, 'message');
  await stage.sdk.main.trigger(channel, 'secret', {});
  await stage.sdk.main.trigger(open, 'fence', {});
  assert.deepEqual(await received.take(), [{ event: 'fence', channel: open, data: {} }]);
  assert.equal(pusher.connection.state, 'connected');
}
