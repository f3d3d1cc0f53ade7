/** The HTTP API with the Node SDK, and requests that it rejects. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { Agent } from 'node:http';
import { describe, test } from 'node:test';
import { framesOf, listen, next, subscribe, useStage } from '../support/stage.mjs';

const stage = useStage();

const get = async (path, params, sdk = stage.sdk.main) => (await sdk.get({ path, params })).json();
const post = async (path, body, sdk = stage.sdk.main) => (await sdk.post({ path, body })).json();

/** Asserts that a request fails with `status` and a body that does not contain the secret. */
async function rejectsWith(status, request, hint = '') {
  await assert.rejects(
    request,
    (error) => {
      assert.equal(error.status, status, `${hint} ${error.message}: ${error.body}`);
      assert.ok(error.body.trim().length > 0, `${hint}: the body is empty`);
      assert.doesNotMatch(error.body, /demo-secret/);
      return true;
    },
    hint,
  );
}

/** A subscriber of a channel, with an inbox of its later frames. */
async function subscriber(t, channel = stage.unique('news')) {
  const pusher = await stage.connect(t, { user: 'ada' });
  const frames = framesOf(pusher, channel);
  await subscribe(pusher, channel);
  await frames.take();
  return { channel, frames, pusher };
}

async function assertNothingBefore({ channel, frames }) {
  await stage.sdk.main.trigger(channel, 'fence', {});
  assert.deepEqual(await frames.take(), { event: 'fence', data: {} });
}

describe('idempotency keys', () => {
  test('an event or a batch with the key of an earlier one is not published again', async (t) => {
    const { channel, frames } = await subscriber(t);
    const key = stage.unique('key');
    for (const replayed of [null, 'true', 'true']) {
      const response = await stage.sdk.main.trigger(channel, 'once', {}, { idempotency_key: key });
      assert.deepEqual(await response.json(), {});
      assert.equal(response.headers.get('idempotent-replayed'), replayed);
    }
    assert.deepEqual(await frames.take(), { event: 'once', data: {} });
    await rejectsWith(422, stage.sdk.main.trigger(channel, 'other', {}, { idempotency_key: key }));
    const body = { batch: [{ channel, name: 'batched', data: '{}' }], idempotency_key: `${key}-batch` };
    assert.deepEqual(await post('/batch_events', body), {});
    assert.deepEqual(await post('/batch_events', body), {});
    assert.deepEqual(await frames.take(), { event: 'batched', data: {} });
    await assertNothingBefore({ channel, frames });
  });
});

