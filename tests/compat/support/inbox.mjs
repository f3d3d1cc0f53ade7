/**
 * A queue of what a client has received.
 *
 * Tests wait for items, never for time to pass. That nothing arrives is shown with a fence: publish a later event, and
 * assert that it is the next item.
 */
const TAKE_TIMEOUT_MS = 10_000;

export class Inbox {
  #name;
  #items = [];
  #takers = [];

  constructor(name) {
    this.#name = name;
  }

  put(item) {
    const taker = this.#takers.shift();
    if (taker) taker(item);
    else this.#items.push(item);
  }

  /** The next item, in the order of arrival. */
  take(timeoutMs = TAKE_TIMEOUT_MS) {
    if (this.#items.length > 0) return Promise.resolve(this.#items.shift());
    // Created here, because the stack still contains the line of the test.
    const error = new Error(`nothing arrived in ${this.#name} within ${timeoutMs} ms`);
    const arrival = new Promise((resolve, reject) => {
      const taker = (item) => {
        clearTimeout(timer);
        resolve(item);
      };
      const timer = setTimeout(() => {
        this.#takers.splice(this.#takers.indexOf(taker), 1);
        reject(error);
      }, timeoutMs);
      this.#takers.push(taker);
    });
    // A test that has failed awaits its other takes no more. Unhandled, they would fail other tests.
    arrival.catch(() => {});
    return arrival;
  }

  /** The next `count` items. */
  async takeMany(count) {
    const items = [];
    while (items.length < count) items.push(await this.take());
    return items;
  }

  /** The next item that `matches`. Items before it are dropped. */
  async takeUntil(matches) {
    for (;;) {
      const item = await this.take();
      if (matches(item)) return item;
    }
  }
}
