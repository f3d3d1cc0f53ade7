/** Nodes that die, stand still, or are restarted one after the other. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { ClusterStage, DEATH_MS, Publisher, judge } from '../support/cluster.mjs';
import { Forwarder } from '../support/forwarder.mjs';
import { eventually, listen, next } from '../support/stage.mjs';

const NOTHING = { lost: [], doubled: [], disordered: [], unsure: [] };

/** Ada on node 0, who watches cleo; bob on node 1; cleo and dan on node 2, where dan is alone in another channel. */
async function seated(t, stage) {
  const [room, alone] = ['presence-room', 'presence-alone'];
  const ada = await stage.witness(t, room, { at: 0, user: 'ada', params: { watchlist: 'cleo' } });
  const bob = await stage.witness(t, room, { at: 1, user: 'bob' });
  const cleo = await stage.witness(t, room, { at: 2, user: 'cleo' });
  const dan = await stage.witness(t, alone, { at: 2, user: 'dan' });
  await stage.agreed(room, [ada, bob, cleo], ['ada', 'bob', 'cleo']);
  const [online, offline] = ['online', 'offline'].map((event) => listen(ada.pusher.user.watchlist, event));
  for (const { pusher } of [ada, cleo]) {
    const success = next(pusher, 'pusher:signin_success');
    pusher.signin();
    await success;
  }
  await online.takeUntil(([{ user_ids: ids }]) => ids.includes('cleo'));
  const settled = {
    room: ['channel_occupied', 'member_added ada', 'member_added bob', 'member_added cleo'],
    alone: ['channel_occupied', 'member_added dan'],
    cleo: ['user_online'],
  };
  await stage.webhooks.are(room, settled.room);
  await stage.webhooks.are(alone, settled.alone);
  await stage.webhooks.are('cleo', settled.cleo);
  for (const witness of [ada, bob, cleo, dan]) witness.changes = [];
  return { room, alone, ada, bob, cleo, dan, online, offline, settled };
}

