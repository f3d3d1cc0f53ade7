/** A web site with pusher-js for a page and for a worker, and the authorisation endpoints of its application. */
import { readFile } from 'node:fs/promises';
import { handleAuth } from './auth.mjs';
import { serve } from './http.mjs';

const DIST = new URL('../node_modules/pusher-js/dist/', import.meta.url);
const PAGES = new URL('../browser/pages/', import.meta.url);

const FILES = {
  '/': [new URL('page.html', PAGES), 'text/html'],
  '/worker.js': [new URL('worker.js', PAGES), 'text/javascript'],
  '/pusher.js': [new URL('web/pusher-with-encryption.min.js', DIST), 'text/javascript'],
  '/pusher.worker.js': [new URL('worker/pusher.worker.min.js', DIST), 'text/javascript'],
};

export function startSite(owner) {
  return serve(owner, 'the web site', async (request, response) => {
    if (await handleAuth(request, response)) return;
    const [path, type] = FILES[new URL(request.url, 'http://localhost').pathname] ?? [];
    if (path) response.writeHead(200, { 'content-type': `${type}; charset=utf-8` }).end(await readFile(path));
    else response.writeHead(404).end();
  });
}
