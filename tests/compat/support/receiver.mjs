/** A receiver of webhooks: takes everything, and keeps what came. */
import { createServer } from 'node:http';
import { Inbox } from './inbox.mjs';

const HOST = '127.0.0.1';

class Receiver {
  /** Requests: `{ headers, rawBody }`, as the Node SDK wants them. */
  requests;
  #server;

  constructor(server, requests) {
    this.#server = server;
    this.requests = requests;
  }

  get url() {
    return `http://${HOST}:${this.#server.address().port}/hooks`;
  }

  async close() {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** Starts a receiver on a free port, which puts what comes into `requests`. The caller closes it. */
export async function startReceiver(requests = new Inbox('webhooks')) {
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    receiver.requests.put({ headers: request.headers, rawBody: Buffer.concat(chunks).toString() });
    response.writeHead(204).end();
  });
  const receiver = new Receiver(server, requests);
  await new Promise((resolve) => server.listen(0, HOST, resolve));
  return receiver;
}
