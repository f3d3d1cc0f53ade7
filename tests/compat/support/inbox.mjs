/**
 * What a client has received and the test has not looked at yet.
 *
 * Tests wait on arrivals, never on the clock. "Nothing arrives" is shown with a fence: cause a later event, and assert
 * that it is the next one taken.
 */
const TAKE_TIMEOUT_MS = 10_000;

export class Inbox {
  #name;
  #items = [];
  #waiting = [];

  constructor(name) {
    this.#name = name;
  }

  put(item) {
    const taker = this.#waiting.shift();
    if (taker) taker(item);
    else this.#items.push(item);
  }

  /** The next item, in the order of arrival. */
  take(timeoutMs = TAKE_TIMEOUT_MS) {
    if (this.#items.length > 0) return Promise.resolve(this.#items.shift());
    // The stack is taken here, where it still shows the line of the test.
    const error = new Error(`nothing arrived in ${this.#name} within ${timeoutMs} ms`);
    const arrival = new Promise((resolve, reject) => {
      const taker = (item) => {
        clearTimeout(timer);
        resolve(item);
      };
      const timer = setTimeout(() => {
        this.#waiting.splice(this.#waiting.indexOf(taker), 1);
        reject(error);
      }, timeoutMs);
      this.#waiting.push(taker);
    });
    // A test that fails early awaits no more: its other waits must not end the whole run.
    arrival.catch(() => {});
    return arrival;
  }

  /** The next `count` items. */
  async takeMany(count) {
    const items = [];
    while (items.length < count) items.push(await this.take());
    return items;
  }

  /** The next item that `matches`; those before it are dropped. */
  async takeUntil(matches) {
    for (;;) {
      const item = await this.take();
      if (matches(item)) return item;
    }
  }
}