describe('a node', { concurrency: true }, () => {
  test('dies: its users leave once for the others, who go on', async (t) => {
    const stage = await ClusterStage.start(t);
    const { room, alone, ada, bob, cleo, dan, offline, settled } = await seated(t, stage);
    const publisher = new Publisher(stage, room, { failsOver: true });
    await publisher.progress();
    await stage.lose(2);
    for (const { pusher } of [cleo, dan]) pusher.disconnect();

    await stage.agreed(room, [ada, bob], ['ada', 'bob'], DEATH_MS);
    await offline.takeUntil(([{ user_ids: ids }]) => ids.includes('cleo'));
    await publisher.progress();
    const last = await publisher.stop();
    for (const witness of [ada, bob]) {
      await witness.reached(last);
      assert.deepEqual(witness.changes, ['-cleo']);
      assert.deepEqual(judge(publisher, witness), NOTHING);
      assert.equal(witness.sockets.length, 1);
    }
    assert.deepEqual((await stage.get(0, '/channels')).channels, { [room]: {} });
    assert.deepEqual(await stage.get(1, `/channels/${alone}`, { info: 'user_count' }), { occupied: false, user_count: 0 });

    // Whoever reads these records may have died with the node: another one claims them when that is known.
    await stage.webhooks.are(room, [...settled.room, 'member_removed cleo'], DEATH_MS);
    await stage.webhooks.are(alone, [...settled.alone, 'member_removed dan', 'channel_vacated'], DEATH_MS);
    await stage.webhooks.are('cleo', [...settled.cleo, 'user_offline'], DEATH_MS);
  });

  test('stands still for longer than its lease: its users leave once, and come back once', async (t) => {
    const stage = await ClusterStage.start(t);
    const { room, alone, ada, bob, cleo, dan, online, offline, settled } = await seated(t, stage);
    const [still] = stage.nodes.splice(2, 1);
    t.after(() => stage.nodes.push(still));
    still.suspend();
    await stage.agreed(room, [ada, bob], ['ada', 'bob'], DEATH_MS);
    await offline.takeUntil(([{ user_ids: ids }]) => ids.includes('cleo'));
    // What is told only now, because another node had to claim the records first, would be undone by who comes back.
    const gone = {
      room: [...settled.room, 'member_removed cleo'],
      alone: [...settled.alone, 'member_removed dan', 'channel_vacated'],
      cleo: [...settled.cleo, 'user_offline'],
    };
    await stage.webhooks.are(room, gone.room, DEATH_MS);
    await stage.webhooks.are(alone, gone.alone, DEATH_MS);
    await stage.webhooks.are('cleo', gone.cleo, DEATH_MS);

    still.resume();
    await eventually(() => assert.match(still.output, /rejoining as a new node/));
    await online.takeUntil(([{ user_ids: ids }]) => ids.includes('cleo'));
    stage.nodes.push(still);
    await stage.ready(2);
    await stage.agreed(room, [ada, bob, cleo], ['ada', 'bob', 'cleo']);
    await stage.agreed(alone, [dan], ['dan']);
    for (const witness of [ada, bob]) assert.deepEqual(witness.changes, ['-cleo', '+cleo']);
    for (const witness of [ada, bob, cleo]) await witness.fenced(stage, 2);
    for (const witness of [ada, bob, cleo, dan]) assert.equal(witness.sockets.length, 1);
    await stage.webhooks.are(room, [...gone.room, 'member_added cleo'], DEATH_MS);
    await stage.webhooks.are(alone, [...gone.alone, 'channel_occupied', 'member_added dan'], DEATH_MS);
    await stage.webhooks.are('cleo', [...gone.cleo, 'user_online'], DEATH_MS);
  });

  test('after the other is restarted: nothing is lost elsewhere, and who comes back to another node was not gone', async (t) => {
    const stage = await ClusterStage.start(t, { server: { drain_secs: 1, shutdown_deadline_secs: 10 } });
    const forward = async (target) => {
      const forwarder = await Forwarder.start(target);
      t.after(() => forwarder.close());
      return forwarder;
    };
    // Of a load balancer, which knows where to send those who come.
    const elsewhere = { host: stage.server.host, port: stage.nodes[0].port };
    const balancer = await forward(elsewhere);
    const doors = await Promise.all(stage.nodes.map(forward));

    const channel = 'presence-room';
    const settled = await Promise.all(
      doors.map(({ port }, at) => stage.witness(t, channel, { port, user: `settled-${at}` })),
    );
    const wanderer = await stage.witness(t, channel, { port: balancer.port, user: 'wanderer' });
    const success = next(wanderer.pusher, 'pusher:signin_success');
    wanderer.pusher.signin();
    await success;
    const everyone = ['settled-0', 'settled-1', 'settled-2', 'wanderer'];
    await stage.agreed(channel, [...settled, wanderer], everyone);
    const publisher = new Publisher(stage, channel, { failsOver: true });

    for (const at of stage.nodes.keys()) {
      await publisher.progress();
      const others = settled.filter((_, other) => other !== at);
      const before = others.map(({ sockets }) => sockets.length);
      const back = next(settled[at].pusher.connection, 'connected');
      // Whoever is sent there is in the way of the last restart once more.
      elsewhere.port = stage.nodes[(at + 2) % stage.nodes.length].port;
      doors[at].hold();
      await stage.nodes[at].restart();
      await stage.ready(at);
      await publisher.progress();
      doors[at].release();
      await back;
      await stage.agreed(channel, [...settled, wanderer], everyone);
      assert.deepEqual(others.map(({ sockets }) => sockets.length), before, 'clients of other nodes stay');
    }

    const last = await publisher.stop();
    assert.deepEqual(publisher.refused, new Map());
    for (const witness of [...settled, wanderer]) {
      await witness.reached(last);
      assert.deepEqual(judge(publisher, witness), NOTHING);
    }
    wanderer.pusher.disconnect();
    await stage.webhooks.are('wanderer', ['user_online', 'user_offline']);
    const told = () => stage.webhooks.of(channel);
    await eventually(() => assert.ok(told().includes('member_removed wanderer')));
    assert.equal(told().filter((event) => event.endsWith(' wanderer')).length, 2, `${told()}`);
    assert.equal(told().filter((event) => event.startsWith('channel_')).length, 1, `${told()}`);
    assert.deepEqual(stage.webhooks.repeated, []);
  });
});
