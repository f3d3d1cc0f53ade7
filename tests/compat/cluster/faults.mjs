/** Injects faults into a cluster. scripts/cluster-redis runs it, and documents its options and columns. */
import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { ClusterStage, LEASE_EXPIRY_MS, Publisher, compare, haveSameOrder } from '../support/cluster.mjs';
import { Forwarder } from '../support/forwarder.mjs';
import { startRedis, startRedisCluster, startSentinels } from '../support/redis.mjs';
import { closeWith } from '../support/resources.mjs';
import { connected, eventually } from '../support/stage.mjs';

const CHANNELS = 9;
const PACE_MS = 10;
const POLL_MS = 50;
/** Without a fault, before it and after the recovery. */
const CALM_MS = 2_000;
const RECOVERY_MS = 60_000;
/**
 * A node detects within this time that it is disconnected from Redis. Until it is connected again, its clients do not
 * receive the events that other nodes accept.
 */
const DETECTION_MS = 6_000;

/** Faults of nodes. Only clients of the faulty node may lose events. */
const NODE_FAULTS = {
  async 'a node is killed'(scene) {
    scene.removeRecordersOn(2);
    await scene.stage.kill(2);
  },
  async 'a node is paused for 16 s'(scene) {
    const [paused] = scene.stage.nodes.splice(2, 1);
    try {
      scene.allowLossOn(2);
      paused.pause();
      await delay(16_000);
    } finally {
      paused.resume();
      scene.stage.nodes.push(paused);
    }
  },
  async 'all nodes are restarted, one by one'(scene) {
    for (const at of scene.stage.nodes.keys()) {
      scene.forwarders[at].hold();
      await scene.stage.nodes[at].restart();
      await scene.stage.ready(at);
      scene.forwarders[at].release();
      for (const { pusher } of scene.recordersOn(at)) await connected(pusher);
      await scene.converged();
    }
  },
};

/** The servers that have data of the nodes. */
const masters = async ({ stage: { redis } }) => (redis.masters ? redis.masters() : [redis]);

const PAUSE_MASTER = async (scene) => {
  const [master] = await masters(scene);
  master.pause();
  await delay(5_000);
  master.resume();
};

const FLUSH = async (scene) => {
  for (const master of await masters(scene)) await master.command('FLUSHALL');
  const hasRejoined = ({ output }) => /rejoining as a new node/.test(output);
  await eventually(() => assert.ok(scene.stage.nodes.every(hasRejoined), 'a node has not rejoined'), RECOVERY_MS);
};

const DROP_CONNECTIONS = async (scene) => {
  for (const master of await masters(scene)) await master.command('CLIENT', 'KILL', 'TYPE', 'pubsub');
};

const KILL_MASTER = async (scene) => {
  const [master] = await masters(scene);
  await master.kill();
  await eventually(() => scene.hasDetected(), RECOVERY_MS);
};

/**
 * Faults of Redis, by kind of deployment. A node that is disconnected from Redis rejects publishes, and its clients do not
 * receive what other nodes accept.
 */
const BROKERS = {
  standalone: {
    start: startRedis,
    faults: {
      async 'Redis is killed, and restarts without data after 2 s'({ stage: { redis } }) {
        await redis.kill();
        await delay(2_000);
        await redis.restart();
      },
      'Redis is flushed': FLUSH,
      'Redis drops connections': DROP_CONNECTIONS,
      async 'Redis pauses its clients for 5 s'({ stage: { redis } }) {
        await redis.command('CLIENT', 'PAUSE', '5000', 'ALL');
        await delay(5_000);
      },
      'Redis is paused for 5 s': PAUSE_MASTER,
    },
  },
  sentinel: {
    start: startSentinels,
    faults: {
      async 'SENTINEL FAILOVER'(scene) {
        await scene.stage.redis.failOver();
        await eventually(() => scene.hasDetected(), RECOVERY_MS);
      },
      'the master is killed': KILL_MASTER,
      'the master is paused for 5 s': PAUSE_MASTER,
      'the master is flushed': FLUSH,
      'the master drops connections': DROP_CONNECTIONS,
    },
  },
  cluster: {
    start: startRedisCluster,
    faults: {
      async 'CLUSTER FAILOVER'(scene) {
        await scene.stage.redis.failOver();
        await eventually(() => scene.hasDetected(), RECOVERY_MS);
      },
      'a master is killed': KILL_MASTER,
      'a master is paused for 5 s': PAUSE_MASTER,
      async 'slots move to another master'(scene) {
        await scene.stage.redis.reshard(2_000);
      },
      'all masters are flushed': FLUSH,
      'the masters drop connections': DROP_CONNECTIONS,
    },
  },
};

