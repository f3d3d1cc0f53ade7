/** Webhooks of what pusher-js clients do, verified by the Node SDK. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { APPS } from '../support/pusherd.mjs';
import { startReceiver } from '../support/receiver.mjs';
import { file } from '../support/resources.mjs';
import { subscribe, useStage } from '../support/stage.mjs';

/** One for each app with webhooks. */
const receivers = {};

const stage = useStage({
  apps: async () => {
    for (const app of ['main', 'counting']) receivers[app] = await startReceiver(file);
    const types = ['channel_occupied', 'channel_vacated', 'member_added', 'member_removed', 'client_event', 'cache_miss'];
    // Batching keeps the order of events across channels.
    const batched = { webhook_batching: true, webhook_batching_ms: 1 };
    return {
      main: { webhooks: [{ url: receivers.main.url, event_types: [...types, 'user_online', 'user_offline'] }], ...batched },
      counting: { webhooks: [{ url: receivers.counting.url, event_types: ['subscription_count'] }], ...batched },
    };
  },
});

const waiting = [];

/** The next event. The SDK has verified its request. */
async function event(app = 'main') {
  while (waiting.length === 0) {
    const webhook = stage.sdk[app].webhook(await receivers[app].requests.take());
    assert.ok(webhook.isValid());
    assert.ok(Math.abs(Date.now() - webhook.getTime().getTime()) < 5_000, `${webhook.getTime()}`);
    waiting.push(...webhook.getEvents());
  }
  return waiting.shift();
}

const occupied = (channel) => ({ name: 'channel_occupied', channel });
const vacated = (channel) => ({ name: 'channel_vacated', channel });

test('the first subscriber causes channel_occupied, and the end of the last subscription channel_vacated', async (t) => {
  const channel = stage.unique('news');
  const [one, two] = [await stage.connect(t), await stage.connect(t)];
  await subscribe(one, channel);
  await subscribe(two, channel);
  assert.deepEqual(await event(), occupied(channel));
  one.disconnect();
  two.unsubscribe(channel);
  assert.deepEqual(await event(), vacated(channel));
});

test('members and client events are reported, and a quick reconnection is not', async (t) => {
  const channel = stage.unique('presence-room');
  const first = await stage.connect(t, { user: 'ada' });
  await subscribe(first, channel);
  assert.deepEqual(await event(), occupied(channel));
  assert.deepEqual(await event(), { name: 'member_added', channel, user_id: 'ada' });

  first.disconnect();
  const ada = await stage.connect(t, { user: 'ada' });
  const room = await subscribe(ada, channel);
  room.trigger('client-typing', { on: true });
  assert.deepEqual(await event(), {
    name: 'client_event',
    channel,
    event: 'client-typing',
    data: '{"on":true}',
    socket_id: ada.connection.socket_id,
    user_id: 'ada',
  });

  ada.disconnect();
  assert.deepEqual(await event(), { name: 'member_removed', channel, user_id: 'ada' });
  assert.deepEqual(await event(), vacated(channel));
});

test('a cache miss is reported', async (t) => {
  const channel = stage.unique('cache-btc');
  const pusher = await stage.connect(t);
  await subscribe(pusher, channel);
  assert.deepEqual(await event(), occupied(channel));
  assert.deepEqual(await event(), { name: 'cache_miss', channel });
  pusher.disconnect();
  assert.deepEqual(await event(), vacated(channel));
});

test('users that sign in and disconnect are reported', async (t) => {
  const pusher = await stage.signIn(t, { user: 'bob' });
  assert.deepEqual(await event(), { name: 'user_online', user_id: 'bob' });
  pusher.disconnect();
  assert.deepEqual(await event(), { name: 'user_offline', user_id: 'bob' });
});

test('the subscription count is reported', async (t) => {
  const channel = stage.unique('news');
  for (const count of [1, 2]) {
    await subscribe(await stage.connect(t, { app: 'counting' }), channel);
    assert.deepEqual(await event('counting'), { name: 'subscription_count', channel, subscription_count: count });
  }
});

test('the SDK rejects a changed request and a request that another app has signed', async (t) => {
  const pusher = await stage.connect(t);
  const channel = stage.unique('news');
  await subscribe(pusher, channel);
  const request = await receivers.main.requests.take();
  const { key, secret } = APPS.main;
  assert.ok(stage.sdk.quiet.webhook(request).isValid({ key, secret }));
  assert.ok(!stage.sdk.quiet.webhook(request).isValid());
  const changed = { ...request, rawBody: request.rawBody.replace('events', 'Events') };
  assert.ok(!stage.sdk.main.webhook(changed).isValid());
});
