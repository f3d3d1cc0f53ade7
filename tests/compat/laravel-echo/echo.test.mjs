/** laravel-echo 1 and 2, each with the broadcasters `pusher` and `reverb`. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import Echo1 from 'laravel-echo-1';
import Echo2 from 'laravel-echo-2';
import Pusher from 'pusher-js';
import { Inbox } from '../support/inbox.mjs';
import { closeWith } from '../support/resources.mjs';
import { connected, roundTrip, useStage } from '../support/stage.mjs';

const stage = useStage();

const ECHOS = { 'laravel-echo 1': Echo1.default ?? Echo1, 'laravel-echo 2': Echo2 };
const BROADCASTERS = ['pusher', 'reverb'];
const NOTIFICATION = 'Illuminate\\Notifications\\Events\\BroadcastNotificationCreated';

for (const [version, Echo] of Object.entries(ECHOS)) {
  for (const broadcaster of BROADCASTERS) {
    describe(`${version}, broadcaster '${broadcaster}'`, () => suite(Echo, broadcaster));
  }
}

function suite(Echo, broadcaster) {
  /** A connected Echo, configured as Laravel's documentation shows. */
  async function connect(t, { user, params = {} } = {}) {
    const headers = user === undefined ? {} : { 'X-User': user };
    const echo = new Echo({
      broadcaster,
      Pusher,
      key: stage.server.apps.main.key,
      ...(broadcaster === 'pusher' && { cluster: '' }),
      wsHost: stage.server.host,
      wsPort: stage.server.port,
      wssPort: stage.server.port,
      forceTLS: false,
      enabledTransports: ['ws', 'wss'],
      authEndpoint: `${stage.auth.url}/broadcasting/auth`,
      auth: { headers, params },
      userAuthentication: { endpoint: `${stage.auth.url}/broadcasting/user-auth`, headers, params },
    });
    closeWith(t, 'an Echo client', () => echo.disconnect());
    await connected(echo.connector.pusher);
    return echo;
  }

  /** An inbox of the calls of an Echo callback: `listenTo((callback) => channel.listen('Event', callback))`. */
  function listenTo(bind) {
    const inbox = new Inbox('an Echo callback');
    bind((...args) => inbox.put(args[0]));
    return inbox;
  }

  const subscribed = (channel) => listenTo((callback) => channel.subscribed(callback)).take();

  test('a public channel: listen adds the namespace of Laravel', async (t) => {
    const name = stage.unique('orders');
    const echo = await connect(t);
    const channel = echo.channel(name);
    const shipped = listenTo((callback) => channel.listen('OrderShipped', callback));
    await subscribed(channel);
    await stage.sdk.main.trigger(name, 'App\\Events\\OrderShipped', { order: { id: 7 } });
    assert.deepEqual(await shipped.take(), { order: { id: 7 } });
  });

  test('listen: dots separate namespaces, and a leading dot or backslash makes the name literal', async (t) => {
    const name = stage.unique('orders');
    const echo = await connect(t);
    const channel = echo.channel(name);
    const heard = {
      'App\\Events\\Orders\\Shipped': listenTo((callback) => channel.listen('Orders.Shipped', callback)),
      'order.shipped': listenTo((callback) => channel.listen('.order.shipped', callback)),
      'Other\\Event': listenTo((callback) => channel.listen('\\Other\\Event', callback)),
    };
    await subscribed(channel);
    for (const [event, inbox] of Object.entries(heard)) {
      await stage.sdk.main.trigger(name, event, { event });
      assert.deepEqual(await inbox.take(), { event });
    }
  });

  test('stopListening: the callback is not called any more', async (t) => {
    const name = stage.unique('orders');
    const echo = await connect(t);
    const channel = echo.channel(name);
    const inbox = new Inbox('the stopped callback');
    const callback = () => inbox.put('called');
    channel.listen('.shipped', callback);
    await subscribed(channel);
    channel.stopListening('.shipped', callback);
    const fence = listenTo((next) => channel.listen('.fence', next));
    await stage.sdk.main.trigger(name, 'shipped', {});
    await stage.sdk.main.trigger(name, 'fence', {});
    await fence.take();
    inbox.put('nothing');
    assert.equal(await inbox.take(), 'nothing');
  });

  test('listenToAll: the callback gets every event, with the name that listen takes', async (t) => {
    const name = stage.unique('orders');
    const echo = await connect(t);
    const channel = echo.channel(name);
    await subscribed(channel);
    const inbox = new Inbox('listenToAll');
    channel.listenToAll((event, data) => inbox.put([event, data]));
    await stage.sdk.main.trigger(name, 'App\\Events\\OrderShipped', { id: 1 });
    await stage.sdk.main.trigger(name, 'literal', { id: 2 });
    assert.deepEqual(await inbox.take(), ['OrderShipped', { id: 1 }]);
    assert.deepEqual(await inbox.take(), ['.literal', { id: 2 }]);
  });

  test('a private channel: subscribed and listen are called', async (t) => {
    const name = stage.unique('orders');
    const echo = await connect(t, { user: 'ada' });
    const channel = echo.private(name);
    const shipped = listenTo((callback) => channel.listen('OrderShipped', callback));
    await subscribed(channel);
    await stage.sdk.main.trigger(`private-${name}`, 'App\\Events\\OrderShipped', { id: 7 });
    assert.deepEqual(await shipped.take(), { id: 7 });
  });

  test('a private channel: error is called if the application rejects the subscription', async (t) => {
    const echo = await connect(t);
    const errors = listenTo((callback) => echo.private(stage.unique('orders')).error(callback));
    const { type, status } = await errors.take();
    assert.deepEqual({ type, status }, { type: 'AuthError', status: 403 });
  });

  test('a private channel: error is called if the server refuses the subscription', async (t) => {
    const echo = await connect(t, { user: 'mallory', params: { forge: 'made with another secret' } });
    const errors = [
      listenTo((callback) => echo.private(stage.unique('orders')).error(callback)),
      listenTo((callback) => echo.join(stage.unique('orders')).error(callback)),
    ];
    for (const inbox of errors) {
      const { type, status } = await inbox.take();
      assert.deepEqual({ type, status }, { type: 'AuthError', status: 401 });
    }
    assert.equal(echo.connector.pusher.connection.state, 'connected');
  });

  test('an encrypted private channel: listen gets the decrypted event', async (t) => {
    const name = stage.unique('secrets');
    const echo = await connect(t, { user: 'ada' });
    const channel = echo.encryptedPrivate(name);
    const secrets = listenTo((callback) => channel.listen('SecretTold', callback));
    await subscribed(channel);
    await stage.sdk.main.trigger(`private-encrypted-${name}`, 'App\\Events\\SecretTold', { text: 'pssst' });
    assert.deepEqual(await secrets.take(), { text: 'pssst' });
  });

  test('a whisper on a private channel reaches the other subscribers, not its sender', async (t) => {
    const name = stage.unique('chat');
    const [ada, bob] = [await connect(t, { user: 'ada' }), await connect(t, { user: 'bob' })];
    const [adas, bobs] = [ada.private(name), bob.private(name)];
    await Promise.all([subscribed(adas), subscribed(bobs)]);
    const adasInbox = listenTo((callback) => adas.listenForWhisper('typing', callback).listen('.fence', callback));
    const bobsInbox = listenTo((callback) => bobs.listenForWhisper('typing', callback));

    adas.whisper('typing', { name: 'Ada' });
    assert.deepEqual(await bobsInbox.take(), { name: 'Ada' });
    await stage.sdk.main.trigger(`private-${name}`, 'fence', 'fence');
    assert.equal(await adasInbox.take(), 'fence');
  });

  test('a whisper on a presence channel reaches the other members', async (t) => {
    const name = stage.unique('chat');
    const [ada, bob] = [await connect(t, { user: 'ada' }), await connect(t, { user: 'bob' })];
    const [adas, bobs] = [ada.join(name), bob.join(name)];
    await Promise.all([subscribed(adas), subscribed(bobs)]);
    const bobsInbox = listenTo((callback) => bobs.listenForWhisper('typing', callback));
    adas.whisper('typing', { name: 'Ada' });
    assert.deepEqual(await bobsInbox.take(), { name: 'Ada' });
  });

  test('a notification reaches the callback of notification', async (t) => {
    const name = stage.unique('App.Models.User');
    const echo = await connect(t, { user: 'ada' });
    const channel = echo.private(name);
    const notifications = listenTo((callback) => channel.notification(callback));
    await subscribed(channel);
    const invoice = { id: '9f', type: 'App\\Notifications\\InvoicePaid', amount: 12 };
    await stage.sdk.main.trigger(`private-${name}`, NOTIFICATION, invoice);
    assert.deepEqual(await notifications.take(), invoice);
  });

  test('a presence channel: here, joining and leaving get the members', async (t) => {
    const name = stage.unique('room');
    const ada = await connect(t, { user: 'ada', params: { info: '{"id":1,"name":"Ada"}' } });
    const adas = ada.join(name);
    const joining = listenTo((callback) => adas.joining(callback));
    const leaving = listenTo((callback) => adas.leaving(callback));
    assert.deepEqual(await listenTo((callback) => adas.here(callback)).take(), [{ id: 1, name: 'Ada' }]);

    const bob = await connect(t, { user: 'bob', params: { info: '{"id":2,"name":"Bob"}' } });
    const here = await listenTo((callback) => bob.join(name).here(callback)).take();
    assert.deepEqual(here.sort((a, b) => a.id - b.id), [
      { id: 1, name: 'Ada' },
      { id: 2, name: 'Bob' },
    ]);
    assert.deepEqual(await joining.take(), { id: 2, name: 'Bob' });

    bob.leave(name);
    assert.deepEqual(await leaving.take(), { id: 2, name: 'Bob' });
  });

  test('a presence channel: the user info may be true, as a Laravel callback may return', async (t) => {
    const echo = await connect(t, { user: 'ada', params: { info: 'true' } });
    const here = listenTo((callback) => echo.join(stage.unique('room')).here(callback));
    assert.deepEqual(await here.take(), [true]);
  });

  test('a presence channel: leaving is called for a user that disconnects', async (t) => {
    const name = stage.unique('room');
    const [ada, bob] = [await connect(t, { user: 'ada' }), await connect(t, { user: 'bob' })];
    const adas = ada.join(name);
    const leaving = listenTo((callback) => adas.leaving(callback));
    await subscribed(adas);
    await subscribed(bob.join(name));
    bob.disconnect();
    assert.deepEqual(await leaving.take(), { name: 'bob' });
  });

  test('leave: no event of the channel and its private and presence variants arrives', async (t) => {
    const [name, other] = [stage.unique('orders'), stage.unique('orders')];
    const echo = await connect(t, { user: 'ada' });
    const kept = echo.channel(other);
    const channels = [echo.channel(name), echo.private(name), echo.join(name), kept];
    await Promise.all(channels.map(subscribed));
    const { pusher } = echo.connector;
    echo.leave(name);
    await roundTrip(pusher);

    const frames = new Inbox('the connection');
    pusher.connection.bind('message', ({ channel, event }) => frames.put([channel, event]));
    await stage.sdk.main.trigger([name, `private-${name}`, `presence-${name}`], 'after', {});
    await stage.sdk.main.trigger(other, 'fence', {});
    assert.deepEqual(await frames.take(), [other, 'fence']);
  });

  test('toOthers: an event does not reach the excluded socket id of Echo', async (t) => {
    const name = stage.unique('orders');
    const [ada, bob] = [await connect(t, { user: 'ada' }), await connect(t, { user: 'bob' })];
    const [adas, bobs] = [ada.private(name), bob.private(name)];
    await Promise.all([subscribed(adas), subscribed(bobs)]);
    const [adasInbox, bobsInbox] = [adas, bobs].map((channel) =>
      listenTo((callback) => channel.listen('OrderShipped', callback)),
    );
    const event = [`private-${name}`, 'App\\Events\\OrderShipped'];
    await stage.sdk.main.trigger(...event, { n: 1 }, { socket_id: ada.socketId() });
    await stage.sdk.main.trigger(...event, { n: 2 });
    assert.deepEqual(await bobsInbox.take(), { n: 1 });
    assert.deepEqual(await bobsInbox.take(), { n: 2 });
    assert.deepEqual(await adasInbox.take(), { n: 2 });
  });

  test('cache channels replay their last event through channel and join', async (t) => {
    const name = stage.unique('cache-price');
    await stage.sdk.main.trigger(name, 'App\\Events\\PriceSet', { eur: 1 });
    await stage.sdk.main.trigger(`presence-${name}`, 'App\\Events\\PriceSet', { eur: 2 });
    const echo = await connect(t, { user: 'ada' });
    const publicPrice = listenTo((callback) => echo.channel(name).listen('PriceSet', callback));
    const presencePrice = listenTo((callback) => echo.join(name).listen('PriceSet', callback));
    assert.deepEqual(await publicPrice.take(), { eur: 1 });
    assert.deepEqual(await presencePrice.take(), { eur: 2 });
  });
}
