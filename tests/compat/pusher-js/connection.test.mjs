import assert from 'node:assert/strict';
import { test } from 'node:test';
import { connected, errorsOf, framesOf, listen, next, roundTrip, subscribe, useStage } from '../support/stage.mjs';

const stage = useStage();

test('each client that connects gets its own socket id', async (t) => {
  const states = [];
  const ada = stage.client(t);
  ada.connection.bind('state_change', ({ current }) => states.push(current));
  await connected(ada);
  const bob = await stage.connect(t);

  assert.equal(ada.connection.state, 'connected');
  assert.deepEqual(states, ['connected']);
  assert.match(ada.connection.socket_id, /^[0-9]+\.[0-9]+$/);
  assert.match(bob.connection.socket_id, /^[0-9]+\.[0-9]+$/);
  assert.notEqual(ada.connection.socket_id, bob.connection.socket_id);
});

test('the activity timeout of the settings reaches the client', async (t) => {
  const pusher = await stage.connect(t);
  assert.equal(pusher.connection.activityTimeout, 30_000);
});

test('a ping is answered with a pong whose data is the string "{}"', async (t) => {
  const pusher = await stage.connect(t);
  const frames = listen(pusher.connection, 'message');
  pusher.connection.connection.ping();
  const [pong] = await frames.take();
  assert.equal(pong.event, 'pusher:pong');
  assert.deepEqual(pong.data, {});
});

test('a client that sends nothing else keeps its connection open with pings', async (t) => {
  const pusher = await stage.connect(t, { activityTimeout: 200, pongTimeout: 5_000 });
  const socketId = pusher.connection.socket_id;
  const frames = listen(pusher.connection, 'message');
  for (let i = 0; i < 3; i += 1) {
    const [{ event }] = await frames.take();
    assert.equal(event, 'pusher:pong');
  }
  assert.equal(pusher.connection.state, 'connected');
  assert.equal(pusher.connection.socket_id, socketId);
});

test('an unknown key is rejected with 4001, and the client does not reconnect', async (t) => {
  const pusher = stage.client(t, { key: 'no-such-key' });
  const errors = listen(pusher.connection, 'error');
  await next(pusher.connection, 'disconnected');

  const [error] = await errors.take();
  assert.equal(error.error.data.code, 4001);
  assert.equal(typeof error.error.data.message, 'string');
  assert.equal(pusher.connection.state, 'disconnected');
});

test('an unknown key with escaped characters is rejected with 4001', async (t) => {
  const pusher = stage.client(t, { key: 'demo%2Fkey%00' });
  const errors = listen(pusher.connection, 'error');
  await next(pusher.connection, 'disconnected');
  const [error] = await errors.take();
  assert.equal(error.error.data.code, 4001);
});

test('a path other than /app/{key} is rejected with 4005', async (t) => {
  const pusher = stage.client(t, { wsPath: '/elsewhere' });
  const errors = listen(pusher.connection, 'error');
  await next(pusher.connection, 'disconnected');
  const [error] = await errors.take();
  assert.equal(error.error.data.code, 4005);
});

test('an app with a path prefix is served with and without the prefix', async (t) => {
  for (const wsPath of ['/rt', undefined]) {
    const channel = stage.unique('news');
    const pusher = await stage.connect(t, { app: 'prefixed', ...(wsPath && { wsPath }) });
    const greeted = next(await subscribe(pusher, channel), 'greeted');
    await stage.sdk.prefixed.trigger(channel, 'greeted', { below: wsPath ?? '/' });
    assert.deepEqual(await greeted, { below: wsPath ?? '/' });
  }
});

test('an app without a path prefix is not served under the prefix of another app', async (t) => {
  const pusher = stage.client(t, { wsPath: '/rt' });
  const errors = listen(pusher.connection, 'error');
  await next(pusher.connection, 'disconnected');
  const [error] = await errors.take();
  assert.ok([4001, 4005].includes(error.error.data.code), `code ${error.error.data.code}`);
});

test('an app that requires authorised connections closes unauthorised ones with 4009', async (t) => {
  const options = { app: 'strict', user: 'ada' };
  const joined = await stage.connect(t, options);
  await subscribe(joined, stage.unique('private-room'));
  const signedIn = await stage.signIn(t, options);
  const idle = await stage.connect(t, options);
  await subscribe(idle, stage.unique('news'));
  const errors = listen(idle.connection, 'error');

  // The idle client connected last, so the timeouts of the others have expired before its own.
  await next(idle.connection, 'disconnected');
  assert.equal((await errors.take())[0].data.code, 4009);
  for (const pusher of [joined, signedIn]) {
    await roundTrip(pusher);
    assert.equal(pusher.connection.state, 'connected');
  }
});

test('events that clients may not send are rejected, and the connection stays open', async (t) => {
  for (const event of ['pusher_internal:member_added', 'pusher:nonsense', 'greeting']) {
    const channel = stage.unique('news');
    const sender = await stage.connect(t);
    const receiver = await stage.connect(t);
    await subscribe(sender, channel);
    await subscribe(receiver, channel);
    const errors = errorsOf(sender);
    const frames = framesOf(receiver, channel);

    sender.send_event(event, { user_id: 'x' }, channel);
    const { code, message } = await errors.take();
    assert.equal(code, null, event);
    assert.equal(typeof message, 'string');

    await stage.sdk.main.trigger(channel, 'fence', {});
    assert.deepEqual(await frames.take(), { event: 'fence', data: {} });
    assert.equal(sender.connection.state, 'connected');
  }
});

test('frames that are not messages are rejected, and the connection stays open', async (t) => {
  for (const frame of ['', 'hello', '[]', '{}', '{"event":7}', '{"event":"pusher:subscribe"', 'null']) {
    const pusher = await stage.connect(t);
    const errors = errorsOf(pusher);
    pusher.connection.send(frame);
    const { code } = await errors.take();
    assert.equal(code, null, frame);
    await roundTrip(pusher);
  }
});

test('the subscriptions of a client end when it disconnects', async (t) => {
  const channel = stage.unique('news');
  const leaver = await stage.connect(t);
  const watcher = await stage.connect(t, { user: 'watcher' });
  const room = await subscribe(watcher, `presence-${channel}`);
  const other = await stage.connect(t, { user: 'leaver' });
  const added = next(room, 'pusher:member_added');
  await subscribe(other, `presence-${channel}`);
  await added;
  await subscribe(leaver, channel);

  const removed = next(room, 'pusher:member_removed');
  leaver.disconnect();
  other.disconnect();
  assert.equal((await removed).id, 'leaver');

  const response = await stage.sdk.main.get({ path: `/channels/presence-${channel}`, params: { info: 'user_count' } });
  assert.deepEqual(await response.json(), { occupied: true, user_count: 1 });
});
