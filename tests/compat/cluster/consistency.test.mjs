/** Clients and applications see three nodes over one Redis as one server. */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { ClusterStage } from '../support/cluster.mjs';
import { file } from '../support/resources.mjs';
import { eventually, listen, next, roundTrip, subscribe } from '../support/stage.mjs';

let stage;
before(async () => {
  stage = await ClusterStage.start(file);
});

const on = (at) => ({ port: stage.nodes[at].port });
const NODES = [0, 1, 2];

test('an event published to any node reaches the subscribers of all nodes, except its sender', async (t) => {
  const channel = stage.unique('private-news');
  const recorders = await Promise.all(NODES.map((at) => stage.recorder(t, channel, { at, user: 'ada' })));
  for (const at of NODES) await stage.sdkOn(at).trigger(channel, 'greeted', { at });
  const { socket_id: sender } = recorders[1].pusher.connection;
  await stage.sdkOn(0).trigger(channel, 'skipped', {}, { socket_id: sender });
  recorders[2].channel.trigger('client-typing', { on: true });
  await roundTrip(recorders[2].pusher);
  for (const recorder of recorders) await recorder.fenced(stage, 0);

  const greetings = NODES.map((at) => ['greeted', { at }]);
  const [skipped, typing] = [['skipped', {}], ['client-typing', { on: true }]];
  assert.deepEqual(recorders[0].events, [...greetings, skipped, typing]);
  assert.deepEqual(recorders[1].events, [...greetings, typing]);
  assert.deepEqual(recorders[2].events, [...greetings, skipped]);
  await stage.webhooks.expect(channel, ['channel_occupied', 'client_event']);
});

test('subscribers of all nodes receive concurrent events in the same order', async (t) => {
  const channel = stage.unique('news');
  const recorders = await Promise.all(NODES.map((at) => stage.recorder(t, channel, { at })));
  const publishing = NODES.flatMap((at) =>
    Array.from({ length: 30 }, (_, number) => stage.sdkOn(at).trigger(channel, 'said', `${at} ${number}`)),
  );
  await Promise.all(publishing);
  for (const recorder of recorders) await recorder.fenced(stage, 0);
  const [first, ...others] = recorders.map(({ events }) => events);
  assert.equal(new Set(first.map(([, data]) => data)).size, publishing.length);
  assert.equal(first.length, publishing.length);
  for (const other of others) assert.deepEqual(other, first);
});

test('all nodes have the same members, and report each user once as added and once as removed', async (t) => {
  const channel = stage.unique('presence-room');
  const ada = await stage.recorder(t, channel, { at: 0, user: 'ada' });
  const bob = await stage.recorder(t, channel, { at: 1, user: 'bob' });
  const phone = await stage.recorder(t, channel, { at: 1, user: 'cleo' });
  const laptop = await stage.recorder(t, channel, { at: 2, user: 'cleo' });
  await stage.converged(channel, [ada, bob, phone, laptop], ['ada', 'bob', 'cleo']);

  phone.pusher.disconnect();
  await eventually(async () => {
    const answer = await stage.get(0, `/channels/${channel}`, { info: 'user_count,subscription_count' });
    assert.deepEqual(answer, { occupied: true, user_count: 3, subscription_count: 3 });
  });
  laptop.pusher.disconnect();
  await stage.converged(channel, [ada, bob], ['ada', 'bob']);
  assert.deepEqual(ada.changes, ['+bob', '+cleo', '-cleo']);
  assert.deepEqual(bob.changes, ['+cleo', '-cleo']);

  bob.channel.trigger('client-typing', 1);
  await roundTrip(bob.pusher);
  await ada.fenced(stage, 2);
  assert.deepEqual(ada.events, [['client-typing', 1]]);

  bob.pusher.disconnect();
  await stage.converged(channel, [ada], ['ada']);
  ada.pusher.disconnect();
  await stage.webhooks.expect(channel, [
    'channel_occupied',
    'member_added ada',
    'member_added bob',
    'member_added cleo',
    'client_event bob',
    'member_removed cleo',
    'member_removed bob',
    'member_removed ada',
    'channel_vacated',
  ]);
  for (const at of NODES) {
    const info = await stage.get(at, `/channels/${channel}`, { info: 'user_count' });
    assert.deepEqual(info, { occupied: false, user_count: 0 });
  }
  assert.deepEqual(stage.webhooks.duplicates, []);
});

