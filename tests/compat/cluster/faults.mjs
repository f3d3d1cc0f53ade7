/** See scripts/cluster-redis, which starts this. */
import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { ClusterStage, DEATH_MS, Publisher, agreeOnOrder, judge } from '../support/cluster.mjs';
import { Forwarder } from '../support/forwarder.mjs';
import { startRedis, startRedisCluster, startSentinels } from '../support/redis.mjs';
import { connected, eventually } from '../support/stage.mjs';

const CHANNELS = 9;
const PACE_MS = 10;
const LOOK_MS = 50;
const CALM_MS = 2_000;
const REPAIR_MS = 60_000;
/**
 * A node notices within so long that nothing comes from Redis any more. What other nodes take until then, and until it
 * has found Redis again, its clients miss.
 */
const NOTICE_MS = 6_000;

/** What happens to nodes. Nothing may be lost, but for clients of the node that it happens to. */
const NODE_FAULTS = {
  async 'a node is killed'(scene) {
    scene.abandon(2);
    await scene.stage.lose(2);
  },
  async 'a node stands still for 16 s'(scene) {
    const [still] = scene.stage.nodes.splice(2, 1);
    try {
      scene.excuse(2);
      still.suspend();
      await delay(16_000);
    } finally {
      still.resume();
      scene.stage.nodes.push(still);
    }
  },
  async 'all nodes are restarted, one by one'(scene) {
    for (const at of scene.stage.nodes.keys()) {
      scene.doors[at].hold();
      await scene.stage.nodes[at].restart();
      await scene.stage.ready(at);
      scene.doors[at].release();
      for (const { pusher } of scene.witnessesOn(at)) await connected(pusher);
      await scene.agreed();
    }
  },
};

/** The servers that have anything of ours. */
const masters = async ({ stage: { broker } }) => (broker.masters ? broker.masters() : [broker]);

const STANDING_STILL = async (scene) => {
  const [master] = await masters(scene);
  master.suspend();
  await delay(5_000);
  master.resume();
};

const FORGETTING = async (scene) => {
  for (const master of await masters(scene)) await master.command('FLUSHALL');
  const renamed = ({ output }) => /rejoining as a new node/.test(output);
  await eventually(() => assert.ok(scene.stage.nodes.every(renamed), 'a node has not noticed'), REPAIR_MS);
};

const DROPPING = async (scene) => {
  for (const master of await masters(scene)) await master.command('CLIENT', 'KILL', 'TYPE', 'pubsub');
};

const KILLING_A_MASTER = async (scene) => {
  const [master] = await masters(scene);
  await master.crash();
  await eventually(() => scene.isRed(), REPAIR_MS);
};

/** What happens to Redis. A node that has lost it refuses what is published, and its clients miss what others take. */
const BROKERS = {
  standalone: {
    start: startRedis,
    faults: {
      async 'Redis dies, and comes back empty after 2 s'({ stage: { broker } }) {
        await broker.crash();
        await delay(2_000);
        await broker.restart();
      },
      'Redis is emptied': FORGETTING,
      'Redis drops connections': DROPPING,
      async 'Redis pauses for 5 s'({ stage: { broker } }) {
        await broker.command('CLIENT', 'PAUSE', '5000', 'ALL');
        await delay(5_000);
      },
      'Redis stands still for 5 s': STANDING_STILL,
    },
  },
  sentinel: {
    start: startSentinels,
    faults: {
      async 'SENTINEL FAILOVER'(scene) {
        await scene.stage.broker.failOver();
        await eventually(() => scene.isRed(), REPAIR_MS);
      },
      'the master is killed': KILLING_A_MASTER,
      'the master stands still for 5 s': STANDING_STILL,
      'the master is emptied': FORGETTING,
      'the master drops connections': DROPPING,
    },
  },
  cluster: {
    start: startRedisCluster,
    faults: {
      async 'CLUSTER FAILOVER'(scene) {
        await scene.stage.broker.failOver();
        await eventually(() => scene.isRed(), REPAIR_MS);
      },
      'a master is killed': KILLING_A_MASTER,
      'a master stands still for 5 s': STANDING_STILL,
      async 'slots move to another master'(scene) {
        await scene.stage.broker.reshard(2_000);
      },
      'all masters are emptied': FORGETTING,
      'the masters drop connections': DROPPING,
    },
  },
};