describe('trigger', () => {
  test('responds with 200 and the JSON {}', async (t) => {
    const { channel, frames } = await subscriber(t);
    const response = await stage.sdk.main.trigger(channel, 'greeted', { a: 1 });
    assert.equal(response.status, 200);
    assert.match(response.headers.get('content-type'), /^application\/json/);
    assert.deepEqual(await response.json(), {});
    assert.deepEqual(await frames.take(), { event: 'greeted', data: { a: 1 } });
  });

  test('to 100 channels reaches all of them', async (t) => {
    const prefix = stage.unique('many');
    const names = Array.from({ length: 100 }, (_, i) => `${prefix}-${i}`);
    const pusher = await stage.connect(t);
    const channels = await Promise.all(names.map((name) => subscribe(pusher, name)));
    const inboxes = channels.map((channel) => listen(channel, 'greeted'));
    await stage.sdk.main.trigger(names, 'greeted', 1);
    for (const inbox of inboxes) assert.equal((await inbox.take())[0], 1);
  });

  test('to a channel named twice delivers once', async (t) => {
    const one = await subscriber(t);
    await stage.sdk.main.trigger([one.channel, one.channel], 'greeted', {});
    assert.equal((await one.frames.take()).event, 'greeted');
    await assertNothingBefore(one);
  });

  test('with info returns the attributes of every channel', async (t) => {
    const [news, room, empty] = [stage.unique('news'), stage.unique('presence-room'), stage.unique('empty')];
    for (const user of ['ada', 'ada', 'bob']) {
      const pusher = await stage.connect(t, { user });
      await subscribe(pusher, room);
      await subscribe(pusher, news);
    }
    const response = await stage.sdk.main.trigger([news, room, empty], 'greeted', {}, {
      info: 'user_count,subscription_count',
    });
    assert.deepEqual(await response.json(), {
      channels: {
        [news]: { subscription_count: 3 },
        [room]: { user_count: 2, subscription_count: 3 },
        [empty]: { subscription_count: 0 },
      },
    });
  });

  test('with an unknown info publishes the event', async (t) => {
    const { channel, frames } = await subscriber(t);
    await stage.sdk.main.trigger(channel, 'greeted', {}, { info: 'weather' });
    assert.equal((await frames.take()).event, 'greeted');
  });

  test('accepts `channel` instead of `channels`, and JSON data instead of a string', async (t) => {
    const { channel, frames } = await subscriber(t);
    assert.deepEqual(await post('/events', { name: 'greeted', channel, data: { a: [1] } }), {});
    assert.deepEqual(await frames.take(), { event: 'greeted', data: { a: [1] } });
    assert.deepEqual(await post('/events', { name: 'greeted', channel, data: 'x', socket_id: null }), {});
    assert.deepEqual(await frames.take(), { event: 'greeted', data: 'x' });
  });

  const badFields = {
    'no name': { name: undefined },
    'an empty name': { name: '' },
    'a name that is a number': { name: 7 },
    'a name of 201 characters': { name: 'x'.repeat(201) },
    'a pusher: name': { name: 'pusher:error' },
    'a pusher_internal: name': { name: 'pusher_internal:member_added' },
    'no data': { data: undefined },
    'no channels': { channels: undefined },
    'an empty list of channels': { channels: [] },
    'an invalid socket id': { socket_id: 'abc' },
    'a socket id that is a number': { socket_id: 1.5 },
  };
  for (const [what, fields] of Object.entries(badFields)) {
    test(`${what}: 400, and nothing is published`, async (t) => {
      const one = await subscriber(t);
      await rejectsWith(400, post('/events', { name: 'greeted', data: '{}', channels: [one.channel], ...fields }));
      await assertNothingBefore(one);
    });
  }

  const badChannels = {
    'a channel that is a number': [7],
    'an empty channel name': [''],
    'a channel with a space': ['a b'],
    'a channel with a colon': ['a:b'],
    'a channel of 201 characters': ['x'.repeat(201)],
    'a reserved channel': ['#elsewhere'],
    '101 channels': Array.from({ length: 100 }, (_, i) => `c-${i}`),
    'an encrypted channel among others': ['private-encrypted-a'],
  };
  for (const [what, channels] of Object.entries(badChannels)) {
    test(`${what}: 400, and nothing is published to the valid channel before it`, async (t) => {
      const one = await subscriber(t);
      await rejectsWith(400, post('/events', { name: 'greeted', data: '{}', channels: [one.channel, ...channels] }));
      await assertNothingBefore(one);
    });
  }

  test('a body that is not an object: 400', async () => {
    for (const body of [[], 'text', 7]) await rejectsWith(400, post('/events', body), JSON.stringify(body));
  });

  test('102 400 bytes of data are accepted; one more: 413, and nothing is published', async (t) => {
    const one = await subscriber(t);
    const data = 'x'.repeat(102_400);
    await stage.sdk.main.trigger(one.channel, 'big', data);
    assert.deepEqual(await one.frames.take(), { event: 'big', data });
    await rejectsWith(413, stage.sdk.main.trigger(one.channel, 'big', `${data}x`));
    await assertNothingBefore(one);
  });
});

