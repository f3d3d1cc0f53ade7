/** Redis dies, forgets, drops connections or stands still: clients stay, publishing is refused, all is right again. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { ClusterStage, Publisher, judge } from '../support/cluster.mjs';
import { eventually } from '../support/stage.mjs';

const CHANNEL = 'presence-room';
/** A node notices that it is not known any more at its next beat, after 4 s at most. */
const REPAIR_MS = 30_000;

/** Two users on each of three nodes, with a publisher. */
async function peopled(t) {
  const stage = await ClusterStage.start(t);
  const users = ['ada', 'bob', 'cleo', 'dan', 'eve', 'finn'];
  const witnesses = await Promise.all(
    users.map((user, at) => stage.witness(t, CHANNEL, { at: at % stage.nodes.length, user })),
  );
  await stage.agreed(CHANNEL, witnesses, users);
  for (const witness of witnesses) witness.changes = [];
  const publisher = new Publisher(stage, CHANNEL);
  await publisher.progress();
  return { stage, users, witnesses, publisher };
}

/** No node can do anything: `/ready` says so, and publishing is refused with the advice to try again. */
async function refusing(stage) {
  for (const at of stage.nodes.keys()) {
    await eventually(async () => assert.equal(await stage.readiness(at), 503));
    const response = await stage.trigger(at, 'tick', CHANNEL, 0);
    assert.equal(response.status, 503, await response.text());
    assert.match(response.headers.get('retry-after'), /^[1-9][0-9]*$/);
  }
}

/**
 * All is as before: the same connections, the same users everywhere, and events go everywhere. What was lost on the way,
 * by witness: a node that has found Redis again takes events that another one, which has not, does not hear of.
 */
async function repaired({ stage, users, witnesses, publisher }) {
  for (const at of stage.nodes.keys()) await stage.ready(at, REPAIR_MS);
  await stage.agreed(CHANNEL, witnesses, users, REPAIR_MS);
  await publisher.progress();
  const last = await publisher.stop();
  const losses = [];
  for (const witness of witnesses) {
    await witness.reached(last);
    assert.equal(witness.sockets.length, 1, 'its connection stays');
    const { lost, ...wrong } = judge(publisher, witness);
    losses.push(lost);
    assert.deepEqual(wrong, { doubled: [], disordered: [], unsure: wrong.unsure });
  }
  for (const at of stage.nodes.keys()) {
    const { channels } = await stage.get(at, '/channels', { filter_by_prefix: 'presence-', info: 'user_count' });
    assert.deepEqual(channels, { [CHANNEL]: { user_count: users.length } });
  }

  // From now on, who goes is gone on all nodes, and who comes is there.
  const [first, ...others] = witnesses;
  first.pusher.disconnect();
  await stage.agreed(CHANNEL, others, users.slice(1));
  return losses;
}

/** Nobody was told of anything but of who went in the end: Redis has forgotten nothing. */
async function unnoticed({ stage, users, witnesses }) {
  const [first, ...others] = witnesses;
  assert.deepEqual(first.changes, []);
  for (const { changes } of others) assert.deepEqual(changes, [`-${users[0]}`]);
  await eventually(() => assert.ok(stage.webhooks.of(CHANNEL).includes(`member_removed ${users[0]}`)));
  const added = users.map((user) => `member_added ${user}`);
  const all = ['channel_occupied', ...added, `member_removed ${users[0]}`];
  assert.deepEqual(stage.webhooks.of(CHANNEL).sort(), all.sort());
  assert.deepEqual(stage.webhooks.repeated, []);
}

describe('Redis', { concurrency: true }, () => {
  test('dies, and comes back without memory', async (t) => {
    const all = await peopled(t);
    await all.stage.broker.crash();
    await refusing(all.stage);
    // Clients that leave now must be gone after the repair.
    all.witnesses.pop().pusher.disconnect();
    all.users.pop();
    await all.stage.broker.restart();
    await repaired(all);
  });

  test('is emptied while it runs', async (t) => {
    const all = await peopled(t);
    await all.stage.broker.command('FLUSHALL');
    const renamed = (node) => /rejoining as a new node/.test(node.output);
    await eventually(() => assert.ok(all.stage.nodes.every(renamed)), REPAIR_MS);
    const losses = await repaired(all);
    assert.deepEqual(losses.flat(), []);
    assert.equal(all.publisher.refused.size, 0);
  });

  test('drops the connections that messages come over', async (t) => {
    const all = await peopled(t);
    const lost = (node) => node.output.split(/disconnected from Redis/).length - 1;
    assert.ok(Number(await all.stage.broker.command('CLIENT', 'KILL', 'TYPE', 'pubsub')) >= all.stage.nodes.length);
    await eventually(() => assert.ok(all.stage.nodes.every((node) => lost(node) === 1)));
    await repaired(all);
    await unnoticed(all);
  });

  test('pauses its clients', async (t) => {
    const all = await peopled(t);
    await all.stage.broker.command('CLIENT', 'PAUSE', '5000', 'ALL');
    await refusing(all.stage);
    await repaired(all);
    await unnoticed(all);
  });

  test('stands still', async (t) => {
    const all = await peopled(t);
    all.stage.broker.suspend();
    await refusing(all.stage);
    all.stage.broker.resume();
    await repaired(all);
    await unnoticed(all);
  });
});