/** Three nodes, and on each a witness of every channel; every channel has a publisher. */
class Scene {
  doors = [];
  witnesses = [];
  publishers = new Map();
  /** When a node said that it was not ready: `{ at, from, to }`. */
  red = [];
  #excused = new Set();
  #abandoned = new Set();
  #isOver = false;
  #watching;

  static async open(t, stage, failsOver) {
    const scene = new Scene();
    scene.stage = stage;
    for (const node of stage.nodes) {
      const door = await Forwarder.start(node);
      t.after(() => door.close());
      scene.doors.push(door);
    }
    const channels = Array.from({ length: CHANNELS }, (_, number) => `presence-room-${number}`);
    for (const channel of channels) {
      const seats = scene.doors.map(async ({ port }, at) => {
        const witness = await stage.witness(t, channel, { port, user: `user-${at}` });
        return Object.assign(witness, { at, user: `user-${at}` });
      });
      scene.witnesses.push(...(await Promise.all(seats)));
    }
    await scene.agreed();
    const pause = () => delay(PACE_MS);
    for (const channel of channels) scene.publishers.set(channel, new Publisher(stage, channel, { failsOver, pause }));
    scene.#watching = Promise.all(stage.nodes.map((node, at) => scene.#watch(node, at)));
    t.after(() => scene.close());
    return scene;
  }

  async #watch(node, at) {
    let now;
    while (!this.#isOver) {
      const status = await fetch(`${node.httpUrl}/ready`, { signal: AbortSignal.timeout(1_000) }).then(
        (response) => response.text().then(() => response.status),
        () => 0,
      );
      const isRed = status === 503;
      if (isRed && !now) this.red.push((now = { at, from: performance.now() }));
      if (now) now.to = performance.now();
      if (!isRed) now = undefined;
      await delay(LOOK_MS);
    }
  }

  async close() {
    this.#isOver = true;
    await this.#watching;
    for (const publisher of this.publishers.values()) await publisher.stop();
  }

  isRed() {
    assert.ok(this.red.length > 0, 'no node has noticed');
  }

  witnessesOn(at) {
    return this.witnesses.filter((witness) => witness.at === at);
  }

  /** Clients of this node may miss something. */
  excuse(at) {
    for (const witness of this.witnessesOn(at)) this.#excused.add(witness);
  }

  /** Clients of this node are not looked at any more. */
  abandon(at) {
    for (const witness of this.witnessesOn(at)) {
      this.#abandoned.add(witness);
      witness.pusher.disconnect();
    }
  }

  get present() {
    return this.witnesses.filter((witness) => !this.#abandoned.has(witness));
  }

  /** Waits until everybody everywhere sees those who are there. */
  async agreed(timeoutMs) {
    for (const channel of new Set(this.witnesses.map((witness) => witness.channel.name))) {
      const witnesses = this.present.filter((witness) => witness.channel.name === channel);
      const users = witnesses.map(({ user }) => user);
      await this.stage.agreed(channel, witnesses, users, timeoutMs);
    }
  }

  /** Ends the publishing, and counts. */
  async count() {
    for (const [channel, publisher] of this.publishers) {
      await publisher.progress();
      const last = await publisher.stop();
      for (const witness of this.present.filter((one) => one.channel.name === channel)) await witness.reached(last);
    }
    const sum = { accepted: 0, refused: 0, heard: 0, lost: 0, unexcused: 0, unsure: 0, doubled: 0, disordered: 0 };
    for (const publisher of this.publishers.values()) {
      sum.accepted += publisher.accepted.size;
      sum.refused += publisher.refused.size;
    }
    for (const witness of this.present) {
      const publisher = this.publishers.get(witness.channel.name);
      const { lost, unsure, doubled, disordered } = judge(publisher, witness);
      const isExcused = (number) => this.#excused.has(witness) || this.#wasRed(witness.at, publisher.accepted.get(number));
      sum.heard += witness.ticks.length;
      sum.lost += lost.length;
      sum.unexcused += lost.filter((number) => !isExcused(number)).length;
      sum.unsure += unsure.length;
      sum.doubled += doubled.length;
      sum.disordered += disordered.length;
    }
    for (const channel of this.publishers.keys()) {
      const [first, ...others] = this.present.filter((witness) => witness.channel.name === channel);
      sum.disordered += others.filter((other) => !agreeOnOrder(first, other)).length;
    }
    const redOf = (at) => this.red.filter((red) => red.at === at).reduce((all, { from, to }) => all + to - from, 0);
    return { ...sum, redMs: Math.max(...this.doors.map((_, at) => redOf(at))) };
  }

  #wasRed(at, time) {
    const isAbout = ({ from, to }) => from - NOTICE_MS < time && time < to + LOOK_MS;
    return this.red.some((red) => red.at === at && isAbout(red));
  }
}