describe('triggerBatch', () => {
  test('publishes in order and returns {}', async (t) => {
    const { channel, frames } = await subscriber(t);
    const batch = Array.from({ length: 10 }, (_, n) => ({ channel, name: 'n', data: { n } }));
    const response = await stage.sdk.main.triggerBatch(batch);
    assert.deepEqual(await response.json(), {});
    for (let n = 0; n < 10; n += 1) assert.deepEqual(await frames.take(), { event: 'n', data: { n } });
  });

  test('excludes the socket of each event', async (t) => {
    const [ada, bob] = [await subscriber(t), await subscriber(t)];
    const batch = [
      { channel: ada.channel, name: 'one', data: 1, socket_id: ada.pusher.connection.socket_id },
      { channel: ada.channel, name: 'two', data: 2, socket_id: bob.pusher.connection.socket_id },
    ];
    await stage.sdk.main.triggerBatch(batch);
    assert.equal((await ada.frames.take()).event, 'two');
  });

  test('with info returns the attributes of each event, by index', async (t) => {
    const { channel } = await subscriber(t);
    const room = stage.unique('presence-room');
    await subscribe(await stage.connect(t, { user: 'ada' }), room);
    const response = await stage.sdk.main.triggerBatch([
      { channel, name: 'a', data: 1 },
      { channel: room, name: 'b', data: 2, info: 'user_count' },
      { channel, name: 'c', data: 3, info: 'subscription_count,user_count' },
    ]);
    assert.deepEqual(await response.json(), { batch: [{}, { user_count: 1 }, { subscription_count: 1 }] });
  });

  test('an empty batch is accepted', async () => {
    assert.deepEqual(await (await stage.sdk.main.triggerBatch([])).json(), {});
  });

  test('11 events: 400, and none is published', async (t) => {
    const one = await subscriber(t);
    const batch = Array.from({ length: 11 }, (_, n) => ({ channel: one.channel, name: 'n', data: n }));
    await rejectsWith(400, stage.sdk.main.triggerBatch(batch));
    await assertNothingBefore(one);
  });

  for (const [what, event] of Object.entries({
    'without a name': { name: undefined },
    'to an invalid channel': { channel: 'a b' },
    'with an invalid socket id': { socket_id: 'abc' },
  })) {
    test(`one event ${what}: 400, and none is published`, async (t) => {
      const one = await subscriber(t);
      const valid = { channel: one.channel, name: 'valid', data: '1' };
      await rejectsWith(400, post('/batch_events', { batch: [valid, { ...valid, ...event }] }));
      await assertNothingBefore(one);
    });
  }

  test('one event that is too large: 413, and none is published', async (t) => {
    const one = await subscriber(t);
    const event = { channel: one.channel, name: 'n', data: 'x' };
    await rejectsWith(413, stage.sdk.main.triggerBatch([event, { ...event, data: 'x'.repeat(102_401) }]));
    await assertNothingBefore(one);
  });

  test('10 events of the maximum size are accepted, even if JSON escapes each character to six bytes', async () => {
    const event = { channel: stage.unique('news'), name: 'big', data: '\u0001'.repeat(102_400) };
    const response = await stage.sdk.main.triggerBatch(Array.from({ length: 10 }, () => ({ ...event })));
    assert.equal(response.status, 200);
  });
});

describe('channels', () => {
  test('lists the occupied channels with a prefix, with their counts', async (t) => {
    const mark = stage.unique('list');
    const rooms = [`presence-${mark}-a`, `presence-${mark}-b`];
    const pusher = await stage.connect(t, { user: 'ada' });
    await subscribe(pusher, `${mark}-news`);
    for (const room of rooms) await subscribe(pusher, room);
    await subscribe(await stage.connect(t, { user: 'bob' }), rooms[0]);
    await subscribe(await stage.connect(t, { user: 'bob' }), rooms[0]);

    assert.deepEqual(await get('/channels', { filter_by_prefix: `presence-${mark}`, info: 'user_count' }), {
      channels: { [rooms[0]]: { user_count: 2 }, [rooms[1]]: { user_count: 1 } },
    });
    assert.deepEqual(await get('/channels', { filter_by_prefix: mark, info: 'subscription_count' }), {
      channels: { [`${mark}-news`]: { subscription_count: 1 } },
    });
    const { channels } = await get('/channels');
    for (const name of [`${mark}-news`, ...rooms]) assert.deepEqual(channels[name], {});
  });

  test('is an empty object without channels', async () => {
    assert.deepEqual(await get('/channels', { filter_by_prefix: stage.unique('nothing') }), { channels: {} });
    assert.deepEqual(await get('/channels', {}, stage.sdk.small), { channels: {} });
  });

  test('omits a channel when its last subscriber has left', async (t) => {
    const { channel, pusher } = await subscriber(t);
    const marker = stage.unique('marker');
    pusher.unsubscribe(channel);
    await subscribe(pusher, marker);
    assert.deepEqual(await get('/channels', { filter_by_prefix: channel }), { channels: {} });
  });

  test('user_count without a presence prefix: 400', async () => {
    await rejectsWith(400, get('/channels', { info: 'user_count' }));
    await rejectsWith(400, get('/channels', { info: 'user_count', filter_by_prefix: 'private-' }));
  });

  test('an unknown info: 400', async () => {
    await rejectsWith(400, get('/channels', { info: 'weather' }));
  });
});

