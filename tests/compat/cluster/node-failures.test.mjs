/** Nodes are killed, paused, or restarted one after the other. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { ClusterStage, LEASE_EXPIRY_MS, Publisher, compare } from '../support/cluster.mjs';
import { Forwarder } from '../support/forwarder.mjs';
import { eventually, listen, next } from '../support/stage.mjs';

const NO_FAULTS = { lost: [], duplicated: [], outOfOrder: [], indeterminate: [] };

/** ada on node 0, with cleo on her watchlist; bob on node 1; cleo and dan on node 2. dan is the only member of `alone`. */
async function startScene(t, stage) {
  const [room, alone] = ['presence-room', 'presence-alone'];
  const ada = await stage.recorder(t, room, { at: 0, user: 'ada', params: { watchlist: 'cleo' } });
  const bob = await stage.recorder(t, room, { at: 1, user: 'bob' });
  const cleo = await stage.recorder(t, room, { at: 2, user: 'cleo' });
  const dan = await stage.recorder(t, alone, { at: 2, user: 'dan' });
  await stage.converged(room, [ada, bob, cleo], ['ada', 'bob', 'cleo']);
  const [online, offline] = ['online', 'offline'].map((event) => listen(ada.pusher.user.watchlist, event));
  for (const { pusher } of [ada, cleo]) {
    const success = next(pusher, 'pusher:signin_success');
    pusher.signin();
    await success;
  }
  await online.takeUntil(([{ user_ids: ids }]) => ids.includes('cleo'));
  const webhooks = {
    room: ['channel_occupied', 'member_added ada', 'member_added bob', 'member_added cleo'],
    alone: ['channel_occupied', 'member_added dan'],
    cleo: ['user_online'],
  };
  await stage.webhooks.expect(room, webhooks.room);
  await stage.webhooks.expect(alone, webhooks.alone);
  await stage.webhooks.expect('cleo', webhooks.cleo);
  for (const recorder of [ada, bob, cleo, dan]) recorder.changes = [];
  return { room, alone, ada, bob, cleo, dan, online, offline, webhooks };
}