/** Three nodes behind forwarders. Each channel has a publisher, and a recorder on each node. */
class Scene {
  forwarders = [];
  recorders = [];
  publishers = new Map();
  /** The times in which a node was not ready: `{ at, from, to }`. */
  notReady = [];
  #mayLose = new Set();
  #removed = new Set();
  #isClosed = false;
  #polling;

  static async open(owner, stage, failsOver) {
    const scene = new Scene();
    scene.stage = stage;
    for (const node of stage.nodes) scene.forwarders.push(await Forwarder.start(owner, node));
    const channels = Array.from({ length: CHANNELS }, (_, number) => `presence-room-${number}`);
    for (const channel of channels) {
      const recorders = scene.forwarders.map(async ({ port }, at) => {
        const recorder = await stage.recorder(owner, channel, { port, user: `user-${at}` });
        return Object.assign(recorder, { at, user: `user-${at}` });
      });
      scene.recorders.push(...(await Promise.all(recorders)));
    }
    await scene.converged();
    const pause = () => delay(PACE_MS);
    for (const channel of channels) {
      scene.publishers.set(channel, new Publisher(owner, stage, channel, { failsOver, pause }));
    }
    scene.#polling = Promise.all(stage.nodes.map((node, at) => scene.#poll(node, at)));
    closeWith(owner, 'the polling of /ready', () => scene.#close());
    return scene;
  }

  async #poll(node, at) {
    let current;
    while (!this.#isClosed) {
      const status = await fetch(`${node.httpUrl}/ready`, { signal: AbortSignal.timeout(1_000) }).then(
        (response) => response.text().then(() => response.status),
        () => 0,
      );
      const isNotReady = status === 503;
      if (isNotReady && !current) this.notReady.push((current = { at, from: performance.now() }));
      if (current) current.to = performance.now();
      if (!isNotReady) current = undefined;
      await delay(POLL_MS);
    }
  }

  async #close() {
    this.#isClosed = true;
    await this.#polling;
  }

  hasDetected() {
    assert.ok(this.notReady.length > 0, 'all nodes are ready');
  }

  recordersOn(at) {
    return this.recorders.filter((recorder) => recorder.at === at);
  }

  /** Allows clients of this node to lose events. */
  allowLossOn(at) {
    for (const recorder of this.recordersOn(at)) this.#mayLose.add(recorder);
  }

  /** Disconnects the clients of this node, and leaves them out of all checks. */
  removeRecordersOn(at) {
    for (const recorder of this.recordersOn(at)) {
      this.#removed.add(recorder);
      recorder.pusher.disconnect();
    }
  }

  get remaining() {
    return this.recorders.filter((recorder) => !this.#removed.has(recorder));
  }

  /** Waits until all nodes and all remaining clients have the same members. */
  async converged(timeoutMs) {
    for (const channel of new Set(this.recorders.map((recorder) => recorder.channel.name))) {
      const recorders = this.remaining.filter((recorder) => recorder.channel.name === channel);
      const users = recorders.map(({ user }) => user);
      await this.stage.converged(channel, recorders, users, timeoutMs);
    }
  }

  /** Stops the publishers, and counts what they sent and the clients received. */
  async count() {
    for (const [channel, publisher] of this.publishers) {
      await publisher.progress();
      const last = await publisher.stop();
      for (const recorder of this.remaining.filter((one) => one.channel.name === channel)) await recorder.received(last);
    }
    const sum = { accepted: 0, rejected: 0, delivered: 0, lost: 0, unexpected: 0, indeterminate: 0, duplicated: 0, outOfOrder: 0 };
    for (const publisher of this.publishers.values()) {
      sum.accepted += publisher.accepted.size;
      sum.rejected += publisher.rejected.size;
    }
    for (const recorder of this.remaining) {
      const publisher = this.publishers.get(recorder.channel.name);
      const { lost, indeterminate, duplicated, outOfOrder } = compare(publisher, recorder);
      const isExpected = (number) =>
        this.#mayLose.has(recorder) || this.#wasDisconnected(recorder.at, publisher.accepted.get(number));
      sum.delivered += recorder.ticks.length;
      sum.lost += lost.length;
      sum.unexpected += lost.filter((number) => !isExpected(number)).length;
      sum.indeterminate += indeterminate.length;
      sum.duplicated += duplicated.length;
      sum.outOfOrder += outOfOrder.length;
    }
    for (const channel of this.publishers.keys()) {
      const [first, ...others] = this.remaining.filter((recorder) => recorder.channel.name === channel);
      sum.outOfOrder += others.filter((other) => !haveSameOrder(first, other)).length;
    }
    const durationOf = (at) =>
      this.notReady.filter((period) => period.at === at).reduce((all, { from, to }) => all + to - from, 0);
    return { ...sum, notReadyMs: Math.max(...this.forwarders.map((_, at) => durationOf(at))) };
  }

  #wasDisconnected(at, time) {
    const includesTime = ({ from, to }) => from - DETECTION_MS < time && time < to + POLL_MS;
    return this.notReady.some((period) => period.at === at && includesTime(period));
  }
}

