/**
 * The part of a customer's application that signs: channel authorisation and user authentication, as Laravel and the
 * Pusher examples serve them, on top of the Node SDK.
 *
 * Who asks is named by the header `X-User` or the parameter `user`; nobody is refused with 403. The query may name the
 * `app`. Further parameters:
 *
 *  - `info`       JSON: the `user_info` of a presence member or signed-in user (else `{ name }`)
 *  - `watchlist`  comma-separated user ids for the sign-in
 *  - `numeric`    send the presence `user_id` as a JSON number
 *  - `bare`       answer presence without `channel_data`, for signed-in users
 *  - `data`       JSON: sign this as `channel_data`, also on private channels
 *  - `forge`      one of `FORGERIES`: a well-formed answer which the server has to refuse
 */
import { createServer } from 'node:http';
import { once } from 'node:events';
import PusherServer from 'pusher';
import { APPS } from './pusherd.mjs';

export const MASTER_KEY = Buffer.from('0123456789abcdef0123456789abcdef').toString('base64');

const CHANNEL_PATHS = ['/broadcasting/auth', '/pusher/auth'];
const USER_PATHS = ['/broadcasting/user-auth', '/pusher/user-auth'];

/** Ways for an authorisation to be wrong. Each takes what signs, the app, and the honest answer. */
export const FORGERIES = {
  'made with another secret': (sign, app) => sign({ ...app, secret: 'not-the-secret' }),
  'made for another connection': (sign, app) => sign(app, { socketId: '1234.5678' }),
  'made for another channel': (sign, app, honest, form) => sign(app, { channel: `${form.channel_name}-elsewhere` }),
  'under another key': (sign, app) => sign({ ...app, key: 'another-key' }),
  'without the key': (sign, app, honest) => ({ ...honest, auth: honest.auth.split(':')[1] }),
  'left empty': (sign, app, honest) => ({ ...honest, auth: '' }),
  'cut short': (sign, app, honest) => ({ ...honest, auth: honest.auth.slice(0, -2) }),
  'for other channel data': (sign, app, honest) => ({ ...honest, channel_data: `${honest.channel_data} ` }),
  'for other user data': (sign, app, honest) => ({ ...honest, user_data: `${honest.user_data} ` }),
};

/** Answers `/broadcasting/*` and `/pusher/*`; its result is false for other paths. */
export async function handleAuth(request, response) {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  const isChannel = CHANNEL_PATHS.includes(pathname);
  if (!isChannel && !USER_PATHS.includes(pathname)) return false;

  response.setHeader('access-control-allow-origin', '*');
  response.setHeader('access-control-allow-methods', 'POST');
  response.setHeader('access-control-allow-headers', request.headers['access-control-request-headers'] ?? '*');
  if (request.method === 'OPTIONS') return end(response, 204);
  if (request.method !== 'POST') return end(response, 405);

  let body = '';
  for await (const chunk of request.setEncoding('utf8')) body += chunk;
  const form = Object.fromEntries(new URLSearchParams(body));
  const user = request.headers['x-user'] ?? form.user;
  if (!user) return end(response, 403, { message: 'who are you?' });

  const app = APPS[searchParams.get('app') ?? 'main'];
  const sign = isChannel ? signChannel(form, user) : signUser(form, user);
  const honest = sign(app);
  return end(response, 200, form.forge ? FORGERIES[form.forge](sign, app, honest, form) : honest);
}

function end(response, status, body) {
  response.writeHead(status, { 'content-type': 'application/json' }).end(body && JSON.stringify(body));
  return true;
}

const signer = (app) =>
  new PusherServer({
    appId: app.id,
    key: app.key,
    secret: app.secret,
    encryptionMasterKeyBase64: MASTER_KEY,
  });

function signChannel(form, user) {
  const data = channelData(form, user);
  return (app, { channel = form.channel_name, socketId = form.socket_id } = {}) =>
    signer(app).authorizeChannel(socketId, channel, data);
}

function channelData(form, user) {
  if (form.data !== undefined) return JSON.parse(form.data);
  if (!form.channel_name.startsWith('presence-') || form.bare) return undefined;
  return { user_id: form.numeric ? Number(user) : user, user_info: userInfo(form, user) };
}

function signUser(form, user) {
  const watchlist = form.watchlist?.split(',');
  const data = { id: user, user_info: userInfo(form, user), ...(watchlist && { watchlist }) };
  return (app, { socketId = form.socket_id } = {}) => signer(app).authenticateUser(socketId, data);
}

function userInfo(form, user) {
  return form.info === undefined ? { name: user } : JSON.parse(form.info);
}

/** Listens on a free port of this machine; the caller closes what it returns. */
export async function listen(handler) {
  const server = createServer((request, response) => {
    handler(request, response).catch((error) => response.writeHead(500).end(String(error)));
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    close() {
      server.closeAllConnections?.();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A server with nothing but the authorisation endpoints. */
export function startAuth() {
  return listen(async (request, response) => {
    if (!(await handleAuth(request, response))) end(response, 404);
  });
}
