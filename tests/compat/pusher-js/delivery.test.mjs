import assert from 'node:assert/strict';
import { test } from 'node:test';
import { framesOf, listen, subscribe, useStage } from '../support/stage.mjs';

const stage = useStage();

test('500 events arrive once each, in the order in which they were published', async (t) => {
  const channel = stage.unique('news');
  const clients = [await stage.connect(t), await stage.connect(t)];
  const inboxes = [];
  for (const pusher of clients) inboxes.push(listen(await subscribe(pusher, channel), 'n'));

  for (let first = 0; first < 500; first += 10) {
    const batch = Array.from({ length: 10 }, (_, i) => ({ channel, name: 'n', data: { n: first + i } }));
    await stage.sdk.main.triggerBatch(batch);
  }
  const expected = Array.from({ length: 500 }, (_, n) => n);
  for (const inbox of inboxes) {
    assert.deepEqual((await inbox.takeMany(500)).map(([{ n }]) => n), expected);
  }
});

test('all subscribers receive the events of concurrent publishers in the same order', async (t) => {
  const channel = stage.unique('news');
  const inboxes = [];
  for (let i = 0; i < 3; i += 1) inboxes.push(listen(await subscribe(await stage.connect(t), channel), 'n'));
  await Promise.all(Array.from({ length: 100 }, (_, n) => stage.sdk.main.trigger(channel, 'n', { n })));

  const [first, ...others] = await Promise.all(
    inboxes.map(async (inbox) => (await inbox.takeMany(100)).map(([{ n }]) => n)),
  );
  assert.deepEqual([...first].sort((a, b) => a - b), Array.from({ length: 100 }, (_, n) => n));
  for (const other of others) assert.deepEqual(other, first);
});

test('payloads arrive unchanged', async (t) => {
  const channel = stage.unique('news');
  const pusher = await stage.connect(t);
  const frames = framesOf(pusher, channel);
  await subscribe(pusher, channel);
  await frames.take();

  // pusher-js parses the data as JSON, and passes data that is not JSON on as a string.
  const texts = [
    ['plain text', 'plain text'],
    ['', ''],
    ['"5"', '5'],
    ['5', 5],
    ['null', null],
    ['"null"', 'null'],
    ['😀 Grüße 漢字 \u{10FFFF}', '😀 Grüße 漢字 \u{10FFFF}'],
    ['{"a":"\\u00e9\\ud83d\\ude00"}', { a: 'é😀' }],
    ['{"lone":"\\ud83d"}', { lone: '\ud83d' }],
    ['{"html":"</script>","url":"https:\\/\\/example.test\\/"}', { html: '</script>', url: 'https://example.test/' }],
    ['\u0000\u0001\u001f\u007f\u2028\u2029\\"', '\u0000\u0001\u001f\u007f\u2028\u2029\\"'],
    ['{"broken":', '{"broken":'],
    [' {"spaces":  1 } ', { spaces: 1 }],
    ['[]', []],
    ['1e400', Infinity],
  ];
  for (const [sent, received] of texts) {
    await stage.sdk.main.trigger(channel, 'text', sent);
    assert.deepEqual(await frames.take(), { event: 'text', data: received }, sent);
  }
});

test('event names arrive unchanged', async (t) => {
  const channel = stage.unique('news');
  const pusher = await stage.connect(t);
  const frames = framesOf(pusher, channel);
  await subscribe(pusher, channel);
  await frames.take();
  const names = ['App\\Events\\Shipped', 'order.shipped', 'with space', '"quoted"', '😀', 'x'.repeat(200)];
  for (const name of names) {
    await stage.sdk.main.trigger(channel, name, 1);
    assert.deepEqual(await frames.take(), { event: name, data: 1 });
  }
});

test('a payload of 102 400 bytes arrives complete', async (t) => {
  const channel = stage.unique('news');
  const inbox = listen(await subscribe(await stage.connect(t), channel), 'big');
  const data = 'é'.repeat(51_200);
  await stage.sdk.main.trigger(channel, 'big', data);
  assert.equal((await inbox.take())[0], data);
});

test('the excluded socket receives the event on none of the channels', async (t) => {
  const channels = [stage.unique('news'), stage.unique('private-news'), stage.unique('presence-news')];
  const [sender, receiver] = [await stage.connect(t, { user: 'ada' }), await stage.connect(t, { user: 'bob' })];
  for (const channel of channels) {
    await subscribe(receiver, channel);
    await subscribe(sender, channel);
  }
  // Leaves out the member_added that the receiver got for the sender.
  const publishedTo = (pusher) => {
    const inbox = listen(pusher.connection, 'message');
    return () => inbox.takeUntil(([{ event }]) => !event.startsWith('pusher'));
  };
  const [toSender, toReceiver] = [publishedTo(sender), publishedTo(receiver)];
  await stage.sdk.main.trigger(channels, 'greeted', {}, { socket_id: sender.connection.socket_id });
  for (let i = 0; i < channels.length; i += 1) assert.equal((await toReceiver())[0].event, 'greeted');
  await stage.sdk.main.trigger(channels[0], 'fence', {});
  assert.equal((await toSender())[0].event, 'fence');
});

test('an event that excludes an unknown socket id reaches all subscribers', async (t) => {
  const channel = stage.unique('news');
  const inbox = listen(await subscribe(await stage.connect(t), channel), 'greeted');
  await stage.sdk.main.trigger(channel, 'greeted', 1, { socket_id: '1.1' });
  assert.equal((await inbox.take())[0], 1);
});
