/** pusher-js in Chromium: in a page and in a web worker. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { launchChromium } from '../support/chromium.mjs';
import { Forwarder } from '../support/forwarder.mjs';
import { Inbox } from '../support/inbox.mjs';
import { closeWith, file } from '../support/resources.mjs';
import { startSite } from '../support/site.mjs';
import { useStage } from '../support/stage.mjs';

let browser;
let site;

const stage = useStage({
  async open() {
    site = await startSite(file);
    browser = await launchChromium(file);
  },
});

/** A page, with an inbox of the items that it passes to `report`. */
async function openPage(t) {
  const context = await browser.newContext();
  closeWith(t, 'a browser context', () => context.close());
  const page = await context.newPage();
  const reports = new Inbox('reports of the page');
  page.on('pageerror', (error) => reports.put({ error: error.message }));
  await page.exposeFunction('report', (item) => reports.put(item));
  await page.goto(site.url);
  return { page, reports };
}

function setup(user, channels, app = 'main') {
  const { key } = stage.server.apps[app];
  const authorization = (path) => ({ endpoint: path, transport: 'ajax', headers: user ? { 'X-User': user } : {} });
  const options = {
    cluster: '',
    wsHost: stage.server.host,
    wsPort: stage.server.port,
    forceTLS: false,
    enabledTransports: ['ws', 'wss'],
    channelAuthorization: authorization('/broadcasting/auth'),
    userAuthentication: authorization('/broadcasting/user-auth'),
  };
  return { key, options, channels };
}

const inPage = {
  run: (page, config) =>
    page.evaluate(({ key, options, channels }) => {
      const pusher = new Pusher(key, options);
      pusher.connection.bind('state_change', ({ current }) => report({ state: current }));
      for (const name of channels) {
        pusher.subscribe(name).bind_global((event, data) => report({ channel: name, event, data }));
      }
      globalThis.pusher = pusher;
    }, config),
};

const inWorker = {
  run: (page, config) =>
    page.evaluate((message) => {
      const worker = new Worker('/worker.js');
      worker.onmessage = ({ data }) => report(data);
      worker.onerror = ({ message: error }) => report({ error });
      worker.postMessage(message);
      globalThis.worker = worker;
    }, config),
};

for (const [where, { run }] of Object.entries({ 'in a page': inPage, 'in a worker': inWorker })) {
  describe(where, () => {
    /** Connects, and waits for the result of each subscription. */
    async function start(t, user, channels) {
      const { page, reports } = await openPage(t);
      await run(page, setup(user, channels));
      assert.deepEqual(await reports.take(), { state: 'connected' });
      const results = new Map();
      while (results.size < channels.length) {
        const { channel, event, data } = await reports.take();
        if (/^pusher:subscription_(succeeded|error)$/.test(event)) results.set(channel, { event, data });
      }
      return { page, reports, results };
    }

    test('public and private channels receive events', async (t) => {
      const channels = [stage.unique('news'), stage.unique('private-news')];
      const { reports, results } = await start(t, 'ada', channels);
      for (const channel of channels) {
        assert.equal(results.get(channel).event, 'pusher:subscription_succeeded');
        const data = { text: 'Grüße 😀', channel };
        await stage.sdk.main.trigger(channel, 'App\\Events\\Greeted', data);
        assert.deepEqual(await reports.take(), { channel, event: 'App\\Events\\Greeted', data });
      }
    });

    test('a presence channel gets the members that join', async (t) => {
      const channel = stage.unique('presence-room');
      const { reports } = await start(t, 'ada', [channel]);
      await start(t, 'bob', [channel]);
      const { event, data } = await reports.take();
      assert.equal(event, 'pusher:member_added');
      assert.deepEqual(data, { id: 'bob', info: { name: 'bob' } });
    });

    test('a cache channel replays its last event', async (t) => {
      const channel = stage.unique('cache-price');
      await stage.sdk.main.trigger(channel, 'price', { eur: 1 });
      const { reports } = await start(t, undefined, [channel]);
      assert.deepEqual(await reports.take(), { channel, event: 'price', data: { eur: 1 } });
    });

    test('a rejection by the application causes pusher:subscription_error', async (t) => {
      const channel = stage.unique('private-news');
      const { results } = await start(t, undefined, [channel]);
      const { event, data } = results.get(channel);
      assert.equal(event, 'pusher:subscription_error');
      assert.equal(data.status, 403);
    });

    test('an unknown key leads to the state disconnected', async (t) => {
      const { page, reports } = await openPage(t);
      await run(page, { ...setup(undefined, []), key: 'no-such-key' });
      assert.deepEqual(await reports.take(), { state: 'disconnected' });
    });
  });
}