/** Starts Redis and the nodes, injects one fault, and returns the counts. */
async function run(redis, inject, { isOfNodes }) {
  const closing = [];
  const owner = { after: (close) => closing.push(close) };
  try {
    const server = { drain_secs: 1, shutdown_deadline_secs: 10 };
    const stage = await ClusterStage.start(owner, { redis, server });
    const scene = await Scene.open(owner, stage, isOfNodes);
    await delay(CALM_MS);
    await inject(scene);
    const injectedAt = performance.now();
    for (const at of stage.nodes.keys()) await stage.ready(at, RECOVERY_MS);
    await scene.converged(Math.max(LEASE_EXPIRY_MS, RECOVERY_MS));
    const recoveryMs = performance.now() - injectedAt;
    await delay(CALM_MS);
    await scene.converged();
    const counted = await scene.count();
    const failures = [];
    if (counted.duplicated > 0) failures.push('duplicated');
    if (counted.outOfOrder > 0) failures.push('out of order');
    if (counted.unexpected > 0) failures.push(`${counted.unexpected} lost while connected`);
    if (isOfNodes && counted.rejected > 0) failures.push('rejected');
    if (!isOfNodes && scene.remaining.some(({ sockets }) => sockets.length > 1)) failures.push('a client was disconnected');
    return { ...counted, recoveryMs, failures };
  } catch (error) {
    return { failures: [error.message.trim().split('\n')[0]], error };
  } finally {
    for (const close of closing) await close();
  }
}

const COLUMNS = [
  'Redis',
  'fault',
  'accepted',
  'rejected',
  'delivered',
  'lost',
  'indeterminate',
  'duplicated',
  'out of order',
  'not ready',
  'recovery',
  'result',
];
const seconds = (ms) => (ms === undefined ? '' : `${(ms / 1000).toFixed(1)} s`);

function row(kind, fault, result) {
  const { accepted, rejected, delivered, lost, indeterminate, duplicated, outOfOrder } = result;
  const counts = [accepted, rejected, delivered, lost, indeterminate, duplicated, outOfOrder];
  const numbers = counts.map((number) => String(number ?? ''));
  return [kind, fault, ...numbers, seconds(result.notReadyMs), seconds(result.recoveryMs), result.failures.join(', ') || 'passed'];
}

function print(rows) {
  const widths = COLUMNS.map((_, at) => Math.max(...rows.map((cells) => cells[at].length)));
  for (const cells of rows) {
    const padded = cells.map((cell, at) => (at < 2 || at === cells.length - 1 ? cell.padEnd(widths[at]) : cell.padStart(widths[at])));
    console.log(padded.join('  ').trimEnd());
  }
}

async function main() {
  const { values } = parseArgs({ options: { broker: { type: 'string' }, only: { type: 'string' } } });
  const kinds = values.broker?.split(',') ?? Object.keys(BROKERS);
  for (const kind of kinds) assert.ok(BROKERS[kind], `unknown broker ${kind}: use ${Object.keys(BROKERS).join(', ')}`);
  const rows = [COLUMNS];
  let passed = true;
  for (const kind of kinds) {
    const { start, faults } = BROKERS[kind];
    for (const [fault, inject] of Object.entries({ ...NODE_FAULTS, ...faults })) {
      if (values.only && !fault.includes(values.only)) continue;
      process.stderr.write(`${kind}: ${fault}\n`);
      const result = await run(start, inject, { isOfNodes: fault in NODE_FAULTS });
      if (result.error) console.error(result.error);
      passed &&= result.failures.length === 0;
      rows.push(row(kind, fault, result));
    }
  }
  print(rows);
  return passed ? 0 : 1;
}

process.exit(await main());
