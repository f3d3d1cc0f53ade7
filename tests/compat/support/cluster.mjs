/**
 * A cluster: several nodes of pusherd over one Redis, with recorders of what clients and webhook receivers get, and
 * publishers that number their events.
 */
import assert from 'node:assert/strict';
import { Agent } from 'node:http';
import requests from 'pusher/lib/requests.js';
import { startAuth } from './auth.mjs';
import { APPS, Pusherd } from './pusherd.mjs';
import { startReceiver } from './receiver.mjs';
import { startRedis } from './redis.mjs';
import { closeWith } from './resources.mjs';
import { Stage, eventually } from './stage.mjs';

/** The other nodes have removed a dead node within this time: its lease of 12 s, two heartbeats of 4 s, and a margin. */
export const LEASE_EXPIRY_MS = 25_000;

const WEBHOOK_EVENT_TYPES = [
  'channel_occupied',
  'channel_vacated',
  'member_added',
  'member_removed',
  'client_event',
  'user_online',
  'user_offline',
];

/** A stage with several nodes. `server` is the first. */
export class ClusterStage extends Stage {
  redis;
  /** The nodes that tests use. */
  nodes = [];
  webhooks = new WebhookLog();
  /** All nodes that were started, killed and paused ones included. */
  #started = [];

  /** Starts Redis and the nodes. They are stopped with `owner`. */
  static async start(owner, { count = 3, server = {}, redis = startRedis } = {}) {
    const stage = new ClusterStage();
    const receiver = await startReceiver(owner, stage.webhooks);
    stage.auth = await startAuth(owner);
    stage.redis = await redis(owner);
    const webhooks = { webhooks: [{ url: receiver.url, event_types: WEBHOOK_EVENT_TYPES }] };
    const settings = {
      server: { cluster: 'redis', ...server },
      redis: stage.redis.settings,
      apps: { main: webhooks, counting: webhooks },
    };
    closeWith(owner, 'the nodes', () => stage.#stopNodes());
    while (stage.nodes.length < count) {
      const node = new Pusherd(settings);
      stage.#started.push(node);
      stage.nodes.push(await node.start());
    }
    [stage.server] = stage.nodes;
    for (const app of Object.keys(APPS)) stage.sdk[app] = stage.sdkFor(app);
    for (const at of stage.nodes.keys()) await stage.ready(at);
    return stage;
  }

  async #stopNodes() {
    const results = await Promise.allSettled(this.#started.map((node) => node.stop()));
    for (const { reason } of results.filter(({ status }) => status === 'rejected')) throw reason;
  }

  /** A Node SDK that sends its requests to one node. */
  sdkOn(at, app = 'main') {
    return this.sdkFor(app, { port: this.nodes[at].port, agent: new Agent() });
  }

  /** Removes a node from `nodes` and kills it. */
  async kill(at) {
    const [node] = this.nodes.splice(at, 1);
    await node.kill();
  }

  /** The status of `/ready` on a node. */
  async readiness(at) {
    return (await fetch(`${this.nodes[at].httpUrl}/ready`)).status;
  }

  /** Waits until a node is ready. */
  ready(at, timeoutMs) {
    return eventually(async () => assert.equal(await this.readiness(at), 200, `node ${at} is not ready`), timeoutMs);
  }

  /** Publishes an event without an SDK, and returns the response with its headers. */
  trigger(at, name, channel, data, app = 'main') {
    const { id, key, secret } = APPS[app];
    const { token } = this.sdkFor(app, { key, secret }).config;
    const path = `/apps/${id}/events`;
    const body = JSON.stringify({ name, channel, data: JSON.stringify(data) });
    const query = requests.createSignedQueryString(token, { method: 'POST', path, body });
    const headers = { 'content-type': 'application/json' };
    return fetch(`${this.nodes[at].httpUrl}${path}?${query}`, { method: 'POST', headers, body });
  }

  /** The response of a node to a GET request of the HTTP API. */
  async get(at, path, params, app = 'main') {
    return (await this.sdkOn(at, app).get({ path, params })).json();
  }

  /** The user ids of a presence channel, according to a node. */
  async users(at, channel) {
    const { users } = await this.get(at, `/channels/${channel}/users`);
    return users.map(({ id }) => id).sort();
  }

  /** A client of a node that is subscribed to a channel and records what it receives. */
  async recorder(t, channel, { at, port = this.nodes[at].port, user, ...options } = {}) {
    const recorder = new Recorder(this.client(t, { ...options, user, port }), channel);
    await recorder.subscribed();
    return recorder;
  }

  /**
   * Waits until all nodes and all recorders have the members `users` of a channel. When Redis is available again, nodes
   * keep missing members for 16 s, because their clients may reconnect.
   */
  async converged(channel, recorders, users, timeoutMs = 30_000) {
    const expected = [...users].sort();
    await eventually(async () => {
      for (const at of this.nodes.keys()) assert.deepEqual(await this.users(at, channel), expected, `node ${at}`);
      for (const recorder of recorders) {
        assert.deepEqual(recorder.members, expected, 'the members of pusher-js');
        assert.deepEqual([...recorder.memberIds].sort(), expected, 'the members of the frames');
      }
    }, timeoutMs);
    for (const recorder of recorders) assert.deepEqual(recorder.inconsistencies, []);
  }
}

/** A client that records what it receives on one channel. */
export class Recorder {
  pusher;
  channel;
  /** Members added and removed, as `+ada` and `-ada`. */
  changes = [];
  /** The members according to the frames. */
  memberIds = new Set();
  /** Changes that added a present member or removed an absent one. */
  inconsistencies = [];
  /** The socket ids of all connections of the client. */
  sockets = [];
  /** The numbers of a publisher: `{ number, socket }`. */
  ticks = [];
  /** All other events, as `[event, data]`. */
  events = [];
  #fences = new Set();
  #isSubscribed = false;

