/** The fixture of most test files: a pusherd, an authorisation server, SDKs and clients. */
import { before } from 'node:test';
import { Agent } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import Pusher from 'pusher-js';
import PusherServer from 'pusher';
import { MASTER_KEY, startAuth } from './auth.mjs';
import { Inbox } from './inbox.mjs';
import { APPS, startPusherd } from './pusherd.mjs';
import { closeWith, file } from './resources.mjs';

export class Stage {
  server;
  auth;
  /** A Node SDK for each of `APPS`. */
  sdk = {};
  #names = 0;

  /** Starts the servers. They are stopped with `owner`. */
  async open(owner, settings) {
    this.auth = await startAuth(owner);
    this.server = await startPusherd(owner, settings);
    for (const name of Object.keys(APPS)) this.sdk[name] = this.sdkFor(name);
  }

  /** A name that no other test of this file uses. */
  unique(prefix) {
    this.#names += 1;
    return `${prefix}-${this.#names}`;
  }

  /** A Node SDK for an app. `changes` override its options. */
  sdkFor(app, changes = {}) {
    const { id: appId, key, secret } = APPS[app];
    return new PusherServer({
      appId,
      key,
      secret,
      host: this.server.host,
      port: this.server.port,
      useTLS: false,
      encryptionMasterKeyBase64: MASTER_KEY,
      agent: new Agent({ keepAlive: true }),
      ...changes,
    });
  }

  /** Options for pusher-js. `user` and `params` are sent to the authorisation server. */
  options({ app = 'main', user, params = {}, port = this.server.port, ...rest } = {}) {
    const endpoint = (path) => ({
      endpoint: `${this.auth.url}${path}?app=${app}`,
      transport: 'ajax',
      params,
      headers: user === undefined ? {} : { 'X-User': user },
    });
    return {
      cluster: '',
      wsHost: this.server.host,
      wsPort: port,
      forceTLS: false,
      enabledTransports: ['ws', 'wss'],
      // pusher-js ignores the older options `authEndpoint` and `auth` if this one is present.
      ...(rest.authEndpoint ? {} : { channelAuthorization: endpoint('/pusher/auth') }),
      userAuthentication: endpoint('/pusher/user-auth'),
      ...rest,
    };
  }

  /** A pusher-js client that is connecting. It is disconnected when the test ends. */
  client(t, options = {}) {
    const pusher = new Pusher(options.key ?? APPS[options.app ?? 'main'].key, this.options(options));
    const sockets = new Set();
    pusher.connection.bind('connected', () => sockets.add(pusher.connection.connection.transport.socket));
    closeWith(t, 'a pusher-js client', () => {
      pusher.disconnect();
      // The WebSocket of pusher-js waits up to 30 s for the server to close the TCP connection, even if the server is gone.
      for (const socket of sockets) socket._closeTimer?.unref();
    });
    return pusher;
  }

  /** A connected pusher-js client. */
  async connect(t, options = {}) {
    const pusher = this.client(t, options);
    await connected(pusher);
    return pusher;
  }

  /** A connected and signed-in pusher-js client. */
  async signIn(t, options) {
    const pusher = await this.connect(t, options);
    const success = next(pusher, 'pusher:signin_success');
    pusher.signin();
    await success;
    return pusher;
  }
}

/**
 * Opens a stage for the tests of a file, then calls `open`. `server` overrides settings of the server. `apps` returns
 * settings of apps, by name.
 */
export function useStage({ server, apps = () => {}, open = () => {} } = {}) {
  const stage = new Stage();
  before(async () => {
    await stage.open(file, { server, apps: await apps() });
    await open();
  });
  return stage;
}

/** Waits until `pusher` is connected. */
export async function connected(pusher) {
  if (pusher.connection.state === 'connected') return;
  await next(pusher.connection, 'connected');
}

/** The data of the next `event` of an emitter with `bind`: a client, a channel or a connection. */
export function next(emitter, event, timeoutMs) {
  const inbox = new Inbox(event);
  const put = (data) => {
    emitter.unbind(event, put);
    inbox.put(data);
  };
  emitter.bind(event, put);
  return inbox.take(timeoutMs);
}

/** An inbox of the `events` of `emitter`: the arguments of each callback. */
export function listen(emitter, ...events) {
  const inbox = new Inbox(events.join(', '));
  for (const event of events) emitter.bind(event, (...args) => inbox.put(args));
  return inbox;
}

/** An inbox of the frames of `channel`, internal ones included, as pusher-js decodes them: `{ event, data, user_id? }`. */
export function framesOf(pusher, channel) {
  const inbox = new Inbox(`frames of ${channel}`);
  pusher.connection.bind('message', ({ channel: of, ...frame }) => {
    if (of === channel) inbox.put(frame);
  });
  return inbox;
}

/** An inbox of the `pusher:error` frames of a connection: `{ code, message }`. */
export function errorsOf(pusher) {
  const inbox = new Inbox('pusher:error');
  pusher.connection.bind('message', ({ event, data }) => {
    if (event === 'pusher:error') inbox.put(data);
  });
  return inbox;
}

/** Subscribes, and waits for `pusher:subscription_succeeded`. */
export async function subscribe(pusher, name) {
  const channel = pusher.subscribe(name);
  if (channel.subscribed) return channel;
  const [event, data] = await subscriptionResult(channel);
  if (event === 'pusher:subscription_error') throw new Error(`the subscription to ${name} was refused: ${JSON.stringify(data)}`);
  return channel;
}

/** Subscribes, and waits for `pusher:subscription_error`. Returns its data. */
export async function refused(pusher, name) {
  const [event, data] = await subscriptionResult(pusher.subscribe(name));
  if (event === 'pusher:subscription_succeeded') throw new Error(`the subscription to ${name} succeeded`);
  return data;
}

function subscriptionResult(channel) {
  const inbox = new Inbox(`the subscription to ${channel.name}`);
  for (const event of ['pusher:subscription_succeeded', 'pusher:subscription_error']) {
    channel.bind(event, (data) => inbox.put([event, data]));
  }
  return inbox.take();
}

/** Polls `check` until it does not throw, and returns its result. For states that cause no event to wait for. */
export async function eventually(check, timeoutMs = 10_000) {
  const end = performance.now() + timeoutMs;
  for (;;) {
    try {
      return await check();
    } catch (error) {
      if (performance.now() > end) throw error;
    }
    await delay(20);
  }
}

/** Waits for a pong. A server handles the messages of a connection in order, so it has handled all earlier ones. */
export async function roundTrip(pusher) {
  const pong = new Inbox('pusher:pong');
  const put = ({ event }) => event === 'pusher:pong' && pong.put();
  pusher.connection.bind('message', put);
  pusher.send_event('pusher:ping', {});
  await pong.take();
  pusher.connection.unbind('message', put);
}