describe('channel', () => {
  test('returns the user count and the subscription count of a presence channel', async (t) => {
    const room = stage.unique('presence-room');
    for (const user of ['ada', 'bob', 'bob']) await subscribe(await stage.connect(t, { user }), room);
    assert.deepEqual(await get(`/channels/${room}`), { occupied: true });
    assert.deepEqual(await get(`/channels/${room}`, { info: 'user_count,subscription_count' }), {
      occupied: true,
      user_count: 2,
      subscription_count: 3,
    });
  });

  test('returns the cached event of a cache channel and its ttl', async (t) => {
    const { channel } = await subscriber(t, stage.unique('cache-price'));
    assert.deepEqual(await get(`/channels/${channel}`, { info: 'cache' }), { occupied: true, cache: null });
    await stage.sdk.main.trigger(channel, 'price', '{"eur":1}');
    const { cache } = await get(`/channels/${channel}`, { info: 'cache' });
    assert.equal(cache.data, '{"eur":1}');
    assert.ok(cache.ttl > 1_700 && cache.ttl <= 1_800, `ttl ${cache.ttl}`);
  });

  test('responds for an unoccupied channel', async () => {
    const news = await get(`/channels/${stage.unique('news')}`, { info: 'subscription_count' });
    assert.deepEqual(news, { occupied: false, subscription_count: 0 });
    const room = await get(`/channels/${stage.unique('presence-room')}`, { info: 'user_count' });
    assert.deepEqual(room, { occupied: false, user_count: 0 });
    const cache = await get(`/channels/${stage.unique('cache-price')}`, { info: 'cache' });
    assert.deepEqual(cache, { occupied: false, cache: null });
  });

  test('an attribute that this kind of channel does not have: 400', async () => {
    await rejectsWith(400, get('/channels/news', { info: 'user_count' }));
    await rejectsWith(400, get('/channels/private-news', { info: 'user_count' }));
    await rejectsWith(400, get('/channels/news', { info: 'cache' }));
    await rejectsWith(400, get('/channels/news', { info: 'weather' }));
  });
});

describe('users', () => {
  test('lists each user of a presence channel once', async (t) => {
    const room = stage.unique('presence-room');
    for (const user of ['ada', 'bob', 'bob']) await subscribe(await stage.connect(t, { user }), room);
    const { users } = await get(`/channels/${room}/users`);
    assert.deepEqual(users.map(({ id }) => id).sort(), ['ada', 'bob']);
    for (const user of users) assert.deepEqual(Object.keys(user), ['id']);
  });

  test('is empty for an unoccupied presence channel', async () => {
    assert.deepEqual(await get(`/channels/${stage.unique('presence-room')}/users`), { users: [] });
  });

  test('of a channel that is not a presence channel: 400', async () => {
    await rejectsWith(400, get('/channels/news/users'));
    await rejectsWith(400, get('/channels/private-news/users'));
  });
});

describe('connections', () => {
  test('returns the number of established connections of the app, as Reverb does', async (t) => {
    assert.deepEqual(await get('/connections', {}, stage.sdk.small), { connections: 0 });
    await stage.connect(t, { app: 'small' });
    await stage.connect(t, { app: 'small' });
    assert.deepEqual(await get('/connections', {}, stage.sdk.small), { connections: 2 });
  });
});

describe('authorizeChannel', () => {
  test('signs authorisations that the server accepts, for every kind of channel', async (t) => {
    const pusher = await stage.connect(t);
    for (const kind of ['private-x', 'private-cache-x', 'private-encrypted-x', 'presence-x', 'presence-cache-x']) {
      const channel = stage.unique(kind);
      const user = kind.startsWith('presence-') ? { user_id: 'ada', user_info: { name: 'Zoë "Z" /' } } : undefined;
      const frames = framesOf(pusher, channel);
      const { auth, channel_data } = stage.sdk.main.authorizeChannel(pusher.connection.socket_id, channel, user);
      pusher.send_event('pusher:subscribe', { auth, channel_data, channel });
      assert.equal((await frames.take()).event, 'pusher_internal:subscription_succeeded', channel);
    }
  });

  test('of another app is refused', async (t) => {
    const pusher = await stage.connect(t);
    const channel = stage.unique('private-x');
    const frames = framesOf(pusher, channel);
    const { auth } = stage.sdk.quiet.authorizeChannel(pusher.connection.socket_id, channel);
    pusher.send_event('pusher:subscribe', { auth, channel });
    assert.equal((await frames.take()).event, 'pusher:subscription_error');
  });
});

