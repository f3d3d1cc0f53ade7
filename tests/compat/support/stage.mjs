/**
 * What nearly every suite needs: one pusherd, one authorisation server, and clients that are closed with their test.
 */
import { after, before } from 'node:test';
import { Agent } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import Pusher from 'pusher-js';
import PusherServer from 'pusher';
import { MASTER_KEY, startAuth } from './auth.mjs';
import { Inbox } from './inbox.mjs';
import { APPS, startPusherd } from './pusherd.mjs';

/** See `useStage`. */
export class Stage {
  server;
  auth;
  /** A Node SDK for each of `APPS`. */
  sdk = {};
  #names = 0;

  async open(server, apps) {
    this.auth = await startAuth();
    this.server = await startPusherd({ server, apps: await apps() });
    for (const name of Object.keys(APPS)) this.sdk[name] = this.sdkFor(name);
  }

  async close() {
    await this.auth?.close();
    await this.server?.stop();
  }

  /** A name that no other test of this file uses. */
  unique(prefix) {
    this.#names += 1;
    return `${prefix}-${this.#names}`;
  }

  /** A Node SDK for an app; `changes` may spoil its options. */
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

  /** Options for pusher-js. `user` and `params` go to the authorisation server. */
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
      // pusher-js ignores the older `authEndpoint` and `auth` where this option is present.
      ...(rest.authEndpoint ? {} : { channelAuthorization: endpoint('/pusher/auth') }),
      userAuthentication: endpoint('/pusher/user-auth'),
      ...rest,
    };
  }

  /** A pusher-js client that is on its way, and disconnected when the test ends. */
  client(t, options = {}) {
    const pusher = new Pusher(options.key ?? APPS[options.app ?? 'main'].key, this.options(options));
    const sockets = new Set();
    pusher.connection.bind('connected', () => sockets.add(pusher.connection.connection.transport.socket));
    t.after(() => {
      pusher.disconnect();
      // The WebSocket inside pusher-js would wait 30 s for the end of what the server has ended already.
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
 * Opens a stage for the tests of this file, and after it whatever else they need. `server` goes over its settings, and
 * what `apps` answers over those of the apps, by name.
 */
export function useStage({ server = {}, apps = () => {}, open = () => {}, close = () => {} } = {}) {
  const stage = new Stage();
  before(async () => {
    await stage.open(server, apps);
    await open();
  });
  after(async () => {
    try {
      await close();
    } finally {
      await stage.close();
    }
  });
  return stage;
}

/** Waits until `pusher` is connected. */
export async function connected(pusher) {
  if (pusher.connection.state === 'connected') return;
  await next(pusher.connection, 'connected');
}

/** The data of the next `event` of anything with `bind`, such as a client, a channel or a connection. */
export function next(emitter, event, timeoutMs) {
  const inbox = new Inbox(event);
  const put = (data) => {
    emitter.unbind(event, put);
    inbox.put(data);
  };
  emitter.bind(event, put);
  return inbox.take(timeoutMs);
}

/** All that `emitter` says under `events`, as the arguments of its callbacks. */
export function listen(emitter, ...events) {
  const inbox = new Inbox(events.join(', '));
  for (const event of events) emitter.bind(event, (...args) => inbox.put(args));
  return inbox;
}

/** Every frame of `channel` from now on, as pusher-js decodes it, internal ones too: `{ event, data, user_id? }`. */
export function framesOf(pusher, channel) {
  const inbox = new Inbox(`frames of ${channel}`);
  pusher.connection.bind('message', ({ channel: of, ...frame }) => {
    if (of === channel) inbox.put(frame);
  });
  return inbox;
}

/** The `pusher:error` frames of a connection from now on: `{ code, message }`. */
export function errorsOf(pusher) {
  const inbox = new Inbox('pusher:error');
  pusher.connection.bind('message', ({ event, data }) => {
    if (event === 'pusher:error') inbox.put(data);
  });
  return inbox;
}

/** Subscribes, and waits for the success. */
export async function subscribe(pusher, name) {
  const channel = pusher.subscribe(name);
  if (channel.subscribed) return channel;
  const [event, data] = await answer(channel);
  if (event === 'pusher:subscription_error') throw new Error(`${name} was refused: ${JSON.stringify(data)}`);
  return channel;
}

/** Subscribes, and waits for the refusal: what `pusher:subscription_error` carries. */
export async function refused(pusher, name) {
  const [event, data] = await answer(pusher.subscribe(name));
  if (event === 'pusher:subscription_succeeded') throw new Error(`${name} was granted`);
  return data;
}

function answer(channel) {
  const inbox = new Inbox(`answer to ${channel.name}`);
  for (const event of ['pusher:subscription_succeeded', 'pusher:subscription_error']) {
    channel.bind(event, (data) => inbox.put([event, data]));
  }
  return inbox.take();
}

/** Looks at what only shows when it is asked for, until `check` holds: it throws (as `assert` does) while it does not. */
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

/** Makes sure that the server has handled all that `pusher` sent so far: it works off one connection in order. */
export async function settle(pusher) {
  const pong = new Inbox('pusher:pong');
  const put = ({ event }) => event === 'pusher:pong' && pong.put();
  pusher.connection.bind('message', put);
  pusher.send_event('pusher:ping', {});
  await pong.take();
  pusher.connection.unbind('message', put);
}
