import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { errorsOf, framesOf, listen, next, roundTrip, subscribe, useStage } from '../support/stage.mjs';

const stage = useStage();

describe('sign-in', () => {
  test('signin() succeeds, and the client gets its user data', async (t) => {
    const info = '{"name":"Zoë"}';
    const pusher = await stage.signIn(t, { user: 'ada', params: { info, watchlist: 'bob,cleo' } });
    assert.deepEqual(pusher.user.user_data, { id: 'ada', user_info: { name: 'Zoë' }, watchlist: ['bob', 'cleo'] });
  });

  test('a rejection by the auth endpoint causes `pusher:signin_error`', async (t) => {
    const pusher = await stage.connect(t);
    const error = next(pusher.user, 'pusher:signin_error');
    pusher.signin();
    assert.equal((await error).status, 403);
  });

  const forgeries = [
    'made with another secret',
    'made for another connection',
    'under another key',
    'for other user data',
    'left empty',
    'cut short',
  ];
  for (const forge of forgeries) {
    test(`an authentication ${forge} is rejected with 4009, and the connection stays open`, async (t) => {
      const user = stage.unique('victim');
      const pusher = await stage.connect(t, { user, params: { forge } });
      const errors = errorsOf(pusher);
      const frames = listen(pusher.connection, 'message');
      pusher.signin();
      const { code, message } = await errors.take();
      assert.equal(code, 4009);
      assert.equal(typeof message, 'string');
      assert.equal((await frames.take())[0].event, 'pusher:error');

      const open = stage.unique('news');
      await subscribe(pusher, open);
      await frames.take();
      await stage.sdk.main.sendToUser(user, 'secret', {});
      await stage.sdk.main.trigger(open, 'fence', {});
      assert.equal((await frames.take())[0].event, 'fence');
      assert.equal(pusher.connection.state, 'connected');
    });
  }

  test('a connection cannot sign in as another user', async (t) => {
    const pusher = await stage.signIn(t, { user: 'ada' });
    const errors = errorsOf(pusher);
    const { auth, user_data } = stage.sdk.main.authenticateUser(pusher.connection.socket_id, { id: 'bob' });
    pusher.send_event('pusher:signin', { auth, user_data });
    await errors.take();

    const hello = next(pusher.user, 'hello');
    await stage.sdk.main.sendToUser('ada', 'hello', { still: 'ada' });
    assert.deepEqual(await hello, { still: 'ada' });
  });

  test('user data without a valid id is rejected', async (t) => {
    for (const user_data of ['{}', '{"id":""}', '{"id":null}', '{"id":{}}', '[]', 'text', '']) {
      const pusher = await stage.connect(t);
      const errors = errorsOf(pusher);
      const { socket_id: socketId } = pusher.connection;
      const signature = stage.sdk.main.config.token.sign(`${socketId}::user::${user_data}`);
      pusher.send_event('pusher:signin', { auth: `demo-key:${signature}`, user_data });
      await errors.take();
      assert.equal(pusher.connection.state, 'connected', user_data);
    }
  });
});