test('a user that joins on two nodes at once is added once', async (t) => {
  const channel = stage.unique('presence-room');
  const users = Array.from({ length: 9 }, (_, number) => `user-${number}`);
  const both = users.flatMap((user, at) => [
    stage.recorder(t, channel, { at: at % 3, user }),
    stage.recorder(t, channel, { at: (at + 1) % 3, user }),
  ]);
  const recorders = await Promise.all(both);
  await stage.converged(channel, recorders, users);
  await eventually(() => assert.equal(stage.webhooks.of(channel).length, 1 + users.length));
  const [first, ...added] = stage.webhooks.of(channel);
  assert.equal(first, 'channel_occupied');
  assert.deepEqual(added.sort(), users.map((user) => `member_added ${user}`));
});

test('the subscription count covers all nodes', async (t) => {
  const channel = stage.unique('news');
  const connect = (at) => stage.connect(t, { app: 'counting', ...on(at) });
  const ada = await subscribe(await connect(0), channel);
  const [bob, cleo] = [await connect(1), await connect(2)];
  await subscribe(bob, channel);
  const cleos = await subscribe(cleo, channel);
  const count = (number) => () => {
    assert.equal(ada.subscriptionCount, number);
    assert.equal(cleos.subscriptionCount, number);
  };
  await eventually(count(3));
  for (const at of NODES) {
    const params = { info: 'subscription_count', filter_by_prefix: channel };
    const { channels } = await stage.get(at, '/channels', params, 'counting');
    assert.deepEqual(channels, { [channel]: { subscription_count: 3 } });
    assert.deepEqual(await stage.get(at, '/connections', undefined, 'counting'), { connections: 3 });
  }
  bob.disconnect();
  await eventually(count(2));
});

test('watchlists, events to users and terminations work across nodes', async (t) => {
  const [ada, bob] = [stage.unique('ada'), stage.unique('bob')];
  const adas = await stage.connect(t, { user: ada, params: { watchlist: bob }, ...on(0) });
  const [online, offline] = ['online', 'offline'].map((event) => listen(adas.user.watchlist, event));
  adas.signin();
  assert.deepEqual(await offline.take(), [{ name: 'offline', user_ids: [bob] }]);
  const phone = await stage.signIn(t, { user: bob, ...on(1) });
  assert.deepEqual(await online.take(), [{ name: 'online', user_ids: [bob] }]);
  const laptop = await stage.signIn(t, { user: bob, ...on(2) });

  // pusher-js subscribes to the channel of its user after the sign-in.
  for (const { user } of [phone, laptop]) await eventually(() => assert.ok(user.serverToUserChannel?.subscribed));
  const greeted = [phone, laptop].map((pusher) => next(pusher.user, 'greeted'));
  await stage.sdkOn(0).sendToUser(bob, 'greeted', 'hello');
  assert.deepEqual(await Promise.all(greeted), ['hello', 'hello']);

  const errors = [phone, laptop].map((pusher) => next(pusher.connection, 'error'));
  await stage.sdkOn(0).terminateUserConnections(bob);
  for (const { data } of await Promise.all(errors)) assert.equal(data.code, 4009);
  assert.deepEqual(await offline.take(), [{ name: 'offline', user_ids: [bob] }]);
  await stage.webhooks.expect(bob, ['user_online', 'user_offline']);
  assert.equal(adas.connection.state, 'connected');
});

test('all nodes replay the same last event of a cache channel', async (t) => {
  const channel = stage.unique('cache-price');
  const early = await stage.recorder(t, channel, { at: 0 });
  await early.fenced(stage, 0);
  await stage.sdkOn(1).trigger(channel, 'price', { eur: 1 });
  await stage.sdkOn(2).trigger(channel, 'price', { eur: 2 });
  for (const at of NODES) {
    const late = await stage.recorder(t, channel, { at });
    await eventually(() => assert.deepEqual(late.events, [['price', { eur: 2 }]]));
    const { cache } = await stage.get(at, `/channels/${channel}`, { info: 'cache' });
    assert.equal(JSON.parse(cache.data).eur, 2);
  }
  const empty = await stage.recorder(t, stage.unique('cache-price'), { at: 1 });
  await eventually(() => assert.deepEqual(empty.events.map(([event]) => event), ['pusher:cache_miss']));
});
