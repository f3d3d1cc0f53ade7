/**
 * Registers what tests open (servers, clients, processes, loops) and closes it.
 *
 * A resource is registered where it is made, with its owner: a test, or the file for what its tests share. When the owner
 * ends, passed or failed, its resources are closed, the newest first. Each close has a time limit, and one that fails does
 * not keep the others from being closed.
 *
 * An open socket, process or loop keeps Node alive, and with it the test runner. So a file that does not end soon after its
 * tests is ended with exit code 1, and a message names what is open.
 */
import { after } from 'node:test';

const CLOSE_TIMEOUT_MS = 20_000;
/** From the end of the last test, and its resources, to the end of the process. */
const END_TIMEOUT_MS = 10_000;
const FILE_TIMEOUT_MS = 600_000;

/** The owner of the resources that all tests of a file share. */
export const file = {};

/** The resources of each owner. */
const scopes = new WeakMap();
/** The names of all open resources. */
const open = new Set();

class Scope {
  #resources = [];
  #isClosed = false;

  add(resource) {
    if (this.#isClosed) {
      closeInTime(resource).catch(() => {});
      throw new Error(`${resource.name} was opened after its test had ended`);
    }
    open.add(resource);
    this.#resources.push(resource);
  }

  async close() {
    this.#isClosed = true;
    const errors = [];
    while (this.#resources.length > 0) {
      const resource = this.#resources.pop();
      try {
        await closeInTime(resource);
        open.delete(resource);
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length === 1) throw errors[0];
    if (errors.length > 1) throw new AggregateError(errors, errors.map(({ message }) => message).join('\n'));
  }
}

/** Registers the resource `name` of an owner: a test context, or `file`. */
export function closeWith(owner, name, close, timeoutMs = CLOSE_TIMEOUT_MS) {
  let scope = scopes.get(owner);
  if (!scope) {
    scope = new Scope();
    scopes.set(owner, scope);
    owner.after(() => scope.close());
  }
  scope.add({ name, close, timeoutMs });
}

async function closeInTime({ name, close, timeoutMs }) {
  let timer;
  const expired = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${name} was not closed within ${timeoutMs} ms`)), timeoutMs);
  });
  try {
    await Promise.race([close(), expired]);
  } finally {
    clearTimeout(timer);
  }
}

function endFile(reason) {
  const names = [...open].map(({ name }) => name).join(', ') || 'nothing that is registered';
  const handles = process.getActiveResourcesInfo().join(', ');
  console.error(`${process.argv[1]} ${reason}. Not closed: ${names}. Handles of Node: ${handles}.`);
  process.exit(1);
}

// cluster/faults.mjs uses these modules without node:test.
if (/\.test\.mjs$/.test(process.argv[1])) {
  scopes.set(file, new Scope());
  setTimeout(endFile, FILE_TIMEOUT_MS, `has run for ${FILE_TIMEOUT_MS} ms`).unref();
  after(async () => {
    try {
      await scopes.get(file).close();
    } finally {
      setTimeout(endFile, END_TIMEOUT_MS, `did not end within ${END_TIMEOUT_MS} ms after its tests`).unref();
    }
  });
}