describe('sendToUser and terminateUserConnections', () => {
  test('reach a signed-in user', async (t) => {
    const pusher = await stage.signIn(t, { user: 'ada' });
    const hello = next(pusher.user, 'hello');
    assert.deepEqual(await (await stage.sdk.main.sendToUser('ada', 'hello', { a: 1 })).json(), {});
    assert.deepEqual(await hello, { a: 1 });

    const disconnected = next(pusher.connection, 'disconnected');
    assert.deepEqual(await (await stage.sdk.main.terminateUserConnections('ada')).json(), {});
    await disconnected;
  });

  test('accept a user id with a space, which is signed as it is and sent encoded', async () => {
    const response = await stage.sdk.main.terminateUserConnections('user id');
    assert.deepEqual(await response.json(), {});
  });
});

describe('signatures', () => {
  const requests = {
    trigger: (sdk) => sdk.trigger('news', 'greeted', {}),
    triggerBatch: (sdk) => sdk.triggerBatch([{ channel: 'news', name: 'greeted', data: 1 }]),
    channels: (sdk) => sdk.get({ path: '/channels' }),
    channel: (sdk) => sdk.get({ path: '/channels/news' }),
    users: (sdk) => sdk.get({ path: '/channels/presence-room/users' }),
    connections: (sdk) => sdk.get({ path: '/connections' }),
    terminateUserConnections: (sdk) => sdk.terminateUserConnections('ada'),
  };
  for (const [name, request] of Object.entries(requests)) {
    test(`${name}: 401 with another secret, and with another key`, async () => {
      await rejectsWith(401, request(stage.sdkFor('main', { secret: 'wrong' })), 'secret');
      await rejectsWith(401, request(stage.sdkFor('main', { key: 'wrong' })), 'key');
    });

    test(`${name}: 401 with the key and secret of another app`, async () => {
      const { key, secret } = stage.server.apps.quiet;
      await rejectsWith(401, request(stage.sdkFor('main', { key, secret })));
    });

    test(`${name}: 404 for an app that does not exist`, async () => {
      await rejectsWith(404, request(stage.sdkFor('main', { appId: '9999' })));
    });
  }

  test('a request with a wrong secret publishes nothing', async (t) => {
    const one = await subscriber(t);
    await rejectsWith(401, stage.sdkFor('main', { secret: 'wrong' }).trigger(one.channel, 'forged', {}));
    await assertNothingBefore(one);
  });

  /** Sends a request. `change` modifies its parts before they are signed; `request.spoil` modifies the signed query. */
  async function send(change = () => {}) {
    const body = JSON.stringify({ name: 'greeted', channels: ['news'], data: '{}' });
    const request = { path: `/apps/${stage.server.apps.main.id}/events`, body, skewSecs: 0, query: {} };
    change(request);
    const query = signedQuery(request);
    request.spoil?.(query);
    const sentBody = request.sentBody ?? body;
    return fetch(`${stage.server.httpUrl}${request.path}?${query}`, { method: 'POST', body: sentBody });
  }

  function signedQuery({ path, body, skewSecs, query }) {
    const { token } = stage.sdk.main.config;
    const params = {
      auth_key: token.key,
      auth_timestamp: String(Math.floor(Date.now() / 1_000) + skewSecs),
      auth_version: '1.0',
      body_md5: createHash('md5').update(body).digest('hex'),
      ...query,
    };
    const names = Object.keys(params).sort();
    const canonical = names.map((name) => `${name}=${params[name]}`).join('&');
    const signature = token.sign(['POST', path, canonical].join('\n'));
    return new URLSearchParams({ ...params, auth_signature: signature });
  }

  test('a valid request is accepted if its timestamp differs by less than ten minutes', async () => {
    for (const skewSecs of [0, -300, 300, -590, 590]) {
      const response = await send((request) => Object.assign(request, { skewSecs }));
      assert.equal(response.status, 200, `${skewSecs} s`);
    }
  });

  test('a signature in upper-case hexadecimal is accepted', async () => {
    const response = await send((request) => {
      request.spoil = (query) => query.set('auth_signature', query.get('auth_signature').toUpperCase());
    });
    assert.equal(response.status, 200);
  });

  const changed = {
    'a timestamp ten minutes in the past': (request) => Object.assign(request, { skewSecs: -610 }),
    'a timestamp ten minutes in the future': (request) => Object.assign(request, { skewSecs: 610 }),
    'a timestamp that is not a number': ({ query }) => Object.assign(query, { auth_timestamp: 'now' }),
    'version 2.0': ({ query }) => Object.assign(query, { auth_version: '2.0' }),
    'a body other than the signed one': (request) => Object.assign(request, { sentBody: request.body.replace('g', 'G') }),
  };
  const spoilt = {
    'no body_md5': (query) => query.delete('body_md5'),
    'no auth_key': (query) => query.delete('auth_key'),
    'no auth_timestamp': (query) => query.delete('auth_timestamp'),
    'no auth_version': (query) => query.delete('auth_version'),
    'no auth_signature': (query) => query.delete('auth_signature'),
    'an empty auth_signature': (query) => query.set('auth_signature', ''),
    'a shortened auth_signature': (query) => query.set('auth_signature', query.get('auth_signature').slice(1)),
    'an unsigned parameter': (query) => query.set('info', 'user_count'),
    'a second auth_key': (query) => query.append('auth_key', 'demo-key'),
  };
  const rejected = [
    ...Object.entries(changed),
    ...Object.entries(spoilt).map(([what, spoil]) => [what, (request) => Object.assign(request, { spoil })]),
  ];
  for (const [what, change] of rejected) {
    test(`401: ${what}`, async () => {
      const response = await send(change);
      assert.equal(response.status, 401);
      assert.match(response.headers.get('content-type'), /^text\/plain/);
      assert.ok((await response.text()).trim().length > 0);
    });
  }
});

