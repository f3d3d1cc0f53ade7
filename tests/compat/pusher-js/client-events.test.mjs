import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errorsOf, framesOf, listen, roundTrip, subscribe, useStage } from '../support/stage.mjs';

const stage = useStage();

/** Two subscribers of a channel, with inboxes of their later frames. */
async function pair(t, channel, options) {
  const [ada, bob] = [
    await stage.connect(t, { ...options, user: 'ada' }),
    await stage.connect(t, { ...options, user: 'bob' }),
  ];
  const [adasFrames, bobsFrames] = [framesOf(ada, channel), framesOf(bob, channel)];
  const [adasChannel, bobsChannel] = [await subscribe(ada, channel), await subscribe(bob, channel)];
  const firstFrames = 1 + Number(/^(private-|presence-)?cache-/.test(channel));
  await adasFrames.takeMany(firstFrames + Number(channel.startsWith('presence-')));
  await bobsFrames.takeMany(firstFrames);
  return { ada, bob, adasChannel, bobsChannel, adasFrames, bobsFrames, errors: errorsOf(ada) };
}

/** Asserts that nothing arrives before a fence. */
async function assertNothingBefore(frames, channel, app = 'main') {
  await stage.sdk[app].trigger(channel, 'fence', {});
  assert.deepEqual(await frames.take(), { event: 'fence', data: {} });
}

for (const prefix of ['private-', 'private-cache-']) {
  test(`${prefix}*: a client event reaches the other subscribers, not its sender`, async (t) => {
    const channel = stage.unique(`${prefix}room`);
    const { adasChannel, adasFrames, bobsFrames } = await pair(t, channel);
    assert.equal(adasChannel.trigger('client-typing', { on: true }), true);
    assert.deepEqual(await bobsFrames.take(), { event: 'client-typing', data: { on: true } });
    await assertNothingBefore(adasFrames, channel);
  });
}

for (const prefix of ['presence-', 'presence-cache-']) {
  test(`${prefix}*: a client event contains the user id of its sender`, async (t) => {
    const channel = stage.unique(`${prefix}room`);
    const { adasChannel, bobsChannel, adasFrames } = await pair(t, channel);
    const inbox = listen(bobsChannel, 'client-typing');
    adasChannel.trigger('client-typing', { on: true });
    assert.deepEqual(await inbox.take(), [{ on: true }, { user_id: 'ada' }]);
    await assertNothingBefore(adasFrames, channel);
  });
}

test('an event of the HTTP API has no user id', async (t) => {
  const channel = stage.unique('presence-room');
  const { bobsChannel } = await pair(t, channel);
  const inbox = listen(bobsChannel, 'greeted');
  await stage.sdk.main.trigger(channel, 'greeted', { a: 1 });
  assert.deepEqual(await inbox.take(), [{ a: 1 }, {}]);
});

test('the user id of a client event is that of its sender, even if the message claims another', async (t) => {
  const channel = stage.unique('presence-room');
  const { ada, bobsFrames } = await pair(t, channel);
  ada.connection.send(
    JSON.stringify({ event: 'client-typing', channel, data: {}, user_id: 'root', socket_id: '1.1', extra: 1 }),
  );
  assert.deepEqual(await bobsFrames.take(), { event: 'client-typing', data: {}, user_id: 'ada' });
});

test('a client event reaches other connections of the same user', async (t) => {
  const channel = stage.unique('presence-room');
  const { adasChannel } = await pair(t, channel);
  const tablet = await stage.connect(t, { user: 'ada' });
  const inbox = listen(await subscribe(tablet, channel), 'client-typing');
  adasChannel.trigger('client-typing', 1);
  assert.deepEqual(await inbox.take(), [1, { user_id: 'ada' }]);
});

test('data of every JSON type arrives unchanged', async (t) => {
  const text = 'text with "quotes" and 😀';
  const values = [{ deep: { er: [1, null] } }, [1, 'two'], text, '', 7, -1.5, true, false, null];
  const channel = stage.unique('private-room');
  const { adasChannel, bobsFrames } = await pair(t, channel);
  for (const data of values) {
    adasChannel.trigger('client-value', data);
    assert.deepEqual(await bobsFrames.take(), { event: 'client-value', data });
  }
});

