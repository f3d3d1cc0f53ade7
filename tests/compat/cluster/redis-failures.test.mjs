/**
 * Redis crashes, loses its data, drops connections or is paused: clients stay connected, publishes are rejected, and the
 * cluster recovers.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { ClusterStage, Publisher, compare } from '../support/cluster.mjs';
import { eventually } from '../support/stage.mjs';

const CHANNEL = 'presence-room';
/** A node detects at its next heartbeat, after 4 s at most, that Redis has lost its lease. */
const RECOVERY_MS = 30_000;

/** Two users on each of three nodes, and a publisher. */
async function startScene(t) {
  const stage = await ClusterStage.start(t);
  const users = ['ada', 'bob', 'cleo', 'dan', 'eve', 'finn'];
  const recorders = await Promise.all(
    users.map((user, at) => stage.recorder(t, CHANNEL, { at: at % stage.nodes.length, user })),
  );
  await stage.converged(CHANNEL, recorders, users);
  for (const recorder of recorders) recorder.changes = [];
  const publisher = new Publisher(t, stage, CHANNEL);
  await publisher.progress();
  return { stage, users, recorders, publisher };
}

/** Asserts that each node responds to `/ready` and to publishes with 503, and to publishes with `Retry-After`. */
async function assertUnavailable(stage) {
  for (const at of stage.nodes.keys()) {
    await eventually(async () => assert.equal(await stage.readiness(at), 503));
    const response = await stage.trigger(at, 'tick', CHANNEL, 0);
    assert.equal(response.status, 503, await response.text());
    assert.match(response.headers.get('retry-after'), /^[1-9][0-9]*$/);
  }
}

/**
 * Asserts that the cluster has recovered: the connections are the same, all nodes have the same members, and events reach
 * all nodes. Returns the lost events of each recorder: a node that has reconnected to Redis accepts events, which do not
 * reach the nodes that have not.
 */
async function assertRecovered({ stage, users, recorders, publisher }) {
  for (const at of stage.nodes.keys()) await stage.ready(at, RECOVERY_MS);
  await stage.converged(CHANNEL, recorders, users, RECOVERY_MS);
  await publisher.progress();
  const last = await publisher.stop();
  const losses = [];
  for (const recorder of recorders) {
    await recorder.received(last);
    assert.equal(recorder.sockets.length, 1, 'the client was disconnected');
    const { lost, ...faults } = compare(publisher, recorder);
    losses.push(lost);
    assert.deepEqual(faults, { duplicated: [], outOfOrder: [], indeterminate: faults.indeterminate });
  }
  for (const at of stage.nodes.keys()) {
    const { channels } = await stage.get(at, '/channels', { filter_by_prefix: 'presence-', info: 'user_count' });
    assert.deepEqual(channels, { [CHANNEL]: { user_count: users.length } });
  }

  // All nodes remove a member that leaves now.
  const [first, ...others] = recorders;
  first.pusher.disconnect();
  await stage.converged(CHANNEL, others, users.slice(1));
  return losses;
}

/** Asserts that members and webhook receivers got nothing but the removal of the last member that left. */
async function assertNoChanges({ stage, users, recorders }) {
  const [first, ...others] = recorders;
  assert.deepEqual(first.changes, []);
  for (const { changes } of others) assert.deepEqual(changes, [`-${users[0]}`]);
  await eventually(() => assert.ok(stage.webhooks.of(CHANNEL).includes(`member_removed ${users[0]}`)));
  const added = users.map((user) => `member_added ${user}`);
  const all = ['channel_occupied', ...added, `member_removed ${users[0]}`];
  assert.deepEqual(stage.webhooks.of(CHANNEL).sort(), all.sort());
  assert.deepEqual(stage.webhooks.duplicates, []);
}

describe('Redis', { concurrency: true }, () => {
  test('the cluster recovers after Redis has crashed and restarted without data', async (t) => {
    const scene = await startScene(t);
    await scene.stage.redis.kill();
    await assertUnavailable(scene.stage);
    // A client that leaves now is removed after the recovery.
    scene.recorders.pop().pusher.disconnect();
    scene.users.pop();
    await scene.stage.redis.restart();
    await assertRecovered(scene);
  });

  test('the cluster recovers after Redis was flushed, and loses no event', async (t) => {
    const scene = await startScene(t);
    await scene.stage.redis.command('FLUSHALL');
    const hasRejoined = (node) => /rejoining as a new node/.test(node.output);
    await eventually(() => assert.ok(scene.stage.nodes.every(hasRejoined)), RECOVERY_MS);
    const losses = await assertRecovered(scene);
    assert.deepEqual(losses.flat(), []);
    assert.equal(scene.publisher.rejected.size, 0);
  });

  test('no member changes when Redis drops the connections of subscriptions', async (t) => {
    const scene = await startScene(t);
    const disconnects = (node) => node.output.split(/disconnected from Redis/).length - 1;
    assert.ok(Number(await scene.stage.redis.command('CLIENT', 'KILL', 'TYPE', 'pubsub')) >= scene.stage.nodes.length);
    await eventually(() => assert.ok(scene.stage.nodes.every((node) => disconnects(node) === 1)));
    await assertRecovered(scene);
    await assertNoChanges(scene);
  });

  test('no member changes when Redis pauses its clients', async (t) => {
    const scene = await startScene(t);
    await scene.stage.redis.command('CLIENT', 'PAUSE', '5000', 'ALL');
    await assertUnavailable(scene.stage);
    await assertRecovered(scene);
    await assertNoChanges(scene);
  });

  test('no member changes when the process of Redis is paused', async (t) => {
    const scene = await startScene(t);
    scene.stage.redis.pause();
    await assertUnavailable(scene.stage);
    scene.stage.redis.resume();
    await assertRecovered(scene);
    await assertNoChanges(scene);
  });
});
