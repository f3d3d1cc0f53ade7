import assert from 'node:assert/strict';
import { test } from 'node:test';
import { framesOf, listen, subscribe, useStage } from '../support/stage.mjs';

const stage = useStage();

for (const prefix of ['news', 'private-news', 'cache-news', 'private-encrypted-news']) {
  test(`${prefix}: subscribers get the subscription count when it changes`, async (t) => {
    const name = stage.unique(prefix);
    const [ada, bob] = [await connect(t), await connect(t)];
    const adasChannel = ada.subscribe(name);
    const adasCounts = listen(adasChannel, 'pusher:subscription_count');
    assert.equal(await countOf(adasCounts), 1);

    const bobsCounts = listen(bob.subscribe(name), 'pusher:subscription_count');
    assert.equal(await countOf(bobsCounts), 2);
    assert.equal(await countOf(adasCounts), 2);
    assert.equal(adasChannel.subscriptionCount, 2);

    bob.unsubscribe(name);
    assert.equal(await countOf(adasCounts), 1);
    bob.subscribe(name);
    assert.equal(await countOf(adasCounts), 2);
    bob.disconnect();
    assert.equal(await countOf(adasCounts), 1);
  });
}

test('subscription_succeeded precedes the first count', async (t) => {
  const channel = stage.unique('news');
  const pusher = await connect(t);
  const frames = framesOf(pusher, channel);
  await subscribe(pusher, channel);
  assert.equal((await frames.take()).event, 'pusher_internal:subscription_succeeded');
  const count = { event: 'pusher_internal:subscription_count', data: { subscription_count: 1 } };
  assert.deepEqual(await frames.take(), count);
});

test('presence channels get no subscription count', async (t) => {
  const channel = stage.unique('presence-room');
  const pusher = await connect(t);
  const frames = framesOf(pusher, channel);
  await subscribe(pusher, channel);
  await frames.take();
  await stage.sdk.counting.trigger(channel, 'fence', {});
  assert.equal((await frames.take()).event, 'fence');
});

test('an app without subscription counts gets none', async (t) => {
  const channel = stage.unique('news');
  const pusher = await stage.connect(t);
  const frames = framesOf(pusher, channel);
  await subscribe(pusher, channel);
  await frames.take();
  await subscribe(await stage.connect(t), channel);
  await stage.sdk.main.trigger(channel, 'fence', {});
  assert.equal((await frames.take()).event, 'fence');
});

function connect(t) {
  return stage.connect(t, { app: 'counting', user: 'ada' });
}

async function countOf(counts) {
  const [{ subscription_count: count }] = await counts.take();
  return count;
}