  constructor(pusher, name) {
    this.pusher = pusher;
    pusher.connection.bind('connected', ({ socket_id: socket }) => this.sockets.push(socket));
    pusher.connection.bind('message', ({ channel, event, data }) => {
      if (channel === name) this.#record(event, data);
    });
    this.channel = pusher.subscribe(name);
  }

  #record(event, data) {
    switch (event) {
      case 'pusher_internal:subscription_succeeded':
        this.memberIds = new Set(data.presence?.ids);
        this.#isSubscribed = true;
        break;
      case 'pusher_internal:member_added':
        if (this.memberIds.has(data.user_id)) this.inconsistencies.push(`+${data.user_id}`);
        this.memberIds.add(data.user_id);
        this.changes.push(`+${data.user_id}`);
        break;
      case 'pusher_internal:member_removed':
        if (!this.memberIds.delete(data.user_id)) this.inconsistencies.push(`-${data.user_id}`);
        this.changes.push(`-${data.user_id}`);
        break;
      case 'tick':
        this.ticks.push({ number: data, socket: this.pusher.connection.socket_id });
        break;
      case 'fence':
        this.#fences.add(data);
        break;
      default:
        this.events.push([event, data]);
    }
  }

  /** The members according to pusher-js. */
  get members() {
    return Object.keys(this.channel.members.members).sort();
  }