describe('connections to the API', () => {
  test('are kept open for the next request, even after a rejected one', async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const opened = [];
    const createConnection = agent.createConnection.bind(agent);
    agent.createConnection = (...args) => {
      opened.push(createConnection(...args));
      return opened.at(-1);
    };
    const sdk = stage.sdkFor('main', { agent });
    for (let i = 0; i < 3; i += 1) await (await sdk.trigger('news', 'greeted', {})).json();
    await rejectsWith(400, get('/channels/news', { info: 'user_count' }, sdk));
    await get('/channels', {}, sdk);
    assert.equal(opened.length, 1);
    agent.destroy();
  });
});

describe('an app with a path prefix', () => {
  test('has its API with and without the prefix', async () => {
    const { id } = stage.server.apps.prefixed;
    // SDKs sign either path, and proxies forward either path.
    for (const [sent, signed] of [
      [`/rt/apps/${id}/channels`, `/rt/apps/${id}/channels`],
      [`/rt/apps/${id}/channels`, `/apps/${id}/channels`],
      [`/apps/${id}/channels`, `/apps/${id}/channels`],
      [`/apps/${id}/channels`, `/rt/apps/${id}/channels`],
    ]) {
      const query = stage.sdk.prefixed.createSignedQueryString({ method: 'GET', path: signed });
      const response = await fetch(`${stage.server.httpUrl}${sent}?${query}`);
      assert.equal(response.status, 200, `${sent} signed as ${signed}`);
      assert.deepEqual(await response.json(), { channels: {} });
    }
  });
});

describe('routes', () => {
  test('unknown paths are 404, known ones with another method 405', async () => {
    const status = async (path, method) => (await fetch(`${stage.server.httpUrl}${path}`, { method })).status;
    assert.equal(await status('/nowhere', 'GET'), 404);
    assert.equal(await status('/apps/1001/nowhere', 'GET'), 404);
    assert.equal(await status('/apps/1001/events', 'GET'), 405);
    assert.equal(await status('/apps/1001/channels', 'POST'), 405);
    assert.equal(await status('/pusher/app/demo-key/1/abc/xhr', 'POST'), 404);
  });

  test('a GET of the WebSocket path without an upgrade: 426', async () => {
    const response = await fetch(`${stage.server.httpUrl}/app/demo-key`);
    assert.equal(response.status, 426);
    assert.equal(response.headers.get('upgrade')?.toLowerCase(), 'websocket');
  });

  test('the health paths respond with 200', async () => {
    for (const path of ['/', '/up', '/ready']) {
      assert.equal((await fetch(`${stage.server.httpUrl}${path}`)).status, 200, path);
    }
  });
});
