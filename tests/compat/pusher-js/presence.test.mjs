import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errorsOf, framesOf, listen, next, refused, roundTrip, subscribe, useStage } from '../support/stage.mjs';

const stage = useStage();

test('a new member gets all members including itself, and the others get the new member', async (t) => {
  const channel = stage.unique('presence-room');
  const ada = await stage.connect(t, { user: 'ada', params: { info: '{"name":"Ada"}' } });
  const adasRoom = await subscribe(ada, channel);
  assert.equal(adasRoom.members.count, 1);
  assert.deepEqual(adasRoom.members.me, { id: 'ada', info: { name: 'Ada' } });

  const added = next(adasRoom, 'pusher:member_added');
  const zoe = await stage.connect(t, { user: 'zoe', params: { info: '{"name":"Zoë 😀"}' } });
  const zoesRoom = await subscribe(zoe, channel);
  assert.deepEqual(await added, { id: 'zoe', info: { name: 'Zoë 😀' } });
  assert.equal(adasRoom.members.count, 2);
  assert.equal(zoesRoom.members.count, 2);
  assert.deepEqual(zoesRoom.members.get('ada'), { id: 'ada', info: { name: 'Ada' } });
  assert.deepEqual(zoesRoom.members.me, { id: 'zoe', info: { name: 'Zoë 😀' } });
});

test('ids, hash and count of subscription_succeeded are consistent', async (t) => {
  const channel = stage.unique('presence-room');
  for (const user of ['ada', 'bob']) await subscribe(await stage.connect(t, { user }), channel);
  const pusher = await stage.connect(t, { user: 'cleo' });
  const frames = framesOf(pusher, channel);
  await subscribe(pusher, channel);
  const { event, data } = await frames.take();
  assert.equal(event, 'pusher_internal:subscription_succeeded');
  assert.deepEqual(data.presence.ids, ['ada', 'bob', 'cleo']);
  assert.deepEqual(Object.keys(data.presence.hash).sort(), ['ada', 'bob', 'cleo']);
  assert.equal(data.presence.count, 3);
});

test('unsubscribing removes the member, and so does disconnecting', async (t) => {
  const channel = stage.unique('presence-room');
  const room = await subscribe(await stage.connect(t, { user: 'ada' }), channel);
  const removed = listen(room, 'pusher:member_removed');
  for (const leave of [(pusher) => pusher.unsubscribe(channel), (pusher) => pusher.disconnect()]) {
    const bob = await stage.connect(t, { user: 'bob' });
    await subscribe(bob, channel);
    leave(bob);
    assert.equal((await removed.take())[0].id, 'bob');
    assert.equal(room.members.count, 1);
  }
});

test('a user with two connections is added once and removed once', async (t) => {
  const channel = stage.unique('presence-room');
  const ada = await stage.connect(t, { user: 'ada' });
  await subscribe(ada, channel);
  const frames = framesOf(ada, channel);

  const [phone, laptop] = [await stage.connect(t, { user: 'bob' }), await stage.connect(t, { user: 'bob' })];
  await subscribe(phone, channel);
  const room = await subscribe(laptop, channel);
  assert.equal(room.members.count, 2);
  phone.unsubscribe(channel);
  await roundTrip(phone);
  await stage.sdk.main.trigger(channel, 'fence', {});
  laptop.unsubscribe(channel);

  assert.equal((await frames.take()).event, 'pusher_internal:member_added');
  assert.equal((await frames.take()).event, 'fence');
  const last = await frames.take();
  assert.deepEqual(last, { event: 'pusher_internal:member_removed', data: { user_id: 'bob' } });
});

