/** HTTP servers of tests. */
import { once } from 'node:events';
import { createServer } from 'node:http';
import { closeWith } from './resources.mjs';

/** Serves `handler` on a free port of this machine. If it rejects, the response is 500. */
export async function serve(owner, name, handler) {
  const server = createServer((request, response) => {
    handler(request, response).catch((error) => response.writeHead(500).end(String(error)));
  });
  closeWith(owner, name, async () => {
    server.closeAllConnections();
    if (server.listening) await new Promise((resolve) => server.close(resolve));
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  return { url: `http://127.0.0.1:${server.address().port}` };
}
