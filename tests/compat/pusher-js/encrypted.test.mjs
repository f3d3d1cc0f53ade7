import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errorsOf, framesOf, listen, next, roundTrip, subscribe, useStage } from '../support/stage.mjs';

const stage = useStage();

test('an event is encrypted on the wire, and the subscriber decrypts it', async (t) => {
  const channel = stage.unique('private-encrypted-room');
  const pusher = await stage.connect(t, { user: 'ada' });
  const frames = framesOf(pusher, channel);
  const inbox = listen(await subscribe(pusher, channel), 'secret');
  assert.deepEqual(await frames.take(), { event: 'pusher_internal:subscription_succeeded', data: {} });

  const payload = { text: 'Grüße 😀', list: [1, null, ''] };
  await stage.sdk.main.trigger(channel, 'secret', payload);
  const { event, data } = await frames.take();
  assert.equal(event, 'secret');
  assert.deepEqual(Object.keys(data).sort(), ['ciphertext', 'nonce']);
  assert.deepEqual((await inbox.take())[0], payload);
});

test('the events of a batch arrive in order', async (t) => {
  const [a, b] = [stage.unique('private-encrypted-a'), stage.unique('private-encrypted-b')];
  const pusher = await stage.connect(t, { user: 'ada' });
  const inboxes = [listen(await subscribe(pusher, a), 'n'), listen(await subscribe(pusher, b), 'n')];
  const batch = Array.from({ length: 10 }, (_, n) => ({ channel: [a, b][n % 2], name: 'n', data: { n } }));
  await stage.sdk.main.triggerBatch(batch);
  for (const [parity, inbox] of inboxes.entries()) {
    const numbers = (await inbox.takeMany(5)).map(([{ n }]) => n);
    assert.deepEqual(numbers, [0, 2, 4, 6, 8].map((n) => n + parity));
  }
});

test('a subscription without the shared secret fails', async (t) => {
  const channel = stage.unique('private-encrypted-room');
  const pusher = await stage.connect(t, {
    channelAuthorization: {
      customHandler: ({ socketId, channelName }, done) => {
        const { auth } = stage.sdk.main.authorizeChannel(socketId, channelName);
        setImmediate(done, null, { auth });
      },
    },
  });
  const { type } = await next(pusher.subscribe(channel), 'pusher:subscription_error');
  assert.equal(type, 'AuthError');
});

test('the client drops an event that was encrypted with another master key', async (t) => {
  const channel = stage.unique('private-encrypted-room');
  const pusher = await stage.connect(t, { user: 'ada' });
  const inbox = listen(await subscribe(pusher, channel), 'secret');
  const otherPublisher = stage.sdkFor('main', { encryptionMasterKeyBase64: Buffer.alloc(32, 9).toString('base64') });
  const frames = framesOf(pusher, channel);
  await otherPublisher.trigger(channel, 'secret', 'garbage');
  await frames.take();
  await stage.sdk.main.trigger(channel, 'secret', 'fence');
  assert.deepEqual((await inbox.take())[0], 'fence');
});

test('client events on an encrypted channel are rejected', async (t) => {
  const channel = stage.unique('private-encrypted-room');
  const [sender, receiver] = [await stage.connect(t, { user: 'ada' }), await stage.connect(t, { user: 'bob' })];
  await subscribe(sender, channel);
  await subscribe(receiver, channel);
  const frames = framesOf(receiver, channel);
  const errors = errorsOf(sender);
  sender.send_event('client-note', { a: 1 }, channel);
  assert.equal((await errors.take()).code, null);
  await roundTrip(sender);
  await stage.sdk.main.trigger(channel, 'fence', {});
  assert.equal((await frames.take()).event, 'fence');
});
