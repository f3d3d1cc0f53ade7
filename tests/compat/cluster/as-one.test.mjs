/** Three nodes over one Redis are as one. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { ClusterStage } from '../support/cluster.mjs';
import { eventually, listen, next, settle, subscribe } from '../support/stage.mjs';

let stage;
before(async () => {
  stage = await ClusterStage.start();
});
after(() => stage?.close());

const on = (at) => ({ port: stage.nodes[at].port });
const NODES = [0, 1, 2];

test('an event reaches the subscribers of all nodes, whichever it is published to, but not its sender', async (t) => {
  const channel = stage.unique('private-news');
  const witnesses = await Promise.all(NODES.map((at) => stage.witness(t, channel, { at, user: 'ada' })));
  for (const at of NODES) await stage.sdkOn(at).trigger(channel, 'greeted', { at });
  const { socket_id: sender } = witnesses[1].pusher.connection;
  await stage.sdkOn(0).trigger(channel, 'skipped', {}, { socket_id: sender });
  witnesses[2].channel.trigger('client-typing', { on: true });
  // On one connection, what came before the fence is before it.
  await settle(witnesses[2].pusher);
  for (const witness of witnesses) await witness.fenced(stage, 0);

  const greetings = NODES.map((at) => ['greeted', { at }]);
  const [skipped, typing] = [['skipped', {}], ['client-typing', { on: true }]];
  assert.deepEqual(witnesses[0].heard, [...greetings, skipped, typing]);
  assert.deepEqual(witnesses[1].heard, [...greetings, typing]);
  assert.deepEqual(witnesses[2].heard, [...greetings, skipped]);
  await stage.webhooks.are(channel, ['channel_occupied', 'client_event']);
});

test('what is published at once on all nodes is heard in one order everywhere', async (t) => {
  const channel = stage.unique('news');
  const witnesses = await Promise.all(NODES.map((at) => stage.witness(t, channel, { at })));
  const publishing = NODES.flatMap((at) =>
    Array.from({ length: 30 }, (_, number) => stage.sdkOn(at).trigger(channel, 'said', `${at} ${number}`)),
  );
  await Promise.all(publishing);
  for (const witness of witnesses) await witness.fenced(stage, 0);
  const [first, ...others] = witnesses.map(({ heard }) => heard);
  assert.equal(new Set(first.map(([, data]) => data)).size, publishing.length);
  assert.equal(first.length, publishing.length);
  for (const other of others) assert.deepEqual(other, first);
});

test('presence: one roster, one coming and one going of each user, on all nodes', async (t) => {
  const channel = stage.unique('presence-room');
  const ada = await stage.witness(t, channel, { at: 0, user: 'ada' });
  const bob = await stage.witness(t, channel, { at: 1, user: 'bob' });
  const phone = await stage.witness(t, channel, { at: 1, user: 'cleo' });
  const laptop = await stage.witness(t, channel, { at: 2, user: 'cleo' });
  await stage.agreed(channel, [ada, bob, phone, laptop], ['ada', 'bob', 'cleo']);

  phone.pusher.disconnect();
  await eventually(async () => {
    const answer = await stage.get(0, `/channels/${channel}`, { info: 'user_count,subscription_count' });
    assert.deepEqual(answer, { occupied: true, user_count: 3, subscription_count: 3 });
  });
  laptop.pusher.disconnect();
  await stage.agreed(channel, [ada, bob], ['ada', 'bob']);
  assert.deepEqual(ada.changes, ['+bob', '+cleo', '-cleo']);
  assert.deepEqual(bob.changes, ['+cleo', '-cleo']);

  bob.channel.trigger('client-typing', 1);
  await settle(bob.pusher);
  await ada.fenced(stage, 2);
  assert.deepEqual(ada.heard, [['client-typing', 1]]);

  bob.pusher.disconnect();
  await stage.agreed(channel, [ada], ['ada']);
  ada.pusher.disconnect();
  await stage.webhooks.are(channel, [
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
  assert.deepEqual(stage.webhooks.repeated, []);
});

test('joins at the same time on all nodes are one coming each', async (t) => {
  const channel = stage.unique('presence-room');
  const users = Array.from({ length: 9 }, (_, number) => `user-${number}`);
  const both = users.flatMap((user, at) => [
    stage.witness(t, channel, { at: at % 3, user }),
    stage.witness(t, channel, { at: (at + 1) % 3, user }),
  ]);
  const witnesses = await Promise.all(both);
  await stage.agreed(channel, witnesses, users);
  await eventually(() => assert.equal(stage.webhooks.of(channel).length, 1 + users.length));
  const [first, ...added] = stage.webhooks.of(channel);
  assert.equal(first, 'channel_occupied');
  assert.deepEqual(added.sort(), users.map((user) => `member_added ${user}`));
});

test('subscribers are counted over all nodes', async (t) => {
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

test('watchlists tell of users on other nodes, who are reached and terminated from any', async (t) => {
  const [ada, bob] = [stage.unique('ada'), stage.unique('bob')];
  const adas = await stage.connect(t, { user: ada, params: { watchlist: bob }, ...on(0) });
  const [online, offline] = ['online', 'offline'].map((event) => listen(adas.user.watchlist, event));
  adas.signin();
  assert.deepEqual(await offline.take(), [{ name: 'offline', user_ids: [bob] }]);
  const phone = await stage.signIn(t, { user: bob, ...on(1) });
  assert.deepEqual(await online.take(), [{ name: 'online', user_ids: [bob] }]);
  const laptop = await stage.signIn(t, { user: bob, ...on(2) });

  // pusher-js subscribes to what it is sent as a user after the sign-in.
  for (const { user } of [phone, laptop]) await eventually(() => assert.ok(user.serverToUserChannel?.subscribed));
  const greeted = [phone, laptop].map((pusher) => next(pusher.user, 'greeted'));
  await stage.sdkOn(0).sendToUser(bob, 'greeted', 'hello');
  assert.deepEqual(await Promise.all(greeted), ['hello', 'hello']);

  const errors = [phone, laptop].map((pusher) => next(pusher.connection, 'error'));
  await stage.sdkOn(0).terminateUserConnections(bob);
  for (const { data } of await Promise.all(errors)) assert.equal(data.code, 4009);
  assert.deepEqual(await offline.take(), [{ name: 'offline', user_ids: [bob] }]);
  await stage.webhooks.are(bob, ['user_online', 'user_offline']);
  assert.equal(adas.connection.state, 'connected');
});

test('a cache channel has one last event, for who comes to whichever node', async (t) => {
  const channel = stage.unique('cache-price');
  const early = await stage.witness(t, channel, { at: 0 });
  await early.fenced(stage, 0);
  await stage.sdkOn(1).trigger(channel, 'price', { eur: 1 });
  await stage.sdkOn(2).trigger(channel, 'price', { eur: 2 });
  for (const at of NODES) {
    const late = await stage.witness(t, channel, { at });
    await eventually(() => assert.deepEqual(late.heard, [['price', { eur: 2 }]]));
    const { cache } = await stage.get(at, `/channels/${channel}`, { info: 'cache' });
    assert.equal(JSON.parse(cache.data).eur, 2);
  }
  const empty = await stage.witness(t, stage.unique('cache-price'), { at: 1 });
  await eventually(() => assert.deepEqual(empty.heard.map(([event]) => event), ['pusher:cache_miss']));
});