describe('events to a user', () => {
  test('reach every connection of the user, and no other user', async (t) => {
    const [ada, bob] = [stage.unique('ada'), stage.unique('bob')];
    const clients = [await signedInAndReady(t, ada), await signedInAndReady(t, ada)];
    const other = await signedInAndReady(t, bob);
    const inboxes = clients.map((pusher) => listen(pusher.user, 'invoice'));
    const othersInbox = listen(other.user, 'invoice');

    await stage.sdk.main.sendToUser(ada, 'invoice', { total: 7 });
    for (const inbox of inboxes) assert.deepEqual((await inbox.take())[0], { total: 7 });
    await stage.sdk.main.sendToUser(bob, 'invoice', 'fence');
    assert.equal((await othersInbox.take())[0], 'fence');
  });

  test('reach a signed-in user before pusher-js has subscribed to the channel of the user', async (t) => {
    const user = stage.unique('ada');
    const pusher = await stage.connect(t, { user });
    const inbox = listen(pusher.user, 'hello');
    const send = pusher.send_event.bind(pusher);
    // Holds back the subscription to the channel of the user.
    pusher.send_event = (name, data, channel) =>
      (name === 'pusher:subscribe' && data.channel.startsWith('#')) || send(name, data, channel);
    const success = next(pusher, 'pusher:signin_success');
    pusher.signin();
    await success;
    await stage.sdk.main.sendToUser(user, 'hello', { n: 1 });
    assert.deepEqual((await inbox.take())[0], { n: 1 });
    send('pusher:subscribe', { auth: '', channel: `#server-to-user-${user}` });
    await next(pusher.user.serverToUserChannel, 'pusher:subscription_succeeded');
    await stage.sdk.main.sendToUser(user, 'hello', { n: 2 });
    assert.deepEqual((await inbox.take())[0], { n: 2 });
  });

  test('to a user without connections are accepted and dropped', async () => {
    const response = await stage.sdk.main.sendToUser(stage.unique('nobody'), 'invoice', {});
    assert.equal(response.status, 200);
    assert.deepEqual(await response.json(), {});
  });

  test('do not add a channel to the list of channels', async (t) => {
    const user = stage.unique('ada');
    await signedInAndReady(t, user);
    const response = await stage.sdk.main.get({ path: '/channels' });
    const { channels } = await response.json();
    assert.deepEqual(Object.keys(channels).filter((name) => name.startsWith('#')), []);
  });

  test('the channel of a user is refused to connections that are not signed in', async (t) => {
    await assertRefused(await stage.connect(t), stage.unique('ada'));
  });

  test('the channel of a user is refused to other users', async (t) => {
    await assertRefused(await stage.signIn(t, { user: stage.unique('mallory') }), stage.unique('ada'));
  });

  test('the channel of a user is refused even with a signature', async (t) => {
    const pusher = await stage.connect(t);
    const channel = `#server-to-user-${stage.unique('ada')}`;
    const signature = stage.sdk.main.config.token.sign(`${pusher.connection.socket_id}:${channel}`);
    const frames = framesOf(pusher, channel);
    pusher.send_event('pusher:subscribe', { auth: `demo-key:${signature}`, channel });
    assert.equal((await frames.take()).event, 'pusher:subscription_error');
  });

  test('other channel names with # are refused', async (t) => {
    const pusher = await stage.signIn(t, { user: 'ada' });
    for (const channel of ['#server-to-user-', '#private-room', '#x']) {
      const frames = framesOf(pusher, channel);
      pusher.send_event('pusher:subscribe', { auth: '', channel });
      assert.equal((await frames.take()).event, 'pusher:subscription_error', channel);
    }
  });

  async function assertRefused(pusher, user) {
    const channel = `#server-to-user-${user}`;
    const frames = framesOf(pusher, channel);
    const errors = errorsOf(pusher);
    pusher.send_event('pusher:subscribe', { auth: '', channel });
    const { event, data } = await frames.take();
    assert.equal(event, 'pusher:subscription_error');
    assert.deepEqual([data.type, data.status], ['AuthError', 401]);
    assert.equal((await errors.take()).code, 4009);

    const open = stage.unique('news');
    await subscribe(pusher, open);
    const all = listen(pusher.connection, 'message');
    await stage.sdk.main.sendToUser(user, 'secret', {});
    await stage.sdk.main.trigger(open, 'fence', {});
    assert.equal((await all.take())[0].event, 'fence');
  }
});

