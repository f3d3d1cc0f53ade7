/**
 * Several pusherd over one broker, and what sees whether they are as one: witnesses of a channel, a publisher that
 * counts, and a receiver of webhooks that knows ids.
 */
import assert from 'node:assert/strict';
import { Agent } from 'node:http';
import requests from 'pusher/lib/requests.js';
import { startAuth } from './auth.mjs';
import { APPS, startPusherd } from './pusherd.mjs';
import { startReceiver } from './receiver.mjs';
import { startRedis } from './redis.mjs';
import { Stage, eventually } from './stage.mjs';

/** The others find out within this time that a node died: its lease of 12 s, and two beats of 4 s. */
export const DEATH_MS = 25_000;

/** What is told to receivers of webhooks here. */
const EVENT_TYPES = [
  'channel_occupied',
  'channel_vacated',
  'member_added',
  'member_removed',
  'client_event',
  'user_online',
  'user_offline',
];

/** A stage with several nodes; the first is its `server`. */
export class ClusterStage extends Stage {
  broker;
  nodes = [];
  webhooks = new Webhooks();
  #receiver;

  /** Starts everything. With a test, its end closes the stage; else the caller does. */
  static async start(t, { count = 3, server = {}, broker = startRedis } = {}) {
    const stage = new ClusterStage();
    t?.after(() => stage.close());
    try {
      await stage.#start({ count, server, broker });
    } catch (error) {
      if (!t) await stage.close();
      throw error;
    }
    return stage;
  }