describe('nodes', { concurrency: true }, () => {
  test('when a node is killed, its members are removed once, and other clients lose no event', async (t) => {
    const stage = await ClusterStage.start(t);
    const { room, alone, ada, bob, cleo, dan, offline, webhooks } = await startScene(t, stage);
    const publisher = new Publisher(t, stage, room, { failsOver: true });
    await publisher.progress();
    await stage.kill(2);
    for (const { pusher } of [cleo, dan]) pusher.disconnect();

    await stage.converged(room, [ada, bob], ['ada', 'bob'], LEASE_EXPIRY_MS);
    await offline.takeUntil(([{ user_ids: ids }]) => ids.includes('cleo'));
    await publisher.progress();
    const last = await publisher.stop();
    for (const recorder of [ada, bob]) {
      await recorder.received(last);
      assert.deepEqual(recorder.changes, ['-cleo']);
      assert.deepEqual(compare(publisher, recorder), NO_FAULTS);
      assert.equal(recorder.sockets.length, 1);
    }
    assert.deepEqual((await stage.get(0, '/channels')).channels, { [room]: {} });
    assert.deepEqual(await stage.get(1, `/channels/${alone}`, { info: 'user_count' }), { occupied: false, user_count: 0 });

    // The killed node may have owned these webhook records. Another node claims them after the lease has expired.
    await stage.webhooks.expect(room, [...webhooks.room, 'member_removed cleo'], LEASE_EXPIRY_MS);
    await stage.webhooks.expect(alone, [...webhooks.alone, 'member_removed dan', 'channel_vacated'], LEASE_EXPIRY_MS);
    await stage.webhooks.expect('cleo', [...webhooks.cleo, 'user_offline'], LEASE_EXPIRY_MS);
  });

  test('when a node is paused for longer than its lease, its members are removed once, and added once when it resumes', async (t) => {
    const stage = await ClusterStage.start(t);
    const { room, alone, ada, bob, cleo, dan, online, offline, webhooks } = await startScene(t, stage);
    const [paused] = stage.nodes.splice(2, 1);
    paused.pause();
    await stage.converged(room, [ada, bob], ['ada', 'bob'], LEASE_EXPIRY_MS);
    await offline.takeUntil(([{ user_ids: ids }]) => ids.includes('cleo'));
    // Wait for these before the node resumes: an event that is not sent yet is cancelled if the user comes back.
    const afterExpiry = {
      room: [...webhooks.room, 'member_removed cleo'],
      alone: [...webhooks.alone, 'member_removed dan', 'channel_vacated'],
      cleo: [...webhooks.cleo, 'user_offline'],
    };
    await stage.webhooks.expect(room, afterExpiry.room, LEASE_EXPIRY_MS);
    await stage.webhooks.expect(alone, afterExpiry.alone, LEASE_EXPIRY_MS);
    await stage.webhooks.expect('cleo', afterExpiry.cleo, LEASE_EXPIRY_MS);

    paused.resume();
    await eventually(() => assert.match(paused.output, /rejoining as a new node/));
    await online.takeUntil(([{ user_ids: ids }]) => ids.includes('cleo'));
    stage.nodes.push(paused);
    await stage.ready(2);
    await stage.converged(room, [ada, bob, cleo], ['ada', 'bob', 'cleo']);
    await stage.converged(alone, [dan], ['dan']);
    for (const recorder of [ada, bob]) assert.deepEqual(recorder.changes, ['-cleo', '+cleo']);
    for (const recorder of [ada, bob, cleo]) await recorder.fenced(stage, 2);
    for (const recorder of [ada, bob, cleo, dan]) assert.equal(recorder.sockets.length, 1);
    await stage.webhooks.expect(room, [...afterExpiry.room, 'member_added cleo'], LEASE_EXPIRY_MS);
    await stage.webhooks.expect(alone, [...afterExpiry.alone, 'channel_occupied', 'member_added dan'], LEASE_EXPIRY_MS);
    await stage.webhooks.expect('cleo', [...afterExpiry.cleo, 'user_online'], LEASE_EXPIRY_MS);
  });

  test('when all nodes are restarted in turn, no event is lost, and a user that reconnects to another node is not removed', async (t) => {
    const stage = await ClusterStage.start(t, { server: { drain_secs: 1, shutdown_deadline_secs: 10 } });
    const target = { host: stage.server.host, port: stage.nodes[0].port };
    const balancer = await Forwarder.start(t, target);
    const forwarders = await Promise.all(stage.nodes.map((node) => Forwarder.start(t, node)));

    const channel = 'presence-room';
    const residents = await Promise.all(
      forwarders.map(({ port }, at) => stage.recorder(t, channel, { port, user: `resident-${at}` })),
    );
    const roamer = await stage.recorder(t, channel, { port: balancer.port, user: 'roamer' });
    const success = next(roamer.pusher, 'pusher:signin_success');
    roamer.pusher.signin();
    await success;
    const everyone = ['resident-0', 'resident-1', 'resident-2', 'roamer'];
    await stage.converged(channel, [...residents, roamer], everyone);
    const publisher = new Publisher(t, stage, channel, { failsOver: true });

    for (const at of stage.nodes.keys()) {
      await publisher.progress();
      const others = residents.filter((_, other) => other !== at);
      const before = others.map(({ sockets }) => sockets.length);
      const back = next(residents[at].pusher.connection, 'connected');
      // The roamer moves to node 2 at the first restart, and to node 0 at the last.
      target.port = stage.nodes[(at + 2) % stage.nodes.length].port;
      forwarders[at].hold();
      await stage.nodes[at].restart();
      await stage.ready(at);
      await publisher.progress();
      forwarders[at].release();
      await back;
      await stage.converged(channel, [...residents, roamer], everyone);
      assert.deepEqual(others.map(({ sockets }) => sockets.length), before, 'clients of other nodes were disconnected');
    }

    const last = await publisher.stop();
    assert.deepEqual(publisher.rejected, new Map());
    for (const recorder of [...residents, roamer]) {
      await recorder.received(last);
      assert.deepEqual(compare(publisher, recorder), NO_FAULTS);
    }
    roamer.pusher.disconnect();
    await stage.webhooks.expect('roamer', ['user_online', 'user_offline']);
    const sent = () => stage.webhooks.of(channel);
    await eventually(() => assert.ok(sent().includes('member_removed roamer')));
    assert.equal(sent().filter((event) => event.endsWith(' roamer')).length, 2, `${sent()}`);
    assert.equal(sent().filter((event) => event.startsWith('channel_')).length, 1, `${sent()}`);
    assert.deepEqual(stage.webhooks.duplicates, []);
  });
});