  /** Waits for `pusher_internal:subscription_succeeded`. */
  subscribed() {
    return eventually(() => assert.ok(this.#isSubscribed, `${this.channel.name}: not subscribed`));
  }

  /** Waits for a number of a publisher, or a later one. */
  received(number, timeoutMs) {
    return eventually(() => assert.ok(this.ticks.at(-1)?.number >= number, `${number} was not received`), timeoutMs);
  }

  /** Publishes a fence and waits for it. All events that were published before it have arrived then. */
  async fenced(stage, at) {
    const fence = Math.random();
    await stage.sdkOn(at).trigger(this.channel.name, 'fence', fence);
    await eventually(() => assert.ok(this.#fences.has(fence), 'the fence was not received'));
  }
}

/** Publishes numbers on a channel, one after the other and to each node in turn, until it is stopped. */
export class Publisher {
  /** The numbers that were answered with 200, with the time of the response (`performance.now()`). */
  accepted = new Map();
  /** The other numbers, with the status or the error. They may have been published nevertheless. */
  rejected = new Map();
  number = 0;
  #isStopped = false;
  #running;

  /**
   * With `failsOver`, a number that a node rejects is sent to the next node, as a load balancer does with requests that
   * were not sent. `pause` is awaited after each number.
   */
  constructor(owner, stage, channel, { failsOver = false, pause = () => {} } = {}) {
    closeWith(owner, `the publisher of ${channel}`, () => this.stop());
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
          this.rejected.set(this.number, error.status ?? error.error?.code ?? error);
          break;
        }
      }
      await pause();
    }
  }

  /** Waits until `count` more numbers were accepted. */
  progress(count = 20) {
    const wanted = this.accepted.size + count;
    return eventually(() => assert.ok(this.accepted.size >= wanted, 'no event is accepted'));
  }

  /** Stops publishing, and returns the last number that was accepted. */
  async stop() {
    this.#isStopped = true;
    await this.#running;
    return Math.max(...this.accepted.keys());
  }
}

/**
 * Compares what a recorder received with what the publisher sent: the numbers that were lost, duplicated, out of order or
 * indeterminate. On each connection, the numbers between the first and the last received one count. A number that was
 * rejected is indeterminate: it may have been published, even later, because a paused Redis runs its commands when it is
 * resumed.
 */
export function compare(publisher, recorder) {
  const { accepted } = publisher;
  const [lost, duplicated, outOfOrder, indeterminate] = [[], [], [], []];
  for (const socket of recorder.sockets) {
    const numbers = recorder.ticks.filter((tick) => tick.socket === socket).map(({ number }) => number);
    const received = new Set();
    let last = 0;
    for (const number of numbers) {
      if (received.has(number)) duplicated.push(number);
      else if (!accepted.has(number)) indeterminate.push(number);
      else if (number < last) outOfOrder.push(number);
      else last = number;
      received.add(number);
    }
    const first = Math.min(...[...received].filter((number) => accepted.has(number)));
    for (let number = first; number < last; number += 1) {
      if (accepted.has(number) && !received.has(number)) lost.push(number);
    }
  }
  return { lost, duplicated, outOfOrder, indeterminate };
}

/** Whether two recorders received the numbers that both have received in the same order. */
export function haveSameOrder(one, other) {
  const [ones, others] = [one, other].map(({ ticks }) => new Set(ticks.map(({ number }) => number)));
  const common = ([...numbers], set) => numbers.filter((number) => set.has(number)).join();
  return common(ones, others) === common(others, ones);
}

/** The events that a webhook receiver got. */
export class WebhookLog {
  /** In the order of arrival, each with its `id`. */
  events = [];

  put({ headers, rawBody }) {
    const ids = headers['x-pusherd-event-ids'].split(',').map((id) => id.trim());
    const { events } = JSON.parse(rawBody);
    assert.equal(ids.length, events.length);
    events.forEach((event, at) => this.events.push({ id: ids[at], ...event }));
  }

  /** The events of a channel or a user, each id once, as `member_added ada`. */
  of(subject) {
    const events = new Map(this.events.map((event) => [event.id, event]));
    const all = [...events.values()].filter(({ channel, user_id: user }) => (channel ?? user) === subject);
    return all.map(({ name, channel, user_id: user }) => (channel && user ? `${name} ${user}` : name));
  }

  /** The events whose id had arrived before. */
  get duplicates() {
    const seen = new Set();
    return this.events.filter(({ id }) => seen.has(id) || !seen.add(id));
  }

  /** Waits until the events of a channel or a user are exactly these. */
  async expect(subject, expected, timeoutMs) {
    await eventually(() => assert.ok(this.of(subject).length >= expected.length, `${this.of(subject)}`), timeoutMs);
    assert.deepEqual(this.of(subject), expected);
  }
}
