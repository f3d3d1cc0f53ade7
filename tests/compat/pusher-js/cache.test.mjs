import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errorsOf, framesOf, listen, next, roundTrip, subscribe, useStage } from '../support/stage.mjs';

const stage = useStage();

for (const prefix of ['cache-', 'private-cache-', 'presence-cache-']) {
  test(`${prefix}*: the first subscriber gets a cache miss, a later one the last event`, async (t) => {
    const channel = stage.unique(`${prefix}price`);
    const early = await stage.connect(t, { user: 'early' });
    const earlyFrames = framesOf(early, channel);
    await subscribe(early, channel);
    assert.equal((await earlyFrames.take()).event, 'pusher_internal:subscription_succeeded');
    assert.deepEqual(await earlyFrames.take(), { event: 'pusher:cache_miss', data: {} });

    for (const eur of [1, 2]) {
      await stage.sdk.main.trigger(channel, 'price', { eur });
      assert.deepEqual(await earlyFrames.take(), { event: 'price', data: { eur } });
    }

    const late = await stage.connect(t, { user: 'late' });
    const lateFrames = framesOf(late, channel);
    await subscribe(late, channel);
    assert.equal((await lateFrames.take()).event, 'pusher_internal:subscription_succeeded');
    assert.deepEqual(await lateFrames.take(), { event: 'price', data: { eur: 2 } });
    await stage.sdk.main.trigger(channel, 'fence', {});
    assert.deepEqual(await lateFrames.take(), { event: 'fence', data: {} });
  });

  test(`${prefix}*: the cache miss and the cached event reach the bindings of the channel`, async (t) => {
    const channel = stage.unique(`${prefix}price`);
    const early = await stage.connect(t, { user: 'early' });
    await next(early.subscribe(channel), 'pusher:cache_miss');
    await stage.sdk.main.trigger(channel, 'price', { eur: 3 });
    const late = await stage.connect(t, { user: 'late' });
    assert.deepEqual(await next(late.subscribe(channel), 'price'), { eur: 3 });
  });
}

test('private-encrypted-cache-*: a later subscriber decrypts the cached event', async (t) => {
  const channel = stage.unique('private-encrypted-cache-price');
  const early = await stage.connect(t, { user: 'early' });
  await next(early.subscribe(channel), 'pusher:cache_miss');
  await stage.sdk.main.trigger(channel, 'price', { eur: 4 });
  const late = await stage.connect(t, { user: 'late' });
  assert.deepEqual(await next(late.subscribe(channel), 'price'), { eur: 4 });
});

test('an event is cached without subscribers, and stays cached after the last one has left', async (t) => {
  const channel = stage.unique('cache-price');
  await stage.sdk.main.trigger(channel, 'price', { eur: 5 });
  for (let i = 0; i < 2; i += 1) {
    const pusher = await stage.connect(t);
    assert.deepEqual(await next(pusher.subscribe(channel), 'price'), { eur: 5 });
    pusher.unsubscribe(channel);
    await roundTrip(pusher);
  }
});

test('a socket that was excluded from an event gets it from the cache when it subscribes again', async (t) => {
  const channel = stage.unique('cache-price');
  const pusher = await stage.connect(t);
  const frames = framesOf(pusher, channel);
  await subscribe(pusher, channel);
  await frames.takeMany(2);
  await stage.sdk.main.trigger(channel, 'price', { eur: 6 }, { socket_id: pusher.connection.socket_id });

  pusher.unsubscribe(channel);
  assert.deepEqual(await next(pusher.subscribe(channel), 'price'), { eur: 6 });
});

test('client events and joins are not cached', async (t) => {
  const channel = stage.unique('presence-cache-room');
  const ada = await stage.connect(t, { user: 'ada' });
  const bob = await stage.connect(t, { user: 'bob' });
  const adasRoom = await subscribe(ada, channel);
  const typing = next(await subscribe(bob, channel), 'client-typing');
  adasRoom.trigger('client-typing', { on: true });
  await typing;

  const cleo = await stage.connect(t, { user: 'cleo' });
  const frames = framesOf(cleo, channel);
  await subscribe(cleo, channel);
  assert.equal((await frames.take()).event, 'pusher_internal:subscription_succeeded');
  assert.equal((await frames.take()).event, 'pusher:cache_miss');
});

test('channels without the prefix cache nothing', async (t) => {
  for (const prefix of ['news', 'private-news', 'presence-news', 'private-x-cache-y', 'cached']) {
    const channel = stage.unique(prefix);
    await stage.sdk.main.trigger(channel, 'old', {});
    const pusher = await stage.connect(t, { user: 'ada' });
    const frames = framesOf(pusher, channel);
    await subscribe(pusher, channel);
    await frames.take();
    await stage.sdk.main.trigger(channel, 'fence', {});
    assert.equal((await frames.take()).event, 'fence', channel);
  }
});

test('a client event to a public cache channel is refused', async (t) => {
  const channel = stage.unique('cache-price');
  const [sender, receiver] = [await stage.connect(t), await stage.connect(t)];
  const senders = await subscribe(sender, channel);
  const frames = framesOf(receiver, channel);
  await subscribe(receiver, channel);
  await frames.takeMany(2);
  const errors = errorsOf(sender);
  senders.trigger('client-price', { eur: 0 });
  assert.equal((await errors.take()).code, null);
  await stage.sdk.main.trigger(channel, 'fence', {});
  assert.equal((await frames.take()).event, 'fence');
});

test('a cached event expires', async (t) => {
  const channel = stage.unique('cache-price');
  const sdk = stage.sdk.forgetful;
  await sdk.trigger(channel, 'price', { eur: 7 });
  const early = await stage.connect(t, { app: 'forgetful' });
  assert.deepEqual(await next(early.subscribe(channel), 'price'), { eur: 7 });

  const isCached = async () => {
    const response = await sdk.get({ path: `/channels/${channel}`, params: { info: 'cache' } });
    return (await response.json()).cache !== null;
  };
  const deadline = Date.now() + 10_000;
  while (await isCached()) assert.ok(Date.now() < deadline, 'the event has not expired within ten seconds');
  const late = await stage.connect(t, { app: 'forgetful' });
  await next(late.subscribe(channel), 'pusher:cache_miss');
});

test('each cache channel has its own event', async (t) => {
  const [a, b] = [stage.unique('cache-a'), stage.unique('cache-b')];
  await stage.sdk.main.trigger([a, b], 'both', {});
  await stage.sdk.main.trigger(a, 'only-a', {});
  const pusher = await stage.connect(t);
  const events = listen(pusher.connection, 'message');
  await subscribe(pusher, a);
  await subscribe(pusher, b);
  const seen = (await events.takeMany(4)).map(([{ event, channel }]) => [channel, event.replace(/.*:/, '')]);
  assert.deepEqual(
    seen.filter(([, event]) => event !== 'subscription_succeeded'),
    [
      [a, 'only-a'],
      [b, 'both'],
    ],
  );
});
