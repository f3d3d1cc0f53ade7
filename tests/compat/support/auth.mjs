/**
 * The authorisation endpoints of an application: channel authorisation and user authentication, as Laravel and the Pusher
 * examples serve them. The Node SDK signs the responses.
 *
 * The header `X-User` or the parameter `user` names the user; without it, the response is 403. The query may name the
 * `app`. Further parameters:
 *
 *  - `info`       JSON: the `user_info` of a presence member or signed-in user (default: `{ name }`)
 *  - `watchlist`  comma-separated user ids for the sign-in
 *  - `numeric`    sends the presence `user_id` as a JSON number
 *  - `bare`       leaves `channel_data` out for a presence channel, as for signed-in users
 *  - `data`       JSON: is signed as `channel_data`, also for private channels
 *  - `forge`      one of `FORGERIES`: the response is well-formed, but pusherd must reject it
 */
import PusherServer from 'pusher';
import { serve } from './http.mjs';
import { APPS } from './pusherd.mjs';

export const MASTER_KEY = Buffer.from('0123456789abcdef0123456789abcdef').toString('base64');

const CHANNEL_PATHS = ['/broadcasting/auth', '/pusher/auth'];
const USER_PATHS = ['/broadcasting/user-auth', '/pusher/user-auth'];

/** Ways to forge an authorisation. Each gets the function that signs, the app, the valid response and the form. */
export const FORGERIES = {
  'made with another secret': (sign, app) => sign({ ...app, secret: 'not-the-secret' }),
  'made for another connection': (sign, app) => sign(app, { socketId: '1234.5678' }),
  'made for another channel': (sign, app, valid, form) => sign(app, { channel: `${form.channel_name}-elsewhere` }),
  'under another key': (sign, app) => sign({ ...app, key: 'another-key' }),
  'without the key': (sign, app, valid) => ({ ...valid, auth: valid.auth.split(':')[1] }),
  'left empty': (sign, app, valid) => ({ ...valid, auth: '' }),
  'cut short': (sign, app, valid) => ({ ...valid, auth: valid.auth.slice(0, -2) }),
  'for other channel data': (sign, app, valid) => ({ ...valid, channel_data: `${valid.channel_data} ` }),
  'for other user data': (sign, app, valid) => ({ ...valid, user_data: `${valid.user_data} ` }),
};

/** Responds to `/broadcasting/*` and `/pusher/*`. Returns false for other paths. */
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
  if (!user) return end(response, 403, { message: 'unauthenticated' });

  const app = APPS[searchParams.get('app') ?? 'main'];
  const sign = isChannel ? signChannel(form, user) : signUser(form, user);
  const valid = sign(app);
  return end(response, 200, form.forge ? FORGERIES[form.forge](sign, app, valid, form) : valid);
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

/** Starts a server that has nothing but the authorisation endpoints. */
export function startAuth(owner) {
  return serve(owner, 'the authorisation server', async (request, response) => {
    if (!(await handleAuth(request, response))) end(response, 404);
  });
}