test('absent data arrives as null', async (t) => {
  const channel = stage.unique('private-room');
  const { adasChannel, bobsFrames } = await pair(t, channel);
  adasChannel.trigger('client-value');
  assert.deepEqual(await bobsFrames.take(), { event: 'client-value', data: null });
});

for (const channelKind of ['news', 'cache-news']) {
  test(`${channelKind}: a client event on a public channel is rejected`, async (t) => {
    const channel = stage.unique(channelKind);
    const { ada, errors, bobsFrames } = await pair(t, channel);
    ada.send_event('client-typing', {}, channel);
    const { code, message } = await errors.take();
    assert.equal(code, null);
    assert.equal(typeof message, 'string');
    await assertNothingBefore(bobsFrames, channel);
    assert.equal(ada.connection.state, 'connected');
  });
}

test('a client event without a subscription to its channel is rejected', async (t) => {
  const channel = stage.unique('private-room');
  const { bobsFrames } = await pair(t, channel);
  const outsider = await stage.connect(t, { user: 'mallory' });
  const errors = errorsOf(outsider);
  outsider.send_event('client-typing', {}, channel);
  assert.equal((await errors.take()).code, null);
  await assertNothingBefore(bobsFrames, channel);
});

test('a client event after unsubscribing is rejected', async (t) => {
  const channel = stage.unique('private-room');
  const { ada, errors, bobsFrames } = await pair(t, channel);
  ada.unsubscribe(channel);
  ada.send_event('client-typing', {}, channel);
  assert.equal((await errors.take()).code, null);
  await assertNothingBefore(bobsFrames, channel);
});

for (const event of ['client-', 'client', 'Client-typing', 'x-client-typing', 'pusher:client-typing']) {
  test(`the event name ${event} is rejected`, async (t) => {
    const channel = stage.unique('private-room');
    const { ada, errors, bobsFrames } = await pair(t, channel);
    ada.send_event(event, {}, channel);
    assert.equal((await errors.take()).code, null);
    await assertNothingBefore(bobsFrames, channel);
  });
}

test('an event name of 200 characters is accepted, one of 201 is rejected', async (t) => {
  const channel = stage.unique('private-room');
  const { ada, errors, bobsFrames } = await pair(t, channel);
  const name = 'client-'.padEnd(200, 'x');
  ada.send_event(name, 1, channel);
  assert.deepEqual(await bobsFrames.take(), { event: name, data: 1 });
  ada.send_event(`${name}x`, 2, channel);
  assert.equal((await errors.take()).code, null);
  await assertNothingBefore(bobsFrames, channel);
});

test('10 240 bytes of data are accepted, one byte more is rejected', async (t) => {
  const channel = stage.unique('private-room');
  const { ada, errors, bobsFrames } = await pair(t, channel);
  const data = 'x'.repeat(10_240);
  ada.send_event('client-big', data, channel);
  assert.deepEqual(await bobsFrames.take(), { event: 'client-big', data });
  ada.send_event('client-big', `${data}x`, channel);
  assert.equal((await errors.take()).code, null);
  await assertNothingBefore(bobsFrames, channel);
});

test('client events beyond 10 per second are rejected with 4301', async (t) => {
  const channel = stage.unique('private-room');
  const { ada, adasChannel, errors, bobsFrames } = await pair(t, channel);
  for (let n = 0; n < 40; n += 1) adasChannel.trigger('client-n', n);
  assert.equal((await errors.take()).code, 4301);
  await roundTrip(ada);
  await stage.sdk.main.trigger(channel, 'fence', {});

  const received = [];
  for (let frame = await bobsFrames.take(); frame.event !== 'fence'; frame = await bobsFrames.take()) {
    received.push(frame.data);
  }
  assert.deepEqual(received.slice(0, 10), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert.ok(received.length < 20, `${received.length} of 40 were delivered at once`);
  assert.equal(ada.connection.state, 'connected');
});

test('an app without client events rejects them', async (t) => {
  const channel = stage.unique('private-room');
  const { adasChannel, errors, bobsFrames } = await pair(t, channel, { app: 'quiet' });
  adasChannel.trigger('client-typing', {});
  assert.equal((await errors.take()).code, null);
  await assertNothingBefore(bobsFrames, channel, 'quiet');
});