  async #start({ count, server, broker }) {
    this.#receiver = await startReceiver(this.webhooks);
    this.auth = await startAuth();
    this.broker = await broker();
    const webhooks = { webhooks: [{ url: this.#receiver.url, event_types: EVENT_TYPES }] };
    const settings = {
      server: { cluster: 'redis', ...server },
      redis: this.broker.settings,
      apps: { main: webhooks, counting: webhooks },
    };
    while (this.nodes.length < count) this.nodes.push(await startPusherd(settings));
    [this.server] = this.nodes;
    for (const app of Object.keys(APPS)) this.sdk[app] = this.sdkFor(app);
    for (const at of this.nodes.keys()) await this.ready(at);
  }

  async close() {
    const stopping = this.nodes.map((node) => node.stop());
    const results = await Promise.allSettled(stopping);
    await this.auth?.close();
    await this.#receiver?.close();
    await this.broker?.stop();
    for (const { reason } of results.filter(({ status }) => status === 'rejected')) throw reason;
  }

  /** A Node SDK that speaks to one node. */
  sdkOn(at, app = 'main') {
    return this.sdkFor(app, { port: this.nodes[at].port, agent: new Agent() });
  }

  /** Kills a node, which is one no more: those behind it move up. */
  async lose(at) {
    const [node] = this.nodes.splice(at, 1);
    await node.crash();
    await node.stop();
  }

  /** The status of `/ready` on a node. */
  async readiness(at) {
    return (await fetch(`${this.nodes[at].httpUrl}/ready`)).status;
  }

  /** Waits until a node is one of the cluster. */
  ready(at, timeoutMs) {
    return eventually(async () => assert.equal(await this.readiness(at), 200, 'it is not ready'), timeoutMs);
  }

  /** Publishes as an SDK does, and answers with the whole response. */
  trigger(at, name, channel, data, app = 'main') {
    const { id, key, secret } = APPS[app];
    const { token } = this.sdkFor(app, { key, secret }).config;
    const path = `/apps/${id}/events`;
    const body = JSON.stringify({ name, channel, data: JSON.stringify(data) });
    const query = requests.createSignedQueryString(token, { method: 'POST', path, body });
    const headers = { 'content-type': 'application/json' };
    return fetch(`${this.nodes[at].httpUrl}${path}?${query}`, { method: 'POST', headers, body });
  }

  /** What a node answers to a query. */
  async get(at, path, params, app = 'main') {
    return (await this.sdkOn(at, app).get({ path, params })).json();
  }

  /** Who is in a presence channel, by a node's answer. */
  async users(at, channel) {
    const { users } = await this.get(at, `/channels/${channel}/users`);
    return users.map(({ id }) => id).sort();
  }

  /** A connected client on a node, which is told and keeps what happens in a channel. */
  async witness(t, channel, { at, port = this.nodes[at].port, user, ...options } = {}) {
    const witness = new Witness(this.client(t, { ...options, user, port }), channel);
    await witness.subscribed();
    return witness;
  }

  /**
   * Waits until all nodes and all witnesses know the same members of a channel: who is missing when a broker comes back is
   * doubted for 16 seconds.
   */
  async agreed(channel, witnesses, users, timeoutMs = 30_000) {
    const expected = [...users].sort();
    await eventually(async () => {
      for (const at of this.nodes.keys()) assert.deepEqual(await this.users(at, channel), expected, `node ${at}`);
      for (const witness of witnesses) {
        assert.deepEqual(witness.members, expected, 'as pusher-js has it');
        assert.deepEqual([...witness.roster].sort(), expected, 'by its frames');
      }
    }, timeoutMs);
    for (const witness of witnesses) assert.deepEqual(witness.contradictions, []);
  }
}

/** A client that keeps what it hears of one channel. */
export class Witness {
  pusher;
  channel;
  /** Who came and went, as `+ada` and `-ada`. */
  changes = [];
  /** Who is there. */
  roster = new Set();
  /** Members added who were there, and removed who were not. */
  contradictions = [];
  /** The socket ids that it has had. */
  sockets = [];
  /** What publishers have sent, by their channels' numbers: `{ number, socket }`. */
  ticks = [];
  /** All other events, as `[event, data]`. */
  heard = [];
  #fences = new Set();
  #isSubscribed = false;

  constructor(pusher, name) {
    this.pusher = pusher;
    pusher.connection.bind('connected', ({ socket_id: socket }) => this.sockets.push(socket));
    pusher.connection.bind('message', ({ channel, event, data }) => {
      if (channel === name) this.#hear(event, data);
    });
    this.channel = pusher.subscribe(name);
  }

  #hear(event, data) {
    switch (event) {
      case 'pusher_internal:subscription_succeeded':
        this.roster = new Set(data.presence?.ids);
        this.#isSubscribed = true;
        break;
      case 'pusher_internal:member_added':
        if (this.roster.has(data.user_id)) this.contradictions.push(`+${data.user_id}`);
        this.roster.add(data.user_id);
        this.changes.push(`+${data.user_id}`);
        break;
      case 'pusher_internal:member_removed':
        if (!this.roster.delete(data.user_id)) this.contradictions.push(`-${data.user_id}`);
        this.changes.push(`-${data.user_id}`);
        break;
      case 'tick':
        this.ticks.push({ number: data, socket: this.pusher.connection.socket_id });
        break;
      case 'fence':
        this.#fences.add(data);
        break;
      default:
        this.heard.push([event, data]);
    }
  }

  /** Who is there, as pusher-js has it. */
  get members() {
    return Object.keys(this.channel.members.members).sort();
  }

  /** Waits until the server has said that it subscribed. */
  subscribed() {
    return eventually(() => assert.ok(this.#isSubscribed, `${this.channel.name}: not subscribed`));
  }

  /** Waits for a number of a publisher. */
  reached(number, timeoutMs) {
    return eventually(() => assert.ok(this.ticks.at(-1)?.number >= number, `${number} was not heard`), timeoutMs);
  }

  /** Waits until what is published now has come: then all before it has. */
  async fenced(stage, at) {
    const fence = Math.random();
    await stage.sdkOn(at).trigger(this.channel.name, 'fence', fence);
    await eventually(() => assert.ok(this.#fences.has(fence), 'the fence did not come'));
  }
}

/** Publishes numbers on a channel, one after the other, until it is stopped; to one node after the other. */
export class Publisher {
  /** Numbers that were answered with 200, and when, as `performance.now()` has it. */
  accepted = new Map();
  /** Numbers that were not, with what was said instead: they may have been published all the same. */
  refused = new Map();
  number = 0;
  #isStopped = false;
  #running;

  /** `failsOver`: what a node refuses goes to the next one, as a load balancer does with what was not begun. `pause` is waited for after each. */
  constructor(stage, channel, { failsOver = false, pause = () => {} } = {}) {
    this.#running = this.#run(stage, channel, failsOver, pause);
  }

  async #run(stage, channel, failsOver, pause) {
    while (!this.#isStopped) {
      this.number += 1;
      for (let attempt = 0; ; attempt += 1) {
        const at = (this.number + attempt) % stage.nodes.length;
        try {
          await stage.sdkOn(at).trigger(channel, 'tick', this.number);
          this.accepted.set(this.number, performance.now());
          break;
        } catch (error) {
          if (failsOver && attempt < stage.nodes.length) continue;
          this.refused.set(this.number, error.status ?? error.error?.code ?? error);
          break;
        }
      }
      await pause();
    }
  }

  /** Waits until so many more were published. */
  progress(count = 20) {
    const wanted = this.accepted.size + count;
    return eventually(() => assert.ok(this.accepted.size >= wanted, 'nothing can be published'));
  }

  /** Ends it; the last number that was accepted. */
  async stop() {
    this.#isStopped = true;
    await this.#running;
    return Math.max(...this.accepted.keys());
  }
}

/**
 * What a witness should have heard of a publisher and did not, and so on. Of each of its connections, all is counted
 * between the first number and the last. What was refused may have been published (`unsure`), and then at any time: a
 * Redis that stood still still has it.
 */
export function judge(publisher, witness) {
  const { accepted } = publisher;
  const [lost, doubled, disordered, unsure] = [[], [], [], []];
  for (const socket of witness.sockets) {
    const numbers = witness.ticks.filter((tick) => tick.socket === socket).map(({ number }) => number);
    const heard = new Set();
    let last = 0;
    for (const number of numbers) {
      if (heard.has(number)) doubled.push(number);
      else if (!accepted.has(number)) unsure.push(number);
      else if (number < last) disordered.push(number);
      else last = number;
      heard.add(number);
    }
    const first = Math.min(...[...heard].filter((number) => accepted.has(number)));
    for (let number = first; number < last; number += 1) {
      if (accepted.has(number) && !heard.has(number)) lost.push(number);
    }
  }
  return { lost, doubled, disordered, unsure };
}

/** Whether two witnesses have heard what both have heard in one order. */
export function agreeOnOrder(one, other) {
  const [ones, others] = [one, other].map(({ ticks }) => new Set(ticks.map(({ number }) => number)));
  const common = ([...numbers], set) => numbers.filter((number) => set.has(number)).join();
  return common(ones, others) === common(others, ones);
}

/** What a receiver was told. */
export class Webhooks {
  /** Events in the order of arrival, each with its `id`. */
  arrived = [];

  put({ headers, rawBody }) {
    const ids = headers['x-pusherd-event-ids'].split(',').map((id) => id.trim());
    const { events } = JSON.parse(rawBody);
    assert.equal(ids.length, events.length);
    events.forEach((event, at) => this.arrived.push({ id: ids[at], ...event }));
  }

  /** Those of a channel or a user, each id once, as `member_added ada`. */
  of(subject) {
    const events = new Map(this.arrived.map((event) => [event.id, event]));
    const all = [...events.values()].filter(({ channel, user_id: user }) => (channel ?? user) === subject);
    return all.map(({ name, channel, user_id: user }) => (channel && user ? `${name} ${user}` : name));
  }

  /** Those that came more than once, by their ids. */
  get repeated() {
    const seen = new Set();
    return this.arrived.filter(({ id }) => seen.has(id) || !seen.add(id));
  }

  /** Waits until this and nothing else was told of a channel or a user. */
  async are(subject, expected, timeoutMs) {
    await eventually(() => assert.ok(this.of(subject).length >= expected.length, `${this.of(subject)}`), timeoutMs);
    assert.deepEqual(this.of(subject), expected);
  }
}