describe('only in a page', () => {
  test('a client event reaches the other page, not its sender', async (t) => {
    const channel = stage.unique('private-room');
    const [ada, bob] = [await openPage(t), await openPage(t)];
    for (const [{ page, reports }, user] of [
      [ada, 'ada'],
      [bob, 'bob'],
    ]) {
      await inPage.run(page, setup(user, [channel]));
      await reports.takeUntil(({ event }) => event === 'pusher:subscription_succeeded');
    }
    await ada.page.evaluate((name) => pusher.channel(name).trigger('client-typing', { on: true }), channel);
    assert.deepEqual(await bob.reports.take(), { channel, event: 'client-typing', data: { on: true } });
    await stage.sdk.main.trigger(channel, 'fence', {});
    assert.equal((await ada.reports.take()).event, 'fence');
  });

  test('an event of an encrypted channel is decrypted', async (t) => {
    const channel = stage.unique('private-encrypted-room');
    const { page, reports } = await openPage(t);
    await inPage.run(page, setup('ada', [channel]));
    await reports.takeUntil(({ event }) => event === 'pusher:subscription_succeeded');
    await stage.sdk.main.trigger(channel, 'secret', { text: 'pssst 🤫' });
    assert.deepEqual(await reports.take(), { channel, event: 'secret', data: { text: 'pssst 🤫' } });
  });

  test('an event to a user reaches the page that has signed in', async (t) => {
    const { page, reports } = await openPage(t);
    await inPage.run(page, setup('ada', []));
    await reports.take();
    await page.evaluate(() => {
      pusher.connection.bind('message', ({ event, channel }) => {
        if (channel && event.endsWith('subscription_succeeded')) report({ ready: channel });
      });
      pusher.user.bind('hello', (data) => report({ hello: data }));
      pusher.signin();
    });
    assert.deepEqual(await reports.take(), { ready: '#server-to-user-ada' });
    await stage.sdk.main.sendToUser('ada', 'hello', { a: 1 });
    assert.deepEqual(await reports.take(), { hello: { a: 1 } });
  });

  test('a member is removed when its page is closed', async (t) => {
    const channel = stage.unique('presence-room');
    const [ada, bob] = [await openPage(t), await openPage(t)];
    await inPage.run(ada.page, setup('ada', [channel]));
    await ada.reports.takeUntil(({ event }) => event === 'pusher:subscription_succeeded');
    await inPage.run(bob.page, setup('bob', [channel]));
    await ada.reports.takeUntil(({ event }) => event === 'pusher:member_added');
    await bob.page.close();
    const { event, data } = await ada.reports.take();
    assert.equal(event, 'pusher:member_removed');
    assert.equal(data.id, 'bob');
  });
});

describe('compression', () => {
  /** A page that is subscribed to a channel through a forwarder, with the extensions of the handshake. */
  async function start(t, app, channel) {
    const forwarder = await Forwarder.start(t, stage.server);
    const { page, reports } = await openPage(t);
    const devtools = await page.context().newCDPSession(page);
    const responses = new Inbox('responses to upgrades');
    devtools.on('Network.webSocketHandshakeResponseReceived', ({ response }) => responses.put(response));
    await devtools.send('Network.enable');
    const config = setup('ada', [channel], app);
    config.options.wsPort = forwarder.port;
    config.options.channelAuthorization.endpoint += `?app=${app}`;
    await inPage.run(page, config);
    await reports.takeUntil(({ event }) => event === 'pusher:subscription_succeeded');
    const { headers, requestHeaders } = await responses.take();
    const valueOf = (all) => Object.entries(all).find(([name]) => /^sec-websocket-extensions$/i.test(name))?.[1];
    return { page, reports, forwarder, offered: valueOf(requestHeaders), accepted: valueOf(headers) };
  }

  const rows = Array.from({ length: 100 }, (_, id) => ({ id, name: `Käufer ${id}`, email: `k${id}@example.test` }));
  const length = JSON.stringify(JSON.stringify(rows)).length;

  /** Publishes an event, and returns how many bytes the server sent to the page. */
  async function bytesOf({ forwarder, reports }, app, channel, data) {
    const before = forwarder.bytesFromTarget;
    await stage.sdk[app].trigger(channel, 'rows', data);
    assert.deepEqual(await reports.take(), { channel, event: 'rows', data });
    return forwarder.bytesFromTarget - before;
  }

  test('is used in both directions if the app enables it', async (t) => {
    const channel = stage.unique('private-rows');
    const [ada, bob] = [await start(t, 'compressed', channel), await start(t, 'compressed', channel)];
    assert.match(ada.offered, /permessage-deflate/);
    assert.equal(ada.accepted, 'permessage-deflate; server_no_context_takeover; client_no_context_takeover');
    for (let i = 0; i < 3; i += 1) {
      const bytes = await bytesOf(ada, 'compressed', channel, rows);
      assert.ok(bytes < length / 4, `${bytes} bytes of ${length}`);
      assert.deepEqual((await bob.reports.take()).data, rows);
    }
    await bytesOf(ada, 'compressed', channel, { short: true });
    assert.deepEqual((await bob.reports.take()).data, { short: true });

    // Chromium compresses this message.
    await ada.page.evaluate(([name, data]) => pusher.channel(name).trigger('client-rows', data), [channel, rows]);
    assert.deepEqual(await bob.reports.take(), { channel, event: 'client-rows', data: rows });
  });

  test('is not used if the app does not enable it', async (t) => {
    const channel = stage.unique('private-rows');
    const page = await start(t, 'main', channel);
    assert.match(page.offered, /permessage-deflate/);
    assert.equal(page.accepted, undefined);
    const bytes = await bytesOf(page, 'main', channel, rows);
    assert.ok(bytes > length, `${bytes} bytes of ${length}`);
  });
});