test('the info of a user is that of the first connection until the last has unsubscribed', async (t) => {
  const channel = stage.unique('presence-room');
  const first = await stage.connect(t, { user: 'bob', params: { info: '"first"' } });
  await subscribe(first, channel);
  const second = await stage.connect(t, { user: 'bob', params: { info: '"second"' } });
  assert.equal((await subscribe(second, channel)).members.get('bob').info, 'first');

  first.unsubscribe(channel);
  await roundTrip(first);
  const ada = await stage.connect(t, { user: 'ada' });
  assert.equal((await subscribe(ada, channel)).members.get('bob').info, 'first');

  const removed = next(ada.channel(channel), 'pusher:member_removed');
  second.unsubscribe(channel);
  await removed;
  const third = await stage.connect(t, { user: 'bob', params: { info: '"third"' } });
  assert.equal((await subscribe(third, channel)).members.get('bob').info, 'third');
});

test('user_info may be any JSON value', async (t) => {
  const channel = stage.unique('presence-room');
  const infos = { n: 'null', t: 'true', z: '0', s: '"text"', l: '[1,"two",{"three":3}]', o: '{"deep":{"er":null}}' };
  for (const [user, info] of Object.entries(infos)) {
    await subscribe(await stage.connect(t, { user, params: { info } }), channel);
  }
  const room = await subscribe(await stage.connect(t, { user: 'ada' }), channel);
  for (const [user, info] of Object.entries(infos)) {
    assert.deepEqual(room.members.get(user).info, JSON.parse(info), info);
  }
});

test('a numeric user id and the same digits as a string are one user', async (t) => {
  const channel = stage.unique('presence-room');
  const number = await stage.connect(t, { user: '7', params: { numeric: 'yes' } });
  const room = await subscribe(number, channel);
  assert.deepEqual(room.members.me, { id: 7, info: { name: '7' } });
  const frames = framesOf(number, channel);

  const text = await stage.connect(t, { user: '7' });
  assert.equal((await subscribe(text, channel)).members.count, 1);
  await stage.sdk.main.trigger(channel, 'fence', {});
  assert.equal((await frames.take()).event, 'fence');

  const response = await stage.sdk.main.get({ path: `/channels/${channel}/users` });
  assert.deepEqual(await response.json(), { users: [{ id: '7' }] });
});

test('subscribing again does not change the member, and other members get no event', async (t) => {
  const channel = stage.unique('presence-room');
  const ada = await stage.connect(t, { user: 'ada' });
  const bob = await stage.connect(t, { user: 'bob' });
  await subscribe(ada, channel);
  const adasFrames = framesOf(ada, channel);
  await subscribe(bob, channel);
  assert.equal((await adasFrames.take()).event, 'pusher_internal:member_added');
  const bobsFrames = framesOf(bob, channel);

  const channel_data = JSON.stringify({ user_id: 'bob', user_info: { name: 'Robert' } });
  const { auth } = stage.sdk.main.authorizeChannel(bob.connection.socket_id, channel, JSON.parse(channel_data));
  bob.send_event('pusher:subscribe', { auth, channel_data, channel });
  const { event, data } = await bobsFrames.take();
  assert.equal(event, 'pusher_internal:subscription_succeeded');
  assert.equal(data.presence.count, 2);
  assert.deepEqual(data.presence.hash.bob, { name: 'bob' });

  await stage.sdk.main.trigger(channel, 'fence', {});
  assert.equal((await adasFrames.take()).event, 'fence');
});

test('a connection cannot subscribe to a channel as two users', async (t) => {
  const channel = stage.unique('presence-room');
  const pusher = await stage.connect(t, { user: 'ada' });
  await subscribe(pusher, channel);
  const frames = framesOf(pusher, channel);
  const user = { user_id: 'bob' };
  const { auth, channel_data } = stage.sdk.main.authorizeChannel(pusher.connection.socket_id, channel, user);
  pusher.send_event('pusher:subscribe', { auth, channel_data, channel });
  const { event, data } = await frames.take();
  assert.equal(event, 'pusher:subscription_error');
  assert.deepEqual([data.type, data.status], ['AuthError', 409]);

  const response = await stage.sdk.main.get({ path: `/channels/${channel}/users` });
  assert.deepEqual(await response.json(), { users: [{ id: 'ada' }] });
});

