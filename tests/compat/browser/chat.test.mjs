/** `examples/chat` in Chromium. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { startChild } from '../support/child.mjs';
import { launchChromium } from '../support/chromium.mjs';
import { closeWith, file } from '../support/resources.mjs';
import { useStage } from '../support/stage.mjs';

const CHAT = fileURLToPath(new URL('../../../examples/chat/', import.meta.url));
const SCREENSHOT = process.env.CHAT_SCREENSHOT;

let browser;
let chat;

const stage = useStage({
  async open() {
    chat = await startChat();
    browser = await launchChromium(file);
  },
});

/** Starts the server of the example, connected to the pusherd of the stage. */
function startChat() {
  const { id, key, secret } = stage.server.apps.main;
  const child = startChild(process.execPath, ['server.mjs'], {
    cwd: CHAT,
    env: {
      PATH: process.env.PATH,
      PORT: '0',
      PUSHER_APP_ID: id,
      PUSHER_APP_KEY: key,
      PUSHER_APP_SECRET: secret,
      PUSHER_HOST: stage.server.host,
      PUSHER_PORT: String(stage.server.port),
    },
  });
  closeWith(file, 'the chat server', () => {
    child.kill();
    return child.exited;
  });
  return new Promise((resolve, reject) => {
    let printed = '';
    const read = (chunk) => {
      printed += chunk;
      const [url] = /http:\/\/\S+:\d+/.exec(printed) ?? [];
      if (url) resolve({ url });
    };
    child.stdout.setEncoding('utf8').on('data', read);
    child.stderr.setEncoding('utf8').on('data', read);
    child.once('exit', () => reject(new Error(`the chat server exited: ${printed}`)));
  });
}

/** Opens the chat in a new browser context, and joins the lobby as `name`. */
async function visit(t, name) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 720 } });
  closeWith(t, 'a browser context', () => context.close());
  const page = await context.newPage();
  page.setDefaultTimeout(10_000);
  const problems = [];
  page.on('pageerror', (error) => problems.push(error.message));
  page.on('console', (message) => message.type() === 'error' && problems.push(message.text()));
  await page.goto(chat.url);
  await page.fill('#name', name);
  await page.click('#login button');
  await page.waitForSelector('#status[data-state=connected]');
  await page.waitForSelector('#text:enabled');
  return { context, page, problems };
}

/** Waits until the member list shows exactly these names. */
function waitForMembers(page, ...names) {
  return page.waitForFunction(
    (expected) => {
      const shown = [...document.querySelectorAll('#members li span:last-child')].map((span) => span.textContent);
      return JSON.stringify(shown) === JSON.stringify(expected);
    },
    names,
  );
}

async function say(page, text) {
  await page.fill('#text', text);
  await page.press('#text', 'Enter');
}

function waitForNoTyping(page) {
  return page.waitForFunction(() => document.querySelector('#typing').textContent === '');
}

function waitForMessage(page, text, kind = '.message') {
  return page.waitForSelector(`${kind}:has(.text:text-is(${JSON.stringify(text)}))`);
}

test('two people see each other join, write, announce and leave', async (t) => {
  const ada = await visit(t, 'Ada');
  await waitForMembers(ada.page, 'Ada (you)');
  const zoe = await visit(t, 'Zoë');
  await waitForMembers(ada.page, 'Ada (you)', 'Zoë');
  await waitForMembers(zoe.page, 'Ada', 'Zoë (you)');
  await ada.page.waitForSelector('.notice:text-is("Zoë came in")');

  await say(ada.page, 'Hello Zoë! 😀');
  await waitForMessage(zoe.page, 'Hello Zoë! 😀', '.message:not(.mine)');
  await say(zoe.page, 'Hello Ada, how is the weather?');
  await waitForMessage(ada.page, 'Hello Ada, how is the weather?', '.message:not(.mine)');
  // The page of the sender shows a message once, because its socket is excluded.
  assert.equal(await ada.page.locator('.message').count(), 2);
  assert.equal(await ada.page.locator('.message.mine').count(), 1);

  await zoe.page.fill('#text', 'Sun');
  await ada.page.waitForSelector('#typing:text-is("Zoë is typing…")');
  await zoe.page.fill('#text', '');
  await waitForNoTyping(ada.page);
  await zoe.page.fill('#text', 'Sunny');
  await ada.page.waitForSelector('#typing:text-is("Zoë is typing…")');
  await zoe.page.press('#text', 'Enter');
  await waitForMessage(ada.page, 'Sunny');
  await waitForNoTyping(ada.page);

  await zoe.page.fill('#announcement', 'There is cake in the kitchen');
  await zoe.page.press('#announcement', 'Enter');
  for (const { page } of [ada, zoe]) await page.waitForSelector('#banner:has-text("There is cake in the kitchen")');

  if (SCREENSHOT) await ada.page.screenshot({ path: SCREENSHOT });
  await zoe.context.close();
  await waitForMembers(ada.page, 'Ada (you)');
  await ada.page.waitForSelector('.notice:text-is("Zoë left")');
  assert.deepEqual(ada.problems, []);
  assert.deepEqual(zoe.problems, []);
});

