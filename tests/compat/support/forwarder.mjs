/**
 * A TCP forwarder. It stands for a load balancer in front of a server that restarts: while it is held, it accepts
 * connections and forwards them later.
 */
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { closeWith } from './resources.mjs';

export class Forwarder {
  #server;
  #sockets = new Set();
  #target;
  #released = Promise.resolve();
  #release = () => {};
  #outbound = [];

  /** Forwards to the host and port of `target`, which may change. */
  static async start(owner, target) {
    const forwarder = new Forwarder();
    forwarder.#target = target;
    forwarder.#server = createServer((inbound) => forwarder.#accept(inbound));
    closeWith(owner, 'a TCP forwarder', () => forwarder.#close());
    await once(forwarder.#server.listen(0, '127.0.0.1'), 'listening');
    return forwarder;
  }

  get port() {
    return this.#server.address().port;
  }

  /** The bytes that the target has sent so far over all connections. */
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
    if (inbound.destroyed) return;
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

  async #close() {
    for (const socket of this.#sockets) socket.destroy();
    this.release();
    if (this.#server.listening) await new Promise((resolve) => this.#server.close(resolve));
  }
}