for (const forge of ['made with another secret', 'for other channel data', 'left empty']) {
  test(`an authorisation ${forge} adds no member`, async (t) => {
    const channel = stage.unique('presence-room');
    const ada = await stage.connect(t, { user: 'ada' });
    await subscribe(ada, channel);
    const frames = framesOf(ada, channel);

    const mallory = await stage.connect(t, { user: 'mallory', params: { forge } });
    const errors = errorsOf(mallory);
    assert.equal((await refused(mallory, channel)).status, 401);
    assert.equal((await errors.take()).code, 4009);
    await stage.sdk.main.trigger(channel, 'fence', {});
    assert.equal((await frames.take()).event, 'fence');
  });
}

test('channel data without a valid user id is refused', async (t) => {
  const invalid = [undefined, '', null, true, 1.5, {}, ['x']].map((userId) => ({ user_id: userId }));
  for (const data of [...invalid, ['x']]) {
    const channel = stage.unique('presence-room');
    const pusher = await stage.connect(t);
    const frames = framesOf(pusher, channel);
    const { auth, channel_data } = stage.sdk.main.authorizeChannel(pusher.connection.socket_id, channel, data);
    pusher.send_event('pusher:subscribe', { auth, channel_data, channel });
    const { event, data: error } = await frames.take();
    assert.equal(event, 'pusher:subscription_error', channel_data);
    assert.deepEqual([error.type, error.status], ['AuthError', 401], channel_data);
  }
});

test('a subscription without channel data is refused if the user is not signed in', async (t) => {
  const channel = stage.unique('presence-room');
  const pusher = await stage.connect(t);
  const frames = framesOf(pusher, channel);
  const { auth } = stage.sdk.main.authorizeChannel(pusher.connection.socket_id, channel);
  pusher.send_event('pusher:subscribe', { auth, channel });
  const { event, data } = await frames.take();
  assert.equal(event, 'pusher:subscription_error');
  assert.deepEqual([data.type, data.status], ['AuthError', 401]);
});

test('a signed-in user subscribes without channel data', async (t) => {
  const channel = stage.unique('presence-room');
  const pusher = await stage.signIn(t, { user: 'ada', params: { bare: 'yes', info: '{"name":"Ada"}' } });
  const room = await subscribe(pusher, channel);
  assert.deepEqual(room.members.me, { id: 'ada', info: { name: 'Ada' } });
});

test('user info of 8192 bytes is accepted, one byte more is refused', async (t) => {
  const infoOf = (bytes) => JSON.stringify('x'.repeat(bytes - 2));
  const channel = stage.unique('presence-room');
  await subscribe(await stage.connect(t, { user: 'ada', params: { info: infoOf(8192) } }), channel);
  const bob = await stage.connect(t, { user: 'bob', params: { info: infoOf(8193) } });
  const { type, status } = await refused(bob, channel);
  assert.deepEqual({ type, status }, { type: 'LimitReached', status: 4301 });
});

test('a channel at its member limit refuses new users, but not another connection of a member', async (t) => {
  const channel = stage.unique('presence-room');
  const connect = (user) => stage.connect(t, { app: 'small', user });
  const ada = await connect('ada');
  const frames = framesOf(ada, channel);
  const change = async () => {
    const { event, data } = await frames.take();
    return [event.replace('pusher_internal:', ''), data.user_id];
  };
  await subscribe(ada, channel);
  await frames.take();
  const bob = await connect('bob');
  await subscribe(bob, channel);
  assert.deepEqual(await change(), ['member_added', 'bob']);

  const { type, status } = await refused(await connect('cleo'), channel);
  assert.deepEqual({ type, status }, { type: 'LimitReached', status: 4100 });
  const bobsTablet = await connect('bob');
  await subscribe(bobsTablet, channel);

  bob.unsubscribe(channel);
  await roundTrip(bob);
  await refused(await connect('dora'), channel);
  bobsTablet.unsubscribe(channel);
  await roundTrip(bobsTablet);
  await subscribe(await connect('emil'), channel);
  assert.deepEqual(await change(), ['member_removed', 'bob']);
  assert.deepEqual(await change(), ['member_added', 'emil']);
});
