/** A webhook receiver: accepts every request and keeps it. */
import { Inbox } from './inbox.mjs';
import { serve } from './http.mjs';

/**
 * Starts a receiver on a free port. It puts each request into `requests` as `{ headers, rawBody }`, the form that the Node
 * SDK verifies.
 */
export async function startReceiver(owner, requests = new Inbox('webhooks')) {
  const { url } = await serve(owner, 'a webhook receiver', async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    requests.put({ headers: request.headers, rawBody: Buffer.concat(chunks).toString() });
    response.writeHead(204).end();
  });
  return { url: `${url}/hooks`, requests };
}
