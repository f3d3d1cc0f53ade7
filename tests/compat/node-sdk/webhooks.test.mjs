/** Webhooks, checked by the Node SDK, while pusher-js clients do what they tell of. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { APPS } from '../support/pusherd.mjs';
import { startReceiver } from '../support/receiver.mjs';
import { subscribe, useStage } from '../support/stage.mjs';

/** One for each app that has webhooks. */
const receivers = {};

const stage = useStage({
  apps: async () => {
    for (const app of ['main', 'counting']) receivers[app] = await startReceiver();
    const types = ['channel_occupied', 'channel_vacated', 'member_added', 'member_removed', 'client_event', 'cache_miss'];
    // One after the other, whatever the channel.
    const batched = { webhook_batching: true, webhook_batching_ms: 1 };
    return {
      main: { webhooks: [{ url: receivers.main.url, event_types: [...types, 'user_online', 'user_offline'] }], ...batched },
      counting: { webhooks: [{ url: receivers.counting.url, event_types: ['subscription_count'] }], ...batched },
    };
  },
});

after(() => Promise.all(Object.values(receivers).map((receiver) => receiver.close())));

const waiting = [];

/** The next event, after the SDK has found its request good. */
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

test('a channel is occupied with the first subscriber and vacated without the last', async (t) => {
  const channel = stage.unique('news');
  const [one, two] = [await stage.connect(t), await stage.connect(t)];
  await subscribe(one, channel);
  await subscribe(two, channel);
  assert.deepEqual(await event(), occupied(channel));
  one.disconnect();
  two.unsubscribe(channel);
  assert.deepEqual(await event(), vacated(channel));
});

test('members come and go, client events are told, and a reload is not', async (t) => {
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

test('an empty cache is told of', async (t) => {
  const channel = stage.unique('cache-btc');
  const pusher = await stage.connect(t);
  await subscribe(pusher, channel);
  assert.deepEqual(await event(), occupied(channel));
  assert.deepEqual(await event(), { name: 'cache_miss', channel });
  pusher.disconnect();
  assert.deepEqual(await event(), vacated(channel));
});

test('signed-in users come and go', async (t) => {
  const pusher = await stage.signIn(t, { user: 'bob' });
  assert.deepEqual(await event(), { name: 'user_online', user_id: 'bob' });
  pusher.disconnect();
  assert.deepEqual(await event(), { name: 'user_offline', user_id: 'bob' });
});

test('the number of subscribers is told', async (t) => {
  const channel = stage.unique('news');
  for (const count of [1, 2]) {
    await subscribe(await stage.connect(t, { app: 'counting' }), channel);
    assert.deepEqual(await event('counting'), { name: 'subscription_count', channel, subscription_count: count });
  }
});

test('the SDK refuses what was changed, and what another app signed', async (t) => {
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
