/**
 * A TCP forwarder, as a load balancer stands in front of a server that restarts: while it is held, new connections
 * wait for the server to come back.
 */
import { once } from 'node:events';
import { connect, createServer } from 'node:net';

export class Forwarder {
  #server;
  #sockets = new Set();
  #target;
  #released = Promise.resolve();
  #release = () => {};
  #outbound = [];

  /** Forwards to the host and port of `target`. */
  static async start(target) {
    const forwarder = new Forwarder();
    forwarder.#target = target;
    forwarder.#server = createServer((inbound) => forwarder.#accept(inbound));
    await once(forwarder.#server.listen(0, '127.0.0.1'), 'listening');
    return forwarder;
  }

  get port() {
    return this.#server.address().port;
  }

  /** Bytes that the target has sent so far, to all who came this way. */
  get bytesFromTarget() {
    return this.#outbound.reduce((sum, socket) => sum + socket.bytesRead, 0);
  }

  hold() {
    this.#released = new Promise((resolve) => {
      this.#release = resolve;
    });
  }

  release() {
    this.#release();
  }

  async #accept(inbound) {
    this.#track(inbound);
    await this.#released;
    const outbound = connect(this.#target.port, this.#target.host);
    this.#track(outbound);
    this.#outbound.push(outbound);
    inbound.pipe(outbound).pipe(inbound);
    inbound.on('close', () => outbound.destroy());
    outbound.on('close', () => inbound.destroySoon());
  }

  #track(socket) {
    this.#sockets.add(socket);
    socket.on('error', () => socket.destroy());
    socket.on('close', () => this.#sockets.delete(socket));
  }

  close() {
    this.release();
    for (const socket of this.#sockets) socket.destroy();
    return new Promise((resolve) => {
      this.#server.close(resolve);
    });
  }
}