test('a private note reaches only its recipient', async (t) => {
  const [ada, bob, cleo] = [await visit(t, 'Ada'), await visit(t, 'Bob'), await visit(t, 'Cleo')];
  await waitForMembers(ada.page, 'Ada (you)', 'Bob', 'Cleo');
  await ada.page.click('#members button:has-text("Bob")');
  await say(ada.page, 'Between you and me');
  await waitForMessage(ada.page, 'Between you and me', '.message.mine.private');
  await waitForMessage(bob.page, 'Between you and me', '.message.private');

  await ada.page.click('#recipient');
  await say(ada.page, 'For all');
  await waitForMessage(cleo.page, 'For all');
  assert.deepEqual(await cleo.page.locator('.message .text').allTextContents(), ['For all']);
  if (SCREENSHOT) await bob.page.screenshot({ path: SCREENSHOT.replace(/(\.\w+)$/, '-note$1') });
});

test('HTML in names and messages is shown as text', async (t) => {
  const evil = '<img src=x onerror="window.hacked = true">';
  const [ada, bob] = [await visit(t, '<b>Ada</b>'), await visit(t, 'Bob')];
  await waitForMembers(bob.page, '<b>Ada</b>', 'Bob (you)');
  await say(ada.page, evil);
  await waitForMessage(bob.page, evil);
  await ada.page.fill('#announcement', evil);
  await ada.page.press('#announcement', 'Enter');
  await bob.page.waitForFunction((text) => document.querySelector('#banner').textContent.includes(text), evil);
  await ada.page.fill('#text', 'x');
  await bob.page.waitForSelector('#typing:text-is("<b>Ada</b> is typing…")');
  assert.equal(await bob.page.locator('#messages img, #banner img, #members b, #typing b').count(), 0);
  assert.equal(await bob.page.evaluate(() => window.hacked), undefined);
});

test('a visitor stays the same member after a reload and in a second tab', async (t) => {
  const [ada, bob] = [await visit(t, 'Ada'), await visit(t, 'Bob')];
  await waitForMembers(ada.page, 'Ada (you)', 'Bob');
  await bob.page.reload();
  await waitForMembers(bob.page, 'Ada', 'Bob (you)');
  await waitForMembers(ada.page, 'Ada (you)', 'Bob');

  const secondTab = await bob.context.newPage();
  await secondTab.goto(chat.url);
  await waitForMembers(secondTab, 'Ada', 'Bob (you)');
  await secondTab.close();
  await say(bob.page, 'Still here');
  await waitForMessage(ada.page, 'Still here');
  await waitForMembers(ada.page, 'Ada (you)', 'Bob');
});

test('the chat server rejects unauthenticated requests, other channels and invalid requests', async () => {
  const post = (path, body, headers) => fetch(chat.url + path, { method: 'POST', body, headers });
  const json = { 'Content-Type': 'application/json' };
  const login = await post('/login', '{"name":"Ada"}', json);
  const cookie = login.headers.get('set-cookie').split(';')[0];
  const authorize = (channel, headers) =>
    post('/broadcasting/auth', new URLSearchParams({ socket_id: '1.1', channel_name: channel }), headers);

  assert.equal((await authorize('presence-room.lobby')).status, 401);
  assert.equal((await authorize('presence-room.lobby', { cookie })).status, 200);
  assert.equal((await authorize('presence-room.other', { cookie })).status, 403);
  assert.equal((await authorize('private-user.someone-else', { cookie })).status, 403);
  assert.equal((await post('/messages', '{"text":"hi"}', json)).status, 401);
  assert.equal((await post('/messages', '{"text":"hi"}', { cookie })).status, 415);
  assert.equal((await post('/messages', '{', { ...json, cookie })).status, 400);
  assert.equal((await post('/messages', '{"text":" "}', { ...json, cookie })).status, 422);
  assert.equal((await post('/messages', '{"kind":"note","to":"a b","text":"x"}', { ...json, cookie })).status, 422);
  assert.equal((await post('/messages', JSON.stringify({ text: 'x'.repeat(9_000) }), { ...json, cookie })).status, 413);
  assert.equal((await post('/login', '{"name":""}', json)).status, 422);
  assert.equal((await fetch(`${chat.url}/server.mjs`)).status, 404);
});
