/**
 * The application behind the chat: it knows who its visitors are, signs their subscriptions, and publishes their
 * messages. Everything that happens in real time goes through pusherd.
 */
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import Pusher from 'pusher';

const env = process.env;
const settings = {
  appId: env.PUSHER_APP_ID ?? 'app-id',
  key: env.PUSHER_APP_KEY ?? 'app-key',
  secret: env.PUSHER_APP_SECRET ?? 'app-secret',
  host: env.PUSHER_HOST ?? '127.0.0.1',
  port: Number(env.PUSHER_PORT ?? 6001),
};
const pusher = new Pusher({ ...settings, useTLS: false });

const ROOM = 'presence-room.lobby';
const ANNOUNCEMENTS = 'announcements';
const inboxOf = (user) => `private-user.${user.id}`;

const SOCKET_ID = /^\d+\.\d+$/;
const USER_ID = /^[0-9a-f-]{36}$/;
const NAME_MAX = 24;
const TEXT_MAX = 1_000;
const BODY_BYTES_MAX = 8_192;
const SESSIONS_MAX = 10_000;

const FILES = {
  '/': ['public/index.html', 'text/html'],
  '/app.js': ['public/app.js', 'text/javascript'],
  '/style.css': ['public/style.css', 'text/css'],
  '/icon.svg': ['public/icon.svg', 'image/svg+xml'],
  '/vendor/pusher.js': ['node_modules/pusher-js/dist/web/pusher.min.js', 'text/javascript'],
  '/vendor/echo.js': ['node_modules/laravel-echo/dist/echo.js', 'text/javascript'],
};

const ROUTES = {
  'POST /login': login,
  'GET /me': me,
  'POST /broadcasting/auth': authorize,
  'POST /messages': publish,
};

/** The page needs nothing but its own files and the connection to pusherd. */
const HEADERS = {
  'Content-Security-Policy': `default-src 'self'; connect-src 'self' ws://${settings.host}:${settings.port}`,
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-cache',
};

/** Visitors by the value of their cookie, the oldest first. */
const sessions = new Map();

const server = createServer(async (request, response) => {
  try {
    const { status = 200, type = 'application/json', headers = {}, body } = await answer(request);
    response.writeHead(status, { ...HEADERS, 'Content-Type': `${type}; charset=utf-8`, ...headers });
    response.end(type === 'application/json' ? JSON.stringify(body ?? {}) : body);
  } catch (error) {
    const status = error instanceof HttpError ? error.status : 502;
    response.writeHead(status, { ...HEADERS, 'Content-Type': 'application/json' });
    response.end(JSON.stringify({ message: error.message }));
  }
});
server.listen(Number(env.PORT ?? 3000), env.HOST ?? '127.0.0.1', () => {
  const { address, port } = server.address();
  console.log(`chat is at http://${address}:${port}`);
});

/** An answer to the visitor that is not a success. */
class HttpError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function answer(request) {
  const { pathname } = new URL(request.url, 'http://localhost');
  const route = ROUTES[`${request.method} ${pathname}`];
  if (route) return route(request);
  if (request.method === 'GET' && Object.hasOwn(FILES, pathname)) {
    const [path, type] = FILES[pathname];
    return { type, body: await readFile(new URL(path, import.meta.url)) };
  }
  throw new HttpError(404, 'There is nothing here.');
}

/** Gives a visitor a name, an id and a cookie. */
async function login(request) {
  const name = text((await json(request)).name, 'name', NAME_MAX);
  const user = { id: randomUUID(), name };
  const session = randomUUID();
  sessions.set(session, user);
  if (sessions.size > SESSIONS_MAX) sessions.delete(sessions.keys().next().value);
  return { headers: { 'Set-Cookie': `session=${session}; HttpOnly; SameSite=Strict; Path=/` }, body: visit(user) };
}

/** The identity of a returning visitor; a new one gets nothing. */
function me(request) {
  const user = knownVisitor(request);
  return { body: user && visit(user) };
}

/** What the page needs to know; the secret stays here. */
function visit(user) {
  const { key, host, port } = settings;
  return { user, pusher: { key, host, port }, channels: { inbox: `user.${user.id}` } };
}

/** The authorization endpoint that laravel-echo calls before it subscribes to a private or presence channel. */
async function authorize(request) {
  const user = visitor(request);
  const form = new URLSearchParams(await read(request));
  const [socketId, channel] = [form.get('socket_id'), form.get('channel_name')];
  if (channel === inboxOf(user)) return { body: pusher.authorizeChannel(socketId, channel) };
  if (channel === ROOM) {
    const member = { user_id: user.id, user_info: { id: user.id, name: user.name } };
    return { body: pusher.authorizeChannel(socketId, channel, member) };
  }
  throw new HttpError(403, 'This channel is not for you.');
}

/** Publishes to everybody but the sender, whose page shows the message already; announcements to really everybody. */
async function publish(request) {
  const user = visitor(request);
  const { kind, to, ...fields } = await json(request);
  const message = { from: user, text: text(fields.text, 'text', TEXT_MAX), at: Date.now() };
  const socketId = request.headers['x-socket-id'];
  const toOthers = SOCKET_ID.test(socketId) ? { socket_id: socketId } : {};

  if (kind === 'announcement') {
    await pusher.trigger(ANNOUNCEMENTS, 'App\\Events\\Announced', message);
  } else if (kind === 'note') {
    if (!USER_ID.test(to)) throw new HttpError(422, 'There is nobody with this id.');
    await pusher.trigger(inboxOf({ id: to }), 'App\\Events\\NoteSent', message, toOthers);
  } else {
    await pusher.trigger(ROOM, 'App\\Events\\MessageSent', message, toOthers);
  }
  return { body: message };
}

function knownVisitor(request) {
  const [, session] = /(?:^|;\s*)session=([^;]+)/.exec(request.headers.cookie ?? '') ?? [];
  return sessions.get(session);
}

function visitor(request) {
  const user = knownVisitor(request);
  if (!user) throw new HttpError(401, 'Please say who you are first.');
  return user;
}

function text(value, field, lengthMax) {
  if (typeof value !== 'string' || value.trim() === '' || value.length > lengthMax) {
    throw new HttpError(422, `The ${field} has to be a text of 1 to ${lengthMax} characters.`);
  }
  return value.trim();
}

/** Insisting on the content type keeps forms of other sites out. */
async function json(request) {
  if (!request.headers['content-type']?.startsWith('application/json')) throw new HttpError(415, 'Please send JSON.');
  try {
    return { ...JSON.parse(await read(request)) };
  } catch (error) {
    throw error instanceof HttpError ? error : new HttpError(400, 'That is not JSON.');
  }
}

async function read(request) {
  const chunks = [];
  let bytes = 0;
  for await (const chunk of request) {
    bytes += chunk.length;
    if (bytes > BODY_BYTES_MAX) throw new HttpError(413, 'That is too long.');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}