describe('watchlists', () => {
  test('report which users are online, and later changes', async (t) => {
    const [bob, cleo] = [stage.unique('bob'), stage.unique('cleo')];
    await stage.signIn(t, { user: bob });
    const ada = await stage.connect(t, { user: stage.unique('ada'), params: { watchlist: `${bob},${cleo}` } });
    const online = listen(ada.user.watchlist, 'online');
    const offline = listen(ada.user.watchlist, 'offline');
    ada.signin();
    assert.deepEqual(await online.take(), [{ name: 'online', user_ids: [bob] }]);
    assert.deepEqual(await offline.take(), [{ name: 'offline', user_ids: [cleo] }]);

    const [phone, laptop] = [await stage.signIn(t, { user: cleo }), await stage.signIn(t, { user: cleo })];
    assert.deepEqual(await online.take(), [{ name: 'online', user_ids: [cleo] }]);
    phone.disconnect();
    laptop.disconnect();
    assert.deepEqual(await offline.take(), [{ name: 'offline', user_ids: [cleo] }]);
    await stage.signIn(t, { user: cleo });
    assert.deepEqual(await online.take(), [{ name: 'online', user_ids: [cleo] }]);
  });

  test('do not count a presence member as online', async (t) => {
    const bob = stage.unique('bob');
    await subscribe(await stage.connect(t, { user: bob }), stage.unique('presence-room'));
    const ada = await stage.connect(t, { user: stage.unique('ada'), params: { watchlist: bob } });
    const offline = listen(ada.user.watchlist, 'offline');
    ada.signin();
    assert.deepEqual(await offline.take(), [{ name: 'offline', user_ids: [bob] }]);
  });

  test('keep their first 100 ids, and report the others with 4302', async (t) => {
    const ids = Array.from({ length: 101 }, () => stage.unique('friend'));
    const ada = await stage.connect(t, { user: stage.unique('ada'), params: { watchlist: ids.join(',') } });
    const errors = errorsOf(ada);
    const offline = listen(ada.user.watchlist, 'offline');
    const success = next(ada, 'pusher:signin_success');
    ada.signin();
    await success;
    assert.equal((await errors.take()).code, 4302);
    const [{ user_ids: userIds }] = await offline.take();
    assert.deepEqual([...userIds].sort(), ids.slice(0, 100).sort());
  });

  test('cause no frame for users without one', async (t) => {
    const pusher = await stage.connect(t, { user: stage.unique('ada') });
    const frames = listen(pusher.connection, 'message');
    pusher.signin();
    const events = (await frames.takeMany(2)).map(([{ event }]) => event);
    assert.deepEqual(events, ['pusher:signin_success', 'pusher_internal:subscription_succeeded']);
  });
});

describe('terminating the connections of a user', () => {
  test('closes all of them with 4009, and pusher-js does not reconnect', async (t) => {
    const user = stage.unique('ada');
    const clients = [await signedInAndReady(t, user), await signedInAndReady(t, user)];
    const bystander = await signedInAndReady(t, stage.unique('bob'));
    const closes = clients.map(({ connection }) => ({
      errors: listen(connection, 'error'),
      disconnected: next(connection, 'disconnected'),
    }));

    const response = await stage.sdk.main.terminateUserConnections(user);
    assert.equal(response.status, 200);
    assert.deepEqual(await response.json(), {});
    for (const { errors, disconnected } of closes) {
      const [{ type, data }] = await errors.take();
      assert.equal(type, 'PusherError');
      assert.equal(data.code, 4009);
      await disconnected;
    }
    for (const { connection } of clients) assert.equal(connection.state, 'disconnected');
    await roundTrip(bystander);
    assert.equal(bystander.connection.state, 'connected');
  });

  test('does not close connections of presence members with that user id', async (t) => {
    const user = stage.unique('ada');
    const member = await stage.connect(t, { user });
    await subscribe(member, stage.unique('presence-room'));
    await stage.sdk.main.terminateUserConnections(user);
    await roundTrip(member);
    assert.equal(member.connection.state, 'connected');
  });

  test('of a user without connections succeeds', async () => {
    const response = await stage.sdk.main.terminateUserConnections(stage.unique('nobody'));
    assert.deepEqual(await response.json(), {});
  });

  test('lets the user sign in again on a new connection', async (t) => {
    const user = stage.unique('ada');
    const pusher = await signedInAndReady(t, user);
    const disconnected = next(pusher.connection, 'disconnected');
    await stage.sdk.main.terminateUserConnections(user);
    await disconnected;
    await signedInAndReady(t, user);
  });
});

/** A signed-in client that is subscribed to the channel of its user. */
async function signedInAndReady(t, user) {
  const pusher = await stage.signIn(t, { user });
  const { serverToUserChannel: channel } = pusher.user;
  if (!channel.subscribed) await next(channel, 'pusher:subscription_succeeded');
  return pusher;
}