/** Lets one thing happen; what came of it. */
async function run(start, happen, { isOfNodes }) {
  const closing = [];
  const t = { after: (close) => closing.unshift(close) };
  try {
    const server = { drain_secs: 1, shutdown_deadline_secs: 10 };
    const stage = await ClusterStage.start(undefined, { broker: start, server });
    t.after(() => stage.close());
    const scene = await Scene.open(t, stage, isOfNodes);
    await delay(CALM_MS);
    const begin = performance.now();
    await happen(scene);
    const happened = performance.now();
    for (const at of stage.nodes.keys()) await stage.ready(at, REPAIR_MS);
    await scene.agreed(Math.max(DEATH_MS, REPAIR_MS));
    const repairMs = performance.now() - happened;
    await delay(CALM_MS);
    await scene.agreed();
    const counted = await scene.count();
    const wrong = [];
    if (counted.doubled > 0) wrong.push('doubled');
    if (counted.disordered > 0) wrong.push('out of order');
    if (counted.unexcused > 0) wrong.push(`${counted.unexcused} lost without need`);
    if (isOfNodes && counted.refused > 0) wrong.push('refused');
    if (!isOfNodes && scene.present.some(({ sockets }) => sockets.length > 1)) wrong.push('a client was dropped');
    return { ...counted, repairMs, tookMs: happened - begin, wrong };
  } catch (error) {
    return { wrong: [error.message.trim().split('\n')[0]], error };
  } finally {
    for (const close of closing) await close();
  }
}

const COLUMNS = ['Redis', 'what happens', 'taken', 'refused', 'heard', 'lost', 'refused, heard', 'doubled', 'order', 'red', 'repair', ''];
const seconds = (ms) => (ms === undefined ? '' : `${(ms / 1000).toFixed(1)} s`);

function row(kind, what, result) {
  const { accepted, refused, heard, lost, unsure, doubled, disordered, redMs, repairMs, wrong } = result;
  const numbers = [accepted, refused, heard, lost, unsure, doubled, disordered].map((number) => String(number ?? ''));
  return [kind, what, ...numbers, seconds(redMs), seconds(repairMs), wrong.join(', ') || 'holds'];
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
  for (const kind of kinds) assert.ok(BROKERS[kind], `there is no broker ${kind}: there are ${Object.keys(BROKERS)}`);
  const rows = [COLUMNS];
  let holds = true;
  for (const kind of kinds) {
    const { start, faults } = BROKERS[kind];
    for (const [what, happen] of Object.entries({ ...NODE_FAULTS, ...faults })) {
      if (values.only && !what.includes(values.only)) continue;
      process.stderr.write(`${kind}: ${what}\n`);
      const result = await run(start, happen, { isOfNodes: what in NODE_FAULTS });
      if (result.error) console.error(result.error);
      holds &&= result.wrong.length === 0;
      rows.push(row(kind, what, result));
    }
  }
  print(rows);
  return holds ? 0 : 1;
}

process.exit(await main());
